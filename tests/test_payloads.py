"""Rows of every format to requests: what is read of them, and what is no request."""

from __future__ import annotations

import json

import pytest

from classifier.errors import InvalidRequest
from classifier.payloads import FORMATS, reads, request_of_row
from tests.logs_support import NAMED, READ, rows_of, told

_HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("how", ["recognised", "named"])
def test_each_format_is_read_as_its_api_means_it(name, how):
    """Parts become text, images are counted, calls and results become messages, whether recognised or named."""
    row_format = "auto" if how == "recognised" else NAMED[name.split("_")[0].split(".")[0]]
    assert [told(request_of_row(row, row_format)) for row in rows_of(name, row_format)] == READ[name]


@pytest.mark.parametrize("name", READ)
def test_a_table_holds_the_same_requests(name, tmp_path):
    """Objects that stand as their JSON text, as in CSV files and tables, are read as well, by the columns looked at."""
    rows = [
        {k: json.dumps(v) if isinstance(v, (dict, list)) else v for k, v in row.items() if reads(k)}
        for row in rows_of(name)
    ]
    assert [told(request_of_row(row)) for row in rows] == READ[name]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "", "input": "hi"},
        {"messages": [{"role": "user", "content": "hi"}], "body": ""},
        {"system": "", "messages": '[{"role": "user", "content": "hi"}]', "params": ""},
        {"call_type": "completion", "messages": '[{"role": "user", "content": "hi"}]', "standard_logging_object": ""},
    ],
)
def test_an_empty_cell_is_no_request(row):
    """A table whose column only some rows fill is read by what the others have."""
    assert told(request_of_row(row)) == ([("user", "hi")], (), 0)


@pytest.mark.parametrize(
    ("more", "tools", "attachments"),
    [
        ({"tools": ["sh", {"name": "edit"}]}, ("sh", "edit"), 0),
        ({"tools": [], "attachments": 2}, (), 2),
        ({"tools": "hammer", "attachments": 1}, (), 0),
        ({"attachments": "a.pdf", "tools": ["sh"]}, (), 0),
        ({"tools": '["sh"]', "attachments": "2"}, ("sh",), 2),
        ({"tools": "", "attachments": ""}, (), 0),
        ({"tools": "", "attachments": "1.0"}, (), 1),
        ({"tools": [{"type": "function", "function": {"name": "sh"}}], "attachments": 2.0}, ("sh",), 2),
        ({"attachments": ["a.pdf", "b.pdf"]}, (), 2),
        ({"attachments": 0.5, "tools": ["sh"]}, (), 0),
    ],
    ids=["tools", "attachments", "a text", "a file's name", "cells of CSV", "empty cells", "a gap's number as text",
         "a column with gaps", "their names", "a share"],
)  # fmt: skip
def test_a_prompt_is_rated_with_what_it_came_with(more, tools, attachments):
    """Tools and attachments beside a prompt count as beside messages; other columns of their names cost no row."""
    assert told(request_of_row({"prompt": "hi", **more})) == ([("user", "hi")], tools, attachments)


@pytest.mark.parametrize(
    "more",
    [
        {"params": {"temperature": 0.7}},
        {"params": '{"temperature": 0.7}', "body": ""},
        {"body": "Dear all"},
        {"body": {"subject": "Dear all"}},
        {"request": "by telephone"},
        {"trace_id": "t", "attributes": {"a": 1}},
        {"trace_id": "t", "attributes": ""},
        {"span_id": "s", "attributes.http.status_code": 200},
    ],
    ids="-".join,
)
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hi"},
        {"prompt": "hi", "tools": []},
        {"prompt": "hi", "attachments": 0, "history": []},
        {"messages": _HI},
        {"system": "", "messages": _HI},
    ],
    ids=["a prompt", "no tools", "no history", "messages", "no system"],
)
def test_columns_of_another_kind_cost_no_row(row, more):
    """What formats call a body, parameters, a call or attributes is theirs only where it holds a request of theirs."""
    assert told(request_of_row({**row, **more})) == ([("user", "hi")], (), 0)


def test_what_a_request_came_with_is_read_beside_columns_of_another_kind():
    """A system prompt, tools, a history and an instruction are those of the row."""
    more = {"params": {"temperature": 0.7}, "request": "by telephone"}
    assert told(request_of_row({"instruction": "hi", **more})) == ([("user", "hi")], (), 0)
    more |= {"body": "Dear all"}
    system = request_of_row({"system": "Be brief.", "messages": _HI, **more})
    assert told(system)[0] == [("system", "Be brief."), ("user", "hi")]
    assert told(request_of_row({"prompt": "hi", "tools": ["sh"], **more})) == ([("user", "hi")], ("sh",), 0)
    assert told(request_of_row({"instruction": "hi", **more})) == ([("user", "hi")], (), 0)
    assert len(request_of_row({"prompt": "Why?", "history": [["hi", "Hello!"]], **more}).messages) == 3


def test_a_call_type_of_another_kind_costs_no_prompt():
    """It is LiteLLM's where messages, parameters or what was sent stand beside it, or no prompt does."""
    assert told(request_of_row({"prompt": "hi", "call_type": "inbound"})) == ([("user", "hi")], (), 0)
    for beside in ({"messages": _HI}, {"model_parameters": {"n": 1}}, {"proxy_server_request": {"prompt": "hi"}}):
        with pytest.raises(InvalidRequest, match="call_type: is 'inbound'"):
            request_of_row({"prompt": "hi", "call_type": "inbound", **beside})


def test_a_span_is_one_beside_a_prompt_of_its_own():
    """Attributes by a convention make a span of a row that has a column called prompt, too."""
    attributes = {"gen_ai.input.messages": [{"role": "user", "parts": [{"type": "text", "content": "hi"}]}]}
    for told_by in (attributes, json.dumps(attributes)):
        row = {"trace_id": "t", "prompt": "greeting-v2", "attributes": told_by}
        assert told(request_of_row(row)) == ([("user", "hi")], (), 0)


@pytest.mark.parametrize(
    ("row", "attachments"),
    [
        ({"messages": json.dumps(_HI), "tools": "", "functions": "", "attachments": ""}, 0),
        ({"messages": json.dumps(_HI), "tools": "[]", "attachments": "2"}, 2),
        ({"messages": json.dumps(_HI), "attachments": '["a.png", "b.png"]'}, 2),
        ({"messages": json.dumps(_HI), "system": "", "tools": "", "attachments": "0"}, 0),
        ({"contents": '[{"parts": [{"text": "hi"}]}]', "tools": "", "attachments": ""}, 0),
    ],
    ids=["empty cells", "digits", "names", "a naught", "Gemini's"],
)
def test_cells_of_csv_say_what_came_with_messages(row, attachments):
    """An empty cell of tools or attachments is none of them; digits are a number, and a list is counted."""
    assert told(request_of_row(row)) == ([("user", "hi")], (), attachments)


def test_attachments_that_are_no_number_are_named():
    """Beside messages a text that says nothing of their number makes a bad row."""
    for attachments in ("a.pdf", "1.5", {"a": 1}):
        with pytest.raises(InvalidRequest, match="attachments: is neither a whole number nor a list"):
            request_of_row({"messages": _HI, "attachments": attachments})


@pytest.mark.parametrize(
    ("row", "text_field", "wanted"),
    [
        ({"body": "Dear all", "question": "[1] Why?"}, "question", "[1] Why?"),
        ({"question": "Why?", "messages": [{"role": "user", "content": "hi"}]}, "question", "Why?"),
        ({"body": "Dear all"}, "body", "Dear all"),
        ({"body": '{"messages": [{"role": "user", "content": "hi"}]}'}, "body", "hi"),
        ({"body": '{"messages": [{"role": "user", "content": "hi"}]}', "question": None}, "question", "hi"),
    ],
    ids=["a column called body", "beside messages", "a column of a format's", "a body as JSON", "no text there"],
)
def test_a_column_that_is_named_is_the_text(row, text_field, wanted):
    """Where a row has a text in the column that `--text-field` names, that is the request, whatever else it has."""
    assert told(request_of_row(row, text_field=text_field)) == ([("user", wanted)], (), 0)


@pytest.mark.parametrize(
    "row",
    [
        {"id": "1", "request_body": {"messages": _HI}, "response_body": {"choices": []}},
        {"request": {"url": "/v1/chat/completions", "body": {"messages": _HI}}, "response": {"body": {}}},
        {"request": json.dumps({"model": "m", "messages": _HI}), "response": "{}"},
        {"request_body": json.dumps({"messages": _HI, "metadata": {"contents": "body"}}), "response_body": "{}"},
        {"run_type": "llm", "inputs": {"messages": _HI}, "outputs": {}},
        {"traceId": "t", "type": "GENERATION", "input": {"messages": _HI}, "output": {}},
        {"conversation": [*_HI, {"role": "assistant", "content": "Hello!"}], "language": "English"},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "Hello!"}]},
        {"prompt": _HI, "completion": [{"role": "assistant", "content": "Hello!"}]},
        {"model": "m", "prompt": ["hi"], "max_tokens": 9},
        {"custom_id": "1", "url": "/v1/completions", "body": {"model": "m", "prompt": "hi"}},
        {"request_body": json.dumps({"prompt": "[INST] hi [/INST]"}), "response_body": "{}"},
        {"call_type": "atext_completion", "messages": ["hi"]},
        {"call_type": "atext_completion", "messages": "{}", "proxy_server_request": {"prompt": ["hi"]}},
        {"instruction": "hi", "input": "", "output": "Hello!"},
        {"messages": [*_HI, {"role": "assistant", "content": "Hello!"}]},
        {"system": "", "messages": [*_HI, {"role": "assistant", "content": "Hello!"}], "max_tokens": 9},
        {"contents": [{"parts": [{"text": "hi"}]}, {"role": "model", "parts": [{"text": "Hello!"}]}]},
        {"prompt": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"},
        {"prompt": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"},
        {"prompt": "<bos><start_of_turn>user\nhi<end_of_turn>\n<start_of_turn>model\nHello!<end_of_turn>"},
        {"prompt": "<s>[INST] hi [/INST] Hello!</s>"},
        {"call_type": "text_completion", "messages": "<|im_start|>user\nhi<|im_end|>"},
        {"messages": [{"id": "m", "role": "user", "parts": [{"type": "step-start"}, {"type": "text", "text": "hi"}]}]},
    ],
    ids=["Helicone", "Portkey", "Cloudflare", "a word of Gemini's", "LangSmith", "Langfuse", "WildChat",
         "ShareGPT", "preferences", "a completion", "a batch of completions", "Helicone's completion",
         "LiteLLM's completion", "LiteLLM's spend logs", "Alpaca", "a whole conversation",
         "Anthropic's", "Gemini's", "ChatML",
         "Llama 3", "Gemma", "INST", "LiteLLM", "Vercel"],
)  # fmt: skip
def test_rows_of_common_tools_are_read_where_they_keep_the_chat(row):
    """What other gateways and tracers export wraps a chat body, or a list of messages; answers are no requests."""
    assert told(request_of_row(row)) == ([("user", "hi")], (), 0)


@pytest.mark.parametrize("blanks", [" ", "\n  "], ids=["space", "line"])
@pytest.mark.parametrize(
    "row",
    [
        {"messages": json.dumps(_HI)},
        {"prompt": json.dumps(_HI)},
        {"conversations": json.dumps(_HI)},
        {"request_body": json.dumps({"messages": _HI})},
        {"input": json.dumps({"messages": _HI})},
    ],
    ids=lambda row: next(iter(row)),
)
def test_json_behind_blanks_is_json(row, blanks):
    """A cell that was written with a blank or a line before its JSON is opened, and no text of signs to rate."""
    text = {name: blanks + value if value[:1] in "[{" else value for name, value in row.items()}
    assert told(request_of_row(text)) == ([("user", "hi")], (), 0)


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Why?", "input": "", "output": "So.", "history": [["hi", "Hello!"]]},
        {"prompt": "Why?", "history": '[["hi", "Hello!"]]'},
        {"prompt": "Why?", "history": ' [["hi", "Hello!"]]'},
        {"instruction": "Why?", "history": json.dumps([*_HI, {"role": "assistant", "content": "Hello!"}])},
        {"prompt": "Why?", "response": "So.", "history": [["hi", "Hello!"]]},
        {"prompt": "Why?", "history": [*_HI, {"role": "assistant", "content": "Hello!"}]},
    ],
    ids=["Alpaca", "JSON", "behind a blank", "messages as JSON", "a prompt", "messages"],
)
def test_a_request_is_rated_with_its_history(row):
    """Turns before a request stand in `history`, as pairs of what was asked and answered, or as messages."""
    assert told(request_of_row(row)) == ([("user", "hi"), ("assistant", "Hello!"), ("user", "Why?")], (), 0)


@pytest.mark.parametrize("history", [None, "", [], "of the patient", ["hi"], [{"at": 7}], '[{"at": 7}]'], ids=str)
def test_a_history_of_another_kind_says_nothing(history):
    """A column of that name that holds no turns costs no row."""
    assert told(request_of_row({"instruction": "hi", "history": history})) == ([("user", "hi")], (), 0)


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"prompt": ["hi", "Why?"]}, "write a row for each"),
        ({"inputs": {"prompts": True}}, "prompts: does not hold one request"),
        ({"prompt": [9906, 11]}, "holds token ids"),
        ({"body": {"prompt": [[9906, 11]]}}, "holds token ids"),
        ({"instruction": "hi", "history": [["hi"]]}, "history: is not a list of pairs"),
    ],
    ids=["two prompts", "no list", "tokens", "a batch's tokens", "half a pair"],
)
def test_what_holds_no_one_text_is_a_bad_row(row, error):
    """A completion of several prompts, or of tokens, and turns of another shape say what is wrong with them."""
    with pytest.raises(InvalidRequest, match=error):
        request_of_row(row)


def test_an_agents_whole_run_is_rated_as_its_last_request():
    """What the model answered last, in words or with a call, is left out; what it did before it stays."""
    call = {"role": "assistant", "content": [{"type": "tool_use", "name": "look", "input": {}}]}
    result = {"role": "user", "content": [{"type": "tool_result", "content": "nothing"}]}
    asked = [("user", "hi"), ("assistant", '{"call":"look","args":{}}'), ("tool", "nothing")]
    assert told(request_of_row({"messages": [*_HI, call, result, call]}))[0] == asked
    row = {"conversations": [
        {"from": "human", "value": "hi"},
        {"from": "function_call", "value": '{"name": "look", "arguments": {}}'},
        {"from": "observation", "value": "nothing"},
        {"from": "gpt", "value": "There is nothing."},
    ], "system": "Be brief.", "tools": '[{"name": "look"}]'}  # fmt: skip
    assert told(request_of_row(row)) == ([("system", "Be brief."), *asked], ("look",), 0)


@pytest.mark.parametrize(
    "prompt",
    [
        "What does <|im_start|>user\nhi<|im_end|> mean?",
        "<|im_start|>user\nhi<|im_end|>\nWhy does this fail?",
        "<p>Why does this fail?</p> <|im_start|>user\nhi<|im_end|>",
        "<|im_start|>user\nhi",
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nHello!\n<|im_start|>user\nWhy?<|im_end|>",
        "<|im_start|>assistant\nHello!<|im_end|>",
        "<|im_start|>root\nhi<|im_end|>",
        "[INST] hi [/INST] Why is there no answer?",
        "[INST] hi",
        "<s>hi</s>",
    ],
)
def test_a_prompt_about_a_templates_marks_is_one_text(prompt):
    """Marks make messages only where the whole text is turns of one template."""
    assert told(request_of_row({"prompt": prompt})) == ([("user", prompt)], (), 0)


def test_what_a_template_made_of_a_conversation_is_that_conversation():
    """Turns keep their order, roles and words, the system prompt among them, also where tools stand beside them."""
    first = "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nhi [/INST] Hello!</s><s>[INST] Why? [/INST]"
    header = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>".format
    turns = [("system", "Be brief."), ("user", "hi"), ("assistant", "Hello!"), ("user", "Why?")]
    for prompt in (first, "".join(header(role, text) for role, text in turns)):
        assert told(request_of_row({"prompt": prompt})) == (turns, (), 0)
        assert told(request_of_row({"prompt": prompt, "tools": ["sh"]})) == (turns, ("sh",), 0)


def test_a_long_request_of_azures_log_is_read_when_it_was_joined():
    """Its parts come in rows with numbers, and none of them is the request."""
    row = {"CorrelationId": "c", "RequestMessages": [{"role": "user", "content": "x" * 33_000}]}
    assert len(request_of_row(row).messages[0].content) == 33_000
    with pytest.raises(InvalidRequest, match="RequestMessages: may be a part of a request"):
        request_of_row({**row, "SequenceNumber": 1})


@pytest.mark.parametrize(
    "part",
    [
        {"type": "tool-call", "toolCallId": "1", "toolName": "search", "input": {"q": "x"}},
        {"type": "tool-call", "toolCallId": "1", "toolName": "search", "args": {"q": "x"}},
        {"type": "tool-search", "toolCallId": "1", "state": "input-available", "input": {"q": "x"}},
        {"type": "dynamic-tool", "toolName": "search", "state": "input-available", "input": {"q": "x"}},
    ],
    ids=["a model's message", "of version 4", "a page's", "a tool known at run time"],
)
def test_a_tool_call_of_the_vercel_sdk_keeps_its_name(part):
    """However its part spells it, the call is the one that the model was trained on; a result is the tool's message."""
    result = {"role": "tool", "content": [{"type": "tool-result", "toolName": "search", "output": "none"}]}
    request = request_of_row({"messages": [*_HI, {"role": "assistant", "content": [part]}, result]})
    assert told(request)[0] == [("user", "hi"), ("assistant", '{"call":"search","args":{"q":"x"}}'), ("tool", "none")]


def test_what_a_row_wants_done_stands_before_what_it_is_done_to():
    """Alpaca's rows have both; either alone would be another request."""
    row = {"instruction": "Translate to French:", "input": "Good morning", "output": "Bonjour"}
    assert told(request_of_row(row)) == ([("user", "Translate to French:\nGood morning")], (), 0)


@pytest.mark.parametrize(
    "given",
    ['{"port": "80 80", "workers": -1}', "[3, 1, 2]", "[3, 1, 2], [4, 5]", '{"messages": []}', json.dumps(_HI), "{x}"],
)
def test_what_an_instruction_is_about_is_text_whatever_it_looks_like(given):
    """The `input` beside an `instruction` is read to the last character, also where it is JSON or begins as JSON."""
    assert told(request_of_row({"instruction": "Mend this:", "input": given})) == (
        [("user", f"Mend this:\n{given}")],
        (),
        0,
    )


def test_an_object_that_an_instruction_is_about_is_its_json():
    """An `input` that is no text beside an `instruction` is neither lost nor an attachment."""
    for given in ({"port": 80}, [3, 1, 2], {"messages": _HI}):
        request = request_of_row({"instruction": "Mend this:", "input": given})
        assert told(request) == ([("user", f"Mend this:\n{json.dumps(given)}")], (), 0)


@pytest.mark.parametrize("column", ["prompt", "input"])
@pytest.mark.parametrize(
    "text",
    [
        '[{"id": 1}]\nSort these by id.',
        '[{"id": 1, "name": "x"}]',
        '[{"type": "fruit", "price": 2}]',
        '[{"type": "fruit", "price": 2}, {"type": "tree", "role": "shade"}]',
        "[3, 1, 2] what is the sum?",
        "[3, 1, 2]",
        '{"port": 80} is this right?',
        '{"port": 80, "input": "x", "body": "y"}',
        '{"messages": "seven"}',
    ],
)
def test_a_text_that_begins_as_json_is_a_text(column, text):
    """People's words make messages only where they are the JSON of messages; all else of them is rated as it stands."""
    assert told(request_of_row({column: text})) == ([("user", text)], (), 0)


@pytest.mark.parametrize(
    "said",
    [
        _HI,
        [{"from": "human", "value": "hi"}],
        [{"type": "human", "content": "hi"}],
        [{"type": "human", "data": {"content": "hi"}}],
        [{"id": ["langchain", "HumanMessage"], "type": "constructor", "kwargs": {"content": "hi"}}],
        [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
    ],
    ids=["a role", "ShareGPT", "LangChain", "LangChain's data", "LangChain, serialised", "responses"],
)
def test_messages_that_stand_as_text_are_messages(said):
    """In a column of people's words, too, whoever wrote them."""
    for row in ({"prompt": json.dumps(said)}, {"input": json.dumps(said)}, {"input": json.dumps({"messages": said})}):
        assert told(request_of_row(row)) == ([("user", "hi")], (), 0)


@pytest.mark.parametrize(
    "item",
    [
        {"type": "reasoning", "summary": [], "encrypted_content": "x"},
        {"type": "item_reference", "id": "msg_1"},
        {"type": "compaction", "encrypted_content": "x"},
    ],
    ids=lambda item: item["type"],
)
def test_what_responses_begin_with_may_be_nobody_s_words(item):
    """A list of OpenAI's responses is read from a cell of text as from JSON, also where no message is its first."""
    row = {"input": [item, {"type": "message", "role": "user", "content": "hi"}]}
    assert told(request_of_row(row)) == ([("user", "hi")], (), 0)
    assert told(request_of_row({"input": json.dumps(row["input"])})) == ([("user", "hi")], (), 0)


@pytest.mark.parametrize("given", ["hi", _HI], ids=["text", "messages"])
def test_a_prompt_that_the_provider_keeps_is_not_the_request(given):
    """A body of OpenAI's responses may name a stored prompt beside what the user says, which is its `input`."""
    assert told(request_of_row({"input": given, "prompt": {"id": "pmpt_1"}})) == ([("user", "hi")], (), 0)


def test_no_messages_beside_an_empty_cell_are_a_bad_row():
    """An empty cell of another format's column is nothing, and no request that says nothing."""
    with pytest.raises(InvalidRequest, match="messages: is not there"):
        request_of_row({"messages": "[]", "input": ""})


def test_functions_beside_a_system_prompt_may_stand_as_text():
    """The tools of OpenAI's older bodies are read in a row that has a column of system prompts, too."""
    row = {"messages": json.dumps(_HI), "system": "Be brief.", "functions": '[{"name": "find"}]', "tools": ""}
    assert told(request_of_row(row))[1] == ("find",)


def test_a_system_prompt_that_begins_with_a_bracket_is_a_text():
    """Only what is the JSON of parts is opened."""
    for system in ("[Persona] Be brief.", "{{persona}} Be brief.", "[1, 2]"):
        assert told(request_of_row({"system": system, "messages": _HI}))[0] == [("system", system), ("user", "hi")]


def test_a_message_of_the_user_without_words_is_a_bad_row():
    """A field of another name is not taken for silence: its row would be rated as an empty request."""
    with pytest.raises(InvalidRequest, match=r"messages\[0\].content: is not there"):
        request_of_row({"messages": [{"role": "user", "txt": "hi"}]})


@pytest.mark.parametrize(
    "item",
    [
        {"type": "item_reference", "id": "rs_1"},
        {"type": "mcp_list_tools", "server_label": "s", "tools": []},
        {"type": "compaction", "encrypted_content": "x"},
    ],
    ids=lambda item: item["type"],
)
def test_an_item_of_responses_that_says_nothing_is_no_message(item):
    """The user's last words stay the last ones; where there are none the request cannot be classified."""
    result = {"type": "function_call_output", "call_id": "c", "output": "42"}
    row = {"input": [{"role": "user", "content": "prove it"}, item, result]}
    assert told(request_of_row(row, "openai")) == ([("user", "prove it"), ("tool", "42")], (), 0)
    with pytest.raises(InvalidRequest, match="no message with role 'user'"):
        request_of_row({"input": [item, result]}, "openai")


def test_words_and_files_that_stand_alone_in_responses_are_the_users():
    """A part of a message may stand in its place."""
    row = {"input": [{"type": "input_text", "text": "hi"}, {"type": "input_image", "image_url": "data:"}]}
    assert told(request_of_row(row, "openai")) == ([("user", "hi"), ("user", "")], (), 1)


def test_a_feedback_export_is_read_by_its_request():
    """A row of `classifier feedback export` holds its request under `request`, in a table as JSON text."""
    request = {"messages": [{"role": "user", "content": "hi"}], "tools": ["search"], "attachments": 1}
    for held in (request, json.dumps(request)):
        row = {"decision_id": "d", "tier": "simple", "request": held, "verdict": "accepted"}
        assert told(request_of_row(row)) == ([("user", "hi")], ("search",), 1)
    with pytest.raises(InvalidRequest, match="prompt: is not there"):
        request_of_row({"decision_id": "d", "request": None})


def test_a_named_format_takes_nothing_else():
    """A row of another format than the named one is a bad row."""
    for row_format in FORMATS[1:]:
        with pytest.raises(InvalidRequest):
            request_of_row({"question": "hi"}, row_format)


@pytest.mark.parametrize("write", [json.dumps, repr], ids=["json", "pandas"])
def test_a_frame_of_spans_is_read_from_csv(write):
    """The messages of Phoenix's frames are lists, which pandas writes into CSV in Python's notation."""
    said = [{"message.role": "user", "message.content": 'It\'s "this"\nand that.'}]
    row = {"context.span_id": "1", "attributes.llm.input_messages": write(said)}
    assert told(request_of_row(row)) == ([("user", said[0]["message.content"])], (), 0)


@pytest.mark.parametrize(
    ("cells", "error"),
    [
        ({"attributes.llm.input_messages": "[{'message.role': 'user'}\n {'message.role': 'user'}]"}, "as Parquet"),
        ({"attributes.llm.input_messages": "", "attributes.input.value": "hi"}, "--text-field attributes.input.value"),
    ],
    ids=["numpy", "input.value"],
)
def test_a_frame_of_spans_that_csv_cut_up_says_what_to_do(cells, error):
    """What cannot be read of a frame in CSV is a bad row with the next step."""
    with pytest.raises(InvalidRequest, match=error):
        request_of_row({"context.span_id": "1", **cells})
