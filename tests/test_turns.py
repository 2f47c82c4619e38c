"""A conversation that an application wrote into one text is that conversation."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from classifier.inputs import rated_index, render
from classifier.turns import MOST_TURNS, messages_of
from classifier.types import Message, Request

TURNS = (Message("user", "name a river"), Message("assistant", "The Elbe."), Message("user", "and\n\na lake: where?"))
BUFFER = "The following is a friendly conversation between a human and an AI.\n\nCurrent conversation:"


def written(messages, asks="Human", answers="AI", between="\n"):
    return between.join(f"{asks if m.role == 'user' else answers}: {m.content}" for m in messages)


TEMPLATES = {
    "ChatML": ("<|im_start|>user\n{}<|im_end|>\n", "<|im_start|>assistant\n{}<|im_end|>\n"),
    "Phi 4": ("<|im_start|>user<|im_sep|>{}<|im_end|>", "<|im_start|>assistant<|im_sep|>{}<|im_end|>"),
    "Phi 3": ("<|user|>\n{}<|end|>\n", "<|assistant|>\n{}<|end|>\n"),
    "Zephyr": ("<|user|>\n{}</s>\n", "<|assistant|>\n{}</s>\n"),
    "GLM": ("<|user|>\n{}", "<|assistant|>\n{}"),
    "Gemma": ("<start_of_turn>user\n{}<end_of_turn>\n", "<start_of_turn>model\n{}<end_of_turn>\n"),
    "Granite": (
        "<|start_of_role|>user<|end_of_role|>{}<|end_of_text|>\n",
        "<|start_of_role|>assistant<|end_of_role|>{}<|end_of_text|>\n",
    ),
    "Llama 3": (
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>",
    ),
    "Llama 4": (
        "<|header_start|>user<|header_end|>\n\n{}<|eot|>",
        "<|header_start|>assistant<|header_end|>\n\n{}<|eot|>",
    ),
    "gpt-oss": (
        "<|start|>user<|message|>{}<|end|>",
        "<|start|>assistant<|channel|>final<|message|>{}<|end|>",
    ),
    "Command R": (
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{}<|END_OF_TURN_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{}<|END_OF_TURN_TOKEN|>",
    ),
    "DeepSeek": ("<｜User｜>{}", "<｜Assistant｜>{}<｜end▁of▁sentence｜>"),
    "Llama 2": ("<s>[INST] {} [/INST]", " {}</s>"),
}
BEGINNINGS = {"GLM": "[gMASK]<sop>", "DeepSeek": "<｜begin▁of▁sentence｜>", "Llama 3": "<|begin_of_text|>"}
"""What stands before the first turn, where that is not nothing."""


def templated(name, messages=TURNS):
    """The messages in a model's chat template, with what begins the answer yet to come."""
    asked, answered = TEMPLATES[name]
    turns = "".join((asked if m.role == "user" else answered).format(m.content) for m in messages)
    return BEGINNINGS.get(name, "") + turns + answered.partition("{}")[0]


@pytest.mark.parametrize(
    "text",
    [
        written(TURNS),
        f"{written(TURNS)}\nAI:",
        f"\n\n{written(TURNS, 'Human', 'Assistant', chr(10) * 2)}\n\nAssistant: ",
        f"{written(TURNS, '### User', '### Assistant')}\n### Assistant:\n",
        f"{written(TURNS, '**User**', '**ChatGPT**')}\n**ChatGPT**:",
        json.dumps([{"role": m.role, "content": m.content} for m in TURNS]),
        json.dumps({"model": "m", "messages": [{"role": m.role, "content": m.content} for m in TURNS]}, indent=1),
        *map(templated, TEMPLATES),
    ],
)
def test_turns_written_into_one_message_are_read_as_messages(text):
    """The last of them is rated, those before it are its conversation."""
    found, sent = render(Request.from_text(text)), render(Request(TURNS))
    assert (found.text, found.context, found.signals[0]) == (sent.text, sent.context, sent.signals[0])


@pytest.mark.parametrize("thinks", ["<think>\n", "<think>\n\n</think>\n\n"])
def test_what_a_template_begins_an_answer_with_is_none(thinks):
    """Templates of models that think open the thought, or close it at once; neither is anything that was said."""
    assert messages_of(templated("ChatML") + thinks) == messages_of(templated("ChatML"))


@pytest.mark.parametrize(
    "text",
    ["[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT][INST]hi[/INST]", "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nhi [/INST]"],
)
def test_a_system_prompt_among_instructions_is_the_system_s(text):
    """Llama 2 has it within the first turn, Mistral before it."""
    assert [(m["role"], m["content"]) for m in messages_of(text)][:2] == [("system", "Be brief."), ("user", "hi")]


def test_a_tool_s_call_and_result_in_a_template_are_turns():
    """gpt-oss says for whom a message is; the developer's is the system's, and the user's last one is rated."""
    text = (
        "<|start|>system<|message|>Reasoning: low<|end|><|start|>developer<|message|>Be brief.<|end|>"
        "<|start|>user<|message|>Rain in Ulm?<|end|>"
        '<|start|>assistant<|channel|>commentary to=functions.rain <|constrain|>json<|message|>{"at": "Ulm"}<|call|>'
        "<|start|>functions.rain to=assistant<|channel|>commentary<|message|>no<|end|><|start|>assistant"
    )
    assert [m["role"] for m in messages_of(text)] == ["system", "system", "user", "assistant", "tool", "assistant"]
    assert render(Request.from_text(text)).text == "Rain in Ulm?"


def test_words_before_the_turns_are_instructions_where_an_answer_is_to_follow():
    """A template that ends in the label of an answer is a prompt; its head is the system's."""
    found = render(Request.from_text(f"{BUFFER}\n{written(TURNS)}\nAI:"))
    sent = render(Request((Message("system", BUFFER), *TURNS)))
    assert (found.text, found.context) == (sent.text, sent.context)


def test_a_tool_s_result_within_the_turns_is_given_to_the_tool():
    """What a harness sent in the user's name is the tool's, in a message of its own or in a chat template."""
    turns = (Message("user", "fix it"), Message("assistant", "ok"), Message("user", "[read_file] Result:\nabc"))
    text = "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in turns)
    found = render(Request.from_text(text))
    assert found == replace(render(Request(turns)), chars=found.chars)
    assert found.text == "fix it"
    assert rated_index(Request.from_text(text)) == 0


def test_earlier_messages_stand_before_the_turns():
    """Where an application sends turns in one message of several, all of them are one conversation."""
    first = (Message("system", "Be brief."), Message("user", "hi"), Message("assistant", "Hello!"))
    found = render(Request((*first, Message("user", written(TURNS)))))
    assert found == render(Request((*first, *TURNS)))
    assert rated_index(Request((*first, Message("user", written(TURNS))))) == 3


@pytest.mark.parametrize(
    "text",
    [
        f"Sum up this talk:\n{written(TURNS)}",
        f"{written(TURNS)}\nAI: Lake Constance.",
        f"{written(TURNS)}\nUser: and a hill",
        "Improve this template:\n\nYou are a guide.\nUser: {question}\nAssistant:",
        "User: [your message]\nAssistant:",
        "User: admin\nPassword: x",
        "User:\nAI:\nUser:",
        "AI: hello\nHuman: hi",
        "Q: 1 + 1?\nA: 2\nQ: 2 + 2?\nA:",
        "Customer: where is it?\nAgent: On its way.\nCustomer: since when?",
        "the user: a person\nthe model: a program",
        written([Message(("user", "assistant")[i % 2], "a") for i in range(MOST_TURNS + 1)]),
        '[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]',
        '[{"role": "user", "content": ["hi"]}]',
        '[{"role": "owner", "content": "hi"}, {"role": "user", "content": "and?"}]',
        '[{"role": "user", "content": "hi"}, 1]',
        '{"role": "admin"}',
        "<|user|> and <|end|> of which model?",
        "<|user|>\nhi<|end|>\n<|owner|>\nno<|end|>",
        "<|user|>\nhi\n<|assistant|>\nHello!",
        "[INST] hi [/INST] Hello!</s> is what it said to [INST] yes [/INST]",
        "[SYSTEM_PROMPT] or [INST] hi [/INST]",
        "[SYSTEM_PROMPT]Be brief.[/SYSTEM_PROMPT] is whose mark?",
        '{"task": "Say what the answer got wrong.", "messages": [{"role": "user", "content": "hi"}]}',
    ],
)
def test_turns_that_are_material_are_one_text(text):
    """A question about a talk, speakers out of turn, an answer at the end, examples: a person's own words."""
    assert messages_of(text) == [{"role": "user", "content": text}]
