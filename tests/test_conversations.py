"""Chat bodies whose tools are the provider's own, or the caller's: their words are words, and only files are files."""

from __future__ import annotations

import pytest

from classifier.columns import count_chars
from classifier.conversations import request_of_body
from classifier.errors import InvalidRequest

ASKED = {"role": "user", "content": "fix it"}


def result(kind, *parts):
    """An assistant's message with what a tool of Anthropic's own found."""
    return {"role": "assistant", "content": [{"type": kind, "tool_use_id": "1", "content": [*parts]}]}


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"role": "assistant", "content": None, "tool_calls": [
            {"id": "1", "type": "custom", "custom": {"name": "patch", "input": "*** Begin"}}]},
         [("assistant", '{"call":"patch","args":"*** Begin"}')]),
        ({"type": "shell_call", "call_id": "1", "action": {"commands": ["ls"]}},
         [("assistant", '{"call":"shell_call","args":{"commands":["ls"]}}')]),
        ({"type": "shell_call_output", "call_id": "1", "output": [
            {"stdout": "a.py", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}},
            {"stdout": "", "stderr": "no such file", "outcome": {"type": "exit", "exit_code": 1}}]},
         [("tool", "a.py\nno such file")]),
        ({"type": "mcp_call", "name": "find", "arguments": "{}", "output": "found"},
         [("assistant", '{"call":"find","args":{}}'), ("tool", "found")]),
        (result("bash_code_execution_tool_result",
                {"type": "bash_code_execution_result", "stdout": "a.py", "stderr": "", "content": []}),
         [("tool", "a.py")]),
        (result("web_search_tool_result", *[{"type": "web_search_result", "url": "u", "encrypted_content": "E"}] * 3),
         [("tool", "")]),
        (result("web_search_tool_result", {"type": "web_search_tool_result_error", "error_code": "unavailable"}),
         [("tool", "unavailable")]),
        ({"role": "assistant", "content": [
            {"type": "text", "text": "I look."},
            {"type": "server_tool_use", "id": "1", "name": "web_search", "input": {"query": "rain"}},
            {"type": "web_search_tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "a page"}]},
            {"type": "text", "text": "It rains."}]},
         [("assistant", 'I look.\n{"call":"web_search","args":{"query":"rain"}}'), ("tool", "a page"),
          ("assistant", "It rains.")]),
        ({"role": "user", "content": [
            {"type": "search_result", "source": "s", "title": "t", "content": [{"type": "text", "text": "a page"}]},
            {"type": "text", "text": "sum up"}]}, [("user", "a page\nsum up")]),
    ],
    ids=["custom", "shell", "outputs", "mcp", "code", "pages", "error", "between", "search"],
)  # fmt: skip
def test_what_tools_say_is_read_and_is_no_attachment(step, said):
    """Calls have the name and what was given, results the text; pages that the provider encrypted are nothing."""
    request = request_of_body({"input": [ASKED, step]})
    assert [(m.role, m.content) for m in request.messages] == [("user", "fix it"), *said]
    assert request.attachments == 0


@pytest.mark.parametrize(
    "part",
    [
        {"type": "code_execution_output", "file_id": "1"},
        {"type": "image", "source": {}},
        {"type": "web_fetch_result", "url": "u", "content": {"type": "document", "source": {}}},
    ],
    ids=["output", "image", "document"],
)
def test_a_file_within_a_result_is_an_attachment(part):
    """What a tool made or fetched, and the model looks at, counts as it does beside a message."""
    assert request_of_body({"messages": [ASKED, result("code_execution_tool_result", part)]}).attachments == 1


def test_a_custom_tool_is_offered_by_its_name():
    """OpenAI's chat completions wrap it as they wrap a function."""
    tools = [{"type": "custom", "custom": {"name": "patch"}}, {"type": "function", "function": {"name": "run"}}]
    assert request_of_body({"messages": [ASKED], "tools": tools}).tools == ("patch", "run")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "file", "file": {"filename": "a", "file_data": "A" * 9000}},
        {"type": "input_file", "file_data": "A" * 9000},
        {"type": "input_audio", "input_audio": {"data": "A" * 9000, "format": "wav"}},
        {"inlineData": {"mimeType": "image/png", "data": "A" * 9000}},
    ],
    ids=["file", "input file", "recording", "inline"],
)
def test_a_file_is_no_text_of_its_conversation(part):
    """A recording or a document of megabytes passes over no route for a small context."""
    assert count_chars([{"role": "user", "content": [part, {"type": "text", "text": "hi"}]}]) < 10


@pytest.mark.parametrize("text", ["I look.", ""], ids=["beside words", "alone"])
@pytest.mark.parametrize("names", [["find"], ["find", "read"]], ids=["one call", "calls in parallel"])
def test_a_step_of_an_agent_is_one_request_in_every_api(text, names):
    """A call is of the assistant's message before it where a message holds its calls, and where it stands behind it."""
    answer = {"role": "assistant", "content": text or None}
    calls = [{"type": "function", "function": {"name": name, "arguments": '{"q": "x"}'}} for name in names]
    chat = [ASKED, {**answer, "tool_calls": calls}, *({"role": "tool", "content": "a.py"} for _ in names)]
    parts = [{"type": "tool_use", "name": name, "input": {"q": "x"}} for name in names]
    results = [{"role": "user", "content": [{"type": "tool_result", "content": "a.py"}]} for _ in names]
    said = [{"type": "text", "text": text}] if text else []
    messages = [ASKED, {"role": "assistant", "content": [*said, *parts]}, *results]
    items = [ASKED, {"type": "reasoning", "summary": []}, *([{"type": "message", **answer}] if text else [])]
    items += [{"type": "function_call", "name": name, "arguments": '{"q": "x"}'} for name in names]
    items += [{"type": "function_call_output", "output": "a.py"} for _ in names]
    bodies = {"messages": chat}, {"messages": messages}, {"input": items}
    assert len({request_of_body(body).messages for body in bodies}) == 1


@pytest.mark.parametrize("place", ["messages", "system"])
def test_what_is_nested_too_deeply_is_no_request(place):
    """A body deeper than anybody sends is refused by its field, as any other that is no chat; it is no bug of ours."""
    content = "x"
    for _ in range(3000):
        content = [{"type": "tool_result", "content": content}]
    body = {"messages": [ASKED], "system": ""} | (
        {"system": content} if place == "system" else {"messages": [{"role": "user", "content": content}]}
    )
    with pytest.raises(InvalidRequest, match=rf"{place}(\[0\])?: is nested too deeply"):
        request_of_body(body)


@pytest.mark.parametrize("said", [{"value": "Prove it.", "annotations": []}, ["Prove it."], 7])
def test_a_text_in_another_shape_is_not_taken_for_silence(said):
    """A part of text whose text is none is named: its request would be rated as an empty one."""
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": said}]}]}
    with pytest.raises(InvalidRequest, match=r"messages\[0\].content\[0\].text: is not a text"):
        request_of_body(body)
