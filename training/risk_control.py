"""Thresholds with a finite-sample promise: losses and a target in, a threshold and its proof out. Pure.

Theory. A row's loss is a step that falls as λ rises (`training.step_losses`). λ lives on the finite grid of float32
values in [0, 1] and `ALWAYS_FRONTIER`, where the loss is 0. Every method below then says how large the sum of the
losses may be on n calibration rows (`allowed_loss`), and λ is the smallest grid value that stays within it:

    CONFORMAL_RISK_CONTROL  (sum + 1) / (n + 1) <= α: E[loss] <= α over calibration set and next request together
                            (Angelopoulos et al., arXiv:2208.02814).
    CLOPPER_PEARSON         losses 0 or 1: P(Binomial(n, α) <= sum) <= δ. Fixed-sequence testing from the strictest λ
                            down, stopping at the first failure (Learn then Test, arXiv:2110.01052), ends at this same
                            value, because the sum only grows on the way: P(risk > α) <= δ.
    HOEFFDING_BENTKUS       losses in [0, 1]: the same with the p-value min(Hoeffding, e * Bentkus) of that paper.
    LABEL_SHIFT             rows weighted by new / old tier shares w: (sum w*loss + max w) / (sum w + max w) <= α
                            (weighted conformal, Tibshirani et al., arXiv:1904.06019). The shares are estimated, so it
                            is an estimate under an assumption and no proof.

The grid is finite and fixed before the data, so neither right-continuity nor a union bound is needed.

Knows nothing of files, bundles, text or groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from classifier.policy import ALWAYS_FRONTIER
from training.step_losses import StepLosses, just_above, soft

CONFORMAL, BINOMIAL, BOUNDED, SHIFTED = (
    "CONFORMAL_RISK_CONTROL",
    "CLOPPER_PEARSON",
    "HOEFFDING_BENTKUS",
    "LABEL_SHIFT",
)
MOST_ROWS = 10**7
SIGNIFICANCE = 0.05
"""Of tests that a promise is kept, shared out over all that are made together."""


def unexplored(target: float, epsilon: float) -> float:
    """What a target leaves to the thresholds where a share `epsilon` of the requests is explored, lower on purpose.

    >>> 0.15 - 0.05, unexplored(0.15, 0.05)
    (0.09999999999999999, 0.1)
    """
    left = target - epsilon
    return (round(left, 12) or left) if epsilon else left


@dataclass(frozen=True, slots=True)
class ThresholdFit:
    """A fitted threshold and what is proved of it.

    Attributes:
        threshold: λ, a float32 value; `ALWAYS_FRONTIER` where infeasible.
        feasible: whether some request may go below frontier and the target be kept.
        method: how it is proved.
        n: rows.
        empirical_risk: mean loss on those rows at the threshold.
        bound: what the method proves of the risk at the threshold: that of as many losses as it allows. Where λ jumps
            over a tie fewer are seen, and their own bound would be too low, for the same rows chose that λ.
        rows_needed: rows with which it would be feasible at the loss of the strictest λ that sends a row below
            frontier; None where it is feasible already, or no number of such rows would do.
    """

    threshold: float
    feasible: bool
    method: str
    n: int
    empirical_risk: float
    bound: float
    rows_needed: int | None = None


def method_for(losses: StepLosses, delta: float) -> str:
    """The method that applies: by weights, by δ, and by whether the losses are binary.

    Raises:
        ValueError: weights and δ: no such proof exists with estimated weights.
    """
    if losses.weights is not None:
        if delta:
            raise ValueError("label-weighted rows carry no confidence statement; drop delta or the prior shift")
        return SHIFTED
    if not delta:
        return CONFORMAL
    return BINOMIAL if losses.binary else BOUNDED


def binomial_p_value(missed: int, n: int, alpha: float) -> float:
    """P-value of "the risk is at most alpha" when `missed` of `n` were missed: the exact one-sided test.

    >>> round(binomial_p_value(45, 300, 0.1), 3)
    0.004
    """
    return float(scipy.stats.binom.sf(missed - 1, n, alpha))


def hoeffding_bentkus(risk: float, n: float, alpha: float) -> float:
    """P-value of "the mean of n losses in [0, 1] is above alpha" when `risk` was seen (arXiv:2110.01052, prop. 1)."""
    r = min(risk, alpha)
    relative = (r * math.log(r / alpha) if r > 0 else 0.0) + (1 - r) * math.log((1 - r) / (1 - alpha))
    bentkus = math.e * float(scipy.stats.binom.cdf(math.ceil(n * risk), n, alpha))
    return min(math.exp(-n * relative), bentkus, 1.0)


def allowed_loss(size: float, alpha: float, delta: float, method: str, *, largest: float = 1.0) -> float:
    """The largest sum of losses with which `method` keeps `alpha`; below 0 where none does.

    Args:
        size: rows, or the sum of their weights.
        alpha: the target, in (0, 1).
        delta: allowed probability that the risk is above alpha; not used without confidence.
        method: one of the four.
        largest: weight.
    """
    if method in (CONFORMAL, SHIFTED):
        return alpha * (size + largest) - largest
    if method == BINOMIAL:
        return _most_failures(size, alpha, delta)
    # The p-value is the smaller of two, both rising in the risk: the larger of the two limits is the limit.
    return max(_hoeffding_limit(size, alpha, delta), float(_most_failures(size, alpha, delta / math.e)))


@lru_cache(maxsize=256)
def _most_failures(n: float, alpha: float, delta: float) -> int:
    """The largest k with P(Binomial(n, alpha) <= k) <= delta, or -1."""
    k = int(scipy.stats.binom.ppf(delta, n, alpha))
    while k >= 0 and scipy.stats.binom.cdf(k, n, alpha) > delta:
        k -= 1
    return k


@lru_cache(maxsize=256)
def _hoeffding_limit(n: float, alpha: float, delta: float) -> float:
    def excess(risk: float) -> float:
        relative = risk * math.log(risk / alpha) + (1 - risk) * math.log((1 - risk) / (1 - alpha))
        return n * relative + math.log(delta)

    smallest = 1e-12
    if excess(smallest) < 0:
        return -1.0
    return n * float(scipy.optimize.brentq(excess, smallest, alpha, xtol=1e-14)) * (1 - 1e-9)


def risk_bound(losses: StepLosses, threshold: float, delta: float, method: str) -> float:
    """What `method` proves of the risk at a threshold that other rows gave: of its mean, or with confidence 1 - delta.

    At most 1. Of the threshold that these rows gave it is the bound of a `ThresholdFit`.
    """
    return _bound(float(losses.total(threshold)), losses.size, delta, method, losses.largest)


def _bound(total: float, n: float, delta: float, method: str, largest: float = 1.0) -> float:
    """`risk_bound` where the losses of `n` rows, or of rows with weights of that sum, come to `total`."""
    if method in (CONFORMAL, SHIFTED):
        return min(1.0, (total + largest) / (n + largest))
    if method == BINOMIAL:
        return 1.0 if total >= n else float(scipy.stats.beta.ppf(1 - delta, total + 1, n - total))
    low, high = max(total / n, 1e-12), 1 - 1e-12
    if low >= high or hoeffding_bentkus(total / n, n, high) > delta:
        return 1.0
    for _ in range(30):  # bisection to 1e-9: the p-value has steps where Bentkus wins
        middle = (low + high) / 2
        low, high = (middle, high) if hoeffding_bentkus(total / n, n, middle) > delta else (low, middle)
    return high


def _most(allowed: float, *, whole: bool) -> float:
    """The most that losses come to where a sum of `allowed` may be: a whole number, where each is 0 or 1."""
    return float(math.floor(allowed)) if whole else allowed


def rows_needed(alpha: float, delta: float, method: str, risk: float = 0.0, *, largest: float = 1.0) -> int | None:
    """About how many rows `method` needs to keep `alpha` with an empirical risk of `risk`; None where it never can.

    With so many it can. A limit on a whole number of losses is not monotone in the rows: with some fewer it may, too,
    and with some more it may not (Clopper-Pearson, .10, δ = .05, a risk of .03: 61 rows do, 67 to 75 do not).
    `largest` is the largest weight of a row, whose mean is 1.
    """
    if risk >= alpha:
        return None

    def enough(n: int) -> bool:
        return allowed_loss(n, alpha, delta, method, largest=largest) >= risk * n

    high = 1
    while not enough(high):
        high *= 2
        if high > MOST_ROWS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def fit_threshold(losses: StepLosses, alpha: float, *, delta: float = 0.0) -> ThresholdFit:
    """The smallest λ that keeps the risk at `alpha`, with its proof.

    Args:
        losses: of rows exchangeable with the traffic to come.
        alpha: the target, in (0, 1).
        delta: 0 for a promise on the expectation; else the probability with which the risk may exceed alpha.

    Raises:
        ValueError: alpha or delta is out of range, or delta is given with weights.

    >>> from training.step_losses import routing_losses
    >>> rows = np.tile(np.float32([[0.9, 0.1, 0, 0], [0.2, 0.8, 0, 0]]), (50, 1))
    >>> fit = fit_threshold(routing_losses(rows, np.tile([0, 1], 50)), 0.1)
    >>> fit.feasible, round(fit.threshold, 3), fit.empirical_risk
    (True, 0.2, 0.0)
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is {alpha}, expected between 0 and 1")
    if not 0 <= delta < 1:
        raise ValueError(f"delta is {delta}, expected 0 up to 1")
    method = method_for(losses, delta)
    allowed = allowed_loss(losses.size, alpha, delta, method, largest=losses.largest)
    threshold = losses.smallest_threshold(allowed)
    # A λ that sends every calibration row to frontier is only always-frontier by another name.
    feasible = threshold <= 1 and bool((losses.scores[:, -1] >= threshold).any())
    if not feasible:
        threshold = ALWAYS_FRONTIER
    strictest = min(1.0, float(losses.scores[:, -1].max()))  # the last λ at which some row stays below frontier
    return ThresholdFit(
        threshold,
        feasible,
        method,
        losses.n,
        losses.risk(threshold),
        _bound(_most(allowed, whole=losses.binary) if feasible else 0.0, losses.size, delta, method, losses.largest),
        None
        if feasible
        else rows_needed(alpha, delta, method, losses.risk(strictest), largest=losses.largest * losses.n / losses.size),
    )


def thresholds_of_others(
    losses: StepLosses, parts: Sequence[NDArray[np.int64]], alpha: float, delta: float = 0.0
) -> list[float]:
    """For each part the threshold of `fit_threshold` on all rows but its own; the rows are sorted once for all.

    Args:
        losses: of n rows; each 0 or 1 whatever λ, one step a row at most, unweighted.
        parts: indices into the rows; not all rows are one part's.
        alpha: as for `fit_threshold`.
        delta: as for `fit_threshold`.
    """
    critical = np.where(losses.steps > 0, losses.scores, -np.inf).max(axis=1)  # the largest λ at which a row is lost
    order = np.argsort(-critical, kind="stable")
    place = np.empty(losses.n, dtype=np.int64)
    place[order] = np.arange(losses.n)
    below = np.argsort(-losses.scores[:, -1], kind="stable")
    found = []
    for own in parts:
        others = losses.n - len(own)
        allowed = allowed_loss(others, alpha, delta, method_for(losses, delta))
        threshold = ALWAYS_FRONTIER
        if allowed >= 0:
            most, mine = math.floor(allowed), np.sort(place[own])
            at = most + int(np.searchsorted(mine - np.arange(len(mine)), most, side="right"))
            worst = float(critical[order[at]]) if most < others else -math.inf
            threshold = just_above(worst) if worst > -math.inf else 0.0
        strictest = below[: len(own) + 1]
        last = strictest[~np.isin(strictest, own)][0]
        found.append(threshold if threshold <= min(1.0, float(losses.scores[last, -1])) else ALWAYS_FRONTIER)
    return found


def fit_top_tier(
    probabilities: ArrayLike, labels: ArrayLike, beta: float, *, delta: float = 0.0, highest: float = 1.0
) -> ThresholdFit:
    """The largest τ on P(frontier) that keeps P(chosen < frontier, given label frontier) at `beta`.

    Only τ is looked at: rows that λ sends to frontier anyway can only lower the loss.

    Args:
        probabilities: (n, 4) float32, calibrated; all rows, whatever their label.
        labels: as for `routing_losses`. A row counts with its P(label = frontier): weighted conformal with known
            weights at most 1, which for plain tiers is just the frontier rows.
        beta: the target, in (0, 1).
        delta: as for `fit_threshold`.
        highest: τ is not above it, as other rows need it lower.

    Returns:
        The fit over frontier rows, whose threshold is τ, a float32 value, or 0 (none) where infeasible: where τ would
        have to be 0.

    Raises:
        ValueError: beta or delta is out of range, or delta is given with soft labels.
    """
    if not 0 < beta < 1:
        raise ValueError(f"beta is {beta}, expected between 0 and 1")
    top, weights = np.asarray(probabilities, dtype=np.float32)[:, -1].astype(np.float64), soft(labels)[:, -1]
    order = np.argsort(top, kind="stable")
    order = order[weights[order] > 0]
    top, weights = top[order], weights[order]
    if delta and (weights < 1).any():
        raise ValueError("soft labels carry no binomial bound on the top tier; draw hard labels, or drop delta")
    method = BINOMIAL if delta else CONFORMAL
    size = float(weights.sum())
    allowed = allowed_loss(size, beta, delta, method)
    over = np.flatnonzero(np.cumsum(weights) > allowed)
    threshold = min(float(top[over[0]]), highest) if allowed >= 0 and over.size else 0.0
    risk = float(weights[top < threshold].sum()) / size if size else 0.0
    bound = _bound(_most(allowed, whole=bool((weights == 1).all())) if threshold else 0.0, size, delta, method)
    needed = rows_needed(beta, delta, method) if allowed < 0 else None
    return ThresholdFit(threshold, threshold > 0, method, round(size), risk, bound, needed)
