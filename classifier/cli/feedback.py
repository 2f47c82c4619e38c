"""`classifier feedback`: what the store remembers, taken out, forgotten, expired or migrated."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import sys
from collections.abc import Callable
from typing import Any

import click

from classifier.cli._bundles import bundle_folder, bundle_option
from classifier.cli._json import answer, json_option
from classifier.settings import feedback_url
from classifier.texts import typed

_CANNOT_REACH = (
    "Not reached: exports and backups made before; a retraining that was cut off, until it ends; models that were "
    "trained on them; servers' logs; what servers have queued and not yet written (run it again by --label after some "
    "seconds); PostgreSQL's dead rows, its log and its replicas until they are vacuumed or recycled."
)


def _store_option(function: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--feedback-url",
        "url",
        callback=lambda _context, _option, value: feedback_url(value),
        metavar="URL",
        help="sqlite:///PATH or postgresql+psycopg://… Default: as for `classifier serve`. [CLASSIFIER_FEEDBACK_URL]",
    )(function)


@click.group(name="feedback")
def command() -> None:
    r"""The store of decisions and outcomes.

    \b
    classifier feedback export -o feedback.parquet --feedback-url sqlite:////var/lib/classifier/feedback.db
    classifier feedback forget --label tenant=acme
    """


@command.command(name="migrate")
@_store_option
@json_option
def migrate(*, url: str, as_json: bool) -> None:
    r"""Makes the tables, or brings them to this version.

    A SQLite file is also migrated when a server opens it.

    \b
    classifier feedback migrate --feedback-url postgresql+psycopg://classifier@db/classifier
    """
    from classifier.database import Database

    with contextlib.closing(Database(url)) as database:
        steps = database.migrate()
    answer({"steps": steps}, "\n".join(steps) or "nothing to do", as_json=as_json)


@command.command(name="export")
@_store_option
@click.option("-o", "--output", required=True, metavar="FILE", help="A .jsonl or .parquet file; - is stdout (JSONL).")
@click.option(
    "--since", metavar="TIME", help="First moment, as 2026-01-31 or 2026-01-31T12:00:00; UTC if none is named."
)
@click.option("--until", metavar="TIME", help="First moment after the last.")
@click.option("--history", is_flag=True, help="Every outcome in a row of its own, also those without their decision.")
@json_option
def export(*, url: str, output: str, since: str | None, until: str | None, history: bool, as_json: bool) -> None:
    r"""Writes decisions with their effective outcomes to a file.

    For training and analysis.

    \b
    classifier feedback export -o feedback.parquet --since 2026-01-01
    classifier feedback export -o - | head
    """
    from pathlib import Path

    if as_json and output == "-":
        raise click.UsageError("-o - has the rows on stdout, where --json has its object; choose one of them")
    from classifier.database import Database
    from classifier.exports import export_row, write_export, write_lines
    from classifier.ledger import Ledger

    first, last = _moment(since, 0.0), _moment(until, float("inf"))
    with contextlib.closing(Database(url, make=False)) as database:
        ledger = Ledger(database)
        rows = map(export_row, ledger.rows(first, last, history=history))
        count = write_lines(rows, sys.stdout.buffer) if output == "-" else write_export(rows, Path(output))
        pending = ledger.counts()["pending"]
    answer({"rows": count, "pending": pending}, "", as_json=as_json)
    left = "" if history or not pending else f"; {pending} outcomes wait for a decision (--history shows them)"
    click.echo(f"{count} rows{left}", err=True)


@command.command(name="forget")
@_store_option
@click.option("--decision-id", "decision_ids", multiple=True, metavar="ID", help="A decision; may be given again.")
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Every decision whose request had it.")
@json_option
def forget(*, url: str, decision_ids: tuple[str, ...], labels: tuple[str, ...], as_json: bool) -> None:
    r"""Deletes decisions and all that was reported of them.

    Late writes do not bring them back.

    \b
    classifier feedback forget --decision-id 54hFyiiNB2YBUdGUGcbtQNSNcGAqOYuKQIydKuOZdM0
    classifier feedback forget --label tenant=acme
    """
    from classifier.database import Database
    from classifier.ledger import Ledger
    from classifier.types import MAX_ID_CHARS

    if not decision_ids and not labels:
        raise click.UsageError("say what to forget: --decision-id ID or --label NAME=VALUE")
    if wrong := [i for i in decision_ids if not i.isascii() or not 0 < len(i) <= MAX_ID_CHARS]:
        raise click.UsageError(f"--decision-id: expected an id that Classify answered with, found {wrong[0][:64]!r}")
    pairs = [typed(label).partition("=") for label in labels]
    if wrong := [label for label, (_, found, _) in zip(labels, pairs, strict=True) if not found]:
        raise click.UsageError(f"--label: expected NAME=VALUE, found {wrong[0]!r}")
    with contextlib.closing(Database(url, make=False)) as database:
        ledger = Ledger(database)
        ids = set(decision_ids).union(*(ledger.labelled(name, value) for name, _, value in pairs))
        decisions, outcomes = ledger.forget(ids)
    result: dict[str, Any] = {"decisions": decisions, "outcomes": outcomes, "not_reached": _CANNOT_REACH}
    answer(result, f"{decisions} decisions and {outcomes} outcomes forgotten", as_json=as_json)
    if not as_json:
        click.echo(_CANNOT_REACH, err=True)


@command.command(name="expire")
@_store_option
@click.option("--older-than-days", required=True, type=float, metavar="DAYS", help="Age to delete at.")
@json_option
def expire(*, url: str, older_than_days: float, as_json: bool) -> None:
    r"""Deletes what is older than so many days.

    A server that keeps feedback does the same by its --retention-days.

    \b
    classifier feedback expire --older-than-days 90
    """
    if not older_than_days >= 0:  # NaN, too, which PostgreSQL takes to be later than every time
        raise click.UsageError(f"--older-than-days: expected 0 or more, found {older_than_days:g}")
    from classifier.database import Database
    from classifier.ledger import Ledger

    with contextlib.closing(Database(url, make=False)) as database:
        ledger = Ledger(database)
        while ledger.expire(older_than_days * 86_400):
            pass
        database.scrub()
        left = ledger.counts()
    decisions, outcomes = left["decisions"], left["outcomes"]
    facts = {"left": {"decisions": decisions, "outcomes": outcomes}}
    answer(facts, f"{decisions} decisions and {outcomes} outcomes are left", as_json=as_json)


@command.command(name="drift")
@_store_option
@bundle_option
@click.option("--since", metavar="TIME", help="First moment, as for export.")
@click.option("--until", metavar="TIME", help="First moment after the last.")
@click.option("--max-index", default=0.25, show_default=True, help="Stability index above which traffic has drifted.")
@json_option
def drift(
    *, url: str, bundle: str | None, since: str | None, until: str | None, max_index: float, as_json: bool
) -> None:
    r"""Tests for other traffic, and for broken promises.

    Compares what a bundle decided with what it was calibrated on, and reported failures with what its policies promise.

    Exit code 3 where an index is above the limit and its test below .001, or where a policy has more reported failures
    than its promise allows (test below .001, silence counted as success).

    \b
    classifier feedback drift --since 2026-01-01 --bundle current
    """
    from classifier.bundle import read_bundle
    from classifier.database import Database
    from classifier.drift import drift_report
    from classifier.errors import GateNotMet, InputError
    from classifier.exports import export_row
    from classifier.ledger import Ledger
    from classifier.policy import promised_risks

    if not 0 <= max_index < float("inf"):
        raise click.UsageError(f"--max-index: expected a number from 0 on, found {max_index:g}")
    read = read_bundle(bundle_folder(bundle))
    if not read.reference.get("n"):
        raise InputError(
            f"{read.path}: its reference.json is empty, so there is nothing to compare with; export it again"
        )
    with contextlib.closing(Database(url, make=False)) as database:
        rows = Ledger(database).rows(_moment(since, 0.0), _moment(until, float("inf")), bundle=read.version)
        found = drift_report(map(export_row, rows), read.reference, promised_risks(read.policies), max_index=max_index)
    if not found["n"]:
        raise InputError(f"no decisions of bundle {read.version} in that time; choose another --since or --bundle")
    if as_json:
        click.echo(json.dumps({"bundle_version": read.version, **found}))
    else:
        click.echo(f"{found['n']} decisions of {read.version}, reference {read.reference['n']}")
        for name, s in found["shifts"].items():
            click.echo(f"{name:<16} index {s['index']:6.3f}  p {s['p_value']:.2g}")
        for name, f in found["failures"].items():
            told = f"{f['failures']} reported failures of {f['decisions']}, promised {f['promised']:g}"
            click.echo(f"{name:<16} {told}  p {f['p_value']:.2g}")
    if found["alarms"]:
        raise GateNotMet("; ".join(found["alarms"]))


def _moment(text: str | None, default: float) -> float:
    """Seconds since the epoch of an ISO 8601 time."""
    if text is None:
        return default
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(f"expected a time such as 2026-01-31 or 2026-01-31T12:00:00, found {text!r}") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp()
