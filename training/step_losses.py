"""What choosing too small a tier costs, as a function of the threshold: probabilities and labels in, steps out. Pure.

The policy chooses the cheapest tier t with C_t = P(label <= t) >= λ. A row with label y is lost when some cheaper tier
already qualifies, and since C_t grows with t that is when C_{y-1} >= λ. So a row's loss is a step that falls as λ
rises, whatever the model; with severity weights or a soft label it is a sum of such steps.

Knows nothing of targets, bounds or methods.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from classifier.policy import ALWAYS_FRONTIER, cumulative_probabilities, float32_up
from classifier.types import TIERS

EVERY_MISS = (1.0, 1.0, 1.0)
"""Severity that makes the expected loss the probability of choosing too small a tier."""

_TIERS = len(TIERS)
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StepLosses:
    """The losses of n rows as functions of λ: row i loses the sum of its `steps` where its `scores` are >= λ.

    Attributes:
        scores: (n, 3) float64, C_0 to C_2 of each row.
        steps: (n, 3) float64, at least 0; a row's sum to at most 1.
        weights: (n,) float64 above 0, or None where every row counts 1.
    """

    scores: Array
    steps: Array
    weights: Array | None = None

    @property
    def n(self) -> int:
        """Rows."""
        return len(self.scores)

    @property
    def size(self) -> float:
        """Sum of the weights; the rows, where each counts 1."""
        return float(self.n if self.weights is None else self.weights.sum())

    @property
    def largest(self) -> float:
        """The largest weight."""
        return 1.0 if self.weights is None else float(self.weights.max())

    @property
    def binary(self) -> bool:
        """Whether each row's loss is 0 or 1 for every λ, so that their sum is binomial."""
        return self.weights is None and bool(((self.steps == 0) | (self.steps == 1)).all())

    def total(self, threshold: ArrayLike) -> Array:
        """Sum of the (weighted) losses at one λ or several: the shape of `threshold`, float64."""
        scores, tails = self._tails()
        return tails[np.searchsorted(scores, np.asarray(threshold, dtype=np.float64), side="left")]

    def risk(self, threshold: float) -> float:
        """Mean (weighted) loss at λ."""
        return float(self.total(threshold)) / self.size

    def smallest_threshold(self, allowed: float) -> float:
        """The smallest λ at which the losses sum to at most `allowed`; `ALWAYS_FRONTIER` where none up to 1 does."""
        if allowed < 0:
            return ALWAYS_FRONTIER
        scores, tails = self._tails()
        over = np.flatnonzero(tails[:-1] > allowed)
        if not over.size:
            return 0.0
        return just_above(float(scores[over[-1]]))

    def _tails(self) -> tuple[Array, Array]:
        """Scores with a step, ascending, and the sum of all steps from each on; one more 0 at the end."""
        steps = self.steps if self.weights is None else self.steps * self.weights[:, None]
        kept = steps > 0
        order = np.argsort(self.scores[kept], kind="stable")
        scores, values = self.scores[kept][order], steps[kept][order]
        return scores, np.append(np.cumsum(values[::-1])[::-1], 0.0)


def just_above(score: float) -> float:
    """The smallest λ above a score, so that its row is no longer lost; at most `ALWAYS_FRONTIER`."""
    above = float32_up(score)
    if above <= score:
        above = float(np.nextafter(np.float32(score), np.float32(2)))
    return min(above, ALWAYS_FRONTIER)


def soft(labels: ArrayLike) -> Array:
    """Labels as distributions: (n,) tier indices or (n, 4) rows that sum to 1 → (n, 4) float64.

    Raises:
        ValueError: neither.
    """
    values = np.asarray(labels)
    if values.ndim == 1 and values.dtype.kind in "iu" and ((values >= 0) & (values < _TIERS)).all():
        one_hot: Array = np.eye(_TIERS)[values]
        return one_hot
    rows: Array = values.astype(np.float64)
    if rows.ndim != 2 or rows.shape[1] != _TIERS or not np.isfinite(rows).all():
        raise ValueError(f"labels have shape {values.shape}, expected (n,) tier indices or (n, {_TIERS}) distributions")
    if (rows < 0).any() or not np.allclose(rows.sum(axis=1), 1.0, atol=1e-4):
        raise ValueError("soft labels have negative entries or rows that do not sum to 1")
    rows /= rows.sum(axis=1, keepdims=True)
    return rows


def routing_losses(
    probabilities: ArrayLike,
    labels: ArrayLike,
    *,
    severity: tuple[float, ...] = EVERY_MISS,
    weights: ArrayLike | None = None,
) -> StepLosses:
    """The loss of choosing below the label, for every λ at once.

    Args:
        probabilities: (n, 4) float32, calibrated.
        labels: (n,) tier indices, or (n, 4) distributions, whose expected loss it then is.
        severity: loss of choosing 1, 2, 3 tiers too low; non-decreasing, in (0, 1].
        weights: (n,) above 0, or None.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, or a severity that falls or exceeds 1.
    """
    rows, truth = np.asarray(probabilities, dtype=np.float32), soft(labels)
    if rows.shape != truth.shape or not len(rows):
        raise ValueError(f"probabilities have shape {rows.shape}, labels are for {len(truth)} rows")
    if not np.isfinite(rows).all():
        raise ValueError("probabilities hold values that are not finite; a threshold on them would promise nothing")
    if len(severity) != _TIERS - 1 or not 0 < severity[0] <= severity[1] <= severity[2] <= 1:
        raise ValueError(f"severity is {severity}, expected three non-decreasing numbers above 0 and at most 1")
    rises = np.diff([0.0, *severity])
    # Choosing t where the label is y costs severity[y - t - 1]; step t holds what C_t >= λ adds over C_{t+1} >= λ.
    steps = np.zeros((len(rows), _TIERS - 1))
    for t in range(_TIERS - 1):
        for y in range(t + 1, _TIERS):
            steps[:, t] += truth[:, y] * rises[y - t - 1]
    return StepLosses(
        cumulative_probabilities(rows)[:, :-1],
        steps,
        None if weights is None else np.asarray(weights, dtype=np.float64),
    )
