"""JSON as the contract's messages, by protobuf's own mapping, with what does not fit named.

Knows nothing of HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import islice
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from classifier import wire
from classifier.errors import MOST_VIOLATIONS, InvalidRequest
from classifier.gateways.openapi import ours
from classifier.texts import encodable
from classifier.v1 import classifier_pb2 as pb

_NAMES = frozenset(
    name for kind in pb.DESCRIPTOR.message_types_by_name.values() for f in kind.fields for name in (f.name, f.json_name)
)


def parse(kind: type[wire.P], body: bytes) -> wire.P:
    """The message of that kind in a JSON body.

    Raises:
        InvalidRequest: it is no JSON object, or fields are not known or do not fit; values are never quoted.
    """
    try:
        data = json.loads(body, object_pairs_hook=_unique)
    except _Repeated as error:
        where = str(error) if str(error) in _NAMES else "(key)"  # what is no name of ours may be anything
        raise InvalidRequest(where, "stands twice in one object; send it once") from None
    except (ValueError, RecursionError):
        raise InvalidRequest("(body)", "is not JSON; send one JSON object, as /openapi.json says") from None
    message = kind()
    if violations := list(islice(_fill(message, data), MOST_VIOLATIONS)):
        raise InvalidRequest(violations)
    return message


class _Repeated(Exception):
    """A key stands twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for raw, value in pairs:
        key = encodable(raw)  # JSON may hold half of a surrogate pair, as a text cut by JavaScript does; no message may
        if key in found:
            raise _Repeated(key)
        found[key] = encodable(value) if isinstance(value, str) else value
    return found


def _fill(message: Message, data: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Fills a message with an object of JSON; yields the path of each field that does not fit, and what would."""
    if not isinstance(data, dict):
        yield where or "(body)", "does not fit; expected an object"
        return
    at, fields = f"{where}." if where else "", _fields(message.DESCRIPTOR)
    told: dict[str, Any] = {}
    if not data.keys() <= fields.keys():
        yield where or "(body)", "has a field that the contract does not know; /openapi.json has them all"
    for spelling in filter(fields.__contains__, data):
        found = fields[spelling]
        if found.name in told:
            yield at + found.name, f"stands there as {found.json_name}, too; send it once"
        told[found.name] = data[spelling]
    for name in [name for name, v in told.items() if v is not None and ours(fields[name].message_type)]:
        yield from _fill_nested(message, fields[name], told.pop(name), at + name)
    if told:
        yield from _fill_plain(message, told, at)


def _fill_nested(message: Message, found: FieldDescriptor, value: Any, where: str) -> Iterator[tuple[str, str]]:
    """As `_fill`, a field of messages of the contract's."""
    held = getattr(message, found.name)
    if not found.is_repeated:
        held.SetInParent()
        yield from _fill(held, value, where)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _fill(held.add(), item, f"{where}[{i}]")
    else:
        yield where, f"does not fit; expected {_expected(found)}"


def _fill_plain(message: Message, told: dict[str, Any], at: str) -> Iterator[tuple[str, str]]:
    """As `_fill`, all other fields, which protobuf reads: together, and one by one where they do not fit."""
    try:
        json_format.ParseDict(told, message)
    except Exception:  # of what protobuf does not look at itself, such as an enum's 1e999, each has its own
        for name, value in told.items():
            if len(told) > 1:
                yield from _fill_plain(message, {name: value}, at)
            else:
                yield at + name, f"does not fit; expected {_expected(_fields(message.DESCRIPTOR)[name])}"


@cache
def _fields(kind: Descriptor) -> Mapping[str, FieldDescriptor]:
    """The fields of a message by both of their spellings."""
    return {spelling: found for found in kind.fields for spelling in (found.name, found.json_name)}


def _expected(found: FieldDescriptor) -> str:
    if found.enum_type:
        return "one of " + ", ".join(value.name for value in found.enum_type.values if value.number)
    if found.message_type and found.message_type.full_name == "google.protobuf.Timestamp":
        return "a time such as 2026-01-31T12:00:00Z"
    if found.message_type and found.message_type.GetOptions().map_entry:
        return "an object of texts"
    kinds = {FieldDescriptor.CPPTYPE_STRING: "text", FieldDescriptor.CPPTYPE_BOOL: "true or false"}
    one = "an object" if found.message_type else kinds.get(found.cpp_type, "a number")
    return f"a list of {one.removeprefix('an ')}s" if found.is_repeated else one
