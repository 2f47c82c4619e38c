"""`classifier report`: what tiered routing of labelled traffic would save."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

TEXT_CHARS = 400


@click.command(name="report")
@click.argument("labelled", metavar="OUT")
@click.option("--prices", "prices_path", metavar="FILE", help="TOML: [tiers] and [models], or a routing table.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="Write the page there (.html).")
@click.option("--json", "machine", is_flag=True, help="Print every number as one JSON object.")
@click.option("--by", multiple=True, metavar="COLUMN", help="Split by this column, too; may be given again.")
@click.option(
    "--column",
    "columns",
    multiple=True,
    metavar="ROLE=COLUMN",
    help="Where a fact stands, if not found by itself: time, model, tenant, input_tokens, cache_read_tokens and "
    "cache_creation_tokens (counted beside these), output_tokens, cost, id, response, label, at_least, at_most, "
    "verdict, cause, served_tier, accepted_tier. An empty COLUMN means nowhere.",
)
@click.option(
    "--assume-output-tokens",
    default=300,
    show_default=True,
    type=click.IntRange(0),
    metavar="N",
    help="Of answers that the log neither counts nor holds.",
)
@click.option("--top", default=20, show_default=True, type=click.IntRange(0, 500), help="Requests to list by money.")
@click.option("--text-field", default="prompt", show_default=True, metavar="NAME", help="Column of the prompts.")
@click.option("--show-text", is_flag=True, help="Show the beginning of those requests' rated messages on the page.")
def command(
    *,
    labelled: str,
    prices_path: str | None,
    output: Path | None,
    machine: bool,
    by: tuple[str, ...],
    columns: tuple[str, ...],
    assume_output_tokens: int,
    top: int,
    text_field: str,
    show_text: bool,
) -> None:
    r"""Says what routing the labelled traffic would cost and save.

    OUT is what `classifier label` wrote.

    Compares the policy's routing with today, with one model for all, and with a router that draws the same shares of
    tiers without looking; with intervals and the risk beside every saving.

    \b
    classifier report labelled.parquet
    classifier report labelled.parquet --prices prices.toml -o report.html
    classifier report labelled.parquet --json | jq .recommendation
    """
    from classifier.page import check_page, write_page
    from classifier.prices import Prices, read_prices
    from classifier.report import analyse
    from classifier.report_page import as_text, page
    from classifier.texts import finite
    from classifier.traffic import read_traffic

    prices = read_prices(prices_path) if prices_path else Prices()
    if output is not None:
        check_page(output)
    traffic = read_traffic(
        labelled, by=by, named=named_columns(columns), assumed_output_tokens=assume_output_tokens, text_field=text_field
    )
    report = analyse(traffic, prices, top=top)
    if output is not None:
        texts = _texts(labelled, [m["position"] for m in report["movers"]], text_field) if show_text else []
        write_page(output, page(report, texts))
        click.echo(f"page in {output}", err=True)
    click.echo(json.dumps(finite(report), allow_nan=False) if machine else as_text(report))


def named_columns(columns: Sequence[str]) -> dict[str, str]:
    """`("time=when", ...)` → role → column.

    Raises:
        click.UsageError: one is not ROLE=COLUMN with a known role.
    """
    from classifier.columns import USUAL_NAMES

    pairs = [text.partition("=") for text in columns]
    for role, sign, _ in pairs:
        if not sign or role not in USUAL_NAMES:
            roles = ", ".join(USUAL_NAMES)
            raise click.UsageError(f"--column: expected ROLE=COLUMN with a role of {roles}, found {role!r}")
    return {role: name for role, _, name in pairs}


def _texts(path: str, positions: Sequence[int], text_field: str) -> list[str]:
    from classifier.traffic import read_rows

    return [_rated_message(row, text_field)[:TEXT_CHARS] for row in read_rows(path, positions)]


def _rated_message(row: dict[str, Any], text_field: str) -> str:
    from classifier.errors import InvalidRequest
    from classifier.inputs import rated_text
    from classifier.payloads import request_of_row

    try:
        request = request_of_row(row, text_field=text_field)
    except InvalidRequest:
        return ""
    return rated_text(request)
