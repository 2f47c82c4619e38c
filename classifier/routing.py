"""The routing table: tier to model, price, context window and place, and which routes a request may take.

One table serves everybody: the service names the route in its answer, the client uses it where it falls back, gateways
rewrite the model by it, the report counts the cost with it. So the rule stands here once:

A request labelled `data=restricted` may only take routes with `on_premises = true`; any other request may take all. The
tier that the policy chose is kept where it has a route that the request may take. Else the cheapest tier above it that
has one is taken: what the policy promises still holds. Else the highest below it, and the promise is gone. Floor and
ceiling bound the search. Where nothing is left there is an error, never a route that is not allowed.

Pure but for `read_table`. Knows nothing of probabilities, thresholds, text or the wire.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from classifier.errors import NoAllowedRoute, SettingsError
from classifier.toml import read_toml
from classifier.types import TIERS, Decision, Reason, Request, Tier

DATA_LABEL = "data"
RESTRICTED = "restricted"
PRICES: Mapping[Tier, float] = MappingProxyType(dict(zip(TIERS, (0.10, 0.30, 2.40, 100.0), strict=True)))
"""Dollars per million tokens where the table names no price: what such models cost when the defaults were set."""
CHARS_PER_TOKEN = 3  # English prose has 4, code about 3; used only to prefer a wider route of the same tier
MAX_MODEL_CHARS = 256


@dataclass(frozen=True, slots=True)
class Route:
    """One way to serve a tier.

    Attributes:
        tier: the tier that it serves.
        model: name of the model as the gateway knows it.
        price_per_million_tokens: dollars, 0 or more.
        context_window: tokens that the model takes; 0 means not known, which is taken as wide enough.
        on_premises: whether the data stays on machines that the operator controls.
    """

    tier: Tier
    model: str
    price_per_million_tokens: float
    context_window: int = 0
    on_premises: bool = False


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """Routes by tier, each tier's in order of preference.

    Attributes:
        routes: for each tier its routes; a tier may have none.

    >>> table = RoutingTable({Tier.SIMPLE: (Route(Tier.SIMPLE, "small", 0.1, on_premises=True),),
    ...                       Tier.FRONTIER: (Route(Tier.FRONTIER, "large", 100.0),)})
    >>> table.choose(Tier.COMPLEX).model, table.choose(Tier.COMPLEX, restricted=True).model
    ('large', 'small')
    """

    routes: Mapping[Tier, tuple[Route, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "routes", MappingProxyType({tier: tuple(self.routes.get(tier, ())) for tier in TIERS}))

    def __reduce__(self) -> tuple[Any, ...]:
        return RoutingTable, (dict(self.routes),)  # a mapping proxy does not pickle

    def __iter__(self) -> Iterator[Route]:
        """Every route, cheapest tier first, in order of preference."""
        return (route for routes in self.routes.values() for route in routes)

    def route(self, tier: Tier, *, restricted: bool = False, chars: int = 0) -> Route | None:
        """The route of exactly that tier: the first that the request may take; None where it may take none.

        Args:
            tier: the tier to serve.
            restricted: only routes on premises are allowed.
            chars: length of the conversation. Of several allowed routes those whose context window is too small for
                it are passed over; where all are, the widest is taken.
        """
        allowed = [route for route in self.routes[tier] if route.on_premises or not restricted]
        if len(allowed) < 2:
            return allowed[0] if allowed else None
        tokens = chars // CHARS_PER_TOKEN
        wide = next((route for route in allowed if not 0 < route.context_window < tokens), None)
        return wide or max(allowed, key=lambda route: route.context_window)

    def choose(
        self,
        tier: Tier,
        *,
        restricted: bool = False,
        floor: Tier | None = None,
        ceiling: Tier | None = None,
        chars: int = 0,
    ) -> Route:
        """The route of a request whose tier is chosen: of the tier, else of the next above, else of the next below.

        Args:
            tier: what was chosen, within floor and ceiling.
            restricted: only routes on premises are allowed.
            floor: no route below it.
            ceiling: no route above it.
            chars: see `route`.

        Raises:
            NoAllowedRoute: no tier from floor to ceiling has a route that is allowed.
        """
        low, high = floor or TIERS[0], ceiling or TIERS[-1]
        above = (other for other in TIERS if max(tier, low) <= other <= high)
        below = (other for other in reversed(TIERS) if low <= other <= min(tier - 1, high))
        for candidates in (above, below):
            for other in candidates:
                found = self.route(other, restricted=restricted, chars=chars)
                if found is not None:
                    return found
        what = "on-premises route" if restricted else "route"
        bounds = f" from {low.label} to {high.label}" if floor or ceiling else ""
        advice = "add one, or widen floor and ceiling" if bounds else "add one"
        why = f"{DATA_LABEL}={RESTRICTED}: " if restricted else ""
        raise NoAllowedRoute(f"{why}the routing table has no {what}{bounds}; {advice}")

    def apply(self, decision: Decision, request: Request, reach: Mapping[Tier, float] | None = None) -> Decision:
        """The decision with its route; moved to another tier where the request may not take the tier's own.

        Args:
            decision: of the policy, or one to which this table was applied already.
            request: what was decided on: its labels, floor, ceiling and length.
            reach: where exploration may have led and how likely (`policy.exploration`), where it was on: several tiers
                may be moved to one, whose propensity is then their sum. None leaves the propensity as it is.

        Returns:
            The decision. Moved up it keeps its `guaranteed`, moved down it loses it.

        Raises:
            NoAllowedRoute: no tier from the request's floor to its ceiling has a route that is allowed.
        """
        restricted, chars = is_restricted(request.labels), request.characters

        def of(tier: Tier) -> Route:
            return self.choose(tier, restricted=restricted, floor=request.floor, ceiling=request.ceiling, chars=chars)

        found = of(decision.tier)
        changes: dict[str, Any] = {"route": found.model}
        if found.tier is not decision.tier:
            changes |= {"tier": found.tier, "reason": Reason.ROUTE}
            changes["guaranteed"] = decision.guaranteed and found.tier > decision.tier
        if reach is not None:
            changes["propensity"] = sum(share for tier, share in reach.items() if of(tier).tier is found.tier)
        return replace(decision, **changes)


def is_restricted(labels: object) -> bool:
    """Whether a request with these labels may only take routes on premises. Case and outer blanks do not matter.

    What has not the shape of labels, texts by their names, restricts where it holds the word at all: a slip of whoever
    wrote them opens no door.

    >>> is_restricted({"Data": "Restricted "}), is_restricted({"data": "public"}), is_restricted({})
    (True, False, False)
    >>> is_restricted("data=restricted"), is_restricted({"data": ["restricted"]}), is_restricted(["unrestricted"])
    (True, True, False)
    """
    if not isinstance(labels, Mapping):
        return _holds(labels)
    said = [value for key, value in labels.items() if _same(key, DATA_LABEL)]
    return any(_same(value, RESTRICTED) if isinstance(value, str) else _holds(value) for value in said)


def _same(text: object, word: str) -> bool:
    return str(text).strip().casefold() == word


def _holds(value: object) -> bool:
    return re.search(rf"\b{RESTRICTED}\b", str(value).casefold()) is not None


def read_table(path: str | Path) -> RoutingTable:
    """The table in a TOML file.

    Raises:
        SettingsError: it cannot be read, or is no routing table; the message names the entry.
    """
    return table_of(read_toml(path, "the routes"), str(path))


def table_of(data: Mapping[str, Any], where: str) -> RoutingTable:
    """The table that a TOML file's tables hold: `[routes.simple]` for one route, `[[routes.simple]]` for several.

    Args:
        data: the tables.
        where: the file's name in messages.

    Raises:
        SettingsError: it is no routing table; the message names the entry, what was found and what was expected.

    >>> table_of({"routes": {"simple": {"model": "small"}}}, "routes.toml").routes[Tier.SIMPLE]
    (Route(tier=<Tier.SIMPLE: 1>, model='small', price_per_million_tokens=0.1, context_window=0, on_premises=False),)
    """
    if unknown := sorted(set(data) - {"routes"}):
        raise SettingsError(f"{where}: unknown key {unknown[0]!r}; everything stands in [routes.TIER] tables")
    tables = data.get("routes")
    if not isinstance(tables, dict) or all(entries == [] for entries in tables.values()):
        raise SettingsError(f"{where}: has no routes; write a table such as [routes.simple] with a model")
    routes: dict[Tier, tuple[Route, ...]] = {}
    for name, entries in tables.items():
        try:
            tier = Tier.parse(name)
        except ValueError as error:
            raise SettingsError(f"{where}: [routes.{name}]: {error}") from None
        if tier in routes:
            raise SettingsError(f"{where}: [routes.{name}]: the tier {tier.label} stands there twice; merge the two")
        listed = entries if isinstance(entries, list) else [entries]
        routes[tier] = tuple(_route(tier, entry, f"{where}: routes.{name}[{i}]") for i, entry in enumerate(listed))
    table = RoutingTable(routes)
    # A gateway is told the model's name only, so one name must not mean both places.
    places = {(route.model, route.on_premises) for route in table}
    if both := sorted(model for model, on_premises in places if on_premises and (model, False) in places):
        raise SettingsError(f"{where}: model {both[0]!r} is on premises in one route and not in another; use two names")
    return table


MAX_PRICE = 1e9
"""Dollars a million tokens."""
_KEYS = tuple(f.name for f in fields(Route) if f.name != "tier")


def _route(tier: Tier, entry: Any, where: str) -> Route:
    if not isinstance(entry, dict):
        raise SettingsError(f"{where}: expected a table with {', '.join(_KEYS)}, found {entry!r}")
    if unknown := sorted(set(entry) - set(_KEYS)):
        raise SettingsError(f"{where}: unknown key {unknown[0]!r}; the keys are {', '.join(_KEYS)}")
    model = entry.get("model")
    if not isinstance(model, str) or not 0 < len(model) <= MAX_MODEL_CHARS or not model.isprintable():
        raise SettingsError(f"{where}: model: expected a name of 1 to {MAX_MODEL_CHARS} characters, found {model!r}")
    price = entry.get("price_per_million_tokens", PRICES[tier])
    if isinstance(price, bool) or not isinstance(price, (int, float)) or not 0 <= price <= MAX_PRICE:
        raise SettingsError(f"{where}: price_per_million_tokens: expected dollars, 0 or more, found {price!r}")
    window = entry.get("context_window", 0)
    if isinstance(window, bool) or not isinstance(window, int) or window < 0:
        raise SettingsError(f"{where}: context_window: expected a whole number of tokens, 0 or more, found {window!r}")
    on_premises = entry.get("on_premises", False)
    if not isinstance(on_premises, bool):
        raise SettingsError(f"{where}: on_premises: expected true or false, found {on_premises!r}")
    return Route(tier, model, float(price), window, on_premises)
