"""Has traffic changed since the bundle was calibrated, and does its promise hold? Indices, tests, the command."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from click.testing import CliRunner

from classifier import cli
from classifier.bundle import write_bundle
from classifier.drift import (
    _chi_squared_tail,
    _homogeneity,
    drift_report,
    excess_p_value,
    fell_short,
    reference_distributions,
    shifts,
)
from classifier.feedback import open_store
from classifier.policy import ALWAYS_FRONTIER, Guarantee, Policy
from classifier.types import Verdict
from tests.feedback_support import KEY, decision, mint, outcome, request
from tests.tiny import tiny_bundle

SIGNALS = (("[turns=1]", "[code=none]"), ("[turns=2]", "[code=none]"), ("[turns=1]", "[code=some]"))


def traffic(rng, n, *, tilt=0.0, weights=(0.6, 0.3, 0.1)):
    """Rows of probabilities, tilted towards the top tier, and of signals in the given shares."""
    probabilities = rng.dirichlet((4 - tilt, 2, 1, 0.5 + tilt), n)
    return probabilities, [SIGNALS[i] for i in rng.choice(3, n, p=weights)]


@pytest.mark.parametrize(
    ("x", "degrees", "expected"),
    [(3.841459, 1, 0.05), (5.991465, 2, 0.05), (16.918978, 9, 0.05), (29.588298, 10, 0.001), (0.0, 3, 1.0)],
)
def test_the_tail_of_chi_squared_is_the_tables(x, degrees, expected):
    """The tail without scipy is the one that statistical tables print."""
    assert _chi_squared_tail(x, degrees) == pytest.approx(expected, rel=1e-5)


def test_the_test_of_homogeneity_is_the_textbooks():
    """20 of 30 against 10 of 30 is chi-squared 6.667 of one degree of freedom."""
    assert _homogeneity(np.array([10.0, 20.0]), np.array([20.0, 10.0])) == pytest.approx(0.009823, rel=1e-3)


def test_alike_traffic_raises_no_alarm():
    """Over draws from the reference's own distribution the tests reject about as often as they say."""
    rng = np.random.default_rng(0)
    p_values = []
    for _ in range(200):
        reference = reference_distributions(*traffic(rng, 400))
        p_values.append([found["p_value"] for found in shifts(*traffic(rng, 700), reference).values()])
    rejected = (np.array(p_values) < 0.05).mean(axis=0)
    assert rejected.max() < 0.10  # 200 draws at .05: .10 is more than three standard errors off
    assert rejected.mean() > 0.01


def test_many_rare_values_raise_no_alarm():
    """Twenty values that each one row in 200 has, and 100 rows of the reference's own kind: none is called a shift."""
    rng, shares = np.random.default_rng(0), [0.9, *[0.005] * 20]
    p_values = [_homogeneity(live, rng.multinomial(20_000, shares)) for live in rng.multinomial(100, shares, 1000)]
    assert np.mean(np.array(p_values) < 0.001) <= 0.005


def test_scores_of_a_few_rows_raise_no_alarm():
    """Ten bins of equal mass, of which 20 rows fill each with too few, are no shift by which of them are full."""
    live = np.random.default_rng(0).multinomial(20, np.full(10, 0.1), 1000)
    p_values = [_homogeneity(counts, np.full(10, 100.0), ordered=True) for counts in live]
    assert np.mean(np.array(p_values) < 0.05) <= 0.07


@pytest.mark.parametrize(
    ("change", "moved"),
    [({"tilt": 2.0}, "above_complex"), ({"weights": (0.2, 0.2, 0.6)}, "code")],
    ids=["scores", "signals"],
)
def test_a_shift_is_seen_where_it_is(change, moved):
    """Harder prompts move the scores, other prompts the signals; what did not move is not accused."""
    rng = np.random.default_rng(1)
    reference = reference_distributions(*traffic(rng, 2000))
    found = shifts(*traffic(rng, 2000, **change), reference)
    assert found[moved]["index"] > 0.25
    assert found[moved]["p_value"] < 1e-6
    still = {"above_complex", "code"} - {moved}
    assert all(found[name]["p_value"] > 1e-3 for name in still)


def test_values_that_the_reference_never_saw_are_a_shift():
    """Traffic of nothing but unseen values is as far from the reference as can be."""
    probabilities, signals = traffic(np.random.default_rng(8), 500)
    reference = reference_distributions(probabilities, signals)
    found = shifts(probabilities, [("[turns=9]", "[code=none]")] * 500, reference)["turns"]
    assert (found["index"] > 1, found["p_value"] < 1e-6) == (True, True)


@pytest.mark.parametrize("ordered", [False, True], ids=["signals", "scores"])
@pytest.mark.parametrize("live", [2_000, 200_000, 10_000_000])
def test_what_is_gone_is_a_shift_however_many_rows_lack_it(live: int, ordered: bool):
    """A tenth of the reference on either side of what most rows have, and none of it in a window of any length."""
    reference = np.array([50.0, 400.0, 500.0, 50.0])
    assert _homogeneity(live * np.array([0.0, 4 / 9, 5 / 9, 0.0]), reference, ordered=ordered) < 1e-6


def test_what_is_new_is_a_shift_in_few_rows():
    """A fifth of 100 rows has a value that none of 1,000 had before: seen, though five are not expected of it."""
    assert _homogeneity(np.array([80.0, 20.0]), np.array([1000.0, 0.0])) < 1e-6


def test_scores_that_stand_on_an_edge_are_counted_alike():
    """A map of few steps gives many requests one score, and edges stand there: the same traffic is no shift."""
    steps = np.array([[0.7, 0.2, 0.1, 0.0], [0.4, 0.4, 0.1, 0.1], [0.1, 0.2, 0.3, 0.4]], dtype=np.float32)
    rows, signals = steps[[0, 1, 2, 1] * 100], [SIGNALS[0]] * 400
    found = shifts(rows, signals, reference_distributions(rows, signals))
    assert [shift["index"] for shift in found.values()] == pytest.approx([0] * len(found))


@pytest.mark.parametrize("above_it", [0.0, 0.08], ids=["all of them", "most of them"])
def test_scores_that_rise_above_one_that_most_requests_have_are_a_shift(above_it: float):
    """A map of few steps gives most requests its lowest score: harder traffic is seen, and the same is not accused."""
    rng, signals = np.random.default_rng(0), [SIGNALS[0]] * 1000

    def scored(share: float) -> np.ndarray:
        frontier = np.where(rng.random(1000) < share, rng.uniform(0.1, 0.9, 1000), 0.01)
        return np.outer(1 - frontier, [0.5, 0.3, 0.2, 0.0]) + np.outer(frontier, [0, 0, 0, 1.0])

    reference = reference_distributions(scored(above_it), signals)
    harder = shifts(scored(0.6), signals, reference)["above_complex"]
    assert (harder["index"] > 0.25, harder["p_value"] < 1e-6) == (True, True)
    same = shifts(scored(above_it), signals, reference)["above_complex"]
    assert (same["index"] < 0.1, same["p_value"] > 1e-3) == (True, True)


def test_every_boundary_below_the_top_is_watched_and_every_kind_of_signal():
    """There is a shift for each tier that a request may be above, and for each kind of signal, under its name."""
    rows, signals = traffic(np.random.default_rng(9), 100)
    found = shifts(rows, signals, reference_distributions(rows, signals))
    assert set(found) == {"above_simple", "above_standard", "above_complex", "turns", "code"}


def test_scores_that_fall_below_the_highest_that_most_requests_have_are_a_shift():
    """A map that is sure of most requests gives them a score of 1, above which there is no bin: fewer of them show."""
    sure, unsure = np.eye(4)[3], np.array([0.25, 0.25, 0.25, 0.25])
    signals = [SIGNALS[0]] * 1000
    reference = reference_distributions(np.stack([sure] * 900 + [unsure] * 100), signals)
    moved = shifts(np.stack([sure] * 300 + [unsure] * 700), signals, reference)["above_complex"]
    assert (moved["index"] > 0.25, moved["p_value"] < 1e-6) == (True, True)


def test_one_unseen_value_is_no_drift():
    """A single row with a signal that the reference never had is not significant."""
    probabilities, _ = traffic(np.random.default_rng(2), 10_000)
    shares = [SIGNALS[0]] * 60 + [SIGNALS[1]] * 30 + [SIGNALS[2]] * 10
    reference = reference_distributions(probabilities, shares * 100)
    live = [("[turns=9]", "[code=none]"), *shares[1:]]
    assert shifts(probabilities[:100], live, reference)["turns"]["p_value"] > 0.01


def test_a_broken_promise_is_told_from_bad_luck():
    """The tail is the exact binomial one, and rejects a kept promise no more often than it says."""
    assert excess_p_value(0, 100, 0.1) == excess_p_value(0, 100, 0.0) == excess_p_value(100, 100, 1.0) == 1.0
    assert excess_p_value(1, 100, 0.0) == 0.0
    assert excess_p_value(10, 10, 0.5) == pytest.approx(0.5**10)
    assert excess_p_value(200, 1000, 0.1) < 1e-6
    assert excess_p_value(100, 1000, 0.1) > 0.4
    rng = np.random.default_rng(3)
    p_values = [excess_p_value(int(k), 500, 0.1) for k in rng.binomial(500, 0.1, 2000)]
    assert np.mean(np.array(p_values) <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)


PROMISE = Guarantee(alpha=0.1, method="CONFORMAL_RISK_CONTROL", n=500, bound=0.1, feasible=True)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle with a reference of 500 rows and a promise of .1."""
    return referenced(tmp_path_factory.mktemp("drift"), PROMISE)


def referenced(folder, guarantee):
    """A bundle with a reference of 500 rows and a policy with this guarantee."""
    policy = Policy(name="balanced", threshold=0.7, guarantee=guarantee)
    made = tiny_bundle(folder / "b", policies=(policy,))
    reference = reference_distributions(*traffic(np.random.default_rng(4), 500))
    return write_bundle(folder / "whole", made.path, made.manifest, {"reference.json": reference})


async def filled(url, bundle, failures, **change):
    """Stores 400 decisions of the bundle, so many of them reported as failures."""
    store = open_store(url, key=KEY)
    probabilities, signals = traffic(np.random.default_rng(5), 400, **change)
    for n, (p, s) in enumerate(zip(probabilities, signals, strict=True)):
        made = dataclasses.replace(decision(mint()), bundle_version=bundle.version, probabilities=tuple(map(float, p)))
        store.record(made, request(), "gateway", signals=s)
        if n < failures:
            await store.report(outcome(made.decision_id, f"o{n}", Verdict.REJECTED), "gateway")
    store.record(decision(mint()), request(), "gateway")  # another bundle's: left out
    store.close()


def run(url, bundle, *arguments):
    return CliRunner().invoke(
        cli.command, ["feedback", "drift", "--feedback-url", url, "--bundle", str(bundle.path), *arguments]
    )


async def test_the_command_says_that_all_is_well(bundle, tmp_path):
    """Traffic like the reference and few failures: exit code 0, every index printed."""
    url = f"sqlite:///{tmp_path}/f.db"
    await filled(url, bundle, failures=40)
    done = run(url, bundle, "--json")
    found = json.loads(done.stdout)
    assert (done.exit_code, found["n"], found["alarms"]) == (0, 400, [])
    assert found["failures"]["balanced"] == {
        "decisions": 400,
        "failures": 40,
        "promised": 0.1,
        "p_value": pytest.approx(0.526, abs=0.01),
    }
    assert "above_complex" in run(url, bundle).stdout


@pytest.mark.parametrize(
    ("failures", "change", "alarm"),
    [(0, {"tilt": 2.5}, "above_complex has drifted"), (90, {}, "policy balanced fails more often")],
    ids=["drift", "promise"],
)
async def test_the_command_raises_an_alarm(bundle, tmp_path, capsys, failures, change, alarm):
    """Drift or a broken promise is exit code 3 with what is wrong."""
    url = f"sqlite:///{tmp_path}/f.db"
    await filled(url, bundle, failures, **change)
    with pytest.raises(SystemExit) as ended:
        cli.main(["feedback", "drift", "--feedback-url", url, "--bundle", str(bundle.path)])
    assert ended.value.code == 3
    assert alarm in capsys.readouterr().err


def test_rows_are_counted_a_batch_at_a_time(monkeypatch):
    """A store of months is never in memory as a whole, and any batch leads to the same report."""
    rng = np.random.default_rng(6)
    reference = reference_distributions(*traffic(rng, 500))
    row = {"guaranteed": True, "tier": "simple", "policy": "balanced", "cause": None}
    rows = [{**row, "probabilities": p, "signals": s} for p, s in zip(*traffic(rng, 100, tilt=1.0), strict=True)]
    rows.append({**rows[0], "guaranteed": False, "model_tier": "simple", "threshold": 0.7})  # of no promise
    whole = drift_report(rows, reference, {"balanced": 0.1}, max_index=0.25)
    monkeypatch.setattr("classifier.drift._BATCH", 7)
    assert drift_report(iter(rows), reference, {"balanced": 0.1}, max_index=0.25) == whole
    assert (whole["n"], whole["failures"]["balanced"]["decisions"]) == (101, 100)


@pytest.mark.parametrize(("count", "tilt", "is_large"), [(8, 0.0, True), (20_000, 0.2, False)], ids=["few", "small"])
def test_neither_few_rows_nor_a_small_shift_raise_an_alarm(count, tilt, is_large):
    """An alarm needs an index above the limit and rows enough that chance does not explain it."""
    rng = np.random.default_rng(7)
    reference = reference_distributions(*traffic(rng, 20_000))
    row = {"guaranteed": True, "tier": "simple", "policy": "balanced", "cause": None}
    rows = [{**row, "probabilities": p, "signals": s} for p, s in zip(*traffic(rng, count, tilt=tilt), strict=True)]
    found = drift_report(rows, reference, {}, max_index=0.25)
    assert (max(shift["index"] for shift in found["shifts"].values()) > 0.25) is is_large
    assert (min(shift["p_value"] for shift in found["shifts"].values()) < 1e-6) is not is_large
    assert found["alarms"] == []


async def test_an_estimate_is_no_promise_that_could_be_broken(tmp_path):
    """A policy by estimated tier shares raises no alarm about a promise, however many failures are reported."""
    url = f"sqlite:///{tmp_path}/f.db"
    estimated = referenced(tmp_path, dataclasses.replace(PROMISE, method="LABEL_SHIFT"))
    await filled(url, estimated, failures=90)
    done = run(url, estimated, "--json")
    assert (done.exit_code, json.loads(done.stdout)["failures"]) == (0, {})


def test_nothing_to_compare_is_said(bundle, tmp_path, tiny_bundle_path, capsys):
    """An empty reference and an empty store are each named."""
    url = f"sqlite:///{tmp_path}/f.db"
    open_store(url, key=KEY).close()
    for path, message in ((tiny_bundle_path, "reference.json is empty"), (bundle.path, "no decisions of bundle")):
        with pytest.raises(SystemExit) as ended:
            cli.main(["feedback", "drift", "--feedback-url", url, "--bundle", str(path)])
        assert ended.value.code == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("decided", "served", "verdict", "cause", "short"),
    [
        ("standard", "standard", "rejected", "quality", True),
        ("simple", "standard", "escalated", "quality", True),
        ("complex", "simple", "escalated", "quality", False),
        ("standard", "simple", "rejected", "quality", False),
        ("frontier", "frontier", "rejected", "quality", False),
        ("standard", "frontier", "rejected", "quality", False),
        ("standard", "standard", "rejected", "availability", False),
        ("standard", "standard", "accepted", "quality", False),
        ("standard", None, None, None, False),
    ],
    ids=[
        "rejected",
        "even above",
        "audit from simple up",
        "audit up to what was decided",
        "nothing above",
        "satisfied nowhere",
        "outage",
        "accepted",
        "silence",
    ],
)
def test_an_outcome_counts_where_it_says_that_the_decided_tier_was_too_small(decided, served, verdict, cause, short):
    """What says no more than that a lower tier failed, or that the top one did, breaks no promise."""
    row = {"guaranteed": True, "tier": decided, "served_tier": served, "verdict": verdict, "cause": cause}
    assert fell_short(row) is short


@pytest.mark.parametrize(
    ("fields", "counts"),
    [
        ({"threshold": 0.7}, False),
        ({"threshold": 1.0}, False),
        ({"threshold": ALWAYS_FRONTIER}, None),
        ({"model_tier": "simple"}, None),
    ],
    ids=["lowered by a ceiling", "from a promise at 1", "of a group without a promise", "of an unseen group"],
)
def test_an_answer_below_what_the_policy_chose_counts_and_is_no_failure(fields, counts):
    """A promise is about all requests, so that what a ceiling lowered stays in; where none is made, none counts."""
    lowered = {"guaranteed": False, "tier": "simple", "model_tier": "frontier", "threshold": 0.7}
    failed = {"served_tier": "simple", "verdict": "rejected", "cause": "quality"}
    assert fell_short({**lowered, **failed, **fields}) is counts
