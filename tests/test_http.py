"""HTTP and JSON in front of gRPC: the same answers, the same checks, the same limits."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gzip
import http.client
import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest
from google.protobuf import any_pb2, descriptor_pb2
from google.rpc import code_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from classifier import Request, Tier, wire
from classifier.bundle import MANIFEST, SHIPPED
from classifier.engine import Engine
from classifier.errors import MOST_VIOLATIONS, InvalidRequest, MissingExtra, Overloaded, SettingsError
from classifier.gateways.http import error_response
from classifier.gateways.http_server import HttpSettings, _shown_by, run
from classifier.gateways.json_messages import parse
from classifier.gateways.openapi import OPERATIONS, document
from classifier.gateways.openapi_page import page
from classifier.gateways.settings import follow
from classifier.seams import Observer
from classifier.statuses import status_of, status_of_call
from classifier.testing import FakeEngine, fake_server
from classifier.v1 import classifier_pb2 as pb
from classifier.v1 import classifier_pb2_grpc as pb_grpc
from tests.serving_support import make_certificates, server_process, until

ROOT = Path(__file__).parent.parent
HI = {"messages": [{"role": "user", "content": "hi"}]}


def gateway(address, *arguments):
    """`classifier gateway http` in front of a gRPC server, with more time than a machine stands still for."""
    told = ("--listen", "127.0.0.1:0", "--address", address, "--timeout-seconds", "60")
    return server_process("gateway", "http", *told, *arguments, module="classifier")


def ask(base, path, body=None, *, method=None, headers=None, context=None):
    """Status, headers and parsed JSON of one request."""
    at = urlsplit(base)
    kind = http.client.HTTPSConnection if at.scheme == "https" else http.client.HTTPConnection
    extra = {"context": context} if context else {}
    connection = kind(at.hostname, at.port, timeout=60, **extra)
    try:
        data = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
        sent = {"Content-Type": "application/json"} if data is not None else {}
        connection.request(method or ("GET" if data is None else "POST"), path, data, sent | (headers or {}))
        response = connection.getresponse()
        text = response.read()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, response.headers, json.loads(text) if is_json else text.decode()
    finally:
        connection.close()


@pytest.fixture
def address_of_fake():
    with fake_server() as address:
        yield address


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with the shipped bundle and a feedback store."""
    if not (SHIPPED / MANIFEST).is_file():
        pytest.skip("no bundle was shipped yet")
    store = f"sqlite:///{tmp_path_factory.mktemp('http')}/f.db"
    with fake_server(engine=Engine.from_pretrained(SHIPPED), feedback_url=store, max_batch_items=8) as address:
        yield address


@pytest.fixture(scope="module")
def base(server):
    with gateway(server) as process:
        yield process.wait_ready()[0]


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(server) as channel:
        yield pb_grpc.ClassifierServiceStub(channel)


def corpus_requests(count):
    """Requests with every field in turn, over the committed prompts."""
    policies = sorted(Engine.from_pretrained(SHIPPED).policies)
    lines = [line for path in sorted((ROOT / "data").glob("*.jsonl")) for line in path.read_text("utf-8").splitlines()]
    rows = [json.loads(line) for line in lines[::7]]
    for i, row in enumerate(rows[:count]):
        fields = {"request_id": f"r{i}", "policy": policies[i % len(policies)]}
        if i % 5 == 1:
            fields["floor"] = Tier.from_index(i % 4)
        if i % 5 == 2:
            fields["ceiling"] = Tier.from_index(i % 4)
        if i % 3 == 0:
            fields["labels"] = {"tenant": f"t{i}"}
        yield Request.from_json(row, **fields)


@pytest.mark.parametrize("count", [50, pytest.param(500, marks=pytest.mark.faults)])
def test_the_answers_are_those_of_grpc(base, stub, count):
    """Requests of the corpus, with policies, bounds, labels and ids: field for field the same answer."""
    different = asked = 0
    for request in corpus_requests(count):
        message = wire.request_to_proto(request)
        over_grpc = wire.as_json(stub.Classify(message, timeout=60))
        over_http = ask(base, "/v1/classify", wire.as_json(message) | {"floor": int(message.floor)})[2]
        assert over_http.pop("timings").keys() == over_grpc.pop("timings").keys()
        different += over_http != over_grpc
        asked += 1
    assert (asked, different) == (count, 0)


@pytest.mark.failure("wrong tier", "HTTP gateway")
def test_batch_outcomes_and_info_are_those_of_grpc(base, stub):
    """A batch answers item by item, an outcome is joined, and info is the contract's."""
    status, _, found = ask(base, "/v1/classify/batch", {"requests": [HI, {}]})
    assert status == 200
    decision = found["results"][0]["response"]
    assert found["results"][1]["error"] == {
        "code": 3,
        "message": "messages: is empty; send the conversation with at least one user message",
    }
    outcome = dict(OPERATIONS[2].example) | {"decision_id": decision["decision_id"]}
    until(lambda: ask(base, "/v1/outcomes", outcome)[2] == {"state": "OUTCOME_STATE_DUPLICATE"})
    assert ask(base, "/v1/info")[2] == wire.as_json(stub.GetInfo(pb.GetInfoRequest(), timeout=60))
    # Health has two seconds of its own.
    until(lambda: ask(base, "/healthz")[::2] == (200, {"status": "SERVING"}))


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": [{"role": "nobody", "content": "x"}], "attachments": -1},
        HI | {"policy": "none"},
        HI | {"floor": "TIER_FRONTIER", "ceiling": "TIER_SIMPLE"},
        HI | {"floor": 17},
        {"messages": [{"role": "user", "content": "a\0b"}]},
    ],
    ids=["empty", "fields", "policy", "bounds", "enum-number", "nul"],
)
@pytest.mark.failure("bad input", "HTTP gateway")
def test_errors_are_those_of_grpc(base, stub, body):
    """The status's name, message and details are the server's."""
    with pytest.raises(grpc.RpcError) as refused:
        stub.Classify(parse(pb.ClassifyRequest, json.dumps(body).encode()), timeout=60)
    expected = status_of_call(refused.value)
    code, _, found = ask(base, "/v1/classify", body)
    assert (code, found["error"]["status"], found["error"]["message"]) == (400, "INVALID_ARGUMENT", expected.message)
    assert [d["@type"].rpartition(".")[2] for d in found["error"]["details"]] == ["ErrorInfo", "BadRequest"]


@pytest.mark.parametrize(
    "strange",
    [
        any_pb2.Any(type_url="type.googleapis.com/mesh.Unheard", value=b"x"),
        any_pb2.Any(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff"),
    ],
    ids=["unknown", "damaged"],
)
def test_a_detail_that_cannot_be_read_hides_no_error(strange):
    """The status is answered with the details that are known; a proxy on the way may have added one of its own."""
    status = status_of(Overloaded("busy", 2.0))
    status.details.insert(0, strange)
    response = error_response(status)
    assert (response.status_code, response.headers["retry-after"]) == (429, "2")
    details = json.loads(response.body)["error"]["details"]
    assert [d["@type"].rpartition(".")[2] for d in details] == ["ErrorInfo", "RetryInfo"]


@pytest.mark.parametrize(
    ("body", "field", "text"),
    [
        (b"{", "(body)", "is not JSON"),
        (b"[]", "(body)", "expected an object"),
        (b"\xff", "(body)", "is not JSON"),
        (b"[" * 100_000, "(body)", "is not JSON"),
        (b'{"policy": "x", "policy": "y"}', "policy", "stands twice"),
        (b'{"my secret": 1, "my secret": 2}', "(key)", "stands twice"),
        (b'{"\\ud83d": 1, "\\ud83d": 2}', "(key)", "stands twice"),
        (b'{"floor": 1e999}', "floor", "does not fit"),
        (b'{"messages": ["\\ud83d"]}', "messages[0]", "expected an object"),
        (b'{"messages": [{"role": "user"}, "secret"]}', "messages[1]", "expected an object"),
        (b'{"messages": [["role", "secret"]]}', "messages[0]", "expected an object"),
        (b'{"messages": [{"role": "user"}], "tools": ["secret"]}', "tools[0]", "expected an object"),
        (b'{"request_id": "a", "requestId": "secret"}', "request_id", "stands there as requestId"),
        (b'{"labels": {"request_id": "a", "requestId": "b"}, "attachments": "secret"}', "attachments", "a number"),
        (b'{"prompt": "secret", "secret": 1}', "(body)", "a field that the contract does not know"),
        (b'{"messages": "secret"}', "messages", "expected a list of objects"),
        (b'{"messages": [{"role": "user", "content": ["secret"]}]}', "messages[0].content", "expected text"),
        (b'{"attachments": "secret"}', "attachments", "expected a number"),
        (b'{"attachments": 1e99}', "attachments", "expected a number"),
        (b'{"floor": "secret"}', "floor", "expected one of TIER_SIMPLE, TIER_STANDARD"),
        (b'{"labels": ["secret"]}', "labels", "expected an object of texts"),
        (b'{"record": "secret"}', "record", "expected true or false"),
        (b'{"floor": "x at ClassifyRequest.secret"}', "floor", "expected one of TIER_SIMPLE"),
        (b'{"x at ClassifyRequest.secret": 1}', "(body)", "a field that the contract does not know"),
    ],
)
def test_a_body_that_does_not_fit_is_refused_with_its_field_and_never_quoted(body, field, text):
    """The field and what is expected there are named; the value, which may be a prompt, is not."""
    with pytest.raises(InvalidRequest) as refused:
        parse(pb.ClassifyRequest, body)
    [(found, description)] = refused.value.violations
    assert (found, text in description) == (field, True), description
    assert "secret" not in str(refused.value)


def test_a_text_that_was_cut_within_a_character_is_read_as_clients_send_it():
    """JSON of JavaScript may end in half an emoji, which no message holds: a question mark stands for it."""
    body = b'{"messages": [{"role": "user", "content": "\xc3\xa9t\xc3\xa9 \\ud83d"}], "labels": {"\\udfff": "\\ud83d"}}'
    asked = Request.from_text("été \ud83d", labels={"\udfff": "\ud83d"})
    assert parse(pb.ClassifyRequest, body) == wire.request_to_proto(asked)


def test_many_keys_are_looked_through_once():
    """A key that stands twice behind 200,000 others is found in one pass."""
    keys = ",".join(f'"{i}":1' for i in range(200_000))
    start = time.process_time()
    with pytest.raises(InvalidRequest, match="stands twice"):
        parse(pb.ClassifyRequest, f'{{{keys},"z":1,"z":1}}'.encode())
    assert time.process_time() - start < 30  # an hour where each is looked for among all


def test_every_field_that_does_not_fit_is_named_by_its_place():
    """All of them at once, up to as many as an error names, so that a caller need not mend one after the other."""
    messages = [{"role": "user"}, {"content": 1}, None, {"role": ["x"], "content": {}}]
    body = {"messages": messages, "floor": "x", "attachments": "y", "tools": {}, "unheard": 1}
    with pytest.raises(InvalidRequest) as refused:
        parse(pb.ClassifyRequest, json.dumps(body).encode())
    assert {field for field, _ in refused.value.violations} == {
        "(body)", "messages[1].content", "messages[2]", "messages[3].role", "messages[3].content", "floor",
        "attachments", "tools",
    }  # fmt: skip
    with pytest.raises(InvalidRequest) as refused:
        parse(pb.ClassifyRequest, json.dumps({"messages": [1] * 99}).encode())
    assert len(refused.value.violations) == MOST_VIOLATIONS


def test_nested_fields_and_times_are_explained():
    """A field of an item of a batch and a time are named as well."""
    for kind, body, expected in (
        (pb.ClassifyBatchRequest, {"requests": [{"attachments": 0.5}]}, "requests[0].attachments: does not fit"),
        (pb.ReportOutcomeRequest, {"request": "hi"}, "request: does not fit; expected an object"),
        (pb.ReportOutcomeRequest, {"occurred_at": "now"}, "occurred_at: does not fit; expected a time such as 2026"),
        (pb.ClassifyBatchRequest, {"requests": [{"messages": [{"x": 1}]}]}, "requests[0].messages[0]: has a field"),
        (
            pb.ClassifyBatchRequest,
            {"requests": [{}, {"requestId": "", "request_id": ""}]},
            "requests[1].request_id: stands",
        ),
    ):
        with pytest.raises(InvalidRequest) as refused:
            parse(kind, json.dumps(body).encode())
        assert str(refused.value).startswith(expected)


@pytest.mark.failure("bad input", "HTTP gateway")
def test_what_is_no_call_is_told(base):
    """Unknown paths, methods, types and bodies that are too large each have their status and a JSON body."""
    large = json.dumps({"messages": [{"role": "user", "content": "x" * (5 * 2**20)}]}).encode()
    found = [
        ask(base, "/v1/nothing")[::2],
        ask(base, "/v1/classify/", HI)[::2],
        ask(base, "/v1/classify")[::2],
        ask(base, "/v1/classify", b"messages=hi", headers={"Content-Type": "text/plain"})[::2],
        ask(base, "/v1/classify", gzip.compress(b"{}"), headers={"Content-Encoding": "gzip"})[::2],
        ask(base, "/v1/classify", large)[::2],
    ]
    assert [(code, body["error"]["code"]) for code, body in found] == [(c, c) for c in (404, 404, 405, 415, 415, 413)]
    assert "uncompressed" in found[4][1]["error"]["message"]
    assert "larger than 4194304 bytes" in found[5][1]["error"]["message"]


@pytest.mark.parametrize(("size", "told"), [(2, b"100"), (5 * 2**20, b"413")], ids=["small", "too large"])
def test_a_body_that_will_be_refused_is_not_asked_for(base, size, told):
    """A caller who waits to be asked for the body (Expect: 100-continue) hears at once that it is too large."""
    at = urlsplit(base)
    head = f"POST /v1/classify HTTP/1.1\r\nHost: {at.netloc}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((at.hostname, at.port), timeout=60) as caller:
        caller.sendall(f"{head}Content-Length: {size}\r\nExpect: 100-continue\r\n\r\n".encode())
        assert caller.recv(4096).split()[1] == told


def test_tokens_are_passed_on_and_own_their_decisions(tmp_path):
    """The server's tokens hold here: none is 401, and another caller's decision may not be reported."""
    (tmp_path / "tokens").write_text("a token-of-a-0123456789\nb token-of-b-0123456789\n")
    tokens, store = str(tmp_path / "tokens"), f"sqlite:///{tmp_path}/f.db"

    def bearer(token):
        return {"Authorization": f"Bearer token-of-{token}-0123456789"}

    def taken(base, outcome):
        code = ask(base, "/v1/outcomes", outcome, headers=bearer("a"))[0]
        assert code in (200, 503)  # the store's own time was over; whoever reports sends it again
        return code == 200

    with (
        fake_server(tokens=tokens, feedback_url=store) as at,
        gateway(at) as plain,
        gateway(at, "--tokens", tokens) as own,
    ):
        for process in (plain, own):
            base = process.wait_ready()[0]
            code, headers, body = ask(base, "/v1/classify", HI)
            assert (code, headers["WWW-Authenticate"]) == (401, "Bearer")
            assert body["error"]["status"] == "UNAUTHENTICATED"
            assert ask(base, "/v1/classify", HI, headers={"Authorization": "Bearer \xe9"})[0] == 401
            code, _, answer = ask(base, "/v1/classify", HI, headers=bearer("a"))
            assert code == 200
            outcome = dict(OPERATIONS[2].example) | {"decision_id": answer["decision_id"], "outcome_id": base}
            code, _, body = ask(base, "/v1/outcomes", outcome, headers=bearer("b"))
            assert (code, body["error"]["status"]) == (400, "INVALID_ARGUMENT")
            until(partial(taken, base, outcome))
        # With the file a body is not even read from a stranger.
        assert ask(own.wait_ready()[0], "/v1/classify", b"{")[0] == 401


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


def test_it_serves_tls_and_speaks_it_to_the_server(tmp_path):
    """Callers see its certificate, the server sees its client certificate."""
    make_certificates(tmp_path, "server", "gateway")
    own = ("--tls-cert", f"{tmp_path}/server.pem", "--tls-key", f"{tmp_path}/server.key")
    shown = {"tls_cert": own[1], "tls_key": own[3], "tls_client_ca": f"{tmp_path}/ca.pem"}
    client = ("--server-ca", f"{tmp_path}/ca.pem", "--server-cert", f"{tmp_path}/gateway.pem")
    with fake_server(**shown) as at, gateway(at, *own, *client, "--server-key", f"{tmp_path}/gateway.key") as process:
        [base] = process.wait_ready()
        assert base.startswith("https://")
        trusted = ssl.create_default_context(cafile=f"{tmp_path}/ca.pem")
        assert ask(base, "/v1/classify", HI, context=trusted)[0] == 200


def test_a_replaced_certificate_is_shown_to_who_connects_next(tmp_path):
    """Callers see the certificate that the files hold now; files that hold none change nothing."""
    make_certificates(tmp_path / "old", "server")
    make_certificates(tmp_path / "new", "server")
    shutil.copytree(tmp_path / "old", tmp_path / "live")
    cert, key = tmp_path / "live" / "server.pem", tmp_path / "live" / "server.key"
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(cert, key)
    kept = _shown_by(served, HttpSettings(tls_cert=str(cert), tls_key=str(key)))

    def trusted_by(whose):
        """Whether a client that trusts that authority takes what it is shown."""
        client = ssl.create_default_context(cafile=tmp_path / whose / "ca.pem")
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        ours = client.wrap_bio(back, there, server_hostname="localhost")
        theirs = served.wrap_bio(there, back, server_side=True)
        for side in (ours, theirs, ours):
            with contextlib.suppress(ssl.SSLWantReadError):
                try:
                    side.do_handshake()
                except ssl.SSLCertVerificationError:
                    return False
        return True

    assert (trusted_by("old"), trusted_by("new")) == (True, False)
    cert.write_bytes((tmp_path / "new" / "server.pem").read_bytes())
    with pytest.raises(SettingsError, match="are not a certificate chain and its key"):
        kept.reload()
    assert trusted_by("old")
    key.write_bytes((tmp_path / "new" / "server.key").read_bytes())
    assert kept.reload()
    assert (trusted_by("old"), trusted_by("new")) == (False, True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"listen": "0.0.0.0:8080"}, "can be reached by other machines and has no TLS .* and no authentication"),
        ({"listen": "0.0.0.0:8080", "tokens": "t"}, "and has no TLS"),
        ({"listen": "8080"}, "expected HOST:PORT"),
        ({"tls_cert": "c"}, "tls_cert and tls_key go together"),
        ({"server_cert": "c", "server_key": "k"}, "give server_ca"),
        ({"timeout_seconds": 0.0}, "timeout_seconds: expected a number above 0"),
        ({"timeout_seconds": float("inf")}, "timeout_seconds: expected a number above 0"),
        ({"max_request_bytes": 2**40}, "max_request_bytes: expected 1024 to"),
        ({"address": ""}, "address: expected HOST:PORT"),
        ({"address": "http://127.0.0.1:50051"}, "address: expected HOST:PORT .* leave out what stands before //"),
        ({"server_ca": "/nowhere.pem", "listen": "127.0.0.1:0"}, "/nowhere.pem cannot be read"),
        ({"server_ca": __file__, "listen": "127.0.0.1:0"}, "holds no certificate of an authority"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    """What contradicts itself, or would serve strangers unprotected, is refused with both sides named."""
    with pytest.raises(SettingsError, match=message):
        run(HttpSettings(**settings))


def test_without_the_extra_the_command_says_what_to_install(monkeypatch):
    """A missing dependency is one line with the extra's name."""
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingExtra, match=r"pip install 'request-complexity-classifier\[http\]'"):
        run(HttpSettings())


def test_the_document_is_made_from_the_contract():
    """The comments come from the descriptors that were generated with the stubs, and nearly everything has one."""
    data = (ROOT / "classifier" / "v1" / "classifier.binpb").read_bytes()
    [described] = descriptor_pb2.FileDescriptorSet.FromString(data).file
    described.ClearField("source_code_info")
    for message in [m for top in described.message_type for m in (top, *top.nested_type)]:
        for field in message.field:
            field.ClearField("json_name")  # protoc writes it into the set and not into the stubs
    assert described == descriptor_pb2.FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb)
    schemas = document()["components"]["schemas"]
    assert schemas["ClassifyResponse"]["properties"]["route"]["description"].startswith("The model that the routing")
    assert schemas["Tier"]["enum"] == ["TIER_SIMPLE", "TIER_STANDARD", "TIER_COMPLEX", "TIER_FRONTIER"]
    assert all(call["summary"] for methods in document()["paths"].values() for call in methods.values())


def test_the_page_explains_every_call_and_message_and_fetches_nothing(base):
    """/ is one page with all calls, all messages, and no script."""
    code, _, text = ask(base, "/")
    assert (code, text) == (200, page(document()))
    assert ask(base, "/openapi.json")[2] == document()
    for path in document()["paths"]:
        assert f"<code>{path}</code>" in text
    for name in document()["components"]["schemas"]:
        assert f'id="{name}"' in text
    assert "<script" not in text
    assert "https://" not in text
    # Read aloud, a column has a name; without a mouse, what is wider than the window can be scrolled.
    assert "<th></th>" not in text
    assert text.count("<pre") == text.count('<pre tabindex="0">') == len(document()["paths"])


def fuzz(base, examples, phases):
    """Runs schemathesis against the gateway, with every check but two.

    Two are left out on purpose. Null is absence in protobuf's JSON, so not every body outside the schema is refused;
    ids, roles and the items of a batch are judged by what they say, so not every body inside it is accepted.
    """
    left_out = "negative_data_rejection,positive_data_acceptance"
    command = [Path(sys.executable).with_name("schemathesis"), "run", f"{base}/openapi.json", "--checks", "all"]
    command += ["--exclude-checks", left_out, "--max-examples", str(examples), "--continue-on-failure"]
    command += ["--phases", phases, "--generation-database", "none", "--suppress-health-check", "all"]
    return subprocess.run(command, capture_output=True, text=True, timeout=500)


def test_schemathesis_finds_no_fault(base, tmp_path, monkeypatch):
    """Bodies made from the document, right and wrong: no 5xx, and each answer is as the document says."""
    monkeypatch.chdir(tmp_path)
    done = fuzz(base, 10, "examples,fuzzing")
    assert done.returncode == 0, done.stdout[-4000:]
    assert "Tested: 5" in done.stdout


@pytest.mark.faults
def test_schemathesis_finds_no_fault_in_a_long_run(base, tmp_path, monkeypatch):
    """As before, with thirty times as many bodies, every boundary of every field, and outcomes of real decisions."""
    monkeypatch.chdir(tmp_path)
    done = fuzz(base, 300, "examples,coverage,fuzzing,stateful")
    assert done.returncode == 0, done.stdout[-4000:]
