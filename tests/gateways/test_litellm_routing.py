"""LiteLLM's proxy routes by the hook: to the model of the tier, unless a key or a request says otherwise."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.gateways.support import BAD, GOOD, chat, until

if TYPE_CHECKING:
    from tests.gateways.litellm_proxy import Proxy

MODELS = {"small": "simple", "medium": "standard", "large": "complex", "huge": "frontier"}
TOOLS = [{"type": "function", "function": {"name": "run", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"id": "1", "type": "function", "function": {"name": "run", "arguments": "{}"}}
RESTRICTED = {"x-classifier-data": "restricted"}


@pytest.mark.parametrize(
    ("prompt", "model"), [("hi", "small"), ("an email", "medium"), ("refactor it", "large"), ("prove it", "huge")]
)
def test_a_request_goes_to_the_model_of_its_tier(proxy: Proxy, prompt: str, model: str) -> None:
    """A request for `auto` is served by its tier's model, and the answer says tier and decision."""
    status, headers, body = proxy.ask(prompt)
    assert (status, proxy.upstream.models()[-1], headers["x-classifier-tier"]) == (200, model, MODELS[model])
    assert headers["x-classifier-decision-id"]
    assert body["choices"][0]["message"]["content"] == GOOD


@pytest.mark.parametrize(("prompt", "model"), [("hi", "large"), ("prove it", "huge")])
def test_nothing_is_routed_below_the_hooks_floor(proxy: Proxy, prompt: str, model: str) -> None:
    """A hook with a floor sends what is easier to the floor's model."""
    proxy.ask(f"{prompt}, unjudged", model="floored")
    assert proxy.upstream.models()[-1] == model


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages", {"max_tokens": 9, "messages": [{"role": "user", "content": "prove it"}]}),
        ("/v1/responses", {"input": "prove it"}),
    ],
    ids=["messages", "responses"],
)
def test_other_shapes_of_a_chat_are_routed_too(proxy: Proxy, path: str, body: dict[str, Any]) -> None:
    """Anthropic's messages and OpenAI's responses go to their tier's model as well."""
    status, headers, _ = proxy.send({"model": "auto", **body}, path)
    assert (status, proxy.upstream.models()[-1], headers["x-classifier-tier"]) == (200, "huge", "frontier")


def test_a_stream_is_routed_and_says_so_in_its_headers(proxy: Proxy) -> None:
    """A stream comes from its tier's model, whole, and its headers say tier and decision."""
    status, headers, text = proxy.ask("an unjudged email", stream=True)
    assert (status, proxy.upstream.models()[-1], headers["x-classifier-tier"]) == (200, "medium", "standard")
    assert headers["x-classifier-decision-id"]
    assert "".join(_words(text)) == GOOD + " "


def test_a_stream_is_never_asked_again(proxy: Proxy) -> None:
    """Its caller has the bad answer already: it stays, and no higher tier is asked."""
    seen = len(proxy.upstream.seen)
    _, _, text = proxy.ask("a hard one", stream=True)
    assert ("".join(_words(text)), proxy.upstream.models()[seen:]) == (BAD + " ", ["small"])


@pytest.mark.parametrize(
    "asked",
    [
        {"headers": {"x-classifier": "off"}},
        {"metadata": {"classifier": "off"}},
        {"key": "opted-out"},
        {"key": "opted-out", "stream": True},
        {"model": "spare"},
    ],
    ids=["header", "metadata", "key", "key-stream", "other-model"],
)
def test_a_key_and_a_request_may_opt_out(proxy: Proxy, asked: dict[str, Any]) -> None:
    """With a word in the header, in the body's metadata or in the key's, or under another model: left alone."""
    status, headers, _ = proxy.ask("prove it", **asked)
    assert (status, proxy.upstream.models()[-1], "x-classifier-tier" in headers) == (
        200,
        asked.get("model", "auto"),
        False,
    )


@pytest.mark.parametrize(
    "asked",
    [
        {"headers": RESTRICTED},
        {"metadata": {"classifier_labels": {"data": "restricted"}}},
        {"key": "restricted"},
        {"key": "restricted-team"},
        {"key": "restricted", "metadata": {"classifier": "off", "classifier_labels": {"data": "public"}}},
        {"key": "restricted", "headers": {"x-classifier": "off", "x-classifier-data": "public"}},
        {"headers": RESTRICTED, "model": "huge"},
        {"headers": RESTRICTED, "model": "large"},
        {"headers": RESTRICTED, "model": "by-plugin"},
        {"headers": RESTRICTED, "stream": True},
        {"headers": RESTRICTED, "custom_llm_provider": "cohere"},
    ],
    ids=["header", "metadata", "key", "team", "holds", "holds-header", "named", "home", "plugin", "stream", "provider"],
)
def test_a_restricted_request_stays_on_premises(proxy: Proxy, asked: dict[str, Any]) -> None:
    """However it is said and whatever model is named, the one on premises answers; none can take it back or opt out."""
    status, _, _ = proxy.ask("prove it, unjudged", **asked)
    assert (status, proxy.upstream.models()[-1]) == (200, "large")


@pytest.mark.parametrize("words", [("restricted", "public"), ("public", "restricted"), ("public, restricted",)])
def test_a_header_that_is_sent_again_takes_nothing_back(proxy: Proxy, words: tuple[str, ...]) -> None:
    """Restricted in its first or last line, or in a list that a proxy made of them, is restricted."""
    sent = [("x-classifier-data", word) for word in words]
    assert (proxy.send_each(chat("hi, unjudged"), sent)[0], proxy.upstream.models()[-1]) == (200, "large")


@pytest.mark.parametrize("what", ["unavailable", "limited", "too long"])
def test_a_restricted_request_does_not_leave_in_an_outage(proxy: Proxy, what: str) -> None:
    """The proxy's fallbacks, those for full contexts and those that the caller sends are off for it."""
    seen = len(proxy.upstream.seen)
    sent = {"fallbacks": ["spare"], "context_window_fallbacks": [{"large": ["spare"]}]}
    with proxy.upstream.ill(what, "large"):
        status, _, _ = proxy.ask("hi, unjudged", headers=RESTRICTED, **sent)
    assert status >= 400
    assert set(proxy.upstream.models()[seen:]) == {"large"}


def test_a_restricted_request_does_not_leave_to_be_better_answered(proxy: Proxy) -> None:
    """Judged not good enough, it is asked again on premises only."""
    seen = len(proxy.upstream.seen)
    proxy.ask("a hard one", headers=RESTRICTED)
    assert set(proxy.upstream.models()[seen:]) == {"large"}


@pytest.mark.failure("no route", "LiteLLM hook")
def test_what_cannot_be_routed_is_refused_when_restricted(proxy: Proxy) -> None:
    """An embedding by a model that nobody called on premises is 403, and not asked for."""
    seen = len(proxy.upstream.seen)
    status, _, _ = proxy.send({"model": "spare", "input": "our own numbers"}, "/v1/embeddings", key="restricted")
    assert (status, len(proxy.upstream.seen)) == (403, seen)


@pytest.mark.parametrize(("key", "status"), [("restricted", 403), ("plain", 200)])
def test_what_is_passed_through_to_a_provider_is_refused_when_restricted(proxy: Proxy, key: str, status: int) -> None:
    """The provider's own path goes to the provider, also where it names a model on premises: 403 for a key's label."""
    seen = len(proxy.upstream.seen)
    body = {"model": "large", "max_tokens": 9, "messages": [{"role": "user", "content": "our own numbers"}]}
    found, _, _ = proxy.send(body, "/anthropic/v1/messages", key)
    assert (found, len(proxy.upstream.seen) - seen) == (status, 1 if status == 200 else 0)


def _loop(text: str) -> list[dict[str, Any]]:
    return [
        {"role": "user", "content": text},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "ok"},
    ]


@pytest.mark.parametrize(
    ("model", "tier"), [("auto", "complex"), ("forgetful", "simple")], ids=["sticky", "not-sticky"]
)
def test_a_tool_loop_never_gets_cheaper(proxy: Proxy, model: str, tier: str) -> None:
    """Where the hook is sticky a running loop keeps its tier, whatever the classifier says now; else it does not."""
    loop = _loop(f"refactor this for {model}")
    proxy.send(chat("", model) | {"messages": loop[:1], "tools": TOOLS})
    _, headers, _ = proxy.send(chat("", model) | {"messages": loop, "tools": TOOLS})
    assert headers["x-classifier-tier"] == tier


def test_a_tool_loop_may_get_dearer_and_stays_there(proxy: Proxy) -> None:
    """A result that needs more raises the loop's tier, and the next does not lower it."""
    loop = _loop("look at it")
    harder = [*loop[:2], loop[2] | {"content": "now prove it"}]
    again = [*harder, loop[1], loop[2]]
    answers = [
        proxy.send({"model": "auto", "messages": messages, "tools": TOOLS})[1] for messages in (loop, harder, again)
    ]
    assert [headers["x-classifier-tier"] for headers in answers] == ["simple", "frontier", "frontier"]


def test_a_tool_loop_of_another_key_is_another(proxy: Proxy) -> None:
    """The same words under another key do not inherit its tier."""
    loop = _loop("refactor what is shared")
    proxy.send({"model": "auto", "messages": loop[:1], "tools": TOOLS})
    _, headers, _ = proxy.send({"model": "auto", "messages": loop, "tools": TOOLS}, key="other")
    assert headers["x-classifier-tier"] == "simple"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_step_behind_a_previous_response_stays_in_its_loop(proxy: Proxy, stream: bool) -> None:
    """It brings a tool's result and no words, so nobody could classify it; a sticky hook knows its call."""
    tools = [{"type": "function", "name": "run", "parameters": {"type": "object", "properties": {}}}]
    body = {"model": "auto", "tools": tools, "stream": stream}
    told = [proxy.send(body | {"input": "an email"}, "/v1/responses")]
    assert told[-1][1]["x-classifier-tier"] == "standard"
    for _ in range(2):
        text = json.dumps(told[-1][2])
        call, response = re.search(r"call_\d+", text), re.search(r"resp_[\w=-]+", text)
        assert call
        assert response
        result = {"type": "function_call_output", "call_id": call[0], "output": "ok"}
        step = body | {"previous_response_id": response[0], "input": [result]}

        def continued(step: dict[str, Any] = step) -> bool:
            told.append(proxy.send(step, "/v1/responses"))
            return told[-1][1]["x-classifier-fallback"] == "CONTINUED"

        until(continued)  # the end of a stream is told of behind its back
        assert (told[-1][1]["x-classifier-tier"], proxy.upstream.models()[-1]) == ("standard", "medium")


def test_a_step_behind_a_previous_response_of_nobodys_gets_the_fallback_tier(proxy: Proxy) -> None:
    """A call that the hook never saw, such as another worker's, is a body that nobody can classify."""
    _, _, answer = proxy.send({"model": "auto", "input": "hi"}, "/v1/responses")
    result = {"type": "function_call_output", "call_id": "call_unseen", "output": "ok"}
    _, headers, _ = proxy.send(
        {"model": "auto", "previous_response_id": answer["id"], "input": [result]}, "/v1/responses"
    )
    assert (headers["x-classifier-tier"], headers["x-classifier-fallback"]) == ("complex", "INVALID_ARGUMENT")


def test_after_the_loop_a_request_is_free_again(proxy: Proxy) -> None:
    """New words of the user end the loop: they get their own tier."""
    loop = _loop("refactor that")
    proxy.send({"model": "auto", "messages": loop[:1], "tools": TOOLS})
    messages = [*loop, {"role": "assistant", "content": "Done."}, {"role": "user", "content": "thanks"}]
    _, headers, _ = proxy.send({"model": "auto", "messages": messages, "tools": TOOLS})
    assert headers["x-classifier-tier"] == "simple"


def test_the_complexity_router_asks_the_plugin(proxy: Proxy) -> None:
    """LiteLLM's own complexity router with `classifier_type: custom` routes by our tier."""
    for prompt, model in (("hi", "small"), ("prove that it halts", "huge")):
        status, _, _ = proxy.ask(prompt, model="by-plugin")
        assert (status, proxy.upstream.models()[-1]) == (200, model)


def _words(text: str) -> list[str]:
    """The words of a stream's events."""
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    return [choice["delta"].get("content") or "" for event in events for choice in event.get("choices", ())]
