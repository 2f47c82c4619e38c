"""The risk of strategies as the log's own labels and outcomes measure it, beside what is expected of them. Pure numpy.

Three numbers are told apart everywhere: what a policy *promises*, what the classifier's probabilities *expect* on this
traffic, and what labels on this traffic *measure*. Where a label is only known to lie between two tiers, a tier between
them may be too small or not: then the measured risk is a band from none of those to all of them.

Intervals are the wider of the bootstrap's and Wilson's, because none wrong of a few is no proof of none.

Knows nothing of files or pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classifier.intervals import Interval, wider
from classifier.resampling import Array, Resampled
from classifier.types import TIERS

FEWEST_LABELS = 50
"""A recommendation rests on measured risk from so many labels on."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What labels say of one strategy.

    Attributes:
        labels: requests with a label whose tier under the strategy is known.
        open: of those the ones of which their label does not tell whether the tier was too small.
        risk: share of them with too small a tier, no open one counted.
        risk_at_most: the same with every open one counted; equal to `risk` where there is none.
        frontier_labels: requests that are labelled frontier.
        frontier_misses: share of those that go below frontier.
    """

    labels: int
    open: int
    risk: Interval
    risk_at_most: Interval
    frontier_labels: int
    frontier_misses: Interval

    @property
    def band(self) -> Interval:
        """The risk without open labels in its middle, from the lowest that it may be to the highest."""
        return Interval(self.risk.estimate, self.risk.low, self.risk_at_most.high)


def measure(
    choices: Mapping[str, Array], at_least: NDArray[np.int64], at_most: NDArray[np.int64], units: NDArray[np.int64]
) -> dict[str, Measured]:
    """What labels say of each strategy.

    Args:
        choices: by strategy, (n, 4): the chance with which it takes each tier, rows sum to 1; NaN where unknown.
        at_least: (n,) index of the lowest tier that the label may be; -1 where there is no label.
        at_most: (n,) index of the highest.
        units: (n,) from `resampling.units_of`.
    """
    rows = np.flatnonzero(at_least >= 0)
    if not len(rows):
        return {}
    low, high = at_least[rows, None], at_most[rows, None]
    tiers = np.arange(len(TIERS))
    resampled = Resampled(np.unique(units[rows], return_inverse=True)[1].astype(np.int64))
    frontier = np.equal(at_least[rows], len(TIERS) - 1).astype(np.float64)
    found = {}
    for name, chosen in choices.items():
        taken = chosen[rows]
        known: Array = np.isfinite(taken.sum(axis=1)).astype(np.float64)
        taken = np.nan_to_num(taken)

        def share(part: Array, whole: Array) -> Interval:
            samples = resampled.share(resampled.sums(part * whole), resampled.sums(whole))
            return wider(resampled.interval(samples), float(whole.sum()))

        wrong, maybe = (taken * (tiers < low)).sum(axis=1), (taken * (tiers < high)).sum(axis=1)
        found[name] = Measured(
            labels=int(known.sum()),
            open=int((((maybe - wrong) * known) > 0).sum()),
            risk=share(wrong, known),
            risk_at_most=share(maybe, known),
            frontier_labels=int((frontier * known).sum()),
            frontier_misses=share(1 - taken[:, -1], frontier * known),
        )
    return found
