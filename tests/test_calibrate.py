"""Recalibration from labelled rows to a bundle that serves the new promise."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from classifier.bundle import read_bundle, write_bundle
from classifier.calibration import IDENTITY
from classifier.drift import reference_distributions, shifts
from classifier.engine import Engine
from classifier.errors import BundleCorrupt, BundleError, InputError, SettingsError
from classifier.inputs import INPUT_VERSION
from classifier.policy import ALWAYS_FRONTIER, Policy, choose_many
from classifier.texts import encodable
from classifier.types import Request, Tier
from tests.calibration_support import ALPHAS, NAMES, population, write_rows
from tests.tiny import WORDS, tiny_bundle
from training.audit_set import read_rows
from training.calibrate import CARD_END, CARD_START, calibrate, with_policies
from training.calibrate_command import command
from training.calibration_plot import plot
from training.calibration_report import (
    measure_policy,
    reliability,
    under,
)
from training.calibration_set import (
    TRAINING_ROWS,
    pack_rows,
    rows_among,
)
from training.calibration_text import as_text
from training.corpus import read_corpus, write_corpus
from training.predictions import read_predictions, write_predictions
from training.step_losses import soft


@pytest.fixture(scope="module")
def rows_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,200 labelled rows of seven sources."""
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", 1200, scripts=True)


@pytest.fixture(scope="module")
def recalibrated(
    tiny_bundle_path: Path, rows_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict]:
    """A recalibrated bundle and its report."""
    out = tmp_path_factory.mktemp("recalibrated") / "bundle"
    return out, calibrate(tiny_bundle_path, [rows_path], out, policies=ALPHAS)


def few(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# --- the bundle that comes out


def test_a_recalibrated_bundle_has_the_same_weights_and_names_its_parent(recalibrated: tuple, tiny_bundle_path: Path):
    """Recalibration changes probabilities, policies and card; model and tokeniser stay, the parent is recorded."""
    out, report = recalibrated
    old, new = read_bundle(tiny_bundle_path), read_bundle(out)
    same = {name for name in old.manifest["files"] if old.manifest["files"][name] == new.manifest["files"][name]}
    assert {"model.onnx", "tokenizer.json", "config.json"} <= same
    assert not same & {"calibration.json", "policy.json", "README.md"}
    assert new.manifest["parent"] == old.version == report["bundle"]["parent"]
    assert new.version == report["bundle"]["version"] != old.version


def test_the_new_bundle_serves_what_was_promised(recalibrated: tuple):
    """The engine replays its golden inputs and answers with the fitted thresholds, guaranteed."""
    out, report = recalibrated
    engine = Engine.from_pretrained(out)
    assert engine.golden_ok
    decision = engine.classify(Request.from_text("hi", policy="balanced"))
    entry = next(p for p in report["policies"] if p["name"] == "balanced")
    assert (decision.threshold, decision.guaranteed) == (entry["threshold"], True)
    guarantee = engine.policies["balanced"].guarantee
    assert (guarantee.alpha, guarantee.delta, guarantee.method) == (0.1, 0.0, "CONFORMAL_RISK_CONTROL")
    assert (guarantee.label, guarantee.n, guarantee.feasible) == ("RUBRIC", report["rows"]["thresholds"], True)
    assert guarantee.empirical_risk <= guarantee.bound <= 0.1


def test_probabilities_and_thresholds_are_fitted_on_different_rows(recalibrated: tuple):
    """Half of the rows fit the map, the other half the thresholds, and none is left out."""
    _, report = recalibrated
    assert report["rows"]["map"] == pytest.approx(600, abs=1)
    assert report["rows"]["map"] + report["rows"]["thresholds"] == 1200


def test_the_fitted_probabilities_predict_better(recalibrated: tuple):
    """On rows that the map was not fitted on its ranked probability score beats the old one's."""
    found = recalibrated[1]["calibration"]
    assert found["after"]["ranked_probability_score"] < found["before"]["ranked_probability_score"]
    assert found["after"]["method"] == min(found["out_of_fold"], key=found["out_of_fold"].get)


def test_the_report_counts_what_the_engine_answers(recalibrated: tuple, rows_path: Path):
    """Shares and risk in the report are those of the served decisions on the same rows."""
    out, report = recalibrated
    engine, rows = Engine.from_pretrained(out), read_corpus([rows_path])
    served = np.array([engine.classify(row.request).tier.index for row in rows])
    labels = np.array([row.tier.index for row in rows])
    entry = next(p for p in report["policies"] if p["name"] == "balanced")
    offline = read_rows([rows_path], engine)
    chosen = choose_many(engine.bundle.calibration.apply(offline.logits), entry["threshold"])
    assert (chosen == served).all()
    assert under(chosen, offline.labels).mean() == np.mean(served < labels)
    assert sum(entry["measured"]["shares"]) == pytest.approx(1)
    assert tuple(entry["measured"]["shares"]) == engine.policies["balanced"].tier_shares


def test_the_same_rows_and_seed_give_the_same_bundle(
    tiny_bundle_path: Path, rows_path: Path, recalibrated: tuple, tmp_path: Path
):
    """Recalibration is reproducible to the byte: the version is the same."""
    again = calibrate(tiny_bundle_path, [rows_path], tmp_path / "again", policies=ALPHAS)
    assert again["bundle"]["version"] == recalibrated[1]["bundle"]["version"]


def test_it_never_overwrites(recalibrated: tuple, tiny_bundle_path: Path, rows_path: Path):
    """An existing folder is refused, before any row is read."""
    with pytest.raises(BundleError, match="already exists"):
        calibrate(tiny_bundle_path, ["nowhere.jsonl"], recalibrated[0], policies=ALPHAS)
    with pytest.raises(BundleError, match="already exists"):
        calibrate(tiny_bundle_path, [rows_path], recalibrated[0], policies=ALPHAS)


def test_equal_predictions_are_one_point_of_the_reliability_curve():
    """Rows of one prediction are one point, whatever the order of their labels in the file."""
    rows, labels = np.tile(np.float32([0.5, 0.5, 0, 0]), (100, 1)), soft(np.repeat([0, 1], 50))
    assert reliability(rows, labels, 0) == [[0.5, 0.5, 100]]
    ranked = np.linspace(0, 1, 100, dtype=np.float32)[:, None] * np.float32([[1, 0, 0, 0]])
    assert [n for _, _, n in reliability(ranked, labels, 0)] == [10] * 10


def test_rows_that_a_bootstrap_cannot_draw_in_groups_are_drawn_one_by_one():
    """Where all rows are of one group and source, an interval is that of its rows, and no point."""
    rows = population(300, 0, sources=1)
    alone, single = replace(rows, groups=np.full(300, "g")), replace(rows, groups=np.arange(300).astype(str))
    found = [
        measure_policy(Policy("p", 0.8), one, IDENTITY.apply(one.logits), np.empty((0, 4), np.float32))["risk"]
        for one in (alone, single)
    ]
    widths = [risk["high"] - risk["low"] for risk in found]
    assert widths[0] == pytest.approx(widths[1], rel=0.2)
    assert widths[1] > 0.03


def test_no_miss_of_a_few_rows_is_no_proof_of_none():
    """Where nothing is missed a risk has Wilson's interval, and so have frontier misses, instead of 0 to 0."""
    rows = population(60, 0)
    found = measure_policy(
        Policy("p", ALWAYS_FRONTIER), rows, IDENTITY.apply(rows.logits), np.empty((0, 4), np.float32)
    )
    assert (found["risk"]["low"], found["risk"]["high"]) == (0.0, pytest.approx(0.0602, abs=1e-3))
    assert found["frontier_misses"]["high"] > 0.2


def test_labels_are_drawn_from_rates_whatever_the_order_of_the_rows():
    """A file sorted otherwise has the same thresholds where a confidence is asked for."""
    rng = np.random.default_rng(0)
    rows = replace(population(200, 0), labels=rng.dirichlet((1, 1, 1, 1), 200))
    order = rng.permutation(200)
    assert np.array_equal(rows.take(order).drawn(3).labels, rows.drawn(3).labels[order])


def test_the_card_has_one_section_on_policies(recalibrated: tuple):
    """Recalibrating again replaces the section, so that a card never shows old promises."""
    card = (recalibrated[0] / "README.md").read_text(encoding="utf-8")
    assert card.count(CARD_START) == card.count(CARD_END) == 1
    again = with_policies(card, "new text\n")
    assert again.count(CARD_START) == again.count(CARD_END) == 1
    assert "new text" in again
    assert "conformal risk control" not in again


def test_a_machine_with_other_arithmetic_is_recalibrated_for_itself(rows_path: Path, tmp_path: Path):
    """Golden inputs that differ here make answers unguaranteed until the bundle is recalibrated here."""
    bundle = tiny_bundle(tmp_path / "other")
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    manifest["golden"][0]["probabilities"] = [0.25] * 4
    (bundle.path / "manifest.json").write_text(json.dumps(manifest))
    assert not Engine.from_pretrained(bundle.path).golden_ok
    calibrate(bundle.path, [rows_path], tmp_path / "here", policies=ALPHAS)
    assert Engine.from_pretrained(tmp_path / "here").golden_ok


def test_a_bundle_of_an_earlier_input_version_is_brought_up_to_date(rows_path: Path, tmp_path: Path):
    """Serving refuses it and says how; recalibrated it serves, with a note that its weights learnt other inputs."""
    bundle = tiny_bundle(tmp_path / "before")
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    manifest["input_version"] = INPUT_VERSION - 1
    (bundle.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleCorrupt, match="python -m training calibrate"):
        Engine.from_pretrained(bundle.path)
    report = calibrate(bundle.path, [rows_path], tmp_path / "now", policies=ALPHAS)
    assert any(f"made for input version {INPUT_VERSION - 1}" in note for note in report["notes"])
    engine = Engine.from_pretrained(tmp_path / "now")
    assert engine.golden_ok
    assert engine.bundle.manifest["input_version"] == INPUT_VERSION
    assert engine.bundle.manifest["files"]["model.onnx"] == manifest["files"]["model.onnx"]


def test_the_map_may_come_from_predictions_across_sources(tiny_bundle_path: Path, rows_path: Path, tmp_path: Path):
    """With a file of out-of-source predictions for the map, every row of --data goes to the thresholds."""
    rows = population(1000, 8, sharpness=2.0)
    np.savez(tmp_path / "cv.npz", logits=rows.logits, labels=rows.labels.argmax(axis=1), sources=rows.sources)
    report = calibrate(
        tiny_bundle_path, [rows_path], tmp_path / "out", policies=ALPHAS, fit_paths=[tmp_path / "cv.npz"]
    )
    assert (report["rows"]["map"], report["rows"]["thresholds"]) == (1000, 1200)


def test_groups_may_come_from_a_gateways_label(tiny_bundle_path: Path, tmp_path: Path):
    """Rows that carry a label of the gateway are grouped by it, and a served request by the label that it brings."""
    easy = write_rows(tmp_path / "easy.jsonl", 150, seed=1, labels={"tenant": "acme"})
    hard = write_rows(tmp_path / "hard.jsonl", 150, seed=2, labels={"tenant": "initech"}, tier="complex")
    calibrate(tiny_bundle_path, [easy, hard], tmp_path / "out", policies=ALPHAS, group_by="tenant")
    engine = Engine.from_pretrained(tmp_path / "out")
    thresholds = engine.policies["economy"].group_thresholds
    assert set(thresholds) == {"acme", "initech"}
    assert thresholds["initech"] > thresholds["acme"]
    for tenant, guaranteed in (("acme", True), ("umbrella", False)):
        decision = engine.classify(Request.from_text("hi", policy="economy", labels={"tenant": tenant}))
        assert (decision.guaranteed, decision.threshold == thresholds.get(tenant)) == (guaranteed, guaranteed)


def test_served_groups_follow_the_script(tiny_bundle_path: Path, rows_path: Path, tmp_path: Path):
    """A policy by script answers Latin and Cyrillic requests with their own thresholds, others unguaranteed."""
    calibrate(tiny_bundle_path, [rows_path], tmp_path / "out", policies=ALPHAS, group_by="script")
    engine = Engine.from_pretrained(tmp_path / "out")
    thresholds = engine.policies["balanced"].group_thresholds
    assert len(thresholds) >= 2
    for text in ("please translate the date", "да нет или как да нет"):
        decision = engine.classify(Request.from_text(text))
        assert decision.threshold == thresholds[engine.prepare(Request.from_text(text)).input.script]
    assert not engine.classify(Request.from_text("翻訳してください")).guaranteed


def test_a_prior_shift_is_an_estimate_and_says_so(tiny_bundle_path: Path, rows_path: Path, tmp_path: Path):
    """Unlabelled traffic moves the thresholds under a printed assumption; method and card say what they are."""
    hard = [
        row | {"tier": None} for row in map(json.loads, rows_path.read_text().splitlines()) if row["tier"] in NAMES[2:]
    ]
    traffic = few(tmp_path / "traffic.jsonl", hard)
    plain = calibrate(tiny_bundle_path, [rows_path], tmp_path / "plain", policies=ALPHAS)
    moved = calibrate(tiny_bundle_path, [rows_path], tmp_path / "moved", policies=ALPHAS, prior_shift=[traffic])
    assert {p["guarantee"]["method"] for p in moved["policies"]} == {"LABEL_SHIFT"}
    assert any("not a proof" in note for note in moved["notes"])
    card = (tmp_path / "moved" / "README.md").read_text(encoding="utf-8")
    assert "| balanced | none; risk <= 0.1 is an estimate, if only the tier shares changed | label shift |" in card
    assert "| balanced | risk <= 0.1 |" in (tmp_path / "plain" / "README.md").read_text(encoding="utf-8")
    for before, after in zip(plain["policies"], moved["policies"], strict=True):
        assert after["threshold"] > before["threshold"]
    assert "All else is of the rows as they are" in card
    expected = read_bundle(tmp_path / "moved").policies["balanced"].tier_shares
    assert sum(expected[2:]) > sum(moved["policies"][1]["measured"]["shares"][2:]) + 0.1  # the traffic is hard


def test_open_rows_bound_the_risk_and_fit_nothing(tiny_bundle_path: Path, rows_path: Path, tmp_path: Path):
    """Rows of which only an interval is known leave the thresholds alone and widen the reported risk to a band."""
    rejected = [
        {"prompt": f"explain the recipe {i}", "at_least": "complex", "label": "RUBRIC", "source": "open"}
        for i in range(50)
    ]
    path = few(tmp_path / "open.jsonl", rejected)
    plain = calibrate(tiny_bundle_path, [rows_path], tmp_path / "plain", policies=ALPHAS)
    both = calibrate(tiny_bundle_path, [rows_path, path], tmp_path / "both", policies=ALPHAS)
    assert both["rows"] | {"open": 0} == plain["rows"]
    assert [p["threshold"] for p in both["policies"]] == [p["threshold"] for p in plain["policies"]]
    band = both["policies"][1]["measured"]["open_rows"]
    assert band["n"] == 50
    assert 0 < band["risk_at_best"] <= band["risk_at_worst"]
    assert plain["policies"][1]["measured"]["open_rows"] is None
    told = f"- balanced: with the 50 open rows its risk is {band['risk_at_best']:.3f} at best"
    assert told in as_text(both)
    assert told in (tmp_path / "both" / "README.md").read_text(encoding="utf-8")
    assert "open rows its risk" not in as_text(plain)


def test_traffic_that_repeats_itself_keeps_its_promise(tiny_bundle_path: Path, tmp_path: Path):
    """A request that is a quarter of traffic is a quarter of its risk: each time counts, and the report says so."""
    path = write_rows(tmp_path / "rows.jsonl", 120, seed=4)
    again = json.dumps({"prompt": f"{WORDS['simple'][0]} please", "tier": "complex"}) + "\n"
    path.write_text(path.read_text() + 40 * again)
    report = calibrate(tiny_bundle_path, [path], tmp_path / "out", policies={"balanced": 0.1})
    assert any("39 of 160 rows repeat a request of another row" in note for note in report["notes"])
    assert any("On the 121 different requests of 160, each counted once" in note for note in report["notes"])
    engine = Engine.from_pretrained(tmp_path / "out")
    rows = read_corpus([path], repeats=True)
    assert np.mean([engine.classify(row.request).tier < row.tier for row in rows]) <= 0.1


# --- rows and targets that cannot be


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


# --- the command


def test_the_command_writes_bundle_and_report(tiny_bundle_path: Path, rows_path: Path, tmp_path: Path):
    """The command prints a table, names the new bundle, and keeps the whole report as JSON on request."""
    arguments = ["--bundle", str(tiny_bundle_path), "--data", str(rows_path), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(
        command,
        [
            *arguments,
            "--policy",
            "tight=0.08",
            "--delta",
            "0.1",
            "--severity",
            "0.5,1,1",
            "--report",
            str(tmp_path / "r.json"),
        ],
    )
    assert result.exit_code == 0, result.output
    assert "| tight | weighted loss <= 0.08 at 90% | hoeffding bentkus |" in result.stdout
    assert re.search(r"\| tight \| [0-9/ ]+ % \| [.\d]+; [.\d]+ \| \d+% of \d+ \|", result.stdout)
    report = json.loads((tmp_path / "r.json").read_text())
    assert f"bundle {report['bundle']['version']}" in result.stdout
    assert read_bundle(tmp_path / "out").default_policy == "tight"
    assert {"source", "script", "kind"} >= set(report["policies"][0]["measured"]["by"]) >= {"source"}
    assert len(report["curves"]["risk_by_threshold"]) > 50


def test_the_report_is_drawn(recalibrated: tuple, tmp_path: Path):
    """The figure shows every policy, every boundary and every source of the report."""
    plot(recalibrated[1], tmp_path / "figure.svg")
    drawn = (tmp_path / "figure.svg").read_text()
    for text in ("balanced", "&lt;= complex", "s6 (", "bound by conformal risk control"):
        assert f"<!-- {text}" in drawn


@pytest.mark.parametrize("name", [r"$\frac$", "half \ud83d"])
def test_names_of_sources_are_drawn_as_they_are(recalibrated: tuple, tmp_path: Path, name: str):
    """Two dollar signs in a user's name are no formula; half of a surrogate pair is a question mark."""
    report = json.loads(json.dumps(recalibrated[1]))
    for entry in report["policies"]:
        table = entry["measured"]["by"]["source"]
        entry["measured"]["by"]["source"] = {f"{source} {name}": risk for source, risk in table.items()}
    plot(report, tmp_path / "figure.svg")
    assert f"<!-- s6 {encodable(name)} (" in (tmp_path / "figure.svg").read_text()


def test_the_text_shows_before_and_after(recalibrated: tuple, rows_path: Path, tmp_path: Path):
    """A bundle that had policies is shown with their λ, risk and shares on the same rows, beside the new ones."""
    out, first = recalibrated
    again = calibrate(out, [write_rows(tmp_path / "rows.jsonl", 120, seed=5)], tmp_path / "out", policies=ALPHAS)
    text, entry = as_text(again), again["policies"][1]
    assert (
        f"| balanced, before | {first['policies'][1]['threshold']:.4f} | {entry['before']['risk']['estimate']:.3f} ("
        in text
    )
    assert f"| balanced, after | {entry['threshold']:.4f} | {entry['measured']['risk']['estimate']:.3f} (" in text


def test_a_weighted_loss_does_not_stand_for_a_share_of_requests(tiny_bundle_path: Path, tmp_path: Path):
    """With severity the loss stands beside its bound; the share sent too low, beside that of a random router."""
    rows, out = write_rows(tmp_path / "rows.jsonl", 150), tmp_path / "out"
    report = calibrate(tiny_bundle_path, [rows], out, policies={"balanced": 0.1}, severity=(0.2, 0.5, 1.0))
    (entry,) = report["policies"]
    loss, bound = entry["guarantee"]["empirical_risk"], entry["guarantee"]["bound"]
    risk, random = entry["measured"]["risk"]["estimate"], entry["measured"]["random_router_risk"]
    assert loss <= 0.1 < risk < random
    promised, paid = (line for line in as_text(report).splitlines() if line.startswith("| balanced |"))
    assert promised.endswith(f"| {loss:.3f} | {bound:.3f} |")
    assert f"| {risk:.3f}; {random:.3f} |" in paid


def test_risk_by_source_has_an_interval(recalibrated: tuple):
    """Each source's risk stands with the interval that its rows can show."""
    for entry in recalibrated[1]["policies"]:
        for found in entry["measured"]["by"]["source"].values():
            assert found["low"] <= found["risk"] <= found["high"]
            assert found["high"] > found["low"]


@pytest.mark.parametrize(
    "option",
    [
        ("--policy", "balanced"),
        ("--policy", "=0.1"),
        ("--policy", "a=0.1", "--policy", "a=0.3"),
        ("--severity", "1,2"),
        ("--prices", "a,b,c,d"),
        ("--prices", "nan,1,2,3"),
        ("--prices", "3,2,1,0"),
        ("--prices", "0,0,0,0"),
        ("--seed", "-1"),
        ("--report", "/nowhere/r.json"),
        ("--plot", "/nowhere/r.svg"),
        ("--plot", "r.xyz"),
        ("--delta", "0"),
        ("--delta", "1.5"),
        ("--delta", "-0.1"),
    ],
    ids=" ".join,
)
def test_a_malformed_option_is_a_usage_error(option: tuple, tiny_bundle_path: Path, rows_path: Path, tmp_path: Path):
    """Options that cannot be parsed end with exit code 2 and an example."""
    arguments = ["--bundle", str(tiny_bundle_path), "--data", str(rows_path), "--out", str(tmp_path / "out"), *option]
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_floors_still_hold_on_a_recalibrated_bundle(recalibrated: tuple):
    """A floor raises and a ceiling voids the promise, as on any bundle."""
    engine = Engine.from_pretrained(recalibrated[0])
    raised = engine.classify(Request.from_text("hi", floor=Tier.COMPLEX))
    lowered = engine.classify(Request.from_text(" ".join(WORDS["frontier"]), ceiling=Tier.SIMPLE))
    assert (raised.tier, raised.guaranteed) == (Tier.COMPLEX, True)
    assert (lowered.tier, lowered.guaranteed) == (Tier.SIMPLE, False)


@pytest.mark.parametrize(
    ("more", "says"),
    [(["--out", "rows.jsonl/new"], "no folder can be made"), (["--out", "new", "--report", "."], "is a directory")],
    ids=["bundle in a file", "report on a folder"],
)
def test_what_cannot_be_written_is_said_before_work_is_spent(
    tiny_bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], says: str
):
    """A line, no bundle, and no row scored."""
    from training.__main__ import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Engine, "score", None)
    write_rows(tmp_path / "rows.jsonl", 30)
    done = CliRunner().invoke(main, ["calibrate", "--bundle", str(tiny_bundle_path), "--data", "rows.jsonl", *more])
    assert isinstance(done.exception, SystemExit)
    assert done.exit_code in (1, 2)
    assert says in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize("label", ["group", "id", "label", "logit", "class"])
def test_predictions_keep_a_gateways_label_whatever_its_name(tiny_bundle_path: Path, tmp_path: Path, label: str):
    """A label may be named as an array of the file is, and is read back as it was written."""
    rows = population(20, 1)
    rows = replace(rows, facets={**rows.facets, label: np.array([f"{label}-{i % 2}" for i in range(20)])})
    write_predictions(tmp_path / "rows.npz", rows, read_bundle(tiny_bundle_path))
    read = read_predictions(tmp_path / "rows.npz")
    assert read.facets[label].tolist() == rows.facets[label].tolist()
    assert read.groups.tolist() == rows.groups.tolist()


def test_a_new_map_brings_the_scores_that_drift_is_measured_against(tmp_path: Path):
    """The rows that a bundle was recalibrated on are no drift from it, and signals are measured as before."""
    rows = read_corpus([write_rows(tmp_path / "rows.jsonl", 400, seed=5)])
    old = Engine.from_pretrained(tiny_bundle(tmp_path / "plain", scale=6.0).path)
    signals = [old.prepare(row.request).input.signals for row in rows]

    def scores(engine: Engine) -> list[tuple[float, ...]]:
        return [engine.score(engine.prepare(row.request)).probabilities for row in rows]

    reference = reference_distributions(scores(old), signals)
    write_bundle(tmp_path / "bundle", old.bundle.path, old.bundle.manifest, {"reference.json": reference})
    calibrate(tmp_path / "bundle", [tmp_path / "rows.jsonl"], tmp_path / "out", policies=ALPHAS)
    new = Engine.from_pretrained(tmp_path / "out")
    assert new.calibration_revision != old.calibration_revision

    def largest(reference: dict[str, Any]) -> float:
        return max(found["index"] for found in shifts(scores(new), signals, reference).values())

    assert largest(read_bundle(tmp_path / "bundle").reference) > 0.25
    assert largest(new.bundle.reference) < 0.01
    assert new.bundle.reference["signals"] == read_bundle(tmp_path / "bundle").reference["signals"]
