"""Risk as labels on the traffic measure it: exact, open, and with honest intervals."""

from __future__ import annotations

import numpy as np
import pytest

from classifier.intervals import Interval, wider
from classifier.measured import measure
from classifier.resampling import units_of

ONE = np.eye(4)


def measured(tiers, at_least, at_most=None, choices=None):
    """What labels say of a strategy that takes these tiers."""
    low = np.asarray(at_least)
    high = low if at_most is None else np.asarray(at_most)
    chosen = ONE[np.asarray(tiers)] if choices is None else choices
    return measure({"routed": chosen}, low, high, units_of(len(low))[0]).get("routed")


def test_risk_is_the_share_of_labels_above_the_chosen_tier():
    """Too small counts, too large does not; rows without a label stand in no number."""
    found = measured([0, 0, 2, 3, 0], [0, 1, 1, 3, -1])
    assert (found.labels, found.open, found.risk.estimate) == (4, 0, 0.25)
    assert (found.frontier_labels, found.frontier_misses.estimate) == (1, 0.0)
    assert found.risk == found.risk_at_most


def test_open_labels_make_a_band():
    """Where the label lies between two tiers and the choice too, the risk is between none of those wrong and all."""
    found = measured([1, 1, 0, 3], [0, 2, 1, 2], [2, 3, 3, 3])
    assert (found.labels, found.open) == (4, 1)
    assert (found.risk.estimate, found.risk_at_most.estimate) == (0.5, 0.75)
    assert found.band == Interval(0.5, found.risk.low, found.risk_at_most.high)


def test_a_router_that_draws_is_wrong_by_chance():
    """Of a strategy that takes tiers with chances, the expected share is counted."""
    found = measured(None, [3, 0], choices=np.array([[0.5, 0, 0, 0.5], [0.5, 0, 0, 0.5]]))
    assert (found.risk.estimate, found.frontier_misses.estimate) == (0.25, 0.5)


def test_requests_of_an_unknown_tier_are_not_judged():
    """Where today's tier is not known a label says nothing of today."""
    chosen = ONE[[0, 0]].copy()
    chosen[1] = np.nan
    found = measured(None, [1, 1], choices=chosen)
    assert (found.labels, found.risk.estimate) == (1, 1.0)
    nothing = measured(None, [1, 1], choices=np.full((2, 4), np.nan))
    assert nothing.labels == 0
    assert np.isnan(nothing.risk.estimate)


def test_no_labels_measure_nothing():
    """A log without labels has no measured risk."""
    assert measured([0, 1], [-1, -1]) is None


def test_none_wrong_of_a_few_is_no_proof_of_none():
    """The interval reaches up to what a few labels cannot exclude."""
    assert measured([3] * 50, [0] * 50).risk == pytest.approx(Interval(0.0, 0.0, 0.0714), abs=1e-4)
    assert wider(Interval(0.5, 0.1, 0.9), 10_000) == Interval(0.5, 0.1, 0.9)


def test_intervals_hold_the_true_risk_as_often_as_they_say():
    """Over 200 draws of 60 labels with a risk of 6 % at least 93 % of the intervals hold it."""
    draw = np.random.default_rng(3)
    held = 0
    for _ in range(200):
        found = measured([0] * 60, (draw.random(60) < 0.06).astype(int))
        held += found.risk.low <= 0.06 <= found.risk.high
    assert held >= 186
