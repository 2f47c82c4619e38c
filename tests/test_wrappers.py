"""What an application puts around a request is no part of it."""

from __future__ import annotations

import html
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifier.inputs import render
from classifier.types import Message, Request
from classifier.wrappers import MOST_LAYERS, unwrapped

SHORT = "Why is the sky blue?"
LONG = "Sum this up.\n\nA day passed. " + "It rained. " * 400
CHATML = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
LLAMA_3 = "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"


@pytest.mark.parametrize(
    "template",
    [
        "Question: {}\nAnswer:", "Q: {}\n\n\nA: ", "Human: {}\n\nAssistant:", "user: {}\nAI:", "USER: {} ASSISTANT:",
        "### Human: {}\n### Assistant:", "### Instruction:\n{}\n\n### Response:", "Instruct: {}\nOutput:",
        "Below is an instruction that describes a task.\n\n### Instruction:\n{}\n\n### Response:\n",
        "User: {}", "Question: {}", "**User:** {}", "[user]: {}", "User query: {}", "The user's question: {}",
        "### Question\n{}", "# Task:\n{}", "{}\n\nAnswer:", "{}\n### Response:\n",
        CHATML, LLAMA_3, "<s>[INST] {} [/INST]", "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
        "<query>{}</query>", "<user_input>\n{}\n</user_input>", '<message role="user">{}</message>',
        '"""{}"""', '"{}"', "“{}”", "«{}»", "„{}“", "「{}」",
        "```\n{}\n```", "``` text\n{}\n```", "```{}```", "~~~markdown\n{}\n~~~", "---\n{}\n---",
        "=====\n{}\n=====", "<<<{}>>>", "**{}**", "<@U04ABCD12> {}", "<@!80351110224678912>, {}", "<p>{}</p>",
    ],
)  # fmt: skip
@pytest.mark.parametrize("asked", [SHORT, LONG], ids=["short", "long"])
def test_what_encloses_a_request_is_no_part_of_it(template, asked):
    """The same is read as of the bare request, however long it is."""
    wrapped, bare = render(Request.from_text(template.format(asked))), render(Request.from_text(asked))
    assert (wrapped.text, wrapped.signals) == (bare.text, bare.signals)


@pytest.mark.parametrize(
    "value",
    [
        {"query": "{}"},
        {"userQuery": "{}"},
        {"role": "user", "content": "{}"},
        [{"role": "user", "content": "{}"}],
        {"user_id": "u 482", "at": "2026-11-30T10:00:00Z", "n": 3, "stream": False, "message": "{}", "tags": []},
        {"prompt": "{}", "user": {"id": 7, "locale": "en-US", "text": None}},
        {"tier": "frontier", "prompt": "{}"},
        {"model": "m", "messages": [{"role": "user", "content": "{}"}], "temperature": 0.2},
        {"data": [{"user": "jdoe", "text": "{}"}]},
        {"message": "{}", "text": "", "input": " "},
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("written", [json.dumps, lambda value: f"```json\n{json.dumps(value, indent=2)}\n```"])
def test_a_request_in_json_is_what_its_field_holds(value, written):
    """Where one field holds it, and the others hold ids, numbers and names."""
    asked = 'Übersetze "a\\b" ins\n\nFinnische'
    inner = json.loads(json.dumps(value).replace('"{}"', json.dumps(asked)))
    assert unwrapped(written(inner)) == asked


@pytest.mark.parametrize(
    "content",
    [
        "Q: 1 + 1?\nA: 2\nQ: 2 + 2?\nA:",
        "Write the answer:\nAnswer:",
        "Who wrote this to my assistant:",
        '"""a""" + """b"""',
        '"to be" or "not to be"',
        "Human: hi\nAssistant: hello\nHuman: and now?\nAssistant:",
        "Task: sort these\nInput: 3 1 2",
        "### Task\nWrite SQL\n### Schema\nCREATE TABLE t",
        '{"question": "who wrote it?", "context": "The book was written by Ada in 1843."}',
        '{"instruction": "translate", "input": "good morning"}',
        '{"action": "summarise", "text": "A day passed, and it rained."}',
        '{"question": "谁写的？", "context": "这本书是由艾达在一八四三年写成的。"}',
        '{"question": "ใครเขียน", "context": "หนังสือเล่มนี้เขียนโดยเอดา"}',
        '{"id": 7, "total": "12 EUR"}',
        '{"query": "x"',
        "[1, 2, 3]",
        "[" * 400 + "]" * 400,
        "<div>hello</div>",
        "<query>a</query> or <query>b</query>?",
        "<query>a</query> or a </query>",
        "a &lt;b&gt; within</p>",
        "<p>a</p><script>b()</script><p>c</p>",
        "```python\nprint(1)\n```",
        "```\ndef f(x):\n    return x + 1\n```",
        '```json\n{"a": 1}\n```',
        "```\na\n```\nand\n```\nb\n```",
        "<div> is written &lt;div&gt; in HTML",
        "replace('&nbsp;', ' ')",
        "'",
        '""',
        "---",
        "[INST] a [/INST] b </s>[INST] c [/INST]",
        "what does <|im_start|>user mean?",
    ],
)
def test_material_stays_as_it_is(content):
    """What holds several turns or fields of words, a program, or nothing, is what the person sent."""
    assert unwrapped(content) == content


@pytest.mark.parametrize("asked", ["Is 3 < 4 & 5 > 2?", 'Who said "I\'ll be back"?'])
@pytest.mark.parametrize("written", [html.escape, "<p>{}</p>".format, "<p>Hi <b>Bot</b>,<br>{}</p>".format])
def test_what_was_written_for_a_page_is_read_as_it_shows(asked, written):
    """Signs that were escaped, and paragraphs of an editor for rich text."""
    shown = unwrapped(written(html.escape(asked)) if written != html.escape else html.escape(asked))
    assert shown.removeprefix("Hi Bot,\n") == asked


TEXTS = st.sampled_from(("user", "assistant", "", " ", "what is it?", "\ud800"))
VALUES = st.recursive(
    st.none() | st.floats() | TEXTS,
    lambda held: st.lists(held, max_size=2) | st.dictionaries(st.sampled_from(("content", "query")), held, max_size=2),
)
MESSAGES = st.lists(st.fixed_dictionaries({"role": TEXTS | VALUES, "content": TEXTS | VALUES}), max_size=3)


@given(VALUES | MESSAGES | st.fixed_dictionaries({"messages": MESSAGES | VALUES}))
def test_any_value_of_json_is_read(value):
    """Whatever an application puts where, there is a text to rate."""
    assert isinstance(render(Request.from_text(json.dumps(value))).text, str)


def test_wrappers_around_each_other_are_taken_off():
    """Layer by layer, and not for ever."""
    assert unwrapped("```json\n" + json.dumps({"query": "User: <query>hi</query>"}) + "\n```") == "hi"
    deep = "hi"
    for _ in range(MOST_LAYERS + 1):
        deep = json.dumps({"query": deep})
    assert unwrapped(deep) == '{"query": "hi"}'


def test_earlier_requests_are_unwrapped_and_answers_are_not():
    """An application wraps what the user says; what the model and tools said is their own."""
    turns = (
        Message("user", '{"query": "name a river"}'),
        Message("assistant", '"Elbe"'),
        Message("tool", '{"text": "Elbe"}'),
        Message("user", '{"query": "and a lake"}'),
    )
    found = render(Request(turns))
    assert (found.text, found.context) == (
        "and a lake",
        'user: name a river\nassistant: "Elbe"\ntool: {"text": "Elbe"}',
    )


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("Ｗｈａｔ　ｉｓ　ＡＩ？", "What is AI?"),
        ("ＳＵＢＡＲＵの創始者は誰？", "SUBARUの創始者は誰？"),
        ("什么是机器学习？", "什么是机器学习？"),
        ("𝐖𝐡𝐨 wrote it?", "Who wrote it?"),
        ("the eﬃcient ﬂow", "the efficient flow"),
    ],
)  # fmt: skip
def test_letters_of_another_style_are_read_as_what_they_stand_for(written, read):
    """Of full width, of mathematics and ligatures; marks of Chinese and Japanese stay theirs."""
    assert render(Request.from_text(written)).text == read
