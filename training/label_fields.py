"""The label fields of a corpus line → what is known of its tier, checked once for every reader.

Knows nothing of requests or files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from classifier.types import TIERS, Tier

KINDS = RUBRIC, OUTCOME, UNLABELLED = "RUBRIC", "OUTCOME", "UNLABELLED"

Shares = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Stated:
    """What a line says of its label; the fields are those of `training.corpus.Row`."""

    probabilities: Shares | None
    at_least: Tier
    at_most: Tier
    label: str
    unserved: bool = False
    frontier_satisfied: bool = False


def stated_label(data: Mapping[str, Any]) -> Stated:
    """The label of a corpus line.

    Raises:
        ValueError: it cannot be meant.
    """
    kind = data.get("label")
    if kind not in (None, *KINDS):
        raise ValueError(f"label is {kind!r}, expected one of {', '.join(KINDS)}; a tier goes into 'tier'")
    unserved = data.get("unserved", False)
    if not isinstance(unserved, bool):
        raise ValueError(f"unserved is {unserved!r}, expected true or false")  # noqa: TRY004 - as its kin
    at_least = Tier.parse(str(data.get("at_least") or TIERS[0].label))
    at_most = Tier.parse(str(data.get("at_most") or TIERS[-1].label))
    if at_least > at_most:
        raise ValueError(f"at_least {at_least.label} is above at_most {at_most.label}")
    whole = (TIERS[0], TIERS[-1])
    if data.get("probabilities") is not None:
        return Stated(_soft(data["probabilities"]), *whole, kind or RUBRIC, unserved)
    if data.get("success_by_tier") is not None:
        success = success_rates(data["success_by_tier"])
        return Stated(_from_success(success), *whole, OUTCOME, unserved or not any(success.values()))
    if data.get("tier") is not None:
        tier = Tier.parse(str(data["tier"]))
        if not at_least <= tier <= at_most:
            raise ValueError(
                f"tier {tier.label} is not within at_least {at_least.label} and at_most {at_most.label}: leave out "
                "what is not known of the prompt"
            )
        return Stated(one_hot(tier), tier, tier, kind or RUBRIC, unserved)
    known = data.get("at_least") is not None or data.get("at_most") is not None
    satisfied = data.get("at_most") is not None and at_most is TIERS[-1] and not unserved
    return Stated(None, at_least, at_most, (kind or OUTCOME) if known else UNLABELLED, unserved, satisfied)


def success_rates(given: Any) -> dict[Tier, float]:
    """Share of tries that satisfied, by tier, of the tiers that were tried: at least one.

    Raises:
        ValueError: a tier is unknown, or none was tried, or a share is none.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"success_by_tier is a {type(given).__name__}, expected an object of shares by tier")  # noqa: TRY004
    found = {Tier.parse(str(name)): float(rate) for name, rate in given.items() if rate is not None}
    if not found:
        raise ValueError("success_by_tier has the share of no tier; leave it out where nothing was tried")
    for tier, rate in found.items():
        if not 0 <= rate <= 1:
            raise ValueError(f"success_by_tier: {tier.label} is {rate:g}, expected a share of tries, 0 to 1")
    return found


def one_hot(tier: Tier) -> Shares:
    """All of the probability on one tier."""
    return tuple(1.0 if t is tier else 0.0 for t in TIERS)  # type: ignore[return-value]


def _soft(values: Any) -> Shares:
    numbers = [float(v) for v in values]
    total = sum(numbers)
    if len(numbers) != len(TIERS) or not all(n >= 0 for n in numbers) or not abs(total - 1) <= 0.01:
        raise ValueError(f"probabilities {numbers} are not {len(TIERS)} shares that sum to 1")
    # What sums to 1 but for rounding stays as it is, so that it reads back as it was written.
    return tuple(numbers if math.isclose(total, 1, rel_tol=1e-12) else (n / total for n in numbers))  # type: ignore[return-value]


def _from_success(success: Mapping[Tier, float]) -> Shares:
    """P(cheapest satisfying tier = t) from success rates s(t), made non-decreasing; what no tier satisfies is frontier.

    A tier that nobody tried takes the rate of the one below it.
    """
    cumulative: list[float] = []
    best = 0.0
    for tier in TIERS[:-1]:
        best = max(best, success.get(tier, 0.0))
        cumulative.append(best)
    cumulative.append(1.0)
    return tuple(b - a for a, b in zip([0.0, *cumulative[:-1]], cumulative, strict=True))  # type: ignore[return-value]
