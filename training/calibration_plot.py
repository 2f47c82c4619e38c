"""One figure of a calibration report: reliability, risk against λ, cost against α, risk by source.

Knows nothing of how the report was made: it draws what `training.calibrate` returned.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from classifier.charts import DASHES
from classifier.errors import MissingExtra
from classifier.texts import encodable
from classifier.types import TIERS

MOST_SOURCES = 25


def plot(report: Mapping[str, Any], path: Path) -> None:
    """Draws the figure into `path`; its suffix says the format (.svg, .png, .pdf).

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("figures need matplotlib; pip install 'request-complexity-classifier[report]'") from error
    with rc_context({"text.parse_math": False}):  # names are a user's: two dollar signs in one are no formula
        figure = Figure(figsize=(11, 9), layout="constrained")
        reliability, risk, cost, sources = figure.subplots(2, 2).ravel()
        _reliability(reliability, report["calibration"]["after"])
        _risk(risk, report)
        _cost(cost, report)
        _sources(sources, report)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _reliability(axes: Any, calibration: Mapping[str, Any]) -> None:
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    for tier, curve, dashes in zip(TIERS[:-1], calibration["reliability"], DASHES, strict=False):
        xs, ys = ([point[i] for point in curve] for i in (0, 1))
        axes.plot(xs, ys, marker="o", markersize=3, linestyle=dashes, label=f"<= {tier.label}")
    axes.set(
        title=f"Reliability ({calibration['method']})", xlabel="predicted P(label <= tier)", ylabel="observed share"
    )
    axes.legend()


def _risk(axes: Any, report: Mapping[str, Any]) -> None:
    points = report["curves"]["risk_by_threshold"]
    thresholds = [p["threshold"] for p in points]
    loss, method = report["curves"]["loss"], report["curves"]["method"].lower().replace("_", " ")
    axes.plot(thresholds, [p["risk"] for p in points], label=f"{loss} seen")
    axes.plot(thresholds, [p["bound"] for p in points], linestyle="--", label=f"bound by {method}")
    together = " (all groups together)" if report["curves"]["group_by"] else ""
    for entry in report["policies"]:
        if entry["guarantee"]["feasible"] and not together:
            place = (entry["threshold"], entry["guarantee"]["empirical_risk"])
            axes.plot(*place, marker="s", color="black", markersize=4)
            axes.annotate(entry["name"], place, fontsize=8)
    axes.set(title=f"{loss.capitalize()} against threshold{together}", xlabel="λ", ylabel=loss)
    axes.legend()


def _cost(axes: Any, report: Mapping[str, Any]) -> None:
    points = [p for p in report["curves"]["cost_by_alpha"] if p["feasible"]]
    alphas = [p["alpha"] for p in points]
    axes.plot(alphas, [p["cost"] for p in points], marker="o", markersize=3, label="this model")
    axes.plot(
        alphas, [p["constant_router_cost"] for p in points], linestyle="--", label="best constant mix, equal risk"
    )
    loss = report["curves"]["loss"]
    axes.set(title=f"Cost against promised {loss}", xlabel="α", ylabel="dollars a million tokens", yscale="log")
    axes.legend()


def _sources(axes: Any, report: Mapping[str, Any]) -> None:
    entry = report["policies"][len(report["policies"]) // 2]
    table = entry["measured"]["by"].get("source", {})
    rows = sorted(table.items(), key=lambda item: item[1]["risk"])[-MOST_SOURCES:]
    errors = [[max(0.0, r["risk"] - r["low"]) for _, r in rows], [max(0.0, r["high"] - r["risk"]) for _, r in rows]]
    axes.errorbar([r["risk"] for _, r in rows], range(len(rows)), xerr=errors, fmt="o", markersize=3)
    axes.set_yticks(range(len(rows)), [encodable(f"{name} ({r['n']})") for name, r in rows], fontsize=7)
    whole = entry["measured"]["risk"]
    axes.axvspan(whole["low"], whole["high"], alpha=0.15)
    if not entry["guarantee"]["severity"]:  # else α bounds another loss than what is drawn
        axes.axvline(entry["guarantee"]["alpha"], color="grey", linewidth=0.8)
    axes.set(title=f"Risk by source, {entry['name']} (band: all rows, 95 %)", xlabel="P(chosen < label)")
