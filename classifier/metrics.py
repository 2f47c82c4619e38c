"""How good tiers and probabilities are: pure numpy, shared by training, evaluation and reports.

Knows nothing of bundles, policies or files. Tiers are column indices, int, 0 is the cheapest; probabilities are
(n, 4), rows sum to 1, cheapest first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from classifier.intervals import Statistic
from classifier.types import TIERS

_TIERS = len(TIERS)
_MOST_CELLS = 2**20
"""Drawn numbers at a time: 8 MiB of them, however many rows there are."""
Array = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BoundaryError:
    """Calibration error of one boundary, P(label <= tier), beside what chance alone would show.

    Attributes:
        tier: index of the tier t whose P(label <= t) is looked at, 0 to 2.
        error: debiased root mean square difference between predicted and observed share, in [-1, 1]; the debiasing
            subtracts the noise of the bins, so a negative value (the signed root) means: less than that noise.
        null_low: 2.5 % quantile of the same number for a perfectly calibrated model at this n.
        null_high: 97.5 % quantile of it.
    """

    tier: int
    error: float
    null_low: float
    null_high: float

    @property
    def within_null(self) -> bool:
        """Whether chance alone explains the error: it is not above the band."""
        return self.error <= self.null_high


def _tiers(values: ArrayLike, name: str) -> Indices:
    tiers = np.asarray(values)
    if tiers.ndim != 1 or not tiers.size:
        raise ValueError(f"{name} has shape {tiers.shape}, expected (n,) with n above 0")
    if tiers.dtype.kind not in "iu" or tiers.min() < 0 or tiers.max() >= _TIERS:
        raise ValueError(f"{name} holds values that are not tier indices 0 to {_TIERS - 1}")
    return tiers.astype(np.int64)


def _pair(predicted: ArrayLike, labels: ArrayLike) -> tuple[Indices, Indices]:
    p, y = _tiers(predicted, "predicted"), _tiers(labels, "labels")
    if p.shape != y.shape:
        raise ValueError(f"predicted has {p.size} rows, labels have {y.size}")
    return p, y


def _probabilities(values: ArrayLike, labels: Indices) -> Array:
    probabilities = np.asarray(values, dtype=np.float64)
    if probabilities.shape != (labels.size, _TIERS):
        raise ValueError(f"probabilities have shape {probabilities.shape}, expected ({labels.size}, {_TIERS})")
    if not np.isfinite(probabilities).all():
        raise ValueError("probabilities hold values that are not finite")
    return probabilities


def confusion(predicted: ArrayLike, labels: ArrayLike) -> Indices:
    """Counts of rows: (4, 4) int64, [label, predicted]."""
    p, y = _pair(predicted, labels)
    counts: Indices = np.bincount(y * _TIERS + p, minlength=_TIERS**2).reshape(_TIERS, _TIERS)
    return counts


def confusions(predicted: ArrayLike, labels: ArrayLike) -> Statistic:
    """The statistic that is `confusion`: (draws, 4, 4) float64, of each sample."""
    p, y = _pair(predicted, labels)
    cells = np.eye(_TIERS**2)[y * _TIERS + p]
    return lambda counts: (counts @ cells).reshape(-1, _TIERS, _TIERS)


def accuracy(predicted: ArrayLike, labels: ArrayLike) -> float:
    """Share of rows whose tier is the label's, 0 to 1.

    >>> accuracy([0, 1, 2, 3], [0, 1, 2, 2])
    0.75
    """
    p, y = _pair(predicted, labels)
    return float(np.mean(p == y))


def macro_f1s(predicted: ArrayLike, labels: ArrayLike) -> Statistic:
    """The statistic that is the mean over tiers of F1, 0 to 1; over those in the labels or predictions of a sample."""
    tables_of = confusions(predicted, labels)

    def means(counts: Array) -> Array:
        tables = tables_of(counts)
        sizes = tables.sum(axis=1) + tables.sum(axis=2)
        f1 = 2 * np.diagonal(tables, axis1=1, axis2=2) / np.maximum(sizes, 1)
        found: Array = f1.sum(axis=1) / (sizes > 0).sum(axis=1)
        return found

    return means


def quadratic_kappa(predicted: ArrayLike, labels: ArrayLike) -> float:
    """Cohen's kappa with quadratic weights, at most 1; NaN where both hold one and the same tier only.

    Two tiers off weighs four times one tier off; 0 is the agreement of chance with the same shares.
    """
    return float(quadratic_kappas(predicted, labels)(np.ones((1, len(np.asarray(labels)))))[0])


def quadratic_kappas(predicted: ArrayLike, labels: ArrayLike) -> Statistic:
    """The statistic that is `quadratic_kappa`."""
    tables_of = confusions(predicted, labels)
    distance = np.subtract.outer(np.arange(_TIERS), np.arange(_TIERS)).astype(np.float64) ** 2

    def kappas(counts: Array) -> Array:
        tables = tables_of(counts)
        chance = np.einsum("di,ij,dj->d", tables.sum(axis=2), distance, tables.sum(axis=1)) / tables.sum(axis=(1, 2))
        seen = (distance * tables).sum(axis=(1, 2))
        found: Array = 1 - np.divide(seen, chance, out=np.full(len(tables), np.nan), where=chance > 0)
        return found

    return kappas


def tier_shares(chosen: ArrayLike, weights: ArrayLike | None = None) -> tuple[float, ...]:
    """Share of rows, or of their (n,) weights, on each tier, cheapest first, summing to 1."""
    counts = np.bincount(_tiers(chosen, "chosen"), weights=weights, minlength=_TIERS)
    return tuple(float(x) for x in counts / counts.sum())


def ranked_probability_scores(probabilities: ArrayLike, labels: ArrayLike) -> Array:
    """Ranked probability score of each row: (n,) float64, 0 (certain and right) to 1 (certain, three tiers off).

    The mean over the three boundaries of (P(label <= t) - [label <= t])^2: proper for ordered tiers (Epstein 1969,
    Murphy 1971).

    >>> ranked_probability_scores([[1, 0, 0, 0], [1, 0, 0, 0]], [0, 3])
    array([0., 1.])
    """
    y = _tiers(labels, "labels")
    cumulative = np.cumsum(_probabilities(probabilities, y), axis=1)[:, :-1]
    below = y[:, None] <= np.arange(_TIERS - 1)
    scores: Array = np.mean((cumulative - below) ** 2, axis=1)
    return scores


def calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, *, draws: int = 400, seed: int = 0
) -> tuple[BoundaryError, ...]:
    """Debiased calibration error of each boundary with 15 bins of equal mass, beside its null band.

    Bins are fewer where there would be less than 10 rows in one, or where predictions are equal; beside a tie one may
    be left with fewer rows, whose noise is then in the error and in the band alike.

    The estimator is Kumar, Liang and Ma 2019 (arXiv:1909.10155), definition 5.2: the squared difference of a bin less
    the sampling variance of its observed share. The band holds the central 95 % of the same number over `draws` sets
    of labels drawn from the probabilities themselves, i.e. from a perfectly calibrated model.

    Args:
        probabilities: (n, 4).
        labels: (n,) tier indices.
        draws: sets of labels for the band.
        seed: of those draws.

    Returns:
        One for each boundary, cheapest first.

    Raises:
        ValueError: fewer than 20 rows: no two bins of 10.
    """
    y = _tiers(labels, "labels")
    cumulative = np.cumsum(_probabilities(probabilities, y), axis=1)[:, :-1]
    n = y.size
    if n < 20:
        raise ValueError(f"{n} rows are too few for a calibration error; it takes 20")
    bins = max(2, min(15, n // 10))
    edges = np.arange(bins) * n // bins
    orders = [np.argsort(cumulative[:, t], kind="stable") for t in range(_TIERS - 1)]
    ranks = [cumulative[order, t] for t, order in enumerate(orders)]
    # Equal predictions share a bin: which of them comes first would be an accident of the file's order.
    starts = [np.unique(np.searchsorted(ranked, ranked[edges], side="left")) for ranked in ranks]
    observed = [
        [np.add.reduceat((y <= t)[order][None], starts[t], axis=1, dtype=np.int64)] for t, order in enumerate(orders)
    ]
    rng, most = np.random.default_rng(seed), max(1, _MOST_CELLS // n)
    for start in range(0, draws, most):
        drawn = rng.random((min(most, draws - start), n))  # a label is at most t where its number is at most P(<= t)
        for t, order in enumerate(orders):
            observed[t].append(np.add.reduceat(drawn[:, order] <= ranks[t], starts[t], axis=1, dtype=np.int64))
    errors = []
    for t, ranked in enumerate(ranks):
        sizes = np.diff(np.append(starts[t], n))
        predicted = np.add.reduceat(ranked, starts[t]) / sizes
        shares = np.concatenate(observed[t]) / sizes
        squared = ((predicted - shares) ** 2 - shares * (1 - shares) / np.maximum(sizes - 1, 1)) @ sizes / n
        rooted = np.sign(squared) * np.sqrt(np.abs(squared))
        low, high = np.quantile(rooted[1:], [0.025, 0.975])
        errors.append(BoundaryError(t, float(rooted[0]), float(low), float(high)))
    return tuple(errors)


def auroc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Area under the ROC curve: P(a positive row scores above a negative one), ties counting a half.

    Args:
        scores: (n,) numbers.
        positive: (n,) bool.

    Returns:
        0 to 1; NaN where one class is absent.

    Raises:
        ValueError: other shapes, or a score that is NaN.

    >>> auroc([0.1, 0.5, 0.5, 0.9], [False, False, True, True])
    0.875
    """
    s, positives = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    if s.ndim != 1 or s.shape != positives.shape:
        raise ValueError(f"scores have shape {s.shape}, positive has {positives.shape}, expected the same (n,)")
    if np.isnan(s).any():
        raise ValueError("scores hold NaN, which has no rank")
    return float(ranked_areas(s, ~positives, positives)(np.ones((1, s.size)))[0])


def ranked_areas(scores: ArrayLike, across: ArrayLike, up: ArrayLike) -> Statistic:
    """The statistic that is the area under a curve through the rows, from the highest score to the lowest.

    Each row takes the curve `across` and `up` by so much; both are scaled to end at 1, and rows of equal score go in
    the mean of all their orders. Across by negatives and up by positives it is the ROC curve. It is NaN where one of
    the ends is not above 0.

    Args:
        scores: (n,) numbers, none of them NaN.
        across: (n,) numbers from 0.
        up: (n,) numbers.
    """
    s = np.asarray(scores, dtype=np.float64)
    order = np.argsort(-s, kind="stable")
    ranked = s[order]
    starts = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))
    steps = [np.asarray(by, dtype=np.float64)[order] for by in (across, up)]

    def areas(counts: Array) -> Array:
        drawn = counts[:, order]
        x, y = (np.add.reduceat(drawn * step, starts, axis=1) for step in steps)
        ends = np.where((x.sum(axis=1) > 0) & (y.sum(axis=1) > 0), x.sum(axis=1) * y.sum(axis=1), np.nan)
        found: Array = (x * (np.cumsum(y, axis=1) - y / 2)).sum(axis=1) / ends
        return found

    return areas
