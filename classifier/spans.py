"""Spans of requests to models → `Request`: OTLP JSON of the collector, the Python SDK's console exporter, flat tables.

Of OpenTelemetry's GenAI conventions three generations are read: `gen_ai.input.messages` with
`gen_ai.system_instructions` and `gen_ai.tool.definitions` (1.37 and later), as attributes or in an event; the events
`gen_ai.user.message` and their like (1.28 to 1.36), of a span or as log records; and the attributes
`gen_ai.prompt.0.content` of OpenLLMetry. Beside them OpenInference, which Arize's Phoenix collects:
`llm.input_messages.0.message.content`. Content is only there where the application was told to record it.

A list of objects may stand as it is, or flat with a number for each; nested names may stand apart or parted by dots, in
`attributes` or as columns of their own. All become the same lists.

Pure. Knows nothing of files.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from classifier.conversations import Collected, add_message, tool_names
from classifier.errors import InvalidRequest
from classifier.shapes import is_list, list_of, mapping_of
from classifier.texts import json_text, parsed
from classifier.types import Request

EXPORTS = ("resourceSpans", "resourceLogs")
"""What holds the spans, or the log records, of an OTLP export."""
REQUESTS = frozenset({"chat", "completion", "text_completion", "generate_content"})
"""Values of `gen_ai.operation.name` that are requests to a model; an agent's or a tool's span holds those."""
_STEPS = {
    "gen_ai.operation.name": (
        "create_agent", "invoke_agent", "invoke_workflow", "execute_tool", "embeddings", "retrieval",
    ),
    "openinference.span.kind": (
        "CHAIN", "AGENT", "TOOL", "RETRIEVER", "RERANKER", "EMBEDDING", "GUARDRAIL", "EVALUATOR", "PROMPT", "DECISION",
    ),
}  # fmt: skip
_EVENT = re.compile(r"gen_ai\.(system|user|assistant|tool)\.message$")
_DETAILS = "gen_ai.client.inference.operation.details"
_COLUMN = "attributes."
"""What tables of spans have before an attribute's name."""
FLAT = (_COLUMN, "gen_ai.", "llm.", "openinference.")
"""What names of columns that hold an attribute begin with."""
_NAMED = ("gen_ai.", "llm.", "openinference.", "ai.")
"""What names of attributes begin with by one of the conventions, whole or nested."""
_REQUEST = ("prompt", "messages")
_WHOLE = ("gen_ai.input.messages", "ai.prompt.messages")
"""Attributes that hold all messages; the second is the Vercel AI SDK's."""
_CONTENT = ("gen_ai.input.messages", "llm.input_messages", "gen_ai.prompt.0")
_REPEATED_CHARS = 2**14
"""Of a resource as JSON: a longer one, far beyond what SDKs say of theirs, stands beside its first span alone."""
_MOST_NAMES = 32
"""Within each other in a dotted name; what is deeper stays as it is."""
_LITERAL_CHARS = 2**18
"""Of a list in Python's notation, which takes up to 500 bytes a character to parse."""
_NO_CONTENT = (
    "has no content; let the application record it (OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT or "
    "TRACELOOP_TRACE_CONTENT, and no OPENINFERENCE_HIDE_INPUTS)"
)


def is_span(row: Mapping[str, Any]) -> bool:
    """Whether a row is a span or an OTLP export; beside a request only what conventions name makes it one."""
    if any(name in row for name in EXPORTS):
        return True
    if not any(name in row for name in ("context", "spanId", "span_id", "trace_id", "traceId", "context.span_id")):
        return False
    columns = [name for name in row if name.startswith(FLAT) and row[name] not in (None, "")]
    if any(name.startswith(_CONTENT) for name in columns):
        return True
    flat = [name.removeprefix(_COLUMN) for name in columns if name.startswith(_COLUMN)]
    if any(row.get(name) for name in _REQUEST):
        return any(f"{name}.".startswith(_NAMED) for name in [*flat, *_attributes(_parsed(row.get("attributes")))])
    return bool(flat) or row.get("attributes") not in (None, "")


def spans_of(export: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The requests to a model in an OTLP export of spans or of log records, as flat spans, in its order.

    >>> value = {"stringValue": "chat"}
    >>> span = {"name": "chat m", "attributes": [{"key": "gen_ai.operation.name", "value": value}]}
    >>> [s["attributes"] for s in spans_of({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]})]
    [{'gen_ai.operation.name': 'chat'}]
    """
    yield from _logged(export)
    for resource in _dicts(export.get("resourceSpans")):
        about, repeated = _resource(resource)
        for scope in _dicts(resource.get("scopeSpans") or resource.get("instrumentationLibrarySpans")):
            for span in _dicts(scope.get("spans")):
                flat = {
                    "trace_id": span.get("traceId"),
                    "span_id": span.get("spanId"),
                    "parent_span_id": span.get("parentSpanId"),
                    "name": span.get("name"),
                    "start_time": span.get("startTimeUnixNano"),
                    "end_time": span.get("endTimeUnixNano"),
                    "attributes": _attributes(span.get("attributes")),
                    "events": [
                        {"name": event.get("name"), "attributes": _attributes(event.get("attributes"))}
                        for event in _dicts(span.get("events"))
                    ],
                    "resource": about,
                }
                if is_request(flat):
                    yield flat
                    about = repeated


def _logged(export: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The requests that log records tell of: one event holds all of it, or each message has one, by their span."""
    for resource in _dicts(export.get("resourceLogs")):
        about, repeated = _resource(resource)
        for scope in _dicts(resource.get("scopeLogs")):
            found: dict[Any, dict[str, Any]] = {}
            for i, record in enumerate(_dicts(scope.get("logRecords"))):
                attributes, body = _attributes(record.get("attributes")), _value(record.get("body"))
                name = str(record.get("eventName") or attributes.get("event.name"))
                is_step = str(attributes.get("gen_ai.operation.name", "chat")) not in REQUESTS
                if is_step or not (name == _DETAILS or _EVENT.match(name)):
                    continue
                trace, span = record.get("traceId"), record.get("spanId")
                flat: dict[str, Any] = {
                    "trace_id": trace,
                    "span_id": span,
                    "name": name,
                    "start_time": record.get("timeUnixNano") or record.get("observedTimeUnixNano"),
                    "attributes": attributes,
                    "events": [],
                    "resource": about,
                }
                values = {**attributes, **mapping_of(body)}
                key = i if name == _DETAILS else f"{trace} {span}"
                if key not in found:
                    found[key], about = flat, repeated
                if name == _DETAILS:
                    flat["attributes"] = values
                else:
                    found[key]["events"].append({"name": name, "attributes": values})
            yield from found.values()


def _resource(resource: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is said of a resource, and what of it stands beside its second span and all later ones: all or nothing."""
    about = _attributes(mapping_of(resource.get("resource")).get("attributes"))
    return about, about if len(json_text(about)) <= _REPEATED_CHARS else {}


def is_request(span: Mapping[str, Any]) -> bool:
    """Whether a flat span is a request to a model, by its operation, its kind or its GenAI attributes."""
    attributes = _attributes_of(span)
    for name, values in (("gen_ai.operation.name", REQUESTS), ("openinference.span.kind", {"LLM"})):
        if (said := attributes.get(name)) is not None:
            return isinstance(said, str) and said in values
    return any(key.startswith(("gen_ai.", "llm.input_messages")) for key in attributes)


def request_of_span(span: Mapping[str, Any], **fields: Any) -> Request:
    """The request that a flat span tells of.

    Args:
        span: with `attributes` and perhaps `events`, as `spans_of` or the SDK's console exporter make them, or with
            attributes as columns.
        fields: more fields of `Request`.

    Raises:
        InvalidRequest: it is another step than a request to a model, or holds no content, or one of another shape.
    """
    attributes = _attributes_of(span)
    for name, steps in _STEPS.items():
        if (kind := attributes.get(name)) in steps:
            raise InvalidRequest(name, f"is {kind!r}, a step around requests to a model; label the spans of these")
    events = [
        (str(e.get("name")), _attributes(_parsed(e.get("attributes")))) for e in _dicts(_parsed(span.get("events")))
    ]
    for _, values in events:  # gen_ai.client.inference.operation.details carries the attributes in an event
        if "gen_ai.input.messages" in values:
            attributes.update(values)
    if "span_id" in span and not span["span_id"] and any(_EVENT.match(name) for name, _ in events):
        raise InvalidRequest("spanId", "is not there, and says whose message an event is; trace the application, too")
    found = Collected()
    if system := _parsed(attributes.get("gen_ai.system_instructions")):
        add_message(found, {"role": "system", "parts": system}, "gen_ai.system_instructions")
    for where, message in _messages(attributes, events):
        add_message(found, message, where)
    if not found.said:
        raise _nothing_in(span, attributes)
    tools = _parsed(attributes.get("gen_ai.tool.definitions")) or [
        *_listed(attributes, "llm.request.functions"),
        *map(_tool, _listed(attributes, "llm.tools")),
        *map(_parsed, list_of(attributes.get("ai.prompt.tools"))),
    ]
    return Request(messages=found.messages, tools=tool_names(tools), attachments=found.attachments, **fields)


def _nothing_in(span: Mapping[str, Any], attributes: Mapping[str, Any]) -> InvalidRequest:
    """What to say of a span without messages."""
    if isinstance(text := _cell(attributes.get("llm.input_messages")), str) and text:
        return InvalidRequest("llm.input_messages", "is no list of JSON's; save the frame as Parquet or JSON lines")
    text = span.get(column := f"{_COLUMN}input.value")
    if isinstance(text, str) and text[:1] not in ("", "[", "{"):
        return InvalidRequest("llm.input_messages", f"is not there; try --text-field {column}")
    return InvalidRequest("attributes.gen_ai.input.messages", _NO_CONTENT)


def _messages(attributes: Mapping[str, Any], events: Sequence[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """(path, message) of each message, by the first of the conventions that the span keeps to."""
    if name := next((name for name in _WHOLE if attributes.get(name) is not None), ""):
        messages = _parsed(attributes[name])
        if not is_list(messages):
            raise InvalidRequest(name, "is not a list of messages, nor its JSON text")
        yield from ((f"{name}[{i}]", message) for i, message in enumerate(messages))
    elif said := _listed(attributes, "llm.input_messages"):
        yield from ((f"llm.input_messages.{i}", _of_openinference(message)) for i, message in enumerate(said))
    elif said := _listed(attributes, "gen_ai.prompt"):
        yield from ((f"gen_ai.prompt.{i}", _of_openllmetry(message)) for i, message in enumerate(said))
    else:
        for event, values in events:
            if match := _EVENT.match(event):
                if match[1] == "user" and values.get("content") is None:
                    raise InvalidRequest(f"events.{event}", _NO_CONTENT)
                message = {"content": _parsed(values.get("content")), "tool_calls": _parsed(values.get("tool_calls"))}
                yield f"events.{event}", {"role": match[1], **message}


def _of_openllmetry(message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = _parsed(message.get("content"))
    # Content parts are recorded as JSON text; a prompt that happens to be JSON stays what it is.
    if isinstance(content, list) and all(isinstance(part, Mapping) and "type" in part for part in content):
        message = {**message, "content": content}
    return {"role": "user", **message}


def _of_openinference(item: Mapping[str, Any]) -> Mapping[str, Any]:
    message = item.get("message")
    if not isinstance(message, Mapping):
        return item
    parts = [
        part.get("message_content") or {"type": "tool_call", **_call(part)} for part in _dicts(message.get("contents"))
    ]
    calls = [{"function": _call(call)} for call in _dicts(message.get("tool_calls"))]
    return {"role": message.get("role"), "content": parts or message.get("content"), "tool_calls": calls}


def _call(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """The function that an OpenInference tool call calls."""
    return mapping_of(mapping_of(item.get("tool_call")).get("function"))


def _tool(item: Mapping[str, Any]) -> Any:
    """A tool of OpenInference's as one of the provider's."""
    tool = mapping_of(item.get("tool"))
    return tool if tool.get("name") else _parsed(tool.get("json_schema"))


def _listed(attributes: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """The objects of a list of attributes, in order, their dotted names nested.

    >>> _listed({"a.0.b.role": "user", "a.0.b.parts.0.text": "hi"}, "a") == _listed({"a": [{"b.role": "user",
    ...     "b.parts": [{"text": "hi"}]}]}, "a") == [{"b": {"role": "user", "parts": [{"text": "hi"}]}}]
    True
    """
    flat = {
        key: _cell(value) if key == name else value
        for key, value in attributes.items()
        if f"{key}.".startswith(f"{name}.") or name.startswith(f"{key}.")
    }
    value = _nested(flat)
    for part in name.split("."):
        value = mapping_of(value).get(part)
    return list(_dicts(value))


def _nested(value: Any, most: int = _MOST_NAMES) -> Any:
    """A value with dotted names made objects, and objects with numbers for names made lists, `most` within another."""
    if isinstance(value, list):
        return [_nested(inner, most) for inner in value]
    if not isinstance(value, Mapping) or not most:
        return value
    found: dict[str, Any] = {}
    for name, inner in value.items():
        head, dot, rest = str(name).partition(".")
        if not dot:
            found[head] = dict(inner) if isinstance(inner, Mapping) else inner
        elif isinstance(group := found.setdefault(head, {}), dict):
            group[rest] = inner
    if found and all(name.isdecimal() for name in found):
        return [_nested(found[name], most - 1) for name in sorted(found, key=lambda name: (len(name), name))]
    return {name: _nested(inner, most - 1) for name, inner in found.items()}


def _attributes_of(span: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of a span, also those that stand beside the others as columns."""
    columns = {name.removeprefix(_COLUMN): value for name, value in span.items() if name.startswith(FLAT)}
    return {**{k: v for k, v in columns.items() if v not in (None, "")}, **_attributes(_parsed(span.get("attributes")))}


def _attributes(attributes: Any) -> dict[str, Any]:
    """Attributes as a plain dictionary: OTLP's list of keys and values, a map's list of pairs, or one already."""
    if isinstance(attributes, Mapping):
        return {str(name): value for name, value in attributes.items()}
    if not is_list(attributes):
        return {}
    found: dict[str, Any] = {}
    for pair in attributes:
        if isinstance(pair, Mapping) and "key" in pair:
            found[str(pair["key"])] = _value(pair.get("value"))
        elif is_list(pair) and len(pair) == 2:
            found[str(pair[0])] = pair[1]
    return found


def _value(value: Any) -> Any:
    """The value that OTLP's AnyValue holds."""
    if not isinstance(value, Mapping):
        return value
    for kind, inner in value.items():
        if kind == "arrayValue" and isinstance(inner, Mapping):
            return [_value(v) for v in inner.get("values") or ()]
        if kind == "kvlistValue" and isinstance(inner, Mapping):
            return _attributes(inner.get("values"))
        if kind == "intValue":
            with contextlib.suppress(ValueError):  # more digits than Python reads, or a "²", which is one, too
                return int(inner) if isinstance(inner, (int, str)) and str(inner).lstrip("-").isdigit() else inner
        return inner
    return None


def _parsed(value: Any) -> Any:
    """The structure that a text of JSON holds; everything else as it is."""
    return parsed(value) if isinstance(value, str) and value[:1] in ("[", "{") else value


def _cell(value: Any) -> Any:
    """The list that a data frame's cell holds, as JSON or as pandas writes it to CSV; everything else as it is."""
    value = _parsed(value)
    if isinstance(value, str) and value[:1] == "[" and len(value) <= _LITERAL_CHARS:
        with contextlib.suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return ast.literal_eval(value)
    return value


def _dicts(values: Any) -> Iterator[Mapping[str, Any]]:
    yield from (value for value in list_of(values) if isinstance(value, Mapping))
