"""Logs of every format → requests: what is read of each, and what is said of what is broken."""

from __future__ import annotations

import bz2
import gzip
import http.server
import io
import json
import lzma
import os
import pickle
import resource
import subprocess
import sys
import threading
import zipfile
from functools import partial
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from classifier import readers
from classifier.bulk import label
from classifier.errors import InputError, InvalidRequest
from classifier.labelled import open_labelled
from classifier.lines import MAX_ROW_BYTES, MAX_ROW_LINES, csv_rows, json_rows
from classifier.payloads import FORMATS, reads, request_of_row
from classifier.readers import CHUNK_BYTES, read_chunks
from classifier.runs import Options
from classifier.sources import CONTAINERS, container_of, find_sources
from classifier.texts import MAX_DEPTH
from classifier.types import Request
from tests.bulk_support import FakeMaker, prompts, write_lines

LOGS = Path(__file__).parent / "logs"
TIDE = '{"call":"get_tide","args":{"port":"Bergen"}}'
HERON = [
    ("system", "You see."),
    ("user", "What is this?"),
    ("assistant", '{"call":"zoom","args":{"x":2}}'),
    ("tool", "a heron"),
    ("user", "And its age?"),
]
CALL = '{"call":"get_weather","args":{"city":"Oslo"}}'
ONE = Options(processes=1)
_HI = [{"role": "user", "content": "hi"}]


def rows_of(name, row_format="auto"):
    """The parsed rows of a fixture, an OTLP export's spans one by one."""
    [source] = find_sources([str(LOGS / name)])
    payloads = [row.payload for chunk in read_chunks([source], row_format=row_format) for row in chunk.rows]
    return [json.loads(payload) if isinstance(payload, bytes) else payload for payload in payloads]


def told(request: Request):
    """What a request holds, to compare: roles with contents, tools, attachments."""
    return [(m.role, m.content) for m in request.messages], request.tools, request.attachments


READ = {
    "openai_chat.jsonl": [
        ([("developer", "You are a helpful assistant."), ("user", "Hello!")], (), 0),
        ([("user", "What's in these images?")], (), 3),
        (
            [
                ("user", "What is the weather in Oslo?"),
                ("assistant", CALL),
                ("tool", "4 degrees, rain"),
                ("user", "And tomorrow?"),
            ],
            ("get_weather",),
            0,
        ),
    ],
    "openai_batch.jsonl": [
        ([("system", "You are terse."), ("user", "Name three rivers.")], (), 0),
        (
            [
                ("system", "Answer in French."),
                ("user", "Describe this."),
                ("assistant", '{"call":"lookup","args":{"q":"seine"}}'),
                ("tool", "a river"),
            ],
            ("lookup", "web_search"),
            1,
        ),
        ([("user", "Tell me a story.")], (), 0),
    ],
    "openai_langchain.jsonl": [
        (
            [
                ("system", "You know the sea."),
                ("user", "When is high tide?"),
                ("assistant", f"\n{TIDE}"),
                ("tool", "at noon"),
            ],
            (),
            0,
        ),
        ([("user", "And here?"), ("assistant", f"I look.\n{TIDE}"), ("tool", "at one")], (), 1),
        ([("user", "thanks")], (), 0),
        ([("user", "Name a river.")], (), 0),
        ([("system", "Be kind."), ("user", "good morning")], (), 0),
    ],
    "openai_gateways.jsonl": [
        ([("system", "Be brief."), ("user", "Why is the sky blue?")], ("look",), 0),
        ([("system", "Be brief."), ("user", "Why is the sky blue?")], ("look",), 0),
        ([("user", "Why is grass green?")], (), 0),
        ([("system", "Be brief."), ("user", "Why is the sky blue?")], ("look",), 0),
    ],
    "anthropic.jsonl": [
        ([("system", "You review code."), ("user", "Is this function safe?")], (), 0),
        ([("system", "Be brief."), ("user", "Compare the two.")], (), 2),
        (
            [
                ("system", "You are an agent."),
                ("user", "Find the failing test."),
                ("assistant", 'I will look.\n{"call":"bash","args":{"command":"pytest -x"}}'),
                ("tool", "1 failed"),
                ("user", "Now fix it."),
                ("assistant", '{"call":"bash","args":{"command":"git diff"}}'),
                ("tool", "no changes"),
            ],
            ("bash", "web_search"),
            0,
        ),
    ],
    "anthropic_batch.jsonl": [
        ([("user", "Hello, world")], (), 0),
        ([("system", "Be kind."), ("user", "Hi again,\nfriend")], (), 0),
    ],
    "litellm.jsonl": [
        ([("system", "Be brief."), ("user", "Weather in Oslo?")], ("get_weather",), 0),
        ([("user", "Once upon a time")], (), 0),
        ([("user", "What is this?")], (), 1),
        ([("user", "From the spend log")], (), 0),
    ],
    "otel_collector.jsonl": [
        (
            [
                ("system", "You are a weather bot."),
                ("user", "Weather in Paris?"),
                ("assistant", '{"call":"get_weather","args":{"location":"Paris"}}'),
                ("tool", "rainy, 57°F"),
            ],
            ("get_weather",),
            1,
        ),
        ([("system", "Be brief."), ("user", "Name a river.")], (), 0),
        (
            [
                ("system", "You sort mail."),
                ("user", "Is this spam?"),
                ("assistant", '{"call":"open","args":{"id":1}}'),
                ("user", "And this?"),
            ],
            ("open",),
            0,
        ),
    ],
    "otel_console.jsonl": [([("user", "Hello there")], (), 0)],
    "otel_openinference.jsonl": [
        (HERON, ("zoom", "crop"), 1),
        (HERON, ("zoom", "crop"), 1),
        ([("user", "Sort these."), ("assistant", '{"call":"sort","args":[]}'), ("tool", "sorted")], (), 0),
        (
            [
                ("user", "Name a lake."),
                ("assistant", '{"call":"search","args":{}}'),
                ("tool", "none"),
                ("user", "Another."),
            ],
            (),
            1,
        ),
        ([("user", "Name a hill.")], ("look",), 0),
    ],
    "gemini.jsonl": [
        (
            [
                ("system", "You date photographs.\nBe brief."),
                ("user", "Which of the two photographs is older?"),
            ],
            (),
            2,
        ),
        (
            [
                ("user", "Turn the heating down."),
                ("assistant", '{"call":"get_heating","args":{"room":"hall"}}'),
                ("tool", '{"celsius": 23}'),
            ],
            ("get_heating", "set_heating", "googleSearch"),
            0,
        ),
        ([("system", "Be kind."), ("user", "Rewrite this letter.")], (), 0),
        ([("system", "You are terse."), ("user", "Name three rivers.")], (), 0),
        (
            [
                ("user", "Sum the primes below 100."),
                ("assistant", '{"call":"code_execution","args":{"language":"PYTHON","code":"print(1060)"}}'),
                ("tool", "1060\n"),
                ("assistant", "1060."),
                ("user", "And below 200?"),
            ],
            ("codeExecution",),
            0,
        ),
    ],
    "bedrock.jsonl": [
        ([("system", "You read contracts."), ("user", "Does the contract allow subletting?")], (), 1),
        (
            [
                ("user", "How full is the tank?"),
                ("assistant", 'I will look.\n{"call":"read_sensor","args":{"id":"tank"}}'),
                ("tool", '{"litres": 40}\nas of now'),
            ],
            ("read_sensor",),
            0,
        ),
        ([("user", "Translate the menu.")], (), 0),
        ([("system", "Be kind."), ("user", "What is this?")], ("zoom",), 1),
    ],
    "corpus.jsonl": [
        ([("user", "What is the capital of Australia?")], (), 0),
        (
            [
                ("user", "turn on the lamp"),
                ("assistant", '{"call":"set_light","args":{}}'),
                ("user", "all of them"),
            ],
            ("set_light",),
            1,
        ),
    ],
}
NAMED = {name: name for name in ("openai", "anthropic", "litellm", "otel", "corpus", "gemini", "bedrock")}


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
    """Turns keep their order, roles and words, the system prompt among them."""
    first = "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nhi [/INST] Hello!</s><s>[INST] Why? [/INST]"
    header = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>".format
    turns = [("system", "Be brief."), ("user", "hi"), ("assistant", "Hello!"), ("user", "Why?")]
    for prompt in (first, "".join(header(role, text) for role, text in turns)):
        assert told(request_of_row({"prompt": prompt})) == (turns, (), 0)


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


def test_a_system_prompt_that_begins_with_a_bracket_is_a_text():
    """Only what is the JSON of parts is opened."""
    for system in ("[Persona] Be brief.", "{{persona}} Be brief.", "[1, 2]"):
        assert told(request_of_row({"system": system, "messages": _HI}))[0] == [("system", system), ("user", "hi")]


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


def test_a_message_of_the_user_without_words_is_a_bad_row():
    """A field of another name is not taken for silence: its row would be rated as an empty request."""
    with pytest.raises(InvalidRequest, match=r"messages\[0\].content: is not there"):
        request_of_row({"messages": [{"role": "user", "txt": "hi"}]})


BROKEN = {
    "openai_chat_broken.jsonl": [
        "messages: is not there",
        "no message with role 'user'",
        "messages[1].role",
        "messages[0].content",
        "NUL byte",
    ],
    "openai_batch_broken.jsonl": [
        "body: is a text, and not of JSON",
        "model: is one of embeddings",
        "label the batch's input file",
        "is not JSON (Unterminated string",
    ],
    "openai_langchain_broken.jsonl": [
        "run_type: is 'chain', a step around requests",
        "messages: does not hold one request",
        "no message with role 'user'",
        "messages[0].content: is not there",
        "prompts: does not hold one request",
        "messages[0]: is not an object",
        "type: is 'SPAN', a step around requests",
    ],
    "openai_gateways_broken.jsonl": [
        "ai: has no payload.request",
        "model: is one of embeddings",
        "RequestMessages: is empty",
        "RequestMessages: is empty",
        "RequestMessages: may be a part of a request",
    ],
    "anthropic_broken.jsonl": [
        "messages[0].content[0]",
        "no message with role 'user'",
        "params: is not an object",
    ],
    "anthropic_batch_broken.jsonl": [
        "messages: is not there",
        "no message with role 'user'",
        "params: is a text, and not of JSON",
        "params: is not an object",
        "label the batch's input file",
        "is not JSON (Unterminated string",
    ],
    "litellm_broken.jsonl": ["redacted by LiteLLM", "call_type: is 'aembedding'", "messages: is not there"],
    "otel_collector_broken.jsonl": [
        "has no content; let the application record it",
        "gen_ai.input.messages: is not a list",
        "gen_ai.input.messages[0]",
        "is not JSON",
    ],
    "otel_console_broken.jsonl": [
        "has no content; let the application record it",
        "gen_ai.input.messages: is not a list of messages",
        "no message with role 'user'",
        "has no content; let the application record it",
        "has no content; let the application record it",
        "is not JSON (Expecting property name",
        "is not JSON (Extra data",
        "is not JSON (Extra data",
    ],
    "otel_openinference_broken.jsonl": [
        "openinference.span.kind: is 'AGENT'",
        "gen_ai.operation.name: is 'invoke_agent'",
        "has no content; let the application record it",
        "messages[0].role: is not one of",
        "has no content; let the application record it",
    ],
    "gemini_broken.jsonl": [
        "contents: is not there or not a list",
        "contents[0]: is not an object with role and parts",
        "contents[0].parts[1]: is not an object",
        "no message with role 'user'",
        "full_request: is a text, and not of JSON",
        "contents: is not there or not a list",
    ],
    "bedrock_broken.jsonl": [
        "input.inputBodyJson: has no messages",
        "lies at inputBodyS3Path",
        "messages[0].content[0]",
        "no message with role 'user'",
        "inputBodyJson: is a text, and not of JSON",
        "input: is a text, and not of JSON",
    ],
    "corpus_broken.jsonl": [
        "messages[0].content: is not a text",
        "messages[0].content: is not a text",
        "attachments: is negative",
        "tools: is not a list",
    ],
    "prompts_broken.csv": [
        "has 1 fields, the header has 2",
        "is not UTF-8; if the whole file is not, convert it, as with iconv -f CP1252 -t UTF-8",
        "has 4 fields, the header has 2",
        "has a quote that is not closed",
    ],
}


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


def test_every_log_has_a_broken_twin():
    """For each fixture of good rows there is one that says what of its form can be broken."""
    names = {path.name for path in LOGS.iterdir()}
    assert {name.replace(".", "_broken.") for name in names if "_broken" not in name} == names & set(BROKEN)
    assert set(BROKEN) == {name for name in names if "_broken" in name}


@pytest.mark.parametrize("name", BROKEN)
def test_each_broken_row_is_kept_with_what_is_wrong(name, tmp_path):
    """Every broken row of every format is in the output, in its place, with an error that names the field."""
    row_format = "corpus" if name.startswith("corpus") else "auto"
    options = Options(row_format=row_format, text_field="question" if name.endswith("csv") else "prompt", processes=1)
    label([str(LOGS / name)], str(tmp_path / "out.parquet"), FakeMaker(), options)
    errors = [row["classifier_error"] or "" for row in open_labelled(tmp_path / "out.parquet").rows()]
    assert len(errors) == len(BROKEN[name])
    for found, wanted in zip(errors, BROKEN[name], strict=True):
        assert wanted in found
        assert "secret" not in found


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


@pytest.mark.parametrize("pack", ["plain", "gz", "zst", "zst-frames", "bz2", "xz", "bom"])
def test_compressed_files_are_read_as_plain_ones(pack, tmp_path):
    """Packed by one of four, in one frame or several, or marked as UTF-8: the same rows; names do not matter."""
    lines = [json.dumps({"prompt": text}).encode() + b"\n" for text in prompts(10)]
    data = b"".join(lines)
    one = zstandard.ZstdCompressor().compress
    packed = {
        "plain": data,
        "gz": gzip.compress(data[:100]) + gzip.compress(data[100:]),
        "zst": one(data),
        "bz2": bz2.compress(data[:100]) + bz2.compress(data[100:]),
        "xz": lzma.compress(data[:100]) + bytes(4) + lzma.compress(data[100:]),
        "zst-frames": one(data[:100]) + one(data[100:]),
        "bom": b"\xef\xbb\xbf" + data,
    }[pack]
    (tmp_path / "log.jsonl").write_bytes(packed)
    [chunk] = read_chunks(find_sources([str(tmp_path)]))
    assert [row.payload for row in chunk.rows] == lines
    assert [row.number for row in chunk.rows] == list(range(1, 11))


def skipped(size: int, kind: int = 0) -> bytes:
    """A frame of Zstandard that holds nothing of the file."""
    return bytes([0x50 + kind]) + b"\x2a\x4d\x18" + size.to_bytes(4, "little") + os.urandom(size)


@pytest.mark.parametrize("size", [0, 4, 4096, 100_000])
def test_frames_of_zstandard_that_are_to_be_skipped_are(size, tmp_path):
    """At the head as pzstd writes them, in between, and at the end as in the seekable format: no row is lost."""
    one = zstandard.ZstdCompressor().compress
    rows = [b'{"prompt": "hi"}\n', b'{"prompt": "ho"}\n']
    packed = [skipped(size), one(rows[0]), skipped(size, 7), skipped(size), one(rows[1]), skipped(size, 15)]
    (tmp_path / "log.jsonl.zst").write_bytes(b"".join(packed))
    [chunk] = read_chunks(find_sources([str(tmp_path)]))
    assert [row.payload for row in chunk.rows] == rows


def test_a_skipped_frame_that_breaks_off_is_said(tmp_path):
    """A file that ends in the middle of such a frame is one whose end is missing, and what came before is read."""
    packed = zstandard.ZstdCompressor().compress(b'{"prompt": "hi"}\n')
    for cut in (2, 6, 50):
        path = tmp_path / "log.jsonl.zst"
        path.write_bytes(packed + skipped(100)[:cut])
        errors, _ = outcome(path, tmp_path)
        assert errors[0] is None
        assert "it breaks off" in errors[1]
        (tmp_path / "log.jsonl.zst.jsonl").unlink()
        (tmp_path / "log.jsonl.zst.jsonl.manifest.json").unlink()


@pytest.mark.parametrize("padding", [1, 511, 4096, 10_240, 1_000_000])
def test_padding_of_any_length_between_members_loses_no_row(padding, tmp_path):
    """Two files off a block device, one behind the other: what follows the zeros is read, and zeros end the file."""
    rows = [b'{"prompt": "hi"}\n', b'{"prompt": "ho"}\n']
    (tmp_path / "log.jsonl.gz").write_bytes(b"".join(gzip.compress(row) + bytes(padding) for row in rows))
    [chunk] = read_chunks(find_sources([str(tmp_path)]))
    assert [row.payload for row in chunk.rows] == rows


def test_inputs_are_files_folders_globs_and_urls(tmp_path):
    """A folder is read below, in order, without hidden and other files; a glob and a URL name the same."""
    (tmp_path / "b").mkdir()
    names = ["a.jsonl", "b/c.csv", "b/d.jsonl.gz", ".hidden.jsonl", "_temporary.jsonl", "README.md"]
    for name in names:
        (tmp_path / name).write_text("{}\n")
    found = [Path(s.name).relative_to(tmp_path).as_posix() for s in find_sources([str(tmp_path)])]
    assert found == names[:3]
    assert len(find_sources([str(tmp_path / "**" / "*.jsonl*")])) == 3
    remote = fsspec.filesystem("memory")
    remote.pipe("/logs/a.jsonl", b'{"prompt": "hi"}\n')
    remote.pipe("/logs/b.jsonl", b'{"prompt": "ho"}\n')
    for url in ("memory://logs", "memory://logs/*.jsonl"):
        [chunk] = read_chunks(find_sources([url]))
        assert [json.loads(row.payload)["prompt"] for row in chunk.rows] == ["hi", "ho"]
    with pytest.raises(InputError, match="named twice"):
        find_sources([str(tmp_path / "a.jsonl"), str(tmp_path / "a.jsonl")])


def test_a_file_that_comes_twice_is_named(tmp_path, monkeypatch):
    """A folder and the same one by its whole path, or as a URL, are one: no row is labelled twice."""
    (tmp_path / "logs").mkdir()
    write_lines(tmp_path / "logs" / "a.jsonl", [{"prompt": "hi"}])
    monkeypatch.chdir(tmp_path)
    for again in (str(tmp_path / "logs"), "./logs/a.jsonl", f"file://{tmp_path}/logs/*.jsonl"):
        with pytest.raises(InputError, match="named twice"):
            find_sources(["logs", again])


def test_what_a_folder_leaves_out_is_said(tmp_path, caplog):
    """Names count without their case; of files that are no logs by their names there is a number and an example."""
    names = ["B.JSONL.GZ", "a.jsonl", "c.jsonl.lz4", "gw.log.1", ".hidden", "_temporary.txt", "a.parquet.manifest.json"]
    remote = fsspec.filesystem("memory")
    for name in names:
        (tmp_path / name).write_text("{}\n")
        remote.pipe(f"/rotated/{name}", b"{}\n")
    for folder in (str(tmp_path), "memory://rotated"):
        caplog.clear()
        assert [source.name.rsplit("/", 1)[1] for source in find_sources([folder])] == ["B.JSONL.GZ", "a.jsonl"]
        [message] = [record.getMessage() for record in caplog.records]
        assert message.startswith(f"{folder}: 2 files are left out, such as ")
        assert "c.jsonl.lz4; names end in .jsonl" in message


def test_the_one_file_that_a_folder_leaves_out_is_named(tmp_path, caplog):
    """One is no number with an example."""
    for name in ("a.jsonl", "notes.txt"):
        (tmp_path / name).write_text("{}\n")
    find_sources([str(tmp_path)])
    assert f"{tmp_path}: 1 file is left out, {tmp_path}/notes.txt; names end in .jsonl" in caplog.text


@pytest.mark.parametrize("ending", [*CONTAINERS, ".gz", ".zst", ".zstd", ".bz2", ".xz"])
def test_every_ending_of_a_log_is_told(ending, tmp_path):
    """What the page says that is read, and what a folder without logs is told, is what is read."""
    assert container_of(f"a{ending}") or container_of(f"a.jsonl{ending}")
    assert f"`{ending}`" in (Path(__file__).parent.parent / "docs" / "bulk.md").read_text()
    with pytest.raises(InputError, match=rf"\{ending}\b"):
        find_sources([str(tmp_path)])


def test_a_linked_folder_is_left_out_and_named(tmp_path, caplog):
    """Links to folders are not followed, as one may lead back or to logs that are read anyway; that is said."""
    for name in ("logs/a", "elsewhere", ".hidden"):
        (tmp_path / name).mkdir(parents=True)
        write_lines(tmp_path / name / "x.jsonl", [{"prompt": "hi"}])
    (tmp_path / "logs" / "a" / "b").symlink_to(tmp_path / "elsewhere")
    found = find_sources([str(tmp_path / "logs")])
    assert [source.name for source in found] == [str(tmp_path / "logs" / "a" / "x.jsonl")]
    assert f"{tmp_path}/logs: 1 linked folder is left out, {tmp_path}/logs/a/b; a link is not followed" in caplog.text
    named = find_sources([str(tmp_path / "logs"), str(tmp_path / "logs" / "a" / "b")])
    assert [source.name.removeprefix(f"{tmp_path}/logs/") for source in named] == ["a/x.jsonl", "a/b/x.jsonl"]
    (tmp_path / "logs" / "back").symlink_to(tmp_path / "logs")
    find_sources([str(tmp_path / "logs")])
    assert f"2 linked folders are left out, such as {tmp_path}/logs/a/b; " in caplog.text


def test_outputs_in_a_store_are_no_inputs_either(caplog):
    """A folder of a store with an output and its manifest is read without them, as one on a disk is."""
    remote = fsspec.filesystem("memory")
    for name in ("a.jsonl", "out.jsonl", "out.jsonl.manifest.json"):
        remote.pipe(f"/uploaded/{name}", b"{}\n")
    for url in ("memory://uploaded", "memory://uploaded/*"):
        caplog.clear()
        assert [source.name for source in find_sources([url])] == ["memory:///uploaded/a.jsonl"]
        assert f"{url}: 1 file is left out, /uploaded/out.jsonl" in caplog.text


@pytest.mark.parametrize(
    "form", ["{}", "{}/*/*.jsonl", "{}/**/*.jsonl", "{}/**", "{}/[mt]*/*", "file://{}", "file://{}/*/*"]
)
def test_a_folder_that_may_not_be_read_is_named(form, tmp_path, caplog, monkeypatch):
    """What stands in a folder below that belongs to somebody else is left out, and that is said."""
    for name in ("mine", "theirs", ".theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").write_text("{}\n")
    scandir = os.scandir

    def refused(place):
        if str(place).rstrip("/").endswith("theirs"):
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refused)
    monkeypatch.setattr(os, "access", lambda place, _: not str(place).rstrip("/").endswith("theirs"))
    assert [source.name for source in find_sources([form.format(tmp_path)])] == [str(tmp_path / "mine" / "a.jsonl")]
    [message] = [record.getMessage() for record in caplog.records]
    assert message == f"{tmp_path}/theirs: cannot be read (Permission denied); what is in it is left out"


def test_a_file_that_may_not_be_read_ends_the_run_with_advice(tmp_path, monkeypatch):
    """To give the command again helps only once the rights are seen to."""
    [source] = find_sources([str(write_lines(tmp_path / "a.jsonl", [{"prompt": "hi"}]))])

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(readers, "_opened", refused)
    with pytest.raises(
        InputError, match=r"a\.jsonl: cannot be read \(Permission denied\); see to the rights, then run"
    ):
        list(readers.read_rows(source))


def test_archives_are_read_by_their_urls(tmp_path):
    """A file within an archive, or all of one, is opened where its URL says; other contents are another input."""
    archive = tmp_path / "logs.zip"

    def found(url, prompt):
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("a.jsonl", json.dumps({"prompt": prompt}) + "\n")
            file.writestr("b/c.csv", f"prompt\n{prompt}\n")
        return find_sources([url])

    for url, names in (
        (f"zip://a.jsonl::{archive}", ["a.jsonl"]),
        (f"zip://*.jsonl::{archive}", ["a.jsonl"]),
        (f"zip://::{archive}", ["a.jsonl", "b/c.csv"]),
        (f"simplecache::zip://b/c.csv::{archive}", ["b/c.csv"]),
    ):
        sources = found(url, "hi")
        assert [source.name for source in sources] == [f"zip://{name}::{archive}" for name in names]
        assert [row.payload for chunk in read_chunks(sources) for row in chunk.rows] == [
            {"prompt": "hi"} if name.endswith("csv") else b'{"prompt": "hi"}\n' for name in names
        ]
    url = f"zip://a.jsonl::{archive}"
    assert found(url, "ho")[0].stamp != found(url, "hi")[0].stamp


class _Signed(http.server.BaseHTTPRequestHandler):
    """A store that answers whoever has signed the URL."""

    def do_HEAD(self):
        self.send_response(200 if self.path == "/logs/a.csv?key=k/y.parquet" else 403)
        self.send_header("Content-Length", "10")
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(b"prompt\nhi\n")

    def log_message(self, *_):
        """Nothing."""


def test_a_signed_url_is_read_as_what_its_path_names():
    """What follows the question mark in a URL of HTTP is no part of the file's name, nor a pattern."""
    pytest.importorskip("aiohttp")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Signed) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            sources = find_sources([f"http://127.0.0.1:{server.server_port}/logs/a.csv?key=k/y.parquet"])
            assert [row.payload for chunk in read_chunks(sources) for row in chunk.rows] == [{"prompt": "hi"}]
        finally:
            server.shutdown()
            thread.join()


def test_one_spans_line_is_many_rows(tmp_path):
    """An OTLP export's line becomes a row for each span that is a request, and numbers still grow."""
    data = (LOGS / "otel_collector.jsonl").read_bytes()
    (tmp_path / "spans.jsonl").write_bytes(data + b'{"prompt": "hi"}\n')
    label([str(tmp_path / "spans.jsonl")], str(tmp_path / "out.parquet"), FakeMaker(), ONE)
    rows = list(open_labelled(tmp_path / "out.parquet").rows())
    assert [row["classifier_row"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["attributes"]["gen_ai.usage.input_tokens"] == 97
    assert rows[0]["resource"] == {"service.name": "shop", "telemetry.sdk.language": "python"}
    assert [row["classifier_error"] for row in rows] == [None] * 4


def value_of(value):
    """A value as OTLP has it in JSON."""
    if isinstance(value, dict):
        return {"kvlistValue": {"values": [{"key": k, "value": value_of(v)} for k, v in value.items()]}}
    return {"stringValue": value}


def record(name, body, span="1", **attributes):
    """A log record of an event."""
    pairs = value_of({"gen_ai.system": "openai", **attributes})["kvlistValue"]["values"]
    return {"eventName": name, "traceId": "7", "spanId": span, "attributes": pairs, "body": value_of(body)}


def test_events_in_logs_are_requests_by_their_span(tmp_path):
    """Log records of an OTLP export are one request where they share a span; an event with all of it is one, too."""
    told_whole = {"gen_ai.input.messages": '[{"role": "user", "parts": [{"type": "text", "content": "whole"}]}]'}
    records = [
        record("gen_ai.system.message", {"content": "Be brief."}),
        record("gen_ai.user.message", {"content": "other"}, span="2"),
        record("gen_ai.user.message", {"content": "hi"}),
        record("gen_ai.choice", {"message": {"content": "Hello!"}}),
        record("gen_ai.client.inference.operation.details", {}, **told_whole),
        record("gen_ai.client.inference.operation.details", {}, **{"gen_ai.operation.name": "embeddings"}),
        record("gen_ai.user.message", {}, span="3"),
        record("gen_ai.user.message", {"content": "whose?"}, span=""),
        record("http.request", {"content": "other logs"}),
    ]
    export = {"resourceLogs": [{"scopeLogs": [{"logRecords": records}]}]}
    log = write_lines(tmp_path / "logs.jsonl", [export])
    *rows, silent, lost = (json.loads(row.payload) for row in readers.read_rows(find_sources([str(log)])[0]))
    assert [told(request_of_row(row))[0] for row in rows] == [
        [("system", "Be brief."), ("user", "hi")],
        [("user", "other")],
        [("user", "whole")],
    ]
    for row, error in ((silent, "has no content"), (lost, "spanId: is not there")):
        with pytest.raises(InvalidRequest, match=error):
            request_of_row(row)


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


# --- what is damaged


def outcome(path, tmp_path, **options):
    """(errors, tally) of labelling one file."""
    out = tmp_path / f"{path.name}.jsonl"
    tally = label([str(path)], str(out), FakeMaker(), Options(processes=1, **options)).tally
    return [row["classifier_error"] for row in open_labelled(out).rows()], tally


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.csv", "blank.jsonl", "empty.jsonl.gz"])
def test_an_empty_file_is_an_empty_output(name, tmp_path):
    """An empty file, or one of blank lines, makes an output without rows, and no error."""
    data = b"\n \n" if name.startswith("blank") else b""
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    label([str(tmp_path / name)], str(tmp_path / "out.parquet"), FakeMaker(), ONE)
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0


@pytest.mark.parametrize("pack", ["gz", "zst", "bz2", "xz", "parquet", "parquet-footer"])
def test_the_rest_of_a_file_that_breaks_off_is_one_bad_row(pack, tmp_path):
    """What comes before the damage is labelled; the rest is one bad row that says so."""
    rows = [{"prompt": f"{text} {os.urandom(30).hex()}"} for text in prompts(5000)]
    path = tmp_path / f"log.{pack.split('-')[0]}"
    if pack.startswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1000)
        data = path.read_bytes()
        path.write_bytes(data[:-40] if pack.endswith("footer") else data[:90_000] + bytes(20_000) + data[110_000:])
    else:
        path = path.with_name(f"log.jsonl.{pack}")
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        blocks = partial(bz2.compress, compresslevel=1)  # what breaks off is lost in blocks of 100 kB
        how = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress, "bz2": blocks, "xz": lzma.compress}
        packed = how[pack](data)
        path.write_bytes(packed[: len(packed) // 2])
    errors, tally = outcome(path, tmp_path)
    assert errors[-1].startswith("the rest of the file cannot be read")
    assert all(error is None for error in errors[:-2])
    assert tally.rows == len(errors)
    assert pack == "parquet-footer" or tally.rows > 500


@pytest.mark.parametrize("name", ["logs.zip", "logs.csv"])
def test_an_archive_that_is_named_as_a_file_says_how_to_name_it(name, tmp_path):
    """A ZIP archive is one bad row, which says by which URL its files are read."""
    with zipfile.ZipFile(tmp_path / name, "w") as file:
        file.writestr("a.jsonl", '{"prompt": "hi"}\n' * 100)
    [error], _ = outcome(tmp_path / name, tmp_path)
    assert "is a ZIP archive; name what is in it, as zip://*.jsonl::FILE.zip" in error


def test_utf_16_and_json_of_many_lines_say_what_to_do(tmp_path):
    """A file that is no JSON lines says so on its first row, with the command that makes it so."""
    for name in ("a.jsonl", "a.csv", "a.tsv"):
        (tmp_path / name).write_bytes('{"prompt": "hi"}\n{"prompt": "ho"}\n'.encode("utf-16"))
        [error], _ = outcome(tmp_path / name, tmp_path)
        assert "iconv" in error
    (tmp_path / "b.json").write_text(json.dumps([{"prompt": "hi"}], indent=1))
    assert "jq -c" in outcome(tmp_path / "b.json", tmp_path)[0][0]


def test_mixed_encodings_cost_their_rows_only(tmp_path):
    """A row in another encoding is kept, readable, and counted; its neighbours are labelled."""
    rows = [b'{"prompt": "hi"}', '{"prompt": "señor"}'.encode("latin-1"), '{"prompt": "привет"}'.encode()]
    errors, _ = outcome(write_lines(tmp_path / "a.jsonl", rows), tmp_path)
    assert errors == [None, "is not UTF-8 (byte 14)", None]
    assert list(open_labelled(tmp_path / "a.jsonl.jsonl").rows())[1]["classifier_extra"] == {
        "line": '{"prompt": "se\\xf1or"}'
    }


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "is not JSON (a number is too long)"),
        (b'{"prompt": 7}', "prompt: is not a text"),
        (b'"text"', "is JSON, but no object"),
        (b'[{"prompt": "hi"}]', "is a JSON array; make it JSON lines with jq -c '.[]'"),
        (b'{"messages": [[["deep"]]]}', "messages[0]: is not an object"),
        (
            b'{"messages": [{"role": "user", "content": [{"type": "text", "text": {"a": [1]}}]}]}',
            "messages[0].content[0].text: is not a text",
        ),
        (b"\x00\x01\x02", "is not JSON"),
    ],
    ids=["deep", "long-number", "number", "text", "array", "nested", "nested-text", "bytes"],
)
def test_hostile_lines_are_bad_rows(line, error, tmp_path):
    """Nesting, huge numbers and bytes end as a row with an error, and the next line is read."""
    errors, tally = outcome(write_lines(tmp_path / "a.jsonl", [line, b'{"prompt": "hi"}']), tmp_path)
    assert (errors[0] or "").startswith(error or "")
    assert (errors[0] is None) == (error is None)
    assert errors[1] is None
    assert tally.rows == 2


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("last", ["7", "NaN", "Infinity", '"\\ud800"'], ids=["number", "NaN", "infinity", "surrogate"])
def test_no_depth_ends_a_run(last, kind, tmp_path):
    """A line nested to the limit is labelled and written whatever stands innermost; a deeper one is a bad row, kept."""
    deep = [f'{{"prompt": "hi", "more": {"[" * n}{last}{"]" * n}}}' for n in (MAX_DEPTH - 1, MAX_DEPTH, 400, 960, 5000)]
    log = write_lines(tmp_path / "a.jsonl", [line.encode() for line in [*deep, '{"prompt": "ho"}']])
    label([str(log)], str(tmp_path / f"out.{kind}"), FakeMaker(), ONE)
    rows = list(open_labelled(tmp_path / f"out.{kind}").rows())
    error = f"is nested too deeply; the limit is {MAX_DEPTH} lists and objects within each other"
    assert [row["classifier_error"] or None for row in rows] == [None, *[error] * 4, None]
    assert [row["classifier_extra"]["line"] for row in rows[1:5]] == deep[1:]


def test_an_export_that_is_nested_too_deeply_is_one_bad_row(tmp_path):
    """Its spans are not looked for, and the next line is read."""
    value = '{"stringValue": "chat"}'
    for _ in range(300):
        value = f'{{"arrayValue": {{"values": [{value}]}}}}'
    span = f'{{"name": "chat", "attributes": [{{"key": "gen_ai.operation.name", "value": {value}}}]}}'
    export = f'{{"resourceSpans": [{{"scopeSpans": [{{"spans": [{span}]}}]}}]}}'
    errors, _ = outcome(write_lines(tmp_path / "a.jsonl", [export.encode(), b'{"prompt": "hi"}']), tmp_path)
    assert [(error or "")[:20] for error in errors] == ["is nested too deeply", ""]


@pytest.mark.parametrize(
    "line",
    [
        {"prompt": "hi", "meta": {"resourceSpans": 3}},
        {"prompt": "hi", "kind": "resourceSpans"},
        [{"resourceSpans": []}],
        {"resourceSpans": {"spans": []}},
    ],
    ids=["inside", "a-value", "in-a-list", "no-list"],
)
def test_a_line_that_is_no_export_is_never_lost(line, tmp_path):
    """A line that holds the word resourceSpans, and is no export of spans, is a row, labelled or with an error."""
    errors, _ = outcome(write_lines(tmp_path / "a.jsonl", [line, {"prompt": "hi"}]), tmp_path)
    assert [error is None for error in errors] == ["prompt" in line, True]


def test_a_span_whose_operation_is_no_text_ends_nothing(tmp_path):
    """In an export a span with an operation of another shape is no request, and the next line is read."""
    operation = {"key": "gen_ai.operation.name", "value": {"kvlistValue": {"values": []}}}
    export = {"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "chat", "attributes": [operation]}]}]}]}
    log = write_lines(tmp_path / "a.jsonl", [export, {"prompt": "hi"}])
    assert outcome(log, tmp_path)[0] == [None]


class Endless(io.RawIOBase):
    """A line of so many bytes, and then a small one, made as they are read."""

    def __init__(self, size):
        self.left, self.tail = size, b'\n{"prompt": "hi"}\n'

    def readable(self):
        return True

    def readinto(self, buffer):
        if self.left:
            n = min(self.left, len(buffer))
            buffer[:n] = b"x" * n
            self.left -= n
            return n
        n = min(len(self.tail), len(buffer))
        buffer[:n], self.tail = self.tail[:n], self.tail[n:]
        return n


def test_a_line_of_200_mb_is_passed_over(monkeypatch):
    """A line over the limit is one bad row, is never held, and the next one is read."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(readers, "_opened", lambda _: io.BufferedReader(Endless(200 * 2**20)))
    long, short = readers.read_rows(readers.Source("big.jsonl"))
    assert long.error == "is 200 MiB long, the limit is 16 MiB; only its head is kept"
    assert long.payload == b"x" * 1000
    assert json.loads(short.payload) == {"prompt": "hi"}
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 5 * MAX_ROW_BYTES


OPEN = "has a quote that is not closed at the end of its column or its line"
COUNT = "has 1 fields, the header has 2"


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (['"hi,1', "ho,2", "hu,3"], [('"hi,1', OPEN), ("ho", ""), ("hu", "")]),
        (['"hi,1', "ho,2", '"a, b",3', '"x\ny",4'], [('"hi,1', OPEN), ("ho", ""), ("a, b", ""), ("x\ny", "")]),
        (["hi,1", '"ho,2', '"hu",3'], [("hi", ""), ('"ho,2', OPEN), ("hu", "")]),
        (['"hi', '"hi', '"hi" x,2'], [('"hi', OPEN), ('"hi', OPEN), ("hi x", "")]),
        (['"a\nb\r\n""c""",1', "hi,2"], [('a\nb\r\n"c"', ""), ("hi", "")]),
        (["hi,1", "ho\ra,2", "hu,3"], [("hi", ""), ("ho\ra,2", "is not CSV"), ("hu", "")]),
        (['a",",'] * 3, [('a",",', OPEN)] * 3),
        (['"a', "b", "", 'c",1', "hi"], [("a\nb\n\nc", ""), ("hi", COUNT)]),
    ],
    ids=["to-the-end", "to-a-quote", "to-a-quote-at-the-start", "twice", "right", "return", "each-opens", "blank"],
)
def test_a_quote_that_is_never_closed_costs_its_line(lines, found):
    """Where a quote in CSV is not closed, its line is a bad row with its text, and the rows after it are read."""
    rows = list(csv_rows(io.BytesIO("\n".join(["prompt,id", *lines]).encode()), "a.csv"))
    texts = [row.payload.decode().rstrip() if isinstance(row.payload, bytes) else row.payload["prompt"] for row in rows]
    assert texts == [text for text, _ in found]
    for row, (_, error) in zip(rows, found, strict=True):
        assert row.error.startswith(error)
        assert bool(row.error) == bool(error)
    assert [row.number for row in rows] == sorted({row.number for row in rows})


def test_a_row_of_csv_has_the_number_of_its_first_line():
    """That is where an editor goes to; blank lines and bad rows count as lines."""
    data = b'prompt,id\n"a\nb",1\n\nhi\n"c\n\nd",2\nho,3\n'
    assert [(row.number, bool(row.error)) for row in csv_rows(io.BytesIO(data), "a.csv")] == [
        (2, False), (5, True), (6, False), (9, False)
    ]  # fmt: skip


def test_each_request_of_an_export_has_a_number_of_its_own():
    """Rows behind a line of several requests go on counting, so that a file and a number name one row."""
    attributes = [{"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}}]
    export = {"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "chat", "attributes": attributes}] * 3}]}]}
    data = b"\n" + json.dumps(export).encode() + b'\n{"resourceSpans"\n\n\n\n{"prompt": "hi"}\n'
    assert [row.number for row in json_rows(io.BytesIO(data), "a.jsonl")] == [2, 3, 4, 5, 7]


@pytest.mark.parametrize("line", ['"open,1', 'a",",', 'x"y,"', "x,1"], ids=["open", "strict", "lenient", "rows"])
def test_a_quote_that_is_never_closed_takes_no_time_and_memory(line):
    """Behind a quote that is never closed each line is read a few times at most, and not all are held at once."""
    count = MAX_ROW_LINES + 10
    head = b'prompt,id\n"never closed,0\n'
    rows = csv_rows(io.BytesIO(head + f"{line}\n".encode() * count), "a.csv")
    assert sum(row.number > 0 for row in rows) == count + 1


def test_a_line_of_csv_that_is_too_long_keeps_its_head(tmp_path):
    """A line of CSV over the limit is a bad row with its head, and the next one is labelled."""
    (tmp_path / "a.csv").write_bytes(b"prompt\n" + b"x" * (MAX_ROW_BYTES + 10) + b"\nhi\n")
    errors, _ = outcome(tmp_path / "a.csv", tmp_path)
    assert errors == ["is 16 MiB long, the limit is 16 MiB; only its head is kept", None]
    rows = list(open_labelled(tmp_path / "a.csv.jsonl").rows(["classifier_extra"]))
    assert rows[0]["classifier_extra"] == {"line": "x" * 1000}


@pytest.mark.parametrize(
    ("header", "names"),
    [
        (b"a,a_3,a", ["a", "a_3", "a_3_3"]),
        (b"a,a,a_2", ["a", "a_2", "a_2_3"]),
        (b"column_2,,b", ["column_2", "column_2_2", "b"]),
    ],
    ids=["before", "behind", "empty"],
)
def test_no_column_of_csv_takes_the_place_of_another(header, names):
    """A repeated or empty name becomes one that no other column has, and every value is kept."""
    [row] = csv_rows(io.BytesIO(header + b"\n1,2,3\n"), "a.csv")
    assert row.payload == dict(zip(names, "123", strict=True))


def test_fields_beyond_the_header_are_kept_beside_a_column_called_fields():
    """Of a CSV row that is too long every field is kept, also that of a column that is called as the rest would be."""
    [row] = csv_rows(io.BytesIO(b"prompt,fields\nhi,mine,more\n"), "a.csv")
    assert row.payload == {"prompt": "hi", "fields": "mine", "fields_3": '["more"]'}


def test_a_tsv_file_is_parted_by_tabs(tmp_path):
    """Its columns are kept by name, with commas, quotes and lines in them; a bad row costs itself, packed or not."""
    rows = b'id\tprompt\n1\thi, you\n2\t"two\nlines\t""x"""\n3\n4\tsay "so"\n5\t"open\n'
    (tmp_path / "a.tsv").write_bytes(rows)
    (tmp_path / "b.tsv.gz").write_bytes(gzip.compress(rows))
    for name in ("a.tsv", "b.tsv.gz"):
        errors, _ = outcome(tmp_path / name, tmp_path)
        assert errors == [None, None, "has 1 fields, the header has 2", None, OPEN]
        found = [row["prompt"] for row in open_labelled(tmp_path / f"{name}.jsonl").rows(["prompt"]) if row]
        assert found[:2] == ["hi, you", 'two\nlines\t"x"']
        assert 'say "so"' in found


@pytest.mark.parametrize(("sign", "name"), [(b";", "semicolons"), (b"\t", "tabs")], ids=["semicolons", "tabs"])
def test_csv_without_commas_says_so_once(sign, name, tmp_path):
    """A file parted by semicolons or tabs is one bad row that says what to do; in quotes the sign is part of a name."""
    (tmp_path / "a.csv").write_bytes(b"prompt" + sign + b"model\nhi" + sign + b"x, y\n")
    (tmp_path / "b.csv").write_bytes(b'"prompt' + sign + b'model"\nhi\n')
    [error], _ = outcome(tmp_path / "a.csv", tmp_path)
    advice = {"tabs": "name the file .tsv", "semicolons": "write the file with commas"}[name]
    assert error.startswith(f"the header has {name} and no comma; {advice}")
    assert outcome(tmp_path / "b.csv", tmp_path, text_field=f"prompt{sign.decode()}model")[0] == [None]


def test_random_bytes_are_bad_rows_whatever_the_name(tmp_path):
    """A file of random bytes ends as bad rows, one at least, under every name that we read."""
    code = """
import os, sys
from classifier.bulk import label
from classifier.runs import Options
from tests.bulk_support import FakeMaker
for i, name in enumerate(["a.jsonl", "a.csv", "a.parquet", "a.jsonl.gz", "a.log"]):
    path = os.path.join(sys.argv[1], f"{i}-{name}")
    open(path, "wb").write(os.urandom(200_000))
    tally = label([path], path + ".out.parquet", FakeMaker(), Options(processes=1)).tally
    assert tally.bad == tally.rows > 0, name
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=100)


@pytest.mark.parametrize("stored", ["plain", "dictionary", "nested"])
def test_a_text_that_repeats_makes_no_large_chunk(stored, tmp_path):
    """A long text in every row, which a Parquet file holds once, is counted as often as it is handed on."""
    count, text = 700, "You are terse. " * 4000
    system = pa.array([text] * count)
    if stored == "nested":
        system = pa.array([[{"role": "system", "content": text}]] * count)
    table = pa.table({"system": system.dictionary_encode() if stored == "dictionary" else system, "n": range(count)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    assert (tmp_path / "a.parquet").stat().st_size < 200_000
    chunks = list(read_chunks(find_sources([str(tmp_path / "a.parquet")])))
    assert [n for chunk in chunks for n in chunk.batch["n"].to_pylist()] == list(range(count))
    assert [number for chunk in chunks for number in chunk.numbers] == list(range(1, count + 1))
    assert min(map(len, chunks)) > 1
    for chunk in chunks:
        assert len(chunk) * len(text) < CHUNK_BYTES
        assert len(pickle.dumps(chunk, pickle.HIGHEST_PROTOCOL)) < 1.1 * CHUNK_BYTES


def test_a_table_of_small_rows_is_cut_where_lines_are(tmp_path):
    """Small rows of a Parquet file go a thousand to a chunk, whatever its row groups are."""
    pq.write_table(pa.table({"prompt": prompts(2500)}), tmp_path / "a.parquet", row_group_size=700)
    assert [len(chunk) for chunk in read_chunks(find_sources([str(tmp_path / "a.parquet")]))] == [1000, 1000, 500]


def test_a_cell_that_is_no_utf8_costs_no_row(tmp_path):
    """In a Parquet file a damaged cell is read with signs of replacement; its row and the others are labelled."""
    cells = pa.array([b"hi", b"\xf2what is this", None], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), len(cells), cells.buffers())
    pq.write_table(pa.table({"prompt": texts, "n": [1, 2, 3]}), tmp_path / "in.parquet")
    label([str(tmp_path / "in.parquet")], str(tmp_path / "out.parquet"), FakeMaker(), Options(processes=1))
    rows = list(open_labelled(tmp_path / "out.parquet").rows())
    assert [row["n"] for row in rows] == [1, 2, 3]
    assert [row["classifier_tier"] is not None for row in rows] == [True, True, False]
    assert rows[1]["prompt"] == "\ufffdwhat is this"
