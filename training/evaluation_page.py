"""The evaluation as one page that a data scientist reads before trusting a model.

Knows nothing of how the numbers came about: it shows what `training.evaluate`, `training.evaluation_detail`,
`training.robustness` and `training.outcome_curves` returned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from classifier import charts
from classifier.page import percent, render
from classifier.types import TIERS

TEMPLATES = Path(__file__).parent / "templates"
MOST_MEMBERS = 30
LONGEST_NAME = 22
"""Characters of a slice's name beside a chart."""
NAMES = [tier.label for tier in TIERS]


def page(report: Mapping[str, Any]) -> str:
    """The report as one HTML page that needs nothing else.

    Args:
        report: from `training.evaluate.evaluate`, with `detail` and, where measured, `robustness`, `outcomes`,
            `histories` and `seen_in_training`.

    Raises:
        MissingExtra: jinja2 or matplotlib is not installed.
    """
    found = report["detail"]
    return render(
        "evaluation.html",
        folder=TEMPLATES,
        r=report,
        d=found,
        tiers=NAMES,
        cards=_cards(report),
        metrics=[
            {"name": name.replace("_", " "), "bundle": _cell(value),
             "others": [_cell(b[name]) for b in report.get("baselines", {}).values()]}
            for name, value in report["overall"].items()
        ],
        baselines=[name.replace("_", " ") for name in report.get("baselines", {})],
        gains=[
            {"name": name.replace("_", " "), "value": _cell(b["bundle_accuracy_minus_this"])}
            for name, b in report.get("baselines", {}).items()
        ],
        routers=[_router(name, row) for name, row in found["routers"].items()],
        policies=[_policy(name, row) for name, row in found["policies"].items()],
        calibration=report.get("calibration_error", []),
        slices=[_slice(what, members) for what, members in report["slices"].items() if len(members) > 1],
        charts=_charts(report),
        confusion=_confusion(report["confusion"]),
        changes=_changes(report.get("robustness", {})),
        twins=_twins(report.get("robustness", {})),
        attack=_attack(report.get("robustness", {})),
        outcomes=[_outcome(name, o) for name, o in report.get("outcomes", {}).get("sources", {}).items()],
        show_text=any("text" in row for row in found["worst"]),
    )  # fmt: skip


def _cards(report: Mapping[str, Any]) -> list[dict[str, str]]:
    wanted = ("accuracy", "quadratic_kappa", "auroc_above_simple", "auroc_above_standard")
    cards = []
    for name in wanted:
        cell = _cell(report["overall"][name])
        cards.append({"name": name.replace("_", " "), "value": cell["text"], "note": next(iter(cell["notes"]), "")})
    attack = report.get("robustness", {}).get("attack")
    if attack:
        cell = _cell(attack["raised"], percent)
        cards.append(
            {"name": "raised by attack", "value": cell["text"], "note": f"of {attack['prompts']} simple prompts"}
        )
    return cards


def _cell(value: Sequence[float], form: Callable[[float], str] | None = None) -> dict[str, Any]:
    """An estimate, with its interval as a note where it has one."""
    form = form or _number
    if math.isnan(value[0]):
        return {"text": "–", "notes": []}
    notes = [] if math.isnan(value[1]) or value[1] == value[2] else [f"{form(value[1])} to {form(value[2])}"]
    return {"text": form(value[0]), "notes": notes}


def _number(value: float) -> str:
    return f"{value:.3f}"


def _money(value: float) -> str:
    return f"${value:,.2f}"


def _router(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name.replace("_", " "),
        "accuracy": _cell(row["accuracy"]),
        "kappa": _cell(row["quadratic_kappa"]),
        "risk": _cell(row["risk"], percent),
        "over": _cell(row["over_routing"], percent),
        "misses": _cell(row["frontier_misses"], percent),
        "cost": _cell(row["cost"], _money),
    }


def _policy(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    return _router(name, row) | {
        "threshold": f"{row['threshold']:.4f}" + (f", others by {row['group_by']}" if row["group_by"] else ""),
        "promise": row["promise"],
        "broken": row["alpha"] is not None and row["risk"][1] > row["alpha"],
        "shares": " / ".join(f"{100 * share:.0f}" for share in row["shares"]),
        "random": percent(row["random_router_risk"]),
        "constant": _money(row["constant_router_cost"]),
    }


def _slice(what: str, members: Mapping[str, Any]) -> dict[str, Any]:
    """The slices of one fact: the largest, the least accurate first, so that trouble stands on top."""
    largest = sorted(members.items(), key=lambda item: -item[1]["rows"])[:MOST_MEMBERS]
    rows = sorted(largest, key=lambda item: item[1]["accuracy"][0])
    return {
        "what": what,
        "left_out": len(members) - len(rows),
        "rows": [{"name": n, "rows": m["rows"], "accuracy": _cell(m["accuracy"])} for n, m in rows],
        "chart": charts.bars(
            [f"{_cut(n)} ({m['rows']})" for n, m in rows],
            [m["accuracy"][0] for _, m in rows],
            lows=[m["accuracy"][1] for _, m in rows],
            highs=[m["accuracy"][2] for _, m in rows],
            unit="accuracy (rows in brackets)",
        ),
    }


def _charts(report: Mapping[str, Any]) -> dict[str, str]:
    found = report["detail"]
    own = found["risk_cost"]["bundle"]
    thresholds = [p["threshold"] for p in own]
    risks, costs = (
        [
            (name, row["threshold"], row[what][0])
            for name, row in found["policies"].items()
            if row["threshold"] <= 1 and not row["group_by"]  # groups lie on no one λ
        ]
        for what in ("risk", "cost")
    )
    drawn = {
        "confusion": charts.heat(report["confusion"], NAMES, rows="label", columns="arg-max tier"),
        "reliability": charts.curves(
            [(f"<= {tier.label}", [c[0] for c in curve], [c[1] for c in curve])
             for tier, curve in zip(TIERS, found["reliability"], strict=False)],
            x="predicted P(label <= tier)", y="observed share", diagonal=True, markers=True,
        ),
        "risk": charts.curves(
            [("bundle", thresholds, [p["risk"] for p in own]),
             ("random router, the same shares", thresholds, [p["random_router_risk"] for p in own])],
            x="threshold λ", y="risk, P(chosen < label)", points=risks,
        ),
        "cost": charts.curves(
            [("", thresholds, [p["cost"] for p in own])], x="threshold λ", y="$ a million tokens, log scale",
            points=costs, log_y=True,
        ),
        "trade": charts.curves(
            [(name.replace("_", " "), [p["cost"] for p in curve], [p["risk"] for p in curve])
             for name, curve in found["risk_cost"].items() if name != "majority"]
            + [("random router", [p["cost"] for p in own], [p["random_router_risk"] for p in own])],
            x="$ a million tokens, log scale", y="risk, P(chosen < label)", log_x=True,
        ),
        "history": "",
        "attack": "",
    }  # fmt: skip
    if report.get("histories"):
        drawn["history"] = charts.curves(
            [(name, [e.get("epoch", i + 1) for i, e in enumerate(epochs)], [e.get("loss", math.nan) for e in epochs])
             for name, epochs in report["histories"].items()],
            x="epoch", y="training loss", markers=True,
        )  # fmt: skip
    attack = report.get("robustness", {}).get("attack")
    if attack:
        drawn["attack"] = charts.curves(
            [("", [t for t, _ in attack["by_tries"]], [100 * share for _, share in attack["by_tries"]])],
            x="tries a prompt", y="% of simple prompts raised", markers=True,
        )  # fmt: skip
    return drawn


def _confusion(counts: Sequence[Sequence[int]]) -> str:
    """The table of confusion in words, for those who do not see it."""
    rows = (", ".join(map(str, row)) for row in counts)
    told = "; ".join(f"{name}: {row}" for name, row in zip(NAMES, rows, strict=True))
    return f"Table of rows by label, each with its counts by arg-max tier from {NAMES[0]} up. {told}"


def _changes(robustness: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "changed": _cell(c["changed"], percent), "up": _cell(c["up"], percent),
         "down": _cell(c["down"], percent), "argmax": percent(robustness["changes_of_arg_max"][name]["changed"][0])}
        for name, c in robustness.get("changes", {}).items()
    ]  # fmt: skip


def _twins(robustness: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "groups": t["groups"], "accuracy": _cell(t["accuracy"]),
         "right": _cell(t["groups_right"], percent), "ordered": _cell(t["ordered"], percent),
         "steady": _cell(t["steady"], percent)}
        for name, t in robustness.get("twins", {}).items()
    ]  # fmt: skip


def _attack(robustness: Mapping[str, Any]) -> dict[str, Any] | None:
    if not (attack := robustness.get("attack")):
        return None
    raised = _cell(attack["raised"], percent)
    return {
        "raised": f"{raised['text']} ({raised['notes'][0]})" if raised["notes"] else raised["text"],
        "prompts": attack["prompts"],
        "tries": attack["tries"],
        "steered": percent(attack["by_steering_sentence"]),
    }


def _outcome(source: str, found: Mapping[str, Any]) -> dict[str, Any]:
    quality = found["cost_quality"]
    points = quality["points"]
    curve = sorted(quality["curve"], key=lambda p: p["cost"])
    ours = [(n, p["cost"], p["quality"]) for n, p in points.items() if n in quality["random"]]
    blind = sorted(quality["random"].values(), key=lambda p: p["cost"])
    lines = [("bundle", [p["cost"] for p in curve], [p["quality"] for p in curve])]
    if len(blind) > 1:
        lines.append(("random, the same shares", [p["cost"] for p in blind], [p["quality"] for p in blind]))
    flat = [(n, p["cost"], p["quality"]) for n, p in points.items() if n not in quality["random"]]
    entry: dict[str, Any] = {
        "source": source,
        "rows": found["rows"],
        "quality": charts.curves(
            lines, points=ours + flat, x="$ a million tokens, log scale", y="mean success", log_x=True
        ),
        "points": [
            {"name": n, "cost": _money(p["cost"]), "quality": f"{p['quality']:.3f}",
             "random": f"{quality['random'][n]['quality']:.3f}" if n in quality["random"] else ""}
            for n, p in points.items()
        ],
        "fails": None,
        "pairs": [],
        "recovered": "",
    }  # fmt: skip
    fails = found["simple_fails"]
    if fails:
        entry["fails"] = {
            "share": percent(fails["fails"]),
            "rows": [
                {"name": n, "auroc": _cell(v), "above": _cell(fails["above"][n]) if n in fails["above"] else None}
                for n, v in fails["auroc"].items()
            ],
        }
    pairs = {name: p for name, p in found["pairs"].items() if p}
    for name, pair in pairs.items():
        entry["pairs"].append({
            "name": name, "weak": f"{pair['weak']:.3f}", "strong": f"{pair['strong']:.3f}",
            "rows": [
                {"name": n.replace("_", " "), "apgr": _cell(s["apgr"]), "half": percent(s["cpt_50%"]),
                 "most": percent(s["cpt_80%"]),
                 "above": _cell(pair["apgr_above"][n]) if n in pair["apgr_above"] else None}
                for n, s in pair["scores"].items()
            ] + [{"name": "random", "apgr": _cell((0.5, math.nan, math.nan)), "half": "50.0%", "most": "80.0%",
                  "above": None}],
        })  # fmt: skip
    if pairs:
        entry["recovered"] = charts.curves(
            [(name, p["curve"]["share"], p["curve"]["recovered"]) for name, p in pairs.items()],
            x="share of calls to the stronger tier", y="gap recovered (PGR)", diagonal=True,
        )  # fmt: skip
    return entry


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…"
