"""When a client stops asking, asks again, and tries once more."""

from __future__ import annotations

import concurrent.futures
import math
import time

import grpc
import pytest

from classifier import Request, Tier, errors, wire
from classifier.client import SERVICE_CONFIG, Breaker
from classifier.testing import FakeEngine, fake_server
from classifier.v1 import classifier_pb2_grpc as pb_grpc
from tests.client_support import OUTCOME, source_of
from tests.serving_support import until


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
