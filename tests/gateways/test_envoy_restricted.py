"""The processor by itself: a restricted request never leaves the premises, whatever else is said and whatever fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from envoy.config.core.v3 import base_pb2 as core
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from hypothesis import given, settings
from hypothesis import strategies as st

from classifier import AsyncClient, wire
from classifier.gateways.ext_proc import ExtProcSettings, Processor, _is_chat
from classifier.routing import RoutingTable
from classifier.types import Decision, Reason, Tier
from tests.gateways.restricted import comings, tables, tier_of

CHAT = json.dumps({"messages": [{"role": "user", "content": "hi"}]}).encode()


async def processed(
    table: RoutingTable | None, came: Any, fallback: Tier, sent: Sequence[tuple[str, str]], body: bytes
) -> Any:
    """What the processor answers to the parts of a request, the last one."""

    async def classify(_: Any, **__: Any) -> Any:
        await asyncio.sleep(0)
        tier = tier_of(came)
        return wire.decision_to_proto(Decision(tier, (0.25,) * 4, tier, Reason.MODEL, "p", 0.5, True))

    headers = [core.HeaderValue(key=name, raw_value=value.encode()) for name, value in sent]

    async def parts() -> AsyncIterator[Any]:
        yield pb.ProcessingRequest(
            request_headers=pb.HttpHeaders(headers=core.HeaderMap(headers=headers), end_of_stream=not body)
        )
        if body:
            yield pb.ProcessingRequest(request_body=pb.HttpBody(body=body, end_of_stream=True))

    told = ExtProcSettings(fallback_tier=fallback, max_request_bytes=1024)
    async with AsyncClient("unix:/nowhere", fallback_tier=fallback, routes=table) as client:
        client._connect = lambda: SimpleNamespace(Classify=classify)
        answers = [answer async for answer in Processor(client, told).Process(parts(), None)]
    return answers[-1]


@settings(deadline=None, max_examples=200)
@given(
    table=st.none() | tables,
    came=comings,
    fallback=st.sampled_from(Tier),
    path=st.sampled_from(
        ["/v1/chat/completions", "/v1/messages?beta=1", "/v1/embeddings", "/v1/threads/t/messages", "/"]
    ),
    words=st.sampled_from(
        [("restricted",), ("Restricted ",), ("restricted", "public"), ("public", "restricted"), ("public, restricted",)]
    ),
    switch=st.sampled_from(["off", "on"]),
    body=st.sampled_from([CHAT, b"{not json", b"[]", CHAT[:-1] + b" " * 2000 + b"}"]),
)
def test_a_restricted_request_gets_a_model_on_premises_or_is_refused(
    table: RoutingTable | None,
    came: Any,
    fallback: Tier,
    path: str,
    words: Sequence[str],
    switch: str,
    body: bytes,
) -> None:
    """Any table or none, decision, failure, fallback tier, path and body, also beside words that say otherwise."""
    sent = [(":method", "POST"), (":path", path), ("x-classifier", switch)]
    sent += [("x-classifier-data", word) for word in words]
    answer = asyncio.run(processed(table, came, fallback, sent, body))
    if answer.WhichOneof("response") == "immediate_response":
        assert answer.immediate_response.status.code == 403
        return
    found = {h.header.key: h.header.raw_value.decode() for h in _headers_set(answer)}
    assert found["x-ai-eg-model"] in {route.model for route in table or () if route.on_premises}


def test_a_request_without_a_body_passes() -> None:
    """There is nothing in it that could leave: it is let through, restricted or not."""
    sent = [(":method", "GET"), (":path", "/v1/models"), ("x-classifier-data", "restricted")]
    answer = asyncio.run(processed(None, Tier.SIMPLE, Tier.COMPLEX, sent, b""))
    assert answer.WhichOneof("response") == "request_headers"


@pytest.mark.parametrize(
    ("path", "read"),
    [
        ("/v1/messages", True),
        ("/anthropic/v1/messages?beta=true", True),
        ("/v1/chat/completions/", True),
        ("/v1/threads/t/messages", False),
        ("/v1/messages/count_tokens", False),
    ],
)
def test_only_chats_are_read(path: str, read: bool) -> None:
    """A message that is put into a thread has a chat's path and is none: it passes as it is."""
    assert _is_chat({":method": "POST", ":path": path}) is read


def _headers_set(answer: Any) -> Any:
    return answer.request_body.response.header_mutation.set_headers
