"""Thresholds that keep a promise: what the fitting does on rows that can be counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from classifier.policy import ALWAYS_FRONTIER, choose_many, float32_up
from training.label_shift import estimate_prior, shift_weights
from training.risk_control import (
    BINOMIAL,
    BOUNDED,
    CONFORMAL,
    SHIFTED,
    allowed_loss,
    fit_threshold,
    fit_top_tier,
    hoeffding_bentkus,
    method_for,
    risk_bound,
    rows_needed,
)
from training.step_losses import EVERY_MISS, routing_losses

SEVERE = (0.4, 0.8, 1.0)


def population(n: int, seed: int, prior: tuple[float, ...] = (1, 1.5, 0.8, 0.2)) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities and labels."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(prior, n).astype(np.float32)
    return p, (rng.random(n)[:, None] > np.cumsum(p, axis=1)[:, :-1]).sum(axis=1)


@st.composite
def samples(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Small sets with many ties: eighths, and labels of any kind."""
    n = draw(st.integers(1, 40))
    parts = draw(st.lists(st.lists(st.integers(0, 4), min_size=4, max_size=4), min_size=n, max_size=n))
    rows = np.array([p if sum(p) else [1, 1, 1, 1] for p in parts], dtype=np.float64)
    labels = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    return (rows / rows.sum(axis=1, keepdims=True)).astype(np.float32), np.array(labels)


alphas = st.sampled_from([0.02, 0.05, 0.1, 0.2, 0.4, 0.7])
deltas = st.sampled_from([0.0, 0.1])
severities = st.sampled_from([EVERY_MISS, SEVERE])


@given(sample=samples(), threshold=st.floats(0, 1))
def test_the_losses_are_the_policys_misses(sample: tuple, threshold: float):
    """The risk at any threshold equals what choosing with it misses, ties included."""
    p, y = sample
    threshold = float(np.float32(threshold))
    expected = np.mean(choose_many(p, threshold) < y)
    assert routing_losses(p, y).risk(threshold) == pytest.approx(expected)


@given(sample=samples(), threshold=st.floats(0, 1))
def test_severity_weighs_by_distance(sample: tuple, threshold: float):
    """With severity a miss by d tiers costs the d-th weight."""
    p, y = sample
    threshold = float(np.float32(threshold))
    distance = np.maximum(y - choose_many(p, threshold), 0)
    expected = np.array([0.0, *SEVERE])[distance].mean()
    assert routing_losses(p, y, severity=SEVERE).risk(threshold) == pytest.approx(expected)


@given(sample=samples(), threshold=st.floats(0, 1))
def test_soft_labels_give_the_expected_loss(sample: tuple, threshold: float):
    """With soft labels the risk is the expectation over them."""
    p, y = sample
    rows = np.random.default_rng(0).dirichlet([1, 1, 1, 1], len(y))
    threshold = float(np.float32(threshold))
    expected = sum(rows[:, tier] @ (choose_many(p, threshold) < tier) / len(y) for tier in range(4))
    assert routing_losses(p, rows).risk(threshold) == pytest.approx(expected)


@given(sample=samples(), one=alphas, other=alphas, delta=deltas)
def test_the_threshold_falls_as_more_risk_is_allowed(sample: tuple, one: float, other: float, delta: float):
    """A smaller alpha never has a smaller threshold, so it never chooses a lower tier."""
    losses = routing_losses(*sample)
    strict, loose = (fit_threshold(losses, a, delta=delta) for a in (min(one, other), max(one, other)))
    assert strict.threshold >= loose.threshold
    assert (choose_many(sample[0], strict.threshold) >= choose_many(sample[0], loose.threshold)).all()


@given(sample=samples(), alpha=alphas, delta=deltas, severity=severities)
def test_the_threshold_is_the_smallest_that_keeps_the_bound(sample: tuple, alpha: float, delta: float, severity: tuple):
    """The bound at the threshold is at most alpha, no less than that of what is seen there, and above it just below."""
    losses = routing_losses(*sample, severity=severity)
    fit = fit_threshold(losses, alpha, delta=delta)
    if fit.feasible:
        assert risk_bound(losses, fit.threshold, delta, fit.method) - 1e-9 <= fit.bound <= alpha + 1e-9
    if fit.feasible and fit.threshold > 0:
        below = float(np.nextafter(np.float32(fit.threshold), np.float32(-1)))
        assert risk_bound(losses, below, delta, fit.method) > alpha


@given(sample=samples(), alpha=alphas, delta=deltas, severity=severities)
def test_infeasible_is_exactly_where_only_always_frontier_passes(
    sample: tuple, alpha: float, delta: float, severity: tuple
):
    """A policy is infeasible exactly where no threshold keeps the bound and sends a row below frontier."""
    p, y = sample
    losses = routing_losses(p, y, severity=severity)
    fit = fit_threshold(losses, alpha, delta=delta)
    # The rows' own cumulative probabilities are the only thresholds at which anything changes.
    candidates = np.unique([min(1.0, -float32_up(-score)) for score in losses.scores.ravel()])
    passing = [
        t
        for t in candidates.tolist()
        if risk_bound(losses, t, delta, fit.method) <= alpha + 1e-12 and (choose_many(p, t) < 3).any()
    ]
    assert fit.feasible == bool(passing)
    if not fit.feasible:
        assert fit.threshold == ALWAYS_FRONTIER
        assert fit.empirical_risk == 0
        assert fit.bound == risk_bound(losses, ALWAYS_FRONTIER, delta, fit.method)


@pytest.mark.parametrize(("n", "alpha", "allowed"), [(99, 0.1, 9), (100, 0.1, 9.1), (8, 0.1, -0.1), (19, 0.05, 0)])
def test_conformal_counts_the_next_request_as_lost(n: int, alpha: float, allowed: float):
    """Conformal risk control allows alpha (n + 1) - 1 losses."""
    assert allowed_loss(n, alpha, 0, CONFORMAL) == pytest.approx(allowed)


@pytest.mark.parametrize("n", [50, 200, 2000])
def test_clopper_pearson_allows_what_the_binomial_allows(n: int):
    """The most failures allowed are those whose exact upper confidence bound is at most alpha."""
    k = allowed_loss(n, 0.1, 0.05, BINOMIAL)
    upper = [stats.binomtest(int(j), n).proportion_ci(0.9, "exact").high if j >= 0 else 0 for j in (k, k + 1)]
    assert upper[0] <= 0.1 < upper[1]


@pytest.mark.parametrize("n", [50, 200, 2000])
def test_hoeffding_bentkus_is_valid_and_weaker_than_exact(n: int):
    """Its p-value passes delta just above the allowed loss, and it allows no more than the exact bound."""
    allowed = allowed_loss(n, 0.1, 0.05, BOUNDED)
    assert allowed <= allowed_loss(n, 0.1, 0.05, BINOMIAL)
    if allowed >= 0:
        assert hoeffding_bentkus(allowed / n, n, 0.1) <= 0.05
    assert hoeffding_bentkus((max(allowed, 0) + 0.001) / n, n, 0.1) > 0.05


@pytest.mark.parametrize("risk", [0.1, 0.11, 0.5, 1.0])
def test_losses_above_a_target_are_no_evidence_that_it_is_kept(risk: float):
    """A p-value is 1 and no more where the mean seen is the target or above."""
    assert hoeffding_bentkus(risk, 200, 0.1) == 1.0


@pytest.mark.parametrize("delta", [0.0, 0.05])
@pytest.mark.parametrize("severity", [EVERY_MISS, SEVERE])
def test_where_every_row_is_lost_nothing_is_proved(delta: float, severity: tuple):
    """The bound of a risk of 1 is 1, whatever the method."""
    losses = routing_losses(np.tile(np.float32([1, 0, 0, 0]), (50, 1)), np.full(50, 3), severity=severity)
    assert risk_bound(losses, 0.5, delta, method_for(losses, delta)) == pytest.approx(1.0, rel=1e-12)


def test_bentkus_counts_a_part_of_a_loss_as_a_whole_one():
    """The bound of Bentkus is e times the binomial one at the losses' sum, rounded up (arXiv:2110.01052, prop. 1)."""
    bentkus = math.e * float(stats.binom.cdf(4, 50, 0.3))
    assert hoeffding_bentkus(3.9 / 50, 50, 0.3) == pytest.approx(bentkus)


def test_the_method_follows_from_weights_delta_and_losses():
    """Without delta conformal; with it exact for 0/1 losses and Hoeffding-Bentkus for others; weights are a shift."""
    p, y = population(50, 0)
    binary, weighted = routing_losses(p, y), routing_losses(p, y, weights=np.ones(50))
    severe, soft = routing_losses(p, y, severity=SEVERE), routing_losses(p, p / p.sum(axis=1, keepdims=True))
    found = [method_for(losses, delta) for losses in (binary, severe, soft) for delta in (0, 0.1)]
    assert found == [CONFORMAL, BINOMIAL, CONFORMAL, BOUNDED, CONFORMAL, BOUNDED]
    assert method_for(weighted, 0) == SHIFTED
    with pytest.raises(ValueError, match="no confidence statement"):
        method_for(weighted, 0.1)


def test_equal_weights_change_nothing():
    """Rows that all weigh the same have the threshold of unweighted rows."""
    p, y = population(300, 1)
    plain, weighted = (
        fit_threshold(routing_losses(p, y), 0.1),
        fit_threshold(routing_losses(p, y, weights=np.full(300, 7)), 0.1),
    )
    assert (weighted.threshold, weighted.method) == (plain.threshold, SHIFTED)
    assert plain.bound == pytest.approx(30 / 301)
    assert weighted.bound == pytest.approx(0.1)


def test_what_is_proved_holds_where_scores_are_tied():
    """Of λ that jumps over tied rows, or stays below, the mean risk is within the mean of what is said to be proved."""
    n, lost = 200, 0.1  # of all requests so many have one score and a label above simple
    risk = bound = 0.0
    for count in range(5, 40):
        p = np.tile(np.float32([0.5, 0.5, 0, 0]), (n, 1))
        fit = fit_threshold(routing_losses(p, (np.arange(n) < count).astype(int)), 0.1)
        chance = float(stats.binom.pmf(count, n, lost))
        risk += chance * lost * (fit.threshold <= 0.5)
        bound += chance * fit.bound
    assert 0.04 < risk <= bound


@pytest.mark.parametrize("tier", [0, 1, 2])
@pytest.mark.parametrize("severity", [EVERY_MISS, SEVERE])
@pytest.mark.parametrize(("alpha", "delta", "n"), [(0.1, 0.0, 9), (0.05, 0.0, 19), (0.1, 0.05, 29), (0.05, 0.05, 59)])
def test_it_says_how_many_rows_a_promise_takes(alpha: float, delta: float, n: int, severity: tuple, tier: int):
    """Even a perfect model needs this many rows: one fewer is infeasible and says so, with the number."""
    p, y = np.tile(np.eye(4, dtype=np.float32)[tier], (n, 1)), np.full(n, tier)
    assert fit_threshold(routing_losses(p, y, severity=severity), alpha, delta=delta).feasible
    short = fit_threshold(routing_losses(p[1:], y[1:], severity=severity), alpha, delta=delta)
    assert (short.feasible, short.rows_needed) == (False, n)


def test_the_rows_that_it_takes_are_counted_at_the_strictest_threshold():
    """Where one row of eight may go below frontier and is not lost there, nine such rows would do."""
    p = np.float32([[0, 0, 0.9, 0.1], *[[0.5, 0, 0, 0.5]] * 7])
    fit = fit_threshold(routing_losses(p, np.array([2, *[3] * 7])), 0.1)
    assert (fit.feasible, fit.rows_needed) == (False, 9)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_weighted_rows_take_more_as_one_of_them_weighs_more(scale: float):
    """Where a row weighs 5.5 times the mean, it takes 5.5 times the 9 rows and says so, whatever the unit."""
    weights = scale * np.tile([*[1.0] * 9, 11.0], 20)
    p, y = np.tile(np.float32([1, 0, 0, 0]), (200, 1)), np.zeros(200, dtype=int)

    def fit(n: int):
        return fit_threshold(routing_losses(p[:n], y[:n], weights=weights[:n]), 0.1)

    short = fit(40)
    assert (short.feasible, short.rows_needed) == (False, 50)
    assert fit(50).feasible


def test_no_number_of_rows_helps_a_model_that_says_nothing():
    """All-equal scores with too many high labels are infeasible at any number of rows."""
    p, y = np.full((400, 4), 0.25, dtype=np.float32), np.repeat([0, 3], 200)
    fit = fit_threshold(routing_losses(p, y), 0.1)
    assert (fit.feasible, fit.threshold, fit.rows_needed) == (False, ALWAYS_FRONTIER, None)
    assert rows_needed(0.1, 0.0, CONFORMAL, risk=0.1) is None


def test_all_equal_scores_with_few_high_labels_choose_one_tier():
    """All-equal scores get the cheapest tier that keeps the risk for everybody."""
    p, y = np.full((400, 4), 0.25, dtype=np.float32), np.repeat([0, 1, 2], [200, 190, 10])
    fit = fit_threshold(routing_losses(p, y), 0.1)
    assert fit.feasible
    assert (choose_many(p, fit.threshold) == 1).all()


def test_no_label_above_simple_needs_no_threshold():
    """Where every label is simple the threshold is 0: always simple."""
    p, _ = population(100, 2)
    assert fit_threshold(routing_losses(p, np.zeros(100, dtype=int)), 0.1).threshold == 0.0


def test_the_top_tier_threshold_catches_frontier_rows():
    """The top-tier threshold is the largest that misses at most the allowed number of frontier rows."""
    p, y = population(3000, 3)
    fit = fit_top_tier(p, y, 0.2)
    top = np.sort(p[y == 3, -1])
    allowed = math.floor(0.2 * (len(top) + 1) - 1)
    assert fit.feasible
    assert fit.threshold == top[allowed]
    assert fit.empirical_risk == pytest.approx(allowed / len(top))
    assert fit.bound <= 0.2
    exact = fit_top_tier(p, y, 0.2, delta=0.05)
    assert exact.threshold == top[int(allowed_loss(len(top), 0.2, 0.05, BINOMIAL))] < fit.threshold
    assert exact.bound <= 0.2


@pytest.mark.parametrize("n", [19, 20])
def test_a_top_tier_threshold_misses_as_many_rows_as_are_allowed(n: int):
    """Of 19 frontier rows a tenth allows one miss exactly, so that the second lowest is the first that is caught."""
    top = np.float32(np.arange(1, n + 1) / 21)
    p = np.stack([1 - top, 0 * top, 0 * top, top], axis=1)
    fit = fit_top_tier(p, np.full(n, 3), 0.1)
    assert (fit.threshold, fit.empirical_risk, fit.bound) == (
        float(top[1]),
        pytest.approx(1 / n),
        pytest.approx(2 / (n + 1)),
    )
    halved = fit_top_tier(np.repeat(p, 2, axis=0), np.tile([0.5, 0, 0, 0.5], (2 * n, 1)), 0.1)
    assert (halved.threshold, halved.n, halved.bound) == (fit.threshold, n, pytest.approx(0.1))


@pytest.mark.parametrize("count", [0, 1, 8, 9])
def test_the_top_tier_needs_frontier_rows(count: int):
    """Without enough frontier rows there is no threshold, and the number that it takes is said."""
    p, y = population(200, 4)
    fit = fit_top_tier(p, np.where(np.arange(200) < count, 3, np.minimum(y, 2)), 0.1)
    if count == 9:
        assert (fit.threshold, fit.feasible, fit.rows_needed) == (p[:9, -1].min(), True, None)
    else:
        assert (fit.threshold, fit.feasible, fit.n, fit.rows_needed) == (0.0, False, count, 9)


def test_frontier_rows_of_which_the_model_knows_nothing_need_no_more_of_them():
    """Where frontier rows have no chance of frontier, no number of them gives a threshold, and none is named."""
    p = np.tile(np.float32([1, 0, 0, 0]), (100, 1))
    fit = fit_top_tier(p, np.full(100, 3), 0.1)
    assert (fit.threshold, fit.feasible, fit.rows_needed) == (0.0, False, None)


def test_soft_labels_count_with_their_frontier_part():
    """A soft label that is all frontier counts as a frontier row, one that has none does not count."""
    p, y = population(2000, 5)
    assert fit_top_tier(p, np.eye(4)[y], 0.2) == fit_top_tier(p, y, 0.2)
    with pytest.raises(ValueError, match="soft labels"):
        fit_top_tier(p, np.full((2000, 4), 0.25), 0.2, delta=0.05)


def test_the_prior_of_shifted_traffic_is_found():
    """EM finds the tier shares of traffic in which only the shares changed."""
    p, y = population(40_000, 6)
    rng, new = np.random.default_rng(7), np.array([0.7, 0.2, 0.08, 0.02])
    old = np.bincount(y) / len(y)
    chosen = rng.choice(len(y), 20_000, p=(new / old)[y] / (new / old)[y].sum())
    found = estimate_prior(p[chosen], old)
    np.testing.assert_allclose(found, new, atol=0.025)
    np.testing.assert_allclose(estimate_prior(p, old), old, atol=0.01)


def test_a_model_that_is_a_little_off_does_not_carry_the_shares_away():
    """Where mean probabilities and labels differ, the shares are found better from the former than from the latter."""
    p, y = population(40_000, 6)
    biased = p * np.float32([1.0, 1.0, 0.7, 0.7])
    biased /= biased.sum(axis=1, keepdims=True)
    rng, new, old = np.random.default_rng(7), np.array([0.7, 0.2, 0.08, 0.02]), np.bincount(y) / len(y)
    chosen = rng.choice(len(y), 20_000, p=(new / old)[y] / (new / old)[y].sum())
    weights, note = shift_weights(biased[chosen], biased, np.eye(4)[y])
    ours = np.bincount(y, weights=weights) / weights.sum()
    naive = estimate_prior(biased[chosen], old)
    assert np.abs(ours - new).sum() < 0.5 * np.abs(naive - new).sum()
    assert "vanished" not in note


def test_traffic_like_the_calibration_rows_weighs_all_alike():
    """Where nothing changed every weight is 1, also for a model whose probabilities are off."""
    p, y = population(2000, 6)
    biased = p * np.float32([1.0, 1.0, 0.7, 0.7])
    biased /= biased.sum(axis=1, keepdims=True)
    weights, _ = shift_weights(biased, biased, np.eye(4)[y])
    np.testing.assert_allclose(weights, 1.0, rtol=1e-4)


def test_a_tier_that_vanishes_is_told():
    """Where the estimate leaves next to nothing of a tier, the note names it and says what to do."""
    p, y = population(4000, 11)
    _, note = shift_weights(p[p[:, 2:].sum(axis=1) < 0.05], p, np.eye(4)[y])
    assert "complex and frontier requests have all but vanished" in note
    assert "label some" in note


def test_a_tier_without_rows_stays_without():
    """A tier that no label had keeps share 0."""
    p, _ = population(500, 8)
    assert estimate_prior(p, [0.5, 0.3, 0.2, 0.0])[3] == 0


@settings(max_examples=30)
@given(alpha=st.sampled_from([0.0, 1.0, -0.1, math.nan]))
def test_a_target_that_is_no_share_is_an_error(alpha: float):
    """Alpha and delta are shares between 0 and 1."""
    losses = routing_losses(*population(20, 9))
    with pytest.raises(ValueError, match="alpha is"):
        fit_threshold(losses, alpha)
    with pytest.raises(ValueError, match="beta is"):
        fit_top_tier(*population(20, 9), alpha)


P20, Y20 = population(20, 9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: routing_losses(np.where(P20 > 0.9, np.nan, P20) * np.nan, Y20), "not finite"),
        (lambda: routing_losses(P20, Y20[1:]), "19 rows"),
        (lambda: routing_losses(P20, Y20 + 4), "expected"),
        (lambda: routing_losses(P20, P20 * 2), "sum to 1"),
        (lambda: routing_losses(P20, Y20, severity=(1.0, 0.5, 1.0)), "severity"),
        (lambda: routing_losses(P20, Y20, severity=(0.5, 1.0, 2.0)), "severity"),
        (lambda: fit_threshold(routing_losses(P20, Y20), 0.1, delta=1.0), "delta is"),
        (lambda: estimate_prior(P20 * np.nan, [0.25] * 4), "not finite"),
    ],
)
def test_rows_that_cannot_be_used_are_an_error(call, message: str):
    """NaN, ragged, non-tier and non-distribution input raises and says what was expected."""
    with pytest.raises(ValueError, match=message):
        call()
