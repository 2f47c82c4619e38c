"""Checking a promise: on own traffic, over random halves, and between sources."""

from __future__ import annotations

import doctest
import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from classifier.calibration import IDENTITY
from classifier.engine import Engine
from classifier.errors import GateNotMet, InputError
from classifier.policy import ALWAYS_FRONTIER, Guarantee, Policy
from tests.calibration_support import NAMES, mixed_sources, population, write_rows
from tests.feedback_set_support import export_row
from tests.tiny import tiny_bundle
from training.__main__ import main
from training.audit_set import read_rows
from training.calibrate import calibrate
from training.calibrate_command import command as calibrate_command
from training.calibration_set import TRAINING_ROWS, CalibrationSet, pack_rows
from training.corpus import read_corpus
from training.guarantee_command import command
from training.promise_test import check, promise_p_value, promised
from training.risk_control import fit_threshold
from training.step_losses import routing_losses

TRUTH = population(60_000, 12)
ALPHAS = {"economy": 0.2, "balanced": 0.1, "quality": 0.05}


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


def test_a_kept_promise_is_not_refuted(promising: Path, tmp_path: Path):
    """On fresh rows of the same traffic no promise is refuted, and the interval holds the risk."""
    engine = Engine.from_pretrained(promising)
    found = check(engine, read_rows([write_rows(tmp_path / "new.jsonl", 400, seed=2)], engine))
    assert [e["name"] for e in found["policies"]] == list(ALPHAS)
    for entry in found["policies"]:
        assert not entry["refuted"]
        assert entry["low"] <= entry["risk"] <= entry["high"]


def test_a_broken_promise_is_refuted(promising: Path, tmp_path: Path):
    """On traffic that is harder than its words say every promise is refuted."""
    engine = Engine.from_pretrained(promising)
    found = check(engine, read_rows([harder(tmp_path / "hard.jsonl", 400)], engine))
    assert all(entry["refuted"] for entry in found["policies"])


def test_repeats_among_fresh_rows_are_told(promising: Path, tmp_path: Path):
    """Fresh rows whose request is that of another row are told, because a verdict takes each for a new one."""
    path = write_rows(tmp_path / "new.jsonl", 60, seed=2)
    path.write_text(path.read_text() * 2)
    done = CliRunner().invoke(command, ["--bundle", str(promising), "--data", str(path)])
    assert "60 rows repeat a request of another row" in done.stdout


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


def test_a_promise_is_not_refuted_for_the_luck_of_its_calibration_set():
    """Over 300 pairs of calibration and fresh rows a promise that holds is refuted in at most 5 %; a binomial test of
    alpha would refute a third, because the mean over calibration sets is what is promised.
    """
    p, y = IDENTITY.apply(TRUTH.logits), TRUTH.labels
    rng, ours, naive = np.random.default_rng(0), [], []
    for _ in range(300):
        rows = rng.permutation(60_000)
        fit = fit_threshold(routing_losses(p[rows[:200]], y[rows[:200]]), 0.1)
        missed = int(routing_losses(p[rows[200:5200]], y[rows[200:5200]]).total(fit.threshold))
        promise = Guarantee(0.1, 0.0, fit.method, "RUBRIC", 200, fit.empirical_risk, fit.bound, feasible=True)
        ours.append(promise_p_value(promise, 0.1, 5000, missed) < 0.05)
        naive.append(stats.binom.sf(missed - 1, 5000, 0.1) < 0.05)
    assert np.mean(ours) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
    assert np.mean(naive) > 0.25


@pytest.mark.parametrize("method", ["CONFORMAL_RISK_CONTROL", "LABEL_SHIFT"])
def test_no_misses_speak_against_nothing(method: str):
    """At least none is always missed, so that the chance of it is 1; each further miss is less likely."""
    promise = Guarantee(0.1, 0.0, method, "RUBRIC", 200, 0.09, 0.1, feasible=True)
    chances = [promise_p_value(promise, 0.1, 30, missed) for missed in range(10)]
    assert chances[0] == 1
    assert chances == sorted(set(chances), reverse=True)


def test_an_estimate_is_tested_as_an_estimate():
    """A label-weighted threshold has no calibration luck to share: its risk is tested against alpha itself."""
    shifted = Guarantee(0.1, 0.0, "LABEL_SHIFT", "RUBRIC", 50, 0.1, 0.1, feasible=True)
    assert promise_p_value(shifted, 0.1, 300, 45) == pytest.approx(stats.binom.sf(44, 300, 0.1))


def test_a_refuted_estimate_is_no_broken_promise(tiny_bundle_path: Path, tmp_path: Path):
    """Thresholds by --prior-shift are tested on fresh rows like the others, and told to be an estimate throughout."""
    rows = write_rows(tmp_path / "rows.jsonl", 800, seed=1)
    calibrate(tiny_bundle_path, [rows], tmp_path / "moved", policies={"balanced": 0.1}, prior_shift=[rows])
    hard = harder(tmp_path / "hard.jsonl", 400)
    done = CliRunner().invoke(command, ["--bundle", str(tmp_path / "moved"), "--data", str(hard)])
    assert "| balanced | none; estimated <= 0.1 | 400 |" in done.stdout
    assert "balanced: an estimate that assumes that only the tier shares changed, no promise." in done.stdout
    assert isinstance(done.exception, GateNotMet)
    assert "balanced: the estimate does not hold on these rows" in str(done.exception)


def test_the_top_tiers_promise_is_checked_too(tiny_bundle_path: Path, tmp_path: Path):
    """A promise about frontier requests has a line of its own, counted on frontier rows alone."""
    rows = write_rows(tmp_path / "rows.jsonl", 1600, seed=11)
    calibrate(tiny_bundle_path, [rows], tmp_path / "top", policies={"economy": 0.3}, top_tier_miss=0.6)
    engine = Engine.from_pretrained(tmp_path / "top")
    assert engine.policies["economy"].top_tier_guarantee.feasible
    fresh = read_rows([write_rows(tmp_path / "new.jsonl", 400, seed=12)], engine)
    found = check(engine, fresh)["policies"]
    assert [(e["name"], e["what"]) for e in found] == [("economy", "risk"), ("economy", "frontier misses")]
    assert found[1]["n"] == fresh.labels[:, 3].sum()


def test_rows_of_groups_without_a_promise_do_not_count(promising: Path):
    """Under a policy by groups only rows of groups with a feasible threshold are counted, each with its own number of
    calibration rows; the others are told.
    """
    rows = population(100, 3)
    rows.facets["script"] = np.repeat(["latin", "thai", "greek"], [60, 30, 10])
    policy = Policy("p", 0.9, group_by="script", group_thresholds={"latin": 0.5, "thai": ALWAYS_FRONTIER})
    (promise, about), *rest = promised(policy, rows, {"latin": 30}).values()
    assert (promise.n, rest) == (30, [])
    assert about.tolist() == [True] * 60 + [False] * 40


def test_a_group_is_not_refuted_for_the_luck_of_its_few_rows(tiny_bundle_path: Path, tmp_path: Path):
    """A promise by group is tested with the rows that it was fitted on: at most 5 % of true ones on 30 are refuted, and
    many more were they tested as on the rows of all groups.
    """
    many, some = write_rows(tmp_path / "a.jsonl", 300, labels={"t": "a"}), tmp_path / "b.jsonl"
    calibrate(
        tiny_bundle_path,
        [many, write_rows(some, 30, seed=1, labels={"t": "b"})],
        tmp_path / "out",
        policies={"balanced": 0.1},
        group_by="t",
        methods=(),
    )
    engine = Engine.from_pretrained(tmp_path / "out")
    assert engine.bundle.manifest["calibration"]["groups"] == {"a": 300, "b": 30}
    fresh = [write_rows(tmp_path / f"{t}.jsonl", 100, seed=2, labels={"t": t}) for t in "abc"]
    found = check(engine, read_rows(fresh, engine, "t"))["policies"]
    assert [(e["group"], e["n"], e["not_covered"]) for e in found] == [("a", 100, 100), ("b", 100, 100)]
    p, y = IDENTITY.apply(TRUTH.logits), TRUTH.labels
    rng, ours, theirs = np.random.default_rng(0), [], []
    for _ in range(100):
        rows = rng.permutation(len(y))
        fit = fit_threshold(routing_losses(p[rows[:30]], y[rows[:30]]), 0.1)
        missed = int(routing_losses(p[rows[30:530]], y[rows[30:530]]).total(fit.threshold))
        for n, refuted in ((30, ours), (330, theirs)):
            promise = Guarantee(0.1, 0.0, fit.method, "RUBRIC", n, fit.empirical_risk, fit.bound, feasible=True)
            refuted.append(promise_p_value(promise, 0.1, 500, missed) < 0.05)
    assert np.mean(ours) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 100)
    assert np.mean(theirs) > 0.15


def test_rows_without_the_label_that_groups_are_refused(tiny_bundle_path: Path, tmp_path: Path):
    """Stored predictions that lack what a bundle's promise goes by are one clear line."""
    rows = write_rows(tmp_path / "a.jsonl", 60, labels={"tenant": "a"})
    calibrate(tiny_bundle_path, [rows], tmp_path / "out", policies={"balanced": 0.1}, group_by="tenant")
    with pytest.raises(InputError, match="goes by 'tenant'"):
        check(Engine.from_pretrained(tmp_path / "out"), population(50, 2))


def test_rows_that_fitted_the_promise_cannot_check_it(tiny_bundle_path: Path, tmp_path: Path):
    """Rows that the bundle's map or thresholds were fitted on are recognised by their hash and refused."""
    path = write_rows(tmp_path / "rows.jsonl", 250, seed=13)
    calibrate(tiny_bundle_path, [path], tmp_path / "out", policies=ALPHAS)
    engine = Engine.from_pretrained(tmp_path / "out")
    with pytest.raises(InputError, match="250 of 250 rows fitted"):
        check(engine, read_rows([path], engine))


def test_rows_that_fitted_the_promise_are_left_out(tiny_bundle_path: Path, tmp_path: Path):
    """A file that holds some of them is checked by its other rows, and their number is told; they refute nothing."""
    path, hard = write_rows(tmp_path / "rows.jsonl", 250, seed=13), harder(tmp_path / "hard.jsonl", 60)
    calibrate(tiny_bundle_path, [path], tmp_path / "out", policies={"balanced": 0.1})
    engine = Engine.from_pretrained(tmp_path / "out")
    rows = read_rows([path, hard], engine)
    (alone,), (both,) = (check(engine, some)["policies"] for some in (read_rows([hard], engine), rows))
    assert (both["n"], both["risk"], both["low"]) == (60, alone["risk"], alone["low"])
    assert alone["refuted"]
    assert both["p_value"] > alone["p_value"]
    result = CliRunner().invoke(command, ["--bundle", str(tmp_path / "out"), "--data", str(path), "--data", str(hard)])
    assert "250 rows are left out" in result.stdout


@pytest.mark.parametrize("table", ["half-splits", "cost"])
def test_no_table_judges_on_rows_that_fitted_the_bundle(tiny_bundle_path: Path, tmp_path: Path, table: str):
    """Each is that of the other rows alone, beside baselines of the same ones; how many are left out is said."""
    known, fresh = write_rows(tmp_path / "known.jsonl", 250, seed=13), write_rows(tmp_path / "new.jsonl", 120, seed=14)
    calibrate(tiny_bundle_path, [known], tmp_path / "out", policies={"balanced": 0.1})
    older = write_rows(tmp_path / "older.jsonl", 200, seed=15)
    ask = ["--bundle", str(tmp_path / "out"), "--table", table, "--baseline-data", str(older), "--data"]
    alone = CliRunner().invoke(command, [*ask, str(fresh)])
    both = CliRunner().invoke(command, [*ask, str(fresh), "--data", str(known)])
    assert both.stdout == alone.stdout
    assert "120 rows" in alone.stdout or "| 120 |" in alone.stdout
    assert ("250 of 370 rows are left out" in both.stderr, "left out" in alone.stderr) == (True, False)
    none = CliRunner().invoke(command, [*ask, str(known)])
    assert "250 of 250 rows fitted" in str(none.exception)


@pytest.mark.parametrize("promise", [{"group_by": "script"}, {"severity": (0.5, 1, 1)}, {"epsilon": 0.05}], ids=str)
@pytest.mark.parametrize("table", ["half-splits", "transfer"])
def test_no_threshold_is_fitted_anew_for_what_is_no_plain_promise(
    tiny_bundle_path: Path, tmp_path: Path, promise: dict[str, Any], table: str
):
    """By groups, with weighed misses or with exploration a plain threshold's risk says nothing of the promise."""
    rows, fresh = write_rows(tmp_path / "rows.jsonl", 250, seed=13), write_rows(tmp_path / "new.jsonl", 120, seed=14)
    calibrate(tiny_bundle_path, [rows], tmp_path / "out", policies={"balanced": 0.2}, **promise)
    ask = ["--bundle", str(tmp_path / "out"), "--data", str(fresh), "--table", table]
    done = CliRunner().invoke(command, ask)
    assert isinstance(done.exception, InputError)
    assert f"no {table} table of balanced: it fits plain thresholds" in done.stderr
    assert "without --group-by, --severity and --epsilon" in done.stderr
    assert "balanced" in CliRunner().invoke(command, [*ask, "--table", "cost"]).stdout


@pytest.mark.parametrize("table", ["promise", "half-splits", "transfer", "calibration", "cost"])
def test_without_a_closed_label_nothing_is_judged(promising: Path, tmp_path: Path, table: str):
    """Rows of which only an interval is known give no table, and one line says what would."""
    path = tmp_path / "open.jsonl"
    rows = ({"prompt": f"hi {i}", "at_least": "standard", "label": "RUBRIC"} for i in range(60))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = CliRunner().invoke(command, ["--bundle", str(promising), "--data", str(path), "--table", table])
    assert isinstance(done.exception, InputError)
    assert "no row has a closed label" in str(done.exception)


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
    text = CliRunner().invoke(
        command, ["--predictions", str(tmp_path / "p.npz"), "--policy", "p=0.15", "--table", "transfer"]
    )
    assert "| p (0.15) | 100 own rows | 3 |" in text.stdout


def test_predictions_of_small_sources_still_give_half_splits(tmp_path: Path):
    """Where no source is large enough for the transfer table the halves are printed all the same."""
    rows = population(120, 8, sources=4)
    np.savez(tmp_path / "p.npz", logits=rows.logits, labels=rows.labels, sources=rows.sources)
    result = CliRunner().invoke(command, ["--predictions", str(tmp_path / "p.npz")])
    assert result.exit_code == 0
    assert "| economy | <= 0.2 |" in result.stdout
    assert "the largest of 4 has 30" in result.stderr


def arrays(rows: CalibrationSet, **changes: np.ndarray) -> dict[str, np.ndarray]:
    return {"logits": rows.logits, "labels": rows.labels.argmax(axis=1), "sources": rows.sources} | changes


ROWS = population(300, 14)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (arrays(ROWS, logits=np.where(np.arange(300)[:, None] < 3, np.nan, ROWS.logits)), "3 of 300 rows"),
        (arrays(ROWS.take(np.arange(0))), "holds no row"),
        (arrays(ROWS, label=np.array("BOTH")), "expected RUBRIC or OUTCOME"),
        (arrays(ROWS, baseline_x=np.zeros((5, 4))), "baseline_x has shape"),
        (arrays(ROWS, labels=np.full(300, 7)), "not a usable file of predictions"),
    ],
    ids=["NaN", "no row", "no kind of label", "ragged baseline", "no tier"],
)
def test_predictions_that_cannot_carry_a_table_are_refused(content: dict, message: str, tmp_path: Path):
    """NaN, no rows, mixed kinds of label, ragged arrays and labels that are no tiers are clear errors."""
    np.savez(tmp_path / "p.npz", **content)
    result = CliRunner().invoke(command, ["--predictions", str(tmp_path / "p.npz")])
    assert isinstance(result.exception, InputError)
    assert message in str(result.exception)


@pytest.mark.parametrize("damage", ["absent", "empty", "cut off", "overwritten", "one array", "one number", "text"])
def test_damaged_predictions_are_refused(damage: str, tmp_path: Path):
    """A file of predictions that is no whole archive of arrays is a clear error, which advises no pickles."""
    path = tmp_path / "p.npz"
    np.savez_compressed(path, **arrays(ROWS, **({"logits": np.float32(1)} if damage == "one number" else {})))
    whole = path.read_bytes()
    if damage == "one array":
        with path.open("wb") as file:
            np.save(file, ROWS.logits)
    elif damage == "absent":
        path.unlink()
    elif damage != "one number":
        kept = {
            "text": b'{"prompt": "hi"}',
            "empty": b"",
            "cut off": whole[:1000],
            "overwritten": whole[:200] + b"x" * 200 + whole[400:],
        }
        path.write_bytes(kept[damage])
    result = CliRunner().invoke(command, ["--predictions", str(path)])
    assert isinstance(result.exception, InputError)
    assert "not a usable file of predictions" in str(result.exception)
    assert "pickle" not in str(result.exception)


def test_a_seed_below_zero_is_a_usage_error():
    """What numpy takes for no seed is refused before anything is read."""
    assert CliRunner().invoke(command, ["--predictions", "p.npz", "--seed", "-1"]).exit_code == 2


def test_an_absent_class_and_equal_scores_still_give_tables(tmp_path: Path):
    """Without a frontier row nothing is said of frontier misses; a model that says nothing sends all to frontier."""
    np.savez(tmp_path / "p.npz", **arrays(ROWS, labels=np.minimum(ROWS.labels.argmax(axis=1), 2)))
    found = json.loads(CliRunner().invoke(command, ["--predictions", str(tmp_path / "p.npz"), "--json"]).stdout)
    assert found["cost"]["balanced"]["frontier_misses"]["estimate"] is None
    flat = arrays(ROWS, logits=np.zeros((300, 4)), labels=np.repeat([0, 3], 150))
    np.savez(tmp_path / "p.npz", **flat)
    found = json.loads(CliRunner().invoke(command, ["--predictions", str(tmp_path / "p.npz"), "--json"]).stdout)
    assert (found["half_splits"]["balanced"]["feasible"], found["half_splits"]["balanced"]["mean_risk"]) == (0, 0.0)
    assert found["cost"]["balanced"]["shares"] == [0, 0, 0, 1]


def test_a_handful_of_rows_is_not_enough_and_says_for_what(tmp_path: Path):
    """Each table that too few rows cannot give is named with what it takes; where none is left that is the error."""
    np.savez(tmp_path / "p.npz", **arrays(ROWS.take(np.arange(5))))
    ask = ["--predictions", str(tmp_path / "p.npz"), "--table", "half-splits", "--table", "calibration"]
    result = CliRunner().invoke(command, ask)
    assert isinstance(result.exception, InputError)
    assert "no half-splits table: 5 rows" in result.stderr
    assert "no calibration table: 5 rows" in result.stderr


def test_rows_of_training_cannot_check_a_promise(promising: Path, tmp_path: Path):
    """The command refuses rows that the bundle was trained on, rows of both kinds, and a split that no row states."""
    rows = write_rows(tmp_path / "rows.jsonl", 60, seed=15)
    hashes = [row.sha256 for row in read_corpus([rows])]
    trained = tiny_bundle(tmp_path / "trained", manifest={TRAINING_ROWS: pack_rows(hashes[:7])})
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text(rows.read_text() + '{"prompt": "hi", "success_by_tier": {"simple": 1.0}}\n')
    for arguments, message in (
        (["--bundle", str(trained.path), "--data", str(rows)], "7 of 60 rows were in the bundle's training set"),
        (["--bundle", str(promising), "--data", str(mixed)], "OUTCOME', 'RUBRIC"),
        (["--bundle", str(promising), "--data", str(rows), "--split", "dev"], "no row of the split 'dev'"),
    ):
        assert message in str(CliRunner().invoke(command, arguments).exception)


def test_the_cost_table_of_a_bundle_stands_beside_baselines(promising: Path, tmp_path: Path):
    """Length and TF-IDF learn from rows of their own, without those that are judged; a split can be chosen."""
    fresh = write_rows(tmp_path / "fresh.jsonl", 200, seed=16, split="dev")
    older = write_rows(tmp_path / "older.jsonl", 300, seed=17)
    ask = ["--bundle", str(promising), "--data", str(fresh), "--split", "dev", "--table", "cost", "--json"]
    result = CliRunner().invoke(command, [*ask, "--baseline-data", str(older), "--prices", "1,2,3,4"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert set(found) == {"cost"}
    assert {"constant mix", "length", "tfidf_logistic_regression"} <= set(
        found["cost"]["balanced"]["all tiers"]["beside"]
    )
    only = CliRunner().invoke(command, [*ask, "--baseline-data", str(fresh)])
    assert "besides those that are judged" in str(only.exception)
    stored = ["--bundle", str(promising), "--data", "answers.npz", "--table", "cost", "--baseline-data", str(older)]
    result = CliRunner().invoke(command, stored)
    assert (result.exit_code, "baselines are judged on texts" in result.output) == (2, True)


def test_half_of_a_surrogate_pair_in_a_source_ends_no_table(tmp_path: Path):
    """Whatever JSON holds as a source's name is printed, with a question mark for what nothing prints."""
    np.savez(tmp_path / "p.npz", **arrays(ROWS, sources=np.array(["a \ud83d", "b"] * 150)))
    ask = ["guarantee", "--predictions", str(tmp_path / "p.npz"), "--table", "transfer"]
    done = CliRunner().invoke(main, ask)
    assert (done.exit_code, "| a ? | 150 |" in done.stdout) == (0, True)


@pytest.mark.parametrize("name", ["answers.npz", "export.jsonl"])
def test_a_split_is_asked_of_corpus_files_alone(promising: Path, tmp_path: Path, name: str):
    """Stored predictions and exports state none: all of their rows would be judged in its name."""
    (tmp_path / name).write_text(json.dumps(export_row(1)))
    ask = ["--bundle", str(promising), "--data", str(tmp_path / name), "--split", "test"]
    done = CliRunner().invoke(command, ask)
    assert (done.exit_code, "only corpus files state one" in done.output) == (2, True)


def test_prices_rise_from_tier_to_tier(promising: Path, tmp_path: Path):
    """Prices in another order, and options of the other question, are usage errors."""
    ask = ["--bundle", str(promising), "--data", "x.jsonl", "--prices", "4,3,2,1"]
    assert CliRunner().invoke(command, ask).exit_code == 2
    assert CliRunner().invoke(command, ["--predictions", "p.npz", "--table", "promise"]).exit_code == 2


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
    write_rows(tmp_path / "older.jsonl", 200, seed=7)
    audits = [
        export_row(i, labels={"sample": "audit"}, served_tier="simple", text=f"hi {i}", logits=None) for i in range(40)
    ]
    (tmp_path / "feedback.jsonl").write_text("".join(json.dumps(row) + "\n" for row in audits))
    (tmp_path / "across").mkdir()
    np.savez(tmp_path / "across" / "predictions.npz", **arrays(ROWS))
    monkeypatch.chdir(tmp_path)
    verbs = {"calibrate": calibrate_command, "guarantee": command}
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("$ python -m training ")]
    words = [shlex.split(line)[4:] for line in lines]
    assert [w[0] for w in words if w[0] not in verbs] == ["cross-validate"]  # tests/test_crossval.py runs it
    assert len(words) == 8
    for verb, *arguments in words:
        if verb in verbs:
            result = CliRunner().invoke(verbs[verb], arguments)
            assert result.exit_code == 0, result.output
