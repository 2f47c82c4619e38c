"""The HTTP gateway where the server is busy, slow, away or ends, or a caller leaves."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import http.client
import json
import signal
import socket
import threading
from urllib.parse import urlsplit

import grpc
import pytest
from google.rpc import code_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from classifier.gateways.http import error_response
from classifier.gateways.openapi import document
from classifier.gateways.settings import follow
from classifier.seams import Observer
from classifier.testing import FakeEngine, fake_server
from tests.http_support import HI, ask, gateway
from tests.serving_support import until


@pytest.fixture
def address_of_fake():
    with fake_server() as address:
        yield address


@pytest.mark.failure("overloaded", "HTTP gateway")
def test_a_busy_server_is_429_with_the_time_to_wait():
    """Where the line is full the answer comes at once, and says when to come back."""
    go = threading.Event()
    engine = FakeEngine(on_score=lambda: go.wait(30))
    with fake_server(engine=engine, cores=1, queue_size=0, max_wait_seconds=30) as at, gateway(at) as process:
        base = process.wait_ready()[0]
        first = threading.Thread(target=ask, args=(base, "/v1/classify", HI))
        first.start()
        try:
            until(lambda: engine.runs == 1)
            code, headers, body = ask(base, "/v1/classify", HI)
        finally:
            go.set()
            first.join()
    assert (code, body["error"]["status"], headers["Retry-After"]) == (429, "RESOURCE_EXHAUSTED", "1")
    assert body["error"]["details"][1]["@type"] == "type.googleapis.com/google.rpc.RetryInfo"


class Told(Observer):
    """Counts calls that began and requests that were given up."""

    def __init__(self):
        self.started, self.codes = 0, []

    def call_started(self, method, metadata):
        self.started += 1

    def refused(self, code):
        self.codes.append(code)


def test_nobody_works_for_a_caller_who_left():
    """A caller who hangs up while waiting never reaches the model."""
    go, told = threading.Event(), Told()
    engine = FakeEngine(on_score=lambda: go.wait(30))
    with fake_server(engine=engine, cores=1, max_wait_seconds=30, observer=told) as at, gateway(at) as process:
        base = process.wait_ready()[0]
        first = threading.Thread(target=ask, args=(base, "/v1/classify", HI))
        first.start()
        try:
            until(lambda: engine.runs == 1)
            body = json.dumps(HI)
            lines = ["POST /v1/classify HTTP/1.1", "Host: x", "Content-Type: application/json"]
            with socket.create_connection((urlsplit(base).hostname, urlsplit(base).port)) as caller:
                caller.sendall("\r\n".join([*lines, f"Content-Length: {len(body)}", "", body]).encode())
                until(lambda: told.started == 2)
            until(lambda: told.codes == ["CANCELLED"])
        finally:
            go.set()
            first.join()
        assert ask(base, "/v1/classify", HI)[0] == 200
        assert engine.runs == 2


def test_the_end_waits_for_answers_and_they_say_that_they_are_the_last():
    """SIGTERM: what is in flight is answered, with the word for callers who keep connections to open another."""
    go, engine = threading.Event(), FakeEngine(on_score=lambda: go.wait(30))
    with fake_server(engine=engine) as server, gateway(server) as process:
        at = urlsplit(process.wait_ready()[0])

        def refuses():
            with socket.socket() as probe:
                return probe.connect_ex((at.hostname, at.port))

        with contextlib.closing(http.client.HTTPConnection(at.netloc, timeout=60)) as kept:
            kept.request("POST", "/v1/classify", json.dumps(HI), {"Content-Type": "application/json"})
            until(lambda: engine.runs == 1)
            process.signal(signal.SIGTERM)
            until(refuses)
            go.set()
            response = kept.getresponse()
            assert (response.status, response.getheader("connection")) == (200, "close")
        assert process.wait() == 0


@pytest.mark.usefixtures("signal_mask")
def test_a_gateway_hears_a_signal_that_was_blocked_where_it_was_started():
    """A process inherits the signals that its parent blocked; SIGTERM ends it all the same."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    with gateway("127.0.0.1:1") as process:
        process.wait_ready()
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


@pytest.mark.failure("slow", "HTTP gateway")
def test_a_server_that_is_slow_is_504():
    """A request that takes longer than --timeout-seconds ends then, and not when the server is done."""
    go = threading.Event()
    with fake_server(engine=FakeEngine(on_score=lambda: go.wait(30))) as at:
        try:
            with gateway(at, "--timeout-seconds", "0.3") as process:
                [base] = process.wait_ready()
                found = []
                # 408 is a body that came too late: headers and body are sent one after the other.
                until(lambda: found.append(ask(base, "/v1/classify", HI)) or found[-1][0] != 408)
        finally:
            go.set()
    code, _, body = found[-1]
    assert (code, body["error"]["status"]) == (504, "DEADLINE_EXCEEDED")


@pytest.mark.failure("down", "HTTP gateway")
def test_a_server_that_loads_or_ends_is_told_from_one_that_is_away():
    """Health says NOT_SERVING of a server that answers so, and SERVING as soon as it does."""
    now = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.NOT_SERVING)

    class Loading(health_pb2_grpc.HealthServicer):
        def Check(self, request, context):
            return now

        def Watch(self, request, context):
            yield now

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
    health_pb2_grpc.add_HealthServicer_to_server(Loading(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with gateway(f"127.0.0.1:{port}") as process:
        base = process.wait_ready()[0]
        assert ask(base, "/healthz")[::2] == (503, {"status": "NOT_SERVING"})
        now.status = health_pb2.HealthCheckResponse.SERVING
        assert ask(base, "/healthz")[::2] == (200, {"status": "SERVING"})
    server.stop(None).wait()


def test_ctrl_c_is_told_from_the_end():
    """SIGINT ends the gateway as it ends every command, with 130."""
    with gateway("127.0.0.1:1") as process:
        process.wait_ready()
        process.signal(signal.SIGINT)
        assert process.wait() == 130


@pytest.mark.failure("down", "HTTP gateway")
def test_a_server_that_is_away_is_503_and_found_again(tmp_path):
    """Without a server every call is UNAVAILABLE and health says so; when it is back, so are the answers."""
    address = f"unix:{tmp_path}/c.sock"
    with gateway(address) as process:
        base = process.wait_ready()[0]
        code, _, body = ask(base, "/v1/classify", HI)
        assert (code, body["error"]["status"]) == (503, "UNAVAILABLE")
        assert ask(base, "/healthz")[::2] == (503, {"status": "UNREACHABLE"})
        with fake_server(listen=(address,)):
            until(lambda: ask(base, "/v1/classify", HI)[0] == 200)
            until(lambda: ask(base, "/healthz")[0] == 200)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


def test_a_body_that_does_not_come_is_408_as_the_document_says(address_of_fake):
    """Who sends less than was declared hears so after --timeout-seconds, and each call with a body has that status."""
    with gateway(address_of_fake, "--timeout-seconds", "0.5") as process:
        at = urlsplit(process.wait_ready()[0])
        head = f"POST /v1/classify HTTP/1.1\r\nHost: {at.netloc}\r\nContent-Type: application/json\r\n"
        with socket.create_connection((at.hostname, at.port), timeout=60) as slow:
            slow.sendall(f"{head}Content-Length: 99\r\n\r\n{{".encode())
            assert slow.recv(4096).split()[1] == b"408"
    posted = [call["post"] for call in document()["paths"].values() if "post" in call]
    assert len(posted) == 3
    assert all("DEADLINE_EXCEEDED" in call["responses"]["408"]["description"] for call in posted)


def test_a_head_that_does_not_come_ends_its_connection(address_of_fake):
    """Who sends no head, half of one or no second one holds a connection for --timeout-seconds at most."""
    with gateway(address_of_fake, "--timeout-seconds", "0.5") as process, contextlib.ExitStack() as held:
        at = urlsplit(process.wait_ready()[0])
        for sent in (b"", b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HT"):
            slow = held.enter_context(socket.create_connection((at.hostname, at.port), timeout=60))
            slow.sendall(sent)
            with contextlib.suppress(ConnectionResetError):
                while slow.recv(65_536):  # to its end
                    pass


async def test_files_are_followed_whatever_one_look_ends_in(monkeypatch):
    """A look that fails in a way that nobody foresaw is said, and the next ones are made."""
    monkeypatch.setattr("classifier.gateways.settings.FOLLOW_SECONDS", 0.0)
    looks, seen = [], asyncio.Event()

    def reload():
        looks.append(None)
        if len(looks) > 1:
            seen.set()
        raise RuntimeError

    following = asyncio.create_task(follow("tokens", reload))
    await seen.wait()
    following.cancel()


def test_a_call_that_the_server_ended_is_503():
    """Its CANCELLED is no caller who left: the request may be sent again, as after UNAVAILABLE."""
    response = error_response(status_pb2.Status(code=code_pb2.CANCELLED, message="the server ends"))
    assert (response.status_code, json.loads(response.body)["error"]["status"]) == (503, "CANCELLED")


def test_what_grpc_cannot_carry_is_no_busy_server(address_of_fake):
    """A token that is larger than gRPC's metadata may be is 400, and waiting is not advised."""
    with gateway(address_of_fake) as process:
        base = process.wait_ready()[0]
        code, headers, body = ask(base, "/v1/classify", HI, headers={"Authorization": f"Bearer {'x' * 20_000}"})
    assert (code, body["error"]["status"], "Retry-After" in headers) == (400, "INVALID_ARGUMENT", False)
