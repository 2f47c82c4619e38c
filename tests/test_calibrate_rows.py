"""Rows and targets for recalibration: what each label says, and those that cannot carry a promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from classifier.bundle import read_bundle
from classifier.engine import Engine
from classifier.errors import InputError, SettingsError
from tests.calibration_support import ALPHAS, few, population, write_rows
from tests.tiny import tiny_bundle
from training.audit_set import read_rows
from training.calibrate import calibrate
from training.calibration_set import (
    TRAINING_ROWS,
    pack_rows,
    rows_among,
)
from training.calibration_text import as_text
from training.corpus import read_corpus, write_corpus
from training.predictions import read_predictions, write_predictions


@pytest.fixture(scope="module")
def rows_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,200 labelled rows of seven sources."""
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 1200, scripts=True)


def test_rows_that_fitted_the_map_never_fit_thresholds_for_it(tiny_bundle_path: Path, tmp_path: Path):
    """Where a recalibration keeps the bundle's map, rows that an earlier one fitted it on are left out, and said so."""
    path = write_rows(tmp_path / "rows.jsonl", 400, seed=3)
    first = calibrate(tiny_bundle_path, [path], tmp_path / "first", policies=ALPHAS)
    lines = path.read_text().splitlines(keepends=True)
    engine = Engine.from_pretrained(tmp_path / "first")
    rows = read_rows([path], engine)
    fitted_map = rows.among(engine.bundle.manifest["map_rows"])
    assert fitted_map.sum() == first["rows"]["map"] == 200
    few_rows = tmp_path / "few.jsonl"
    few_rows.write_text("".join(lines[:150]))
    again = calibrate(tmp_path / "first", [few_rows], tmp_path / "second", policies=ALPHAS)
    assert again["rows"]["thresholds"] == 150 - fitted_map[:150].sum()
    assert any("rows were left out: the probability map" in note for note in again["notes"])
    only = tmp_path / "only.jsonl"
    only.write_text(
        "".join(line for line, seen in zip(lines, fitted_map, strict=True) if seen)[:20_000].rpartition("\n")[0]
    )
    with pytest.raises(InputError, match="every row fitted"):
        calibrate(tmp_path / "first", [only], tmp_path / "third", policies=ALPHAS)


def test_an_escalation_with_both_ends_is_closed(tiny_engine: Engine, tmp_path: Path):
    """Escalated from simple and satisfied above, also at frontier, is a label; rejected, nothing more known, is none;
    and what is written reads back so.
    """
    rows = [
        {"prompt": "plan it", "at_least": "standard", "at_most": "complex"},
        {"prompt": "prove it", "at_least": "standard"},
        {"prompt": "hi", "at_most": "standard"},
        {"prompt": "search for it", "at_least": "standard", "at_most": "frontier"},
    ]
    path = few(tmp_path / "r.jsonl", rows)
    write_corpus(tmp_path / "again.jsonl", read_corpus([path]))
    for given in (path, tmp_path / "again.jsonl"):
        found = read_rows([given], tiny_engine)
        assert found.label == "OUTCOME"
        assert found.labels.tolist() == [[0, 0, 1, 0], [0, 0, 0, 1]]
        assert found.open_rows.at_least.tolist() == [1, 0]
        assert found.open_rows.at_most.tolist() == [3, 1]


def test_outcome_rates_are_soft_labels(tiny_engine: Engine, tmp_path: Path):
    """Success rates by tier become the distribution of the first tier that satisfies."""
    row = {"prompt": "hi", "success_by_tier": {"simple": 0.5, "standard": 0.75, "complex": 0.75, "frontier": 1.0}}
    found = read_rows([few(tmp_path / "r.jsonl", [row])], tiny_engine)
    np.testing.assert_allclose(found.labels, [[0.5, 0.25, 0.0, 0.25]])
    assert found.label == "OUTCOME"
    assert set(found.drawn(0).labels[0].tolist()) == {0.0, 1.0}


def test_what_no_tier_satisfied_calibrates_nothing(tiny_bundle_path: Path, tmp_path: Path):
    """Rows that no tier satisfied fit no threshold, are counted in the report, and alone are refused."""
    unserved = [{"prompt": f"do {i}", "success_by_tier": {"simple": 0, "frontier": 0}} for i in range(5)]
    served = [{"prompt": f"hi {i}", "success_by_tier": {"simple": 1, "frontier": 1}} for i in range(200)]
    path = few(tmp_path / "r.jsonl", unserved + served)
    report = calibrate(tiny_bundle_path, [path], tmp_path / "out", policies=ALPHAS)
    rows = report["rows"]
    assert (rows["thresholds"] + rows["map"], rows["unserved"]) == (200, 5)
    assert "5 that no tier satisfied are left out" in as_text(report)
    with pytest.raises(InputError, match="no tier satisfied any of the 5 rows"):
        calibrate(tiny_bundle_path, [few(tmp_path / "r.jsonl", unserved)], tmp_path / "no", policies=ALPHAS)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"prompt": "hi", "tier": "simple"}, {"prompt": "ho", "success_by_tier": {"simple": 1.0}}],
            "OUTCOME', 'RUBRIC",
        ),
        (
            [{"prompt": "hi", "tier": "simple"}, {"prompt": "ho"}],
            "1 of 2 rows have no label, the first of the source r .* as its `tier`",
        ),
        ([{"prompt": "hi", "at_least": "standard"}], "no row has a closed label"),
    ],
    ids=["mixed kinds", "no label", "only open"],
)
def test_rows_that_cannot_carry_a_promise_are_refused(rows: list, message: str, tiny_bundle_path: Path, tmp_path: Path):
    """Mixed kinds of label, unlabelled rows and open rows alone are clear errors."""
    with pytest.raises(InputError, match=message):
        calibrate(tiny_bundle_path, [few(tmp_path / "r.jsonl", rows)], tmp_path / "out", policies=ALPHAS)


def test_training_rows_are_refused(rows_path: Path, tmp_path: Path):
    """Rows that the bundle was trained on are recognised by their hash and counted."""
    hashes = [row.sha256 for row in read_corpus([rows_path])]
    assert rows_among(hashes, pack_rows(hashes[:30])).sum() == 30
    assert not rows_among(hashes, pack_rows([])).any()
    bundle = tiny_bundle(tmp_path / "trained", manifest={TRAINING_ROWS: pack_rows(hashes[5:12])})
    with pytest.raises(InputError, match="7 of 1200 rows were in the bundle's training set"):
        calibrate(bundle.path, [rows_path], tmp_path / "out", policies=ALPHAS)


def test_traffic_without_a_request_is_refused(tiny_bundle_path: Path, rows_path: Path, tmp_path: Path):
    """An empty file of traffic, or a default policy that is not asked for, is named before anything is scored."""
    with pytest.raises(InputError, match=r"empty\.jsonl: no request"):
        calibrate(
            tiny_bundle_path,
            [rows_path],
            tmp_path / "o",
            policies=ALPHAS,
            prior_shift=[few(tmp_path / "empty.jsonl", [])],
        )
    with pytest.raises(SettingsError, match="default policy 'x'"):
        calibrate(tiny_bundle_path, [tmp_path / "absent"], tmp_path / "o", policies=ALPHAS, default="x")


def test_a_prior_shift_goes_alone(tiny_bundle_path: Path, rows_path: Path, tmp_path: Path):
    """An estimate under an assumption is not mixed with confidence statements."""
    with pytest.raises(SettingsError, match="without --delta"):
        calibrate(tiny_bundle_path, [rows_path], tmp_path / "o", policies=ALPHAS, delta=0.1, prior_shift=[rows_path])


def test_predictions_that_cannot_be_read_are_refused(tmp_path: Path):
    """A file of predictions without sources, or with ragged arrays, is a clear error."""
    rows = population(30, 21)
    np.savez(tmp_path / "a.npz", logits=rows.logits, labels=rows.labels)
    with pytest.raises(InputError, match="no array 'sources'"):
        read_predictions(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", logits=rows.logits, labels=rows.labels, sources=rows.sources[1:])
    with pytest.raises(InputError, match="expected"):
        read_predictions(tmp_path / "b.npz")


@pytest.mark.parametrize("named", [None, "f00d"], ids=["no model named", "another model"])
def test_answers_of_another_model_promise_nothing(named: str | None, tiny_bundle_path: Path, tmp_path: Path):
    """Stored predictions fit thresholds only for the model that gave them; a map may be any model's."""
    rows, path = population(300, 22), tmp_path / "p.npz"
    bundle = read_bundle(tiny_bundle_path)
    write_predictions(path, rows, bundle)
    assert calibrate(tiny_bundle_path, [path], tmp_path / "own", policies=ALPHAS)["rows"]["thresholds"] == 150
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files if name != "model_sha256"}
    np.savez(tmp_path / "other.npz", **arrays, **({"model_sha256": np.array(named)} if named else {}))
    with pytest.raises(InputError, match="say nothing of what the bundle promises"):
        calibrate(tiny_bundle_path, [tmp_path / "other.npz"], tmp_path / "other", policies=ALPHAS)
    others = {"fit_paths": [tmp_path / "other.npz"], "also_paths": [tmp_path / "other.npz"]}
    fresh = write_rows(tmp_path / "rows.jsonl", 120)
    assert calibrate(tiny_bundle_path, [fresh], tmp_path / "map", policies=ALPHAS, **others)["rows"]["map"] == 300


def test_rows_given_for_the_map_fit_no_thresholds(tiny_bundle_path: Path, tmp_path: Path):
    """Rows of --fit-data that stand in --data as well are left out of the thresholds; all of them is an error."""
    rows, more = write_rows(tmp_path / "a.jsonl", 150, seed=1), write_rows(tmp_path / "b.jsonl", 120, seed=2)
    report = calibrate(tiny_bundle_path, [rows, more], tmp_path / "out", policies=ALPHAS, fit_paths=[rows])
    assert report["rows"]["thresholds"] == 120
    assert any(note.startswith("150 rows were left out") for note in report["notes"])
    with pytest.raises(InputError, match="every row fitted the probability map"):
        calibrate(tiny_bundle_path, [rows], tmp_path / "none", policies=ALPHAS, fit_paths=[rows])


def test_arrays_that_are_no_facts_of_rows_are_not_read(tmp_path: Path):
    """Numbers in a file of predictions whose name ends in s, such as weights or probs, are no groups to report by."""
    rows = population(30, 21)
    known = {"logits": rows.logits, "labels": rows.labels, "sources": rows.sources, "tenants": rows.sources}
    np.savez(tmp_path / "p.npz", **known, probs=np.ones((30, 4)), weights=np.ones(30))
    assert set(read_predictions(tmp_path / "p.npz").facets) == {"source", "kind", "language", "script", "tenant"}
    np.savez(tmp_path / "p.npz", **(known | {"tenants": rows.sources[:, None]}))
    with pytest.raises(InputError, match="tenant"):
        read_predictions(tmp_path / "p.npz")
