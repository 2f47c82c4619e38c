"""Estimates with their intervals: of shares, and of any statistic by resampling rows or groups of them.

Pure numpy, shared by training, evaluation and reports. Knows nothing of tiers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
"""A number of each of many samples, (draws,) float64, from how often each holds each row: (draws, n) float64."""
LEVEL = 0.95
"""Of every bootstrap interval: the middle 95 % of its samples."""
_MOST_CELLS = 2**18
"""Counts at a time: 2 MiB of them stay in a processor's cache."""


class Interval(NamedTuple):
    """An estimate with its interval, in the unit of the statistic."""

    estimate: float
    low: float
    high: float


def ranged(value: Sequence[float], digits: int = 3) -> str:
    """An estimate and its interval as reports write them, of an `Interval` or of what JSON made of one.

    >>> ranged(Interval(0.5, 0.25, 0.75)), ranged(Interval(0.5, 0.25, 0.75), 2)
    ('0.500 (0.250 to 0.750)', '0.50 (0.25 to 0.75)')
    """
    estimate, low, high = (f"{number:.{digits}f}" for number in value)
    return f"{estimate} ({low} to {high})"


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


def ratio(part: ArrayLike, whole: ArrayLike) -> Statistic:
    """The statistic that is the sum of (n,) parts over that of (n,) wholes, NaN where there is no whole."""
    parts, wholes = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)

    def shares(counts: Array) -> Array:
        total = counts @ wholes
        found: Array = np.divide(counts @ parts, total, out=np.full(len(counts), np.nan), where=total != 0)
        return found

    return shares


def mean(values: ArrayLike) -> Statistic:
    """The statistic that is the mean of (n,) values, or of each column of (n, k): (draws,) or (draws, k)."""
    rows = np.asarray(values, dtype=np.float64)
    return lambda counts: ((counts @ rows).T / counts.sum(axis=1)).T


def bootstrap_interval(
    statistic: Statistic,
    n: int,
    *,
    groups: ArrayLike | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a statistic of n rows.

    Args:
        statistic: is given counts, many draws at a time.
        n: rows, above 0.
        groups: (n,) any; whole groups are resampled (cluster bootstrap), as rows of one source are alike.
        draws: bootstrap samples.
        seed: of the resampling: the same call gives the same interval.

    Returns:
        The statistic of all rows, each counted once, and its interval; draws on which it is NaN are left out.

    Raises:
        ValueError: there are no rows, or groups of another number of rows.

    >>> bootstrap_interval(mean(np.arange(101.0)), 101, draws=200).estimate
    50.0
    """
    one = bootstrap_intervals(lambda counts: [statistic(counts)], n, groups=groups, draws=draws, seed=seed)
    return one[0]


def bootstrap_intervals(
    statistics: Callable[[Array], Sequence[Array]],
    n: int,
    *,
    groups: ArrayLike | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> list[Interval]:
    """Intervals of several statistics of the same samples, each what `bootstrap_interval` would give of it alone.

    Takes what that takes; `statistics` returns as many (draws,) arrays each time.
    """
    units = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if not n or len(units) != n:
        raise ValueError(f"there are {n} rows and groups of {len(units)}, expected one number above 0")
    estimates = statistics(np.ones((1, n)))
    samples = [statistics(counts) for counts in _drawn(units, draws, seed)]
    columns = [np.concatenate(column) for column in zip(*samples, strict=True)]
    return [percentiles(float(one[0]), column) for one, column in zip(estimates, columns, strict=True)]


def bootstrap_each(statistics: Mapping[str, Statistic], n: int, **more: Any) -> dict[str, Interval]:
    """Named statistics with their intervals, on the same samples; the arguments are those of `bootstrap_intervals`."""
    found = bootstrap_intervals(lambda counts: [of(counts) for of in statistics.values()], n, **more)
    return dict(zip(statistics, found, strict=True))


def percentiles(estimate: float, samples: NDArray[np.float64]) -> Interval:
    """An estimate with the middle 95 % of its (draws,) bootstrap samples; those that are not finite are left out."""
    finite = samples[np.isfinite(samples)]
    if not finite.size:
        return Interval(estimate, float("nan"), float("nan"))
    low, high = np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(estimate, float(low), float(high))


def _drawn(units: NDArray[np.int64], draws: int, seed: int) -> Iterator[Array]:
    """Draws as many units as there are, with replacement: the (some draws, n) counts of the rows of (n,) units."""
    size, rng, most = int(units.max()) + 1, np.random.default_rng(seed), max(1, _MOST_CELLS // len(units))
    for start in range(0, draws, most):
        some = min(most, draws - start)
        drawn = rng.integers(0, size, (some, size)) + size * np.arange(some)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=some * size).reshape(some, size)
        yield counts.astype(np.float64)[:, units]
