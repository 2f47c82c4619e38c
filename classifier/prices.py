"""What tokens cost: by tier, and by the model that serves today.

A TOML file replaces any of it:

    [tiers]                                      # dollars a million tokens: one price, or one for each way
    simple = 0.10
    complex = { input = 2.00, output = 8.00 }

    [models]                                     # today's models, as the log names them
    "big-model" = { input = 5.0, output = 20.0, tier = "frontier" }
    "small-model" = 0.2

A routing table is taken as well: it has the prices of its models. Without a file tiers cost what the table's defaults
say. Knows nothing of requests or logs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier.errors import SettingsError
from classifier.routing import MAX_PRICE, PRICES, RoutingTable, table_of
from classifier.toml import read_toml
from classifier.types import TIERS, Tier

MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs.

    Attributes:
        input: dollars a million tokens read.
        output: dollars a million tokens written.
        tier: the tier that the model is of, where it is known.
    """

    input: float
    output: float
    tier: Tier | None = None

    def cost(self, input_tokens: NDArray[np.float64], output_tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        """Dollars of each request, (n,) float64.

        >>> Price(1.0, 2.0).cost(np.array([1e6]), np.array([1e6]))
        array([3.])
        """
        return (self.input * input_tokens + self.output * output_tokens) / MILLION


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices by tier and by today's model.

    Attributes:
        tiers: one for every tier.
        models: by the name that the log uses.
        source: where they are from, for the reader.
        defaults: the tiers among them that cost the default.
    """

    tiers: Mapping[Tier, Price] = field(
        default_factory=lambda: MappingProxyType({tier: _flat(price) for tier, price in PRICES.items()})
    )
    models: Mapping[str, Price] = field(default_factory=lambda: MappingProxyType({}))
    source: str = "the defaults"
    defaults: Sequence[Tier] = TIERS

    def by_tier(self, input_tokens: NDArray[np.float64], output_tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        """What each request would cost on each tier: (n, 4) float64 dollars, cheapest tier first."""
        return np.stack([self.tiers[tier].cost(input_tokens, output_tokens) for tier in TIERS], axis=1)


def read_prices(path: str | Path) -> Prices:
    """The prices in a TOML file, which may be a routing table; tiers that a list of prices leaves out keep defaults.

    Raises:
        SettingsError: it cannot be read, or an entry is not a price; the message names it.
    """
    data = read_toml(path, "the prices, or of the routes")
    return prices_of_table(table_of(data, str(path)), str(path)) if "routes" in data else _prices_of(data, str(path))


def prices_of_table(table: RoutingTable, source: str) -> Prices:
    """What a routing table says that tiers and models cost; a tier costs what the route of its free requests costs.

    A model that serves several tiers counts as of the cheapest of them.
    """
    tiers = {tier: _flat(table.choose(tier).price_per_million_tokens) for tier in TIERS}
    models: dict[str, Price] = {}
    for route in table:
        models.setdefault(route.model, _flat(route.price_per_million_tokens, route.tier))
    return Prices(MappingProxyType(tiers), MappingProxyType(models), source, ())


def _flat(price: float, tier: Tier | None = None) -> Price:
    return Price(price, price, tier)


def _prices_of(data: Mapping[str, Any], where: str) -> Prices:
    if unknown := sorted(set(data) - {"tiers", "models"}):
        raise SettingsError(f"{where}: unknown key {unknown[0]!r}; prices stand in [tiers] and [models]")
    tiers: dict[Tier, Price] = {}
    for name, entry in _table(data, "tiers", where).items():
        try:
            tier = Tier.parse(name)
        except ValueError as error:
            raise SettingsError(f"{where}: [tiers]: {error}") from None
        if tier in tiers:
            raise SettingsError(f"{where}: [tiers]: {tier.label} stands there twice; keep one of its prices")
        tiers[tier] = _price(entry, f"{where}: tiers.{name}", may_name_tier=False)
    models = {
        name: _price(entry, f"{where}: models.{name!r}", may_name_tier=True)
        for name, entry in _table(data, "models", where).items()
    }
    defaults = tuple(tier for tier in TIERS if tier not in tiers)
    return Prices(MappingProxyType({**Prices().tiers, **tiers}), MappingProxyType(models), where, defaults)


def _table(data: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    table = data.get(name, {})
    if not isinstance(table, dict):
        raise SettingsError(f"{where}: {name} is {table!r}, expected a table [{name}]")
    return table


def _price(entry: Any, where: str, *, may_name_tier: bool) -> Price:
    keys = {"input", "output"} | ({"tier"} if may_name_tier else set())
    expected = "a number, or { input = …, output = … }, in dollars a million tokens"
    values = entry if isinstance(entry, dict) else {"input": entry, "output": entry}
    if unknown := sorted(set(values) - keys):
        raise SettingsError(f"{where}: unknown key {unknown[0]!r}; expected {expected}")
    for name in ("input", "output"):
        value = values.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_PRICE:
            raise SettingsError(f"{where}: {name} is {value!r}, expected {expected}")
    try:
        tier = Tier.parse(str(values["tier"])) if "tier" in values else None
    except ValueError as error:
        raise SettingsError(f"{where}: {error}") from None
    return Price(float(values["input"]), float(values["output"]), tier)
