"""`classifier classify`: the tier of a text, without a server."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from classifier.types import Decision

BAR_WIDTH = 24


@click.command(name="classify")
@click.argument("text")
@click.option("--bundle", metavar="PATH", envvar="CLASSIFIER_BUNDLE", help="Bundle folder. Default: the shipped one.")
@click.option("--policy", default="", metavar="NAME", help="Policy of the bundle. Default: its own default.")
@click.option("--floor", metavar="TIER", help="The answer is never below this tier.")
@click.option("--ceiling", metavar="TIER", help="The answer is never above this tier.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    *, text: str, bundle: str | None, policy: str, floor: str | None, ceiling: str | None, as_json: bool
) -> None:
    r"""Prints the tier that TEXT needs; `-` reads it from stdin.

    \b
    classifier classify "Prove that there are infinitely many primes."
    classifier classify --json - < prompt.txt
    """
    from classifier.bundle import SHIPPED
    from classifier.engine import Engine
    from classifier.errors import InvalidRequest
    from classifier.types import Request, Tier

    def bound(name: str, value: str | None) -> Tier | None:
        try:
            return Tier.parse(value) if value else None
        except ValueError as error:
            raise InvalidRequest(name, str(error)) from None

    if text == "-":
        text = sys.stdin.buffer.read().decode("utf-8", "replace")
    request = Request.from_text(text, policy=policy, floor=bound("floor", floor), ceiling=bound("ceiling", ceiling))
    decision = Engine.from_pretrained(bundle or SHIPPED).classify(request)
    click.echo(json.dumps(as_dict(decision)) if as_json else as_text(decision))


def as_dict(decision: Decision) -> dict[str, object]:
    """A decision for machines: the contract's names, tiers by label, times in seconds."""
    times = decision.timings
    return {
        "tier": decision.tier.label,
        "probabilities": [round(p, 6) for p in decision.probabilities],
        "model_tier": decision.model_tier.label,
        "reason": decision.reason.name,
        "policy": decision.policy,
        "threshold": decision.threshold,
        "guaranteed": decision.guaranteed,
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
    lines = [f"{decision.tier.label}  ({decision.reason.name.lower()}; policy {decision.policy}, {promise})"]
    for tier, probability in zip(TIERS, decision.probabilities, strict=True):
        mark = "›" if tier is decision.tier else " "
        lines.append(f"{mark} {tier.label:<9}{probability:6.3f}  {'▇' * round(probability * BAR_WIDTH)}")
    return "\n".join(lines)
