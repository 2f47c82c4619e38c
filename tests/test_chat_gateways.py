"""What the gateways read of a request and say of an answer, without a gateway."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from classifier.fallback import Answer
from classifier.gateways.chat import (
    Remembered,
    call_name,
    cause_of_exception,
    headers_of,
    is_off,
    is_outage,
    labels_of,
    loop_start,
    tier_of_model,
    tool_loop,
)
from classifier.routing import is_restricted, table_of
from classifier.types import Cause, Tier

ASKED = [{"role": "user", "content": "refactor it"}]
OPENAI = [*ASKED, {"role": "assistant", "content": None}, {"role": "tool", "content": "ok"}]
RESPONSES = [*ASKED, {"type": "function_call", "name": "f"}, {"type": "function_call_output", "output": "ok"}]
ANTHROPIC = [*ASKED, {"role": "user", "content": [{"type": "tool_result", "content": "ok"}]}]


def test_headers_tell_the_tier_and_why_it_is_a_fallback() -> None:
    """An answer that is not a decision has no id and says why."""
    expected = {"x-classifier-tier": "complex", "x-classifier-fallback": "CIRCUIT_OPEN"}
    assert headers_of(Answer(Tier.COMPLEX, None, "CIRCUIT_OPEN")) == expected


@pytest.mark.parametrize("trusted", [{}, {"data": "restricted"}, {"data": "public"}], ids=str)
@pytest.mark.parametrize("asked", [{}, {"data": "restricted"}, {"data": "public"}], ids=str)
@pytest.mark.parametrize("header", ["", "restricted", "Restricted ", "public"], ids=str)
@pytest.mark.parametrize("again", ["", "restricted", "public"], ids=str)
@pytest.mark.parametrize(
    "sent", [lambda *values: values, lambda *values: (", ".join(values),)], ids=["twice", "joined"]
)
def test_restricted_once_is_restricted(trusted: dict, asked: dict, header: str, again: str, sent: Callable) -> None:
    """Whoever says `restricted`, nobody can take it back: not a header that is sent again, nor one that is joined."""
    said = [trusted.get("data", ""), asked.get("data", ""), header, again]
    expected = any(value.strip().lower() == "restricted" for value in said)
    assert is_restricted(labels_of(asked, trusted, sent=sent(header, again))) is expected


@pytest.mark.parametrize("loop", [OPENAI, ANTHROPIC, RESPONSES], ids=["openai", "anthropic", "responses"])
def test_a_tool_loop_is_recognised_by_what_began_it(loop: list) -> None:
    """Every request of a loop has the name of the one that began it; other callers and other words have another."""
    assert tool_loop(loop, "key") == loop_start(ASKED, "key") != ""
    assert tool_loop(loop, "other") != loop_start(ASKED, "key")
    assert tool_loop([*loop, {"role": "user", "content": "thanks"}], "key") == ""


def test_a_result_that_stands_alone_is_in_the_loop_of_its_call() -> None:
    """Behind a `previous_response_id` nothing else is sent: the provider's name of the call tells the loop."""
    alone = [{"type": "function_call_output", "call_id": "call_1", "output": "ok"}]
    assert tool_loop(alone, "key") == call_name("call_1", "key") != call_name("call_1", "other")
    assert (loop_start(alone, "key"), tool_loop([{"type": "function_call_output"}], "key")) == ("", "")


def text(kind: str = "text", **more: object) -> dict:
    """A user's message of one part."""
    return {"role": "user", "content": [{"type": kind, "text": "refactor it", **more}]}


CACHED = {"cache_control": {"type": "ephemeral"}}
RESULT = {"type": "tool_result", "content": "ok"}


@pytest.mark.parametrize(
    "step",
    [
        [text(), {"role": "user", "content": [RESULT]}],
        [text(**CACHED), {"role": "user", "content": [RESULT]}],
        [ASKED[0] | CACHED, {"role": "user", "content": [RESULT | CACHED]}],
        [text("input_text"), {"type": "function_call_output", "output": "ok"}],
    ],
    ids=["one part", "breakpoint", "moved", "responses"],
)
@pytest.mark.parametrize("start", [ASKED, "refactor it", [text(**CACHED)]], ids=["text", "input", "breakpoint"])
def test_a_loop_is_the_same_however_its_words_are_sent(start: object, step: list) -> None:
    """Agents move the breakpoint of Anthropic's cache from step to step, and send a text as its one part."""
    assert tool_loop(step, "key") == loop_start(start, "key") != ""


def test_breakpoints_inside_of_results_are_no_difference() -> None:
    """Results that lie before the user's last words are plain, too."""

    def name(**more: object) -> str:
        result = RESULT | {"content": [{"type": "text", "text": "ok", **more}]}
        return loop_start([*ASKED, {"role": "user", "content": [result]}, {"role": "user", "content": "go on"}])

    assert name() == name(**CACHED) != loop_start(ASKED)


def test_what_is_nested_too_deep_is_in_no_loop() -> None:
    """A body that json cannot write again is no fault of the request."""
    content: list = []
    for _ in range(100_000):
        content = [{"content": content}]
    assert loop_start([{"role": "user", "content": content}]) == ""


@pytest.mark.parametrize(
    "messages",
    [None, 5, [], [5], [{"role": "tool"}], [{"role": ["user"]}], [{"role": {}, "content": [{"type": [{}]}]}]],
    ids=str,
)
def test_what_is_no_conversation_is_in_no_loop(messages: object) -> None:
    """Odd shapes are in no loop and raise nothing."""
    assert tool_loop(messages) == ""
    assert loop_start(messages) == ""


def raised(name: str, status: int | None = None, base: type[Exception] = Exception) -> Exception:
    """An exception of that class's name, with a status where it has one."""
    error = type(name, (base,), {})()
    if status:
        error.status_code = status
    return error


@pytest.mark.parametrize("answered", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (raised("Timeout"), Cause.AVAILABILITY),
        (raised("RateLimitError", 429), Cause.AVAILABILITY),
        (raised("BadRequestError", 400), Cause.AVAILABILITY),
        (raised("HTTPException", 429), Cause.AVAILABILITY),
        (raised("HTTPException", 502), Cause.AVAILABILITY),
        (raised("ProxyModelNotFoundError", 400, type(raised("HTTPException"))), Cause.AVAILABILITY),
        (raised("ContextWindowExceededError", 400), Cause.CONTEXT_WINDOW),
        (raised("ContentPolicyViolationError", 400), Cause.POLICY),
        (raised("HTTPException", 499), None),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "a fault, no judgement"), Cause.AVAILABILITY),
    ],
    ids=lambda value: type(value).__name__ + str(getattr(value, "status_code", "")),
)
def test_what_follows_from_a_provider_is_never_quality(error: Exception, cause: Cause | None, answered: bool) -> None:
    """A timeout, a limit, a full context, a refusal: says nothing of complexity; a caller who left says nothing."""
    assert cause_of_exception(error, answered=answered) is cause


@pytest.mark.parametrize(
    "error",
    [
        raised("GuardrailRaisedException"),
        raised("BlockedPiiEntityError"),
        raised("ModifyResponseException"),
        raised("HTTPException", 400),
        raised("HTTPException", 422),
        ValueError("Guardrail failed"),
    ],
    ids=lambda value: type(value).__name__ + str(getattr(value, "status_code", "")),
)
def test_a_guardrails_word_is_about_the_answer_where_there_is_one(error: Exception) -> None:
    """After an answer it is QUALITY, before one POLICY."""
    found = [cause_of_exception(error, answered=answered) for answered in (True, False)]
    assert found == [Cause.QUALITY, Cause.POLICY]


def test_statuses_of_an_outage() -> None:
    """Timeouts, rate limits and provider errors are outages; refusals of the request are not."""
    assert [s for s in ("200", "400", "404", "408", "429", "500", "503", "") if is_outage(s)] == [
        "408",
        "429",
        "500",
        "503",
    ]


def test_a_model_of_two_tiers_counts_as_the_cheaper() -> None:
    """An escalation to a model that serves both tiers is one to the cheaper of them."""
    routes = {tier: {"model": model} for tier, model in (("simple", "a"), ("complex", "b"), ("frontier", "b"))}
    table = table_of({"routes": routes}, "routes")
    assert (tier_of_model(table, "b"), tier_of_model(table, "c")) == (Tier.COMPLEX, None)


def test_a_switch_is_off_only_where_it_says_so() -> None:
    """An unknown word does not opt out."""
    assert [v for v in ("off", "OFF", "false", "0", False, "on", "", None, 0.0) if is_off(v)] == [
        "off",
        "OFF",
        "false",
        "0",
        False,
    ]


def test_the_oldest_is_forgotten() -> None:
    """What is remembered is bounded."""
    kept: Remembered[int] = Remembered(2)
    for number, name in enumerate(("a", "b", "a", "c")):
        kept.put(name, number)
    assert [kept.get(name) for name in "abc"] == [2, None, 3]
