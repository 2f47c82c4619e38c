"""Whether a candidate may replace the bundle that serves.

On each labelled set, by paired intervals: neither risk nor cost is worse by more than a stated margin, and on at least
one of them one is better. *Not worse* is shown, not assumed: the interval's upper end must lie within the margin.
*Better* means that the whole interval lies below 0. Too few rows, and the gate refuses.

The interval of a risk is a score interval (Wilson's for one bundle, Tango's for the difference), which has its width
where few rows are missed, or decided otherwise, or none. Rows of one group share a fate, so it counts as many rows as
would vary alike were each its own (`effective_rows`): of ten groups that agree, ten. That of a cost is a bootstrap over
groups, which takes some dozens of them.

Where a set has a promise, a risk of at most α, risk counts from the promise on: a candidate whose risk is shown to be
within α and the margin is no worse, however safe the serving bundle was, and safer than promised is not better. Where a
share ε is explored, α - ε stands for α: the choices that are judged are those before exploration.

*Repairs* is said apart: the serving bundle's risk is above its α, the candidate's is not and is lower with 95 %
confidence, and every other set finds it no worse. Keeping a promise may cost more than breaking it, so the cost on that
set does not count; and one that is more likely broken than kept does not stand until that is certain. A target that
nothing proves, such as that of thresholds for estimated tier shares, counts like a promise and is not called one.

Where the log was explored, the off-policy estimate of the risk must not contradict the labels: a candidate that the log
finds riskier beyond chance and margin is refused whatever the labels say. That of the cost is told and decides nothing.

Knows nothing of bundles, stores or text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from classifier.intervals import LEVEL, Interval, bootstrap_intervals, mean, wilson
from classifier.types import TIERS
from training.calibration_report import PRICES, under
from training.off_policy import OffPolicy
from training.risk_control import binomial_p_value, unexplored
from training.step_losses import EVERY_MISS

FEWEST_ROWS = 60
"""Of a set; with fewer the gate refuses."""
RISK_MARGIN = 0.03
COST_MARGIN = 0.10
"""By how much the cost may be worse, as a share of the serving bundle's."""
_TINY = 1e-9


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """Rows that both bundles have answered, and that fitted neither the weights nor the choices of either.

    Attributes:
        name: such as golden or recent.
        labels: (n, 4) float64, P(label = tier), rows sum to 1; of one kind.
        current: (n,) int64, index of the tier that the serving bundle chooses.
        candidate: (n,) int64, the same of the candidate.
        groups: (n,) str; rows of one group may share a fate. None where each is its own.
        alpha: what the policy aims at on this set: a risk of at most so much, exploration included; 0 where it aims at
            nothing here.
        epsilon: the share that is explored. No choice here is, so that a risk of `limit` is what alpha leaves them.
        severity: loss of choosing 1, 2, 3 tiers too low, whose mean is the risk that alpha bounds.
        promised: that much is promised as well; else it is a target, such as that of an estimate.
        equal_cost: the choices were brought to one cost, so that risk alone is compared.
        traffic: what the serving bundle and the candidate choose on (m,) further requests of the same kind, labelled or
            not; cost is then compared on those.
        risk_margin: by how much the risk may be worse.

    Raises:
        ValueError: labels and choices are of different numbers.
    """

    name: str
    labels: NDArray[np.float64]
    current: NDArray[np.int64]
    candidate: NDArray[np.int64]
    groups: NDArray[np.str_] | None = None
    alpha: float = 0.0
    epsilon: float = 0.0
    severity: tuple[float, ...] = EVERY_MISS
    promised: bool = True
    equal_cost: bool = False
    traffic: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    risk_margin: float = RISK_MARGIN

    def __post_init__(self) -> None:
        lengths = {len(self.labels), len(self.current), len(self.candidate)}
        if len(lengths) != 1:
            raise ValueError(f"set {self.name!r}: labels and choices have lengths {sorted(lengths)}, expected one")

    @property
    def limit(self) -> float:
        """The risk that is aimed at before anything is explored, as thresholds are fitted; 0 where none is."""
        return max(0.0, unexplored(self.alpha, self.epsilon))

    @property
    def most_missed(self) -> float:
        """The share of misses that a risk of `limit` allows: each of them loses the least severity, or more."""
        return self.limit / self.severity[0]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the gate says.

    Attributes:
        accepted: neither risk nor cost is worse anywhere, and one of them is better somewhere.
        repairs: the serving bundle breaks a promise and the candidate keeps it, at whatever price.
        refused: the data were too few to tell; then it is neither accepted nor a repair.
        cost: mean price of the candidate's choices on the first set that compares costs; NaN where none does.
        reasons: a sentence each, for the reader.
        sets: by name: rows, risk and cost of both with intervals, and their paired differences.
        off_policy: by "current" and "candidate", or empty.
    """

    accepted: bool
    repairs: bool
    refused: bool
    cost: float
    reasons: list[str]
    sets: dict[str, dict[str, Any]]
    off_policy: dict[str, Any] = field(default_factory=dict)

    @property
    def why(self) -> str:
        """The reasons in a line."""
        return "; ".join(self.reasons)

    def as_json(self) -> dict[str, Any]:
        """For a receipt."""
        return asdict(self) | {"why": self.why}


def judge(
    sets: Sequence[LabelledSet],
    *,
    off_policy: tuple[OffPolicy, OffPolicy] | None = None,
    draws: int = 1000,
) -> Judgement:
    """The gate.

    Args:
        sets: usually recent held-out labels and the golden set; at least one.
        off_policy: of the serving bundle and of the candidate on one log; None where nothing was explored.
        draws: bootstrap samples of a cost.

    Raises:
        ValueError: there is no set.
    """
    if not sets:
        raise ValueError("the gate was given no labelled set")
    found = [_judge_set(rows, draws) for rows in sets]
    reasons = [reason for one in found for reason in one.reasons]
    blocked = False
    limit = max(rows.most_missed for rows in sets)
    if off_policy is None:
        reasons.append("nothing was explored: judged on labelled sets alone")
    else:
        blocked, told = _contradicts(*off_policy, limit)
        reasons += told
    refused = any(one.refused for one in found)
    stands = not refused and not blocked
    worse = any(one.worse for one in found)
    better = any(one.better for one in found)
    # A repair may cost more on the set whose promise it mends, and may be worse nowhere else.
    repairs = any(one.repairs for one in found) and not any(one.worse and not one.repairs for one in found)
    if stands and not (worse or better or repairs):
        reasons.append("nothing is better, so the serving bundle stays")
    costs = [one.cost for one in found if np.isfinite(one.cost)]
    return Judgement(
        accepted=stands and better and not worse,
        repairs=stands and repairs,
        refused=refused,
        cost=costs[0] if costs else float("nan"),
        reasons=reasons,
        sets={rows.name: one.numbers for rows, one in zip(sets, found, strict=True)},
        off_policy={}
        if off_policy is None
        else {name: one.as_json() for name, one in zip(("current", "candidate"), off_policy, strict=True)},
    )


@dataclass(slots=True)
class _Found:
    """What one set says."""

    numbers: dict[str, Any]
    reasons: list[str] = field(default_factory=list)
    refused: bool = False
    worse: bool = False
    better: bool = False
    repairs: bool = False
    cost: float = float("nan")


def _judge_set(rows: LabelledSet, draws: int) -> _Found:
    n = len(rows.labels)
    if n < FEWEST_ROWS:
        reason = f"{rows.name}: {n} rows are too few to tell, {FEWEST_ROWS} are wanted"
        return _Found({"n": n}, [reason], refused=True)
    losses = (_losses(rows, rows.current), _losses(rows, rows.candidate))
    z = float(scipy.stats.norm.ppf((1 + LEVEL) / 2))
    before, after = (wilson(float(lost.mean()), effective_rows(lost, rows.groups), z) for lost in losses)
    change = tango(*losses, z, groups=rows.groups)
    risk = (before, after, change)
    found = _Found({"n": n, "risk": _as_json(risk)})
    limit, aimed = rows.limit, rows.limit > 0
    within = aimed and after.high <= limit + rows.risk_margin
    found.better = change.high < 0 and not (aimed and before.estimate <= limit)
    found.worse = change.high > rows.risk_margin and not within
    told = f"{limit:g}" + (f" ({rows.alpha:g} with what is explored)" if rows.epsilon else "")
    extra = f", within {told} and the margin" if within else ""
    found.reasons.append(_told(rows.name, "risk", risk, rows.risk_margin, worse=found.worse) + extra)
    if aimed:
        p_values = (binomial_p_value(round(float(one.sum())), n, limit) for one in losses)
        found.numbers |= dict(zip(("p_value_current", "p_value_candidate"), p_values, strict=True))
        found.repairs = after.estimate <= limit < before.estimate and change.high < 0
        if found.repairs:
            kept = "keeps the promise" if rows.promised else "meets the target"
            missed = "breaks" if rows.promised else "misses"
            found.reasons.append(f"{rows.name}: it {kept} of {told} that the serving bundle {missed}")
    if rows.equal_cost:
        return found
    chosen = (rows.current, rows.candidate) if rows.traffic is None else rows.traffic
    groups = rows.groups if rows.traffic is None else None
    cost = _compare(*(np.asarray(PRICES)[one] for one in chosen), groups=groups, draws=draws)
    found.cost = cost[1].estimate
    found.numbers |= {"requests": len(chosen[0]), "cost": _as_json(cost)}
    margin = COST_MARGIN * cost[0].estimate
    dearer = cost[2].high > margin
    found.reasons.append(_told(rows.name, "cost", cost, margin, worse=dearer))
    found.worse |= dearer
    found.better |= cost[2].high < 0
    return found


def _losses(rows: LabelledSet, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
    """What each row's choice loses: (n,) in [0, 1]."""
    rises = np.diff([0.0, *rows.severity])
    further = [rise * under(np.minimum(chosen + d, len(TIERS) - 1), rows.labels) for d, rise in enumerate(rises)]
    return np.asarray(np.sum(further, axis=0))


def effective_rows(values: NDArray[np.float64], groups: NDArray[np.str_] | None) -> float:
    """How many rows, each its own, would tell the mean of (n,) values as surely as these do, whose groups share a fate.

    n over the design effect (Kish 1965), in which one more group of mean size counts, all of whose rows are 1 off the
    mean: where hardly a row is off, nothing shows that those of a group are not off together. So a group counts as one
    row where no row is off, and as what it shows where many are; all never as more than their rows.

    >>> effective_rows(np.zeros(60), np.arange(60) // 6)
    10.0
    """
    n = len(values)
    if groups is None:
        return float(n)
    _, units = np.unique(groups, return_inverse=True)
    off = values - values.mean()
    together, size = np.bincount(units, weights=off), n / (units.max() + 1)
    return float(n / max(1.0, (together @ together + size**2) / (off @ off + size)))


def tango(
    current: NDArray[np.float64],
    candidate: NDArray[np.float64],
    z: float,
    groups: NDArray[np.str_] | None = None,
) -> Interval:
    """Score interval of the difference of two shares on the same rows, candidate less current.

    It holds with few rows that differ, and with none (Tango 1998, Statistics in Medicine 17, 891-908). Losses between 0
    and 1 count as so many rows; as they vary less than rows of 0 and 1, the interval is then wider than it need be.

    Args:
        current: (n,) losses in [0, 1].
        candidate: (n,) losses of the same rows.
        z: quantile of the normal distribution, such as 1.96 for 95 %.
        groups: (n,) of rows that may share a fate; their differences count as `effective_rows` of them.

    >>> [round(x, 3) for x in tango(np.zeros(60), np.zeros(60), 1.96)]
    [0.0, -0.06, 0.06]
    """
    change = candidate - current
    n = effective_rows(change, groups)
    more, fewer = (float(np.maximum(one, 0).mean()) * n for one in (change, -change))
    return Interval(float(change.mean()), -_highest(fewer, more, n, z), _highest(more, fewer, n, z))


def _highest(more: float, fewer: float, n: float, z: float) -> float:
    """The largest difference that a two-sided score test does not reject: `more` rows rose of n, `fewer` fell."""

    def beyond(difference: float) -> float:
        b = (2 * n - more + fewer) * difference - more - fewer
        square = difference * (1 - difference)
        fell = (math.sqrt(max(b * b + 8 * n * fewer * square, 0.0)) - b) / (4 * n)
        return more - fewer - n * difference + z * math.sqrt(max(n * (2 * fell + square), 0.0))

    low, high = (more - fewer) / n + _TINY, 1.0 - _TINY  # at the ends the variance may be 0
    if low >= high or beyond(high) >= 0:
        return 1.0
    return float(scipy.optimize.brentq(beyond, low, high))


_Compared = tuple[Interval, Interval, Interval]
"""Of the serving bundle, of the candidate, and of the paired difference."""


def _compare(
    current: NDArray[np.float64], candidate: NDArray[np.float64], *, groups: NDArray[np.str_] | None, draws: int
) -> _Compared:
    both = mean(np.stack([current, candidate, candidate - current], axis=1))
    before, after, change = bootstrap_intervals(
        lambda counts: list(both(counts).T), len(current), groups=groups, draws=draws
    )
    return before, after, change


def _as_json(compared: _Compared) -> dict[str, Any]:
    return {k: v._asdict() for k, v in zip(("current", "candidate", "difference"), compared, strict=True)}


def _told(name: str, what: str, compared: _Compared, margin: float, *, worse: bool) -> str:
    before, after, change = compared
    text = f"{name}: {what} {before.estimate:.3f} to {after.estimate:.3f} ({change.low:+.3f} to {change.high:+.3f})"
    if worse:
        shown = "worse by more than" if change.low > margin else "not shown to be no worse by"
        known = "worse, and " if 0 < change.low <= margin else ""
        return f"{text}, {known}{shown} the margin of {margin:.3f}"
    return f"{text}, {'better' if change.high < 0 else 'no worse'}"


def _contradicts(current: OffPolicy, candidate: OffPolicy, limit: float) -> tuple[bool, list[str]]:
    """Whether the log says that the candidate is worse; where it cannot tell, that is said and no obstacle."""
    told = [candidate.as_text()]
    if candidate.risk_dr is None or current.risk_dr is None:
        return False, told
    most = max(current.risk_dr.high, limit) + RISK_MARGIN
    if candidate.risk_dr.low > most:
        told.append(f"off-policy: its risk is above {most:.3f}, what the serving bundle's may be with the margin")
        return True, told
    return False, told
