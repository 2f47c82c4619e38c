"""Does routing pay? A policy beside routers of equal risk, on rows that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifier.calibration import IDENTITY
from classifier.policy import choose_many
from tests.calibration_support import population
from training.calibration_report import constant_mix, under
from training.cost_at_risk import CONSTANT, CONSTANT_EQUAL_MISSES, RiskCost, as_text, costs, study

PRICES = (1.0, 2.0, 10.0, 100.0)
LABELS = np.eye(4)[[0, 0, 1, 1, 1, 2, 2, 3]]


def at(curve: RiskCost, risk: float, counts: np.ndarray) -> tuple[float, float]:
    """Cost and frontier misses of one sample."""
    cost, misses = curve.at(np.array([risk]), counts[None])
    return cost.item(), misses.item()


@given(seed=st.integers(0, 50), threshold=st.floats(0, 1), top=st.sampled_from([2, 3]))
def test_the_rule_at_its_own_risk_costs_what_it_costs(seed: int, threshold: float, top: int):
    """Moved to the risk of some threshold, the same model's rule costs and misses what that threshold does."""
    rows = population(60, seed)
    p = IDENTITY.apply(rows.logits)
    chosen = np.minimum(choose_many(p, float(np.float32(threshold))), top)
    risk = float(under(chosen, rows.labels).mean())
    cost, misses = at(RiskCost(p, rows.labels, PRICES, top), risk, np.ones(60))
    # A larger threshold with the same risk would only cost more: the curve takes the cheapest.
    assert cost <= np.asarray(PRICES)[chosen].mean() + 1e-9
    frontier = rows.labels[:, 3].sum()
    if frontier:
        assert misses >= (rows.labels[:, 3] * (chosen < 3)).sum() / frontier - 1e-9
    else:
        assert np.isnan(misses)


def test_between_two_thresholds_the_router_draws():
    """A risk between those of two neighbouring thresholds costs the mean of both, weighted to meet it."""
    p = np.float32([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0]])
    labels = np.eye(4)[[1, 0]]
    curve = RiskCost(p, labels, PRICES, 3)
    assert at(curve, 0.5, np.ones(2))[0] == pytest.approx(1.0)
    assert at(curve, 0.25, np.ones(2))[0] == pytest.approx((1.0 + at(curve, 0.0, np.ones(2))[0]) / 2)


@pytest.mark.parametrize(("risk", "cost", "misses"), [(2 / 3, 1, 1), (1 / 3, 34, 0.5), (1 / 6, 50.5, 0.25), (0, 67, 0)])
def test_frontier_misses_are_those_of_the_threshold_that_meets_the_risk(risk: float, cost: float, misses: float):
    """Of two frontier requests the surer one is caught first; a draw between two thresholds misses the mean of both."""
    top = np.float32([0.9, 0.6, 0.1])
    p = np.stack([1 - top, 0 * top, 0 * top, top], axis=1)
    assert at(RiskCost(p, np.eye(4)[[3, 3, 0]], PRICES, 3), risk, np.ones(3)) == pytest.approx((cost, misses))


@pytest.mark.parametrize("order", ["hard first", "easy first"])
def test_the_order_of_a_file_tells_a_model_nothing_that_cannot_tell_its_rows_apart(order: str):
    """A model with one answer for all is no cheaper than the best mix of constant tiers, however the file is sorted."""
    tiers = np.sort(np.random.default_rng(0).choice(4, 400, p=[0.5, 0.3, 0.15, 0.05]))
    labels = np.eye(4)[tiers[::-1] if order == "hard first" else tiers]
    curve = RiskCost(np.tile(np.float32([0.4, 0.3, 0.2, 0.1]), (400, 1)), labels, PRICES, 3)
    for risk in (0.3, 0.1, 0.05):
        assert at(curve, risk, np.ones(400))[0] >= constant_mix(risk, labels.mean(axis=0), PRICES)[0] - 1e-9


def test_resampled_rows_count_as_often_as_they_were_drawn():
    """Counts of rows give the same curve as the rows repeated."""
    rows, counts = population(50, 3), np.random.default_rng(0).integers(0, 4, 50)
    p, repeated = IDENTITY.apply(rows.logits), np.repeat(np.arange(50), counts)
    whole, drawn = RiskCost(p, rows.labels, PRICES, 3), RiskCost(p[repeated], rows.labels[repeated], PRICES, 3)
    for risk in (0.05, 0.2, 0.4):
        expected = at(drawn, risk, np.ones(len(repeated)))
        assert at(whole, risk, counts.astype(float)) == pytest.approx(expected, rel=1e-9)
    both = whole.at(np.array([0.05, 0.4]), np.array([counts, np.ones(50)], dtype=float))
    assert [values[0] for values in both] == list(at(whole, 0.05, counts.astype(float)))
    assert [values[1] for values in both] == list(at(whole, 0.4, np.ones(50)))


def test_a_constant_mix_may_give_up_on_every_frontier_request():
    """Where frontier requests are rarer than the risk allows, the cheapest mix sends none of them there."""
    cost, misses = constant_mix(1 / 8, LABELS.mean(axis=0), PRICES)
    assert (cost, misses) == (pytest.approx(10.0), 1.0)


def test_a_constant_mix_that_misses_no_more_pays_for_frontier():
    """Ignoring the request, missing half of the frontier requests takes half of all requests to frontier."""
    cost, misses = constant_mix(9 / 32, LABELS.mean(axis=0), PRICES, most_missed=0.5)
    assert (cost, misses) == (pytest.approx(0.5 * 100 + 0.5 * 1.5), 0.5)
    assert constant_mix(1 / 8, LABELS.mean(axis=0), PRICES, most_missed=0.0) == (100.0, 0.0)
    samples = constant_mix([1 / 8, 9 / 32], np.tile(LABELS.mean(axis=0), (2, 1)), PRICES, most_missed=[np.nan, 0.5])
    assert samples[0].tolist() == pytest.approx([10.0, 50.75]), "of many samples at once, each has its own"


def test_no_mix_of_the_lower_tiers_has_less_than_the_frontiers_risk():
    """Without the frontier tier the dearest tier is all that is left for a risk below the frontier's share."""
    assert constant_mix(0.01, LABELS.mean(axis=0), PRICES[:3]) == (10.0, 1.0)


def test_the_oracle_saves_against_every_router():
    """Who chooses each label exactly has no risk, and every other router of no risk pays more."""
    found = costs(
        LABELS.argmax(axis=1), LABELS, {"blind": np.full((8, 4), 0.25, np.float32)}, PRICES, units=np.arange(8)
    )
    assert found["all tiers"]["risk"]["estimate"] == 0
    assert found["frontier_misses"]["estimate"] == 0
    assert set(found["all tiers"]["beside"]) == {CONSTANT, CONSTANT_EQUAL_MISSES, "blind"}
    for router in found["all tiers"]["beside"].values():
        assert router["cost"] == pytest.approx(100)
        assert router["saved"]["estimate"] == pytest.approx(100 - found["all tiers"]["cost"]["estimate"])
        assert router["saved_share"]["estimate"] == pytest.approx(router["saved"]["estimate"] / 100)
    assert found["risk_below_random_router"]["estimate"] > 0


def test_a_router_that_ignores_the_request_saves_nothing():
    """Always one tier is what a constant mix of equal risk is: nothing is saved, and no risk lies below chance."""
    found = costs(np.full(8, 1), LABELS, {}, PRICES, units=np.arange(8))
    assert found["all tiers"]["beside"][CONSTANT]["saved"]["estimate"] == pytest.approx(0)
    assert found["risk_below_random_router"]["estimate"] == pytest.approx(0)


def test_under_a_ceiling_frontier_requests_are_lost_on_both_sides():
    """Under a ceiling at complex neither side pays for frontier, and the risk counts its requests as lost."""
    found = costs(LABELS.argmax(axis=1), LABELS, {}, PRICES, units=np.arange(8))["ceiling at complex"]
    assert found["risk"]["estimate"] == pytest.approx(1 / 8)
    assert found["cost"]["estimate"] == pytest.approx((2 * 1 + 3 * 2 + 3 * 10) / 8)
    assert set(found["beside"]) == {CONSTANT}
    assert found["beside"][CONSTANT]["cost"] == pytest.approx(10)


def test_beside_a_router_that_costs_nothing_no_share_of_its_cost_is_saved():
    """Where the cheaper tiers run on one's own machines a rival may be free: what is saved is told in dollars alone."""
    free = (0.0, 0.0, 1.0, 10.0)
    rows = population(200, 4)
    found = study(rows, {"p": np.full(200, 1)}, {}, free)
    router = found["p"]["all tiers"]["beside"][CONSTANT]
    assert (router["cost"], router["saved"]["estimate"]) == (0, 0)
    assert np.isnan(router["saved_share"]["estimate"])
    assert "| 0.00 (0.00 to 0.00) | - % |" in as_text(found)


def test_prices_that_fall_are_refused():
    """Tiers are in the order of their prices."""
    with pytest.raises(ValueError, match="non-decreasing"):
        costs(np.zeros(8, int), LABELS, {}, (1, 2, 3, 1), units=np.arange(8))


def test_the_table_has_a_line_for_each_router():
    """Every policy stands beside every router, with and without frontier."""
    rows = population(400, 4)
    chosen = {"p": choose_many(IDENTITY.apply(rows.logits), 0.8)}
    text = as_text(study(rows, chosen, {"other": IDENTITY.apply(rows.logits)}, PRICES))
    assert text.count("| p | all tiers |") == 3
    assert text.count("| p | ceiling at complex |") == 2
    assert "of them frontier" in text
