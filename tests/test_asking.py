"""Asking for the tier of a chat body: always an answer, and a restricted request never leaves the premises."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifier import AsyncClient, wire
from classifier.errors import NoAllowedRoute
from classifier.gateways.asking import Asker
from classifier.gateways.chat import labels_of
from classifier.policy import Policy, decide
from classifier.routing import RoutingTable, is_restricted
from classifier.types import Decision, Reason, Tier
from tests.test_routing import MIXED, WIDENING, probabilities, table_of, tables

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
SECRET = {"data": "restricted"}
CODES = st.sampled_from(
    [getattr(grpc.StatusCode, name) for name in ["UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "INTERNAL"]]
)


async def answered(came, table, body=CHAT, labels=SECRET, *, fallback_tier=Tier.COMPLEX, floor=None):
    """The answer of an asker whose server does what `came` does."""

    async def classify(message, **_):
        await asyncio.sleep(0)
        found = came(message) if callable(came) else came
        if isinstance(found, Exception):
            raise found
        if isinstance(found, grpc.StatusCode):
            raise grpc.aio.AioRpcError(found, grpc.aio.Metadata(), grpc.aio.Metadata())
        return found

    async with AsyncClient("unix:/nowhere", fallback_tier=fallback_tier, routes=table) as client:
        client._connect = lambda: SimpleNamespace(Classify=classify)
        return await Asker(client, fallback_tier).ask(body, labels, floor=floor)


def decision(tier, route=""):
    return Decision(tier, (0.25,) * 4, tier, Reason.MODEL, "p", 0.5, True, route=route)


@pytest.mark.parametrize(
    ("came", "body", "expected"),
    [
        (wire.decision_to_proto(decision(Tier.SIMPLE)), CHAT, (Tier.SIMPLE, "")),
        (grpc.StatusCode.DEADLINE_EXCEEDED, CHAT, (Tier.COMPLEX, "DEADLINE_EXCEEDED")),
        (grpc.StatusCode.UNAVAILABLE, CHAT, (Tier.COMPLEX, "UNAVAILABLE")),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, CHAT, (Tier.COMPLEX, "RESOURCE_EXHAUSTED")),
        (grpc.StatusCode.INTERNAL, CHAT, (Tier.COMPLEX, "INTERNAL")),
        (KeyError("a fault of ours"), CHAT, (Tier.COMPLEX, "INTERNAL")),
        (None, {"messages": 5}, (Tier.COMPLEX, "INVALID_ARGUMENT")),
        (None, {"messages": [{"role": "user", "content": "a\0b"}]}, (Tier.COMPLEX, "INVALID_ARGUMENT")),
    ],
    ids=["answer", "slow", "down", "overloaded", "server-bug", "own-bug", "no-chat", "bad-text"],
)
async def test_there_is_always_an_answer(came, body, expected):
    """Slow, down, overloaded, broken or asked what it cannot read: the fallback tier, and why."""
    found = await answered(came, None, body, {})
    assert (found.tier, found.fallback) == expected


@pytest.mark.parametrize("text", ['{"a":' * 2000, '{"a": ' + "9" * 5000 + "}"], ids=["nested", "number"])
@pytest.mark.parametrize("key", ["messages", "input"])
async def test_a_text_that_looks_like_json_is_a_text(key, text):
    """What a user writes is never read as anything but text, so that no text fails a request."""
    body = {key: [{"role": "user", "content": text}] if key == "messages" else text}
    found = await answered(wire.decision_to_proto(decision(Tier.SIMPLE)), None, body, {})
    assert (found.tier, found.fallback) == (Tier.SIMPLE, "")


async def test_a_text_of_json_counts_whole_for_the_context_window():
    """A conversation is as long as its texts, those of JSON, too."""
    chat = {"messages": [{"role": "user", "content": '{"role": "' + "x" * 300_000 + '"}'}]}
    assert (await answered(KeyError("ours"), WIDENING, chat, {})).route == "wide"


async def test_a_long_conversation_falls_back_to_a_route_that_is_wide_enough():
    """Routes whose context window is too small are passed over without an answer of the server, too."""
    for content, model in (("hi", "narrow"), ("x" * 300_000, "wide")):
        chat = {"messages": [{"role": "user", "content": content}]}
        assert (await answered(grpc.StatusCode.UNAVAILABLE, WIDENING, chat, {})).route == model
        assert (await answered(KeyError("ours"), WIDENING, chat, {})).route == model


@pytest.mark.parametrize("name", ["system", "instructions"])
async def test_a_long_system_prompt_falls_back_to_a_route_that_is_wide_enough(name):
    """What the model is told counts for its context window, wherever a body has it, and also of one that is no chat."""
    body = {name: "x" * 300_000, "input": [{"role": "user", "content": "hi\0"}]}
    assert (await answered(None, WIDENING, body, {})).route == "wide"


async def test_a_floor_does_not_refuse_what_may_be_served_below_it():
    """A restricted request with a floor above every route on premises is asked for again without the floor."""
    floors = []

    def served(message):
        floors.append(message.floor)
        return wire.decision_to_proto(decision(max(Tier(message.floor or 1), Tier.SIMPLE)))

    found = await answered(served, MIXED, floor=Tier.FRONTIER)
    assert (floors, found.route) == ([Tier.FRONTIER, 0], "simple-0-p")


async def test_without_any_table_a_restricted_request_is_refused():
    """An answer that names no route is no word that something is on premises; a route of the server's table is."""
    with pytest.raises(NoAllowedRoute, match="no route is known to be on premises"):
        await answered(wire.decision_to_proto(decision(Tier.SIMPLE)), None)
    found = await answered(wire.decision_to_proto(decision(Tier.SIMPLE, "home")), None)
    assert found.route == "home"


@given(
    table=tables,
    p=probabilities,
    draw=st.none() | st.floats(0, 1, exclude_max=True),
    threshold=st.floats(0, 1),
    failure=st.none() | CODES | st.just(KeyError("x")),
    fallback=st.sampled_from(Tier),
    floor=st.none() | st.sampled_from(Tier),
    key=st.sampled_from([None, {}, {"data": "Restricted "}, {"data": "public"}]),
    asked=st.sampled_from([None, {}, SECRET, {"DATA": "restricted"}]),
    header=st.sampled_from([None, "restricted", "public"]),
    body=st.sampled_from(
        [CHAT, {}, {"messages": 5}, {"input": "hi"}, {"messages": [{"role": "user", "content": "\0"}]}]
    ),
)
def test_whatever_happens_a_restricted_request_stays_on_premises(
    table: RoutingTable, p, draw, threshold, failure, fallback, floor, key, asked, header, body
):
    """Any table, probabilities, exploration, floor, failure, body and way to say it: on premises, or refused.

    A request that is not restricted always gets an answer.
    """
    labels = labels_of(asked, key, sent=[header])
    served = decide(p, Policy(name="p", threshold=threshold, epsilon=0.5), floor=floor, draw=draw)
    came = failure or wire.decision_to_proto(served)
    try:
        found = asyncio.run(answered(came, table, body, labels, fallback_tier=fallback, floor=floor))
    except NoAllowedRoute:
        assert is_restricted(labels)
        assert not any(route.on_premises for route in table)
        return
    if is_restricted(labels):
        assert found.route in {route.model for route in table if route.on_premises}


def test_a_table_in_the_cloud_refuses_restricted_requests_in_every_failure():
    """Where nothing is on premises a restricted request is refused, whatever the server does."""
    for came in (grpc.StatusCode.UNAVAILABLE, KeyError("x"), wire.decision_to_proto(decision(Tier.SIMPLE, "c"))):
        with pytest.raises(NoAllowedRoute):
            asyncio.run(answered(came, table_of(simple="c", frontier="c")))
