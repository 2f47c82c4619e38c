"""Checking a promise: on own traffic, over random halves, and between sources."""

from __future__ import annotations

import doctest
import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from classifier.engine import Engine
from classifier.errors import GateNotMet, InputError
from tests.calibration_support import NAMES, population, write_rows
from training.calibrate import calibrate
from training.calibrate import command as calibrate_command
from training.calibration_set import CalibrationSet, read_set
from training.guarantee import check, command, half_splits, transfer

ALPHAS = {"economy": 0.2, "balanced": 0.1, "quality": 0.05}


@pytest.fixture(scope="module", autouse=True)
def few_bootstraps() -> Iterator[None]:
    """Intervals of 40 samples: these tests look at what is fitted and written, tests/test_metrics.py at intervals."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.calibration_report.BOOTSTRAPS", 40)
        yield


@pytest.fixture(scope="module")
def promising(tiny_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle calibrated on 800 rows with confidence 95 %."""
    folder = tmp_path_factory.mktemp("promising")
    rows = write_rows(folder / "rows.jsonl", 800, seed=1)
    calibrate(tiny_bundle_path, [rows], folder / "bundle", policies=ALPHAS, delta=0.05)
    return folder / "bundle"


def harder(path: Path, n: int) -> Path:
    """Rows whose label is a tier above what their words say."""
    lines = [json.loads(line) for line in write_rows(path, n, seed=9).read_text().splitlines()]
    for row in lines:
        row["tier"] = NAMES[min(NAMES.index(row["tier"]) + 1, 3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    return path


def mixed_sources(names: list[str], hard: str) -> CalibrationSet:
    """500 rows a source, calibrated but for one on which labels are a tier higher than the model thinks."""
    rows = population(500 * len(names), 3, sources=len(names))
    source = np.array(names)[np.arange(len(rows)) % len(names)]
    labels = rows.labels.argmax(axis=1)
    labels[source == hard] = np.minimum(labels[source == hard] + 1, 3)
    return CalibrationSet(rows.logits, np.eye(4)[labels], "RUBRIC", rows.ids, rows.groups, {"source": source})


def test_a_kept_promise_is_not_refuted(promising: Path, tmp_path: Path):
    """On fresh rows of the same traffic no promise is refuted, and the interval holds the risk."""
    engine = Engine.from_pretrained(promising)
    found = check(engine, read_set([write_rows(tmp_path / "new.jsonl", 400, seed=2)], engine))
    assert [e["name"] for e in found["policies"]] == list(ALPHAS)
    for entry in found["policies"]:
        assert not entry["refuted"]
        assert entry["low"] <= entry["risk"] <= entry["high"]


def test_a_broken_promise_is_refuted(promising: Path, tmp_path: Path):
    """On traffic that is harder than its words say every promise is refuted."""
    engine = Engine.from_pretrained(promising)
    found = check(engine, read_set([harder(tmp_path / "hard.jsonl", 400)], engine))
    assert all(entry["refuted"] for entry in found["policies"])


def test_an_unproven_bundle_promises_nothing_to_check(tiny_engine: Engine):
    """A bundle without a feasible policy is a clear error, and so is the other kind of label."""
    with pytest.raises(InputError, match="promises nothing"):
        check(tiny_engine, population(100, 0))


def test_labels_of_the_other_kind_are_refused(promising: Path):
    """A promise about RUBRIC labels cannot be checked on OUTCOME labels."""
    rows = population(100, 0)
    outcomes = CalibrationSet(rows.logits, rows.labels, "OUTCOME", rows.ids, rows.groups, rows.facets)
    with pytest.raises(InputError, match="OUTCOME labels"):
        check(Engine.from_pretrained(promising), outcomes)


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_random_halves_keep_the_promise_on_average(sharpness: float):
    """Over 200 random halves the mean risk on the other half is at most alpha, however confident the model."""
    found = half_splits(population(600, 4, sharpness=sharpness), ALPHAS)
    for entry in found.values():
        assert entry["splits"] == 200
        assert entry["mean_risk"] <= entry["alpha"] + 3 * entry["standard_error"]
        assert entry["standard_error"] < 0.002
    assert found["balanced"]["feasible"] == 400


def test_confidence_is_about_single_halves():
    """With delta the risk on the other half is above alpha more rarely than without."""
    rows = population(600, 5)
    plain, sure = half_splits(rows, {"p": 0.1})["p"], half_splits(rows, {"p": 0.1}, delta=0.05)["p"]
    assert sure["above_alpha"] < plain["above_alpha"]
    assert sure["mean_risk"] < plain["mean_risk"]


def test_a_source_that_differs_breaks_the_promise_until_it_is_labelled():
    """Fitted on other sources the odd one exceeds alpha; a hundred of its own rows bring it back."""
    found = transfer(mixed_sources(["a", "b", "c", "odd"], "odd"), ALPHAS)["economy"]
    assert set(found["sources"]) == {"a", "b", "c", "odd"}
    odd = found["sources"]["odd"]
    assert odd["risk"] > 0.3
    assert odd["risk_with_100"] <= 0.21
    assert odd["cheap_share_with_100"] < odd["cheap_share"]
    assert found["risk"]["worst"] == odd["risk"]
    assert found["risk_with_300"]["worst"] < found["risk_with_300"]["worst_without"]


def test_small_sources_are_left_out_of_the_table():
    """Sources with fewer than 50 rows are fitted on and not judged; 100 own rows take 150."""
    rows = population(260, 6, sources=1)
    source = np.array(["small"] * 40 + ["middle"] * 100 + ["large"] * 120)
    rows.facets["source"] = source
    found = transfer(rows, {"p": 0.2})["p"]
    assert set(found["sources"]) == {"middle", "large"}
    assert "risk_with_100" not in found


def test_transfer_takes_more_than_one_source():
    """With a single source there is nothing to transfer from."""
    with pytest.raises(InputError, match="two sources"):
        transfer(population(200, 7, sources=1), ALPHAS)


def test_the_command_ends_with_3_where_a_promise_is_refuted(promising: Path, tmp_path: Path):
    """One command checks a bundle on own traffic; a refuted promise is an unmet gate."""
    good, bad = write_rows(tmp_path / "new.jsonl", 300, seed=3), harder(tmp_path / "hard.jsonl", 300)
    kept = CliRunner().invoke(command, ["--bundle", str(promising), "--data", str(good)])
    broken = CliRunner().invoke(command, ["--bundle", str(promising), "--data", str(bad)])
    assert kept.exit_code == 0, kept.output
    assert "| balanced | <= 0.1 | 300 |" in kept.stdout
    assert "not refuted" in kept.stdout
    assert isinstance(broken.exception, GateNotMet)
    assert broken.exception.exit_code == 3
    assert "| refuted" in broken.stdout


def test_the_command_studies_stored_predictions(tmp_path: Path):
    """On a file of predictions the command prints half-splits and the transfer table."""
    rows = mixed_sources(["a", "b", "odd"], "odd")
    np.savez(tmp_path / "p.npz", logits=rows.logits, labels=rows.labels.argmax(axis=1), sources=rows.sources)
    result = CliRunner().invoke(command, ["--predictions", str(tmp_path / "p.npz"), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["half_splits"]["balanced"]["splits"] == 200
    assert set(found["transfer"]["quality"]["sources"]) == {"a", "b", "odd"}
    text = CliRunner().invoke(command, ["--predictions", str(tmp_path / "p.npz"), "--policy", "p=0.15"])
    assert "| p (0.15) | 100 own rows | 3 |" in text.stdout


def test_predictions_of_small_sources_still_give_half_splits(tmp_path: Path):
    """Where no source is large enough for the transfer table the halves are printed all the same."""
    rows = population(120, 8, sources=4)
    np.savez(tmp_path / "p.npz", logits=rows.logits, labels=rows.labels, sources=rows.sources)
    result = CliRunner().invoke(command, ["--predictions", str(tmp_path / "p.npz")])
    assert result.exit_code == 0
    assert "| economy | <= 0.2 |" in result.stdout
    assert "the largest of 4 has 30" in result.stderr


def test_the_command_takes_one_question_at_a_time(promising: Path):
    """A bundle needs data, and predictions stand alone."""
    for arguments in ([], ["--bundle", str(promising)], ["--bundle", str(promising), "--predictions", "p.npz"]):
        assert CliRunner().invoke(command, arguments).exit_code == 2


PAGE = Path(__file__).parent.parent / "docs" / "guarantee.md"


def test_the_worked_example_holds():
    """Every example on the page about the guarantee gives what the page says."""
    found = doctest.testfile(str(PAGE), module_relative=False)
    assert found.attempted > 8
    assert found.failed == 0


def test_the_commands_on_the_page_run(tiny_bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every command on the page runs, in its order, on files of the names that it uses."""
    shutil.copytree(tiny_bundle_path, tmp_path / "my-bundle")
    write_rows(tmp_path / "labelled.jsonl", 400, seed=5)
    write_rows(tmp_path / "fresh.jsonl", 200, seed=6)
    monkeypatch.chdir(tmp_path)
    verbs = {"calibrate": calibrate_command, "guarantee": command}
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("$ python -m training ")]
    assert len(lines) == 3
    for line in lines:
        verb, *arguments = shlex.split(line)[4:]
        result = CliRunner().invoke(verbs[verb], arguments)
        assert result.exit_code == 0, result.output
