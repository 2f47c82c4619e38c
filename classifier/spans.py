"""OpenTelemetry GenAI spans → `Request`: exports of the collector (OTLP JSON) and of the Python SDK's console exporter.

Three generations of the conventions are read: `gen_ai.input.messages` with `gen_ai.system_instructions` and
`gen_ai.tool.definitions` (1.37 and later), as attributes or in an event; the events `gen_ai.user.message` and their
like (1.28 to 1.36); and the attributes `gen_ai.prompt.0.content` of OpenLLMetry. Content is only there where the
application was told to record it.

Pure. Knows nothing of files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from classifier.conversations import Collected, add_message, call_text, result_text, tool_names
from classifier.errors import InvalidRequest
from classifier.types import Request

REQUESTS = frozenset({"chat", "completion", "text_completion", "generate_content"})
"""Values of `gen_ai.operation.name` that are requests to a model; an agent's or a tool's span holds those."""
_INDEXED = re.compile(r"gen_ai\.prompt\.(\d+)\.(role|content)$")
_INDEXED_CALL = re.compile(r"gen_ai\.prompt\.(\d+)\.tool_calls\.(\d+)\.(name|arguments)$")
_INDEXED_TOOL = re.compile(r"llm\.request\.functions\.(\d+)\.name$")
_EVENT = re.compile(r"gen_ai\.(system|user|assistant|tool)\.message$")
_NO_CONTENT = (
    "has no content; let the application record it (OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT or "
    "TRACELOOP_TRACE_CONTENT)"
)


def is_span(row: Mapping[str, Any]) -> bool:
    """Whether a row is a span or an OTLP export of spans."""
    if "resourceSpans" in row:
        return True
    attributes = row.get("attributes")
    has_id = any(name in row for name in ("context", "spanId", "span_id", "trace_id", "traceId"))
    return attributes is not None and has_id


def spans_of(export: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The spans of an OTLP export that are requests to a model, flat, in its order.

    >>> value = {"stringValue": "chat"}
    >>> span = {"name": "chat m", "attributes": [{"key": "gen_ai.operation.name", "value": value}]}
    >>> [s["attributes"] for s in spans_of({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]})]
    [{'gen_ai.operation.name': 'chat'}]
    """
    for resource in _dicts(export.get("resourceSpans")):
        facts = resource.get("resource")
        resource_attributes = _attributes(facts.get("attributes")) if isinstance(facts, Mapping) else {}
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
                    "resource": resource_attributes,
                }
                if is_request(flat):
                    yield flat


def is_request(span: Mapping[str, Any]) -> bool:
    """Whether a flat span is a request to a model, by its operation or its GenAI attributes."""
    attributes = _attributes(span.get("attributes"))
    operation = attributes.get("gen_ai.operation.name")
    if operation is not None:
        return isinstance(operation, str) and operation in REQUESTS
    return any(str(key).startswith("gen_ai.") for key in attributes)


def request_of_span(span: Mapping[str, Any], **fields: Any) -> Request:
    """The request that a flat span tells of.

    Args:
        span: with `attributes` and perhaps `events`, as `spans_of` or the SDK's console exporter make them.
        fields: more fields of `Request`.

    Raises:
        InvalidRequest: it holds no content, or one of another shape.
    """
    attributes = _attributes(_parsed(span.get("attributes")))
    events = [
        (str(e.get("name")), _attributes(_parsed(e.get("attributes")))) for e in _dicts(_parsed(span.get("events")))
    ]
    for _, values in events:  # gen_ai.client.inference.operation.details carries the attributes in an event
        if "gen_ai.input.messages" in values:
            attributes = attributes | values
    found = Collected()
    if "gen_ai.input.messages" in attributes:
        _from_messages(found, attributes)
    elif not _from_indexed(found, attributes):
        for name, values in events:
            if match := _EVENT.match(name):
                role, content = match[1], _parsed(values.get("content"))
                calls = _parsed(values.get("tool_calls"))
                add_message(found, {"role": role, "content": content, "tool_calls": calls}, f"events.{name}")
    if not found.messages:
        raise InvalidRequest("attributes.gen_ai.input.messages", _NO_CONTENT)
    tools = _parsed(attributes.get("gen_ai.tool.definitions"))
    names = tool_names(tools) or tuple(str(v) for k, v in attributes.items() if _INDEXED_TOOL.match(str(k)))
    return Request(messages=tuple(found.messages), tools=names, attachments=found.attachments, **fields)


def _from_messages(found: Collected, attributes: Mapping[str, Any]) -> None:
    """`gen_ai.input.messages`: a list, or its JSON text, of messages with parts."""
    system = _parsed(attributes.get("gen_ai.system_instructions"))
    if system:
        _add_parts(found, "system", system, "gen_ai.system_instructions")
    messages = _parsed(attributes["gen_ai.input.messages"])
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise InvalidRequest("gen_ai.input.messages", "is not a list of messages, nor its JSON text")
    for i, message in enumerate(messages):
        where = f"gen_ai.input.messages[{i}]"
        if isinstance(message, Mapping) and "parts" in message:
            _add_parts(found, str(message.get("role")), message["parts"], f"{where}.parts")
        else:
            add_message(found, message, where)


def _add_parts(found: Collected, role: str, parts: Any, where: str) -> None:
    texts: list[str] = []
    if isinstance(parts, str):
        parts = [{"type": "text", "content": parts}]
    if not isinstance(parts, Sequence):
        raise InvalidRequest(where, "is not a list of parts")
    answered = False
    for j, part in enumerate(parts):
        if not isinstance(part, Mapping):
            raise InvalidRequest(f"{where}[{j}]", "is not an object with a type")
        kind = part.get("type")
        if kind == "text" and isinstance(part.get("content"), str):
            texts.append(part["content"])
        elif kind == "tool_call":
            texts.append(call_text(part.get("name"), part.get("arguments")))
        elif kind == "tool_call_response":
            result = part.get("response", part.get("result"))
            found.add("tool", [result_text(result)])
            answered = True
        elif kind != "reasoning":
            found.attachments += 1
    if texts or not answered:
        found.add(role, texts)


def _from_indexed(found: Collected, attributes: Mapping[str, Any]) -> bool:
    """`gen_ai.prompt.0.role` and their like, in the order of the index; whether there were any."""
    messages: dict[int, dict[str, Any]] = {}
    calls: dict[tuple[int, int], dict[str, Any]] = {}
    for key, value in attributes.items():
        if match := _INDEXED.match(str(key)):
            content = _parsed(value) if match[2] == "content" else value
            # Content parts are recorded as JSON text; a prompt that happens to be JSON stays what it is.
            structured = isinstance(content, list) and all(isinstance(p, Mapping) and "type" in p for p in content)
            messages.setdefault(int(match[1]), {})[match[2]] = content if structured else value
        elif match := _INDEXED_CALL.match(str(key)):
            calls.setdefault((int(match[1]), int(match[2])), {})[match[3]] = value
    for (i, _), call in sorted(calls.items()):
        messages.setdefault(i, {}).setdefault("tool_calls", []).append({"function": call})
    for i, message in sorted(messages.items()):
        add_message(found, {"role": "user", **message}, f"gen_ai.prompt.{i}")
    return bool(messages)


def _attributes(attributes: Any) -> dict[str, Any]:
    """Attributes as a plain dictionary: OTLP's list of keys and values, a map's list of pairs, or one already."""
    if isinstance(attributes, Mapping):
        return dict(attributes)
    if not isinstance(attributes, Sequence) or isinstance(attributes, str):
        return {}
    found: dict[str, Any] = {}
    for pair in attributes:
        if isinstance(pair, Mapping) and "key" in pair:
            found[str(pair["key"])] = _value(pair.get("value"))
        elif isinstance(pair, Sequence) and len(pair) == 2 and not isinstance(pair, str):
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
            return int(inner) if isinstance(inner, (int, str)) and str(inner).lstrip("-").isdigit() else inner
        return inner
    return None


def _parsed(value: Any) -> Any:
    """The structure that a text of JSON holds; everything else as it is."""
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _dicts(values: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(values, Sequence) and not isinstance(values, str):
        yield from (value for value in values if isinstance(value, Mapping))
