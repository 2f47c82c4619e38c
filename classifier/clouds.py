"""Requests as two clouds' own APIs take them → `Request`: Gemini's generateContent, Amazon Bedrock's Converse.

A part of theirs says by its one key what it is, where others have a `type`. Each is made the part that others know, and
means what it means there.

Pure. Knows nothing of files, logs or the wire.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from classifier.conversations import Collected, add_message, request_of_body, result_text, tool_names
from classifier.errors import InvalidRequest
from classifier.shapes import is_list, list_of, mapping_of
from classifier.types import Request

_Part = Mapping[str, Any]
_UNSEEN: _Part = {"type": "thinking"}


def request_of_contents(body: Mapping[str, Any], **fields: Any) -> Request:
    """The request that a body of Gemini's generateContent holds; names in snake_case are the same.

    Args:
        body: with `contents`, and optional `systemInstruction` and `tools`.
        fields: more fields of `Request`.

    Raises:
        InvalidRequest: a part has another shape; its path is named.

    >>> r = request_of_contents({"systemInstruction": {"parts": [{"text": "Be brief."}]}, "contents": [
    ...     {"role": "user", "parts": [{"text": "What is this?"}, {"fileData": {"mimeType": "image/png"}}]}]})
    >>> [m.role for m in r.messages], r.messages[1].content, r.attachments
    (['system', 'user'], 'What is this?', 1)
    """
    body, found = _in_camel_case(body), Collected()
    if body.get("systemInstruction"):
        _add_content(found, body["systemInstruction"], "systemInstruction", "system")
    contents = body.get("contents")
    if not is_list(contents):
        raise InvalidRequest("contents", "is not there or not a list of objects with role and parts")
    for i, content in enumerate(contents):
        _add_content(found, content, f"contents[{i}]")
    tools = body.get("tools")
    names = [name for tool in tools for name in _declared(tool)] if is_list(tools) else tools
    return Request(messages=found.messages, tools=tool_names(names), attachments=found.attachments, **fields)


def request_of_converse(body: Mapping[str, Any], **fields: Any) -> Request:
    """The request that a body of Bedrock's Converse holds, or one of Anthropic's messages, which have a `type`.

    Args:
        body: with `messages`, and optional `system` and `toolConfig`, or `tools`.
        fields: more fields of `Request`.

    Raises:
        InvalidRequest: a part has another shape; its path is named.

    >>> r = request_of_converse({"system": [{"text": "Be brief."}], "messages": [
    ...     {"role": "user", "content": [{"text": "What is this?"}, {"image": {"format": "png"}}]}]})
    >>> [m.role for m in r.messages], r.messages[1].content, r.attachments
    (['system', 'user'], 'What is this?', 1)
    """
    messages = body.get("messages")
    if is_list(messages):
        messages = [
            {**message, "content": _each(message.get("content"), _of_converse)}
            if isinstance(message, Mapping)
            else message
            for message in messages
        ]
    told = {"messages": messages, "system": _each(body.get("system"), _of_converse), "tools": body.get("tools")}
    if isinstance(offered := body.get("toolConfig"), Mapping):
        kinds = [t for t in list_of(offered.get("tools")) if isinstance(t, Mapping) and "cachePoint" not in t]
        told["tools"] = [next(iter(t.values()), None) for t in kinds]
    return request_of_body(told, **fields)


def _add_content(found: Collected, content: Any, where: str, role: str = "") -> None:
    """A content of Gemini's as a message."""
    parts = mapping_of(content).get("parts")
    if not is_list(parts):
        raise InvalidRequest(where, "is not an object with role and parts")
    if wrong := [j for j, part in enumerate(parts) if not isinstance(part, Mapping)]:
        raise InvalidRequest(f"{where}.parts[{wrong[0]}]", "is not an object")
    add_message(found, {"role": role or content.get("role") or "user", "content": _each(parts, _of_gemini)}, where)


def _of_gemini(part: _Part) -> _Part:
    part = _in_camel_case(part)
    if part.get("thought") is True:
        return _UNSEEN
    if "functionCall" in part:
        call = mapping_of(part["functionCall"])
        return {"type": "tool_use", "name": call.get("name"), "input": call.get("args")}
    if "executableCode" in part:
        return {"type": "tool_use", "name": "code_execution", "input": part["executableCode"]}
    if "functionResponse" in part:
        return _result(mapping_of(part["functionResponse"]).get("response"))
    if "codeExecutionResult" in part:
        return _result(mapping_of(part["codeExecutionResult"]).get("output"))
    return part if "text" in part else {"type": next(iter(part), "")}


def _of_converse(part: _Part) -> _Part:
    if "type" in part or "text" in part:
        return part
    if "toolUse" in part:
        return {"type": "tool_use", **mapping_of(part["toolUse"])}
    if "toolResult" in part:
        return {"type": "tool_result", "content": _each(mapping_of(part["toolResult"]).get("content"), _of_converse)}
    if "json" in part:
        return {"type": "text", "text": json.dumps(part["json"], ensure_ascii=False)}
    if "guardContent" in part and "text" in (guarded := mapping_of(part["guardContent"])):
        return mapping_of(guarded["text"])
    return _UNSEEN if part.keys() & {"reasoningContent", "cachePoint"} else {"type": next(iter(part), "")}


def _result(result: Any) -> _Part:
    return {"type": "tool_result", "content": result_text(result)}


def _declared(tool: Any) -> list[Any]:
    """Tools that one of Gemini's declares: functions, and its own such as googleSearch."""
    if not isinstance(tool, Mapping):
        return [tool]
    tool = _in_camel_case(tool)
    return [*list_of(tool.get("functionDeclarations")), *(name for name in tool if name != "functionDeclarations")]


def _each(parts: Any, read: Callable[[_Part], _Part]) -> Any:
    """The parts of a list, each read; what is none is left for others to name."""
    return [read(part) if isinstance(part, Mapping) else part for part in parts] if is_list(parts) else parts


def _in_camel_case(names: Mapping[str, Any]) -> dict[str, Any]:
    return {"".join(w.title() if i else w for i, w in enumerate(str(n).split("_"))): v for n, v in names.items()}
