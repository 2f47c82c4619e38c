"""`classifier label`: traffic logs in bulk."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from classifier.cli._bundles import bundle_folder, bundle_option
from classifier.payloads import FORMATS

if TYPE_CHECKING:
    from classifier.answering import Maker
    from classifier.progress import Progress
    from classifier.runs import Options

_LINE_SECONDS = 0.5


@click.command(name="label")
@click.argument("inputs", nargs=-1, required=True, metavar="IN...")
@click.option(
    "-o", "--output", required=True, metavar="OUT", help="A .parquet, .jsonl or .csv file to make; with ray a folder."
)
@click.option(
    "--format", "row_format", default="auto", show_default=True, type=click.Choice(FORMATS), help="What a row is."
)
@click.option("--text-field", default="prompt", show_default=True, metavar="NAME", help="The column of prompts.")
@click.option("--policy", default="", metavar="NAME", help="Policy of the bundle. Default: its own default.")
@bundle_option
@click.option("--sample", "share", default=1.0, metavar="SHARE", help="Label this share of the rows, 0 to 1.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Label the first N rows only.")
@click.option("--processes", type=click.IntRange(1), metavar="N", help="Default: as many as there are cores.")
@click.option(
    "--engine",
    default="local",
    show_default=True,
    type=click.Choice(("local", "ray")),
    help="This machine or a cluster.",
)
@click.option("--ray-address", envvar="RAY_ADDRESS", metavar="ADDRESS", help="Of the cluster. [RAY_ADDRESS]")
@click.option("--address", metavar="HOST:PORT", help="Ask this server instead of running the model here.")
@click.option("--token", envvar="CLASSIFIER_TOKEN", metavar="TEXT", help="Bearer token for it. [CLASSIFIER_TOKEN]")
@click.option("--tls-ca", metavar="FILE", help="PEM file of the authority that signed its certificate.")
@click.option("--tls-cert", metavar="FILE", help="PEM file of the certificate chain shown to it (mTLS).")
@click.option("--tls-key", metavar="FILE", help="PEM file of that certificate's key.")
@click.option("--dry-run", is_flag=True, help="Only say what would be read, how, and about how long it would take.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def command(
    *,
    inputs: tuple[str, ...],
    output: str,
    row_format: str,
    text_field: str,
    policy: str,
    bundle: str | None,
    share: float,
    limit: int | None,
    processes: int | None,
    engine: str,
    ray_address: str | None,
    address: str | None,
    token: str | None,
    dry_run: bool,
    as_json: bool,
    **tls: str | None,
) -> None:
    r"""Labels logs with the tier that each request needs.

    IN is a file, folder, glob or URL of JSON lines, CSV, TSV or Parquet, or - for stdin. A run that was stopped goes on
    when the same command is given again. Bad rows are kept with their error.

    \b
    classifier label logs/ -o labelled.parquet
    classifier label "s3://logs/2026-01-*.jsonl.gz" -o january.parquet --policy economy
    classifier label prompts.csv -o labelled.csv --text-field question
    zcat logs.gz | classifier label - -o labelled.jsonl
    classifier label s3://logs/2026/ -o s3://labelled/2026 --engine ray --ray-address auto
    """
    from classifier.answering import EngineMaker, ServerMaker
    from classifier.bulk import label
    from classifier.errors import InputError
    from classifier.readers import Selection
    from classifier.runs import Options

    if not 0 < share <= 1:
        raise click.UsageError(f"--sample: expected a share above 0 and at most 1, found {share:g}")
    # Their variables may stand in the environment for other commands, and contradict nothing.
    source = click.get_current_context().get_parameter_source
    given_bundle, given_token, given_ray = (
        source(name) is ParameterSource.COMMANDLINE for name in ("bundle", "token", "ray_address")
    )
    if address and given_bundle:
        raise click.UsageError("--bundle runs the model here and --address asks a server; give one of them")
    if not address and (given_token or any(tls.values())):
        raise click.UsageError("--token, --tls-ca, --tls-cert and --tls-key go with --address")
    if engine == "ray" and (address or dry_run):
        raise click.UsageError("--engine ray goes without --address and --dry-run")
    if engine != "ray" and given_ray:
        raise click.UsageError("--ray-address goes with --engine ray")
    options = Options(row_format, text_field, policy, Selection(share, limit), processes)
    given = {"token": token, **tls}
    folder = bundle_folder(None if address else bundle)  # a server has its own
    maker: Maker = (
        ServerMaker(address, {name: value for name, value in given.items() if value})
        if address
        else EngineMaker(folder)
    )
    if dry_run:
        _dry_run(inputs, output, maker, options, as_json)
        return
    if "-" in inputs:
        click.echo("standard input cannot be resumed: a run that is stopped begins anew", err=True)
    start = time.monotonic()
    try:
        with _telling() as told:
            if engine == "ray":
                from classifier.cluster import label_on_ray

                progress = label_on_ray(inputs, output, folder, options, ray_address=ray_address, told=told)
            else:
                progress = label(inputs, output, maker, options, told=told)
    except KeyboardInterrupt:
        if "-" not in inputs:
            click.echo("stopped; the same command goes on from here", err=True)
        raise
    tally, seconds = progress.tally, time.monotonic() - start
    if as_json:
        facts = {
            "output": output,
            "resumed_rows": progress.resumed_rows,
            "seconds": round(seconds, 3),
            "bad": tally.bad,
        }
        click.echo(json.dumps({**facts, **tally.to_json()}))
    else:
        click.echo(_summary(progress, output, seconds))
    if not tally.rows:
        click.echo("the input holds no row; an OTLP export has one for each request to a model", err=True)
    elif tally.bad == tally.rows:
        raise InputError(
            f"none of {_rows(tally.rows)} could be labelled, and each says why; where the format or the column of "
            "prompts was not found, name it with --format or --text-field, and another output"
        )


def _rows(count: int) -> str:
    return f"{count:,} row{'s' * (count != 1)}"


def _summary(progress: Progress, output: str, seconds: float) -> str:
    """What became of the rows, for people."""
    from classifier.types import TIERS

    tally = progress.tally
    fresh = tally.rows - progress.resumed_rows
    lines = [f"{output}: {_rows(tally.rows)}, {tally.bad:,} of them bad"]
    if fresh:
        lines[0] += f"; {fresh:,} in {seconds:.1f} s ({fresh / max(seconds, 1e-9):,.0f} a second)"
    if progress.resumed_rows:
        lines.append(f"  {_rows(progress.resumed_rows)} had been labelled by an earlier run")
    good = max(1, tally.rows - tally.bad)
    lines += [f"  {t.label:<9} {tally.tiers[t.label]:>10,}  {tally.tiers[t.label] / good:6.1%}" for t in TIERS]
    lines += [f"  bad: {count:,} × {reason}  ({', '.join(tally.examples[reason])}{'…' if count > 3 else ''})"
              for reason, count in tally.errors.most_common()]  # fmt: skip
    if tally.moved:
        moved = ", ".join(f"{name} {count:,}" for name, count in tally.moved.most_common(5))
        lines.append(f"  values that do not fit the columns of the first rows, kept in classifier_extra: {moved}")
    if not tally.golden_ok:
        lines.append("  golden inputs differ on this processor: no policy's promise covers these tiers")
    return "\n".join(lines)


@contextlib.contextmanager
def _telling() -> Iterator[Callable[[Progress], None]]:
    """What shows progress on a terminal, on one line that is cleared at the end; it is silent elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    start, last = time.monotonic(), [0.0]
    click.echo("\r\x1b[Kstarting", nl=False, err=True)

    def told(progress: Progress) -> None:
        now = time.monotonic()
        if now - last[0] < _LINE_SECONDS:
            return
        last[0] = now
        tally, share = progress.tally, progress.share
        rate = (tally.rows - progress.resumed_rows) / max(now - start, 1e-9)
        line = f"{_rows(tally.rows)}, {rate:,.0f} a second"
        if 0 < share < 1 and rate:
            line += f", {share:.0%}, about {_duration(tally.rows * (1 - share) / share / rate)} left"
        if tally.bad:
            line += f", {tally.bad:,} bad"
        click.echo(f"\r\x1b[K{line}", nl=False, err=True)

    try:
        yield told
    finally:
        click.echo("\r\x1b[K", nl=False, err=True)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _dry_run(inputs: tuple[str, ...], output: str, maker: Maker, options: Options, as_json: bool) -> None:
    """Reads the first rows, labels a few, and writes nothing."""
    from classifier.bulk import preview

    found: dict[str, Any] = preview(inputs, output, maker, options)
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(f"{found['files']} files, {found['bytes']:,} bytes → {output} ({found['kind']})")
    click.echo(f"bundle {found['bundle_version']}, policy {found['policy']}")
    shown = ", ".join(f"{name} {count:,}" for name, count in found["formats"].items()) or "none"
    click.echo(f"formats of the first {found['rows']:,} rows: {shown}")
    for reason, count in found["errors"].items():
        click.echo(f"bad: {count:,} × {reason}")
    click.echo(f"columns: {', '.join(found['columns']) or 'none'}")
    if found["seconds_left"] is not None:
        click.echo(f"about {_duration(found['seconds_left'])} with {found['processes']} processes")
