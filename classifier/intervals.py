"""Estimates with their intervals: of shares, and of any statistic by resampling rows or groups of them.

Pure numpy, shared by training, evaluation and reports. Knows nothing of tiers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


class Interval(NamedTuple):
    """An estimate with its interval, in the unit of the statistic."""

    estimate: float
    low: float
    high: float


def ranged(value: Sequence[float]) -> str:
    """An estimate and its interval as reports write them, of an `Interval` or of what JSON made of one.

    >>> ranged(Interval(0.5, 0.25, 0.75))
    '0.500 (0.250 to 0.750)'
    """
    return f"{value[0]:.3f} ({value[1]:.3f} to {value[2]:.3f})"


def wilson(mean: float, n: float, z: float = 1.959964) -> Interval:
    """Wilson's interval of a share, which stays within 0 and 1 and is not empty where none of n, or all, were seen.

    Where rows are weighted n may be an effective sample size (Wilson 1927, J. Am. Stat. Assoc. 22, 209-212).

    Args:
        mean: the share seen, 0 to 1.
        n: rows that it was seen on, above 0.
        z: quantile of the normal distribution: 1.959964 gives 95 %.

    >>> [round(x, 3) for x in wilson(0.0, 50)]
    [0.0, 0.0, 0.071]
    """
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return Interval(mean, max(0.0, centre - half), min(1.0, centre + half))


def wider(interval: Interval, n: float) -> Interval:
    """The interval of a share of n, widened to Wilson's where that is wider.

    >>> [round(x, 3) for x in wider(Interval(0.0, 0.0, 0.0), 50)]
    [0.0, 0.0, 0.071]
    """
    p = interval.estimate
    if not n or not np.isfinite(p):
        return Interval(p, float("nan"), float("nan"))
    _, low, high = wilson(p, n)
    return Interval(p, float(np.nanmin([interval.low, low])), float(np.nanmax([interval.high, high])))


def bootstrap_interval(
    statistic: Callable[..., float],
    *arrays: ArrayLike,
    groups: ArrayLike | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of `statistic(*arrays)`.

    Args:
        statistic: takes the arrays, resampled along their first axis, and returns a number.
        arrays: of equal length n.
        groups: (n,) any; whole groups are resampled (cluster bootstrap), as rows of one source are alike.
        draws: bootstrap samples.
        level: of the interval, in (0, 1).
        seed: of the resampling: the same call gives the same interval.

    Returns:
        The statistic of all rows and its interval; samples on which it is NaN are left out.

    Raises:
        ValueError: the arrays are empty, or of different lengths.

    >>> bootstrap_interval(np.mean, np.arange(101.0), draws=200).estimate
    50.0
    """
    one = partial(bootstrap_intervals, lambda *sample: [statistic(*sample)], *arrays)
    return one(groups=groups, draws=draws, level=level, seed=seed)[0]


def bootstrap_intervals(
    statistics: Callable[..., Sequence[float]],
    *arrays: ArrayLike,
    groups: ArrayLike | None = None,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> list[Interval]:
    """Intervals of several statistics of the same samples, each what `bootstrap_interval` would give of it alone.

    Takes what that takes; `statistics` returns as many numbers each time.
    """
    values = [np.asarray(a) for a in arrays]
    n = len(values[0])
    if not n or any(len(v) != n for v in values) or (groups is not None and len(np.asarray(groups)) != n):
        raise ValueError(f"arrays have lengths {[len(v) for v in values]}, expected one length above 0, groups too")
    rng = np.random.default_rng(seed)
    draw = partial(rng.integers, 0, n, n) if groups is None else _group_sampler(np.asarray(groups), rng)
    drawn = (draw() for _ in range(draws))
    samples = np.array([statistics(*(v[rows] for v in values)) for rows in drawn], dtype=np.float64)
    return [percentiles(float(one), column, level) for one, column in zip(statistics(*values), samples.T, strict=True)]


def bootstrap_each(
    statistics: Mapping[str, Callable[..., float]], *arrays: ArrayLike, **more: Any
) -> dict[str, Interval]:
    """Named statistics with their intervals, on the same samples; the arguments are those of `bootstrap_intervals`."""
    found = bootstrap_intervals(lambda *drawn: [of(*drawn) for of in statistics.values()], *arrays, **more)
    return dict(zip(statistics, found, strict=True))


def percentiles(estimate: float, samples: NDArray[np.float64], level: float) -> Interval:
    """An estimate with the middle `level` of its (draws,) bootstrap samples; those that are not finite are left out."""
    finite = samples[np.isfinite(samples)]
    if not finite.size:
        return Interval(estimate, float("nan"), float("nan"))
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high))


def _group_sampler(groups: NDArray[Any], rng: np.random.Generator) -> Callable[[], Indices]:
    """Draws as many groups as there are, with replacement, and returns the places of their rows."""
    _, inverse, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order, starts = np.argsort(inverse, kind="stable"), np.cumsum(sizes) - sizes

    def draw() -> Indices:
        # Each drawn group's rows are a run of `order`; a loop over thousands of them took 15 times as long.
        drawn = rng.integers(0, len(sizes), len(sizes))
        lengths = sizes[drawn]
        ends = np.cumsum(lengths)
        rows: Indices = order[np.arange(ends[-1]) + np.repeat(starts[drawn] - ends + lengths, lengths)]
        return rows

    return draw


def paired_bootstrap(
    statistic: Callable[..., float], first: ArrayLike, second: ArrayLike, *shared: ArrayLike, **more: Any
) -> Interval:
    """Interval of `statistic(first, *shared) - statistic(second, *shared)` on the same resampled rows.

    The other arguments are those of `bootstrap_interval`.
    Two models that are judged on the same rows share most of their luck; the paired interval leaves it out.
    """

    def difference(a: Array, b: Array, *rest: Array) -> float:
        return float(statistic(a, *rest)) - float(statistic(b, *rest))

    return bootstrap_interval(difference, first, second, *shared, **more)
