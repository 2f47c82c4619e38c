"""What of a request the model reads."""

from __future__ import annotations

import hashlib
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifier.inputs import (
    CONTEXT_CHARS,
    GAP,
    INPUT_VERSION,
    MOST_LOOKED_CHARS,
    TEXT_CHARS,
    WIDEST_CHARS,
    WINDOW_CHARS,
    cut_middle,
    rated_index,
    render,
)
from classifier.signals import SIGNALS, dominant_script
from classifier.types import ROLES, Message, Request

TEXTS = st.text(max_size=300)
CONVERSATIONS = st.lists(st.builds(Message, st.sampled_from(ROLES), TEXTS), max_size=6)


def chat(*turns: tuple[str, str], **fields) -> Request:
    return Request(tuple(Message(role, content) for role, content in turns), **fields)


def test_last_user_message_is_rated():
    """The last user message is the text; what came before it is context."""
    found = render(chat(("user", "plan the migration"), ("assistant", "Drop the table?"), ("user", "yes, do it")))
    assert found.text == "yes, do it"
    assert found.context == "user: plan the migration\nassistant: Drop the table?"


def test_agent_steps_after_the_last_user_message_are_context():
    """What the agent did since the user spoke is context, oldest first."""
    found = render(chat(("user", "book it"), ("assistant", "calling"), ("tool", "flight full")))
    assert found.text == "book it"
    assert found.context == "assistant: calling\ntool: flight full"


def test_system_prompt_is_context_by_its_head_only():
    """The system prompt is not rated: its head is context, the rest is left out and is not "truncated"."""
    found = render(chat(("system", "Reply with one label. " + "x" * 5000), ("user", "hello")))
    assert found.context.startswith("system: Reply with one label.")
    assert len(found.context) < 250
    assert not found.truncated


def test_nearest_message_gets_most_of_the_context():
    """The message just before the rated one keeps more of its text than those before it."""
    turns = [("assistant", letter * 2000) for letter in "abc"]
    found = render(chat(("user", "start"), *turns, ("user", "go on")))
    assert found.context.count("c") > 2 * found.context.count("b")
    assert found.truncated


def test_long_text_keeps_head_and_tail():
    """A long text loses its middle, and says so."""
    found = render(Request.from_text("HEAD " + "x" * 100_000 + " TAIL"))
    assert found.text.startswith("HEAD")
    assert found.text.endswith("TAIL")
    assert GAP.strip() in found.text
    assert found.truncated


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        ("<system-reminder>todo list is empty</system-reminder>fix the typo", "fix the typo"),
        ("fix the typo<environment_details>\ncwd: /x\n</environment_details>", "fix the typo"),
        ("a<user_info>x</user_info>b<USER_INFO>y</USER_INFO>c", "abc"),
        ("what does <user_info> mean?", "what does <user_info> mean?"),
        ("</system-reminder> stray", "</system-reminder> stray"),
        ("<div>my page</div>", "<div>my page</div>"),
    ],
    ids=["before", "after", "several", "unclosed", "stray", "other-tags"],
)
def test_harness_blocks_are_removed(content, kept):
    """Closed blocks of a harness are removed; a user's own mention of a tag is not."""
    assert render(Request.from_text(content)).text == kept


def test_harness_block_cut_by_the_window_is_removed():
    """A block that starts in the window and ends beyond it is removed too."""
    content = "fix it <system-reminder>" + "noise " * WINDOW_CHARS + "</system-reminder> please"
    found = render(Request.from_text(content))
    assert "noise" not in found.text
    assert found.text.startswith("fix it")
    assert found.text.endswith("please")


@pytest.mark.parametrize("chars", [WINDOW_CHARS, 4 * WINDOW_CHARS])
@pytest.mark.parametrize("ask", ["fix the failing test", "fix the failing test in " * 100])
def test_a_request_between_long_harness_blocks_is_read(chars, ask):
    """However long the blocks around it, up to what is looked at, the request is read as it is without them."""
    block = f"<system-reminder>{'a rule. ' * (chars // 8)}</system-reminder>\n"
    found = render(chat(("user", "earlier"), ("user", f"{block}{ask}\n{block}{block}")))
    assert (found.text, found.truncated) == (render(Request.from_text(ask)).text, len(ask) > TEXT_CHARS)


def test_a_request_between_blocks_longer_than_what_is_looked_at_costs_no_more():
    """Harness blocks of half a megabyte around a request are not read to the middle: the message is noise alone."""
    block = f"<system-reminder>{'a rule. ' * (WIDEST_CHARS // 4)}</system-reminder>\n"
    assert rated_index(chat(("user", "earlier"), ("user", f"{block}{block}fix it\n{block}{block}"))) == 0


def test_what_stands_before_noise_that_has_no_end_is_read():
    """Where only the head of a message, or only its tail, holds words, these are rated, and the rest is left out."""
    noise = f"<system-reminder>{'a rule. ' * (WIDEST_CHARS // 2)}</system-reminder>\n"
    before, behind = render(Request.from_text(f"fix it\n{noise}")), render(Request.from_text(f"{noise}fix it"))
    assert (before.text.strip(" …"), behind.text.strip(" …")) == ("fix it", "fix it")
    assert before.truncated
    assert behind.truncated


def test_noise_that_is_not_read_to_its_end_is_told_as_left_out():
    """Of a message with attachments and more noise than is looked at nothing is rated, and the answer says so."""
    noise = f"<system-reminder>{'a rule. ' * (WIDEST_CHARS // 2)}</system-reminder>"
    found = render(chat(("user", noise), attachments=1))
    assert (found.text, found.truncated, found.chars) == ("", True, 0)


def test_message_of_noise_alone_is_passed_over():
    """A user message that holds nothing but harness noise is not what is rated."""
    found = render(chat(("user", "sum the list"), ("user", "<system-reminder>x</system-reminder>")))
    assert found.text == "sum the list"


NOISE = ("user", "<system-reminder>x</system-reminder>")


@pytest.mark.parametrize(
    ("request_", "index"),
    [
        (chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("tool", "d")), 2),
        (chat(("user", "a"), ("user", "b"), ("assistant", "c"), NOISE, NOISE), 1),
        (chat(("system", "a"), NOISE, ("assistant", "b"), NOISE), 1),
        (chat(("user", "a"), NOISE, attachments=1), 1),
    ],
    ids=["last", "noise", "noise-alone", "attached"],
)
def test_the_rated_message_can_be_named(request_, index):
    """It is the user message whose text the model reads."""
    assert rated_index(request_) == index
    assert render(request_).text == render(chat(("user", request_.messages[index].content))).text


def test_messages_of_noise_cost_what_they_hold():
    """However many are passed over, each is looked at once: 50,000 take half a second, not minutes."""
    start = time.process_time()  # beside other work the clock on the wall runs on while this stands still
    assert rated_index(chat(("user", "sum the list"), *[("user", "")] * 50_000)) == 0
    assert time.process_time() - start < 5


@pytest.mark.parametrize("chars", [100, 2 * WINDOW_CHARS + 100, 2 * WIDEST_CHARS + 100])
def test_noise_is_passed_over_however_long_it_is(chars):
    """A message of noise alone that is longer than what is looked at of it is one all the same."""
    noise = f"<local-command-stdout>{'log line. ' * (chars // 10)}</local-command-stdout>"
    found = render(chat(("user", "sum the list"), ("user", noise)))
    assert (found.text, found.context) == ("sum the list", "")


def test_what_stands_before_more_noise_than_is_looked_at_is_told_as_left_out():
    """The context ends there, and the answer says that the model did not read all of it."""
    noise = f"<bash-stdout>{'log line. ' * 2000}</bash-stdout>"
    few, many = (
        render(chat(("user", "plan the migration"), *[("tool", noise)] * count, ("user", "go on")))
        for count in (5, MOST_LOOKED_CHARS // len(noise) + 1)
    )
    assert (few.context, few.truncated) == ("user: plan the migration", False)
    assert (many.context, many.truncated) == ("", True)


def test_messages_that_are_nearly_all_noise_are_looked_at_no_more_than_noise_is():
    """A word beside each block keeps a message in the context, which ends where enough was looked at all the same."""
    noise = f"<bash-stdout>{'log line. ' * 2000}</bash-stdout> ok"
    found = render(chat(("user", "plan the migration"), *[("tool", noise)] * 100, ("user", "go on")))
    assert (found.context.count("tool: ok"), found.truncated) == (MOST_LOOKED_CHARS // len(noise) + 1, True)


def test_what_is_rated_is_not_looked_for_behind_more_noise_than_is_looked_at():
    """On the way to the rated message a bounded part of the conversation is looked at, however much of it is noise."""
    noise = f"<bash-stdout>{'log line. ' * 2000}</bash-stdout>"
    most = MOST_LOOKED_CHARS // len(noise)
    assert rated_index(chat(("user", "sum the list"), *[("user", noise)] * most)) == 0
    assert rated_index(chat(("user", "sum the list"), *[("user", noise)] * (most + 1))) == 1


def test_empty_message_is_rated_as_it_is():
    """An empty message, alone or with attachments, is allowed."""
    assert render(Request.from_text("")).text == ""
    assert render(chat(("user", "earlier"), ("user", ""), attachments=1)).text == ""


@pytest.mark.parametrize(
    ("request_", "signal"),
    [
        (chat(("user", "a")), "[turns=1]"),
        (chat(*[("user", "a")] * 4), "[turns=3]"),
        (chat(("user", "a"), tools=("x", "y", "z")), "[tools=2]"),
        (chat(("user", "a"), attachments=7), "[attachments=2]"),
        (chat(("user", "a" * 150)), "[length=100]"),
        (chat(("user", "a" * 1_000_000)), "[length=30000]"),
        (chat(("user", "def f(x):\n    return x == 2\n\nprint(f(1))")), "[code=mostly]"),
        (chat(("user", "привет, как дела")), "[script=cyrillic]"),
    ],
    ids=["one-turn", "turns", "tools", "attachments", "length", "megabyte", "code", "script"],
)
def test_signals_say_what_text_cannot(request_, signal):
    """Turns, tools, attachments, length, code and script are told by one signal each."""
    found = render(request_)
    assert signal in found.signals
    assert len(found.signals) == 6
    assert set(found.signals) <= set(SIGNALS)


def test_harness_noise_changes_no_signal():
    """The same ask with and without harness noise gives the same signals."""
    noisy = "<system-reminder>" + "x" * 900 + "</system-reminder>\nfix the typo in line 3"
    assert render(Request.from_text(noisy)).signals == render(Request.from_text("fix the typo in line 3")).signals


@pytest.mark.parametrize(
    ("text", "script"),
    [("straße", "latin"), ("你好吗", "han"), ("今日は", "kana"), ("안녕", "hangul"), ("مرحبا", "arabic"),
     ("नमस्ते", "indic"), ("γειά", "other"), ("42 + 1", "none"), ("fix это please now", "latin")],
)  # fmt: skip
def test_script_is_the_one_of_most_letters(text, script):
    """The dominant script is that of most letters; any kana makes Han characters Japanese."""
    assert dominant_script(text) == script


@pytest.mark.parametrize(
    ("letters", "script"),
    [
        ("ÀɏḀỿ", "latin"), ("ЀԯҐ", "cyrillic"), ("一鿿㐀䶿𠀀", "han"), ("ぁヿ", "kana"), ("가힣ᄀᇿ", "hangul"),
        ("ؠݿﭐﻼ", "arabic"), ("ऄෆ", "indic"), ("αא", "other"),
    ],
)  # fmt: skip
def test_a_script_is_all_of_its_blocks(letters, script):
    """From the first letter of each block to its last, extensions included."""
    assert {dominant_script(letter) for letter in letters} == {script}


PARTS = (
    "Please summatize the meeting notes and send them to everyone. ", "yes, do it", " ", "\n", "\n\n", "é", "привет ",
    "你好世界", "你好世界再す", "今日は", "안녕 ", "مرحبا ", "नमस्ते ", "γειά ", "42 ", "a\ud800b ", "x = f(1);\n",
    "def f(x):\n", "```\n", "a line\n", "return x\n", "<system-reminder>", "</system-reminder>", "<div>",
    "<user_info>me</user_info>", "<user_query>", "</user_query>", "[read_file] Result:\n", "Q: ", "\nA:",
    "ＡＩ？", "eﬃcient ", "cafe\u0301s ", "word " * 12, "wo" * 70, "log line. " * 300, "log line. " * 2000,
)  # fmt: skip
WRAPPERS = (
    "{}", "{}", "{}", "{}", '{{"query": "{}"}}', "<query>{}</query>", "<p>{}</p>", "User: {}", "Q: {}\nA:", '"{}"',
    "```text\n{}\n```", "---\n{}\n---", "[INST] {} [/INST]", "<@U1> {}", "{}&quot;",
    "Human: hi\nAI: hello\nHuman: {}\nAI:",
)  # fmt: skip


def test_what_is_read_changes_with_the_version_of_inputs_alone():
    """Bundles carry `INPUT_VERSION`: where the model would read else of any of these, give it the next number."""
    draw, found = random.Random(0), hashlib.sha256()
    for _ in range(600):
        turns = [
            (draw.choice(ROLES), "".join(draw.choices(PARTS, k=draw.choice((0, 1, 2, 5, 9, 30)))))
            for _ in range(draw.choice((0, 0, 1, 2, 4, 8, 12)))
        ]
        last = "".join(draw.choices(PARTS, k=draw.choice((0, 1, 2, 3, 5, 9, 30))))
        attached, tools = draw.choice((0, 0, 0, 1, 2)), draw.choice((0, 0, 1, 3, 9))
        last = draw.choice(WRAPPERS).format(last)
        request = chat(*turns, ("user", last), attachments=attached, tools=("t",) * tools)
        read = render(request)
        found.update(repr((read.text, read.context, read.signals)).encode())
    assert (INPUT_VERSION, found.hexdigest()[:16]) == (6, "f794fdf3f53b578e")


@given(CONVERSATIONS, TEXTS, st.integers(0, 9))
def test_every_valid_conversation_renders_within_its_budget(before, last, attachments):
    """Whatever the conversation, the result is bounded, encodable and the same again."""
    request = Request(
        (*(Message(m.role, m.content.replace("\0", "")) for m in before), Message("user", last.replace("\0", ""))),
        attachments=attachments,
    )
    found = render(request)
    assert len(found.text) <= TEXT_CHARS + len(GAP)
    assert len(found.context) <= CONTEXT_CHARS + 200
    found.text.encode()
    found.context.encode()
    assert found == render(request)


@given(st.text(max_size=200), st.integers(10, 60))
def test_cut_keeps_both_ends(text, limit):
    """A cut text keeps its first and last characters and is no longer than its limit and the gap."""
    cut = cut_middle(text, limit)
    assert len(cut) <= limit + len(GAP)
    assert cut[:3] == text[:3]
    assert cut[-3:] == text[-3:]


def test_lone_surrogates_become_question_marks():
    """Text that no encoder takes is replaced, not refused."""
    assert render(Request.from_text("a\ud800b")).text == "a?b"
