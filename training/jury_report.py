"""What a jury found and what it took, and what one would take: numbers, and the same for a terminal.

Pure.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from classifier.prices import Price
from classifier.progress import Tally
from classifier.types import TIERS, Tier
from training.agreement import Agreement, between, overall, pairwise
from training.jury_cases import Case
from training.jury_journal import Journal, Spent
from training.jury_run import Jury, Sitting, cost_of, cost_usd, uncounted

BYTES_PER_TOKEN = 4.0
"""Of text in UTF-8, until an endpoint has counted some."""
MESSAGE_TOKENS = 8
"""That a chat template adds to two messages."""
ANSWER_TOKENS = 60
"""Of a vote, until an endpoint has counted some; a model that thinks first takes hundreds or thousands."""


def estimate(
    jury: Jury,
    cases: Sequence[Case],
    tally: Tally,
    journal: Journal,
    prices: Mapping[str, Price],
    a_minute: float | None,
) -> dict[str, Any]:
    """What the open questions would take, by model.

    What the journal's responses took is the measure, where there are some; else the length of the texts.
    """
    lengths = {case.row: _tokens(jury, case) for case in cases}
    models: dict[str, dict[str, Any]] = {}
    for model in jury.models:
        questions = [q for case in cases for q in jury.open(case, journal) if q.model == model]
        known = [lengths[q.row] for q in journal.votes if q.model == model and q.row in lengths]
        spent = journal.spent.get(model, Spent())
        counted = spent.counted
        # An endpoint's tokens are not ours: what it counted says how many there are to one of them.
        factor = spent.prompt_tokens / counted / (sum(known) / len(known)) if counted and known else 1.0
        read = factor * sum(lengths[q.row] for q in questions)
        written = len(questions) * (spent.completion_tokens / counted if counted else ANSWER_TOKENS)
        price = prices.get(model)
        models[model] = {
            "questions": len(questions),
            "prompt_tokens": round(read),
            "completion_tokens": round(written),
            "cost": None if price is None else cost_usd(price, read, written),
        }
    count = sum(m["questions"] for m in models.values())
    return {
        **_rows(cases, tally),
        "questions": count,
        "answered_before": sum(q in journal.votes for case in cases for q in jury.questions(case)),
        "models": models,
        "cost": _sum(m["cost"] for m in models.values()),
        "minutes_at_least": count / a_minute if a_minute else None,
    }


def estimate_as_text(found: Mapping[str, Any]) -> str:
    """The estimate for a terminal."""
    lines = [_rows_text(found)]
    lines += [f"{found['questions']:,} questions to put, {found['answered_before']:,} are answered"]
    for model, m in found["models"].items():
        lines.append(
            f"  {model}: {m['questions']:,} questions, about {m['prompt_tokens']:,} tokens read and "
            f"{m['completion_tokens']:,} written, {_money(m['cost'])}"
        )
    cost = "no price known: give --prices" if found["cost"] is None else f"about {_money(found['cost'])} in all"
    lines.append(f"{cost}; a model that thinks before it answers takes far more")
    if found["minutes_at_least"] is not None:
        lines.append(f"at least {found['minutes_at_least']:.0f} minutes at this rate")
    return "\n".join(lines)


def summary(
    jury: Jury,
    cases: Sequence[Case],
    tally: Tally,
    journal: Journal,
    sitting: Sitting,
    rated: Sequence[tuple[Case, Mapping[str, Any]]],
    prices: Mapping[str, Price],
) -> dict[str, Any]:
    """What a sitting left: plain JSON values, NaN where nothing can be said."""
    lines = [line for _, line in rated]
    votes = [{model: [v.tier for v in said] for model, said in jury.said(case, journal).items()} for case, _ in rated]
    stated = [(Tier.parse(line["tier"]), case.stated) for case, line in rated if case.stated]
    spent = {model: asdict(journal.spent.get(model, Spent())) for model in jury.models}
    silent = uncounted(jury, journal)
    costed = [m for m in jury.models if m in prices and m not in silent]
    open_rows = sum(bool(jury.open(case, journal)) for case in cases)
    return {
        **_rows(cases, tally),
        "rated": len(lines),
        "open_rows": open_rows,
        "without_majority": len(cases) - len(lines) - open_rows,
        "tiers": {tier.label: sum(line["tier"] == tier.label for line in lines) for tier in TIERS},
        "steering": sum(bool(line["steering"]) for line in lines),
        "answered_now": sitting.answered,
        "responses": sum(s["responses"] for s in spent.values()),
        "refused": dict(journal.reasons),
        "in_vain": dict(sitting.in_vain),
        "ended": sitting.ended,
        "agreement": asdict(overall(votes)),
        "pairwise": [{"readers": list(pair), **asdict(found)} for pair, found in pairwise(votes).items()],
        "against_stated": asdict(between([t for t, _ in stated], [s for _, s in stated if s])) if stated else None,
        "spent": spent,
        "cost": cost_of(journal, prices) if costed else None,
        "cost_estimated": any(spent[m]["uncounted"] for m in costed),
        "unpriced": [m for m in jury.models if m not in prices],
        "silent": silent,
    }


def summary_as_text(found: Mapping[str, Any]) -> str:
    """The summary for a terminal."""
    lines = [
        _rows_text(found),
        f"{found['rated']:,} rated: " + ", ".join(f"{n:,} {tier}" for tier, n in found["tiers"].items())
        + _also(found["open_rows"], "still open") + _also(found["without_majority"], "left out, too few votes"),
        f"{found['responses']:,} responses, {found['answered_now']:,} of them now"
        + "".join(f"; {n:,} refused: {why}" for why, n in found["refused"].items())
        + "".join(f"; {n:,} questions without an answer: {why}" for why, n in found["in_vain"].items()),
        f"{found['steering']:,} rows flagged for steering",
    ]  # fmt: skip
    if found["agreement"]["pairs"]:
        lines.append(f"agreement of {found['agreement']['pairs']:,} pairs of votes: {_agreement(found['agreement'])}")
        for pair in found["pairwise"]:
            one, other = pair["readers"]
            named = f"{one} with itself" if one == other else f"{one} with {other}"
            lines.append(f"  {named}: {_agreement(pair)} ({pair['pairs']:,} pairs)")
    if found["against_stated"]:
        stated = found["against_stated"]
        lines.append(f"against the tiers that the file states: {_agreement(stated)} ({stated['pairs']:,} rows)")
    read, written, unsaid = (
        sum(s[name] for s in found["spent"].values()) for name in ("prompt_tokens", "completion_tokens", "uncounted")
    )
    cost = "no cost known" if found["cost"] is None else _money(found["cost"])
    cost += " estimated" if found["cost_estimated"] else ""
    left_out = dict.fromkeys((*found["unpriced"], *found["silent"]))
    cost += f" without {', '.join(left_out)}" if found["cost"] is not None and left_out else ""
    lines.append(
        f"{read:,} tokens read, {written:,} written, {cost}" + _also(unsaid, "responses did not say their tokens")
    )
    if found["ended"] == "interrupted":
        lines.append("stopped; the same command goes on from here")
    return "\n".join(lines)


def _rows(cases: Sequence[Case], tally: Tally) -> dict[str, Any]:
    return {"rows": tally.rows, "cases": len(cases), "repeated": tally.repeats, "bad": dict(Counter(tally.errors)),
            "bad_examples": tally.examples}  # fmt: skip


def _rows_text(found: Mapping[str, Any]) -> str:
    bad = [
        f"; {n:,} cannot be used: {why} ({', '.join(found['bad_examples'].get(why, []))})"
        for why, n in found["bad"].items()
    ]
    return f"{found['rows']:,} rows, {found['cases']:,} different" + "".join(bad)


def _tokens(jury: Jury, case: Case) -> float:
    texts = (message["content"] for message in jury.messages(case, "00000000"))
    return sum(len(text.encode()) for text in texts) / BYTES_PER_TOKEN + MESSAGE_TOKENS


def _sum(costs: Any) -> float | None:
    known = [cost for cost in costs if cost is not None]
    return math.fsum(known) if known else None


def _money(dollars: float | None) -> str:
    return "no price known" if dollars is None else f"${dollars:,.4f}" if dollars < 1 else f"${dollars:,.2f}"


def _also(count: int, what: str) -> str:
    return f"; {count:,} {what}" if count else ""


def _agreement(found: Mapping[str, Any]) -> str:
    return Agreement(**{name: found[name] for name in ("pairs", "raw", "kappa")}).as_text()
