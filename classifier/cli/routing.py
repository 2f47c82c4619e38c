"""`classifier routing`: the routing table, looked at before it serves."""

from __future__ import annotations

from decimal import Decimal
from itertools import pairwise
from typing import TYPE_CHECKING

import click

from classifier.cli._json import answer, json_option

if TYPE_CHECKING:
    from classifier.routing import Route, RoutingTable
    from classifier.types import Tier

COLUMNS = ("tier", "model", "$/M tokens", "context", "place", "data=restricted goes to")


@click.group(name="routing")
def command() -> None:
    r"""The routing table: tier to model, price, context window, place.

    \b
    classifier routing check routing.toml
    """


@command.command(name="check")
@click.argument("path", metavar="ROUTES")
@click.option("--strict", is_flag=True, help="Exit code 3 where there is a warning.")
@json_option
def check(*, path: str, strict: bool, as_json: bool) -> None:
    r"""Checks a routing table and shows where requests will go.

    ROUTES is the TOML file. A table that cannot be used ends with exit code 2. What can be used but is perhaps not
    meant is a warning.

    \b
    classifier routing check routing.toml
    classifier routing check routing.toml --strict --json
    """
    from classifier.errors import GateNotMet
    from classifier.routing import read_table

    table = read_table(path)
    found = warnings(table)
    answer(as_dict(table, found), as_text(table), as_json=as_json)
    for warning in [] if as_json else found:
        click.echo(f"warning: {warning}", err=True)
    if strict and found:
        raise GateNotMet(f"{path}: {len(found)} warning{'s' if len(found) > 1 else ''}")


def warnings(table: RoutingTable) -> list[str]:
    """What a table's author perhaps did not mean."""
    from classifier.types import TIERS

    found = []
    for tier in TIERS:
        if not table.routes[tier]:
            other = table.choose(tier)
            found.append(f"{tier.label} has no route; its requests go to {other.model} ({other.tier.label})")
    if all(not route.on_premises for route in table):
        found.append("no route is on premises; requests with data=restricted are refused (NO_ALLOWED_ROUTE)")
    first = [routes[0] for routes in table.routes.values() if routes]
    for lower, higher in pairwise(first):
        if higher.price_per_million_tokens < lower.price_per_million_tokens:
            found.append(
                f"{higher.tier.label} ({higher.model}) costs less than {lower.tier.label} ({lower.model}); "
                "a lower tier that costs more saves nothing"
            )
    return found


def restricted_route(table: RoutingTable, tier: Tier) -> Route | None:
    """Where a restricted request without bounds goes; None where it is refused."""
    from classifier.errors import NoAllowedRoute

    try:
        return table.choose(tier, restricted=True)
    except NoAllowedRoute:
        return None


def as_dict(table: RoutingTable, found: list[str]) -> dict[str, object]:
    """The table and its warnings for machines."""
    from dataclasses import asdict

    tiers: dict[str, object] = {}
    for tier, routes in table.routes.items():
        to = restricted_route(table, tier)
        tiers[tier.label] = {
            "routes": [asdict(route) | {"tier": tier.label} for route in routes],
            "restricted": None if to is None else {"model": to.model, "tier": to.tier.label},
        }
    return {"tiers": tiers, "warnings": found}


def price(dollars: float) -> str:
    """Dollars with two decimals, and more where they need them.

    >>> price(100.0), price(0.1), price(0.0375), price(1e-7)
    ('100.00', '0.10', '0.0375', '0.0000001')
    """
    return max(f"{dollars:.2f}", f"{Decimal(str(dollars)):f}", key=len)


def as_text(table: RoutingTable) -> str:
    """The table for people."""
    rows = [COLUMNS]
    for tier, routes in table.routes.items():
        to = restricted_route(table, tier)
        goes = "refused" if to is None else to.model
        if to is not None and to.tier is not tier:
            goes += f" ({to.tier.label}{', no promise' if to.tier < tier else ''})"
        for i, route in enumerate(routes):
            window = f"{route.context_window:,}" if route.context_window else "not known"
            place = "on premises" if route.on_premises else "elsewhere"
            ahead = ("", "") if i else (tier.label, goes)
            rows.append((ahead[0], route.model, price(route.price_per_million_tokens), window, place, ahead[1]))
        if not routes:
            rows.append((tier.label, "-", "", "", "", goes))
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    right = {2, 3}
    return "\n".join(
        "  ".join(cell.rjust(widths[i]) if i in right else cell.ljust(widths[i]) for i, cell in enumerate(row)).rstrip()
        for row in rows
    )
