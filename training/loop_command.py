"""`python -m training retrain` and `loop`: options to a round of the feedback loop, and its receipt for the reader.

Knows nothing of what a round, or a look at the world, is made of.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from classifier.errors import GateNotMet
from classifier.settings import feedback_url, registry_url
from classifier.texts import finite
from training.round_options import Options

_DEFAULTS = {field.name: field.default for field in fields(Options)}
_GOES_ON = "a round that has begun goes on at the next start"
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


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


class _Terminated(KeyboardInterrupt):
    """SIGTERM came."""


def _terminate(_number: int, _frame: Any) -> None:
    raise _Terminated


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM ends the block where it is, as Ctrl-C does, with exit code 143; both say what becomes of the round."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except _Terminated:
        _say(f"terminated: {_GOES_ON}")
        raise SystemExit(128 + signal.SIGTERM) from None
    except KeyboardInterrupt:
        _say(_GOES_ON)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _loop_options(function: Callable[..., None]) -> Callable[..., None]:
    """The options that `retrain` and `loop` share."""
    given = (
        click.option("--registry", metavar="URL", callback=lambda _context, _option, value: registry_url(value),
                     help="Folder or URL of the bundle registry. Default: as for `classifier bundle`. "
                     "[CLASSIFIER_REGISTRY]"),
        click.option("--feedback-url", metavar="URL", callback=lambda _context, _option, value: feedback_url(value),
                     help="sqlite:///PATH or postgresql+psycopg://… Default: as for `classifier serve`. "
                     "[CLASSIFIER_FEEDBACK_URL]"),
        click.option("--work", type=click.Path(path_type=Path), default=Path("runs/loop"), show_default=True,
                     help="Folder of this registry's rounds and their receipts."),
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
        click.option("--data", multiple=True, default=_DEFAULTS["data"],
                     help="Base corpus. Default: data/. Repeatable."),
        click.option("--recipe", type=click.Path(path_type=Path, exists=True), default=_DEFAULTS["recipe"],
                     help="Retraining recipe. Default: training/recipes/retrain.toml."),
        click.option("--promote", is_flag=True, help="Promote what the gate accepts, and watch it."),
        click.option("--recalibrate-only", is_flag=True, help="Never train."),
        click.option("--mlflow-uri", envvar="MLFLOW_TRACKING_URI", default="", metavar="URI",
                     help="Track receipts in MLflow as well. [MLFLOW_TRACKING_URI]"),
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
    nothing passed the gate, 143 on SIGTERM.

    \b
    python -m training retrain --registry /srv/bundles --feedback-url sqlite:////var/lib/classifier/feedback.db
    """
    with _stoppable():
        from training.retrain import retrain

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

    Rolls back, resumes, retrains, recalibrates on drift. SIGTERM and Ctrl-C end it after the round, a second one at
    once.

    One at a time: a second one on the same registry waits its turn, and with --once ends with exit code 1. A round that
    is killed goes on at the next start.

    \b
    python -m training loop --every 1h --min-outcomes 500 --promote --registry /srv/bundles
    """
    pause, stop = seconds(every), threading.Event()
    came: list[int] = []

    def wind_down() -> None:
        _say(f"ends after this round; once more ends it at once, and {_GOES_ON}")
        stop.set()

    def end(number: int, frame: Any) -> None:
        came.append(number)
        if len(came) > 1:
            again = _terminate if number == signal.SIGTERM else signal.default_int_handler
            again(number, frame)
        # In a thread: the one that is interrupted may hold the event's lock, or be writing, and would wait for itself.
        threading.Thread(target=wind_down).start()

    with _stoppable():
        from training.loop import run_loop, tick

        if once:
            _tell(tick(Options(**given), say=_say), as_json=as_json)
            return
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
