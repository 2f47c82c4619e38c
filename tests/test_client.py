"""The clients: what they take, their deadline, and the tier to fall back to."""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import re
import socket
import struct
import threading
import time

import grpc
import pytest

from classifier import AsyncClient, Client, Outcome, Request, Tier, errors
from classifier.gateways.litellm_plugin import ComplexityClassifier
from classifier.settings import MOST, ServerSettings
from classifier.testing import FakeEngine, fake_server
from classifier.types import Cause, OutcomeState, Source, Verdict
from classifier.v1 import classifier_pb2 as pb
from classifier.v1 import classifier_pb2_grpc as pb_grpc
from tests.client_support import OUTCOME
from tests.serving_support import port_nobody_is_given, until


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


@pytest.mark.parametrize("kind", [Client, AsyncClient, ComplexityClassifier])
def test_a_target_that_is_a_url_of_the_web_is_told_at_once(kind):
    """Not hidden behind a fallback for ever: gRPC would look for a host of that name at each call."""
    with pytest.raises(errors.SettingsError, match=r"target: expected HOST:PORT .* leave out what stands before //"):
        kind("http://127.0.0.1:1")


@pytest.mark.parametrize("kind", [Client, AsyncClient, ComplexityClassifier])
@pytest.mark.parametrize("target", ["", None])
def test_a_target_that_is_none_is_told_at_once(kind, target):
    """A variable that is not set would else have every request fall back."""
    with pytest.raises(errors.SettingsError, match=f"target: expected HOST:PORT .* found {target!r}"):
        kind(target)


@pytest.mark.parametrize("kind", [Client, AsyncClient, ComplexityClassifier])
@pytest.mark.parametrize("target", ["127.0.0.1", "router.example", "localhost:", "[::1]", "::1", "fe80::1:50051"])
def test_a_target_without_a_port_is_told_at_once(kind, target):
    """Not hidden behind a fallback for ever: gRPC would ask port 443."""
    with pytest.raises(errors.SettingsError, match=f"target: expected HOST:PORT .*'{re.escape(target)}', .* no port"):
        kind(target)


@pytest.mark.parametrize(
    "target", ["[::1]:1", "unix:/a:b", "unix-abstract:a", "dns:///router.example", "ipv6:[::1]:1,[::2]:1", "vsock:1:2"]
)
def test_a_target_may_be_any_that_grpc_knows(target):
    """Its own kinds of names are left to it."""
    Client(target).close()


def test_a_plugin_that_cannot_have_a_client_is_told_at_once():
    """While the proxy starts, and not by leaving every request to the router's own fallback."""
    with pytest.raises(TypeError, match="timeout"):
        ComplexityClassifier("127.0.0.1:1", timeout=1)


@pytest.mark.parametrize("seconds", [0, -1, float("inf")])
def test_a_client_without_a_deadline_cannot_be_made(seconds):
    """A deadline is always there."""
    with pytest.raises(ValueError, match="timeout_seconds"):
        Client("127.0.0.1:1", timeout_seconds=seconds)


@pytest.mark.parametrize("seconds", ["1", None])
def test_a_deadline_that_is_no_number_is_told_at_once(seconds):
    """A variable of the environment is a text."""
    with pytest.raises(TypeError, match=f"timeout_seconds is of type {type(seconds).__name__}; give a number"):
        Client("127.0.0.1:1", timeout_seconds=seconds)


def test_a_calls_deadline_that_is_no_number_is_no_reason_to_fall_back(client_of, address):
    """What the caller's code has wrong is raised, as it would be wrong for ever."""

    def use(client, call):
        for method, what in (("classify", "x"), ("classify_batch", ["x"])):
            with pytest.raises(TypeError, match="timeout_seconds is of type str; give a number"):
                call(method, what, timeout_seconds="1")

    client_of(address, fallback_tier=Tier.COMPLEX).run(use)
