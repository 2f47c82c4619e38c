"""A row of a log → `Request`, by the format of the row: `FORMATS`, recognised or named.

| format | a row |
|---|---|
| `corpus` | `messages` with texts, or `prompt`; optional `tools`, `attachments`; in a feedback export in `request` |
| `prompt` | a column of texts, `prompt` or what `--text-field` says |
| `openai` | a chat completions or responses body, alone or in a field of `_WRAPPERS`; or a list in one of `_LISTS` |
| `anthropic` | a messages body, or a batch's line with one in `params` |
| `litellm` | a standard logging payload, or a row of the proxy's spend logs |
| `otel` | a span of a request to a model |
| `gemini` | a generateContent body, a row of Vertex AI's request-response log, or a batch's line (`request`) |
| `bedrock` | an entry of Amazon Bedrock's model invocation log |

Objects may stand as their JSON text, as they do in CSV files and tables. An assistant's message at the end of a row is
its answer: it was not there when the request was made, and is left out; but of a feedback export, which holds what was
served.

Pure. Knows nothing of files.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from classifier.cells import WORDS, first_sign, holds, inner, is_objects, json_of, object_of, opened, value_below
from classifier.clouds import request_of_contents, request_of_converse
from classifier.conversations import asked, count_of, request_of_body, result_text, tool_names
from classifier.elsewhere import SPLIT, check_chat, check_step, check_whole, nothing_in
from classifier.errors import InvalidRequest
from classifier.shapes import is_list, mapping_of
from classifier.spans import FLAT, is_span, request_of_span
from classifier.texts import parsed
from classifier.turns import before, is_history, messages_of, with_turns
from classifier.types import Request

FORMATS = ("auto", "corpus", "prompt", "openai", "anthropic", "litellm", "otel", "gemini", "bedrock")
_COLUMNS = frozenset({
    "prompt", "messages", "input", "system", "instruction", "instructions", "tools", "functions", "attachments",
    "body", "params", "custom_id", "call_type", "model_parameters", "model_group", "proxy_server_request",
    "standard_logging_object", "request", "decision_id", "attributes", "events", "context", "span_id", "spanId",
    "trace_id", "traceId", "name", "max_tokens", "request_body", "inputs", "conversation", "conversations",
    "contents", "systemInstruction", "system_instruction", "full_request", "schemaType", "modelId", "context.span_id",
    "ai", "requestBody", SPLIT, "SequenceNumber", "run_type", "type", "history",
})  # fmt: skip
_WRAPPERS = (
    ("body",), ("request_body",), ("requestBody",), ("request",), ("inputs",), ("input",),
    ("ai", "proxy", "payload", "request"), ("ai", "payload", "request"),
)  # fmt: skip
"""Where rows keep a body: batch files; Helicone; Azure; Portkey and Cloudflare; LangSmith; Langfuse's traces; Kong."""
_LISTS = ("conversation", "conversations", "prompt", SPLIT)
"""Where rows keep messages: WildChat and LMSYS; ShareGPT; Hugging Face's preference data; Azure's API Management."""
_CHATS = ("messages", "prompts")
_BODIES = (*_CHATS, "body", "input")
_LITELLM = ("messages", "model_parameters", "proxy_server_request")
"""What a row of LiteLLM's has beside `call_type`, which may be a word of somebody else's."""
_REDACTED = "redacted-by-litellm"
_CHAT_CALLS = ("completion", "text_completion", "responses", "messages", "generate_content", "image_edit")


def recognise(row: Mapping[str, Any], text_field: str = "prompt") -> str:
    """The format of a row.

    Raises:
        InvalidRequest: it looks like none.

    >>> recognise({"prompt": "hi"}), recognise({"custom_id": "1", "body": {"messages": []}})
    ('prompt', 'openai')
    """
    if _is_named_text(row, text_field):
        return "prompt"
    if is_span(row):
        return "otel"
    check_step(row)
    # An object there is what OpenAI's responses name a prompt by that the provider keeps.
    has_text = row.get(text_field) not in (None, "") and not isinstance(row[text_field], Mapping)
    is_call = row.get("call_type") and (not has_text or any(row.get(name) for name in _LITELLM))
    if is_call or row.get("standard_logging_object"):
        return "litellm"
    if row.get("schemaType") == "ModelInvocationLog" or holds(row.get("input"), "inputBodyJson"):
        return "bedrock"
    if row.get("request") and row.get("decision_id"):
        return "corpus"
    if row.get("messages"):
        return "anthropic" if row.get("system") else "openai"
    if any(is_objects(row, name) for name in _LISTS) or any(_wraps(row, path) for path in _WRAPPERS):
        return "openai"
    if holds(row.get("params"), "messages"):
        return "anthropic"
    if has_text:
        if text_field == "prompt" and (isinstance(row["prompt"], list) or is_history(row.get("history"))):
            return "openai"
        return "corpus" if text_field == "prompt" and _has_more(row) else "prompt"
    if any(row.get(name) for name in ("body", "input", "instruction")) or any(
        _completes(row, path) for path in _WRAPPERS
    ):
        return "openai"
    if row.get("params"):
        return "anthropic"
    if row.get("full_request") or row.get("contents") or holds(row.get("request"), "contents"):
        return "gemini"
    if row.get(text_field) is not None:
        return "prompt"
    if error := nothing_in(row):
        raise error
    if text_field != "prompt":
        raise InvalidRequest(text_field, "is not there, and no messages; see --text-field and --format")
    raise InvalidRequest("prompt", "is not there, and no messages or body; name the column with --text-field")


def _wraps(row: Mapping[str, Any], path: Sequence[str]) -> bool:
    """Whether an object, or its JSON text, that stands at a path holds a chat body or messages."""
    value = value_below(row, path)
    held = object_of(value)
    if path[-1] in WORDS and _instructs(row):
        return False
    if path[-1] in WORDS and isinstance(value, str):
        return held is not None and any(_lists(held, name) for name in (*_CHATS, "input"))
    if held is None:  # what looks like text of JSON and is none: whoever opens it says what is wrong
        return any(holds(value, name) for name in _BODIES)
    return any(name in held for name in _BODIES) and "contents" not in held  # that one is Gemini's


def _lists(held: Mapping[str, Any], name: str) -> bool:
    """Whether an object has a list there, or the JSON text of one of messages."""
    return is_list(held.get(name)) or is_objects(held, name)


def _instructs(body: Mapping[str, Any]) -> bool:
    """Whether a row says what to do, as Alpaca's do: its `input` is what to do it with, whatever it looks like."""
    return isinstance(body.get("instruction"), str) and bool(body["instruction"])


def _completes(row: Mapping[str, Any], path: Sequence[str]) -> bool:
    """Whether a completion's body stands at a path; `input` holds what people wrote, too: a prompt in it is theirs."""
    return path != ("input",) and "prompt" in (object_of(value_below(row, path)) or {})


def _way(row: Mapping[str, Any]) -> Sequence[str]:
    """The path to a chat body below a row, else to a completion's; an empty one where there is neither."""
    chats = (path for path in _WRAPPERS if _wraps(row, path))
    completions = (path for path in _WRAPPERS if _completes(row, path))
    return next(itertools.chain(chats, completions), ())


def _has_more(row: Mapping[str, Any]) -> bool:
    """Whether a prompt has tools or attachments beside it, as a corpus line has them and not another column's."""
    tools = row.get("tools")
    try:
        found = tool_names(parsed(tools) if isinstance(tools, str) else tools), count_of(row.get("attachments"))
    except InvalidRequest:
        return False
    return any(found)


def _is_named_text(row: Mapping[str, Any], text_field: str) -> bool:
    """Whether a column that was named for its texts holds one; in a column of a format's that may be JSON instead."""
    text = row.get(text_field)
    if text_field == "prompt" or not isinstance(text, str) or not text:
        return False
    return text_field not in _COLUMNS or first_sign(text) not in ("[", "{")


def request_of_row(
    row: Mapping[str, Any], row_format: str = "auto", *, text_field: str = "prompt", **fields: Any
) -> Request:
    """The request that a row of a log holds.

    Args:
        row: the row's columns.
        row_format: one of `FORMATS`.
        text_field: the column of texts, for `prompt`.
        fields: more fields of `Request`.

    Raises:
        InvalidRequest: the row is not of that format, or its request is not valid; the field is named.
    """
    kind = recognise(row, text_field) if row_format == "auto" else row_format
    request = _prompt(row, text_field, **fields) if kind == "prompt" else _READERS[kind](row, **fields)
    return request if kind == "corpus" and row.get("decision_id") else asked(request)


def reads(column: str) -> bool:
    """Whether a format may look at a column of that name, beside the text field."""
    return column in _COLUMNS or column.startswith(FLAT)


def _prompt(row: Mapping[str, Any], text_field: str, **fields: Any) -> Request:
    text = row.get(text_field)
    if not isinstance(text, str):
        raise InvalidRequest(text_field, f"is {'not there' if text is None else 'not a text'}; see --text-field")
    return request_of_body({"messages": messages_of(text)}, **fields)


def _corpus(row: Mapping[str, Any], **fields: Any) -> Request:
    line = row if row.get("messages") or row.get("prompt") else inner(row, "request")
    line = opened(line, "messages", "tools")
    facts = {"tools": tool_names(line.get("tools")), "attachments": count_of(line.get("attachments"))}
    return Request.from_json({**with_turns(line), **facts}, **fields)


def _openai(row: Mapping[str, Any], **fields: Any) -> Request:
    body = inner(row, "body") if _wraps(row, ("body",)) else row
    while not body.get("messages") and (path := _way(body)):
        body = inner({path[-1]: value_below(body, path)}, path[-1])
    body = opened(body, "messages", "tools", "functions", *_LISTS, *(() if _instructs(body) else ("input",)))
    if not body.get("messages"):
        body = {**body, "messages": _said(body), "input": body.get("input") or None}
    elif _is_nested(body["messages"]):  # LangChain's runs can hold several conversations
        body = {**body, "messages": _only(body["messages"], "messages", list)}
    return request_of_body(body, **fields)


def _said(body: Mapping[str, Any]) -> Any:
    """The messages of a body that has them under another name; None where it has none."""
    if name := next((name for name in _LISTS if is_objects(body, name)), ""):
        check_whole(body)
        return body[name]
    if body.get("prompts"):
        return _prompted(body["prompts"], "prompts")
    if _instructs(body):
        given = body.get("input")
        texts = [body["instruction"], *([] if given in (None, "", [], {}) else [result_text(given)])]
        return [*_earlier(body), {"role": "user", "content": texts}]
    if (prompt := body.get("prompt")) and isinstance(prompt, str | list):
        return [*_earlier(body), *_prompted(prompt, "prompt")]
    check_chat(inner(body, "body"))
    return None


def _earlier(body: Mapping[str, Any]) -> Sequence[Any]:
    """The messages of a `history` beside a prompt."""
    history = body.get("history")
    return before(json_of(history, "history")) if is_history(history) else ()


def _prompted(prompt: Any, name: str) -> Sequence[Mapping[str, str]]:
    """The messages of a completion's prompt: a text, or a list of one."""
    if isinstance(prompt, str):
        return messages_of(prompt)
    if isinstance(prompt, list) and any(isinstance(part, int | list) for part in prompt):
        raise InvalidRequest(name, "holds token ids; log the text, or turn them back into it")
    return messages_of(_only(prompt, name, str))


def _is_nested(messages: Any) -> bool:
    return isinstance(messages, list) and bool(messages) and isinstance(messages[0], list)


def _only(values: Any, name: str, kind: type) -> Any:
    """The one conversation or prompt that a run was about."""
    if not isinstance(values, list) or len(values) != 1 or not isinstance(values[0], kind):
        raise InvalidRequest(name, "does not hold one request; write a row for each")
    return values[0]


def _anthropic(row: Mapping[str, Any], **fields: Any) -> Request:
    wrappers = [name for name in ("params", "body") if holds(row.get(name), "messages") or not row.get("messages")]
    return request_of_body(opened(inner(row, *wrappers), "messages", "tools", "functions", "system"), **fields)


def _litellm(row: Mapping[str, Any], **fields: Any) -> Request:
    payload = inner(row, "standard_logging_object")
    call = str(payload.get("call_type") or "completion")
    if not any(call.endswith(name) for name in _CHAT_CALLS):
        raise InvalidRequest("call_type", f"is {call[:32]!r}, which is no request to a chat model")
    body = dict(opened(payload, "messages", "model_parameters", "proxy_server_request"))
    sent = body.get("proxy_server_request")
    if not body.get("messages") and isinstance(sent, Mapping):  # spend logs keep the body as it was sent
        return _openai(sent, **fields)
    messages = body.get("messages")
    if isinstance(messages, str) or (isinstance(messages, list) and messages and not isinstance(messages[0], Mapping)):
        body["messages"] = _prompted(messages, "messages")  # of a completion
    if isinstance(messages, Mapping):
        body["messages"] = messages = messages.get("messages", [messages])
    parameters = mapping_of(body.get("model_parameters"))
    body |= {name: parameters[name] for name in ("tools", "functions", "system") if parameters.get(name)}
    request = request_of_body(body, **fields)
    if any(message.content == _REDACTED for message in request.messages):
        raise InvalidRequest("messages", "were redacted by LiteLLM (turn_off_message_logging); nothing is left to read")
    return request


def _gemini(row: Mapping[str, Any], **fields: Any) -> Request:
    body = opened(inner(row, "full_request", "request"), "contents", "systemInstruction", "system_instruction", "tools")
    if "contents" not in body and "messages" in body:  # Vertex AI logs Anthropic's models in the same table
        return request_of_body(body, **fields)
    return request_of_contents(body, **fields)


def _bedrock(row: Mapping[str, Any], **fields: Any) -> Request:
    entry = inner(row, "input")
    if entry.get("inputBodyS3Path") and not entry.get("inputBodyJson"):
        raise InvalidRequest("input.inputBodyJson", "is not in the log; its body, a large one, lies at inputBodyS3Path")
    body = opened(inner(entry, "inputBodyJson"), "messages", "system", "toolConfig")
    if "messages" not in body:
        raise InvalidRequest("input.inputBodyJson", "has no messages; of Bedrock's models those that chat are read")
    return request_of_converse(body, **fields)


_READERS: Mapping[str, Callable[..., Request]] = {
    "corpus": _corpus,
    "openai": _openai,
    "anthropic": _anthropic,
    "litellm": _litellm,
    "otel": request_of_span,
    "gemini": _gemini,
    "bedrock": _bedrock,
}
