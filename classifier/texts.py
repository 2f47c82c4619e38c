"""Values as the text of JSON and of CSV that every reader takes, whatever they hold: NaN, lone surrogates, bytes; and
what text of JSON holds.

Pure. Knows nothing of columns or files.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MAX_DEPTH = 200
"""Of lists and objects within each other. What is deeper may be read and not written: 1,000 are too many to Python."""
MOST_WORDS = 3
"""Of a text in JSON that is an id, a language or a name. One with more has words of its own."""
MOST_NAME_CHARS = 16
"""The same where not all of it is ASCII: Chinese, Japanese and Thai have no blanks between words."""


def csv_lines(rows: Iterable[Sequence[Any]]) -> bytes:
    """Rows as CSV: None is empty, an object is its JSON."""
    lines = _Lines()
    writer = csv.writer(lines, lineterminator=lines.END)
    for row in rows:
        writer.writerow([as_text(value) for value in row])
    return "".join(lines).encode("utf-8", "replace")


class _Lines(list[str]):
    r"""Lines of CSV, each ending in \n. The writer ends them in \r\n, for in Python 3.11 it quotes no \r otherwise."""

    END = "\r\n"

    def write(self, line: str) -> None:
        self.append(line.removesuffix(self.END) + "\n")


def as_text(value: Any) -> Any:
    """A value as a CSV field; what is no number is empty."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return json_text(value) if isinstance(value, (dict, list)) else value


def json_text(value: Any) -> str:
    r"""A value's JSON, with lone surrogates escaped, so that it can be encoded, and null for what is no number.

    >>> json_text({"a": "é"}), json_text("\\ud800"), json_text([float("nan")])
    ('{"a":"é"}', '"\\\\ud800"', '[null]')
    """
    try:
        text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=_text_of, allow_nan=False)
    except ValueError:
        text = json.dumps(finite(value), separators=(",", ":"), ensure_ascii=False, default=_text_of)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(finite(value), separators=(",", ":"), default=_text_of)
    return text


def parsed(text: str | bytes) -> Any:
    """What a text of JSON holds; the text itself where it is none, or is nested too deeply.

    >>> parsed('{"a": 1}'), parsed("{a: 1}")
    ({'a': 1}, '{a: 1}')
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return text if is_deep(value) else value


def is_deep(value: Any) -> bool:
    """Whether lists and objects stand within each other more than `MAX_DEPTH` deep.

    >>> is_deep([[1], {"a": 2}]), is_deep(json.loads("[" * 201 + "]" * 201))
    (False, True)
    """
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(MAX_DEPTH):
        held = (inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer))
        level = [inner for inner in held if isinstance(inner, (dict, list))]
        if not level:
            return False
    return True


def has_words(text: str) -> bool:
    """Whether a text of JSON says something, and is no id, language or name.

    >>> has_words("en-US"), has_words("Ada wrote it in 1843."), has_words("这本书是由艾达在一八四三年写成的。")
    (False, True, True)
    """
    is_long = not text.isascii() and len(text) > MOST_NAME_CHARS
    return is_long or len(text.split(maxsplit=MOST_WORDS)) > MOST_WORDS


def encodable(text: str) -> str:
    r"""The text with a question mark for half of a surrogate pair, which JSON may hold and nothing writes or draws.

    >>> encodable("é\ud83d")
    'é?'
    """
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def typed(argument: str) -> str:
    r"""The text of an argument of a command: UTF-8 whatever the locale, as a file of the same bytes would be.

    Python keeps the bytes of an argument that are no text in its locale as halves of surrogate pairs.

    >>> typed("\udcc3\udca9"), typed("\udce9") == "\ufffd"
    ('é', True)
    """
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _text_of(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def finite(value: Any) -> Any:
    """The value with None for what JSON has no number for: NaN and the infinities; tuples become lists.

    >>> finite({"risk": (0.5, float("nan"))})
    {'risk': [0.5, None]}
    """
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
