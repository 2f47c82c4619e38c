"""Estimates with their intervals: of shares, and by resampling."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from classifier import intervals

RNG = np.random.default_rng(11)
LABELS = RNG.integers(0, 4, 500)


def test_bootstrap_interval_has_the_width_of_the_sampling_error():
    """The 95 % interval of a mean is about 1.96 standard errors to either side."""
    values = np.random.default_rng(2).normal(0, 1, 400)
    interval = intervals.bootstrap_interval(intervals.mean(values), 400, draws=2000)
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_an_interval_holds_the_middle_of_the_samples():
    """As many samples lie below it as above; those that are no number, or infinite, are left out."""
    samples = np.concatenate([np.arange(101.0), [np.nan, np.inf, -np.inf]])
    assert intervals.percentiles(7.0, samples) == pytest.approx((7.0, 2.5, 97.5))
    assert np.isnan(intervals.percentiles(7.0, samples[101:])[1:]).all()


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
    plain = intervals.bootstrap_interval(intervals.mean(values), 1000, draws=500)
    clustered = intervals.bootstrap_interval(intervals.mean(values), 1000, groups=groups, draws=500)
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

    def looked_at(counts: np.ndarray) -> np.ndarray:
        for sample in counts:
            drawn = {name: set(sample[groups == name]) for name in sizes}
            assert all(len(times) == 1 for times in drawn.values())
            assert sum(max(times) for times in drawn.values()) == len(sizes)
            seen.update(name for name, times in drawn.items() if times != {0})
        return np.zeros(len(counts))

    intervals.bootstrap_interval(looked_at, len(groups), groups=groups, draws=50)
    assert seen == set(sizes)


def test_a_row_is_drawn_as_often_as_numpy_draws_it():
    """Draws are the generator's own of the seed, whatever their number at a time."""
    looked_at = []
    values = RNG.normal(0, 1, 3000)
    intervals.bootstrap_interval(lambda counts: looked_at.append(counts) or counts[:, 0], 3000, draws=300, seed=5)
    rng = np.random.default_rng(5)
    assert len(looked_at) > 2, "all rows once, and then not all of the draws at a time"
    for counts in np.concatenate(looked_at[1:]):
        assert counts @ values == pytest.approx(values[rng.integers(0, 3000, 3000)].sum())


def test_ratios_and_means_are_of_the_rows_drawn():
    """Rows count as often as they were drawn; a ratio to nothing is no number, and columns have a mean each."""
    counts = np.array([[1.0, 1.0, 1.0], [0.0, 3.0, 0.0], [2.0, 0.0, 1.0]])
    assert intervals.mean([1, 2, 6])(counts).tolist() == [3, 2, 8 / 3]
    assert intervals.mean([[1, 0], [2, 0], [6, 3]])(counts).tolist() == [[3, 1], [2, 0], [8 / 3, 1]]
    assert intervals.ratio([1, 0, 1], [2, 0, 2])(counts)[[0, 2]].tolist() == [0.5, 0.5]
    assert np.isnan(intervals.ratio([1, 0, 1], [2, 0, 2])(counts)[1])


@pytest.mark.parametrize("groups", [None, np.arange(len(LABELS)) % 7], ids=["rows", "groups"])
def test_several_statistics_have_the_intervals_that_each_has_alone(groups):
    """Asked for together, statistics look at the same samples as alone; one that is NaN on some costs no other any."""
    mean = intervals.mean(LABELS)

    def seldom(counts: np.ndarray) -> np.ndarray:
        return np.where(counts[:, 0] > 0, np.nan, mean(counts))

    alone = [intervals.bootstrap_interval(of, len(LABELS), groups=groups, draws=100) for of in (mean, seldom)]
    found = intervals.bootstrap_intervals(lambda counts: [mean(counts), seldom(counts)], 500, groups=groups, draws=100)
    assert found[0] == alone[0]
    assert np.isnan(found[1].estimate)
    assert found[1][1:] == alone[1][1:]
    assert intervals.bootstrap_each({"mean": mean}, 500, groups=groups, draws=100) == {"mean": alone[0]}


def test_the_same_seed_gives_the_same_interval():
    """Intervals are reproducible."""
    first, second = (intervals.bootstrap_interval(intervals.mean(LABELS), 500, draws=100, seed=9) for _ in range(2))
    assert first == second


def test_groups_of_another_number_of_rows_are_an_error():
    """What cannot be resampled together raises and says what was expected."""
    with pytest.raises(ValueError, match="2 rows and groups of 1"):
        intervals.bootstrap_interval(intervals.mean([1, 2]), 2, groups=[1])
    with pytest.raises(ValueError, match="above 0"):
        intervals.bootstrap_interval(intervals.mean([]), 0)
