"""What routing labelled traffic would cost and save, as JSON-ready data with the sentences of `wording`.

Knows nothing of how traffic was labelled, of flags, or of pages.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier import wording
from classifier.intervals import Interval, bootstrap_interval
from classifier.measured import FEWEST_LABELS, Measured, measure
from classifier.metrics import tier_shares
from classifier.prices import Price, Prices
from classifier.resampling import units_of
from classifier.savings import (
    RANDOM,
    ROUTED,
    TODAY,
    Comparison,
    compare,
    concentration,
    movers,
    recommend,
    strategies,
)
from classifier.traffic import Traffic, categories_of
from classifier.types import TIERS, Tier

MOST_VALUES = 12
MOST_PERIODS = 120
TITLES = {ROUTED: "tiered routing", RANDOM: "random router, the same shares", TODAY: "today"}


def analyse(traffic: Traffic, prices: Prices, *, top: int = 20) -> dict[str, Any]:
    """Everything that the page and the text say, as JSON-ready data.

    Args:
        traffic: labelled requests.
        prices: of tiers and of today's models.
        top: how many of the requests that move the most money.
    """
    costs = prices.by_tier(traffic.input_tokens, traffic.output_tokens)
    today, tiers_today, unpriced = _today(traffic, prices)
    found = strategies(traffic.tiers, traffic.probabilities, costs, cost_today=today, tiers_today=tiers_today)
    units, unit = units_of(len(traffic), traffic.times)
    compared = compare(found, traffic.probabilities, units)
    policy = traffic.policy
    promised = None if policy is None else policy.guarantee.promised_risk
    measured = measure({s.name: s.choices for s in found}, traffic.at_least, traffic.at_most, units)
    enough = ROUTED in measured and measured[ROUTED].labels >= FEWEST_LABELS and not traffic.drawn_by_tier
    recommendation = recommend(compared, promised, measured[ROUTED].band if enough else None)
    routed = found[0].costs
    by_name = {s.name: s for s in found}
    reference = by_name[TODAY] if TODAY in by_name else by_name[recommendation.tier]
    report: dict[str, Any] = {
        "rows": len(traffic),
        "errors": dict(traffic.errors),
        "drawn_by_tier": traffic.drawn_by_tier,
        "truncated": traffic.truncated,
        "span": _span(traffic.times),
        "bundle_version": traffic.bundle_version,
        "policy": wording.policy_facts(traffic.policy_name, policy),
        "recommendation": asdict(recommendation),
        "against_today": wording.against_today(compared),
        "intervals": unit,
        "tier_shares": list(tier_shares(traffic.tiers)),
        "strategies": [_as_json(c) | {"measured": _measured(measured.get(c.name))} for c in compared],
        "reference": TITLES.get(reference.name, f"{reference.name} for all"),
        "over_time": _over_time(traffic, routed, reference.costs),
        "by": {
            name: [_slice(value, rows, traffic, routed, reference.costs) for value, rows in values]
            for name, values in categories_of(traffic, MOST_VALUES)
        },
        "concentration": {str(k): v for k, v in concentration(routed, reference.costs).items()},
        "movers": [_mover(int(i), traffic, routed, reference.costs) for i in movers(routed, reference.costs, top)],
        "prices": _prices(prices),
        "columns": dict(traffic.columns),
        "tokens": {
            "input": float(traffic.input_tokens.sum()),
            "output": float(traffic.output_tokens.sum()),
            "input_counted_share": traffic.input_counted,
            "output_counted_share": traffic.output_counted,
            "output_estimated_share": traffic.output_estimated,
        },
    }
    report["risk_kinds"] = wording.risk_kinds(report, traffic)
    report["assumptions"] = wording.assumptions(traffic, prices, report)
    report["warnings"] = wording.warnings(report, unpriced)
    return report


def _today(traffic: Traffic, prices: Prices) -> tuple[NDArray[np.float64], NDArray[np.int64], list[tuple[str, int]]]:
    """Today's dollars (n,), today's tiers (n,) with -1 for unknown, and the models without a price with their rows."""
    today = traffic.cost_today.copy()
    tiers = np.full(len(traffic), -1, dtype=np.int64)
    category = traffic.categories.get("model")
    if category is None:
        return today, tiers, []
    unpriced = []
    for code, name in enumerate(category.names):
        rows = category.codes == code
        open_rows = rows & np.isnan(today)
        price = prices.models.get(name)
        if price is not None:
            today[open_rows] = price.cost(traffic.input_tokens, traffic.output_tokens)[open_rows]
            tiers[rows] = -1 if price.tier is None else price.tier.index
        elif open_rows.any():
            unpriced.append((name or "(none)", int(open_rows.sum())))
    return today, tiers, sorted(unpriced, key=lambda item: -item[1])


def _measured(measured: Measured | None) -> dict[str, Any] | None:
    return None if measured is None else _as_json(measured) | {"band": measured.band._asdict()}


def _as_json(found: Comparison | Measured) -> dict[str, Any]:
    values = {name: getattr(found, name) for name in found.__slots__}
    return {k: (v._asdict() if isinstance(v, Interval) else v) for k, v in values.items()}


def _span(times: NDArray[np.float64]) -> dict[str, Any] | None:
    known = times[np.isfinite(times)]
    if not len(known):
        return None
    first, last = float(known.min()), float(known.max())
    return {"first": _day(first), "last": _day(last), "days": (last - first) / 86_400}


def _day(seconds: float) -> str:
    return dt.datetime.fromtimestamp(seconds, tz=dt.UTC).strftime("%Y-%m-%d")


def _over_time(traffic: Traffic, routed: NDArray[np.float64], reference: NDArray[np.float64]) -> dict[str, Any] | None:
    """Tier shares and costs by hour, day or week, whichever keeps the periods below `MOST_PERIODS`."""
    known = np.isfinite(traffic.times)
    if not known.any():
        return None
    times = traffic.times[known]
    span = times.max() - times.min()
    if span < 6 * 3600:
        return None
    period, seconds = next(
        (name, width)
        for name, width in (("hour", 3600.0), ("day", 86_400.0), ("week", 604_800.0), ("28 days", 2_419_200.0))
        if span / width <= (48 if name == "hour" else MOST_PERIODS) or name == "28 days"
    )
    starts, codes = np.unique(times // seconds, return_inverse=True)
    table = np.zeros((len(starts), len(TIERS)))
    np.add.at(table, (codes, traffic.tiers[known]), 1)
    return {
        "period": period,
        "starts": (starts * seconds).tolist(),
        "requests": table.sum(axis=1).tolist(),
        "shares": (table / table.sum(axis=1, keepdims=True)).tolist(),
        "routed": np.bincount(codes, weights=np.nan_to_num(routed[known])).tolist(),
        "reference": np.bincount(codes, weights=np.nan_to_num(reference[known])).tolist(),
    }


def _slice(
    value: str,
    rows: NDArray[np.int64],
    traffic: Traffic,
    routed: NDArray[np.float64],
    reference: NDArray[np.float64],
) -> dict[str, Any]:
    tiers, probabilities = traffic.tiers[rows], traffic.probabilities[rows]
    under = 1 - np.cumsum(probabilities, axis=1)[np.arange(len(rows)), tiers]
    frontier = probabilities[:, -1]
    priced = np.isfinite(reference[rows])
    saved = (reference[rows] - routed[rows])[priced]
    entry: dict[str, Any] = {
        "value": value,
        "rows": len(rows),
        "shares": list(tier_shares(tiers)),
        "reference": float(reference[rows][priced].sum()),
        "routed": float(routed[rows][priced].sum()),
        "risk": float(np.maximum(under, 0).mean()),
        "frontier_misses": float(frontier[tiers < len(TIERS) - 1].sum() / max(frontier.sum(), 1e-12)),
        "measured": None,
        "saving": None,
    }
    known = traffic.at_least[rows] >= 0
    if known.any():
        units, _ = units_of(len(rows))
        found = measure({ROUTED: np.eye(len(TIERS))[tiers]}, traffic.at_least[rows], traffic.at_most[rows], units)
        entry["measured"] = _measured(found[ROUTED])
    if len(saved):
        units, _ = units_of(len(saved))
        sums = np.bincount(units, weights=saved)
        entry["saving"] = bootstrap_interval(lambda counts: counts @ sums, len(sums), draws=400)._asdict()
    return entry


def _mover(i: int, traffic: Traffic, routed: NDArray[np.float64], reference: NDArray[np.float64]) -> dict[str, Any]:
    category = traffic.categories.get("model")
    return {
        "position": int(traffic.rows[i]),
        "file": traffic.files[traffic.origins[i, 0]],
        "row": int(traffic.origins[i, 1]),
        "id": traffic.ids[i] if traffic.ids else "",
        "model": category.names[category.codes[i]] if category is not None else "",
        "tier": Tier.from_index(int(traffic.tiers[i])).label,
        "probability": float(traffic.probabilities[i, traffic.tiers[i]]),
        "input_tokens": float(traffic.input_tokens[i]),
        "output_tokens": float(traffic.output_tokens[i]),
        "reference": float(reference[i]),
        "routed": float(routed[i]),
    }


def _prices(prices: Prices) -> list[dict[str, Any]]:
    def entry(name: str, price: Price) -> dict[str, Any]:
        return {"name": name, "input": price.input, "output": price.output}

    return [
        *(entry(f"tier {tier.label}", prices.tiers[tier]) for tier in TIERS),
        *(entry(f"model {name}", price) for name, price in prices.models.items()),
    ]
