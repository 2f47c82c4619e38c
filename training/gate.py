"""Whether a candidate may replace the bundle that serves.

On each labelled set, by a paired bootstrap over groups: neither risk nor cost is worse by more than a stated margin
(the interval's upper end must stay below it), and on at least one set risk or cost is better (the interval lies below
0). Where the log was explored, the off-policy estimates must not contradict it. Too few rows, and the gate refuses: no
evidence of harm is not evidence of none.

*Repairs* is said apart: where the serving bundle breaks its promise on the recent set and the candidate keeps it, at
whatever price. Whether to take that is the caller's to decide.

Knows nothing of bundles, stores or text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier.metrics import Interval, bootstrap_interval, paired_bootstrap
from training.calibration_report import PRICES, under
from training.off_policy import OffPolicy

FEWEST_ROWS = 100
RISK_MARGIN = 0.02
COST_MARGIN = 0.05


@dataclass(frozen=True, slots=True)
class LabelledSet:
    """Rows that both bundles have answered, and neither was trained on.

    Attributes:
        name: such as golden or recent.
        labels: (n, 4) float64, P(label = tier), rows sum to 1; of one kind.
        current: (n,) int64, index of the tier that the serving bundle's default policy chooses.
        candidate: (n,) int64, the same of the candidate.
        groups: (n,) str; rows of one group are resampled together. None where each is its own.
        alpha: what the policy promises on this set: P(chosen < label) at most; 0 where it promises nothing here.
        risk_margin: by how much the risk may be worse.
        cost_margin: by how much the cost may be worse, as a share of the serving bundle's.
        fewest: rows below which the gate refuses.
    """

    name: str
    labels: NDArray[np.float64]
    current: NDArray[np.int64]
    candidate: NDArray[np.int64]
    groups: NDArray[np.str_] | None = None
    alpha: float = 0.0
    risk_margin: float = RISK_MARGIN
    cost_margin: float = COST_MARGIN
    fewest: int = FEWEST_ROWS

    def __post_init__(self) -> None:
        lengths = {len(self.labels), len(self.current), len(self.candidate)}
        if len(lengths) != 1:
            raise ValueError(f"set {self.name!r}: labels and choices have lengths {sorted(lengths)}, expected one")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says.

    Attributes:
        accepted: the candidate may be promoted.
        refused: the data were too few to tell; then it is not accepted.
        repairs: the serving bundle breaks its promise on a set that has one, and the candidate keeps it.
        reasons: a sentence each, for the reader.
        sets: by name: n, risk and cost of both with intervals, and their paired differences.
        off_policy: by "current" and "candidate", or empty.
    """

    accepted: bool
    refused: bool
    repairs: bool
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
    prices: Sequence[float] = PRICES,
    draws: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Verdict:
    """The gate.

    Args:
        sets: usually the golden set and recent held-out labels; at least one.
        off_policy: of the serving bundle and of the candidate on one log; None where nothing was explored.
        prices: of the tiers, cheapest first.
        draws: bootstrap samples.
        level: of the intervals.
        seed: of the resampling.

    Raises:
        ValueError: there is no set.
    """
    if not sets:
        raise ValueError("the gate was given no labelled set")
    reasons: list[str] = []
    found: dict[str, dict[str, Any]] = {}
    refused = worse = better = repairs = False
    for rows in sets:
        if len(rows.labels) < rows.fewest:
            refused = True
            reasons.append(f"{rows.name}: {len(rows.labels)} rows are too few to tell, {rows.fewest} are wanted")
            found[rows.name] = {"n": len(rows.labels)}
            continue
        measured = _measure(rows, np.asarray(prices, dtype=np.float64), draws, level, seed)
        found[rows.name] = {"n": len(rows.labels), **{name: value._asdict() for name, value in measured.items()}}
        risk, cost = measured["risk_difference"], measured["cost_difference"]
        cost_margin = rows.cost_margin * measured["current_cost"].estimate
        for what, difference, margin in (("risk", risk, rows.risk_margin), ("cost", cost, cost_margin)):
            text = f"{rows.name}: {what} {measured[f'current_{what}'].estimate:.3f} to "
            text += f"{measured[f'candidate_{what}'].estimate:.3f} ({difference.low:+.3f} to {difference.high:+.3f})"
            if difference.high < 0:
                better = True
                reasons.append(f"{text}, better")
            elif difference.high > margin:
                worse = True
                known = "worse" if difference.low > 0 else "not shown to be no worse"
                reasons.append(f"{text}, {known} by the margin of {margin:.3f}")
            else:
                reasons.append(f"{text}, no worse")
        if rows.alpha:
            repairs |= measured["current_risk"].low > rows.alpha >= measured["candidate_risk"].estimate
    blocked = False
    if off_policy is None:
        reasons.append("nothing was explored: judged on labelled sets alone")
    else:
        blocked = _contradicts(*off_policy, reasons)
    if not (refused or worse or blocked or better):
        reasons.append("nothing is better, so the serving bundle stays")
    return Verdict(
        accepted=better and not (refused or worse or blocked),
        refused=refused,
        repairs=repairs and not refused,
        reasons=reasons,
        sets=found,
        off_policy={}
        if off_policy is None
        else {name: one.as_json() for name, one in zip(("current", "candidate"), off_policy, strict=True)},
    )


def _measure(
    rows: LabelledSet, prices: NDArray[np.float64], draws: int, level: float, seed: int
) -> dict[str, Interval]:
    values = {
        "risk": (under(rows.current, rows.labels), under(rows.candidate, rows.labels)),
        "cost": (prices[rows.current], prices[rows.candidate]),
    }
    found = {}
    for what, (current, candidate) in values.items():
        for name, one in (("current", current), ("candidate", candidate)):
            found[f"{name}_{what}"] = bootstrap_interval(
                np.mean, one, groups=rows.groups, draws=draws, level=level, seed=seed
            )
        found[f"{what}_difference"] = paired_bootstrap(
            np.mean, candidate, current, groups=rows.groups, draws=draws, level=level, seed=seed
        )
    return found


def _contradicts(current: OffPolicy, candidate: OffPolicy, reasons: list[str]) -> bool:
    """Whether the log says that the candidate is worse; where it cannot tell, that is said and no obstacle."""
    reasons.append(candidate.as_text())
    if candidate.risk_dr is None or current.risk_dr is None:
        return False
    limit = current.risk_dr.high + RISK_MARGIN
    if candidate.risk_dr.low > limit:
        reasons.append(f"off-policy: its risk is above {limit:.3f}, what the serving bundle's may be with the margin")
        return True
    return False
