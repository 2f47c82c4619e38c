"""What a log with known propensities says about a policy that did not make it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from classifier.policy import choose_many
from tests.off_policy_support import draw_log, truths
from training.calibration_report import PRICES
from training.off_policy import OffPolicy, estimate

NAMES = ("risk_ips", "risk_dr", "cost_ips", "cost_dr")


def coverage(
    candidate_threshold: float, logs: int, n: int = 3000, epsilon: float = 0.2
) -> tuple[dict[str, float], list[OffPolicy]]:
    """Share of logs whose intervals hold the truth, over new populations every time; refused ones are left out."""
    hits = dict.fromkeys((*NAMES, "risk_bounds", "cost_bounds"), 0)
    made = []
    for seed in range(logs):
        drawn = draw_log(truths(n, np.random.default_rng(10_000 + seed)), seed, epsilon=epsilon)
        chosen = choose_many(drawn.log.probabilities, candidate_threshold)
        found = estimate(drawn.log, chosen, level=0.9)
        if found.refused:
            continue
        made.append(found)
        truth = {"risk": drawn.risk(chosen), "cost": drawn.cost(chosen, PRICES)}
        for name in NAMES:
            interval = getattr(found, name)
            hits[name] += interval.low <= truth[name[:4]] <= interval.high
        for what in ("risk", "cost"):
            low, high = getattr(found, f"{what}_bounds")
            hits[f"{what}_bounds"] += low <= truth[what] <= high
    return {name: count / len(made) for name, count in hits.items()}, made


WITHIN_NOISE = 0.9 - 2.58 * np.sqrt(0.9 * 0.1 / 600)


@pytest.mark.parametrize("threshold", [0.7, 0.8, 0.9])
def test_intervals_cover_the_truth(threshold: float):
    """Over 60 logs the 90 % intervals of risk and cost hold the truth about as often as they say."""
    found, made = coverage(threshold, 60)
    assert len(made) == 60
    assert min(found.values()) >= 0.8, found


@pytest.mark.faults
@pytest.mark.parametrize("threshold", [0.6, 0.7, 0.8, 0.9])
def test_intervals_cover_the_truth_at_their_stated_rate(threshold: float):
    """Over 600 logs the 90 % intervals hold the truth as often as they say, within the noise of 600 draws."""
    found, made = coverage(threshold, 600)
    assert len(made) == 600
    assert min(found.values()) >= WITHIN_NOISE, found


@pytest.mark.faults
def test_intervals_hold_where_little_is_explored():
    """At ε = .02 those of the risk and of the doubly robust cost still do; the weighted cost's is known to be short."""
    found, made = coverage(0.74, 600, epsilon=0.02)
    assert len(made) > 570
    assert min(rate for name, rate in found.items() if name != "cost_ips") >= WITHIN_NOISE, found


def test_intervals_that_rest_on_a_few_heavy_rows_have_their_tails():
    """Where .02 is explored a handful of rows decides: its interval has longer tails than one of thousands."""
    drawn = draw_log(truths(3000, np.random.default_rng(1)), 1, epsilon=0.02)
    chosen = choose_many(drawn.log.probabilities, 0.75)
    half, most = (estimate(drawn.log, chosen, level=level).risk_dr for level in (0.5, 0.99))
    assert half is not None
    assert most is not None
    assert (most.high - most.low) / (half.high - half.low) > 5  # of a normal distribution 3.8


@pytest.mark.parametrize("name", NAMES)
def test_intervals_are_as_wide_as_the_estimates_scatter(name):
    """Over 80 logs the errors, in units of the half width at 68 %, have the spread of one: neither short nor idle."""
    errors = []
    many = draw_log(truths(100_000, np.random.default_rng(1000)), 0)
    chosen = choose_many(many.log.probabilities, 0.74)
    truth = many.risk(chosen) if name.startswith("risk") else many.cost(chosen, PRICES)
    for seed in range(80):
        log = draw_log(truths(1500, np.random.default_rng(seed)), seed).log
        interval = getattr(estimate(log, choose_many(log.probabilities, 0.74), level=0.6827), name)
        errors.append((interval.estimate - truth) / ((interval.high - interval.low) / 2))
    assert 0.8 < np.std(errors) < 1.2


def test_the_estimate_is_near_the_truth_where_the_naive_mean_is_not():
    """Failures of what was served tell the old policy's risk; the weighted ones tell the candidate's."""
    drawn = draw_log(truths(40_000, np.random.default_rng(1)), 1)
    chosen = choose_many(drawn.log.probabilities, 0.45)
    found = estimate(drawn.log, chosen)
    truth = drawn.risk(chosen)
    naive = float((drawn.log.at_least > drawn.log.chosen)[drawn.log.observed].mean())
    assert abs(naive - truth) > 0.1
    assert found.risk_dr is not None
    assert found.risk_ips is not None
    assert found.risk_dr.estimate == pytest.approx(truth, abs=0.03)
    assert found.risk_ips.estimate == pytest.approx(truth, abs=0.03)


def test_a_log_without_exploration_is_refused():
    """At epsilon 0 another policy's risk is bounded by monotonicity and not estimated, and the reason is said."""
    drawn = draw_log(truths(3000, np.random.default_rng(2)), 2, epsilon=0.0)
    chosen = np.maximum(drawn.log.base - 1, 0)
    found = estimate(drawn.log, chosen)
    assert "nothing was explored" in found.refused
    assert (found.risk_ips, found.risk_dr, found.cost_ips, found.cost_dr) == (None,) * 4
    assert found.risk_bounds[0] <= drawn.risk(chosen) <= found.risk_bounds[1]
    assert found.unsupported > 0.3
    assert "refused" in found.as_text()


def test_what_served_is_estimated_without_exploration():
    """The log tells the risk of the very policy that made it, explored or not."""
    drawn = draw_log(truths(3000, np.random.default_rng(3)), 3, epsilon=0.0)
    found = estimate(drawn.log, drawn.log.base)
    assert not found.refused
    assert found.unsupported == 0
    assert found.risk_dr is not None
    assert found.risk_dr.low <= drawn.risk(drawn.log.base) <= found.risk_dr.high


def test_few_matching_rows_are_refused():
    """Where hardly a row took the candidate's choice there is no estimate."""
    drawn = draw_log(truths(200, np.random.default_rng(4)), 4, epsilon=0.05)
    assert "effective rows" in estimate(drawn.log, np.maximum(drawn.log.base - 1, 0)).refused


def test_bounds_of_a_few_rows_leave_room_for_what_none_of_them_shows():
    """Of 30 accepted decisions a tenth might still fail; over 200 logs of 40 rows 90 % bounds hold risk and cost."""
    drawn = draw_log(np.tile([1.0, 0.0, 0.0, 0.0], (30, 1)), 0, epsilon=0.0, reporting=1.0)
    found = estimate(drawn.log, drawn.log.base)
    assert found.risk_bounds == pytest.approx((0.0, 0.114), abs=0.001)
    assert "risk is within 0.000 to 0.114" in found.as_text()
    hits = {"risk": 0, "cost": 0}
    for seed in range(200):
        drawn = draw_log(np.tile([0.5, 0.47, 0.02, 0.01], (40, 1)), seed, epsilon=0.0, reporting=1.0)
        found, truth = estimate(drawn.log, drawn.log.base, level=0.9), drawn.cost(drawn.log.base, PRICES)
        hits["risk"] += found.risk_bounds[0] <= 0.03 <= found.risk_bounds[1]
        hits["cost"] += found.cost_bounds[0] <= truth <= found.cost_bounds[1]
    assert min(hits.values()) >= 0.85 * 200, hits


@pytest.mark.parametrize("what", ["risk_bounds", "cost_bounds"])
def test_bounds_of_what_is_known_narrow_with_the_rows(what: str):
    """Where every decision was judged and served as the candidate would, sixteen times the rows leave a quarter."""
    widths = []
    for n in (1000, 16_000):
        drawn = draw_log(
            np.tile([[0.5, 0.4, 0.1, 0.0], [0.9, 0.1, 0.0, 0.0]], (n // 2, 1)), 0, epsilon=0.0, reporting=1.0
        )
        low, high = getattr(estimate(drawn.log, drawn.log.base), what)
        widths.append(high - low)
    assert 3 < widths[0] / widths[1] < 8  # rare failures narrow faster


@pytest.mark.parametrize("choice", [0, 1, 2, 3, None])
def test_bounds_close_in_on_what_outcomes_leave_open(choice: int | None):
    """Of many rows they are the least and the most that any label within each row's outcome would risk and cost."""
    log = draw_log(truths(40_000, np.random.default_rng(8)), 8).log
    chosen = log.base if choice is None else np.full(len(log), choice)
    labels, price = np.arange(4), np.asarray(PRICES)
    possible = (labels >= log.at_least[:, None]) & (labels <= log.at_most[:, None])
    missed = labels > chosen[:, None]
    found = estimate(log, chosen, level=0.5)
    for bounds, lost in ((found.risk_bounds, missed), (found.cost_bounds, price[chosen][:, None] + missed * price)):
        least = np.where(possible, lost, np.inf).min(axis=1).mean()
        most = np.where(possible, lost, -np.inf).max(axis=1).mean()
        assert bounds == pytest.approx((least, most), rel=0.03, abs=0.002)
        assert bounds[0] <= least <= most <= bounds[1]


def test_choices_without_support_are_bounded():
    """Where the log could not have made some choices, the interval holds whatever is true of those."""
    for seed in range(20):
        drawn = draw_log(truths(3000, np.random.default_rng(seed)), seed)
        chosen = np.where(np.arange(3000) % 4 == 0, 3, drawn.log.base)
        found = estimate(drawn.log, chosen, level=0.99)
        never = (drawn.log.propensities[np.arange(3000), chosen] == 0).mean()
        assert found.unsupported == pytest.approx(never)
        assert found.unsupported > 0.05
        truth = {"risk": drawn.risk(chosen), "cost": drawn.cost(chosen, PRICES)}
        for name in NAMES:
            interval = getattr(found, name)
            assert interval.low <= truth[name[:4]] <= interval.high
            assert interval.low < interval.estimate < interval.high


def test_a_receipt_has_every_number_or_none_where_it_was_refused():
    """What is written of an estimate is JSON: an interval by its parts, and null where there is no estimate."""
    drawn = draw_log(truths(3000, np.random.default_rng(0)), 0)
    found, refused = (estimate(log, log.base).as_json() for log in (drawn.log, drawn.log.take(np.arange(20))))
    written = json.loads(json.dumps(found))
    assert set(written["risk_dr"]) == {"estimate", "low", "high"}
    assert json.loads(json.dumps(refused))["risk_dr"] is None


def test_mostly_unsupported_is_refused():
    """A candidate that mostly chooses what the log could not is refused."""
    drawn = draw_log(truths(5000, np.random.default_rng(5)), 5)
    log = drawn.log.take(np.argsort(drawn.log.propensities[:, 3], kind="stable")[:4600])  # most of those it could not
    assert "no support" in estimate(log, np.full(len(log), 3)).refused


def test_floors_and_ceilings_hold_for_the_candidate():
    """The candidate is judged on what requests' bounds leave of its choice."""
    drawn = draw_log(truths(2000, np.random.default_rng(6)), 6)
    bound = drawn.log.base
    for name in ("floors", "ceilings"):
        object.__setattr__(drawn.log, name, bound)
    assert estimate(drawn.log, np.zeros(2000, dtype=np.int64)) == estimate(drawn.log, bound)


def test_routes_hold_for_the_candidate():
    """The candidate is judged at the tiers that its choices would end at."""
    drawn = draw_log(truths(2000, np.random.default_rng(6)), 6)
    object.__setattr__(drawn.log, "routed", np.tile([0, 2, 2, 2], (2000, 1)))
    assert estimate(drawn.log, np.full(2000, 1)) == estimate(drawn.log, np.full(2000, 2))


def test_an_empty_log_says_nothing():
    """There is no estimate of no decision."""
    drawn = draw_log(truths(10, np.random.default_rng(0)), 0)
    with pytest.raises(ValueError, match="log of 0 rows"):
        estimate(drawn.log.take(np.arange(0)), np.zeros(0, dtype=np.int64))


@pytest.mark.parametrize("rows", [0, 5])
def test_choices_that_do_not_fit_the_log_are_refused(rows: int):
    """Choices of another number than the log's rows are an error that names both."""
    drawn = draw_log(truths(10, np.random.default_rng(0)), 0)
    with pytest.raises(ValueError, match="log of 10 rows"):
        estimate(drawn.log, np.zeros(rows, dtype=np.int64))
