"""What a log itself says of the tier that a request needed: a label, or an outcome, as an interval of tiers.

A label names the tier, or the lowest and highest that it may be. An outcome of quality at tier t says label <= t where
it was accepted, label > t where it was not, and no more than the tier that was accepted in the end. One at the top tier
says nothing: accepted there, any might have done; rejected, none does. Pure.

Knows nothing of files, of who said it, or how often it is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from classifier.types import TIERS, Tier

LABELS = ("label", "at_least", "at_most")
OUTCOMES = ("verdict", "cause", "served_tier", "accepted_tier")
COLUMN_ROLES = (*LABELS, *OUTCOMES)
"""Roles of columns that `interval_of` looks at."""
TierInterval = tuple[Tier, Tier]


def outcome_interval(verdict: str, served: Tier, accepted: Tier | None) -> TierInterval:
    """The lowest and the highest tier that the label may be, after an outcome of quality.

    Rejected at the top tier is the top tier: nothing better is there.

    >>> [t.label for t in outcome_interval("escalated", Tier.SIMPLE, Tier.COMPLEX)]
    ['standard', 'complex']
    """
    if verdict == "accepted":
        return TIERS[0], served
    if served is TIERS[-1]:
        return TIERS[-1], TIERS[-1]
    return Tier(served + 1), TIERS[-1] if accepted is None else max(accepted, Tier(served + 1))


def interval_of(values: Mapping[str, Any]) -> TierInterval | None:
    """What a row says of the label; None where it says nothing, or that no tier satisfied.

    Args:
        values: of the row, by role. CSV has no null, so an empty text is none.

    >>> interval_of({"label": "complex"}), interval_of({"verdict": "accepted", "served_tier": "gold"})
    ((<Tier.COMPLEX: 3>, <Tier.COMPLEX: 3>), None)
    """
    values = {role: value for role, value in values.items() if value != ""}
    label = tier_of(values.get("label"))
    if label is not None:
        return label, label
    low, high = tier_of(values.get("at_least")), tier_of(values.get("at_most"))
    if low is None and high is None:
        served, verdict = tier_of(values.get("served_tier")), values.get("verdict")
        if served is None or verdict not in ("accepted", "rejected", "escalated"):
            return None
        if values.get("cause") not in (None, "quality"):
            return None
        if served is TIERS[-1] and verdict != "accepted":
            return None  # else, where all is served by the top tier, rejections alone would have labels
        low, high = outcome_interval(str(verdict), served, tier_of(values.get("accepted_tier")))
    low, high = low or TIERS[0], high or TIERS[-1]
    return None if low > high or (low, high) == (TIERS[0], TIERS[-1]) else (low, high)


def are_tiers(values: Iterable[Any]) -> bool:
    """Whether all of a column's values that are there are names of tiers, and some is.

    >>> are_tiers(["simple", None]), are_tiers(["simple", "gold"]), are_tiers([None])
    (True, False, False)
    """
    there = [value for value in values if value is not None and value != ""]
    return bool(there) and all(tier_of(value) is not None for value in there)


def tier_of(value: Any) -> Tier | None:
    """The tier that a value of a row names; None where it names none."""
    try:
        return Tier.parse(value) if isinstance(value, str) else None
    except ValueError:
        return None
