"""The clients: deadline, retries, breaker, and the tier to fall back to."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import inspect
import json
import logging
import math
import socket
import struct
import subprocess
import sys
import threading
import time

import grpc
import pytest

from classifier import AsyncClient, Client, Outcome, Request, Tier, errors, wire
from classifier.client import SERVICE_CONFIG, Breaker
from classifier.errors import NoAllowedRoute
from classifier.gateways.litellm_plugin import ComplexityClassifier
from classifier.settings import MOST, ServerSettings
from classifier.testing import FakeEngine, fake_server
from classifier.types import Cause, OutcomeState, Source, Verdict
from classifier.v1 import classifier_pb2 as pb
from classifier.v1 import classifier_pb2_grpc as pb_grpc
from tests.serving_support import port_nobody_is_given, until

OUTCOME = Outcome("d", "o", Verdict.ACCEPTED, Cause.QUALITY, Source.USER, Tier.SIMPLE)


def by_word(request: Request) -> Tier:
    return next((tier for tier in Tier if tier.label in request.messages[-1].content), Tier.STANDARD)


@pytest.fixture(scope="module")
def address():
    with fake_server(tier_of=by_word) as found:
        yield found


@pytest.fixture(scope="module")
def nowhere():
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{free.getsockname()[1]}"


class Both:
    """The sync and the async client behind the same calls, so that each test holds for both."""

    def __init__(self, kind, *args, **kwargs):
        self.kind, self.args, self.kwargs = kind, args, kwargs

    def run(self, use):
        """Runs `use(client, call)` where call(method, ...) is a plain call on either client."""
        if self.kind == "sync":
            with Client(*self.args, **self.kwargs) as client:
                return use(client, lambda name, *a, **k: self._collect(getattr(client, name)(*a, **k)))

        with asyncio.Runner() as runner:

            async def make():
                return AsyncClient(*self.args, **self.kwargs)

            async def one(method, a, k):
                found = method(*a, **k)
                if hasattr(found, "__aiter__"):
                    return [answer async for answer in found]
                return await found

            client = runner.run(make())
            try:
                return use(client, lambda name, *a, **k: runner.run(one(getattr(client, name), a, k)))
            finally:
                runner.run(client.close())

    @staticmethod
    def _collect(found):
        return list(found) if hasattr(found, "__next__") else found


@pytest.fixture(params=["sync", "async"])
def client_of(request):
    return lambda *args, **kwargs: Both(request.param, *args, **kwargs)


def test_a_prompt_messages_or_a_request_are_classified(client_of, address):
    """Text, messages and requests are all taken, with the fields of a request beside them."""
    chat = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "complex"},
    ]

    def use(client, call):
        assert call("classify", "simple", timeout_seconds=60).tier is Tier.SIMPLE
        assert call("classify", chat, timeout_seconds=60).tier is Tier.COMPLEX
        assert call("classify", Request.from_text("frontier"), timeout_seconds=60).tier is Tier.FRONTIER
        raised = call("classify", "simple", floor=Tier.COMPLEX, timeout_seconds=60)
        assert (raised.tier, raised.decision.model_tier, raised.classified) == (Tier.COMPLEX, Tier.SIMPLE, True)
        assert client.coverage == 1

    client_of(address).run(use)


@pytest.mark.failure("down", "Python client")
def test_an_unreachable_server_means_the_callers_tier_and_says_so(client_of, nowhere):
    """With a fallback tier nothing is raised; the answer says that it is one and why."""

    def use(client, call):
        answer = call("classify", "x", timeout_seconds=60)
        assert (answer.tier, answer.classified, answer.decision) == (Tier.COMPLEX, False, None)
        assert answer.fallback == "UNAVAILABLE"
        assert (client.coverage, client.counts) == (0, {"UNAVAILABLE": 1})

    client_of(nowhere, fallback_tier=Tier.COMPLEX).run(use)


def test_without_a_fallback_the_error_is_raised(client_of, nowhere):
    """A client that was given no tier raises ServerUnreachable."""

    def use(client, call):
        with pytest.raises(errors.ServerUnreachable):
            call("classify", "x", timeout_seconds=60)

    client_of(nowhere).run(use)


def test_the_fallback_keeps_the_requests_own_bounds(client_of, nowhere):
    """A floor and a ceiling hold for the fallback as well."""

    def use(client, call):
        assert call("classify", "x", ceiling=Tier.STANDARD).tier is Tier.STANDARD
        assert call("classify", "x", floor=Tier.FRONTIER).tier is Tier.FRONTIER

    client_of(nowhere, fallback_tier=Tier.COMPLEX).run(use)


@pytest.mark.failure("slow", "Python client")
def test_a_late_server_means_the_fallback_within_the_deadline(client_of):
    """A call is over when its deadline is, also where the server would take for ever."""
    gate = threading.Event()
    with fake_server(engine=FakeEngine(on_score=lambda: gate.wait(60))) as address:

        def use(client, call):
            call("info", timeout_seconds=60)  # connects
            answer = call("classify", "x", timeout_seconds=0.1)
            assert not gate.is_set()
            assert answer.fallback == "DEADLINE_EXCEEDED"

        client_of(address, fallback_tier=Tier.STANDARD).run(use)
        gate.set()


@pytest.mark.failure("bad input", "Python client")
def test_a_request_that_the_server_refuses_falls_open_too(client_of, address):
    """A router must not be the outage: also an invalid request gets the fallback, with the reason."""

    def use(client, call):
        assert call("classify", "x", policy="nope", timeout_seconds=60).fallback == "INVALID_ARGUMENT"
        assert call("classify", "a\0b").fallback == "INVALID_ARGUMENT"
        assert call("classify", []).fallback == "INVALID_ARGUMENT"

    client_of(address, fallback_tier=Tier.STANDARD).run(use)


def test_a_message_that_grpc_does_not_take_is_an_invalid_request(client_of):
    """Above the transport's limit, too, no time to wait is named: the message is too large."""
    with fake_server(max_request_bytes=1024) as address:

        def use(client, call):
            for size in (2_000, 2_000_000):
                with pytest.raises(errors.InvalidRequest):
                    call("classify", "x" * size, timeout_seconds=60)

        def use_with_fallback(client, call):
            for size in (2_000, 2_000_000):
                assert call("classify", "x" * size, timeout_seconds=60).fallback == "INVALID_ARGUMENT"

        client_of(address).run(use)
        client_of(address, fallback_tier=Tier.COMPLEX).run(use_with_fallback)


def test_the_largest_limits_can_be_served(client_of):
    """The greatest numbers that settings take are no error of gRPC's."""
    most = {"max_request_bytes": MOST, "max_concurrent_calls": MOST, "max_messages": MOST, "max_batch_items": MOST}
    with fake_server(**most) as address:

        def use(client, call):
            assert call("info", timeout_seconds=60).limits.max_request_bytes == MOST

        client_of(address).run(use)


MISSHAPEN = {
    "parts": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    "no role": [{"content": "hi"}],
    "number": [{"role": "user", "content": 5}],
    "texts": ["hi"],
    "nothing": None,
    "bytes": b"hi",
}


@pytest.mark.failure("bad input", "Python client")
@pytest.mark.parametrize("conversation", MISSHAPEN.values(), ids=MISSHAPEN)
def test_a_conversation_of_another_shape_falls_open_too(client_of, address, conversation):
    """What is no conversation gets the fallback, alone, and the items around it their answers."""

    def use(client, call):
        assert call("classify", conversation).fallback == "INVALID_ARGUMENT"
        for method in ("classify_batch", "classify_stream"):
            found = call(method, ["simple", conversation, "frontier"])
            assert [(a.tier, a.classified) for a in found] == [
                (Tier.SIMPLE, True),
                (Tier.STANDARD, False),
                (Tier.FRONTIER, True),
            ]

    client_of(address, fallback_tier=Tier.STANDARD).run(use)


@pytest.mark.failure("bad input", "Python client")
@pytest.mark.parametrize(
    "fields",
    [
        {"labels": {"a": 1}},
        {"labels": ["a"]},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"tools": None},
        {"attachments": 1.5},
        {"floor": "complex"},
        {"ceiling": 9},
        {"policy": 3},
        {"record": "no"},
        {"record": 2**70},
        {"request_id": 17},
    ],
    ids=str,
)
def test_a_field_of_another_type_falls_open_too_and_is_named(client_of, nowhere, fields):
    """A field of a wrong type is an invalid request that names it, and with a fallback tier an answer."""

    def use(client, call):
        assert call("classify", "x", **fields).fallback == "INVALID_ARGUMENT"

    client_of(nowhere, fallback_tier=Tier.STANDARD).run(use)
    with pytest.raises(errors.InvalidRequest) as found:
        Request.from_text("x", **fields)
    assert [name for name, _ in found.value.violations] == list(fields)


@pytest.mark.parametrize(
    "labels",
    [{"data": "restricted", "attempt": 2}, {"data": ["restricted"]}, "data=restricted", [("data", "restricted")]],
    ids=str,
)
def test_a_request_of_another_shape_may_still_say_that_it_is_restricted(nowhere, labels):
    """Labels that are not all texts, or no labels by their shape, keep a restricted request on premises."""
    with Client(nowhere, fallback_tier=Tier.STANDARD) as client, pytest.raises(errors.NoAllowedRoute):
        client.classify("x", labels=labels)


@pytest.mark.failure("bad input", "Python client")
def test_the_servers_fields_at_fault_reach_the_caller(client_of, address):
    """Without a fallback the violations of the server are in the error."""

    def use(client, call):
        with pytest.raises(errors.InvalidRequest) as found:
            call("classify", "x", policy="nope", timeout_seconds=60)
        assert found.value.violations[0][0] == "policy"

    client_of(address).run(use)


def test_a_batch_and_a_stream_answer_in_order_and_alone(client_of, address):
    """Each item is answered or falls back alone, in its place, also one that was never sent."""

    def use(client, call):
        texts = ["simple", "a\0b", "frontier"]
        expected = [(Tier.SIMPLE, ""), (Tier.STANDARD, "INVALID_ARGUMENT"), (Tier.FRONTIER, "")]
        assert [(a.tier, a.fallback) for a in call("classify_batch", texts)] == expected
        assert [(a.tier, a.fallback) for a in call("classify_stream", texts)] == expected
        assert call("classify_batch", []) == []

    client_of(address, fallback_tier=Tier.STANDARD).run(use)


def test_what_is_wrong_with_an_item_is_told_where_there_is_no_fallback(client_of, address):
    """The field at fault is named, as for a call of its own, and not what the server says of what was sent instead."""

    def use(client, call):
        for method in ("classify_batch", "classify_stream"):
            with pytest.raises(errors.InvalidRequest) as found:
                call(method, ["a\0b"])
            assert [name for name, _ in found.value.violations] == ["messages[0].content"]

    client_of(address).run(use)


def test_what_the_server_says_of_an_item_is_what_it_says_of_a_call(client_of, address):
    """An item's error names the field and reads as that of a call of its own."""
    request = Request.from_text("x", policy="nope")

    def use(client, call):
        said = []
        for method, asked in (("classify", request), ("classify_batch", [request]), ("classify_stream", [request])):
            with pytest.raises(errors.InvalidRequest) as found:
                call(method, asked)
            said.append((str(found.value), found.value.violations))
        assert said == said[:1] * 3
        assert said[0][1][0][0] == "policy"

    client_of(address, timeout_seconds=60).run(use)


def test_the_items_of_a_batch_that_failed_count(client_of, nowhere):
    """Coverage is right without a fallback tier, too."""

    def use(client, call):
        with pytest.raises(errors.ServerUnreachable):
            call("classify_batch", ["a", "b"])
        assert (client.coverage, client.counts) == (0, {"UNAVAILABLE": 2})

    client_of(nowhere).run(use)


def test_the_items_of_a_stream_that_failed_count(client_of):
    """What was sent and not answered is not covered, without a fallback tier, too."""

    def read_and_fail(self, requests, context):
        assert len(list(requests)) == 2
        context.abort(grpc.StatusCode.UNAVAILABLE, "ending")

    def use(client, call):
        with pytest.raises(errors.ServerUnreachable):
            call("classify_stream", ["a", "b"])
        assert (client.coverage, client.counts) == (0, {"UNAVAILABLE": 2})

    server, where = answering(ClassifyStream=read_and_fail)
    client_of(where).run(use)
    server.stop(None).wait()


def test_a_batch_and_a_stream_to_nobody_fall_back_item_by_item(client_of, nowhere):
    """Nothing is lost: as many answers as there were conversations."""

    def use(client, call):
        assert [a.fallback for a in call("classify_batch", ["a", "b"])] == ["UNAVAILABLE"] * 2
        assert [a.tier for a in call("classify_stream", ["a", "b", "c"])] == [Tier.COMPLEX] * 3

    client_of(nowhere, fallback_tier=Tier.COMPLEX).run(use)


def source_of(kind, steps):
    """The items of a stream; a function among them is called, on a thread where the client has an event loop."""
    if kind == "sync":
        return (item for step in steps for item in ([step] if isinstance(step, str) else (step() or ())))

    async def items():
        for step in steps:
            if isinstance(step, str):
                yield step
            else:
                await asyncio.to_thread(step)

    return items()


@pytest.mark.failure("down", "Python client")
def test_a_server_that_goes_while_the_source_of_a_stream_waits_costs_no_item(client_of):
    """What had no answer and what the source yields later get the fallback, in order."""
    both = client_of("", fallback_tier=Tier.COMPLEX)
    with contextlib.ExitStack() as server:
        both.args = (server.enter_context(fake_server(tier_of=by_word)),)
        heard = threading.Event()
        breaker = Breaker()
        breaker.failed = lambda *_: heard.set()
        both.kwargs["breaker"] = breaker

        def use(client, call):
            def end():
                until(lambda: client.counts.get("classified") == 2)
                server.close()
                assert heard.wait(60)
                time.sleep(0.1)  # the client waits for the source now, where gRPC is

            found = call("classify_stream", source_of(both.kind, ["simple", "frontier", end, "a", "b", "c"]))
            assert [a.tier for a in found] == [Tier.SIMPLE, Tier.FRONTIER, *[Tier.COMPLEX] * 3]
            assert [a.classified for a in found] == [True, True, False, False, False]

        both.run(use)


@pytest.mark.failure("down", "Python client")
def test_a_source_that_waits_for_an_answer_gets_the_fallback(client_of):
    """What was sent falls back when the call fails, and not only when the source has something more to send."""

    def use(client, call):
        def wait():
            until(lambda: sum(client.counts.values()) == 1)

        found = call("classify_stream", source_of(both.kind, ["a", wait, "b"]), timeout_seconds=0.5)
        assert [a.tier for a in found] == [Tier.COMPLEX] * 2

    gate = threading.Event()
    with fake_server(engine=FakeEngine(on_score=lambda: gate.wait(60))) as address:
        both = client_of(address, fallback_tier=Tier.COMPLEX)
        both.run(use)
        gate.set()


def test_a_request_of_a_batch_without_an_allowed_route_counts_once(client_of, address):
    """Where one restricted request has no route, the others of its batch stay what they were."""
    restricted = Request.from_text("b", policy="nope", labels={"data": "restricted"})

    def use(client, call):
        with pytest.raises(NoAllowedRoute):
            call("classify_batch", [Request.from_text("a"), restricted])
        assert client.counts == {"classified": 1, "INVALID_ARGUMENT": 1}

    client_of(address, fallback_tier=Tier.COMPLEX).run(use)


@pytest.mark.failure("bad input", "Python client")
@pytest.mark.parametrize("kind_of_error", [RuntimeError, asyncio.CancelledError])
@pytest.mark.parametrize("where", ["address", "nowhere"])
def test_what_the_source_of_a_stream_raises_reaches_the_caller(client_of, request, where, kind_of_error):
    """The answers to what came before it are given first, by the server or by the fallback."""
    both = client_of(request.getfixturevalue(where), fallback_tier=Tier.COMPLEX)

    def fail():
        raise kind_of_error("the database is gone")

    def use(client, call):
        with pytest.raises(kind_of_error):
            call("classify_stream", source_of(both.kind, ["simple", "frontier", fail, "standard"]))
        assert sum(client.counts.values()) == 2

    both.run(use)


def test_a_stream_that_ends_well_with_answers_missing_is_a_failure(client_of):
    """A server that answers less than it was asked costs no item."""
    handler = grpc.stream_stream_rpc_method_handler(lambda requests, context: iter(()))
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(wire.SERVICE, {"ClassifyStream": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()

    def use(client, call):
        assert [a.fallback for a in call("classify_stream", ["a", "b"])] == ["INTERNAL"] * 2

    client_of(f"127.0.0.1:{port}", fallback_tier=Tier.COMPLEX).run(use)
    server.stop(None).wait()


def answering(**methods):
    """A server whose calls are these functions, and its address."""
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    pb_grpc.add_ClassifierServiceServicer_to_server(
        type("Some", (pb_grpc.ClassifierServiceServicer,), methods)(), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, f"127.0.0.1:{port}"


def test_a_server_that_answers_what_was_not_asked_is_a_failure_too(client_of):
    """More answers than requests, and answers of a kind of a newer contract, cost no item and raise no other error."""
    decision = wire.decision_to_proto(FakeEngine().classify(Request.from_text("x")))
    twice = [pb.ClassifyStreamResponse(result=pb.ClassifyResult(response=decision))] * 2
    server, where = answering(
        ClassifyStream=lambda self, requests, context: (answer for _ in requests for answer in twice),
        ClassifyBatch=lambda self, request, context: pb.ClassifyBatchResponse(results=[pb.ClassifyResult()]),
    )

    def use(client, call):
        assert [a.classified for a in call("classify_stream", ["a"])] == [True]
        assert [a.fallback for a in call("classify_batch", ["a"])] == ["INTERNAL"]

    def use_without(client, call):
        with pytest.raises(errors.ClassifierError, match="more of a stream"):
            call("classify_stream", ["a"])
        with pytest.raises(errors.ClassifierError, match="does not know"):
            call("classify_batch", ["a"])

    client_of(where, fallback_tier=Tier.COMPLEX).run(use)
    client_of(where).run(use_without)
    server.stop(None).wait()


def token_is_gone():
    raise OSError("the token's file is gone")


@pytest.mark.parametrize(
    "token", ["half\0a token", "clé", token_is_gone, lambda: b"a token"], ids=["nul", "accent", "function", "bytes"]
)
def test_a_token_that_cannot_be_had_or_sent_falls_open_too(client_of, address, token):
    """The fallback says UNAUTHENTICATED; what has no fallback raises that, as where the server turns a token down."""

    def use(client, call):
        assert call("classify", "x").fallback == "UNAUTHENTICATED"
        for method in ("classify_batch", "classify_stream"):
            assert [a.fallback for a in call(method, ["x", "y"])] == ["UNAUTHENTICATED"] * 2
        with pytest.raises(errors.Unauthenticated):
            call("report_outcome", OUTCOME)
        with pytest.raises(errors.Unauthenticated):
            call("info")

    client_of(address, fallback_tier=Tier.COMPLEX, token=token).run(use)


def test_a_token_may_end_as_files_do(client_of, tmp_path):
    """A line's end is no part of a token, given or got."""
    (tmp_path / "tokens").write_text("gateway a-token-of-the-gateway\n")
    with fake_server(tokens=str(tmp_path / "tokens")) as where:
        for token in ("a-token-of-the-gateway\n", lambda: "a-token-of-the-gateway\r\n"):
            client_of(where, token=token).run(lambda client, call: call("classify", "x", timeout_seconds=60))


def test_a_deadline_that_has_passed_is_one(client_of):
    """No time left is no time, and not the client's own."""
    gate = threading.Event()
    with fake_server(engine=FakeEngine(on_score=lambda: gate.wait(5))) as where:

        def use(client, call):
            assert call("classify", "x", timeout_seconds=0).fallback == "DEADLINE_EXCEEDED"

        client_of(where, fallback_tier=Tier.COMPLEX, timeout_seconds=60).run(use)
        gate.set()


def test_a_caller_without_time_says_nothing_of_the_server(client_of, address):
    """However many callers have no time left, the server goes on being asked for those who have."""

    def use(client, call):
        for method, what in (("classify", "x"), ("classify_batch", ["x"]), ("classify_stream", ["x"])) * 3:
            found = call(method, what, timeout_seconds=-1)
            assert [a.fallback for a in (found if isinstance(found, list) else [found])] == ["DEADLINE_EXCEEDED"]
        assert call("classify", "x", timeout_seconds=60).classified

    client_of(address, fallback_tier=Tier.COMPLEX).run(use)


def test_a_deadline_that_never_comes_is_a_late_one(client_of, address):
    """What gRPC's clock cannot hold is not over at once."""

    def use(client, call):
        for seconds in (float("inf"), 1e300):
            assert call("classify", "x", timeout_seconds=seconds).classified
            assert call("info", timeout_seconds=seconds).tiers

    client_of(address, fallback_tier=Tier.COMPLEX).run(use)


def test_no_proxy_is_asked_for_a_server(client_of, address, nowhere, monkeypatch):
    """Prompts go to the server that was named, whatever proxy the machine has for the web, unless it is asked for."""
    for name in ("no_proxy", "no_grpc_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, f"http://{nowhere}")
    client_of(address).run(lambda client, call: call("classify", "x", timeout_seconds=60))

    def use(client, call):
        assert call("classify", "x", timeout_seconds=60).fallback == "UNAVAILABLE"

    options = [("grpc.enable_http_proxy", 1)]
    client_of(address, fallback_tier=Tier.COMPLEX, options=options).run(use)


def test_an_async_client_may_be_older_than_its_loop_and_outlive_it(address):
    """Made before a loop runs it is connected on the first that does, and anew where that one is closed."""
    client = AsyncClient(address, fallback_tier=Tier.COMPLEX, timeout_seconds=60)

    async def use():
        return (await client.classify("frontier")).tier

    assert [asyncio.run(use()) for _ in range(2)] == [Tier.FRONTIER] * 2
    asyncio.run(client.close())


def test_an_async_client_on_a_second_loop_falls_back(address):
    """A loop that another thread runs meanwhile gets no connection of the first one's, and the fallback."""
    client = AsyncClient(address, fallback_tier=Tier.COMPLEX, timeout_seconds=60)

    async def main():
        assert (await client.classify("x")).classified
        meanwhile = await asyncio.to_thread(lambda: asyncio.run(client.classify("x")))
        assert (meanwhile.tier, meanwhile.fallback) == (Tier.COMPLEX, "UNAVAILABLE")
        assert (await client.classify("x")).classified
        await client.close()

    asyncio.run(main())


def test_info_and_outcomes_raise_what_the_server_says(client_of, address, nowhere):
    """Calls that have no tier to fall back to raise our errors."""

    def use(client, call):
        assert call("info", timeout_seconds=60).default_policy == "default"
        with pytest.raises(errors.NotConfigured, match="--store off"):
            call("report_outcome", OUTCOME, timeout_seconds=60)

    client_of(address).run(use)

    def use_nowhere(client, call):
        with pytest.raises(errors.ServerUnreachable):
            call("report_outcome", OUTCOME, timeout_seconds=60)

    client_of(nowhere, fallback_tier=Tier.SIMPLE).run(use_nowhere)


@pytest.mark.failure("down", "Python client")
def test_an_open_breaker_asks_nobody(client_of, nowhere):
    """After failures in a row the fallback comes at once, with CIRCUIT_OPEN."""

    def use(client, call):
        found = [call("classify", "x", timeout_seconds=60).fallback for _ in range(4)]
        assert found == ["UNAVAILABLE", "UNAVAILABLE", "CIRCUIT_OPEN", "CIRCUIT_OPEN"]

    client_of(nowhere, fallback_tier=Tier.SIMPLE, breaker=Breaker(failures=2, open_seconds=60)).run(use)


def test_outcomes_and_info_do_not_move_the_breaker(client_of, nowhere, address):
    """A feedback store that is down opens nothing, and a server that answers them is not yet one that classifies."""

    def use_nowhere(client, call):
        for name, *arguments in (("report_outcome", OUTCOME), ("info",)):
            with pytest.raises(errors.ServerUnreachable):
                call(name, *arguments, timeout_seconds=60)
        assert call("classify", "x", timeout_seconds=60).fallback == "UNAVAILABLE"

    client_of(nowhere, fallback_tier=Tier.SIMPLE, breaker=Breaker(failures=1, open_seconds=60)).run(use_nowhere)
    breaker = Breaker(failures=1, open_seconds=60)

    def use(client, call):
        breaker.failed(time.monotonic(), math.inf)
        call("info", timeout_seconds=60)
        with pytest.raises(errors.ClassifierError, match="--store off"):
            call("report_outcome", OUTCOME, timeout_seconds=60)
        assert call("classify", "x", timeout_seconds=60).fallback == "CIRCUIT_OPEN"

    client_of(address, fallback_tier=Tier.SIMPLE, breaker=breaker).run(use)


@pytest.mark.parametrize("method", ["classify_batch", "classify_stream"])
def test_a_batch_and_a_stream_close_the_breaker_where_the_server_answered(client_of, address, method):
    """A good answer ends the failures in a row, and what was never sent neither ends them nor takes the one try."""
    heard = []

    class Heard(Breaker):
        def allow(self, now):
            heard.append("asked")
            return super().allow(now)

        def succeeded(self, now):
            heard.append("succeeded")

    def use(client, call):
        assert [a.fallback for a in call(method, ["x"])] == [""]
        assert heard == ["asked", "succeeded"]
        if method == "classify_batch":
            assert [a.fallback for a in call(method, [[], "a\0b"])] == ["INVALID_ARGUMENT"] * 2
            assert call(method, []) == []
        assert heard == ["asked", "succeeded"]

    client_of(address, fallback_tier=Tier.SIMPLE, breaker=Heard()).run(use)


def test_a_stream_closes_the_breaker_with_its_first_answer(client_of, address):
    """A server that answers is asked by others, too, and not only when the stream is over."""
    breaker = Breaker(failures=1, open_seconds=60)
    breaker.failed(time.monotonic() - 60, math.inf)
    both = client_of(address, fallback_tier=Tier.SIMPLE, breaker=breaker)
    allowed = []

    def use(client, call):
        def ask():
            until(lambda: client.counts.get("classified"))
            allowed.append(breaker.allow(time.monotonic()))

        call("classify_stream", source_of(both.kind, ["x", ask]))
        assert allowed == [True]

    both.run(use)


def test_a_breaker_that_is_never_closed_cannot_be_made():
    """A server cannot fail less than once before it is not asked."""
    with pytest.raises(ValueError, match="failures"):
        Breaker(failures=0)


def test_a_breaker_lets_one_try_after_its_time():
    """An open breaker lets a single request try; success closes it, failure opens it again."""
    breaker = Breaker(failures=2, open_seconds=1.0)
    breaker.failed(now=0.0, began=0.0)
    assert breaker.allow(now=0.0)
    breaker.failed(now=0.0, began=0.0)
    assert not breaker.allow(now=0.5)
    assert [breaker.allow(now=1.0), breaker.allow(now=1.0)] == [True, False]
    breaker.failed(now=1.1, began=1.0)
    assert not breaker.allow(now=1.9)
    assert breaker.allow(now=2.1)
    breaker.succeeded(now=2.1)
    assert [breaker.allow(now=2.1), breaker.allow(now=2.1)] == [True, True]


def test_the_stragglers_of_a_burst_do_not_open_the_breaker():
    """Where the server answered a call that was sent after another, the failure of that other says nothing of it."""
    breaker = Breaker(failures=1, open_seconds=1.0)
    breaker.succeeded(now=2.0)
    breaker.failed(now=3.0, began=1.0)
    assert breaker.allow(now=3.0)
    breaker.failed(now=3.0, began=2.5)
    assert not breaker.allow(now=3.5)


def test_the_stragglers_of_a_burst_do_not_keep_the_breaker_open():
    """What was sent before the breaker opened and fails afterwards puts off no try; the one that tries does."""
    breaker = Breaker(failures=1, open_seconds=1.0)
    breaker.failed(now=1.0, began=0.0)
    breaker.failed(now=1.9, began=0.5)
    assert breaker.allow(now=2.0)
    breaker.failed(now=2.5, began=0.9)
    breaker.failed(now=2.5, began=2.0)
    assert [breaker.allow(now=3.4), breaker.allow(now=3.5)] == [False, True]


@pytest.mark.failure("overloaded", "Python client")
def test_refusals_of_a_busy_server_do_not_open_the_breaker(client_of):
    """RESOURCE_EXHAUSTED is an answer: the server is asked again."""
    with fake_server(rate_limit=0.001, rate_limit_burst=1) as address:

        def use(client, call):
            found = [call("classify", "x", timeout_seconds=60).fallback for _ in range(4)]
            assert found == ["", *["RESOURCE_EXHAUSTED"] * 3]

        client_of(address, fallback_tier=Tier.SIMPLE, breaker=Breaker(failures=2, open_seconds=60)).run(use)


def test_only_what_a_server_that_is_away_or_ends_says_is_retried():
    """The service config retries two codes and never a stream, spends a budget, and asks servers in turn."""
    [config] = SERVICE_CONFIG["methodConfig"]
    assert config["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE", "CANCELLED"]
    assert "ClassifyStream" not in {name["method"] for name in config["name"]}
    assert SERVICE_CONFIG["retryThrottling"]["maxTokens"] > 0
    assert SERVICE_CONFIG["loadBalancingConfig"] == [{"round_robin": {}}]


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED], ids=lambda code: code.name)
def test_a_request_that_a_server_that_ends_did_not_answer_is_sent_again(client_of, code):
    """Whichever of its two codes comes back, and however long it is, the request is asked again and answered."""
    asked = []

    class Ending(pb_grpc.ClassifierServiceServicer):
        def Classify(self, request, context):
            asked.append(request)
            if len(asked) == 1:
                context.abort(code, "ending")
            return wire.decision_to_proto(FakeEngine().classify(Request.from_text("x")))

    def use(client, call):
        assert call("classify", "x" * 1_000_000, timeout_seconds=60).classified
        assert len(asked) == 2

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    pb_grpc.add_ClassifierServiceServicer_to_server(Ending(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    client_of(f"127.0.0.1:{port}", fallback_tier=Tier.SIMPLE).run(use)
    server.stop(0).wait()


@contextlib.contextmanager
def name_server(addresses):
    """A name server that says the last of these addresses to every name; yields its own address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def serve():
            while (asked := server.recvfrom(2048))[0]:
                data, asker = asked
                question = data[12 : data.index(b"\0", 12) + 5]
                found = question[-4:-2] == b"\0\1"  # an IPv4 address is wanted
                header = data[:2] + struct.pack(">5H", 0x8180, 1, found, 0, 0)
                record = struct.pack(">3HIH", 0xC00C, 1, 1, 0, 4) + socket.inet_aton(addresses[-1])
                server.sendto(header + question + record * found, asker)

        thread = threading.Thread(target=serve)
        thread.start()
        yield "{}:{}".format(*server.getsockname())
        server.sendto(b"", server.getsockname())
        thread.join()


@pytest.mark.faults
@pytest.mark.failure("down", "Python client")
def test_a_server_that_comes_back_under_another_address_is_found(client_of):
    """A name is looked up again when nobody answers there any more, and not only half a minute later."""
    port, addresses = port_nobody_is_given(), ["127.0.0.2"]

    def use(client, call):
        with fake_server(listen=(f"127.0.0.2:{port}",)):
            assert call("classify", "x", timeout_seconds=60).classified
        addresses.append("127.0.0.3")
        with fake_server(listen=(f"127.0.0.3:{port}",)):
            until(lambda: call("classify", "x").classified, seconds=15)

    with name_server(addresses) as names:
        client_of(f"dns://{names}/classifier:{port}", fallback_tier=Tier.COMPLEX).run(use)


def test_an_option_of_the_callers_replaces_ours(client_of, address):
    """A channel argument that the client sets, too, is the caller's."""
    config = {"methodConfig": [{"name": [{}], "maxRequestMessageBytes": 1}]}

    def use(client, call):
        assert call("classify", "x", timeout_seconds=60).fallback == "INVALID_ARGUMENT"

    options = [("grpc.service_config", json.dumps(config))]
    client_of(address, fallback_tier=Tier.SIMPLE, options=options).run(use)


def test_several_servers_are_asked_in_turn(client_of):
    """Requests of one client are spread over the servers behind its target."""
    engines = [FakeEngine(), FakeEngine()]
    with fake_server(engine=engines[0]) as first, fake_server(engine=engines[1]) as second:

        def use(client, call):
            def asked():
                call("classify", "x", timeout_seconds=60)
                return min(e.runs for e in engines) > 2

            until(asked)  # the connection to the second may come later than the first one's answers

        client_of(f"ipv4:{first},{second}").run(use)


@pytest.mark.parametrize(("said", "expected"), [(3, Tier.COMPLEX), ("complex", None)])
def test_a_fakes_tier_is_a_tier_or_an_error(said, expected):
    """A number stands for its tier; what names none fails a gateway's test, and is not the top tier by silence."""
    engine = FakeEngine(tier_of=lambda request: said)
    with contextlib.nullcontext() if expected else pytest.raises(ValueError, match="complex"):
        assert engine.classify(Request.from_text("x")).tier is expected


def test_a_fake_server_takes_outcomes_and_leaves_the_users_own_alone(tmp_path, monkeypatch):
    """A gateway's tests report to it, and neither use the key of a server of the user's nor log more than they want."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(logging.getLogger("classifier"), "level", logging.ERROR)
    with fake_server(feedback_url=f"sqlite:///{tmp_path}/f.db") as where, Client(where, timeout_seconds=60) as client:
        decided = client.classify("x").decision.decision_id
        outcome = Outcome(decided, "o", Verdict.ACCEPTED, Cause.QUALITY, Source.USER, Tier.SIMPLE)
        assert client.report_outcome(outcome, timeout_seconds=60) in (OutcomeState.JOINED, OutcomeState.PENDING)
    assert not (tmp_path / "state").exists()
    assert logging.getLogger("classifier").level == logging.ERROR


def test_a_fake_server_ends_at_once_under_an_open_stream():
    """A gateway's tests wait for no stream that they left open, as a server that drains would."""
    left = threading.Event()

    def items():
        yield pb.ClassifyStreamRequest()
        left.wait(60)

    with contextlib.ExitStack() as later:
        with fake_server() as address:
            channel = later.enter_context(grpc.insecure_channel(address))
            later.callback(left.set)
            answers = pb_grpc.ClassifierServiceStub(channel).ClassifyStream(items())
            next(answers)
            started = time.monotonic()
        assert time.monotonic() - started < ServerSettings().drain_seconds
        with pytest.raises(grpc.RpcError):
            next(answers)


def test_every_call_of_the_contract_has_a_method():
    """Both clients cover every RPC of the service."""
    methods = {"Classify": "classify", "ClassifyBatch": "classify_batch"}
    methods |= {"ClassifyStream": "classify_stream", "ReportOutcome": "report_outcome", "GetInfo": "info"}
    rpcs = {m.name for m in pb.DESCRIPTOR.services_by_name["ClassifierService"].methods}
    assert rpcs == set(methods)
    for kind in (Client, AsyncClient):
        assert all(callable(getattr(kind, name)) for name in methods.values())
        assert "fallback_tier" in inspect.signature(kind).parameters  # what editors and type checkers look at


@pytest.mark.parametrize("tier", ["complex", 7])
def test_a_fallback_that_is_no_tier_is_told_at_once(tier):
    """Not at the first failure, when it is needed."""
    with pytest.raises(ValueError, match="fallback_tier"):
        Client("127.0.0.1:1", fallback_tier=tier)


@pytest.mark.parametrize("token", [None, b"secret"])
def test_a_token_that_is_no_text_is_told_at_once(token):
    """A variable that is not set would else have every request fall back."""
    with pytest.raises(TypeError, match="token is of type"):
        Client("127.0.0.1:1", token=token)


class Held:
    """A server that answers nothing before it is let go."""

    def __init__(self):
        self._began, self._gate = threading.Event(), threading.Event()

    @contextlib.contextmanager
    def server(self):
        with fake_server(engine=FakeEngine(on_score=self._hold)) as address:
            try:
                yield address
            finally:
                self._gate.set()

    def began(self):
        assert self._began.wait(60)

    def _hold(self):
        self._began.set()
        self._gate.wait(60)


def test_closing_a_client_ends_what_is_in_flight_with_the_fallback():
    """Threads that wait for an answer have one, and so has who asks later."""
    held = Held()
    with held.server() as where, concurrent.futures.ThreadPoolExecutor() as threads:
        client = Client(where, fallback_tier=Tier.COMPLEX, timeout_seconds=60, breaker=Breaker(failures=1))
        asked = threads.submit(client.classify, "x")
        held.began()
        client.close()
        found = [asked.result(60), client.classify("x"), *client.classify_batch(["x"]), *client.classify_stream(["x"])]
        assert [answer.fallback for answer in found] == ["CANCELLED"] * 4
        with pytest.raises(errors.ServerUnreachable, match="the client is closed"):
            client.info()


def test_closing_an_async_client_ends_what_is_in_flight_with_the_fallback():
    """Tasks that wait for an answer are not cancelled: nobody cancelled them."""
    held = Held()

    async def use(where):
        client = AsyncClient(where, fallback_tier=Tier.COMPLEX, timeout_seconds=60, breaker=Breaker(failures=1))

        async def streamed():
            return [answer async for answer in client.classify_stream(["x", "y"])]

        asked = [asyncio.create_task(some) for some in (client.classify("x"), client.classify_batch(["x"]), streamed())]
        await asyncio.to_thread(held.began)
        await client.close()
        one, batch, stream = await asyncio.gather(*asked)
        found = [one, *batch, *stream, await client.classify("x"), *await client.classify_batch(["x"])]
        assert [answer.fallback for answer in found] == ["CANCELLED"] * 6
        assert [answer.fallback for answer in await streamed()] == ["CANCELLED"] * 2
        with pytest.raises(errors.ServerUnreachable, match="the client is closed"):
            await client.info()

    with held.server() as where:
        asyncio.run(use(where))


@pytest.mark.parametrize("used", [True, False])
def test_an_async_client_that_was_closed_stays_so(address, used):
    """Also on another loop, and where it was closed before its first call."""
    client = AsyncClient(address, fallback_tier=Tier.COMPLEX, timeout_seconds=60)

    async def use():
        assert not used or (await client.classify("x")).classified
        await client.close()

    asyncio.run(use())
    assert asyncio.run(client.classify("x")).fallback == "CANCELLED"


def test_a_task_that_is_cancelled_stays_so_where_its_client_is_closed():
    """A caller that leaves gets no answer."""
    held = Held()

    async def use(where):
        client = AsyncClient(where, fallback_tier=Tier.COMPLEX, timeout_seconds=60)
        asked = asyncio.create_task(client.classify("x"))
        await asyncio.to_thread(held.began)
        asked.cancel()
        await client.close()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert client.counts == {}

    with held.server() as where:
        asyncio.run(use(where))


FORKED = """
import asyncio, os, sys
from classifier import AsyncClient, Client, Tier

address, used = sys.argv[1:]
first, second = (AsyncClient(address, fallback_tier=Tier.COMPLEX, timeout_seconds=60) for _ in range(2))
threads = Client(address, fallback_tier=Tier.COMPLEX, timeout_seconds=60)
if used == "async":
    assert asyncio.run(first.classify("x")).classified
else:
    assert threads.classify("x").classified
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
found = [asyncio.run(client.classify("x")) for client in (first, second)]
if used == "sync":
    found.append(threads.classify("x"))
print(*(answer.fallback or "classified" for answer in found), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(("used", "expected"), [("sync", ["classified"] * 3), ("async", ["UNAVAILABLE"] * 2)])
def test_a_process_that_is_forked_has_an_answer_too(address, used, expected):
    """Not one that waits for ever: what gRPC answers to nobody after a fork falls back at once."""
    command = [sys.executable, "-c", FORKED, address, used]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    assert child.stdout.split() == expected


@pytest.mark.parametrize("kind", [Client, AsyncClient, ComplexityClassifier])
def test_a_target_that_is_a_url_of_the_web_is_told_at_once(kind):
    """Not hidden behind a fallback for ever: gRPC would look for a host of that name at each call."""
    with pytest.raises(errors.SettingsError, match=r"target: expected HOST:PORT .* leave out what stands before //"):
        kind("http://127.0.0.1:1")


def test_a_plugin_that_cannot_have_a_client_is_told_at_once():
    """While the proxy starts, and not by leaving every request to the router's own fallback."""
    with pytest.raises(TypeError, match="timeout"):
        ComplexityClassifier("127.0.0.1:1", timeout=1)


@pytest.mark.parametrize("seconds", [0, -1, float("inf")])
def test_a_client_without_a_deadline_cannot_be_made(seconds):
    """A deadline is always there."""
    with pytest.raises(ValueError, match="timeout_seconds"):
        Client("127.0.0.1:1", timeout_seconds=seconds)
