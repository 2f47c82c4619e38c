"""`classifier classify`: the tier of a text, without a server."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from classifier.cli._bundles import bundle_folder, bundle_option
from classifier.cli._json import json_option
from classifier.texts import typed

if TYPE_CHECKING:
    from classifier.explanation import Effect, Explanation
    from classifier.types import Decision, Request, Tier

BAR_WIDTH = 24
PART_CHARS = 60


@click.command(name="classify")
@click.argument("text", required=False)
@click.option(
    "--request", "path", metavar="FILE", help="A chat body as JSON: messages, tools, attachments; instead of TEXT."
)
@bundle_option
@click.option("--policy", default="", metavar="NAME", help="Policy of the bundle. Default: its own default.")
@click.option("--floor", metavar="TIER", help="The answer is never below this tier.")
@click.option("--ceiling", metavar="TIER", help="The answer is never above this tier.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="A label, such as data=restricted.")
@click.option("--routes", metavar="FILE", envvar="CLASSIFIER_ROUTES", help="Routing table. [CLASSIFIER_ROUTES]")
@click.option("--explain", "explained", is_flag=True, help="Say what led to the answer: some ten more runs.")
@json_option
def command(
    *,
    text: str | None,
    path: str | None,
    bundle: str | None,
    policy: str,
    floor: str | None,
    ceiling: str | None,
    labels: tuple[str, ...],
    routes: str | None,
    explained: bool,
    as_json: bool,
) -> None:
    r"""Prints the tier that TEXT needs; `-` reads it from stdin.

    \b
    classifier classify "Prove that there are infinitely many primes."
    classifier classify --json - < prompt.txt
    classifier classify --explain --request request.json --routes routing.toml --label data=restricted
    """
    from classifier.engine import Engine
    from classifier.explanation import explain
    from classifier.routing import read_table

    fields = {"policy": policy, "floor": _tier("floor", floor), "ceiling": _tier("ceiling", ceiling)}
    request = _request(text, path, {**fields, "labels": _labels(labels)})
    table = read_table(routes) if routes else None
    engine = Engine.from_pretrained(bundle_folder(bundle))
    explanation = explain(engine, request) if explained else None
    decision = engine.classify(request)
    if table is not None:
        decision = table.apply(decision, request)
    if as_json:
        more = {"explanation": explanation_as_dict(explanation)} if explanation else {}
        click.echo(json.dumps(as_dict(decision) | more))
        return
    click.echo(as_text(decision))
    if explanation:
        click.echo(explanation_as_text(explanation))


def _request(text: str | None, path: str | None, fields: dict[str, Any]) -> Request:
    from classifier.conversations import request_of_body
    from classifier.errors import InputError
    from classifier.types import Request

    if (text is None) == (path is None):
        raise click.UsageError("Give either TEXT or --request FILE.")
    try:
        source = text if path is None else path
        read = sys.stdin.buffer.read() if source == "-" else None
        if path is None:
            return Request.from_text(typed(str(text)) if read is None else read.decode("utf-8", "replace"), **fields)
        row = json.loads(Path(path).read_bytes() if read is None else read)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a file with one JSON object") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not JSON ({type(error).__name__}); give one object with messages") from None
    if not isinstance(row, dict):
        raise InputError(f"{path}: expected one JSON object with messages, found a {type(row).__name__}")
    prompt = row.get("prompt")  # an object there names a prompt that a provider keeps, beside an `input`
    return request_of_body(row if isinstance(prompt, dict) else {"messages": prompt, **row}, **fields)


def _tier(name: str, value: str | None) -> Tier | None:
    from classifier.errors import InvalidRequest
    from classifier.types import Tier

    try:
        return Tier.parse(value) if value else None
    except ValueError as error:
        raise InvalidRequest(name, str(error)) from None


def _labels(pairs: Sequence[str]) -> dict[str, str]:
    from classifier.errors import InvalidRequest

    if wrong := [pair for pair in pairs if "=" not in pair]:
        raise InvalidRequest("label", f"expected NAME=VALUE, found {wrong[0][:64]!r}")
    return dict(typed(pair).split("=", 1) for pair in pairs)


def as_dict(decision: Decision) -> dict[str, object]:
    """A decision for machines: the contract's names, tiers by label, times in seconds."""
    times = decision.timings
    return {
        "tier": decision.tier.label,
        "probabilities": [round(p, 6) for p in decision.probabilities],
        "model_tier": decision.model_tier.label,
        "reason": decision.reason.label,
        "policy": decision.policy,
        "threshold": decision.threshold,
        "guaranteed": decision.guaranteed,
        "route": decision.route,
        "truncated": decision.truncated,
        "input_tokens": decision.input_tokens,
        "bundle_version": decision.bundle_version,
        "calibration_revision": decision.calibration_revision,
        "timings": {"prepare": times.prepare, "model": times.model, "total": times.total},
    }


def as_text(decision: Decision) -> str:
    """A decision for people: the tier, and a bar for each probability."""
    from classifier.types import TIERS

    promise = "guaranteed" if decision.guaranteed else "no guarantee"
    lines = [f"{decision.tier.label}  ({decision.reason.label}; policy {decision.policy}, {promise})"]
    if decision.route:
        lines[0] += f"  route {decision.route}"
    for tier, probability in zip(TIERS, decision.probabilities, strict=True):
        mark = "›" if tier is decision.tier else " "
        lines.append(f"{mark} {tier.label:<9}{probability:6.3f}  {'▇' * round(probability * BAR_WIDTH)}")
    return "\n".join(lines)


def explanation_as_dict(found: Explanation) -> dict[str, object]:
    """An explanation for machines. Pulls are in tiers; `start` and `end` count characters of what the model reads."""

    def effect(one: Effect) -> dict[str, object]:
        return {"what": one.what, "pull": round(one.pull, 4), "tier": one.tier.label}

    def part(one: Effect) -> dict[str, object]:
        return effect(one) | {"start": one.start, "end": one.end}

    return {
        "threshold": found.decision.threshold,
        "top_tier_threshold": found.top_tier_threshold,
        "boundaries": [
            {"tier": b.tier.label, "cumulative": round(b.cumulative, 6), "margin": round(b.margin, 6)}
            for b in found.boundaries
        ],
        "signals": [effect(one) | {"instead": one.instead} for one in found.signals],
        "context": effect(found.context) if found.context else None,
        "parts": [part(one) for one in found.parts],
        "detail": [part(one) for one in found.detail],
        "runs": found.runs,
    }


def explanation_as_text(found: Explanation) -> str:
    """An explanation for people."""
    decision = found.decision
    lines = ["", f"thresholds: the cheapest tier t with P(label <= t) >= {decision.threshold:.3f}"]
    for boundary in found.boundaries:
        side = "enough by" if boundary.margin >= 0 else "short by "
        lines.append(f"  {boundary.tier.label:<9}{boundary.cumulative:6.3f}  {side} {abs(boundary.margin):.3f}")
    if found.top_tier_threshold:
        above = decision.probabilities[-1] - found.top_tier_threshold
        side = "reached by" if above >= 0 else "missed by"
        lines.append(f"  frontier where P(frontier) >= {found.top_tier_threshold:.3f}: {side} {abs(above):.3f}")
    lines += ["", "pull: by how many tiers it makes the request look harder, and the tier without it"]
    for one in found.signals:
        lines.append(f"  {_pull(one, decision)}  {one.what}" + (f" instead of {one.instead}" if one.pull else ""))
    if found.context:
        lines.append(f"  {_pull(found.context, decision)}  the conversation before")
    lines += [f"  {_pull(one, decision)}  {_quoted(one.what)}" for one in found.parts]
    if found.detail:
        strongest = max(found.parts, key=lambda one: abs(one.pull))
        lines += ["", f"within {_quoted(strongest.what)}"]
        lines += [f"  {_pull(one, decision)}  {_quoted(one.what)}" for one in found.detail]
    return "\n".join(lines)


def _pull(one: Effect, decision: Decision) -> str:
    moved = f"→ {one.tier.label}" if one.tier is not decision.tier else ""
    return f"{round(one.pull, 2) + 0.0:+6.2f}  {moved:<10}"  # + 0.0 makes -0.00 of nothing +0.00


def _quoted(text: str) -> str:
    flat = " ".join(text.split())
    if len(flat) > PART_CHARS:
        flat = f"{flat[: PART_CHARS // 2].rstrip()} … {flat[-PART_CHARS // 2 :].lstrip()}"
    return json.dumps(flat, ensure_ascii=False)
