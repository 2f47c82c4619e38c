"""Where a log keeps time, model, tokens and text: found by the names that gateways use, also inside nested columns.

Pure. Knows nothing of files.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from classifier import labels
from classifier.errors import InputError
from classifier.texts import parsed

CHARS_PER_TOKEN = 4.0
"""Of English prose; code and other scripts have fewer, so an estimate for them is low."""
USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "time": ("startTime", "start_time", "timestamp", "@timestamp", "created_at", "created", "time", "ts", "date",
             "decided_at", "startTimeUnixNano", "start_time_unix_nano", "logging_time", "started_at", "TimeGenerated"),
    "model": ("model", "gen_ai.request.model", "request_model", "model_name", "model_id", "gen_ai.response.model",
              "modelId", "ModelName"),
    "tenant": ("tenant", "tenant_id", "team", "team_id", "user_api_key_team_alias", "user_api_key_team_id", "customer",
               "project", "app", "application", "service"),
    "input_tokens": ("input_tokens", "prompt_tokens", "gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens",
                     "promptTokenCount", "inputTokenCount", "llm.token_count.prompt", "PromptTokens"),
    "output_tokens": ("output_tokens", "completion_tokens", "gen_ai.usage.output_tokens",
                      "gen_ai.usage.completion_tokens", "candidatesTokenCount", "outputTokenCount",
                      "llm.token_count.completion", "CompletionTokens"),
    "cache_read_tokens": ("cache_read_input_tokens", "cacheReadInputTokenCount"),
    "cache_creation_tokens": ("cache_creation_input_tokens", "cacheWriteInputTokenCount"),
    "thinking_tokens": ("thoughtsTokenCount",),
    "cost": ("response_cost", "cost_usd", "cost", "spend"),
    "id": ("id", "request_id", "custom_id", "call_id", "span_id", "spanId", "requestId"),
    "response": ("response", "completion", "output", "choices"),
    "label": ("tier",),
    "at_least": ("at_least",),
    "at_most": ("at_most",),
    "verdict": ("verdict",),
    "cause": ("cause",),
    "served_tier": ("served_tier",),
    "accepted_tier": ("accepted_tier",),
    "drawn_as": ("sampled_for",),
}  # fmt: skip
"""Names of the columns that hold a fact, by the column's role, the likeliest first."""
TOP = frozenset({*labels.COLUMN_ROLES, "drawn_as"})
"""Roles of columns that are found by their whole name only: nested ones of that name mean something else."""
TEXTS = frozenset({"prompt", "input", "text", "content", "question", "query", "message"})
"""Columns of what people wrote: JSON in it is theirs, and says nothing of the request."""
_OF_RESPONSES = frozenset({"usage", "choices"})
_NO_TEXT = frozenset({
    "role", "type", "id", "model", "image_url", "source",
    "file_data", "input_audio", "inlineData", "inline_data", "bytes",
})  # fmt: skip
MAX_DEPTH = 5
MAX_NAME_CHARS = 1000
"""Of a place, below which others are looked for: each of those is called by its name, too."""
_LATEST = 1e11  # the year 5138 in seconds: a number above is of a finer unit
ColumnPath = tuple[str, ...]


class Place(NamedTuple):
    """Where a fact may stand.

    Attributes:
        path: to it: the column, and the keys below.
        rows: how many of the rows that were looked at have a value there.
    """

    path: ColumnPath
    rows: int


def places_of(
    names: Iterable[str], rows: Iterable[Mapping[str, Any]], *, texts: frozenset[str] = TEXTS
) -> dict[str, Place]:
    """Every place that may hold a fact, by its dotted name; nested columns and JSON text are opened.

    A column of texts is opened only where at least half of its texts are JSON objects; one of answers only where these
    are whole responses of an API; one of prompts never.

    Args:
        names: the columns.
        rows: some rows, by which nested columns are opened; what is in them and no column is a place, too.
        texts: columns of prompts.

    >>> places_of(["usage"], [{"usage": '{"prompt_tokens": 3}'}, {"usage": None}])["usage.prompt_tokens"]
    Place(path=('usage', 'prompt_tokens'), rows=1)
    """
    paths: dict[str, ColumnPath] = {name: (name,) for name in names}
    filled: Counter[str] = Counter()
    said: Counter[str] = Counter()
    objects: Counter[str] = Counter()
    for row in rows:
        stack: list[tuple[ColumnPath, Any]] = []
        for name, value in row.items():
            inner = value
            if not isinstance(value, str):
                inner = opened(value)
            elif value and name not in texts:
                found = opened(value)
                said[name] += 1
                objects[name] += found is not value
                if name not in USUAL_NAMES["response"] or (isinstance(found, dict) and found.keys() & _OF_RESPONSES):
                    inner = found
            stack.append(((name,), inner))
        while stack:
            path, value = stack.pop()
            name = ".".join(map(str, path))
            paths.setdefault(name, path)
            filled[name] += value not in (None, "")
            if isinstance(value, dict) and len(path) < MAX_DEPTH and len(name) <= MAX_NAME_CHARS:
                stack += [((*path, key), inner) for key, inner in value.items()]
    closed = {name for name, count in said.items() if 2 * objects[name] < count}
    kept = ((name, path) for name, path in paths.items() if len(path) == 1 or path[0] not in closed)
    return {name: Place(path, filled[name]) for name, path in kept}


def find_columns(
    places: Mapping[str, Place], *, named: Mapping[str, str], by: Sequence[str], where: str
) -> dict[str, str]:
    """The column of each role, and of each `by` as "by:COLUMN".

    Of several usual names the likeliest is taken that has values in at least half as many rows as any of them.

    Args:
        places: from `places_of`.
        named: role → column, instead of the usual names; "" means none.
        by: further columns.
        where: the file's name in messages.

    Raises:
        InputError: a named column is not there.
    """
    by_end: dict[str, list[str]] = {}
    for name in places:
        by_end.setdefault(name.rpartition(".")[2], []).append(name)
    columns: dict[str, str] = {}
    for role, candidates in USUAL_NAMES.items():
        if role in named:
            if named[role]:
                columns[role] = named[role]
            continue
        found: list[str] = []
        for candidate in candidates:
            alike = by_end.get(candidate.rpartition(".")[2], ())
            matches = [n for n in alike if n == candidate or (role not in TOP and n.endswith(f".{candidate}"))]
            found += sorted(matches, key=lambda n: (len(places[n].path), n))
        if found:
            most = max(places[name].rows for name in found)
            columns[role] = next(name for name in found if 2 * places[name].rows >= most)
    columns |= {f"by:{name}": name for name in by if name not in (columns.get("model"), columns.get("tenant"))}
    for name in columns.values():
        if name not in places:
            raise InputError(f"{where}: has no column {name!r}; it has {', '.join(sorted(places)[:30])}")
    return columns


def opened(value: Any) -> Any:
    """What JSON text holds; a list of pairs, as Arrow gives maps, as a dictionary; everything else as it is."""
    if isinstance(value, str) and value[:1] == "{":
        return parsed(value)
    return _mapped(value)


def _mapped(value: Any) -> Any:
    """A list of pairs as a dictionary; everything else as it is."""
    if isinstance(value, list) and value and all(isinstance(p, tuple) and len(p) == 2 for p in value):
        return dict(value)
    return value


def value_at(value: Any, path: Sequence[str]) -> Any:
    """What stands at a place below `value`; None where nothing does."""
    for key in path:
        value = opened(value)
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def count_chars(value: Any) -> int:
    """Characters of text in a message, a body or an answer, however nested; roles, types and what is no text left out.

    Text is counted as it stands, whatever it looks like: gateways ask this of what callers sent, on every request.

    >>> count_chars([{"role": "user", "content": "12345"}, {"role": "assistant", "content": [{"text": "678"}]}])
    8
    """
    chars, left = 0, [value]
    while left:
        value = _mapped(left.pop())
        if isinstance(value, str):
            chars += len(value)
        elif isinstance(value, list | tuple):
            left.extend(value)
        elif isinstance(value, dict):
            left.extend(inner for key, inner in value.items() if key not in _NO_TEXT)
    return chars


def seconds(value: Any) -> float:
    """Seconds since the epoch of a time as logs write it: a date, ISO 8601, or a number of s, ms, µs or ns.

    NaN for what is none, and for what stands for none: 0, and the years 1 and 9999.

    >>> seconds("2026-01-01T00:00:00Z"), seconds("20260101"), seconds(1767225600000), seconds("0001-01-01T00:00:00Z")
    (1767225600.0, 1767225600.0, 1767225600.0, nan)
    >>> seconds("2026-01-01 05:30:00+05:30"), seconds("2026-01-01 00:00:00 UTC")
    (1767225600.0, 1767225600.0)
    """
    if isinstance(value, str):
        try:
            basic = len(value) == 8 and value.isdigit() and "19" <= value[:2] <= "20"
            value = dt.datetime.fromisoformat(value) if basic else float(value)
        except ValueError:
            try:
                value = dt.datetime.fromisoformat(value.removesuffix(" UTC"))  # as BigQuery has it
            except ValueError:
                return float("nan")
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        value = dt.datetime(value.year, value.month, value.day, tzinfo=dt.UTC)
    if isinstance(value, dt.datetime):
        number = (value if value.tzinfo else value.replace(tzinfo=dt.UTC)).timestamp()
        return number if 0 < number <= _LATEST else float("nan")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < _LATEST * 1e9:
        return float("nan")
    number = float(value)
    while number > _LATEST:
        number /= 1000
    return number


def amount(value: Any) -> float:
    """A number of tokens or dollars, 0 or more; NaN for everything else.

    >>> amount("3"), amount(-3), amount(10**400)
    (3.0, nan, nan)
    """
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")
    return number if 0 <= number < float("inf") else float("nan")
