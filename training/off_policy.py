"""What another policy would have risked and cost, from the log of one that explored with known propensities.

Two estimates. *Self-normalised inverse propensity scoring* (Hájek): the outcomes of the rows on which the log happened
to take the candidate's choice, each weighted by 1 / (propensity * chance of being reported). *Doubly robust* (Dudík,
Langford and Li 2011): a model's guess for every row, corrected by the weighted residuals of those that were seen.

Where the log could never have taken the candidate's choice there is nothing to weigh. Those rows' share is stated, and
they are bounded by monotonicity: what was good enough at a tier is good enough above it, what was not is not below. So
an estimate is a number where support is whole, and an interval that no sample size would shrink where it is not. Where
too few rows are seen the estimates are refused, and the bounds alone are left.

Intervals: for the risk, Wilson's on the effective sample size (Korn and Graubard 1998 do so with exact limits), as a
plain bootstrap of a few heavy rows is too narrow; for means, the normal one. Both take Student's quantile for as many
rows as the variance rests on (Satterthwaite 1946): where little is explored, a handful of heavy ones among thousands.
Of the cost only what a failure adds is weighted: the price of the choice is known of every row. Bounds have the ends of
Wilson's intervals: of a few rows, none of which failed, a mean and its spread would say that none ever does.

Assumes that whether an outcome is reported depends on tier and caller alone (`training.feedback_set` says what else is
done about it). Knows nothing of text or models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from classifier.intervals import Interval, ranged, wilson
from classifier.types import TIERS
from training.calibration_report import PRICES
from training.decision_log import Log

FEWEST_EFFECTIVE = 50.0
"""Effective rows below which nothing is estimated."""
MOST_UNSUPPORTED = 0.5
"""Share of choices without support above which nothing is estimated: the bounds would be all there is to it."""
_LEAST_CHANCE = 0.02

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class OffPolicy:
    """What the log says about a candidate.

    Attributes:
        n: decisions.
        observed: of these, with an outcome of quality.
        matched: of these, where the log took the candidate's choice.
        effective: effective sample size of the weighted rows (Kish 1965).
        unsupported: share of the candidate's choices that the log could not have taken.
        risk_ips: P(the chosen tier is not good enough), self-normalised; None where refused. Where some choices have no
            support its `low` and `high` hold the bounds of those as well.
        risk_dr: the same, doubly robust.
        cost_ips: mean price of the chosen tier, and of the one that satisfied where it failed.
        cost_dr: the same, doubly robust.
        risk_bounds: (lowest, highest) by monotonicity alone, sampling error included.
        cost_bounds: the same of the cost.
        level: of the intervals.
        refused: why there is no estimate; "" where there is.
    """

    n: int
    observed: int
    matched: int
    effective: float
    unsupported: float
    risk_ips: Interval | None
    risk_dr: Interval | None
    cost_ips: Interval | None
    cost_dr: Interval | None
    risk_bounds: tuple[float, float]
    cost_bounds: tuple[float, float]
    level: float
    refused: str

    def as_json(self) -> dict[str, Any]:
        """For a receipt."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {k: v._asdict() if isinstance(v, Interval) else v for k, v in values.items()}

    def as_text(self) -> str:
        """A line for the reader."""
        support = f"{self.unsupported:.1%} of its choices have no support in the log"
        if self.refused or self.risk_dr is None or self.risk_ips is None:
            low, high = self.risk_bounds
            return f"off-policy: refused ({self.refused}); risk is within {low:.3f} to {high:.3f}; {support}"
        return (
            f"off-policy risk: doubly robust {ranged(self.risk_dr)}, weighted {ranged(self.risk_ips)}, "
            f"{self.effective:.0f} effective rows of {self.n}; {support}"
        )


def estimate(
    log: Log,
    candidate: ArrayLike,
    *,
    level: float = 0.95,
) -> OffPolicy:
    """Risk and cost of a candidate policy on the log's traffic.

    Args:
        log: of `training.feedback_set.build`, cut to the rows that the candidate was asked about (`Log.take`).
        candidate: (n,) index of the tier that it would choose; floors, ceilings and the log's routes are applied here.
        level: of the intervals.

    Raises:
        ValueError: shapes that do not fit the log, or an empty log.
    """
    chosen = np.asarray(candidate, dtype=np.int64)
    n = len(log)
    if not n or chosen.shape != (n,):
        raise ValueError(f"the candidate has {chosen.shape} choices for a log of {n} rows")
    at = np.arange(n)
    chosen = log.routed[at, np.clip(chosen, log.floors, log.ceilings)]
    model = np.asarray(log.probabilities, dtype=np.float64)  # need not be right, and was not fitted on the log
    price = np.asarray(PRICES, dtype=np.float64)
    propensity = log.propensities[at, chosen]
    supported = propensity > 0
    matched = supported & log.observed & (log.chosen == chosen)
    chance = np.maximum(log.reporting, _LEAST_CHANCE)
    weights = np.where(matched, 1.0 / (np.where(supported, propensity, 1.0) * chance), 0.0)
    effective = float(weights.sum() ** 2 / (weights**2).sum()) if matched.any() else 0.0
    unsupported = float(1 - supported.mean())
    # Whether the chosen tier would have failed, 0 or 1: at least and at most.
    failed_low, failed_high = ((edge > chosen).astype(np.float64) for edge in (log.at_least, log.at_most))
    rescue_low = failed_low * price[log.at_least]
    rescue_high = failed_high * price[log.at_most]
    cost_low, cost_high = price[chosen] + rescue_low, price[chosen] + rescue_high
    # A row's bounds are drawn whatever the log chose, but only where it was reported: the others are wide open.
    risk_bounds = _outer(failed_low, failed_high, level)
    least, most = _outer(rescue_low, rescue_high, level, most=float(price[-1]))
    mean, error = float(price[chosen].mean()), _z(level) * float(price[chosen].std()) / math.sqrt(n)
    cost_bounds = (mean - error + least, mean + error + most)
    refused = ""
    if not log.explored and (chosen != log.chosen).any():
        refused = "nothing was explored, so the log says nothing about other choices"
    elif effective < FEWEST_EFFECTIVE:
        refused = f"{effective:.0f} effective rows took the candidate's choice, {FEWEST_EFFECTIVE:.0f} are wanted"
    elif unsupported > MOST_UNSUPPORTED:
        refused = f"{unsupported:.0%} of the candidate's choices have no support in the log"
    found: dict[str, Interval | None] = dict.fromkeys(("risk_ips", "risk_dr", "cost_ips", "cost_dr"))
    if not refused:
        failed = (log.at_least > log.chosen).astype(np.float64)
        rescue = failed * price[log.at_most]
        above = model @ np.triu(np.ones((len(TIERS), len(TIERS))), 1).T
        rescued = (model * price) @ np.triu(np.ones((len(TIERS), len(TIERS))), 1).T
        share, rest = supported.mean(), ~supported
        for name, y, guess, known, low, high in (
            ("risk", failed, above[at, chosen], np.zeros(n), failed_low, failed_high),
            ("cost", rescue, rescued[at, chosen], price[chosen], cost_low, cost_high),
        ):
            bounds = (low[rest].sum() / n, high[rest].sum() / n)
            seen = (y[supported], known[supported], weights[supported], level)
            ips = _share(y, weights, effective, level) if name == "risk" else _mean(*seen)
            for kind, inside in (("ips", ips), ("dr", _mean(*seen, guess=guess[supported]))):
                found[f"{name}_{kind}"] = _joined(inside, float(share), bounds, binary=name == "risk")
    return OffPolicy(
        n=n,
        observed=int(log.observed.sum()),
        matched=int(matched.sum()),
        effective=effective,
        unsupported=unsupported,
        risk_bounds=risk_bounds,
        cost_bounds=cost_bounds,
        level=level,
        refused=refused,
        **found,
    )


def _share(failed: Array, weights: Array, effective: float, level: float) -> Interval:
    """The weighted share of failures: (n,) 0 or 1 each."""
    total = weights.sum()
    mean = float((weights * failed).sum() / total)
    variance = float((weights**2 * (failed - mean) ** 2).sum() / total**2)
    # The rows that a variance of this size amounts to, never more than Kish's count.
    rows = min(effective, mean * (1 - mean) / variance) if variance > 0 else effective
    return wilson(mean, rows, _t(weights, level))


def _mean(y: Array, known: Array, weights: Array, level: float, guess: Array | float = 0.0) -> Interval:
    """The plain mean of what is known or guessed of every row, and the weighted mean of `y` less the guess: (n,) each.

    Self-normalised, so that a misjudged chance of being reported cancels. The price of a choice is known whatever the
    log chose: weighted along with the rest, a few heavy frontier rows were most of the estimate.
    """
    scale = len(y) / weights.sum()
    correction = float((weights * (y - guess)).sum() / weights.sum())
    plain = known + guess
    estimate = float(plain.mean()) + correction
    influence = plain - plain.mean() + scale * weights * (y - guess - correction)
    half = _t(weights, level) * float(influence.std(ddof=1)) / math.sqrt(len(y))
    return Interval(estimate, estimate - half, estimate + half)


def _t(weights: Array, level: float) -> float:
    """Student's quantile for a variance that is a sum over rows in proportion to their squared weights."""
    squares = weights**2
    freedom = float(squares.sum() ** 2 / (squares**2).sum())
    return float(scipy.stats.t.ppf((1 + level) / 2, max(freedom - 1, 1)))


def _joined(inside: Interval, share: float, outside: tuple[float, float], *, binary: bool) -> Interval:
    """The supported part's interval with the bounds of the rest; the estimate takes their middle."""
    low, high = share * inside.low + outside[0], share * inside.high + outside[1]
    middle = share * inside.estimate + sum(outside) / 2
    if binary:
        low, high, middle = max(0.0, low), min(1.0, high), float(np.clip(middle, 0, 1))
    return Interval(middle, low, high)


def _outer(low: Array, high: Array, level: float, *, most: float = 1.0) -> tuple[float, float]:
    """The lower end of Wilson's interval of one mean and the upper end of the other's: (n,) from 0 to `most` each.

    Values between the two count as so much of a row; as they vary less than rows of 0 and `most`, the bounds are then
    wider than they need be. So they allow for the dear failures that are too rare to be among the rows.
    """
    below, above = (wilson(float(values.mean()) / most, len(values), _z(level)) for values in (low, high))
    return most * below.low, most * above.high


def _z(level: float) -> float:
    return float(scipy.stats.norm.ppf((1 + level) / 2))
