"""Whether the fields of a request hold what their types say, for those who hand on what somebody sent them.

Type checkers see our callers' code and not their callers' JSON: content as a list of parts, labels with numbers, tools
as objects. Each such field is named with what would be right, and no value is quoted.

Knows nothing of what the values mean: `classifier.types` checks that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from numbers import Integral
from typing import Any

_LAST_TIER = 4


def misfits(request: Any) -> list[tuple[str, str]]:
    """(field path, what is wrong and what would be right) of each field of another type."""
    contents = [
        (f"messages[{i}].content", "is not a text; join parts that are text, and count images and files as attachments")
        for i, message in enumerate(request.messages)
        if not isinstance(message.content, str)
    ]
    return contents + [(name, remedy) for name, fits, remedy in _SHAPES if not fits(getattr(request, name))]


def _is_names(value: object) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str) and all(isinstance(t, str) for t in value)


def _is_tier(value: object) -> bool:
    return value is None or (isinstance(value, int) and 0 < value <= _LAST_TIER)


def _is_labels(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(text, str) for pair in value.items() for text in pair)


_SHAPES: tuple[tuple[str, Callable[[object], bool], str], ...] = (
    ("tools", _is_names, "is not a list of texts; give the name of each tool"),
    ("attachments", lambda value: isinstance(value, Integral), "is not a whole number; give how many there are"),
    ("policy", lambda value: value is None or isinstance(value, str), "is not a text; give a policy's name"),
    ("floor", _is_tier, "is not a tier; give one such as Tier.COMPLEX"),
    ("ceiling", _is_tier, "is not a tier; give one such as Tier.COMPLEX"),
    ("record", lambda value: value is None or isinstance(value, int), "is not True, False or None"),
    ("labels", _is_labels, "is not a mapping of texts to texts; give numbers as text"),
    ("request_id", lambda value: isinstance(value, str), "is not a text"),
)
