"""The sentences of a report: what is promised, expected and measured, what it rests on, what to beware of.

Knows nothing of pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from classifier import labels
from classifier.policy import Guarantee, Policy
from classifier.prices import Prices
from classifier.savings import TODAY, Comparison, chosen_percent, dollars
from classifier.traffic import Traffic
from classifier.types import TIERS

FEWEST_REQUESTS = 100


def policy_facts(name: str, policy: Policy | None) -> dict[str, Any]:
    """A policy and its promise, in numbers and in a sentence."""
    if policy is None:
        return {"name": name, "promise": "The file does not say what the policy promises."}
    fit, top = policy.guarantee, policy.top_tier_guarantee
    return {
        "name": name,
        "threshold": policy.threshold,
        "guarantee": asdict(fit),
        "top_tier_guarantee": asdict(top) if top is not None else None,
        "promise": _promise(name, policy),
    }


def guarantee_of(report: Mapping[str, Any]) -> Guarantee:
    """The guarantee of a report's policy; an unproven one where the file does not say."""
    return Guarantee(**report["policy"].get("guarantee", {}))


def _promise(name: str, policy: Policy) -> str:
    fit, top = policy.guarantee, policy.top_tier_guarantee
    if not fit.feasible:
        return f"Policy {name} promises nothing: it was not fitted, or no threshold keeps its bound."
    bound = f"sends at most {chosen_percent(fit.alpha)} of requests to too small a tier"
    if fit.severity:
        losses = ", ".join(f"{loss:g}" for loss in fit.severity)
        bound = f"keeps the mean loss within {chosen_percent(fit.alpha)}, where 1, 2, 3 tiers too low lose {losses}"
    threshold, method = f"threshold {policy.threshold:.3f}", fit.method.replace("_", " ").lower()
    labels = f"the {fit.n:,} {fit.label} labels that it was fitted on"
    if not fit.proved:
        return (
            f"Policy {name} ({threshold}) promises nothing. By an estimate it {bound}, if requests of each tier are "
            f"like {labels} and only the shares of the tiers are others: an assumption, and no proof ({method})."
        )
    confidence = f"with confidence {chosen_percent(1 - fit.delta)}" if fit.delta else "on average over calibration sets"
    frontier = (
        f"At most {chosen_percent(top.alpha)} of frontier requests go below frontier."
        if top is not None and top.proved
        else "It promises nothing about frontier requests as such."
    )
    return (
        f"Policy {name} ({threshold}) {bound}, {confidence}, on traffic like {labels}, where it was "
        f"{fit.empirical_risk:.1%} ({method}). {frontier}"
    )


def risk_kinds(report: Mapping[str, Any], traffic: Traffic) -> list[dict[str, str]]:
    """The three numbers for routing's risk, each with what it rests on: promised, expected, measured."""
    expected, found = report["strategies"][0]["risk"], report["strategies"][0]["measured"]
    told = {
        "promised": report["policy"]["promise"],
        "expected": f"{_range(expected)} by the classifier's own probabilities on this traffic: as good as its "
        "calibration is here.",
        "measured": "Not known: the log carries no labels and no outcomes. To measure it label a random sample "
        "(classifier sample --random N --annotate).",
    }
    if found is not None:
        what = "outcomes" if set(labels.OUTCOMES) & set(traffic.columns) else "labels"
        names = ", ".join(traffic.columns[role] for role in labels.COLUMN_ROLES if role in traffic.columns)
        told["measured"] = (
            f"{_range(found['band'], found['risk_at_most']['estimate'])} by the {what} of {found['labels']:,} of "
            f"{len(traffic):,} requests in the log ({names}): that of the traffic, if they are a random part of it."
        )
        if found["open"]:
            told["measured"] += (
                f" Of {found['open']:,} it is not known whether the tier was too small: the range is none to all."
            )
        if what == "outcomes":
            told["measured"] += " An outcome is one try, and sometimes wrong about the tier."
    return [{"name": name, "says": says} for name, says in told.items()]


def _range(value: Mapping[str, float], at_most: float | None = None) -> str:
    """An estimate, or the two ends of one, with its interval."""
    estimate = f"{value['estimate']:.1%}"
    if at_most is not None and at_most > value["estimate"]:
        estimate += f" to {at_most:.1%}"
    return f"{estimate} (95% interval {value['low']:.1%} to {value['high']:.1%})"


def against_today(compared: Sequence[Comparison]) -> str:
    """What routing saves against today, in a sentence; empty where today is not known."""
    today = next((c for c in compared if c.name == TODAY), None)
    if today is None:
        return ""
    saving, low, high = today.saving
    sure = low * high > 0
    ends = sorted((abs(low), abs(high))) if sure else (low, high)
    span = f"{dollars(ends[0])} to {dollars(ends[1])}"
    change = f"saves {dollars(saving)}" if saving >= 0 else f"costs {dollars(-saving)} more"
    span = span if sure else f"saving {span}"
    return (
        f"Against today routing {change} ({span}), {abs(today.saving_share.estimate):.1%} of today's cost, on "
        f"{today.requests:,} requests of known cost."
    )


def _origin(prices: Prices) -> str:
    """Where the prices of the tiers are from."""
    if len(prices.defaults) == len(TIERS):
        return "Prices of the tiers are the defaults; --prices replaces them."
    if not prices.defaults:
        return f"Prices of the tiers come from {prices.source}."
    left_out = ", ".join(tier.label for tier in prices.defaults)
    return f"Prices of the tiers come from {prices.source}; it has none of {left_out}, which have the defaults."


def assumptions(traffic: Traffic, prices: Prices, report: Mapping[str, Any]) -> list[str]:
    """What the numbers rest on, a line each."""
    tokens = report["tokens"]
    counted_in, counted_out = tokens["input_counted_share"], tokens["output_counted_share"]
    estimated_out = tokens["output_estimated_share"]
    lines = [
        _origin(prices),
        f"Input tokens: {tokens['input']:,.0f}; "
        + _shared(
            {
                "counted by the log": counted_in,
                "estimated as a quarter of the conversation's characters": 1 - counted_in,
            }
        ),
        f"Output tokens: {tokens['output']:,.0f}; "
        + _shared(
            {
                "counted by the log": counted_out,
                "estimated as a quarter of the answer's characters": estimated_out,
                "assumed alike, because the log neither counts nor holds the answer": 1 - counted_out - estimated_out,
            }
        ),
        "Every model is taken to write as much as was written: a larger model's longer answer would cost more.",
    ]
    if TODAY in (s["name"] for s in report["strategies"]):
        known = next(s for s in report["strategies"] if s["name"] == TODAY)["requests"]
        where = f"column {traffic.columns['cost']}" if "cost" in traffic.columns else "model prices"
        lines.append(f"Today's cost is known for {known:,} of {len(traffic):,} requests, from the {where}.")
    if report["errors"]:
        lost = sum(report["errors"].values())
        lines.append(f"Rows that could not be labelled are left out of every number: {lost:,}.")
    if report["truncated"]:
        lines.append(f"Of {report['truncated']:,} long requests the classifier read beginning and end only.")
    used = ", ".join(f"{role.replace('_', ' ')} from {name}" for role, name in traffic.columns.items())
    lines.append(f"Columns: {used or 'none beside ours'}.")
    return lines


def _shared(ways: Mapping[str, float]) -> str:
    """How numbers came about: the one way, or each with its share of the requests."""
    there = {way: share for way, share in ways.items() if share > 1e-9}  # less is left over by sums
    if len(there) == 1:
        return f"{next(iter(there))}."
    return ", ".join(f"for {share:.1%} of requests {way}" for way, share in there.items()) + "."


def warnings(report: Mapping[str, Any], unpriced: Sequence[tuple[str, int]]) -> list[str]:
    """What to beware of, the gravest first.

    Args:
        report: the numbers.
        unpriced: models without a price, with their requests.
    """
    found = []
    if TODAY not in (s["name"] for s in report["strategies"]):
        why = "no model in the log has a price" if unpriced else "the log names no model and no cost"
        found.append(
            f"What this traffic costs today is not known ({why}): give --prices with a [models] table, or --column "
            "cost=NAME. Savings are against one model for all."
        )
    elif unpriced:
        names = ", ".join(f"{name} ({rows:,})" for name, rows in unpriced[:5])
        found.append(f"Requests of models without a price are left out of today's cost: {names}.")
    if report["rows"] < FEWEST_REQUESTS:
        found.append(f"Only {report['rows']:,} requests: intervals of so few are narrower than they should be.")
    found += _risk_warnings(report)
    if report["tokens"]["input_counted_share"] < 0.5:
        found.append("Most token counts are estimates: read dollars as rough, and shares as better.")
    return found


def _risk_warnings(report: Mapping[str, Any]) -> list[str]:
    """Where two of the three numbers for risk contradict each other, and where labels are no picture of the traffic."""
    fit, routed, found = guarantee_of(report), report["strategies"][0], []
    expected, measured = routed["risk"], routed["measured"]
    kinds = {"expected": expected}
    if report["drawn_by_tier"]:
        found.append(
            f"{report['drawn_by_tier']:,} of the labelled requests were drawn by tier or near a threshold, not at "
            "random: the measured risk is theirs, not the traffic's, and the recommendation leaves it out."
        )
    elif measured is not None:
        band = kinds["measured"] = measured["band"]
        if band["low"] > expected["high"] or band["high"] < expected["low"]:
            found.append(
                f"The measured risk, {_range(band)}, is {'above' if band['low'] > expected['high'] else 'below'} the "
                f"expected one, {expected['estimate']:.1%}: the probabilities are off on this traffic, and every "
                "expected number with them; recalibrate, and go by what was measured."
            )
    for kind, risk in kinds.items():
        if fit.feasible and not fit.severity and risk["low"] > fit.alpha:
            said, why = (
                ("promised", "it is unlike what the policy was calibrated on")
                if fit.proved
                else ("estimated", "more has changed than the shares of the tiers")
            )
            found.append(
                f"The {kind} risk on this traffic, {risk['estimate']:.1%}, is above the {said} "
                f"{chosen_percent(fit.alpha)}: {why}. Recalibrate on labelled requests of your own (classifier "
                "sample, then python -m training calibrate)."
            )
    return found
