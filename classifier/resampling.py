"""Bootstrap over days or requests, of many sums at once: the intervals of a report. Pure numpy.

Whole days are resampled where there are at least `FEWEST_DAYS`, else requests, in blocks of random ones.

Knows nothing of what is summed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from classifier.intervals import Interval, percentiles

FEWEST_DAYS = 20
MOST_BLOCKS = 5000
DRAWS = 1000
DAY_SECONDS = 86_400
Array = NDArray[np.float64]


def units_of(n: int, times: Array | None = None) -> tuple[NDArray[np.int64], str]:
    """What the bootstrap resamples: a unit for each of n requests, (n,) int64 from 0, and what a unit is.

    Requests of one day are alike, so whole days are resampled where there are enough. Else requests are; from
    `MOST_BLOCKS` on in blocks of random ones, which gives sums the same variance and takes a fraction of the time.
    """
    if times is not None and np.isfinite(times).all():
        _, days = np.unique(times // DAY_SECONDS, return_inverse=True)
        if days.max() + 1 >= FEWEST_DAYS:
            return days.astype(np.int64), "days"
    blocks = min(n, MOST_BLOCKS)
    units = np.arange(n) % blocks
    np.random.default_rng(0).shuffle(units)
    return units.astype(np.int64), "requests"


class Resampled:
    """The same bootstrap samples for every number of a report, so that differences of them are paired.

    Args:
        units: (n,) int64 from `units_of`; whole units are resampled.
        draws: bootstrap samples.
    """

    def __init__(self, units: NDArray[np.int64], *, draws: int = DRAWS) -> None:
        self._units, self._count = units, int(units.max()) + 1
        drawn = np.random.default_rng(0).multinomial(self._count, np.full(self._count, 1 / self._count), size=draws)
        self._weights = np.concatenate([np.ones((1, self._count)), drawn.astype(np.float64)])

    def sums(self, values: Array) -> Array:
        """Sum of (n,) values over all requests, then over each bootstrap sample: (1 + draws,)."""
        summed: Array = self._weights @ np.bincount(self._units, weights=values, minlength=self._count)
        return summed

    def interval(self, samples: Array) -> Interval:
        """The first of (1 + draws,) numbers with the 95% interval that the others have; NaN among them are left out."""
        return percentiles(float(samples[0]), samples[1:])

    def share(self, part: Array, whole: Array) -> Array:
        """Parts of wholes, (1 + draws,) each; NaN where there is no whole."""
        shares: Array = np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
        return shares
