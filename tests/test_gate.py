"""Whether a candidate may replace what serves."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from classifier.intervals import Interval
from tests.off_policy_support import draw_log, truths
from training.calibration_report import PRICES
from training.gate import FEWEST_ROWS, RISK_MARGIN, LabelledSet, effective_rows, judge, tango
from training.off_policy import estimate
from training.step_losses import EVERY_MISS, soft

N = 2000
LABELS = np.random.default_rng(0).choice(4, N, p=[0.4, 0.35, 0.15, 0.1])


def chooser(too_low: float, too_high: float, seed: int) -> np.ndarray:
    """Choices that are a tier too low, or too high, at these rates."""
    u = np.random.default_rng(seed).random(N)
    moved = np.where(u < too_low, -1, np.where(u > 1 - too_high, 1, 0))
    return np.clip(LABELS + moved, 0, 3).astype(np.int64)


def labelled(current: np.ndarray, candidate: np.ndarray, n: int = N, **fields) -> LabelledSet:
    return LabelledSet("recent", soft(LABELS[:n]), current[:n], candidate[:n], **fields)


CURRENT = chooser(0.15, 0.2, 1)
SURE = chooser(0.03, 0.4, 6)


@pytest.mark.parametrize(
    ("current", "candidate", "alpha", "accepted", "says"),
    [
        (CURRENT, chooser(0.08, 0.1, 2), 0.0, True, "better"),
        (CURRENT, chooser(0.30, 0.2, 2), 0.0, False, "risk 0.* worse"),
        (CURRENT, chooser(0.15, 0.6, 2), 0.0, False, "cost .* worse"),
        (CURRENT, CURRENT, 0.0, False, "nothing is better"),
        (SURE, chooser(0.08, 0.1, 2), 0.1, True, "within 0.1"),
        (SURE, chooser(0.08, 0.1, 2), 0.0, False, "risk 0.* worse"),
        (SURE, chooser(0.25, 0.1, 2), 0.1, False, "risk 0.* worse"),
        (SURE, chooser(0.01, 0.4, 6), 0.1, False, "nothing is better"),
    ],
    ids=[
        "better", "riskier", "dearer", "the same", "cheaper within the promise", "the same without a promise",
        "cheaper beyond the promise", "safer than promised",
    ],
)  # fmt: skip
def test_no_worse_and_somewhere_better(current, candidate, alpha: float, accepted: bool, says: str):
    """Accepted is what is no worse by the margin, and better; where α is promised, risk counts from there on."""
    verdict = judge([labelled(current, candidate, alpha=alpha)], draws=300)
    assert verdict.accepted is accepted
    assert any(re.search(says, reason) for reason in verdict.reasons)
    json.dumps(verdict.as_json())


@pytest.mark.parametrize(
    ("candidate", "says"),
    [
        (chooser(0.30, 0.2, 2), "worse by more than the margin"),
        (chooser(0.20, 0.2, 1), ", worse, and not shown to be no worse by the margin"),
        (chooser(0.165, 0.2, 4), ", not shown to be no worse by the margin"),
    ],
    ids=["above the margin", "above 0", "perhaps"],
)
def test_how_sure_it_is_that_one_is_worse_is_said(candidate: np.ndarray, says: str):
    """Worse by more than the margin is what the whole interval shows, worse what lies above 0."""
    assert f"{says} of 0.030" in judge([labelled(CURRENT, candidate)], draws=50).reasons[0]


def test_too_few_rows_are_no_ground_for_a_promotion():
    """With fewer rows than it takes the gate refuses, however good they look."""
    verdict = judge([labelled(chooser(0.5, 0, 1), chooser(0, 0, 3), n=FEWEST_ROWS - 1, alpha=0.1)], draws=200)
    assert (verdict.accepted, verdict.repairs, verdict.refused) == (False, False, True)
    assert "too few" in verdict.why


def test_what_a_small_set_cannot_show_is_not_assumed():
    """A candidate that is no worse in truth is not accepted on a set too noisy to show it."""
    noisy = labelled(CURRENT, chooser(0.14, 0.2, 9), n=120)
    assert not judge([noisy], draws=300).accepted


@pytest.mark.parametrize("n", [60, 150, 400])
def test_one_that_is_worse_by_the_margin_seldom_passes(n: int):
    """Where the serving bundle never fails and the candidate does by the margin, few of many draws find it no worse."""
    rng, passed, rounds = np.random.default_rng(n), 0, 200
    for _ in range(rounds):
        labels = (rng.random(n) < RISK_MARGIN).astype(np.int64)
        rows = LabelledSet("recent", soft(labels), np.ones(n, np.int64), np.zeros(n, np.int64), equal_cost=True)
        passed += judge([rows], draws=100).reasons[0].endswith(", no worse")
    assert passed <= stats.binom.isf(0.001, rounds, 0.025)


def in_families(n: int, count: int, shared: float, rises: float, falls: float, rng) -> LabelledSet:
    """Rows on which the candidate fails anew at one rate and no longer at another.

    Of each of `count` families a share of rows, `shared`, has one fate: two of a family correlate by its square.
    """
    family = np.arange(n) % count
    u = np.where(rng.random(n) < shared, rng.random(count)[family], rng.random(n))
    current = np.where((u >= rises) & (u < rises + falls), 0, 1)
    choices = current.astype(np.int64), (u >= rises).astype(np.int64)
    names = family.astype(str)
    return LabelledSet("recent", soft(np.ones(n, np.int64)), *choices, groups=names, equal_cost=True)


def found_no_worse(rounds: int, seed: int, *told) -> int:
    rng = np.random.default_rng(seed)
    return sum(judge([in_families(*told, rng)]).reasons[0].endswith(("no worse", "better")) for _ in range(rounds))


@pytest.mark.parametrize("shared", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(("rises", "falls"), [(0.03, 0.0), (0.10, 0.07)])
def test_few_families_show_little_however_many_their_rows(rises: float, falls: float, shared: float):
    """A candidate that is worse by the margin seldom passes on 400 rows of ten families, alike or not."""
    assert found_no_worse(100, 3, 400, 10, shared, rises, falls) <= stats.binom.isf(0.001, 100, 0.025)


@pytest.mark.faults
@pytest.mark.parametrize("count", [3, 10, 20, 50, 100])
@pytest.mark.parametrize("shared", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(("rises", "falls"), [(0.03, 0.0), (0.10, 0.07), (0.25, 0.22)])
def test_families_of_any_number_keep_the_level(rises: float, falls: float, shared: float, count: int):
    """One that is worse by the margin passes in about .025 of rounds at most, however many families and how alike."""
    assert found_no_worse(500, count, 400, count, shared, rises, falls) <= stats.binom.isf(0.001, 500, 0.035)


@pytest.mark.parametrize(("count", "least"), [(400, 0.95), (200, 0.95), (100, 0.9)])
def test_what_is_better_passes_where_families_are_many(count: int, least: float):
    """Rows that do not go with their family count as many as they are: one that mends .04 of them is no worse."""
    assert found_no_worse(100, 5, 400, count, 0.0, 0.04, 0.08) >= stats.binom.ppf(0.001, 100, least)


@pytest.mark.parametrize(
    ("values", "groups", "expected"),
    [
        (np.zeros(60), None, 60),
        (np.zeros(60), np.arange(60), 60),
        (np.arange(60) % 2, np.arange(60), 60),
        (np.zeros(60), np.arange(60) % 10, 10),
        (np.zeros(60), np.zeros(60), 1),
        (np.arange(600) // 6 % 2, np.arange(600) // 6, 100),
        (np.arange(600) % 2, np.arange(600) // 2, 600),
    ],
    ids=["own", "own by name", "own and off", "agree", "one", "one fate each", "twins that differ"],
)
def test_rows_count_for_what_their_groups_show(values, groups, expected: float):
    """Each its own, all count; of groups that agree a row each; never more than there are."""
    assert effective_rows(values.astype(float), groups) == pytest.approx(expected)


@pytest.mark.parametrize(("more", "fewer", "n"), [(0, 0, 60), (4, 0, 60), (0, 60, 60), (12, 2, 50), (2, 12, 50)])
def test_the_score_interval_holds_what_a_score_test_does_not_reject(more: int, fewer: int, n: int):
    """It is never empty, ends where Tango's example does, and is turned round where the bundles are exchanged."""
    rows = np.arange(n)
    one, other = (rows < more).astype(float), ((rows >= more) & (rows < more + fewer)).astype(float)
    found, turned = tango(other, one, 1.96), tango(one, other, 1.96)
    assert found.low <= found.estimate == (more - fewer) / n <= found.high
    assert (found.low, found.high) == (-turned.high, -turned.low)
    assert found.high > found.low
    if (more, fewer) == (12, 2):
        assert (found.low, found.high) == (pytest.approx(0.0611, abs=1e-4), pytest.approx(0.3447, abs=1e-4))


def test_the_score_interval_ends_at_one():
    """Losses that are all but certain have no difference below 1 that a score test rejects."""
    assert tango(np.zeros(60), np.full(60, 1 - 1e-7), 1.96).high == 1.0


def test_every_set_must_be_no_worse():
    """Better on recent labels and worse on the golden set is not good enough, nor is it to mend a promise."""
    good, bad = chooser(0.05, 0.1, 4), chooser(0.3, 0.2, 4)
    golden = LabelledSet("golden", soft(LABELS), CURRENT, bad, equal_cost=True)
    alone = judge([labelled(CURRENT, good, alpha=0.06)], draws=200)
    assert (alone.accepted, alone.repairs) == (True, True)
    verdict = judge([labelled(CURRENT, good, alpha=0.06), golden], draws=200)
    assert (verdict.accepted, verdict.repairs) == (False, False)
    assert "golden: risk" in verdict.why


def test_one_set_that_is_too_small_to_tell_stops_what_another_shows():
    """Better on recent labels is not enough where the golden set cannot say whether it is worse there."""
    few = LabelledSet("golden", *(rows[: FEWEST_ROWS - 1] for rows in (soft(LABELS), CURRENT, CURRENT)))
    verdict = judge([labelled(CURRENT, chooser(0.05, 0.1, 4), alpha=0.06), few], draws=200)
    assert (verdict.accepted, verdict.repairs, verdict.refused) == (False, False, True)


def test_rows_of_one_fate_tell_no_more_of_cost_than_one_of_them():
    """A hundred requests, each in ten wordings that are decided alike, leave the interval of a hundred."""
    once = labelled(CURRENT, chooser(0.1, 0.3, 2), n=100)
    many = {name: np.repeat(getattr(once, name), 10, axis=0) for name in ("labels", "current", "candidate")}
    repeated = LabelledSet("recent", **many, groups=np.repeat(np.arange(100).astype(str), 10))
    alone, found = (judge([rows], draws=1000).sets["recent"]["cost"]["difference"] for rows in (once, repeated))
    assert found["estimate"] == pytest.approx(alone["estimate"])
    assert found["high"] - found["low"] == pytest.approx(alone["high"] - alone["low"], rel=0.1)


def test_the_cost_is_that_of_the_first_set_that_compares_costs():
    """A set that was brought to one cost stands aside, in whatever order."""
    golden = LabelledSet("golden", soft(LABELS), CURRENT, CURRENT, equal_cost=True)
    recent = labelled(CURRENT, np.full(N, 1), n=N)
    assert judge([golden, recent], draws=50).cost == pytest.approx(PRICES[1])


def test_choices_at_one_cost_are_compared_by_risk_alone():
    """A set that was brought to one cost says nothing about cost."""
    dearer = LabelledSet("golden", soft(LABELS), CURRENT, chooser(0.05, 0.6, 4), equal_cost=True)
    verdict = judge([dearer], draws=200)
    assert verdict.accepted
    assert "cost" not in verdict.sets["golden"]
    assert np.isnan(verdict.cost)


def test_cost_is_compared_on_traffic_where_it_is_given():
    """Costs need no labels: where further requests are given, they are what counts."""
    rows = labelled(CURRENT, CURRENT, traffic=(np.full(500, 2), np.full(500, 1)))
    verdict = judge([rows], draws=200)
    assert verdict.accepted
    assert (verdict.sets["recent"]["requests"], verdict.cost) == (500, pytest.approx(PRICES[1]))


@pytest.mark.parametrize(
    ("current", "candidate", "repairs"),
    [
        (CURRENT, chooser(0.02, 0.7, 5), True),
        (chooser(0.04, 0.2, 6), chooser(0.02, 0.7, 5), False),
        (chooser(0.115, 0.2, 6), chooser(0.02, 0.7, 5), True),
        (CURRENT, chooser(0.13, 0.7, 5), False),
    ],
    ids=["mends", "whole already", "more likely broken than not", "mends too little"],
)
def test_a_broken_promise_that_the_candidate_keeps_is_a_repair(current, candidate, repairs: bool):
    """Where what serves exceeds its α and the candidate does not, the verdict says so, also at a higher cost."""
    verdict = judge([labelled(current, candidate, alpha=0.06)], draws=200)
    assert (verdict.accepted, verdict.repairs) == (False, repairs)
    assert ("keeps the promise of 0.06" in verdict.why) is repairs


@pytest.mark.parametrize(("epsilon", "repairs"), [(0.0, False), (0.05, True)])
def test_exploring_takes_its_share_of_the_promise(epsilon: float, repairs: bool):
    """Where .05 of .10 is explored, choices that miss .095 before that break the promise, and .045 keep it."""
    n = 1000
    labels, missed = np.ones(n, np.int64), np.arange(n) / n
    choices = ((missed >= share).astype(np.int64) for share in (0.095, 0.045))
    rows = LabelledSet("recent", soft(labels), *choices, alpha=0.1, epsilon=epsilon, equal_cost=True)
    verdict = judge([rows], draws=200)
    assert verdict.repairs is repairs
    assert ("keeps the promise of 0.05 (0.1 with what is explored)" in verdict.why) is repairs


@pytest.mark.parametrize(("severity", "repairs"), [((1.0, 1.0, 1.0), True), ((0.5, 1.0, 1.0), False)])
def test_risk_is_the_mean_loss_that_was_promised(severity: tuple[float, ...], repairs: bool):
    """Where one tier too low counts a half, .15 of such misses keep a promise of .10, and nothing is to be repaired."""
    rows = labelled(chooser(0.25, 0.2, 1), chooser(0.05, 0.5, 2), alpha=0.1, severity=severity)
    verdict = judge([rows], draws=200)
    assert verdict.repairs is repairs
    found = verdict.sets["recent"]["risk"]["current"]["estimate"]
    assert found == pytest.approx(severity[0] * (rows.current < LABELS).mean())


@pytest.mark.parametrize(("promised", "word"), [(True, "promise"), (False, "target")])
def test_a_target_is_kept_like_a_promise_and_not_called_one(promised: bool, word: str):
    """What is only aimed at may be mended like what is proved; the reason says which it was."""
    verdict = judge([labelled(CURRENT, chooser(0.02, 0.7, 5), alpha=0.06, promised=promised)], draws=200)
    assert verdict.repairs
    assert [w for w in ("promise", "target") if w in verdict.why] == [word]


def test_without_exploration_it_says_what_it_went_by():
    """At epsilon 0 labelled sets alone decide, and the verdict says so."""
    assert "labelled sets alone" in judge([labelled(CURRENT, chooser(0, 0, 1))], draws=200).why


def test_the_log_can_contradict_the_labels():
    """A candidate that looks better on labels and is worse in the log of what really happened is not accepted."""
    drawn = draw_log(truths(20_000, np.random.default_rng(1)), 1)
    now, lower = estimate(drawn.log, drawn.log.base), estimate(drawn.log, np.maximum(drawn.log.base - 1, 0))
    sets = [labelled(CURRENT, chooser(0.02, 0.1, 7))]
    assert judge(sets, off_policy=(now, now), draws=200).accepted
    verdict = judge(sets, off_policy=(now, lower), draws=200)
    assert not verdict.accepted
    assert "no support" in verdict.why
    assert [verdict.off_policy[name]["risk_dr"]["estimate"] for name in ("current", "candidate")] == [
        one.risk_dr.estimate for one in (now, lower)
    ]
    json.dumps(verdict.as_json())


@pytest.mark.parametrize(
    ("severity", "now", "then", "stands"),
    [
        (EVERY_MISS, (0.02, 0.01, 0.03), (0.14, 0.12, 0.16), True),
        (EVERY_MISS, (0.02, 0.01, 0.03), (0.16, 0.14, 0.18), False),
        (EVERY_MISS, (0.18, 0.16, 0.20), (0.22, 0.20, 0.24), True),
        ((0.5, 1.0, 1.0), (0.02, 0.01, 0.03), (0.2, 0.18, 0.22), True),
        ((0.5, 1.0, 1.0), (0.02, 0.01, 0.03), (0.27, 0.25, 0.29), False),
    ],
    ids=["within the promise", "beyond it", "no worse than what serves", "within a mean loss", "beyond a mean loss"],
)
def test_the_log_refuses_what_is_surely_beyond_what_is_allowed(severity, now, then, stands: bool):
    """Misses in the log count from the promise on, or from what serves; a mean loss of .10 in halves is .20 of them."""
    drawn = draw_log(truths(2000, np.random.default_rng(1)), 1)
    found = estimate(drawn.log, drawn.log.base)
    said = tuple(replace(found, risk_dr=Interval(*one)) for one in (now, then))
    sets = [labelled(chooser(0.02, 0.7, 5), chooser(0.02, 0.1, 7), alpha=0.1, severity=severity)]
    assert judge(sets, off_policy=said, draws=200).accepted is stands


def test_the_gate_wants_a_set():
    """Without a labelled set nothing is judged."""
    with pytest.raises(ValueError, match="no labelled set"):
        judge([])


def test_rows_and_choices_must_fit():
    """A set whose choices are of another number than its labels names itself."""
    with pytest.raises(ValueError, match="'recent'"):
        LabelledSet("recent", soft(LABELS), CURRENT[:5], CURRENT)
