"""What the cells of a row hold: objects and lists, or their JSON text, as in CSV files and tables.

A column that a format owns holds JSON where it begins as JSON, behind blanks or not. In `WORDS` people write, too: a
text there is JSON only where it holds what the column would hold of it, and is a text like any other else.

Pure. Knows nothing of formats or requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from classifier.conversations import is_message
from classifier.errors import InvalidRequest
from classifier.shapes import mapping_of
from classifier.texts import parsed
from classifier.types import ROLES


def is_conversation(values: Sequence[Any]) -> bool:
    """Whether a list is one of messages: the first is one, or stands before one as OpenAI's responses have their items.

    >>> is_conversation([{"type": "reasoning", "summary": []}, {"role": "user", "content": "hi"}])
    True
    """
    told = [mapping_of(value) for value in values]
    are_items = all(isinstance(item.get("type") or item.get("role"), str) for item in told)
    return is_message(told[0]) or (are_items and any(item.get("role") in ROLES for item in told))


WORDS: Mapping[str, Callable[[Sequence[Any]], bool]] = {
    "prompt": is_conversation,
    "input": is_conversation,
    "system": lambda parts: "text" in parts[0],
}
"""Columns of people's words, each with what a list that begins with an object has where it is not a text."""


def first_sign(text: str) -> str:
    """The first character that is no blank; empty where there is none.

    >>> first_sign(' [{"role": "user"}]'), first_sign("")
    ('[', '')
    """
    return text.lstrip()[:1]


def json_of(value: Any, name: str) -> Any:
    """What a cell's JSON text holds; another value as it is.

    Raises:
        InvalidRequest: it is another text; `name` is the field's.
    """
    found = parsed(value) if isinstance(value, str) else value
    if isinstance(value, str) and found is value:
        raise InvalidRequest(name, "is a text, and not of JSON")
    return found


def object_of(value: Any) -> Mapping[str, Any] | None:
    """An object, also one that stands as JSON text; an empty one for everything else, None for broken text of one."""
    if isinstance(value, str) and first_sign(value) == "{":
        value = parsed(value)
        return value if isinstance(value, Mapping) else None
    return mapping_of(value)


def value_below(row: Mapping[str, Any], path: Sequence[str]) -> Any:
    """What stands at a path of names below a row; None where nothing does.

    >>> value_below({"request": '{"body": 1}'}, ["request", "body"])
    1
    """
    value: Any = row
    for name in path:
        value = (object_of(value) or {}).get(name)
    return value


def holds(value: Any, name: str) -> bool:
    """Whether an object, or what looks like its JSON text, has a field of that name."""
    return name in value if isinstance(value, Mapping) else isinstance(value, str) and f'"{name}"' in value


def is_objects(row: Mapping[str, Any], name: str) -> bool:
    """Whether a column holds a list of objects, or the JSON text of one.

    >>> is_objects({"prompt": '[{"id": 1}]'}, "prompt"), is_objects({"prompt": '[{"role": "user"}]'}, "prompt")
    (False, True)
    """
    value = row.get(name)
    if not isinstance(value, str):
        return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)
    found = parsed(value) if first_sign(value) == "[" else value
    if not isinstance(found, list):  # what looks like a list and is broken: whoever opens it says what is wrong
        return name not in WORDS and value.lstrip().startswith("[{")
    if not found or not isinstance(found[0], Mapping):
        return False
    fits = WORDS.get(name)
    return fits(found) if fits else bool(found[0])


def inner(row: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """The body that the row wraps under one of the names, or the row itself.

    Raises:
        InvalidRequest: what stands there is no object.
    """
    for name in names:
        if row.get(name) not in (None, ""):  # a cell of CSV that holds nothing is empty
            value = json_of(row[name], name)
            if not isinstance(value, Mapping):
                raise InvalidRequest(name, "is not an object, nor its JSON text")
            return value
    return row


def opened(row: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """The row with what stands as JSON text under these names opened.

    Raises:
        InvalidRequest: a text begins as JSON, is none, and its column is none of `WORDS`.
    """
    texts = [name for name in names if isinstance(row.get(name), str) and first_sign(row[name]) in ("[", "{")]
    texts = [name for name in texts if name not in WORDS or is_objects(row, name)]
    return {**row, **{name: json_of(row[name], name) for name in texts}} if texts else row
