"""The log of decisions that evaluation needs: what was chosen, how likely each tier was, and what came of it.

It holds every decision, reported or not, but those of which a gateway served another tier: it broke the known
propensity. What an outcome says of the label is in `is_quality` and `interval`.

Theory of operation. A row tells the tier that it ended at, after its route, and how likely that was; where a routing
table leads several tiers to one, that is the sum over them. The routing table is not in the log, but its decisions are:
where a route moved any, the tiers that have routes are those at which some decision ended. With them the row's chance
is a linear function of the share that was explored; solved for that share, it gives the chances of all tiers.

Knows nothing of models, stores or training.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier.errors import InvalidRequest, SettingsError
from classifier.labels import outcome_interval
from classifier.policy import exploration
from classifier.routing import Route, RoutingTable, is_restricted
from classifier.types import TIERS, Request, Tier
from training.outcome_noise import reporting_chances

ExportRow = Mapping[str, Any]
AUDIT = ("sample", "audit")
"""Name and value of the label that marks audits, where nothing else is said."""
AUDIT_LABEL = "=".join(AUDIT)
_SLIVER = 1e-9  # what sums of shares are off by


@dataclass(frozen=True, slots=True)
class Log:
    """What evaluation needs of every decision, reported or not, oldest first. n rows.

    Attributes:
        requests: (n,) the request, or None where its text is not there.
        probabilities: (n, 4) float32 of the bundle that decided.
        chosen: (n,) int64, index of the tier that was decided.
        base: (n,) int64, index of the tier before exploration and route.
        routed: (n, 4) int64, index of the tier at which a choice of each tier within floor and ceiling ends.
        propensities: (n, 4) float64: P(the log would have had this tier), after its route; 0 is no support. Rows sum to
            1, and to less where no share of exploration explains the row: then only its own tier's is known.
        reporting: (n,) float64, P(an outcome came in), by tier and caller.
        observed: (n,) bool, an outcome of quality at the decided tier came in.
        at_least: (n,) int64, index of the lowest tier that the label may be; 0 where not observed.
        at_most: (n,) int64, index of the highest; 3 where not observed.
        floors: (n,) int64, index of the request's floor; 0 without.
        ceilings: (n,) int64, index of the request's ceiling; 3 without.
    """

    requests: tuple[Request | None, ...]
    probabilities: NDArray[np.float32]
    chosen: NDArray[np.int64]
    base: NDArray[np.int64]
    routed: NDArray[np.int64]
    propensities: NDArray[np.float64]
    reporting: NDArray[np.float64]
    observed: NDArray[np.bool_]
    at_least: NDArray[np.int64]
    at_most: NDArray[np.int64]
    floors: NDArray[np.int64]
    ceilings: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def explored(self) -> bool:
        """Whether any decision had a chance of another tier: else the log says nothing about other choices."""
        return bool((self.propensities.max(axis=1, initial=0.0) < 1.0).any()) if len(self) else False

    def take(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Log:
        """The given rows."""
        index = np.arange(len(self))[rows]
        values = {name: getattr(self, name)[index] for name in self.__slots__ if name != "requests"}
        return Log(requests=tuple(self.requests[i] for i in index), **values)


def is_quality(row: ExportRow) -> bool:
    """Whether an export row has an outcome that judges quality."""
    return row["outcome_id"] is not None and row["cause"] == "quality"


def parse_audit(text: str) -> tuple[str, str]:
    """Name and value of `NAME=VALUE`.

    Raises:
        SettingsError: it is not that.
    """
    name, found, value = text.partition("=")
    if not (name and found and value):
        raise SettingsError(f"--audit-label {text}: give NAME=VALUE, such as sample=audit")
    return name, value


def is_audit(row: ExportRow, audit: tuple[str, str]) -> bool:
    """Whether the gateway drew this request for an audit: by name and value of the label that marks them."""
    return bool((row["labels"] or {}).get(audit[0]) == audit[1])


def is_unserved(row: ExportRow) -> bool:
    """Whether the top tier was tried last and did not satisfy."""
    return bool(row["served_tier"] == TIERS[-1].label and row["verdict"] != "accepted")


def interval(row: ExportRow) -> tuple[Tier, Tier]:
    """Lowest and highest tier that the label may be, by an outcome of quality (docs/feedback.md)."""
    accepted = None if row["accepted_tier"] is None else Tier.parse(row["accepted_tier"])
    return outcome_interval(row["verdict"], Tier.parse(row["served_tier"]), accepted)


def satisfied_tier(row: ExportRow) -> str | None:
    """The cheapest tier that satisfied an audit; None where none did, or where quality was not judged."""
    if not is_quality(row) or row["served_tier"] != TIERS[0].label:
        return None
    if row["verdict"] == "accepted":
        return TIERS[0].label
    accepted: str | None = row["accepted_tier"]
    return accepted


def make_log(rows: Sequence[ExportRow]) -> tuple[Log, dict[str, tuple[int, float]]]:
    """The log of the decisions whose tier was served as decided.

    Args:
        rows: decisions with their effective outcomes, oldest first.

    Returns:
        The log, and by "tier/caller" the decisions and the share of them with an outcome of quality.
    """
    # A gateway that served another tier broke the known propensity.
    kept = [row for row in rows if row["served_tier"] in (None, row["tier"])]
    n = len(kept)
    observed = np.array([is_quality(row) for row in kept], dtype=bool)
    cells = [f"{row['tier']}/{row['caller'] or ''}" for row in kept]
    reporting = reporting_chances(cells, observed)
    intervals = [interval(row) if seen else (TIERS[0], TIERS[-1]) for row, seen in zip(kept, observed, strict=True)]
    routing = _routing(rows)
    bounds = [_bounds(row) for row in kept]
    ends = [routing(is_restricted(row["labels"] or {}), *pair) for row, pair in zip(kept, bounds, strict=True)]
    behaviour = [_behaviour(row, *pair, where) for row, pair, where in zip(kept, bounds, ends, strict=True)]
    table: dict[str, list[bool]] = defaultdict(list)
    for cell, seen in zip(cells, observed.tolist(), strict=True):
        table[cell].append(seen)
    return Log(
        requests=tuple(map(request_of, kept)),
        probabilities=np.array([row["probabilities"] for row in kept], dtype=np.float32).reshape(n, len(TIERS)),
        chosen=np.array([Tier.parse(row["tier"]).index for row in kept], dtype=np.int64),
        base=np.array([base.index for base, _ in behaviour], dtype=np.int64),
        routed=np.array([[tier.index for tier in where] for where in ends], dtype=np.int64).reshape(n, len(TIERS)),
        propensities=np.array([p for _, p in behaviour], dtype=np.float64).reshape(n, len(TIERS)),
        reporting=reporting,
        observed=observed,
        at_least=np.array([low.index for low, _ in intervals], dtype=np.int64),
        at_most=np.array([high.index for _, high in intervals], dtype=np.int64),
        floors=np.array([low.index for low, _ in bounds], dtype=np.int64),
        ceilings=np.array([high.index for _, high in bounds], dtype=np.int64),
    ), {name: (len(seen), float(np.mean(seen))) for name, seen in sorted(table.items())}


def _routing(rows: Sequence[ExportRow]) -> Callable[[bool, Tier, Tier], tuple[Tier, ...]]:
    """Where a choice of each tier ends, as far as the log shows it: by restricted or not, and bounds."""
    tables = {}
    for restricted in (False, True):
        mine = [row for row in rows if is_restricted(row["labels"] or {}) is restricted]
        moved = any(row["reason"] == "route" for row in mine)
        tiers = {Tier.parse(row["tier"]) for row in mine} if moved else TIERS
        tables[restricted] = RoutingTable({tier: (Route(tier, tier.label, 0.0),) for tier in tiers})

    @functools.cache
    def ends(restricted: bool, low: Tier, high: Tier) -> tuple[Tier, ...]:
        choices = [min(max(tier, low), high) for tier in TIERS]
        return tuple(tables[restricted].choose(tier, floor=low, ceiling=high).tier for tier in choices)

    return ends


def _behaviour(row: ExportRow, low: Tier, high: Tier, ends: Sequence[Tier]) -> tuple[Tier, list[float]]:
    """The tier before exploration and route, and the chance that the log would have had each tier after them.

    Args:
        row: the decision.
        low: its floor, or the lowest tier.
        high: its ceiling, or the highest tier.
        ends: where a choice of each tier ends.
    """
    tier, propensity = Tier.parse(row["tier"]), float(row["propensity"])
    base = min(max(Tier.parse(row["model_tier"]), low), high)
    if propensity > 1 - _SLIVER:  # nothing was explored, or whatever was ended here
        return base, [float(t is tier) for t in TIERS]
    stays, moves = [0.0] * len(TIERS), [0.0] * len(TIERS)  # P(it ends there) if nothing is explored, and if all is
    stays[ends[base.index].index] = 1.0
    for to, share in exploration(base, 1.0, ceiling=high).items():
        moves[ends[to.index].index] += share
    # Solves propensity = (1 - epsilon) * stays + epsilon * moves for this tier; the others follow.
    slope = moves[tier.index] - stays[tier.index]
    epsilon = (propensity - stays[tier.index]) / slope if slope else math.inf
    if not 0 <= epsilon <= 1 + _SLIVER:
        return base, [propensity * (t is tier) for t in TIERS]
    return base, [(1 - epsilon) * stay + epsilon * move for stay, move in zip(stays, moves, strict=True)]


def _bounds(row: ExportRow) -> tuple[Tier, Tier]:
    """The request's floor and ceiling, or the lowest and the highest tier."""
    low, high = row["floor"], row["ceiling"]
    return TIERS[0] if low is None else Tier.parse(low), TIERS[-1] if high is None else Tier.parse(high)


def request_of(row: ExportRow) -> Request | None:
    """The request of a row; None where its text is not there, or is no valid request any more."""
    if row["request"] is None:
        return None
    try:
        return Request.from_json(row["request"], labels=row["labels"] or {})
    except InvalidRequest:
        return None
