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
from classifier.drift import reference_distributions, shifts
from classifier.engine import Engine
from classifier.errors import BundleCorrupt, BundleError
from classifier.inputs import INPUT_VERSION
from classifier.policy import choose_many
from classifier.texts import encodable
from classifier.types import Request, Tier
from tests.calibration_support import ALPHAS, NAMES, few, population, write_rows
from tests.tiny import WORDS, tiny_bundle
from training.audit_set import read_rows
from training.calibrate import CARD_END, CARD_START, calibrate, with_policies
from training.calibrate_command import command
from training.calibration_plot import plot
from training.calibration_report import (
    under,
)
from training.calibration_text import as_text
from training.corpus import read_corpus
from training.predictions import read_predictions, write_predictions


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
