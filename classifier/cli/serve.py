"""`classifier serve`: the gRPC server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from classifier.settings import PREFIX, ServerSettings


def _options(function: Callable[..., None]) -> Callable[..., None]:
    """A flag for every setting that is no secret; what it means is said once, in `ServerSettings`."""
    for f in reversed([f for f in fields(ServerSettings) if not f.metadata["secret"]]):
        flag = "--" + f.name.replace("_", "-")
        help_text = f"{f.metadata['help']} [{PREFIX}{f.name.upper()}]"
        default = ", ".join(f.default) if isinstance(f.default, tuple) else f.default
        extra: dict[str, Any] = {"default": None, "help": help_text}
        if isinstance(f.default, bool):
            flag = f"{flag}/--no-{flag[2:]}"
            extra["help"] += f" [default: {'on' if f.default else 'off'}]"
        else:
            extra["multiple"] = isinstance(f.default, tuple)
            extra["metavar"] = "|".join(f.metadata["choices"]) or type(f.default).__name__.upper().replace(
                "STR", "TEXT"
            )
            if default != "":
                extra["help"] += f" [default: {default}]"
            if isinstance(f.default, tuple):
                extra["metavar"] = "ADDRESS"
        function = click.option(flag, f.name, **extra)(function)
    return function


@click.command(name="serve")
@click.option("--config", metavar="FILE", help=f"TOML file with the same settings. [{PREFIX}CONFIG]")
@_options
def command(config: str | None, **flags: Any) -> None:
    r"""Serves the classifier over gRPC.

    Prints `serving on ADDRESS` on stderr when it is ready. A flag goes before its CLASSIFIER_* variable, and that
    before the file.

    \b
    classifier serve
    classifier serve --listen 127.0.0.1:50051 --listen unix:/run/classifier.sock
    """
    from functools import partial

    from classifier.settings import resolve

    run(resolve(flags, config=config), partial(resolve, flags, config=config, again=True))


def run(settings: ServerSettings, reread: Callable[[], ServerSettings]) -> None:
    """Serves as the settings say, in this process or in several, until a signal."""
    import contextlib
    import logging
    import signal

    # From here to where they are listened to these wait: before, SIGHUP would end the process, and SIGTERM be lost on
    # one that is the first of its container.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGTERM})
    from classifier.lifetime import leave, print_ready, serve
    from classifier.lifetime import run as run_server
    from classifier.logs import configure_logging
    from classifier.metrics_page import serve_metrics
    from classifier.server import Server, server_key
    from classifier.settings import sqlite_file
    from classifier.telemetry import observing

    configure_logging(settings.log_format, settings.log_level)
    if settings.store == "off" and (left := sqlite_file(settings.feedback_url)) is not None and _is_there(left):
        logging.getLogger(__name__).warning(
            "store is off, and %s is there from before: nothing in it expires any more; run 'classifier feedback "
            "expire --older-than-days DAYS', or remove it",
            left,
        )
    if settings.workers > 1:
        from classifier.workers import supervise

        leave(supervise(settings, key=server_key(settings), reread=reread, ready=print_ready))
        return
    with observing(traces=settings.traces) as (metrics, observer), contextlib.ExitStack() as held:
        if settings.metrics_listen:
            held.callback(serve_metrics(settings.metrics_listen, metrics.registry))
        ended_by = run_server(serve(Server(settings, metrics=metrics, observer=observer, reread=reread)))
    leave(ended_by)


def _is_there(path: Path) -> bool:
    """Whether there is such a file; of a folder that may not be looked into nobody can say so."""
    try:
        return path.exists()
    except OSError:
        return False
