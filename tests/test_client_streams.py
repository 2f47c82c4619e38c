"""Batches and streams of the clients: each item has its answer, in order, whatever happens."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import time

import grpc
import pytest

from classifier import Request, Tier, errors, wire
from classifier.client import Breaker
from classifier.errors import NoAllowedRoute
from classifier.testing import FakeEngine, fake_server
from classifier.v1 import classifier_pb2 as pb
from tests.client_support import answering, by_word, source_of
from tests.serving_support import until


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


def test_one_text_is_not_taken_for_many(client_of, address):
    """A text where many conversations are wanted is a mistake of the caller's, fallback or not: it is not split up."""

    def use(client, call):
        for method in ("classify_batch", "classify_stream"):
            with pytest.raises(TypeError, match="conversations is one text; give a list"):
                call(method, "hi")

    client_of(address, fallback_tier=Tier.STANDARD).run(use)
