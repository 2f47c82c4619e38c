"""The command `classifier`: one module a verb, each with a click command named `command`, imported when it is used.

Knows nothing of what a verb does. Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from typing import NoReturn, TextIO

import click

from classifier.durable import unusable
from classifier.errors import ClassifierError

NO_THREAD = "can't start new thread"
"""What Python says, as a RuntimeError, where the system gives it no further thread."""
EXIT_CODES = """\b
Exit codes:
  0    done
  1    failed
  2    usage: a flag, a variable or a file says something that cannot be
  3    ran well, but a gate was not met
  130  interrupted"""


class Verbs(click.Group):
    """A group whose commands are the modules of this package."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Every module's name."""
        return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of the module of that name."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command = getattr(importlib.import_module(f"{__name__}.{cmd_name}"), "command", None)
        return with_examples(command) if isinstance(command, click.Command) else None


def with_examples(command: click.Command) -> click.Command:
    r"""Examples keep their lines: click wants the control character \b, and a raw docstring holds its two letters."""
    command.help = (command.help or "").replace("\\b\n", "\b\n")
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        with_examples(inner)
    return command


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    from classifier import __version__
    from classifier.bundle import SCHEMA_VERSION
    from classifier.session import onnxruntime_version

    click.echo(f"classifier {__version__} (bundle schema {SCHEMA_VERSION}, onnxruntime {onnxruntime_version()})")
    ctx.exit()


@click.group(cls=Verbs, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, callback=_version, expose_value=False, is_eager=True, help="Print versions and exit."
)
def command() -> None:
    r"""Tells which tier of model an LLM request needs.

    \b
    classifier classify "What is the capital of Australia?"
    classifier serve --listen 127.0.0.1:50051
    """
    from classifier.settings import misspelt

    for variable, meant in misspelt().items():
        click.echo(f"warning: {variable} is ignored, no command reads it; is {meant} meant?", err=True)


with_examples(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command and exits; an error of ours is one line on stderr and its own exit code."""
    # Else numpy's BLAS starts a thread a core when it is imported, and each spins for a while: 40 ms of CPU time on two
    # cores, in every process. No verb multiplies matrices that are large enough to need them.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    open_closed_streams()
    try:
        code = command.main(args=arguments, prog_name="classifier", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except (click.Abort, KeyboardInterrupt):
        tell("interrupted")
        sys.exit(130)
    except click.ClickException as error:
        with _heard_or_not():
            error.show()
        sys.exit(error.exit_code)
    except ClassifierError as error:
        tell(f"error: {error}")
        sys.exit(error.exit_code)
    except OSError as error:
        exit_without_output(error)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and str(error) != NO_THREAD:
            raise
        what = "little memory" if isinstance(error, MemoryError) else "few threads"
        tell(f"error: too {what} for this process; look at its limits of memory, processes and threads")
        sys.exit(1)


def tell(why: str) -> None:
    """Says on stderr why a command ends; one that takes nothing (its reader is gone, the disk full) changes no code."""
    with _heard_or_not():
        click.echo(why, err=True)


@contextlib.contextmanager
def _heard_or_not() -> Iterator[None]:
    """Says something on stderr; where that takes nothing, /dev/null does, as Python tries again at its end."""
    try:
        yield
    except OSError:
        _discard(sys.stderr)


def open_closed_streams() -> None:
    """Makes /dev/null what stdin, stdout and stderr are that were closed when this process started.

    Else the next file that is opened has the number of one, and what anybody writes to that goes into the file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the lowest that is free
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8"))


def exit_without_output(error: OSError) -> NoReturn:
    """Ends a command whose output cannot be used, with what is still to be written; says why."""
    if not isinstance(error, BrokenPipeError):  # the reader of our stdout had enough
        tell(f"error: {unusable(error)}")
    _discard(sys.stdout)
    sys.exit(1)


def _discard(stream: TextIO) -> None:
    """Lets /dev/null have what is still to be written to a stream that takes nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
