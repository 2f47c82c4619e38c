"""`python -m training jury`: rows of logs → corpus lines, labelled by language models of the user's choice."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from classifier.addresses import is_local
from classifier.errors import GateNotMet, InputError
from classifier.payloads import FORMATS
from training.corpus import OWN_DATA
from training.jury import ANSWER_FORMATS, MOST_CHARS

if TYPE_CHECKING:
    from classifier.prices import Price

GUIDELINES = OWN_DATA / "GUIDELINES.md"


@click.command(name="jury")
@click.argument("inputs", nargs=-1, required=True, metavar="IN...")
@click.option("-o", "--out", "output", required=True, type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Corpus file to make or to go on with (.jsonl); FILE.votes keeps every answer.")  # fmt: skip
@click.option("--base-url", required=True, metavar="URL", help="Of an OpenAI-compatible endpoint, up to /v1.")
@click.option("--model", "models", required=True, multiple=True, metavar="NAME", help="As it names it. Repeatable.")
@click.option("--votes", type=click.IntRange(1, 99), default=1, show_default=True, help="Of each model on each row.")
@click.option("--api-key-env", metavar="NAME", help="Environment variable with the key. Without it none is sent.")
@click.option("--format", "row_format", type=click.Choice(FORMATS), default="auto", show_default=True, help="Of a row.")
@click.option("--text-field", default="prompt", show_default=True, metavar="NAME", help="The column of prompts.")
@click.option("--sample", "share", type=click.FloatRange(0, 1, min_open=True), default=1.0, metavar="SHARE",
              help="Rate this share of the rows, drawn by a hash.")  # fmt: skip
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Rate the first N rows only.")
@click.option("--source", default="", metavar="NAME", help="Of rows that name none. Default: the file's name.")
@click.option("--prices", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="Dollars a million tokens of each model, [models] in TOML, as for `classifier report`.")  # fmt: skip
@click.option("--budget", type=click.FloatRange(0, min_open=True), metavar="DOLLARS",
              help="Put no more questions once so much is spent, earlier runs included. Needs --prices.")  # fmt: skip
@click.option("--rate", type=click.FloatRange(0, min_open=True), metavar="N", help="Most questions a minute.")
@click.option("--concurrency", type=click.IntRange(1, 256), default=8, show_default=True, help="Questions under way.")
@click.option("--timeout", type=click.FloatRange(1), default=120.0, show_default=True, help="Seconds for an answer.")
@click.option("--answer-format", type=click.Choice(ANSWER_FORMATS), default="schema", show_default=True,
              help="What the endpoint can hold an answer to: a JSON schema, a JSON object, neither.")  # fmt: skip
@click.option("--body", default="{}", metavar="JSON", help="More of each request: '{\"temperature\": 0.7}'.")
@click.option("--max-chars", type=click.IntRange(400), default=MOST_CHARS, show_default=True,
              help="Characters of a conversation that jurors see.")  # fmt: skip
@click.option("--guidelines", type=click.Path(dir_okay=False, path_type=Path), default=GUIDELINES, metavar="FILE",
              help="The rubric. Default: data/GUIDELINES.md.")  # fmt: skip
@click.option("--again", is_flag=True, help="Put questions again whose answers were refused three times.")
@click.option("--dry-run", is_flag=True, help="Only say what would be asked, and about what it would cost.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def command(
    inputs: tuple[str, ...], output: Path, base_url: str, models: tuple[str, ...], votes: int, api_key_env: str | None,
    row_format: str, text_field: str, share: float, limit: int | None, source: str, prices: Path | None,
    budget: float | None, rate: float | None, concurrency: int, timeout: float, answer_format: str, body: str,
    max_chars: int, guidelines: Path, again: bool, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    r"""Has language models label your requests by the rubric.

    They stand behind an OpenAI-compatible endpoint. IN is whatever `classifier label` reads. A run that was stopped
    goes on when the same command is given again; no answer that came is asked for twice. Texts go to --base-url and
    nowhere else.

    \b
    python -m training jury logs/ -o mine.jsonl --base-url http://localhost:8000/v1 --model qwen3-32b --votes 3
    """
    import asyncio

    from classifier.prices import read_prices
    from classifier.readers import Selection
    from classifier.texts import finite
    from training.jury_cases import read_cases
    from training.jury_journal import open_journal, read_journal
    from training.jury_report import estimate, estimate_as_text, summary, summary_as_text
    from training.jury_run import Jury, cost_of, rated, sit, uncounted, write_lines
    from training.progress import progress_bar

    key = _key(api_key_env)
    known: Mapping[str, Price] = read_prices(prices).models if prices else {}
    for name, number in (("budget", budget), ("rate", rate), ("timeout", timeout), ("sample", share)):
        if number is not None and not math.isfinite(number):
            raise click.UsageError(f"--{name}: give a number")
    if budget is not None and (unpriced := [m for m in models if m not in known]):
        raise click.UsageError(f"--budget: --prices has no price of {unpriced[0]}, so nobody would know when to stop")
    if len(set(models)) < len(models):
        raise click.UsageError("--model: one is named twice; more votes of it are --votes")
    if output.suffix != ".jsonl":
        raise click.UsageError(f"--out {output}: expected a name that ends in .jsonl")
    if not output.absolute().parent.is_dir():
        raise click.UsageError(f"--out {output}: there is no folder {output.parent}")
    jury = Jury.of(
        models, votes, _text(guidelines), most_chars=max_chars, answer_format=answer_format, body=_object(body)
    )
    endpoint_of = _endpoint_of(base_url, key, jury, rate=rate, width=concurrency, timeout=timeout)
    cases, tally = read_cases(
        inputs, row_format=row_format, text_field=text_field, selection=Selection(share, limit), source=source,
        written=str(output),
    )  # fmt: skip
    if not cases:
        raise InputError(f"none of the {tally.rows} rows holds a request; see --format and --text-field")
    if dry_run:
        found = estimate(jury, cases, tally, read_journal(output, jury.facts), known, rate)
        click.echo(json.dumps(finite(found)) if as_json else estimate_as_text(found))
        return
    with open_journal(output, jury.facts) as journal:
        if again:
            journal.refused.clear()
        left = sum(len(jury.open(case, journal)) for case in cases)
        with progress_bar(total=left, desc="jury", unit="question") as bar:

            async def hear() -> Any:
                async with endpoint_of() as endpoint:
                    return await sit(
                        jury, cases, journal, endpoint, width=concurrency, told=bar.update,
                        spent_up=lambda: budget is not None and (
                            cost_of(journal, known) >= budget or bool(uncounted(jury, journal))
                        ),
                        say=lambda text: bar.write(text, file=sys.stderr),
                    )  # fmt: skip

            try:
                sitting = asyncio.run(hear())
            finally:  # what is answered is paid for, also where the endpoint gives out on the way
                found_rows = rated(jury, cases, journal)
                write_lines(output, [line for _, line in found_rows])
        found = summary(jury, cases, tally, journal, sitting, found_rows, known)
    click.echo(json.dumps(finite(found)) if as_json else summary_as_text(found))
    if sitting.ended == "interrupted":
        raise KeyboardInterrupt
    if sitting.ended == "budget" and (silent := uncounted(jury, journal)):
        raise InputError(
            f"--budget: the endpoint does not say what {silent[0]}'s answers took, so nobody knows when to stop; leave "
            "it out, and give --limit"
        )
    if sitting.ended == "budget":
        raise GateNotMet(f"the budget of ${budget:g} is spent and {found['open_rows']} rows are open; raise --budget")
    if not found_rows:
        why = "; ".join(f"{why} ({n:,} times)" for why, n in (found["refused"] or found["in_vain"]).items())
        raise InputError(f"no row could be rated: {why}; see docs/jury.md")


def _endpoint_of(base_url: str, key: str, jury: Any, *, rate: float | None, width: int, timeout: float) -> Any:
    """What makes the endpoint, its settings checked now."""
    from training.jury_endpoint import Endpoint, Pace, checked_url

    url = checked_url(base_url)
    if key and url.scheme == "http" and not is_local(f"{url.host}:0"):
        click.echo(
            f"the key goes to {url.host} unencrypted; give an https:// URL if that is not what you want", err=True
        )
    return lambda: Endpoint(url, key=key, body=jury.members, pace=Pace(rate), timeout=timeout, connections=width)


def _key(name: str | None) -> str:
    if name is None:
        return ""
    key = os.environ.get(name, "")
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise click.UsageError(f"--api-key-env {name}: the variable holds {'no key' if not key else 'what is no key'}")
    return key


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--guidelines {path}: cannot be read ({type(error).__name__})") from None


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise click.UsageError(f"--body {text[:40]}: expected a JSON object")
    if taken := [name for name in ("messages", "model", "stream", "n") if name in found]:
        raise click.UsageError(f"--body: {taken[0]} is the jury's own; leave it out")
    return found
