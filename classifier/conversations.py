"""Chat bodies as APIs take them → `Request`: OpenAI chat completions and responses, Anthropic messages, and their kin.

What a body says in its own way becomes what the model was trained on: content parts become text, with images, files
and recordings counted as attachments; a tool call becomes `{"call": ..., "args": ...}` in the assistant's message; a
tool's result becomes a `tool` message, also where Anthropic wraps it in a user message; a system prompt is the first
message. Thinking is left out, and so are references to what the provider keeps, and pages that it encrypted. A part of
an unknown kind is read where it has a text and counted as an attachment else. A message of LangChain's is made one with
a role first.

Pure. Knows nothing of files, logs or the wire.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from classifier.errors import InvalidRequest
from classifier.shapes import is_list, mapping_of
from classifier.texts import parsed
from classifier.types import ROLES, Message, Request

_ROLES: Mapping[str, str] = {
    "function": "tool",
    "model": "assistant",
    "ai": "assistant",
    "gpt": "assistant",
    "human": "user",
    "function_call": "assistant",
    "observation": "tool",
}
_CONTENTS = ("content", "parts", "value")
"""Where a message has what was said: as APIs have it, the Vercel AI SDK, and ShareGPT's files."""
_WHO = ("role", "from", "type")
_WHAT = (*_CONTENTS, "text", "data", "kwargs", "output", "tool_calls", "function_call", "arguments", "image_url")
_SPEAKERS = frozenset({"human", "ai", "system", "tool", "function", "chat"})
"""What LangChain's messages are called, by their `type` or, with "Message" behind it, by their class."""
_TEXT_KEYS = ("text", "refusal")
_TEXT_KEYS_OF_RESULTS = ("text", "stdout", "stderr", "error_code")
_GIVEN = ("arguments", "args", "input")
"""Where a call has what it gives to its tool."""
_OF_BUILT_IN = ("action", "operation", "code", "queries")
"""The same for calls of OpenAI's built-in tools."""
_UNSEEN = frozenset({
    "thinking", "redacted_thinking", "reasoning", "reasoning_content", "step-start", "source-url", "source-document",
})  # fmt: skip
_CALLS = frozenset({"tool_use", "server_tool_use", "mcp_tool_use", "tool_call", "server_tool_call"})
_COMPACT = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, default=str)
_UI_CALL = "tool-"
"""Of the Vercel AI SDK's parts: before "call" and "result" in a model's messages, or before the tool's name in those of
a page, whose part holds the result, too."""


@dataclass(slots=True)
class Collected:
    """What was found of a conversation so far.

    Attributes:
        said: role and texts of each message, oldest first.
        attachments: images, files and recordings.
    """

    said: list[tuple[str, list[str]]] = field(default_factory=list)
    attachments: int = 0

    @property
    def messages(self) -> tuple[Message, ...]:
        """The messages, a line for each of their texts."""
        return tuple([Message(role, "\n".join(texts)) for role, texts in self.said])

    def add(self, role: str, texts: Sequence[str]) -> None:
        """A message of these texts."""
        self.said.append((role, [*texts]))

    def add_call(self, call: str) -> None:
        """A call that stands alone: of the assistant's message before it, as where a message holds its calls."""
        if not self.said or self.said[-1][0] != "assistant":
            self.add("assistant", [])
        self.said[-1][1].append(call)


def request_of_body(body: Mapping[str, Any], **fields: Any) -> Request:
    """The request that a chat body holds.

    Args:
        body: with `messages` (or `input`, as OpenAI's responses have it), and optional `system` or `instructions`,
            `tools` or `functions`, `attachments`.
        fields: more fields of `Request`.

    Raises:
        InvalidRequest: a part has another shape; its path is named.

    >>> r = request_of_body({"system": "Be brief.", "messages": [{"role": "user", "content": [
    ...     {"type": "text", "text": "What is this?"}, {"type": "image", "source": {}}]}]})
    >>> [m.role for m in r.messages], r.messages[1].content, r.attachments
    (['system', 'user'], 'What is this?', 1)
    """
    found = Collected()
    name = "messages" if body.get("messages") is not None else "input"
    messages = body.get(name)
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not is_list(messages):
        raise InvalidRequest("messages", "is not there or not a list of objects with role and content")
    told = [(n, {"role": "system", "content": body[n]}) for n in ("system", "instructions") if body.get(n)]
    told += [(f"{name}[{i}]", message) for i, message in enumerate(messages)]
    for where, message in told:
        try:
            add_message(found, message, where)
        except RecursionError:  # JSON's reader goes deeper than Python's own calls do, from Python 3.12 on
            raise InvalidRequest(where, "is nested too deeply") from None
    found.attachments += count_of(body.get("attachments"))
    return Request(
        messages=found.messages,
        tools=tool_names(body.get("tools") or body.get("functions")),
        attachments=found.attachments,
        **fields,
    )


def is_message(value: Any) -> bool:
    """Whether a value is an object that says who speaks, or of what kind it is, and holds what is said.

    >>> is_message({"role": "user", "content": "hi"}), is_message({"id": 1, "type": "fruit"})
    (True, False)
    """
    told = mapping_of(value)
    who = [told[name] for name in _WHO if isinstance(told.get(name), str)]
    return any(name in _ROLES or name in ROLES for name in who) or (bool(who) and any(name in told for name in _WHAT))


def add_message(found: Collected, message: Any, where: str) -> None:
    """Adds one message of a body, which may be several of ours.

    Raises:
        InvalidRequest: it has another shape; `where` is its path.
    """
    if not isinstance(message, Mapping):
        raise InvalidRequest(where, "is not an object with role and content")
    message = _of_langchain(message)
    if message.get("role") is None and isinstance(message.get("type"), str):
        _add_item(found, message, where)
        return
    said_by = str(message.get("role") or message.get("from"))
    role = _ROLES.get(said_by, said_by)
    name = next((name for name in _CONTENTS if message.get(name) is not None), "content")
    if role == "user" and name not in message:
        raise InvalidRequest(f"{where}.content", "is not there")
    texts: list[str] = []
    results = len(found.said)
    _add_content(found, texts, message.get(name), f"{where}.{name}", role)
    if said_by == "function_call":  # ShareGPT's, whose text is the call
        texts = [_call_of_text(text) for text in texts]
    calls = message.get("tool_calls") or ([message["function_call"]] if message.get("function_call") else [])
    if not is_list(calls):
        raise InvalidRequest(f"{where}.tool_calls", "is not a list")
    for call in calls:
        if not isinstance(call, Mapping):
            raise InvalidRequest(f"{where}.tool_calls", "holds what is not an object")
        told = _named(call)
        texts.append(call_text(told.get("name"), next((told[key] for key in _GIVEN if key in told), None)))
    if texts or len(found.said) == results:
        found.add(role, texts)


def _named(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """What has the name of a tool, or of a call of one: OpenAI's function or custom tool, else the object itself."""
    return next((held for key in ("function", "custom") if isinstance(held := tool.get(key), Mapping)), tool)


def _of_langchain(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message of LangChain's with a role: serialised with its class, or with its `type`; any other as it is."""
    if message.get("role") is not None:
        return message
    kwargs, path = message.get("kwargs"), message.get("id")
    if isinstance(kwargs, Mapping) and isinstance(path, Sequence) and path:
        kind, told = path[-1], kwargs
    else:
        data = message.get("data")
        kind, told = message.get("type"), data if isinstance(data, Mapping) else message
    speaker = str(kind).removesuffix("Chunk").removesuffix("Message").lower()
    if speaker not in _SPEAKERS:
        return message
    sent, content = mapping_of(told.get("additional_kwargs")), told.get("content")  # the first as the provider had it
    calls = told.get("tool_calls") or sent.get("tool_calls")
    if isinstance(content, list) and any(
        isinstance(part, Mapping) and str(part.get("type")) in _CALLS for part in content
    ):
        sent, calls = {}, None  # they stand in the content
    calls = {"tool_calls": calls, "function_call": sent.get("function_call")}
    return {**told, **calls, "role": told.get("role") or speaker}


def _call_of_text(text: str) -> str:
    """A tool call that stands as JSON text, as the assistant's text; other text as it is."""
    call = parsed(text)
    return call_text(call["name"], call.get("arguments")) if isinstance(call, Mapping) and "name" in call else text


def asked(request: Request) -> Request:
    """A request without the answers at the end of its conversation: when it was made they were not there.

    >>> [m.role for m in asked(request_of_body({"messages": [{"role": "user", "content": "hi"},
    ...     {"role": "assistant", "content": "Hello!"}]})).messages]
    ['user']
    """
    end = len(request.messages)
    while request.messages[end - 1].role == "assistant":
        end -= 1
    return replace(request, messages=request.messages[:end]) if end < len(request.messages) else request


def call_text(name: Any, arguments: Any) -> str:
    """A tool call as the assistant's text.

    >>> call_text("search", '{"q": "x"}')
    '{"call":"search","args":{"q":"x"}}'
    """
    call = {"call": str(name or ""), "args": parsed(arguments) if isinstance(arguments, str) else arguments}
    return _COMPACT.encode(call)


def tool_names(tools: Any) -> tuple[str, ...]:
    """Names of the tools that a body offers.

    Args:
        tools: a list of names, of objects with a `name`, of OpenAI's `{"type": "function", "function": {...}}` or the
            same with `custom`, or of built-in tools that have only a `type`; None and an empty text, as of a cell of
            CSV, mean none.

    Raises:
        InvalidRequest: it is no list.
    """
    if tools is None or tools == "":
        return ()
    if not is_list(tools):
        raise InvalidRequest("tools", "is not a list of names or of objects with a name")
    names: list[str] = []
    for tool in tools:
        if isinstance(tool, Mapping):
            names.append(str(_named(tool).get("name") or tool.get("type") or ""))
        else:
            names.append(str(tool))
    return tuple(names)


def _add_item(found: Collected, item: Mapping[str, Any], where: str) -> None:
    """An item of OpenAI's responses that has a type and no role."""
    kind = str(item["type"])
    if kind in _UNSEEN:
        return
    if kind.endswith(("_output", "_result")):
        texts: list[str] = []
        _add_content(found, texts, item.get("output", item.get("content")), f"{where}.output")
        found.add("tool", texts)
    elif kind.endswith("_call"):
        given = next((item[key] for key in (*_GIVEN, *_OF_BUILT_IN) if item.get(key)), None)
        found.add_call(call_text(item.get("name") or kind, given))
        if isinstance(item.get("output"), str):  # an MCP server's, which stands with its call
            found.add("tool", [item["output"]])
    elif kind.startswith("input_") or any(isinstance(item.get(key), str) for key in _TEXT_KEYS):
        texts = []
        _add_content(found, texts, [item], where)
        found.add("user", texts)
    # Else it refers to what the provider keeps, or tells of tools: nobody's words, and no file.


def _add_content(found: Collected, texts: list[str], content: Any, where: str, role: str = "") -> None:
    """Texts of a content, which `role` says, to `texts`; results of tools become messages, the rest is counted."""
    if content is None:
        return
    if isinstance(content, str):
        texts.append(content)
        return
    parts = [content] if isinstance(content, Mapping) else content
    if not is_list(parts):
        raise InvalidRequest(where, "is not a text or a list of parts")
    for j, part in enumerate(parts):
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, Mapping):
            raise InvalidRequest(f"{where}[{j}]", "is not a text or an object with a type")
        kind = str(part.get("type") or "")
        if kind in _UNSEEN or kind.startswith("data-"):
            continue
        if kind in _CALLS:
            texts.append(call_text(part.get("name"), part.get("input", part.get("arguments", part.get("args")))))
        elif kind.endswith("tool_call_response"):
            _add_result(found, texts, [result_text(part.get("response", part.get("result")))], role)
        elif kind == "tool-result":
            _add_result(found, texts, [result_text(part.get("output", part.get("result")))], role)
        elif kind.startswith(_UI_CALL) or kind == "dynamic-tool":
            name = part.get("toolName") or kind.removeprefix(_UI_CALL)
            texts.append(call_text(name, part.get("input", part.get("args"))))
            if part.get("output") is not None:
                texts.append(result_text(part["output"]))
        elif kind.endswith("tool_result"):
            inner: list[str] = []
            _add_content(found, inner, part.get("content"), f"{where}[{j}].content")
            _add_result(found, texts, inner, role)
        elif kind.endswith(("_result", "_error")) or "stdout" in part:  # of a provider's own tool, or a caller's search
            texts += [part[key] for key in _TEXT_KEYS_OF_RESULTS if isinstance(part.get(key), str) and part[key]]
            _add_content(found, texts, part.get("content"), f"{where}[{j}].content")
        else:
            keys = (*_TEXT_KEYS, "content") if kind == "text" else _TEXT_KEYS  # OpenTelemetry's parts have it there
            text = next((part[key] for key in keys if isinstance(part.get(key), str)), None)
            if text is not None:
                texts.append(text)
            elif not kind.endswith("text"):
                found.attachments += 1
            elif part.get("text") is not None:
                raise InvalidRequest(f"{where}[{j}].text", "is not a text")


def _add_result(found: Collected, texts: list[str], result: Sequence[str], role: str) -> None:
    """Adds a result of a tool; of a provider's own tool behind the call for it and what was said before."""
    if texts and role == "assistant":
        found.add(role, texts)
        texts.clear()
    found.add("tool", result)


def result_text(value: Any) -> str:
    """A tool's result as text: as it is, or as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def count_of(attachments: Any) -> int:
    """How many attachments a row says there are: a number, or a list of them, also as their text; nothing means none.

    Raises:
        InvalidRequest: it is something else.

    >>> count_of(2.0), count_of("2"), count_of('["a.png"]'), count_of("")
    (2, 2, 1, 0)
    """
    found = parsed(attachments) if isinstance(attachments, str) else attachments
    if found is None or found == "":
        return 0
    if isinstance(found, int):
        return found
    if isinstance(found, float) and found.is_integer():  # what a table made of a column with gaps
        return int(found)
    if is_list(found):
        return len(found)
    raise InvalidRequest("attachments", "is neither a whole number nor a list")
