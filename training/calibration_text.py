"""What a calibration and its policies do, as the tables that people read: in a terminal, and in a bundle's card.

Knows what `training.calibration_report` measures, and measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from classifier.intervals import Interval, ranged
from classifier.policy import Guarantee
from classifier.savings import chosen_percent
from classifier.types import TIERS
from training.policy_fit import shown
from training.risk_control import SHIFTED


def as_text(report: Mapping[str, Any]) -> str:
    """The report of `training.calibrate` as Markdown."""
    rows, before, after = report["rows"], report["calibration"]["before"], report["calibration"]["after"]
    policies = report["policies"]
    lines = [
        f"Thresholds fitted on {rows['thresholds']} {report['label']} rows, the probability map on {rows['map']}; "
        f"{rows['open']} open rows only bound the risk"
        + (f"; {rows['unserved']} that no tier satisfied are left out." if rows["unserved"] else "."),
        "",
        "| probabilities | method | ranked probability score |",
        "|---|---|---:|",
        f"| before | {before['method']} | {before['ranked_probability_score']:.4f} |",
        f"| after | {after['method']} | {after['ranked_probability_score']:.4f} |",
        "",
        "| P(label <= t) | calibration error | a perfect model's, 95 % |",
        "|---|---:|---:|",
        *(
            f"| {TIERS[e['tier']].label} | {e['error']:+.3f} | {e['null_low']:+.3f} to {e['null_high']:+.3f} |"
            for e in after["calibration_error"]
        ),
        "",
        "| policy | promise | method | λ | seen | bound |",
        "|---|---|---|---:|---:|---:|",
        *(_promised(entry) for entry in policies),
        "",
        "| policy | simple / standard / complex / frontier | risk; drawn at random in these shares | frontier missed "
        "| cost before, $ a million tokens | cost | saved over a constant mix |",
        "|---|---|---:|---:|---:|---:|---:|",
        *(_paid(entry) for entry in policies),
        *_before_and_after(policies),
    ]
    if bands := [(e["name"], band) for e in policies if (band := e["measured"]["open_rows"])]:
        lines.append("")
        lines += [
            f"- {name}: with the {band['n']} open rows its risk is {band['risk_at_best']:.3f} at best and "
            f"{band['risk_at_worst']:.3f} at worst."
            for name, band in bands
        ]
    if any(e["guarantee"]["method"] == SHIFTED for e in policies):
        lines += [
            "",
            "Promises are of the estimated tier shares. All else is of the rows as they are: shares, risk, costs.",
        ]
    if any(e["guarantee"]["feasible"] for e in policies):
        lines += [
            "",
            "The constant mix has the same risk and may miss every frontier request; `python -m training guarantee "
            "--table cost` stands each policy beside routers that may not, and beside TF-IDF and length.",
        ]
    return "\n".join([*lines, "", *(f"- {note}" for note in report["notes"])]).rstrip() + "\n"


def promised_or_estimated(bound: str, fit: Guarantee) -> str:
    """What a table says of the bound of a threshold that was found."""
    return bound if fit.proved else f"none; {bound} is an estimate, if only the tier shares changed"


def _promised(entry: Mapping[str, Any]) -> str:
    fit = Guarantee(**entry["guarantee"])
    bound = f"{'weighted loss' if fit.severity else 'risk'} <= {fit.alpha:g}"
    bound += f" at {chosen_percent(1 - fit.delta)}" if fit.delta else ""
    cells = (
        entry["name"],
        promised_or_estimated(bound, fit) if fit.feasible else bound,
        fit.method.lower().replace("_", " "),
        f"{entry['threshold']:.4f}" if fit.feasible else "infeasible: always frontier",
        *(f"{x:.3f}" for x in (fit.empirical_risk, fit.bound)),
    )
    return f"| {' | '.join(cells)} |"


def _paid(entry: Mapping[str, Any]) -> str:
    measured, before, rows = entry["measured"], entry["before"], entry["measured"]["frontier_rows"]
    cells = (
        entry["name"],
        _shares(measured),
        f"{measured['risk']['estimate']:.3f}; {measured['random_router_risk']:.3f}",
        f"{measured['frontier_misses']['estimate']:.0%} of {rows:.0f}" if rows else "-",
        f"{before['cost']:.2f}" if before else "-",
        f"{measured['cost']:.2f}",
        ranged(Interval(**measured["saving_over_constant_router"]), 2),
    )
    return f"| {' | '.join(cells)} |"


def _before_and_after(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of what the bundle's own policies do on the same rows; empty where it had promised nothing."""

    def row(name: str, threshold: float, measured: Mapping[str, Any]) -> str:
        return f"| {name} | {shown(threshold)} | {ranged(Interval(**measured['risk']))} | {_shares(measured)} |"

    both = [e for e in entries if e["before"] and e["before"]["feasible"]]
    if not both:
        return []
    lines = ["", "| on these rows | λ | risk | simple / standard / complex / frontier |", "|---|---:|---|---|"]
    for e in both:
        lines.append(row(f"{e['name']}, before", e["before"]["threshold"], e["before"]))
        lines.append(row(f"{e['name']}, after", e["threshold"], e["measured"]))
    return lines


def _shares(measured: Mapping[str, Any]) -> str:
    return " / ".join(f"{100 * share:.0f}" for share in measured["shares"]) + " %"
