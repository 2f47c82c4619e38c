"""Logs on stderr, as text for people or JSON objects for machines, without any text of a prompt.

Text of exceptions can quote one, so a record carries their class and where they came from, and of other libraries'
messages the part before anything was filled in.

Knows nothing of what is logged or when; the library only calls `logging.getLogger(__name__)`.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from typing import TextIO

_OWN = "classifier"


def configure_logging(log_format: str, level: str, stream: TextIO | None = None) -> None:
    """Sends this process's logs to stderr.

    Args:
        log_format: json, text, or auto: text on a terminal, else JSON.
        level: least level.
        stream: instead of stderr.
    """
    stream = stream or sys.stderr
    as_json = log_format == "json" or (log_format == "auto" and not stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.raiseExceptions = False  # a record that cannot be formatted must not print its arguments


def set_level(level: str) -> None:
    """From now on our own records of that level and above are logged."""
    logging.getLogger(_OWN).setLevel(level.upper())


class TextFormatter(logging.Formatter):
    """A line for people."""

    def format(self, record: logging.LogRecord) -> str:
        """Time, level, what and where."""
        stamp = time.strftime("%H:%M:%S", time.localtime(record.created))
        where = f" ({_where(record)})" if record.exc_info else ""
        return f"{stamp} {record.levelname.lower():<7} {_event(record)}{where}"


class JsonFormatter(logging.Formatter):
    """A JSON object for machines: ts, level, logger, event, and what was given as `extra={"facts": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry = {
            "ts": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _event(record),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            entry["error"] = _where(record)
        return json.dumps(entry)


def _event(record: logging.LogRecord) -> str:
    """Our own message; of another library's only its template's first line, as its arguments could hold anything."""
    if record.name.partition(".")[0] == _OWN:
        return record.getMessage()
    return str(record.msg).partition("\n")[0]


def _where(record: logging.LogRecord) -> str:
    """An exception's class and frames, without its text."""
    kind, _, trace = record.exc_info or (None, None, None)
    frames = " < ".join(f"{f.filename}:{f.lineno}" for f in reversed(traceback.extract_tb(trace)))
    return f"{kind.__name__ if kind else 'error'} at {frames}"
