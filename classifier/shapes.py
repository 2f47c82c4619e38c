"""Whether values have the shape that they should: the fields of a request or an outcome, lists and objects of JSON.

Type checkers see our callers' code and not their callers' JSON: content as a list of parts, labels with numbers, tools
as objects. Each such field is named with what would be right, and no value is quoted.

Knows nothing of what the values mean: `classifier.types` checks that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeGuard

from classifier.enums import TIERS


def misfits(request: Any) -> list[tuple[str, str]]:
    """(field path, what is wrong and what would be right) of each field of another type."""
    contents = [
        (f"messages[{i}].content", "is not a text; join parts that are text, and count images and files as attachments")
        for i, message in enumerate(request.messages)
        if not isinstance(message.content, str)
    ]
    return contents + _found(request, _REQUEST)


def misfits_of_outcome(outcome: Any) -> list[tuple[str, str]]:
    """As `misfits`, of an outcome."""
    return _found(outcome, _OUTCOME)


def is_list(value: object) -> TypeGuard[Sequence[Any]]:
    """Whether a value is a list of whatever; a text is none."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def list_of(value: object) -> Sequence[Any]:
    """The list that a value is, or an empty one."""
    return value if is_list(value) else ()


def mapping_of(value: object) -> Mapping[str, Any]:
    """The object that a value is, or an empty one."""
    return value if isinstance(value, Mapping) else {}


_Shapes = tuple[tuple[str, Callable[[object], bool], str], ...]


def _found(value: Any, shapes: _Shapes) -> list[tuple[str, str]]:
    return [(name, remedy) for name, fits, remedy in shapes if not fits(getattr(value, name))]


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_member(value: object) -> bool:
    return isinstance(value, int) and value > 0


def _is_names(value: object) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str) and all(isinstance(t, str) for t in value)


def _is_tier(value: object) -> bool:
    return value is None or (isinstance(value, int) and 0 < value <= TIERS[-1])


def _is_labels(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(text, str) for pair in value.items() for text in pair)


_REQUEST: _Shapes = (
    ("tools", _is_names, "is not a list of texts; give the name of each tool"),
    ("attachments", lambda value: isinstance(value, Integral), "is not a whole number; give how many there are"),
    ("policy", lambda value: value is None or isinstance(value, str), "is not a text; give a policy's name"),
    ("floor", _is_tier, "is not a tier; give one such as Tier.COMPLEX"),
    ("ceiling", _is_tier, "is not a tier; give one such as Tier.COMPLEX"),
    (
        "record",
        lambda value: value is None or (isinstance(value, int) and value in (0, 1)),
        "is not True, False or None",
    ),
    ("labels", _is_labels, "is not a mapping of texts to texts; give numbers as text"),
    ("request_id", _is_text, "is not a text"),
)
_OUTCOME: _Shapes = (
    ("decision_id", _is_text, "is not a text; send the id that Classify answered with"),
    ("outcome_id", _is_text, "is not a text; send an id of your own, so that a retry changes nothing"),
    ("verdict", _is_member, "is not a verdict; give one such as Verdict.REJECTED"),
    ("cause", _is_member, "is not a cause; give one such as Cause.QUALITY"),
    ("source", _is_member, "is not a source; give one such as Source.USER"),
    ("served_tier", lambda value: value is not None and _is_tier(value), "is not a tier; give the one that answered"),
    ("accepted_tier", _is_tier, "is not a tier; give the one that satisfied, or None"),
    ("occurred_at", lambda value: value is None or isinstance(value, Real), "is not seconds since the epoch"),
)
