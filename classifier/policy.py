"""Probabilities, thresholds, floor, ceiling and exploration to a tier, a reason and a propensity.

Knows nothing of text, logits, ids or storage, and draws no random number: the draw comes as an argument.

The rule: the tier is the cheapest t with P(label <= t) >= threshold. P(label <= t) is the float64 running sum of the
float32 probabilities and the threshold is a float32, so an exact tie is a tie everywhere, and `choose` (one row, the
hot path) and `choose_many` (fitting, reports) agree on every row. The last tier always qualifies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from classifier.types import LABEL_KINDS, TIERS, Decision, Reason, Tier

METHODS = ("UNPROVEN", "CONFORMAL_RISK_CONTROL", "CLOPPER_PEARSON", "HOEFFDING_BENTKUS", "LABEL_SHIFT")
# The smallest float32 above 1: no probability reaches it, so every request goes to the top tier.
ALWAYS_FRONTIER = float(np.nextafter(np.float32(1), np.float32(2)))
# Where an explored request goes, relative to the tier it would have had: one lower mostly, so that it is learnt
# whether a cheaper tier would have done; two lower and one higher rarely, so that every near tier has support.
EXPLORATION_WEIGHTS: Mapping[int, float] = MappingProxyType({-1: 0.7, -2: 0.15, +1: 0.15})


def float32_up(value: float) -> float:
    """The smallest float32 that is not below `value`, as a float.

    >>> float32_up(0.9) >= 0.9, float32_up(0.5)
    (True, 0.5)
    """
    rounded = np.float32(value)
    if float(rounded) < value:
        rounded = np.nextafter(rounded, np.float32(np.inf))
    return float(rounded)


@dataclass(frozen=True, slots=True)
class Guarantee:
    """What a policy promises on traffic exchangeable with its calibration set. The proto's message, field by field.

    Attributes:
        alpha: P(chosen tier < label) is at most this, in (0, 1).
        delta: the promise holds with confidence 1 - delta; 0 means that it is on the expectation.
        method: one of `METHODS`.
        label: what a label is here, one of `LABEL_KINDS`.
        n: closed labels that the threshold was fitted on.
        empirical_risk: risk of the fitted threshold on those rows.
        bound: what the method proves; at most alpha where feasible.
        feasible: False where only always choosing the top tier would keep the promise.
        calibration_set_sha256: hash of the rows; "" where nothing was fitted.
        severity: loss of choosing 1, 2, 3 tiers too low, at most 1 each, where alpha bounds the expected loss; empty
            where every miss counts 1 and alpha bounds a probability.
    """

    alpha: float = 0.0
    delta: float = 0.0
    method: str = "UNPROVEN"
    label: str = "RUBRIC"
    n: int = 0
    empirical_risk: float = 0.0
    bound: float = 1.0
    feasible: bool = False
    calibration_set_sha256: str = ""
    severity: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, allowed in (("method", METHODS), ("label", LABEL_KINDS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(allowed)}")
        for name in ("alpha", "delta", "empirical_risk", "bound"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected 0 to 1")
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 0:
            raise ValueError(f"n is {self.n!r}, expected a count of rows")
        if not all(0 <= loss <= 1 for loss in self.severity):
            raise ValueError(f"severity is {self.severity!r}, expected losses of 0 to 1")
        if self.feasible and (self.method == "UNPROVEN" or not 0 < self.alpha < 1):
            raise ValueError("it is marked feasible, but names no method or no alpha between 0 and 1")
        object.__setattr__(self, "severity", tuple(float(x) for x in self.severity))

    @property
    def proved(self) -> bool:
        """Whether it may be promised: feasible, and by a proof. Label shift is an estimate under an assumption."""
        return self.feasible and self.method != "LABEL_SHIFT"

    @property
    def promised_risk(self) -> float | None:
        """What P(chosen tier < label) is promised to stay within; None where nothing is, or a weighted loss."""
        return self.alpha if self.proved and not self.severity else None


UNPROVEN = Guarantee()


@dataclass(frozen=True, slots=True)
class Policy:
    """A named rule that turns probabilities into a tier. Thresholds are rounded up to float32 when made.

    Attributes:
        name: as requests name it.
        threshold: lambda, in [0, 1], or `ALWAYS_FRONTIER`. For groups it is the fallback.
        top_tier_threshold: tau, in (0, 1]: frontier where P(frontier) >= tau; 0 means none.
        guarantee: of the threshold.
        top_tier_guarantee: of tau: P(chosen < frontier, given label frontier) is at most its alpha. None without one.
        tier_shares: expected share of each tier, cheapest first, or empty.
        group_by: name of the fact that groups requests, or empty.
        group_thresholds: lambda by the value of that fact.
        epsilon: share of eligible requests that are explored, in [0, 1).
        exempt_labels: `name=value`, or `name` for any value: requests that carry one are never explored.

    Raises:
        ValueError: a field is out of its range.
    """

    name: str
    threshold: float
    top_tier_threshold: float = 0.0
    guarantee: Guarantee = UNPROVEN
    top_tier_guarantee: Guarantee | None = None
    tier_shares: tuple[float, ...] = ()
    group_by: str = ""
    group_thresholds: Mapping[str, float] = field(default_factory=dict)
    epsilon: float = 0.0
    exempt_labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError("a policy has no name, or one that is no text")
        thresholds = {"threshold": self.threshold, "top_tier_threshold": self.top_tier_threshold}
        thresholds |= {f"group_thresholds[{group!r}]": value for group, value in self.group_thresholds.items()}
        for what, value in thresholds.items():
            # top_tier_threshold compares with a float32 probability by >=: rounding it up would be the unsafe way, so
            # a value between two float32 is rounded down there.
            if not 0 <= value <= (1 if what == "top_tier_threshold" else ALWAYS_FRONTIER):
                raise ValueError(f"policy {self.name!r}: {what} is {value!r}, expected 0 to 1")
        if not 0 <= self.epsilon < 1:
            raise ValueError(f"policy {self.name!r}: epsilon is {self.epsilon!r}, expected 0 up to 1")
        if self.tier_shares and (
            len(self.tier_shares) != len(TIERS)
            or min(self.tier_shares) < 0
            or not math.isclose(sum(self.tier_shares), 1.0, abs_tol=1e-3)
        ):
            raise ValueError(f"policy {self.name!r}: tier_shares are not {len(TIERS)} shares that sum to 1")
        if not isinstance(self.group_by, str):
            raise ValueError(f"policy {self.name!r}: group_by is {self.group_by!r}, expected a fact's name")  # noqa: TRY004
        exempt: object = self.exempt_labels
        if isinstance(exempt, str):  # its letters would be taken for labels
            raise ValueError(f"policy {self.name!r}: exempt_labels is {exempt!r}, expected a list of texts")  # noqa: TRY004
        if self.group_thresholds and not self.group_by:
            raise ValueError(f"policy {self.name!r}: it has group_thresholds, but group_by is empty")
        groups = {group: float32_up(value) for group, value in self.group_thresholds.items()}
        object.__setattr__(self, "threshold", float32_up(self.threshold))
        object.__setattr__(self, "top_tier_threshold", -float32_up(-self.top_tier_threshold) or 0.0)
        object.__setattr__(self, "group_thresholds", MappingProxyType(groups))
        object.__setattr__(self, "tier_shares", tuple(float(x) for x in self.tier_shares))
        object.__setattr__(self, "exempt_labels", tuple(str(x) for x in self.exempt_labels))

    def group_of(self, labels: Mapping[str, str], script: str) -> str | None:
        """The group of a request with these labels, whose text is of that script; None where the policy has no groups.

        >>> Policy("balanced", 0.9, group_by="tenant").group_of({"tenant": "acme"}, "latin")
        'acme'
        """
        if not self.group_by:
            return None
        return script if self.group_by == "script" else labels.get(self.group_by, "")

    def threshold_of(self, group: str | None) -> float:
        """The λ of a group; the fallback for one that was not calibrated, and for none."""
        return self.threshold if group is None else self.group_thresholds.get(group, self.threshold)

    def may_explore(self, labels: Mapping[str, str]) -> bool:
        """Whether a request with these labels may be explored at all.

        >>> Policy("balanced", 0.9, epsilon=0.1, exempt_labels=("tenant=acme",)).may_explore({"tenant": "acme"})
        False
        """
        if not self.epsilon:
            return False
        return not any(
            name in self.exempt_labels or f"{name}={value}" in self.exempt_labels for name, value in labels.items()
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # A mapping proxy does not pickle, and bulk labelling hands policies to other processes.
        values = (getattr(self, name) for name in self.__slots__)
        return Policy, tuple(dict(v) if isinstance(v, MappingProxyType) else v for v in values)


def promised_risks(policies: Mapping[str, Policy]) -> dict[str, float]:
    """By name what each policy promises that its risk stays within; one that promises no risk is left out."""
    risks = {name: policy.guarantee.promised_risk for name, policy in policies.items()}
    return {name: risk for name, risk in risks.items() if risk is not None}


def choose(probabilities: Sequence[float], threshold: float, top_tier_threshold: float = 0.0) -> Tier:
    """The tier of one row.

    Args:
        probabilities: 4 float32 values, cheapest first. NaN leads to the top tier, which is never too small.
        threshold: lambda, a float32 value.
        top_tier_threshold: tau, a float32 value; 0 means none.

    >>> choose([0.5, 0.25, 0.125, 0.125], 0.75), choose([0.5, 0.25, 0.125, 0.125], 0.75, 0.125)
    (<Tier.STANDARD: 2>, <Tier.FRONTIER: 4>)
    """
    if threshold > 1.0 or probabilities[-1] >= top_tier_threshold > 0.0:
        return Tier.FRONTIER
    cumulative = 0.0
    for tier, probability in zip(TIERS, probabilities, strict=True):
        cumulative += float(probability)
        if cumulative >= threshold:
            return tier
    return Tier.FRONTIER


def cumulative_probabilities(probabilities: ArrayLike) -> NDArray[np.float64]:
    """P(label <= t) as the rule sees it: (n, 4) float32 in, (n, 4) float64 out."""
    return np.add.accumulate(np.asarray(probabilities, dtype=np.float32).astype(np.float64), axis=-1)


def choose_many(
    probabilities: ArrayLike, threshold: ArrayLike, top_tier_threshold: ArrayLike = 0.0
) -> NDArray[np.int64]:
    """`choose` for many rows.

    Args:
        probabilities: (n, 4) float32, cheapest first.
        threshold: lambda, one for all rows or (n,).
        top_tier_threshold: tau, one for all rows or (n,); 0 means none.

    Returns:
        (n,) int64, index of the chosen tier, 0 is the cheapest.
    """
    rows = np.asarray(probabilities, dtype=np.float32)
    limit = np.broadcast_to(np.asarray(threshold, dtype=np.float64), rows.shape[:1])
    tau = np.asarray(top_tier_threshold, dtype=np.float64)
    qualifies = cumulative_probabilities(rows) >= limit[:, None]
    qualifies[:, -1] = True
    chosen = np.argmax(qualifies, axis=1)
    top = (limit > 1.0) | ((tau > 0.0) & (rows[:, -1].astype(np.float64) >= tau))
    return np.where(top, len(TIERS) - 1, chosen)


def exploration(tier: Tier, epsilon: float, *, ceiling: Tier | None = None) -> dict[Tier, float]:
    """Where exploration may lead from `tier`, and how likely: probabilities over tiers that sum to 1.

    With probability `epsilon` the request goes to another tier, within the ceiling, in the proportions of
    `EXPLORATION_WEIGHTS` over those that exist.

    >>> exploration(Tier.STANDARD, 0.1)[Tier.STANDARD]
    0.9
    """
    most = ceiling or TIERS[-1]
    moves = {Tier(tier + step): weight for step, weight in EXPLORATION_WEIGHTS.items() if 0 < tier + step <= most}
    if not moves or epsilon <= 0:
        return {tier: 1.0}
    total = sum(moves.values())
    return {tier: 1.0 - epsilon} | {to: epsilon * weight / total for to, weight in moves.items()}


def decide(
    probabilities: Sequence[float],
    policy: Policy,
    *,
    floor: Tier | None = None,
    ceiling: Tier | None = None,
    group: str | None = None,
    draw: float | None = None,
    golden_ok: bool = True,
    **fields: Any,
) -> Decision:
    """The tier of one request under a policy.

    Args:
        probabilities: 4 float32 values, cheapest first.
        policy: what to apply.
        floor: the answer is never below it; a request with a floor is never explored.
        ceiling: the answer is never above it; an answer that it lowered is not guaranteed.
        group: value of the fact named by `policy.group_by`; an unseen one gets the fallback threshold, unguaranteed.
        draw: uniform in [0, 1), deciding exploration; None means never explore.
        golden_ok: whether the bundle's golden inputs replayed here as they did where it was calibrated.
        fields: more fields of `Decision`, of which a policy knows nothing: the bundle, and what the model read.

    Returns:
        The decision. `guaranteed` is about the policy's promise on traffic as a whole, not about this one answer: the
        promise counts exploration in, so an explored answer keeps it.
    """
    threshold = policy.threshold_of(group)
    known = not policy.group_by or group in policy.group_thresholds
    model_tier = choose(probabilities, threshold, policy.top_tier_threshold)
    tier, reason = model_tier, Reason.MODEL
    if policy.top_tier_threshold and choose(probabilities, threshold) is not model_tier:
        reason = Reason.TOP_TIER
    guaranteed = golden_ok and known and policy.guarantee.proved and threshold <= 1.0
    if floor is not None and tier < floor:
        tier, reason = floor, Reason.FLOOR
    if ceiling is not None and tier > ceiling:
        tier, reason, guaranteed = ceiling, Reason.CEILING, False
    propensity = 1.0
    if policy.epsilon > 0 and draw is not None and floor is None:
        reach = exploration(tier, policy.epsilon, ceiling=ceiling)
        to = _drawn(reach, tier, policy.epsilon, draw)
        propensity = reach[to]
        if to is not tier:
            tier, reason = to, Reason.EXPLORED
    return Decision(
        tier, tuple(probabilities), model_tier, reason, policy.name, threshold, guaranteed, propensity, **fields
    )


def _drawn(reach: Mapping[Tier, float], tier: Tier, epsilon: float, draw: float) -> Tier:
    if draw >= epsilon or len(reach) == 1:
        return tier
    passed = 0.0
    others = [to for to in reach if to is not tier]
    for to in others:
        passed += reach[to]
        if draw < passed:
            return to
    return others[-1]  # the weights' rounding left a sliver below epsilon
