"""`python -m training calibrate`: options to `training.calibrate`, and its report as text, JSON or a figure.

Knows nothing of how a threshold is fitted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from classifier.routing import PRICES
from classifier.texts import finite
from training.decision_log import AUDIT_LABEL, parse_audit

MOST_SEED = 2**32 - 1
"""Of numpy and torch."""
POLICIES = ("economy=0.20", "balanced=0.10", "quality=0.05")
FIGURES = (".svg", ".png", ".pdf")


def named_number(text: str) -> tuple[str, float]:
    """Name and number of `NAME=NUMBER`; NaN for what is no number."""
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        return name, math.nan


def parse_policies(texts: Sequence[str]) -> dict[str, float]:
    """`("balanced=0.10", ...)` → name → alpha.

    Raises:
        click.BadParameter: one is not NAME=ALPHA, or a name is given twice.
    """
    parsed: dict[str, float] = {}
    for text in texts:
        name, alpha = named_number(text)
        if not name or math.isnan(alpha):
            raise click.BadParameter(f"{text!r} is not NAME=ALPHA, as in balanced=0.10")
        if name in parsed:
            raise click.BadParameter(f"{name!r} is given twice, with {parsed[name]:g} and {alpha:g}; give it once")
        parsed[name] = alpha
    return parsed


def prices(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """A callback for dollars a million tokens: four numbers that do not fall, from the cheapest tier up."""
    found = numbers(4)(context, parameter, value)
    if found is not None and (list(found) != sorted(found) or found[0] < 0 or found[-1] <= 0):
        raise click.BadParameter(f"{value!r} are no prices by tier: 0 or more each, none below the one before it")
    return found


def numbers(count: int) -> Callable[[click.Context, click.Parameter, str | None], tuple[float, ...] | None]:
    """A callback for an option of so many numbers with commas between them."""

    def parse(_: click.Context, __: click.Parameter, value: str | None) -> tuple[float, ...] | None:
        if value is None:
            return None
        try:
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != count or not all(map(math.isfinite, numbers)):
            raise click.BadParameter(f"{value!r} is not {count} numbers with commas between them")
        return numbers

    return parse


prices_option = partial(
    click.option,
    "--prices",
    callback=prices,
    default=",".join(map(str, PRICES.values())),
    show_default=True,
    metavar="A,B,C,D",
)
audit_label = click.option(
    "--audit-label", "audit", callback=lambda _, __, value: parse_audit(value), default=AUDIT_LABEL, show_default=True,
    metavar="NAME=VALUE", help="What marks audits in an export of the feedback store.",
)  # fmt: skip


@click.command("calibrate")
@click.option("--bundle", required=True, type=click.Path(path_type=Path), help="The bundle to start from.")
@click.option(
    "--data",
    required=True,
    multiple=True,
    help="Labelled rows the bundle has not seen; or one .npz, or one export of the feedback store. Repeatable.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the new bundle.")
@click.option("--policy", "policies", multiple=True, metavar="NAME=ALPHA", help="Risk to promise. Repeatable.",
              default=POLICIES, show_default=True)  # fmt: skip
@click.option("--fit-data", multiple=True, help="Rows that fit the probability map, not half of --data. Repeatable.")
@click.option(
    "--also", multiple=True, help="Rows of other kinds, or a .npz: λ keeps the promise on them too. Repeatable."
)
@click.option("--delta", type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="DELTA",
              help="Promise with confidence 1 - DELTA instead of on the expectation.")  # fmt: skip
@click.option("--top-tier-miss", type=float, help="Share of frontier requests that may be missed.")
@click.option("--group-by", help="'script', or a label that the gateway sends: the promise holds in each group.")
@click.option("--severity", callback=numbers(3), metavar="A,B,C", help="Loss of 1, 2, 3 tiers too low, at most 1.")
@click.option("--epsilon", type=float, default=0.0, help="Share of requests that will be explored.")
@click.option("--exempt-label", "exempt_labels", multiple=True, metavar="NAME[=VALUE]",
              help="Requests with this label are never explored. Repeatable.")  # fmt: skip
@click.option(
    "--prior-shift",
    multiple=True,
    help="Unlabelled traffic, or one export: move the thresholds to its tier shares. Repeatable.",
)
@audit_label
@click.option("--default", help="Policy for requests that name none.")
@prices_option(help="Dollars a million tokens, by tier, for the report.")
@click.option("--seed", type=click.IntRange(0, MOST_SEED), default=0, show_default=True)
@click.option(
    "--report", type=click.Path(dir_okay=False, path_type=Path), help="Write the whole report there, as JSON."
)
@click.option("--plot", "figure", type=click.Path(dir_okay=False, path_type=Path),
              help="Draw reliability, risk and cost there (.svg, .png, .pdf).")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON.")
def command(
    bundle: Path, data: tuple[str, ...], out: Path, policies: tuple[str, ...], report: Path | None, figure: Path | None,
    as_json: bool,
    fit_data: tuple[str, ...], also: tuple[str, ...], prior_shift: tuple[str, ...], **options: Any,
) -> None:  # fmt: skip
    r"""Fits probabilities and thresholds anew.

    Nothing is retrained: a new bundle has the weights of the old one.

    \b
    python -m training calibrate --bundle runs/base/bundle --data mine.jsonl --out runs/mine --delta 0.05
    """
    from training.calibrate import calibrate
    from training.calibration_plot import plot
    from training.calibration_text import as_text

    for name, path in (("--report", report), ("--plot", figure)):
        if path is not None and not path.absolute().parent.is_dir():
            raise click.UsageError(f"{name} {path}: there is no folder {path.parent}")
    if figure is not None and figure.suffix not in FIGURES:
        raise click.UsageError(f"--plot {figure}: give a name that ends in {', '.join(FIGURES)}")
    found = calibrate(
        bundle,
        list(data),
        out,
        policies=parse_policies(policies),
        fit_paths=list(fit_data) or None,
        also_paths=list(also) or None,
        prior_shift=list(prior_shift) or None,
        **options,
    )
    text = json.dumps(finite(found), indent=1)
    if report is not None:
        report.write_text(text + "\n", encoding="utf-8")
    if figure is not None:
        plot(found, figure)
    click.echo(
        text if as_json else f"{as_text(found)}\nbundle {found['bundle']['version']} in {found['bundle']['path']}"
    )
