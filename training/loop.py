"""The loop unattended: watch what was promoted, finish what was cut off, look for drift, retrain when enough came in.

One `tick` does at most one of these, in this order, and says which:

1. *roll back* the bundle that a round promoted, where its reported failures exceed its promise (a sequential test that
   may be looked at as often as one likes);
2. *resume* a round that was cut off;
3. *retrain*, where enough outcomes came in since the last round that might train;
4. *recalibrate*, where traffic or outcomes have drifted from what the bundle was calibrated on;
5. *wait*.

Knows nothing of how a round works.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click

from classifier.bundle import read_bundle
from classifier.database import Database
from classifier.drift import MAX_INDEX, drift_report, fell_short
from classifier.errors import Busy, ClassifierError, GateNotMet
from classifier.exports import export_row
from classifier.ledger import Ledger
from classifier.policy import promised_risks
from classifier.registry import Registry
from classifier.settings import feedback_url, registry_url
from classifier.texts import finite
from training.retrain import retrain
from training.round_options import Options, lock_path
from training.sequential import ERROR, SequentialTest
from training.steps import only_one, receipts, unfinished, write_json

DRIFT_SHARE = 0.2
"""An alarm counts once this share of `min_outcomes` came in since the last round: recalibration takes labels, too."""
PERIOD_DAYS = 30.0
"""How long a test of a promise goes on before the next one; two of them are less than what the store keeps."""
_DEFAULTS = {field.name: field.default for field in fields(Options)}
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}

Say = Callable[[str], object]
Clock = Callable[[], float]


def tick(options: Options, *, say: Say = lambda _: None, clock: Clock = time.time) -> dict[str, Any]:
    """One look at the world, and what it calls for.

    Returns:
        A receipt: of a round, of a rollback, or of waiting.

    Raises:
        Busy: another retrainer is at it.
    """
    rolled = roll_back_if_worse(options, clock=clock) if options.promote else None
    if rolled is not None:
        return rolled
    if unfinished(options.work) is not None:
        return retrain(options, say=say, clock=clock)
    # An alarm may stay on for ever: it does not come before the round that could end it.
    found = retrain(options, why="enough outcomes", say=say, clock=clock)
    if found["decision"] == "wait" and (drifted := drift_alarms(options)):
        few = replace(options, recalibrate_only=True, min_outcomes=round(DRIFT_SHARE * options.min_outcomes))
        recalibrated = retrain(few, why=f"drift: {'; '.join(drifted)}", say=say, clock=clock)
        return found if recalibrated["decision"] == "wait" else recalibrated
    return found


def decisions_of(options: Options, version: str, since: float) -> Iterator[dict[str, Any]]:
    """Decisions that a bundle made since a moment, with their outcomes, as exports spell them, oldest first."""
    with contextlib.closing(Database(options.feedback_url, make=False)) as database:
        for row in Ledger(database).rows(since):
            if row["bundle_version"] == version:
                yield export_row(row)


def drift_alarms(options: Options) -> list[str]:
    """What has drifted since the current bundle took over; empty where nothing has, or nothing can be said."""
    registry = Registry(options.registry)
    bundle = read_bundle(registry.fetch("current"))
    if not bundle.reference.get("n"):
        return []
    promised = promised_risks(bundle.policies)
    rows = decisions_of(options, bundle.version, tenure(registry, bundle.version)[0])
    alarms: list[str] = drift_report(rows, bundle.reference, promised, max_index=MAX_INDEX)["alarms"]
    return alarms


def tenure(registry: Registry, version: str) -> tuple[float, float]:
    """When a version last ceased to be current, 0 for never, and when it became so again, seconds since the epoch.

    Its decisions after the first of these are of its present time: the clock of who promoted it may have run ahead of
    the servers'.
    """
    left = came = 0.0
    serves = False
    for event in registry.history():
        before, serves = serves, event.aliases.get("current") == version
        if before and not serves:
            left = event.at
        elif serves and not before:
            came = event.at
    return left, came


def roll_back_if_worse(options: Options, *, clock: Clock = time.time) -> dict[str, Any] | None:
    """Rolls back the bundle that the last round promoted, where its promise is broken; None where there is no reason.

    A failure is reported, and says that the tier that was decided was too small; silence is none. So the test fires
    only where the promise is broken even if everybody who said nothing was content.
    """
    registry = Registry(options.registry)
    state = registry.state()
    current = state.aliases.get("current", "")
    promotions = [r for r in receipts(options.work) if r["decision"] == "promoted" and r["candidate"] == current]
    if not promotions or state.aliases.get("previous") != promotions[-1]["current"]:
        return None
    with only_one(lock_path(options)):
        bundle = read_bundle(registry.fetch(current))
        promises = promised_risks(bundle.policies)
        left, came = tenure(registry, current)
        fired = broken(promises, decisions_of(options, current, left), came, clock())
        if not fired:
            return None
        why = f"failures of {', '.join(fired)} exceed the promise (sequential test)"
        restored = registry.rollback(why=why, expected=current).version
        receipt = {
            "decision": "rolled back",
            "why": why,
            "current": current,
            "candidate": restored,
            "tests": fired,
            "closed_at": clock(),
        }
        options.work.mkdir(parents=True, exist_ok=True)
        write_json(options.work / f"rollback-{current}.json", receipt)
        return receipt


def broken(
    promises: Mapping[str, float], rows: Iterable[Mapping[str, Any]], since: float, now: float = math.inf
) -> dict[str, dict[str, Any]]:
    """What the tests counted of the policies whose failures exceed their promise.

    A test begins anew every `PERIOD_DAYS`, with a share of the error of its own (1/2, 1/6, 1/12 … are 1 in all), and
    the last two count. One of all decisions would begin at another one each day, once the store forgets the oldest:
    after a year it had accused 2 in 5 of the bundles whose risk was just what they promise.

    Args:
        promises: policy → P(chosen < label) at most.
        rows: decisions with their outcomes, as exports spell them, oldest first.
        since: when the bundle took over, seconds since the epoch.
        now: seconds since the epoch; a decision of a later moment, by a clock that ran ahead, counts as one of now.
    """
    tests: dict[tuple[int, str], SequentialTest] = {}
    period = 0
    for row in rows:
        short, name = fell_short(row), row["policy"]
        if short is None or name not in promises:
            continue
        period = max(0, math.floor((min(row["decided_at"], now) - since) / (PERIOD_DAYS * 86_400)))
        if (period, name) not in tests:
            error = ERROR / len(promises) / ((period + 1) * (period + 2))
            tests[period, name] = SequentialTest(promises[name], error)
        tests[period, name].add(failed=short)
    return {name: test.as_json() for (at, name), test in tests.items() if at >= period - 1 and test.fired}


def run_loop(
    options: Options, every: float, *, stop: threading.Event, say: Say, tell: Callable[[Mapping[str, Any]], object]
) -> None:
    """Ticks until `stop` is set. A tick that fails is said and tried again at the next: the loop outlives errors."""
    while not stop.is_set():
        try:
            tell(tick(options, say=say))
        except Busy as error:
            say(f"{error}")
        except ClassifierError as error:
            say(f"this round failed and goes on next time: {error}")
        except Exception as error:
            say(f"this round failed and goes on next time: {type(error).__name__}: {error}")
        stop.wait(every)


def seconds(text: str) -> float:
    """The seconds of a duration such as 90s, 15m, 1h or 1d.

    >>> seconds("1h"), seconds("90s")
    (3600.0, 90.0)

    Raises:
        click.BadParameter: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text.strip())
    if not found or not float(found[1]):
        raise click.BadParameter(f"{text!r} is no duration; give one such as 90s, 15m, 1h or 1d")
    return float(found[1]) * _UNITS[found[2]]


def _loop_options(function: Callable[..., None]) -> Callable[..., None]:
    """The options that `retrain` and `loop` share."""
    given = (
        click.option("--registry", metavar="URL", callback=lambda _context, _option, value: registry_url(value),
                     help="Folder or URL of the bundle registry [CLASSIFIER_REGISTRY]."),
        click.option("--feedback-url", metavar="URL", callback=lambda _context, _option, value: feedback_url(value),
                     help="sqlite:///PATH or postgresql+psycopg://… [CLASSIFIER_FEEDBACK_URL]."),
        click.option("--work", type=click.Path(path_type=Path), default=Path("runs/loop"), show_default=True,
                     help="Folder of the rounds and their receipts."),
        click.option("--window-days", default=_DEFAULTS["window_days"], show_default=True,
                     help="How far back decisions are taken."),
        click.option("--held-out", default=_DEFAULTS["held_out"], show_default="1/3",
                     help="Share of the window, the latest, that calibrates and judges."),
        click.option("--audit-label", default=_DEFAULTS["audit_label"], show_default=True, metavar="NAME=VALUE",
                     help="Label of requests drawn at random and tried from the cheapest tier up."),
        click.option("--principal-share", default=_DEFAULTS["principal_share"], show_default=True,
                     help="Highest share that one caller has in what trains, and in the audits."),
        click.option("--principal-label", default=_DEFAULTS["principal_label"], metavar="NAME",
                     help="Label, set by the gateway, that tells a caller's own clients apart."),
        click.option("--data", multiple=True, default=_DEFAULTS["data"], help="Base corpus. Default: data/."),
        click.option("--recipe", type=click.Path(path_type=Path, exists=True), default=_DEFAULTS["recipe"],
                     help="Retraining recipe. Default: training/recipes/retrain.toml."),
        click.option("--promote", is_flag=True, help="Promote what the gate accepts, and watch it."),
        click.option("--recalibrate-only", is_flag=True, help="Never train."),
        click.option("--mlflow-uri", envvar="MLFLOW_TRACKING_URI", default="", metavar="URI",
                     help="Track receipts in MLflow as well [MLFLOW_TRACKING_URI]."),
        click.option("--json", "as_json", is_flag=True, help="Print receipts as JSON."),
    )  # fmt: skip
    for option in reversed(given):
        function = option(function)
    return function


@click.command("retrain")
@_loop_options
@click.option("--min-outcomes", default=1, show_default=True, help="Do nothing below so many new outcomes.")
def retrain_command(*, as_json: bool, **given: Any) -> None:
    r"""Runs one round of the feedback loop.

    Recalibrates or retrains on what the feedback store holds, judges the result, registers it as `candidate` and, with
    --promote, promotes it. Goes on with a round that was cut off. Exit code 3 where the current bundle stays because
    nothing passed the gate.

    \b
    python -m training retrain --registry /srv/bundles --feedback-url sqlite:////var/lib/classifier/feedback.db
    """
    receipt = retrain(Options(**given), say=_say)
    _tell(receipt, as_json=as_json)
    if receipt["decision"] in ("keep", "gave up"):
        raise GateNotMet(f"the current bundle stays: {receipt['why']}")


@click.command("loop")
@_loop_options
@click.option("--every", default="1h", show_default=True, metavar="DURATION", help="Pause between looks: 90s, 15m, 1h.")
@click.option(
    "--min-outcomes", default=_DEFAULTS["min_outcomes"], show_default=True, help="New outcomes that a round waits for."
)
@click.option("--once", is_flag=True, help="One look, then exit: for cron and Kubernetes.")
def loop_command(*, as_json: bool, every: str, once: bool, **given: Any) -> None:
    r"""Runs the feedback loop unattended.

    Rolls back, resumes, retrains, recalibrates on drift. SIGTERM ends it after the round.

    One at a time: a second one on the same registry waits its turn. A round that is killed goes on at the next start.

    \b
    python -m training loop --every 1h --min-outcomes 500 --promote --registry /srv/bundles
    """
    pause, stop = seconds(every), threading.Event()
    if once:
        _tell(tick(Options(**given), say=_say), as_json=as_json)
        return
    came: list[int] = []

    def end(number: int, _: Any) -> None:
        came.append(number)
        # In a thread: the one that is interrupted may hold the event's lock just then, and would wait for itself.
        threading.Thread(target=stop.set).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    run_loop(Options(**given), pause, stop=stop, say=_say, tell=lambda receipt: _tell(receipt, as_json=as_json))
    if came[0] == signal.SIGINT:
        raise KeyboardInterrupt


def _say(text: str) -> None:
    click.echo(text, err=True)


def _tell(receipt: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(finite(receipt)))
        return
    candidate = f" {receipt['candidate']}" if receipt.get("candidate") else ""
    click.echo(f"{receipt['decision']}{candidate}: {receipt['why']}")
