"""A real Envoy with the external processor, in front of two fake upstreams on loopback.

`cheap` stands on premises; `dear` gets `huge` and every request that no route matches.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest

from classifier import Client, Decision, Outcome
from classifier.errors import SettingsError
from classifier.fallback import Answer
from classifier.gateways.ext_proc import ExtProcSettings, Processor, _serve, core, pb, pb_grpc, run
from classifier.gateways.settings import Latest, read_token
from classifier.routing import read_table
from classifier.types import Cause, Reason, Source, Tier, Verdict
from tests.gateways.http2 import CHAT, Http2Caller
from tests.gateways.support import (
    ROOT,
    Classifier,
    Upstream,
    chat,
    clean_environment,
    free_port,
    listens,
    post,
    post_each,
    process,
    until,
)

ENVOY = Path(sys.executable).parent / "envoy"
LIMIT = 65_536
ID = "x-classifier-decision-id"
RESTRICTED = {"x-classifier-data": "restricted"}


class Gateway:
    """Everything of one test run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cheap, self.dear = folder, Upstream(), Upstream()
        self.classifier, self.port, self.processor_port = Classifier(folder), free_port(), free_port()
        routes = [("small", "simple"), ("medium", "standard"), ("huge", "frontier")]
        lines = [f'[routes.{tier}]\nmodel = "{model}"\n' for model, tier in routes]
        lines.append('[routes.complex]\nmodel = "large"\non_premises = true\n')
        (folder / "routing.toml").write_text("\n".join(lines))
        config = (ROOT / "docs/gateways/envoy.json").read_text()
        here = '"address": "127.0.0.1", "port_value":'
        for said, meant in {
            "small|medium": "small|medium|large",
            '"port_value": 10000': f'"port_value": {self.port}',
            '"port_value": 50061': f'"port_value": {self.processor_port}',
            '"address": "small.internal", "port_value": 8000': f"{here} {self.cheap.port}",
            '"address": "large.internal", "port_value": 8000': f"{here} {self.dear.port}",
            '"per_connection_buffer_limit_bytes": 4194304': f'"per_connection_buffer_limit_bytes": {LIMIT}',
            '"message_timeout": "1s"': '"message_timeout": "10s"',
        }.items():
            assert said in config
            config = config.replace(said, meant)
        (folder / "envoy.json").write_text(config)
        self._processor = process(
            [
                *(sys.executable, "-m", "classifier", "gateway", "ext-proc", "--rewrite-body"),
                *("--listen", f"127.0.0.1:{self.processor_port}", "--address", self.classifier.address),
                *("--routes", str(folder / "routing.toml"), "--timeout-seconds", "3"),
            ],
            folder / "ext_proc.log",
        )
        self._processor.__enter__()
        until(lambda: "serving on" in (folder / "ext_proc.log").read_text())
        self._envoy = process(
            [str(ENVOY), "-c", str(folder / "envoy.json"), "--concurrency", "1", "--disable-hot-restart"],
            folder / "envoy.log",
        )
        running = self._envoy.__enter__()
        until(lambda: listens(self.port) or running.poll() is not None)
        assert running.poll() is None, (folder / "envoy.log").read_text()[-4000:]

    def ask(self, body: object, path: str = "/v1/chat/completions", **headers: str):
        """(status, headers, body) of a request through Envoy."""
        return post(f"http://127.0.0.1:{self.port}{path}", body, **headers)

    def causes(self, decision_id: str) -> list[str]:
        """The causes of the decision's outcomes."""
        statement = f"SELECT cause FROM outcomes WHERE decision_id = '{decision_id}'"
        return [cause for (cause,) in self.classifier.rows(statement)]

    def stop_processor(self) -> None:
        """Ends the external processor."""
        self._processor.__exit__(None, None, None)

    def stop(self) -> None:
        """Ends everything."""
        self._envoy.__exit__(None, None, None)
        self._processor.__exit__(None, None, None)
        self.classifier.close()
        self.cheap.close()
        self.dear.close()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One Envoy for the tests that break nothing for good."""
    made = Gateway(tmp_path_factory.mktemp("envoy"))
    yield made
    made.stop()


@pytest.mark.parametrize(
    ("prompt", "model", "tier"), [("hi", "small", "simple"), ("prove it", "huge", "frontier")], ids=["cheap", "dear"]
)
def test_a_request_goes_to_the_upstream_of_its_tier(gateway: Gateway, prompt: str, model: str, tier: str) -> None:
    """Envoy routes on the model's header; the upstream sees tier, id and model, the caller tier and id."""
    upstream = gateway.cheap if model == "small" else gateway.dear
    before = len(upstream.seen)
    status, headers, _ = gateway.ask(chat(prompt))
    assert (status, len(upstream.seen)) == (200, before + 1)
    seen = upstream.seen[-1]
    assert (seen["model"], seen["headers"]["x-ai-eg-model"]) == (model, model)
    assert (headers["x-classifier-tier"], seen["headers"]["x-classifier-tier"]) == (tier, tier)
    assert headers["x-classifier-decision-id"] == seen["headers"]["x-classifier-decision-id"]


def test_a_body_of_anthropic_is_read(gateway: Gateway) -> None:
    """Content parts and a system prompt, as Anthropic's messages have them."""
    content = [{"type": "text", "text": "prove it"}]
    body = {"model": "auto", "system": "Be brief.", "max_tokens": 9, "messages": [{"role": "user", "content": content}]}
    _, headers, _ = gateway.ask(body, "/v1/messages")
    assert headers["x-classifier-tier"] == "frontier"


def test_a_body_of_responses_is_read(gateway: Gateway) -> None:
    """OpenAI's responses hold their words in `input`; the model is written into them, too."""
    status, headers, _ = gateway.ask({"model": "auto", "input": "prove it"}, "/v1/responses")
    assert (status, headers["x-classifier-tier"], gateway.dear.seen[-1]["model"]) == (200, "frontier", "huge")


def test_a_body_that_is_rewritten_stays_readable() -> None:
    """Half a character, which JSON can escape and UTF-8 cannot hold, reaches the upstream as the caller wrote it."""
    told = ExtProcSettings(routes="routing.toml", rewrite_body=True)
    processor = Processor(SimpleNamespace(report_outcome=None), told)
    body = {"model": "auto", "messages": [{"role": "user", "content": "é \ud83d"}]}
    mutation = processor._routed(Answer(Tier.SIMPLE, None, "", "small"), body).request_body.response.body_mutation
    assert json.loads(mutation.body.decode("utf-8")) == body | {"model": "small"}


def test_a_body_with_a_number_that_json_cannot_say_again_is_not_rewritten() -> None:
    """What Python reads as infinity goes on as the caller wrote it."""
    processor = Processor(SimpleNamespace(report_outcome=None), ExtProcSettings(routes="x", rewrite_body=True))
    body = json.loads('{"model": "auto", "max": 1e400}')
    assert not processor._routed(Answer(Tier.SIMPLE, None, "", "small"), body).request_body.response.HasField(
        "body_mutation"
    )


def test_a_body_that_names_no_model_is_not_rewritten() -> None:
    """What has no such field does not get one: its API may not know it."""
    processor = Processor(SimpleNamespace(report_outcome=None), ExtProcSettings(routes="x", rewrite_body=True))
    response = processor._routed(Answer(Tier.SIMPLE, None, "", "small"), chat("hi") | {"model": "auto"})
    assert response.request_body.response.HasField("body_mutation")
    response = processor._routed(Answer(Tier.SIMPLE, None, "", "small"), {"role": "user", "content": "hi"})
    assert not response.request_body.response.HasField("body_mutation")


@pytest.mark.parametrize(
    ("content", "why"), [(b"\xff", "is no text"), (b" \n", "holds no token"), (None, "No such file")]
)
def test_a_token_file_that_holds_none_is_named(tmp_path: Path, content: bytes | None, why: str) -> None:
    """It is said at the start: else the server would turn every request down, and each would fall back."""
    if content is not None:
        (tmp_path / "token").write_bytes(content)
    with pytest.raises(SettingsError, match=f"token: {why}"):
        run(ExtProcSettings(server_token_file=str(tmp_path / "token")))


def test_a_token_is_rotated_by_writing_its_file(tmp_path: Path) -> None:
    """The next request shows the new token; while the file holds none the one that was there stays."""
    path = tmp_path / "token"
    path.write_text("the first one\n")
    token = Latest("tokens", read_token, path)
    shown = [token()]
    for content in ("the second one, longer", "", "a third"):
        path.write_text(content)
        shown.append(token())
    assert shown == ["the first one", "the second one, longer", "the second one, longer", "a third"]


@pytest.mark.parametrize("kind", ["port", "socket"])
def test_an_address_that_is_served_already_is_refused(tmp_path: Path, kind: str) -> None:
    """Two processors would share a port by accident, each with its own table and some of the requests."""
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 1)])
    asked = f"unix:{tmp_path / 'x.sock'}" if kind == "socket" else "127.0.0.1:0"
    port = server.add_insecure_port(asked)
    server.start()
    try:
        with pytest.raises(SettingsError, match=r"is served already|is in use"):
            run(ExtProcSettings(listen=asked if kind == "socket" else f"127.0.0.1:{port}"))
    finally:
        server.stop(None).wait()


def test_forged_headers_are_removed(gateway: Gateway) -> None:
    """A caller cannot choose its route by sending our headers, also where it opts out of being classified."""
    forged = {"x-classifier-tier": "frontier", "x-ai-eg-model": "huge"}
    _, headers, _ = gateway.ask(chat("hi"), **forged)
    assert (headers["x-classifier-tier"], gateway.cheap.models()[-1]) == ("simple", "small")
    gateway.ask(chat("hi", model="own"), **{"x-classifier": "off", "x-classifier-tier": "frontier"})
    assert gateway.dear.seen[-1]["model"] == "own"
    assert "x-classifier-tier" not in gateway.dear.seen[-1]["headers"]


@pytest.mark.parametrize("routes", ["", "routing.toml"], ids=["the server's table", "its own table"])
@pytest.mark.parametrize(
    ("path", "switch", "removed"),
    [("/v1/chat/completions", "", True), ("/v1/chat/completions", "off", False), ("/v1/embeddings", "", False)],
    ids=["chat", "off", "no chat"],
)
def test_whoever_is_classified_cannot_name_its_model(routes: str, path: str, switch: str, removed: bool) -> None:
    """The model's header is removed of each request that is read, whoever knows the models; others keep theirs."""
    sent = {":path": path, ":method": "POST", "x-classifier": switch, "x-ai-eg-model": "huge"}
    found = core.HeaderMap(headers=[core.HeaderValue(key=name, value=value) for name, value in sent.items()])
    processor = Processor(SimpleNamespace(report_outcome=None), ExtProcSettings(routes=routes))

    async def parts() -> AsyncIterator[object]:
        yield pb.ProcessingRequest(request_headers=pb.HttpHeaders(headers=found))

    async def answers() -> list[object]:
        return [answer async for answer in processor.Process(parts(), None)]

    [answer] = asyncio.run(answers())
    mutation = answer.request_headers.response.header_mutation
    assert ("x-ai-eg-model" in mutation.remove_headers) is removed
    assert "x-classifier-tier" in mutation.remove_headers


@pytest.mark.failure("bad input", "Envoy")
@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"{not json", "BODY_UNREADABLE"),
        (b"[]", "BODY_UNREADABLE"),
        (gzip.compress(b"{}"), "BODY_UNREADABLE"),
        (b'{"messages": 5}', "INVALID_ARGUMENT"),
    ],
    ids=["cut", "list", "gzip", "no chat"],
)
def test_a_body_that_cannot_be_read_passes(gateway: Gateway, body: bytes, why: str) -> None:
    """What is no chat body goes on as it was, to the fallback tier; the header says which of the two it is."""
    gateway.ask(body)
    _, headers, _ = gateway.ask(body)
    assert (headers["x-classifier-tier"], headers["x-classifier-fallback"]) == ("complex", why)


@pytest.mark.failure("bad input", "Envoy")
def test_however_large_a_body_is_it_gets_an_answer(gateway: Gateway) -> None:
    """Where Envoy's buffer takes more than the processor reads, restricted requests stay on premises all the same."""
    path = core.HeaderValue(key=":path", value="/v1/chat/completions")
    sent = [path, core.HeaderValue(key=":method", value="POST")]
    sent += [core.HeaderValue(key=name, value=value) for name, value in RESTRICTED.items()]
    parts = [
        pb.ProcessingRequest(request_headers=pb.HttpHeaders(headers=core.HeaderMap(headers=sent))),
        pb.ProcessingRequest(request_body=pb.HttpBody(body=b" " * (9 * 2**20), end_of_stream=True)),
    ]
    with grpc.insecure_channel(f"127.0.0.1:{gateway.processor_port}") as channel:
        *_, answer = pb_grpc.ExternalProcessorStub(channel).Process(iter(parts), timeout=60)
    told = {h.header.key: h.header.raw_value.decode() for h in answer.request_body.response.header_mutation.set_headers}
    assert (told["x-classifier-fallback"], told["x-ai-eg-model"]) == ("BODY_UNREADABLE", "large")


def test_requests_are_told_apart_whatever_their_callers_call_them(gateway: Gateway) -> None:
    """An id that a caller sends again is another decision's all the same."""
    found = {gateway.ask(chat(text), **{"x-request-id": "same"})[1][ID] for text in ("hi", "prove it")}
    assert len(found) == 2


@pytest.mark.failure("bad input", "Envoy")
def test_a_body_over_the_buffer_passes(gateway: Gateway) -> None:
    """A body that Envoy does not buffer whole goes to the fallback tier's route, every byte of it."""
    seen, text = len(gateway.dear.seen), "x" * (4 * LIMIT)
    assert gateway.ask(chat(text, model="own"))[0] == 200
    assert len(gateway.dear.seen) == seen
    came = gateway.cheap.seen[-1]
    assert (came["headers"]["x-classifier-fallback"], came["messages"][0]["content"]) == ("BODY_UNREADABLE", text)


@pytest.mark.parametrize("trailers", [{}, {"x-checksum": "1"}], ids=["plain", "trailers"])
def test_a_body_may_come_late(gateway: Gateway, trailers: dict[str, str]) -> None:
    """Behind its headers and in pieces, trailers at its end or none: it goes whole to the upstream of its tier."""
    seen, sent = len(gateway.cheap.seen), json.dumps(chat("hi, late")).encode()
    with contextlib.closing(Http2Caller(gateway.port)) as caller:
        caller.headers(1, CHAT)
        for piece in (sent[:9], sent[9:]):
            gateway.ask(chat("prove it"))  # what came before is answered when this is
            caller.data(1, piece, last=not trailers and piece == sent[9:])
        if trailers:
            gateway.ask(chat("prove it"))
            caller.headers(1, trailers, last=True)
        until(lambda: len(gateway.cheap.seen) > seen)
    came = gateway.cheap.seen[-1]
    assert (came["headers"]["x-classifier-tier"], came["messages"]) == ("simple", chat("hi, late")["messages"])


def test_requests_that_are_under_way_leave_the_next_its_tier(gateway: Gateway) -> None:
    """Envoy keeps a stream to the processor for each, until it is answered: by its own default for 1,024."""
    with contextlib.ExitStack() as callers:
        for _ in range(2):
            caller = callers.enter_context(contextlib.closing(Http2Caller(gateway.port)))
            for stream in range(1, 1101, 2):
                caller.headers(stream, CHAT)
        assert gateway.ask(chat("hi"))[1]["x-classifier-tier"] == "simple"


def test_a_body_over_the_buffer_ends_the_stream() -> None:
    """Envoy may hold the end of such a body back until then, and its caller would wait for minutes."""
    processor = Processor(SimpleNamespace(report_outcome=None, routes=None), ExtProcSettings())

    async def parts() -> AsyncIterator[pb.ProcessingRequest]:
        yield pb.ProcessingRequest(request_body=pb.HttpBody(body=b"{", end_of_stream=False))
        yield pb.ProcessingRequest(response_headers=pb.HttpHeaders())

    async def answers() -> list[str]:
        return [answer.WhichOneof("response") async for answer in processor.Process(parts(), None)]

    assert asyncio.run(answers()) == ["request_body"]


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        pytest.param("slow", "DEADLINE_EXCEEDED", marks=pytest.mark.failure("slow", "Envoy")),
        pytest.param("overloaded", "RESOURCE_EXHAUSTED", marks=pytest.mark.failure("overloaded", "Envoy")),
        pytest.param("broken", "INTERNAL", marks=pytest.mark.failure("a bug", "Envoy")),
    ],
)
def test_a_request_that_is_not_classified_goes_to_the_fallback_tier(gateway: Gateway, prompt: str, code: str) -> None:
    """It is answered by the fallback tier's model, and its headers say why."""
    status, headers, _ = gateway.ask(chat(prompt))
    assert (status, gateway.cheap.models()[-1]) == (200, "large")
    assert (headers["x-classifier-tier"], headers["x-classifier-fallback"]) == ("complex", code)


def test_a_restricted_request_stays_on_premises(gateway: Gateway) -> None:
    """`x-classifier-data: restricted` gets the one model on premises, and cannot opt out."""
    gateway.ask(chat("hi"), **RESTRICTED, **{"x-classifier": "off"})
    assert gateway.cheap.seen[-1]["model"] == "large"


@pytest.mark.parametrize("words", [("restricted", "public"), ("public", "restricted", "public")])
def test_a_header_that_is_sent_again_takes_nothing_back(gateway: Gateway, words: tuple[str, ...]) -> None:
    """Restricted in one of its lines is restricted, wherever that stands."""
    seen = len(gateway.dear.seen)
    sent = [("x-classifier-data", word) for word in words]
    status, _ = post_each(f"http://127.0.0.1:{gateway.port}/v1/chat/completions", chat("hi"), sent)
    assert (status, gateway.cheap.seen[-1]["model"], len(gateway.dear.seen)) == (200, "large", seen)


@pytest.mark.failure("no route", "Envoy")
def test_what_cannot_be_routed_is_refused_when_restricted(gateway: Gateway) -> None:
    """A restricted request that is no chat is 403, and no upstream sees it; one that is not restricted passes."""
    seen = len(gateway.cheap.seen), len(gateway.dear.seen)
    status, _, body = gateway.ask({"model": "m", "input": "our own numbers"}, "/v1/embeddings", **RESTRICTED)
    assert (status, body["error"]["type"]) == (403, "NO_ALLOWED_ROUTE")
    assert (len(gateway.cheap.seen), len(gateway.dear.seen)) == seen
    assert gateway.ask({"model": "m", "input": "public numbers"}, "/v1/embeddings")[0] == 200


@pytest.mark.parametrize("wrong", ["unavailable", "gone"])
def test_an_outage_of_the_upstream_is_availability(gateway: Gateway, wrong: str) -> None:
    """A 503 of the upstream, or Envoy's own where it hangs up, reaches the caller, and the store as AVAILABILITY."""
    with gateway.cheap.ill(wrong, "small"):
        status, headers, _ = gateway.ask(chat("hi"))
    assert status == 503
    until(lambda: gateway.causes(headers[ID]))
    assert gateway.causes(headers[ID]) == [Cause.AVAILABILITY]


def test_an_outage_is_reported_before_envoy_has_its_last_answer() -> None:
    """Envoy ends the stream once it has that, and what stands behind the answer may then never run."""
    decision = Decision(Tier.SIMPLE, (1, 0, 0, 0), Tier.SIMPLE, Reason.MODEL, "balanced", 0.5, False, decision_id="d")
    reported: list[Outcome] = []

    async def classify(_: object) -> Answer:
        return Answer(Tier.SIMPLE, decision)

    async def report_outcome(outcome: Outcome) -> None:
        reported.append(outcome)

    async def parts() -> AsyncIterator[pb.ProcessingRequest]:
        path = core.HeaderValue(key=":path", value="/v1/chat/completions")
        sent = core.HeaderMap(headers=[path, core.HeaderValue(key=":method", value="POST")])
        yield pb.ProcessingRequest(request_headers=pb.HttpHeaders(headers=sent))
        yield pb.ProcessingRequest(request_body=pb.HttpBody(body=json.dumps(chat("hi")).encode(), end_of_stream=True))
        status = core.HeaderMap(headers=[core.HeaderValue(key=":status", value="503")])
        yield pb.ProcessingRequest(response_headers=pb.HttpHeaders(headers=status))

    async def leave_early() -> None:
        client = SimpleNamespace(classify=classify, report_outcome=report_outcome)
        processor = Processor(client, ExtProcSettings())
        answers = processor.Process(parts(), None)
        for _ in range(3):
            await anext(answers)
        await answers.aclose()
        await processor.outbox.drain(10)

    asyncio.run(leave_early())
    assert [(outcome.decision_id, outcome.cause) for outcome in reported] == [("d", Cause.AVAILABILITY)]


@pytest.mark.failure("no feedback store", "Envoy")
def test_an_outcome_waits_for_the_store(gateway: Gateway) -> None:
    """While the store is locked requests are answered; what was to be reported arrives when it is free."""
    with gateway.cheap.ill("unavailable", "small"), gateway.classifier.locked():
        _, headers, _ = gateway.ask(chat("hi"))
        assert gateway.ask(chat("prove it"))[0] == 200
        assert gateway.causes(headers[ID]) == []
    until(lambda: gateway.causes(headers[ID]) == [Cause.AVAILABILITY])


@pytest.mark.failure("wrong tier", "Envoy", "Python client")
def test_what_a_judge_says_comes_later(gateway: Gateway) -> None:
    """The id in the headers is enough to report that the tier was too low."""
    _, headers, _ = gateway.ask(chat("hi"))
    outcome = Outcome(headers[ID], "said", Verdict.REJECTED, Cause.QUALITY, Source.JUDGE, Tier.SIMPLE)
    with Client(gateway.classifier.address) as client:
        client.report_outcome(outcome, timeout_seconds=30)
    assert gateway.causes(headers[ID]) == [Cause.QUALITY]


@pytest.mark.failure("a bad routing table", "Envoy")
def test_a_bad_routing_table_is_refused(tmp_path: Path) -> None:
    """The processor does not start with it: exit code 2, and the entry at fault."""
    (tmp_path / "routing.toml").write_text("[routes.huge]\nmodel = 'x'")
    command = [sys.executable, "-m", "classifier", "gateway", "ext-proc", "--routes", str(tmp_path / "routing.toml")]
    done = subprocess.run(command, capture_output=True, text=True, env=clean_environment(), timeout=100, check=False)
    assert (done.returncode, "[routes.huge]: unknown tier" in done.stderr) == (2, True)


@pytest.mark.failure("a bad routing table", "Envoy")
def test_a_table_that_changes_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is no more on premises gets no restricted request, and a broken table changes nothing."""
    routes, told = tmp_path / "routing.toml", logging.getLogger("classifier.gateways.settings")
    routes.write_text("[routes.complex]\nmodel = 'large'\non_premises = true\n")
    said: list[str] = []
    monkeypatch.setattr(told, "warning", lambda template, *values: said.append(template % values))
    headers = {":path": "/v1/chat/completions", ":method": "POST", **RESTRICTED}
    sent = core.HeaderMap(headers=[core.HeaderValue(key=key, value=value) for key, value in headers.items()])
    parts = [
        pb.ProcessingRequest(request_headers=pb.HttpHeaders(headers=sent)),
        pb.ProcessingRequest(request_body=pb.HttpBody(body=json.dumps(chat("hi")).encode(), end_of_stream=True)),
    ]

    async def check() -> None:
        socket = f"unix:{tmp_path}/s"
        settings = ExtProcSettings(listen=socket, address=f"unix:{tmp_path}/nobody", routes=str(routes))
        serving = asyncio.create_task(_serve(settings, Latest("routes", read_table, routes), ""))
        async with grpc.aio.insecure_channel(socket) as channel:
            await channel.channel_ready()
            process_all = pb_grpc.ExternalProcessorStub(channel).Process

            async def refused() -> bool:
                return [answer async for answer in process_all(parts)][-1].HasField("immediate_response")

            assert not await refused()
            routes.write_text("[routes.complex")
            assert not await refused()
            routes.write_text("[routes.complex]\nmodel = 'large'\n")
            assert await refused()
        signal.raise_signal(signal.SIGTERM)
        await serving

    asyncio.run(asyncio.wait_for(check(), 100))
    assert len(said) == 1
    assert said[0].endswith("the routes there were stay")


@pytest.mark.parametrize("listen", ["0.0.0.0:50061", "10.0.0.1:50061"])
def test_other_machines_are_served_only_with_the_word_for_it(listen: str) -> None:
    """Envoy sends prompts to the processor without TLS: beyond this machine that takes --insecure."""
    with pytest.raises(SettingsError, match=r"can be reached by other machines.*--insecure"):
        ExtProcSettings(listen=listen)
    assert ExtProcSettings(listen=listen, insecure=True).listen == listen


@pytest.mark.parametrize("name", ["", "x model", "x-model:", "x-modèle", ":path\n"])
def test_a_header_that_cannot_be_one_is_refused_at_the_start(name: str) -> None:
    """What would reach no route is a mistake to hear of before the first request."""
    with pytest.raises(SettingsError, match="no header's name"):
        ExtProcSettings(model_header=name)


@pytest.mark.failure("down", "Envoy")
@pytest.mark.failure("the gateway", "Envoy")
@pytest.mark.parametrize(("requests", "kills"), [(60, 1), pytest.param(1000, 10, marks=pytest.mark.faults)])
def test_killing_the_classifier_and_the_processor_loses_no_request(tmp_path: Path, requests: int, kills: int) -> None:
    """Without the classifier requests get the fallback tier; without the processor Envoy lets them pass.

    Those that are restricted go on premises then, too.
    """
    made = Gateway(tmp_path)
    statuses, classified, fallbacks = [], 0, 0
    step = requests // (2 * kills)
    for _ in range(kills):
        for half in ("up", "down"):
            if half == "down":
                made.classifier.kill()
            for number in range(step):
                status, headers, _ = made.ask(chat(f"hi {number}"))
                statuses.append(status)
                classified += "x-classifier-decision-id" in headers
                fallbacks += "x-classifier-fallback" in headers
        made.classifier.start()
    print(f"{len(statuses)} requests, {kills} kills: {classified} classified, {fallbacks} fell back")
    assert statuses == [200] * (2 * kills * step)
    assert classified + fallbacks == len(statuses)
    assert fallbacks >= step * kills
    assert classified
    made.stop_processor()
    status, headers, _ = made.ask(chat("hi", model="public"))
    assert (status, "x-classifier-tier" in headers, made.dear.models()[-1]) == (200, False, "public")
    made.ask(chat("hi", model="own"), **{"x-classifier-data": "public, Restricted"})
    assert made.cheap.models()[-1] == "own"
    made.stop()
