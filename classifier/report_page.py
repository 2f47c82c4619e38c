"""A report's numbers as text for a terminal and as a page for a browser.

Knows nothing of how the numbers came about: it shows what `classifier.report.analyse` returned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from classifier import charts
from classifier.page import percent, render
from classifier.report import TITLES
from classifier.savings import RANDOM, ROUTED, TODAY, chosen_percent, dollars
from classifier.types import TIERS
from classifier.wording import guarantee_of

NAME_CHARS = 64
"""Of a model's name and the like on the page; the JSON has them whole."""
UNKNOWN = "not known"


def as_text(report: Mapping[str, Any]) -> str:
    """The report for a terminal."""
    lines = [report["recommendation"]["sentence"], f"Because {report['recommendation']['reason']}"]
    lines += [report["against_today"]] if report["against_today"] else []
    lines += [f"! {warning}" for warning in report["warnings"]]
    known = report["strategies"][0]["measured"] is not None
    head = f"{'strategy':<32}{'cost':>12}{'routing saves':>15}{'':>26}{'expected risk':>15}"
    lines += ["", f"{head}{'measured':>16}{'frontier misses':>17}" if known else f"{head}{'frontier misses':>17}"]
    for s in report["strategies"]:
        saving = s["saving"]
        span = "" if s["name"] == ROUTED else f"({dollars(saving['low'])} to {dollars(saving['high'])})"
        lines.append(
            f"{_title(s['name']):<32}{dollars(s['cost']['estimate']):>12}"
            f"{'' if s['name'] == ROUTED else dollars(saving['estimate']):>15}{' ' + span:>26}"
            f"{percent(s['risk']['estimate']):>15}{_band(s['measured']) if known else '':>{16 * known}}"
            f"{percent(s['frontier_misses']['estimate']):>17}"
        )
    lines += [
        "",
        f"{report['rows']:,} requests: {_mix(report)}",
        "",
        "Risk of routing, the share of requests sent to too small a tier:",
    ]
    lines += [f"- {kind['name']}: {kind['says']}" for kind in report["risk_kinds"]]
    lines += ["", "What this rests on:"]
    lines += [f"- {line}" for line in report["assumptions"]]
    return "\n".join(lines)


def page(report: Mapping[str, Any], texts: Sequence[str] = ()) -> str:
    """The report as one HTML page that needs nothing else.

    Args:
        report: from `analyse`.
        texts: the last message of each of the requests that move the most money, to show them; empty shows none.

    Raises:
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    entries = [
        m | _money(m) | {"text": t, "model": _cut(m["model"], NAME_CHARS)}
        for m, t in zip(report["movers"], texts or [""] * len(report["movers"]), strict=True)
    ]
    ids, models = (any(m[column] for m in report["movers"]) for column in ("id", "model"))
    one, ten = (report["concentration"][key] for key in ("0.01", "0.1"))
    return render(
        "report.html",
        r=report,
        tiers=[t.label for t in TIERS],
        strategies=[_strategy(s, report) for s in report["strategies"]],
        cards=_cards(report),
        charts=_charts(report),
        mix=_mix(report),
        by=[_table(name, rows) for name, rows in report["by"].items()],
        measured=report["strategies"][0]["measured"] is not None,
        movers=entries,
        many_files=len({m["file"] for m in report["movers"]}) > 1,
        movers_have_ids=ids,
        movers_have_models=models,
        mover_columns=8 + ids + models,
        show_text=bool(texts),
        concentration=f"The dearest 1% of requests carry {percent(one)} of all money that routing moves, either way, "
        f"and the dearest 10% carry {percent(ten)}; these are the largest.",
    )


def _mix(report: Mapping[str, Any]) -> str:
    """The share of requests on each tier under routing."""
    return ", ".join(f"{t.label} {s:.1%}" for t, s in zip(TIERS, report["tier_shares"], strict=True))


def _money(m: Mapping[str, Any]) -> dict[str, str]:
    return {
        "reference": dollars(m["reference"]),
        "routed": dollars(m["routed"]),
        "difference": dollars(m["reference"] - m["routed"]),
    }


def _strategy(s: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    routed = s["name"] == ROUTED
    itself = {"text": "–", "notes": []}
    promised = guarantee_of(report).promised_risk
    risk = _cell(s["risk"], percent)
    if routed and promised is not None:
        risk["notes"].append(f"promised {chosen_percent(promised)} at most")
    return {
        "name": s["name"],
        "title": _title(s["name"]),
        "note": f"{s['requests']:,} requests of known cost" if s["requests"] < report["rows"] else "",
        "cost": _cell(s["cost"], dollars),
        "per_thousand": dollars(1000 * s["cost"]["estimate"] / s["requests"]),
        "saving": itself if routed else _cell(s["saving"], dollars),
        "share": itself if routed else _cell(s["saving_share"], _saved),
        "risk": risk,
        "measured": _measured(s["measured"], (report["strategies"][0]["measured"] or {}).get("labels", -1)),
        "misses": _cell(s["frontier_misses"], percent) if s["measured"] is None else _misses(s),
    }


def _misses(s: Mapping[str, Any]) -> dict[str, Any]:
    """Expected frontier misses with the measured ones below."""
    cell, measured = _cell(s["frontier_misses"], percent), s["measured"]
    if measured["frontier_labels"]:
        found = measured["frontier_misses"]
        cell["notes"] += [f"measured {percent(found['estimate'])}", _ends(found, percent)]
    return cell


def _measured(measured: Mapping[str, Any] | None, usual: int = -1) -> dict[str, Any]:
    """The measured risk for the page: a number or a band, its interval, and the number of labels if not `usual`."""
    if measured is None or not measured["labels"]:
        return {"text": UNKNOWN, "notes": []}
    notes = [_ends(measured["band"], percent)]
    notes += [f"{measured['labels']:,} labels"] if measured["labels"] != usual else []
    return {"text": _band(measured), "notes": notes}


def _band(measured: Mapping[str, Any] | None) -> str:
    if measured is None or not measured["labels"]:
        return "–"
    low, high = measured["risk"]["estimate"], measured["risk_at_most"]["estimate"]
    return percent(low) if high <= low else f"{percent(low)} to {percent(high)}"


def _ends(value: Mapping[str, float], form: Callable[[float], str]) -> str:
    return f"{form(value['low'])} to {form(value['high'])}"


def _cell(value: Mapping[str, float] | None, form: Callable[[float], str]) -> dict[str, Any]:
    """An estimate for the page, with its interval as a note."""
    if value is None or math.isnan(value["estimate"]):
        return {"text": UNKNOWN, "notes": []}
    if value["low"] == value["high"] or form(value["low"]).endswith("×"):
        return {"text": form(value["estimate"]), "notes": []}
    return {"text": form(value["estimate"]), "notes": [_ends(value, form)]}


def _saved(value: float) -> str:
    """A saved share; from twice the cost on, how many times the cost: "costs 13 ×"."""
    times = 1 - value
    return percent(value) if value > -1 else f"costs {times:,.1f} ×" if times < 10 else f"costs {times:,.0f} ×"


def _cards(report: Mapping[str, Any]) -> list[dict[str, str]]:
    routed = report["strategies"][0]
    against = next(
        s for s in report["strategies"]
        if s["name"] == (TODAY if report["reference"] == TODAY else report["recommendation"]["tier"])
    )  # fmt: skip
    cards = [
        {"name": "routed", "value": dollars(routed["cost"]["estimate"]), "note": f"{report['rows']:,} requests"},
        {"name": report["reference"], "value": dollars(against["cost"]["estimate"]),
         "note": f"{against['requests']:,} requests"},
        _saving_card("routing saves", "routing costs more", against["saving"]),
        {"name": "expected risk", "value": percent(routed["risk"]["estimate"]),
         "note": f"frontier misses {percent(routed['frontier_misses']['estimate'])}"},
    ]  # fmt: skip
    promised, measured = guarantee_of(report).promised_risk, routed["measured"]
    if measured is not None:
        cards.append({"name": "measured risk", "value": _band(measured), "note": _ends(measured["band"], percent)})
    if promised is not None:
        cards.append({"name": "promised risk", "value": percent(promised), "note": "at most"})
    span = report["span"]
    if span and span["days"] >= 7:
        month = {name: value * 30 / span["days"] for name, value in against["saving"].items()}
        card = _saving_card("saved in 30 days", "more in 30 days", month)
        cards.append(card | {"note": f"as in these {span['days']:.0f}"})
    return cards


def _saving_card(saved: str, lost: str, saving: Mapping[str, float]) -> dict[str, str]:
    """What is saved, or what it costs more, as a positive number."""
    if saving["estimate"] >= 0:
        return {"name": saved, "value": dollars(saving["estimate"]), "note": _ends(saving, dollars)}
    more = {"low": -saving["high"], "high": -saving["low"]}
    return {"name": lost, "value": dollars(-saving["estimate"]), "note": _ends(more, dollars)}


def _charts(report: Mapping[str, Any]) -> dict[str, str]:
    rows = report["strategies"]
    names = [_short(s["name"]) for s in rows]
    costs = [1000 * s["cost"]["estimate"] / s["requests"] for s in rows]
    lows = [1000 * s["cost"]["low"] / s["requests"] for s in rows]
    highs = [1000 * s["cost"]["high"] / s["requests"] for s in rows]
    log = min(costs) > 0
    points = [
        (n, c, 100 * s["risk"]["estimate"])
        for n, c, s in zip(names, costs, rows, strict=True)
        if not math.isnan(s["risk"]["estimate"])
    ]
    drawn = {
        "cost": charts.bars(
            names, costs, lows=lows, highs=highs, log=log, unit="$ per 1,000 requests" + (", log scale" if log else "")
        ),
        "risk": charts.scatter(
            points, x="$ per 1,000 requests" + (", log scale" if log else ""), log_x=log,
            y="expected % sent to too small a tier",
        ),
        "mix": charts.tier_bars(["all"], [report["tier_shares"]]),
        "mix_over_time": "",
        "cost_over_time": "",
    }  # fmt: skip
    over = report["over_time"]
    if over is not None and len(over["starts"]) > 1:
        drawn["mix_over_time"] = charts.tiers_over_time(over["starts"], over["shares"])
        drawn["cost_over_time"] = charts.lines_over_time(
            over["starts"], [("routed", over["routed"]), (report["reference"], over["reference"])],
            unit=f"$ per {over['period']}",
        )  # fmt: skip
    return drawn


def _table(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "name": name,
        "chart": charts.tier_bars([_cut(r["value"], 18) for r in rows], [r["shares"] for r in rows]),
        "rows": [
            {
                **r,
                "value": _cut(r["value"], NAME_CHARS),
                "reference": dollars(r["reference"]) if r["saving"] else UNKNOWN,
                "routed": dollars(r["routed"]) if r["saving"] else UNKNOWN,
                "saving": _cell(r["saving"], dollars),
                "measured": _measured(r["measured"]),
            }
            for r in rows
        ],
    }


def _title(name: str) -> str:
    return TITLES.get(name, f"one model for all: {name}")


def _short(name: str) -> str:
    return {ROUTED: "routed", RANDOM: "random", TODAY: "today"}.get(name, f"all {name}")


def _cut(text: str, most: int) -> str:
    """Head and tail of a long name: those of cloud models differ in their tails alone."""
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most // 2) :]}"
