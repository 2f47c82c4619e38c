"""Estimates with their intervals: of shares, and by resampling."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from scipy import stats

import classifier.intervals
from classifier import intervals, metrics

RNG = np.random.default_rng(11)
LABELS = RNG.integers(0, 4, 500)
PREDICTED = np.clip(LABELS + RNG.integers(-1, 2, 500), 0, 3)


def test_bootstrap_interval_has_the_width_of_the_sampling_error():
    """The 95 % interval of a mean is about 1.96 standard errors to either side."""
    values = np.random.default_rng(2).normal(0, 1, 400)
    interval = intervals.bootstrap_interval(np.mean, values, draws=2000)
    assert interval.estimate == values.mean()
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_an_interval_holds_the_middle_of_the_samples():
    """As many samples lie below it as above; those that are no number, or infinite, are left out."""
    samples = np.concatenate([np.arange(101.0), [np.nan, np.inf, -np.inf]])
    assert intervals.percentiles(7.0, samples, 0.9) == pytest.approx((7.0, 5.0, 95.0))
    assert np.isnan(intervals.percentiles(7.0, samples[101:], 0.9)[1:]).all()


def test_a_share_without_rows_or_without_a_value_has_no_interval():
    """Nothing was seen of it, so nothing is said; a bootstrap interval that is none leaves Wilson's."""
    nothing, nan = intervals.Interval(float("nan"), 0.1, 0.2), float("nan")
    assert np.isnan(intervals.wider(nothing, 50)).all()
    assert np.isnan(intervals.wider(intervals.Interval(0.5, 0.4, 0.6), 0)[1:]).all()
    assert intervals.wider(intervals.Interval(0.5, nan, nan), 50) == intervals.wilson(0.5, 50)


def test_cluster_bootstrap_is_wider_when_rows_of_a_group_are_alike():
    """Groups of equal rows carry the information of one row each, and the interval says so."""
    groups = np.repeat(np.arange(40), 25)
    values = np.random.default_rng(3).normal(0, 1, 40)[groups]
    plain = intervals.bootstrap_interval(np.mean, values, draws=500)
    clustered = intervals.bootstrap_interval(np.mean, values, groups=groups, draws=500)
    assert clustered.high - clustered.low > 3.5 * (plain.high - plain.low)


@pytest.mark.parametrize("count", [0, 3, 25, 50])
def test_wilsons_interval_is_the_reference(count: int):
    """The interval of a share is scipy's, also where none or all were seen."""
    expected = stats.binomtest(count, 50).proportion_ci(0.95, "wilson")
    assert intervals.wilson(count / 50, 50, 1.959963984540054)[1:] == pytest.approx((expected.low, expected.high))


def test_cluster_bootstrap_draws_whole_groups():
    """Every sample is as many groups as there are, each with all of its rows, whatever their sizes and order."""
    groups = np.array(["b", "a", "c", "b", "d", "b", "c"])
    sizes, seen = {"a": 1, "b": 3, "c": 2, "d": 1}, set()

    def looked_at(rows: np.ndarray) -> float:
        times = [np.count_nonzero(rows == row) for row in range(len(groups))]
        drawn = {name: {times[i] for i in np.flatnonzero(groups == name)} for name in sizes}
        assert all(len(counts) == 1 for counts in drawn.values())
        assert sum(max(counts) for counts in drawn.values()) == len(sizes)
        seen.update(name for name, counts in drawn.items() if counts != {0})
        return 0.0

    intervals.bootstrap_interval(looked_at, np.arange(len(groups)), groups=groups, draws=50)
    assert seen == set(sizes)


def test_paired_bootstrap_leaves_shared_luck_out():
    """Two models that differ by a constant have a difference without spread."""
    losses = np.random.default_rng(4).normal(0, 1, 200)
    interval = intervals.paired_bootstrap(np.mean, losses + 0.5, losses, draws=200)
    assert interval == pytest.approx((0.5, 0.5, 0.5))


def test_paired_bootstrap_takes_a_statistic_of_labels():
    """A statistic that needs the labels gets the same rows of them."""
    interval = intervals.paired_bootstrap(metrics.accuracy, PREDICTED, LABELS, LABELS, draws=300)
    assert interval.high < 0
    assert interval.estimate == pytest.approx(metrics.accuracy(PREDICTED, LABELS) - 1)


@pytest.mark.parametrize("groups", [None, np.arange(len(LABELS)) % 7], ids=["rows", "groups"])
def test_several_statistics_have_the_intervals_that_each_has_alone(groups):
    """Asked for together, statistics look at the same samples as alone; one that is NaN on some costs no other any."""

    def seldom(labels: np.ndarray) -> float:
        return float("nan") if labels[0] else float(labels.mean())

    alone = [intervals.bootstrap_interval(of, LABELS, groups=groups, draws=100) for of in (np.mean, seldom)]
    asked = []

    def both(labels: np.ndarray) -> tuple[float, float]:
        asked.append(labels)
        return float(labels.mean()), seldom(labels)

    assert intervals.bootstrap_intervals(both, LABELS, groups=groups, draws=100) == alone
    assert len(asked) == 101


def test_the_same_seed_gives_the_same_interval():
    """Intervals are reproducible."""
    first, second = (intervals.bootstrap_interval(np.mean, PREDICTED, draws=100, seed=9) for _ in range(2))
    assert first == second


def test_arrays_of_several_lengths_are_an_error():
    """What cannot be resampled together raises and says what was expected."""
    with pytest.raises(ValueError, match="one length"):
        intervals.bootstrap_interval(np.mean, [1, 2], [1])
    with pytest.raises(ValueError, match="groups too"):
        intervals.bootstrap_interval(np.mean, [1, 2], groups=[1])


def test_examples_in_the_docstrings_hold():
    """Every example in the module's docstrings gives what it says."""
    assert doctest.testmod(classifier.intervals).failed == 0
