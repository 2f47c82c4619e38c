"""What the hook reports: judgements are QUALITY, what follows an exception is not, a plain success is no verdict."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from classifier.types import Cause, Tier, Verdict
from tests.gateways.support import BAD, GOOD, until

if TYPE_CHECKING:
    from tests.gateways.litellm_proxy import Proxy

ID = "x-classifier-decision-id"
SERVED = "x-classifier-served-tier"
AVAILABILITY = (Verdict.REJECTED, Cause.AVAILABILITY, Tier.SIMPLE, None)


@pytest.mark.failure("wrong tier", "LiteLLM hook")
def test_a_validator_escalates(proxy: Proxy) -> None:
    """A bad answer is asked again a tier higher: the caller gets the good one, the store a QUALITY escalation."""
    status, headers, body = proxy.ask("a hard one")
    assert (status, body["choices"][0]["message"]["content"]) == (200, GOOD)
    assert proxy.upstream.models()[-2:] == ["small", "medium"]
    assert (headers["x-classifier-tier"], headers[SERVED]) == ("simple", "standard")
    assert proxy.outcomes(headers[ID]) == [(Verdict.ESCALATED, Cause.QUALITY, Tier.SIMPLE, Tier.STANDARD)]


def test_the_same_request_is_asked_again(proxy: Proxy) -> None:
    """Whatever its caller asked for, the higher tier is asked for too; only the model is another."""
    tool = {"type": "function", "function": {"name": "run", "parameters": {"type": "object", "properties": {}}}}
    sent = {"tools": [tool], "parallel_tool_calls": False, "logprobs": True, "top_logprobs": 2, "presence_penalty": 0.5}
    sent |= {"extra_body": {"chat_template_kwargs": {"thinking": False}}, "own": 1, "stop": ["END"], "num_retries": 1}
    proxy.ask("a hard one", fallbacks=["spare"], metadata={"a": "b"}, **sent)
    first, second = ({k: v for k, v in body.items() if k != "headers"} for body in proxy.upstream.seen[-2:])
    assert second == first | {"model": "medium"}
    assert {"parallel_tool_calls", "top_logprobs", "presence_penalty", "chat_template_kwargs", "own"} <= second.keys()


def test_a_validators_yes_is_accepted(proxy: Proxy) -> None:
    """A good answer that was judged is ACCEPTED."""
    _, headers, _ = proxy.ask("an email")
    assert proxy.outcomes(headers[ID]) == [(Verdict.ACCEPTED, Cause.QUALITY, Tier.STANDARD, None)]


def test_an_answer_of_another_shape_is_judged_and_not_asked_again(proxy: Proxy) -> None:
    """A caller of Anthropic's messages gets a message, never the chat completion of a higher tier."""
    seen = len(proxy.upstream.seen)
    body = {"model": "auto", "max_tokens": 9, "messages": [{"role": "user", "content": "a hard one"}]}
    status, headers, answer = proxy.send(body, "/v1/messages")
    assert (status, answer["type"], answer["content"][0]["text"]) == (200, "message", BAD)
    assert proxy.upstream.models()[seen:] == ["small"]
    assert proxy.outcomes(headers[ID]) == [(Verdict.REJECTED, Cause.QUALITY, Tier.SIMPLE, None)]


def test_a_call_id_that_is_given_twice_is_two_requests(proxy: Proxy) -> None:
    """A caller may choose LiteLLM's call id, and twice the same: each request has its own decision and outcome."""
    asked = [proxy.ask("an email", headers={"x-litellm-call-id": "same"})[1][ID] for _ in range(2)]
    assert len(set(asked)) == 2
    for decision_id in asked:
        assert proxy.outcomes(decision_id) == [(Verdict.ACCEPTED, Cause.QUALITY, Tier.STANDARD, None)]


def test_a_plain_success_is_no_verdict(proxy: Proxy) -> None:
    """Where no judge has an opinion, nothing is reported; a bad answer then stays as it is."""
    _, headers, body = proxy.ask("an unjudged hard one")
    assert body["choices"][0]["message"]["content"] == BAD
    _, after, _ = proxy.ask("another email")
    proxy.outcomes(after[ID])  # outcomes are sent in order: this one's would have come before
    assert proxy.reported(headers[ID]) == []


def stream_of(path: str, prompt: str) -> dict[str, Any]:
    """A body that asks for a stream, as the path takes it."""
    said = {"input": prompt} if path.endswith("/responses") else {"messages": [{"role": "user", "content": prompt}]}
    return {"model": "auto", "stream": True, **said, **({"max_tokens": 9} if path.endswith("/messages") else {})}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
@pytest.mark.parametrize(
    ("prompt", "verdict"), [("hard", Verdict.REJECTED), ("easy", Verdict.ACCEPTED)], ids=["bad", "good"]
)
def test_a_stream_is_judged_when_it_has_ended(proxy: Proxy, path: str, prompt: str, verdict: Verdict) -> None:
    """A validator's word on a whole stream is QUALITY, without an escalation."""
    _, headers, _ = proxy.send(stream_of(path, prompt), path)
    assert proxy.outcomes(headers[ID]) == [(verdict, Cause.QUALITY, Tier.SIMPLE, None)]


def test_a_stream_that_nobody_judges_is_no_verdict(proxy: Proxy) -> None:
    """A stream that simply ends reports nothing."""
    _, headers, _ = proxy.ask("unjudged", stream=True)
    _, after, _ = proxy.ask("one more email")
    proxy.outcomes(after[ID])
    assert proxy.reported(headers[ID]) == []


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_a_stream_whose_caller_leaves_is_not_judged(proxy: Proxy, path: str) -> None:
    """Half an answer, which LiteLLM calls a success, is no answer that a judge could speak of."""
    proxy.upstream.left.clear()
    with proxy.upstream.ill("stuck", "small"):
        _, headers = proxy.send_each(stream_of(path, "easy"), path=path)
        assert proxy.upstream.left.wait(60)
    _, after, _ = proxy.send(stream_of(path, "an easy one"), path)
    proxy.outcomes(after[ID])  # LiteLLM tells of streams in order
    assert proxy.reported(headers[ID]) == []


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
def test_a_stream_that_breaks_off_is_availability(proxy: Proxy, path: str) -> None:
    """The provider fails in the middle: that is an outage and no judgement of what had come."""
    with proxy.upstream.ill("broken off", "small", "spare"):
        _, headers, _ = proxy.send(stream_of(path, "easy"), path)
    assert proxy.outcomes(headers[ID]) == [AVAILABILITY]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("kind", ["by-status", "by-name", "by-value"])
def test_a_guardrails_no_to_an_answer_is_quality(proxy: Proxy, kind: str, stream: bool) -> None:
    """A guardrail that turns an answer down judged it, whatever class of exception it raises."""
    _, headers, _ = proxy.ask(f"unjudged bad answer {kind}", stream=stream)
    assert proxy.outcomes(headers[ID]) == [(Verdict.REJECTED, Cause.QUALITY, Tier.SIMPLE, None)]


@pytest.mark.parametrize("kind", ["by-status", "by-name", "by-value"])
def test_a_guardrails_no_to_a_request_is_not_quality(proxy: Proxy, kind: str) -> None:
    """A guardrail that turns a request down says nothing of an answer: nobody is asked, POLICY at most."""
    seen = len(proxy.upstream.seen)
    status, headers, _ = proxy.ask(f"unjudged bad request {kind}")
    assert (status >= 400, len(proxy.upstream.seen)) == (True, seen)
    if ID in headers:  # the hook came before the guardrail
        assert proxy.outcomes(headers[ID]) == [(Verdict.REJECTED, Cause.POLICY, Tier.SIMPLE, None)]


def test_an_escalated_answer_passes_the_guardrails_too(proxy: Proxy) -> None:
    """What a higher tier says is shown to the guardrails; where they turn it down, the answer before stands."""
    status, headers, body = proxy.ask("a hard one, only the cheap answer passes")
    assert (status, body["choices"][0]["message"]["content"]) == (200, BAD)
    assert proxy.upstream.models()[-2:] == ["small", "medium"]
    assert proxy.outcomes(headers[ID]) == [(Verdict.REJECTED, Cause.QUALITY, Tier.SIMPLE, None)]


@pytest.mark.parametrize("what", ["unavailable", "limited"])
def test_an_outage_that_a_retry_mends_is_availability(proxy: Proxy, what: str) -> None:
    """A first attempt fails, `num_retries` mends it: the caller is served, the store has one AVAILABILITY."""
    seen = len(proxy.upstream.seen)
    with proxy.upstream.ill(what, "small", times=1):
        status, headers, _ = proxy.ask("unjudged", num_retries=2)
    assert (status, proxy.upstream.models()[seen:]) == (200, ["small", "small"])
    assert proxy.outcomes(headers[ID]) == [AVAILABILITY]


def test_attempts_of_one_request_are_one_outcome(proxy: Proxy) -> None:
    """Attempts, retries and a fallback of one outage count once."""
    with proxy.upstream.ill("unavailable", "small"):
        status, headers, _ = proxy.ask("unjudged", num_retries=2)
    assert (status, proxy.upstream.models()[-2:]) == (200, ["small", "spare"])
    _, after, _ = proxy.ask("and an email")
    proxy.outcomes(after[ID])
    assert proxy.reported(headers[ID]) == [AVAILABILITY]


def test_an_outage_that_a_fallback_mends_is_availability(proxy: Proxy) -> None:
    """The provider fails, LiteLLM falls back, the caller is served; the store has AVAILABILITY and no QUALITY."""
    with proxy.upstream.ill("unavailable", "medium"):
        status, headers, _ = proxy.ask("an unjudged email")
    assert (status, proxy.upstream.models()[-1]) == (200, "large")
    assert proxy.outcomes(headers[ID]) == [(Verdict.REJECTED, Cause.AVAILABILITY, Tier.STANDARD, None)]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("ill", "served"), [(["medium"], Tier.COMPLEX), (["medium", "large"], Tier.FRONTIER)])
def test_a_fallback_is_judged_as_the_tier_that_it_is_of(
    proxy: Proxy, ill: list[str], served: Tier, stream: bool
) -> None:
    """A good answer of another tier's model, a fallback's fallback too, is that tier's, not the one's that was out."""
    with proxy.upstream.ill("unavailable", *ill):
        _, headers, _ = proxy.ask("an email", stream=stream)
    assert headers[SERVED] == served.label
    until(lambda: len(proxy.reported(headers[ID])) == 2)
    assert set(proxy.reported(headers[ID])) == {
        (Verdict.REJECTED, Cause.AVAILABILITY, Tier.STANDARD, None),
        (Verdict.ACCEPTED, Cause.QUALITY, served, None),
    }


@pytest.mark.parametrize("prompt", ["easy", "bad answer by-status"], ids=["validator", "guardrail"])
def test_a_fallback_of_no_tier_is_not_judged(proxy: Proxy, prompt: str) -> None:
    """What a model answers that the table does not name is no label of any tier, whoever judges it."""
    with proxy.upstream.ill("unavailable", "small"):
        _, headers, _ = proxy.ask(prompt)
    assert headers[SERVED] == "none"
    _, after, _ = proxy.ask("one more email, after a fallback")
    proxy.outcomes(after[ID])
    assert proxy.reported(headers[ID]) == [AVAILABILITY]


def test_an_outage_whose_fallback_fails_too_is_availability(proxy: Proxy) -> None:
    """Both models fail: the caller sees it, the store has one AVAILABILITY."""
    with proxy.upstream.ill("unavailable", "small", "spare"):
        status, headers, _ = proxy.ask("unjudged")
    assert status >= 500
    assert proxy.outcomes(headers[ID]) == [AVAILABILITY]


def test_an_outage_that_nobody_mends_is_availability(proxy: Proxy) -> None:
    """The provider fails and there is no fallback: the caller sees it, the store has AVAILABILITY."""
    with proxy.upstream.ill("unavailable", "huge"):
        status, headers, _ = proxy.ask("prove it, unjudged")
    assert status >= 500
    [(verdict, cause, *_)] = proxy.outcomes(headers[ID])
    assert (verdict, cause) == (Verdict.REJECTED, Cause.AVAILABILITY)


def test_a_judge_is_heard_after_an_outage(proxy: Proxy) -> None:
    """An outage that was mended and a judgement of the answer are two outcomes with two causes."""
    with proxy.upstream.ill("unavailable", "medium", times=1):
        _, headers, _ = proxy.ask("an email", num_retries=1)
    until(lambda: len(proxy.reported(headers[ID])) == 2)
    found = {(verdict, cause) for verdict, cause, *_ in proxy.reported(headers[ID])}
    assert found == {(Verdict.REJECTED, Cause.AVAILABILITY), (Verdict.ACCEPTED, Cause.QUALITY)}


def test_a_full_context_is_context_window(proxy: Proxy) -> None:
    """The provider's context is too small, LiteLLM falls back to a wider model: CONTEXT_WINDOW and no QUALITY."""
    with proxy.upstream.ill("too long", "small"):
        status, headers, _ = proxy.ask("unjudged")
    assert (status, proxy.upstream.models()[-1]) == (200, "large")
    [(_, cause, served, _)] = proxy.outcomes(headers[ID])
    assert (cause, served) == (Cause.CONTEXT_WINDOW, Tier.SIMPLE)


@pytest.mark.failure("no feedback store", "LiteLLM hook")
def test_an_outcome_waits_for_the_store(proxy: Proxy) -> None:
    """While the store is locked requests are answered; what was judged arrives when it is free."""
    with proxy.classifier.locked():
        status, headers, _ = proxy.ask("an email")
        assert (status, proxy.reported(headers[ID])) == (200, [])
    assert proxy.outcomes(headers[ID]) == [(Verdict.ACCEPTED, Cause.QUALITY, Tier.STANDARD, None)]


def by_client(proxy: Proxy, decision_id: str) -> None:
    from classifier import Client, Outcome
    from classifier.types import Source

    outcome = Outcome(decision_id, "said", Verdict.REJECTED, Cause.QUALITY, Source.USER, Tier.SIMPLE)
    with Client(proxy.classifier.address) as client:
        client.report_outcome(outcome, timeout_seconds=30)


def by_hook(proxy: Proxy, decision_id: str) -> None:
    from classifier.gateways.litellm import ClassifierHook

    async def say() -> None:
        hook = ClassifierHook(proxy.classifier.address, routes=proxy.folder / "routing.toml")
        await asyncio.to_thread(hook.feedback, decision_id, Tier.SIMPLE, accepted=False)
        await hook.close()

    asyncio.run(say())


def test_a_person_may_say_something_else(proxy: Proxy) -> None:
    """A second word is kept beside the first, the same word again is not, and the latest is the one that counts."""
    from classifier.gateways.litellm import ClassifierHook

    _, headers, _ = proxy.ask("unjudged, and then judged twice")

    async def say() -> None:
        hook = ClassifierHook(proxy.classifier.address, routes=proxy.folder / "routing.toml")
        for accepted in (True, True, False):
            hook.feedback(headers[ID], Tier.SIMPLE, accepted=accepted)
        await hook.close()

    asyncio.run(say())
    until(lambda: len(proxy.reported(headers[ID])) == 2)
    assert {verdict for verdict, *_ in proxy.reported(headers[ID])} == {Verdict.ACCEPTED, Verdict.REJECTED}


@pytest.mark.parametrize("say", [by_client, by_hook])
def test_what_a_person_says_comes_later(proxy: Proxy, say: Callable[[Proxy, str], None]) -> None:
    """The id in the headers is enough to report what a user said, whoever reports it, from whatever thread."""
    _, headers, _ = proxy.ask("unjudged")
    say(proxy, headers[ID])
    assert proxy.outcomes(headers[ID]) == [(Verdict.REJECTED, Cause.QUALITY, Tier.SIMPLE, None)]
