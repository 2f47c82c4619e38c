"""What is counted, traced and logged, and that no prompt is in any of it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading

import grpc
import pytest
from prometheus_client import generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from classifier import Client, Request, Tier, errors
from classifier.logs import JsonFormatter, TextFormatter, configure_logging
from classifier.metrics_page import collected, forget_process, reserve, serve_metrics
from classifier.seams import Observer
from classifier.telemetry import Metrics, Observers, Traces
from classifier.testing import FakeEngine, fake_server
from tests.serving_support import port_nobody_is_given, server_process, until

CANARY = "canary-9d1f7c"


def page(metrics):
    return generate_latest(metrics.registry).decode()


def value(text, name):
    """The number of the sample that starts with `name`."""
    found = re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))


def by_word(request: Request) -> Tier:
    return next((tier for tier in Tier if tier.label in request.messages[-1].content), Tier.STANDARD)


def test_calls_decisions_and_stages_are_counted():
    """Each call, decision, stage and truncation is counted, by method, status, tier and reason."""
    metrics = Metrics()
    with fake_server(tier_of=by_word, metrics=metrics) as address, Client(address, timeout_seconds=60) as client:
        client.classify("simple")
        client.classify("simple", floor=Tier.COMPLEX)
        client.classify("x" * 100_000)
        with pytest.raises(errors.InvalidRequest):
            client.classify("x", policy="nope")
        list(client.classify_batch(["simple", "frontier"]))
    text = page(metrics)
    assert 'classifier_requests_total{code="OK",method="Classify"} 3.0' in text
    assert 'classifier_requests_total{code="INVALID_ARGUMENT",method="Classify"} 1.0' in text
    assert 'classifier_requests_total{code="OK",method="ClassifyBatch"} 1.0' in text
    assert 'classifier_decisions_total{reason="model",tier="simple"} 2.0' in text
    assert 'classifier_decisions_total{reason="floor",tier="complex"} 1.0' in text
    assert value(text, "classifier_truncations_total") == 1
    for stage in ("parse", "prepare", "queue", "model", "encode"):
        assert f'classifier_stage_duration_seconds_count{{stage="{stage}"}} 5.0' in text
    assert 'classifier_bundle_info{calibration="fake",version="fake000000000000"} 1.0' in text
    assert value(text, "classifier_in_flight") == 0


def test_coverage_is_the_share_that_got_a_decision():
    """Items count each request, those of a batch too, as classified or by what went wrong."""
    metrics = Metrics()
    with (
        fake_server(metrics=metrics, rate_limit=0.001, rate_limit_burst=3) as address,
        Client(address, timeout_seconds=60, fallback_tier=Tier.SIMPLE) as client,
    ):
        client.classify_batch(["a", "b"])
        for _ in range(3):
            client.classify("c")
        assert client.coverage == pytest.approx(3 / 5)
    text = page(metrics)
    assert 'classifier_items_total{result="classified"} 3.0' in text
    assert 'classifier_items_total{result="RESOURCE_EXHAUSTED"} 2.0' in text


def test_a_batch_that_is_not_answered_counts_each_of_its_requests():
    """Coverage falls where a batch is refused whole, or its deadline passes: begun or not, none got a decision."""
    metrics = Metrics()
    with (
        fake_server(metrics=metrics, engine=FakeEngine(delay_seconds=0.3), cores=1, max_batch_items=10) as address,
        Client(address, timeout_seconds=60, fallback_tier=Tier.SIMPLE) as client,
    ):
        client.classify_batch(["a"] * 11)
        client.classify_batch(["a"] * 10, timeout_seconds=1)
        until(lambda: sum(items(metrics).values()) == 21)
    assert items(metrics)["INVALID_ARGUMENT"] == 11
    assert items(metrics)["CANCELLED"] > 0


def items(metrics):
    """Requests by result, as the page counts them."""
    found = re.findall(r'classifier_items_total{result="(\w+)"} (\S+)', page(metrics))
    return {result: float(count) for result, count in found}


def test_the_page_is_served_beside_the_calls(tiny_bundle_path):
    """--metrics-listen serves the Prometheus page on its own port."""
    arguments = ["--bundle", str(tiny_bundle_path), "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    with server_process(*arguments) as server:
        [address] = server.wait_ready()
        with Client(address, timeout_seconds=60) as client:
            client.classify("hi")
        until(lambda: value(server.metrics_page(), "classifier_decisions_total") == 1)  # counted after the answer
        text = server.metrics_page()
    assert value(text, "classifier_golden_ok") == 1


def test_strangers_at_the_page_leave_no_trace_and_hold_nothing(monkeypatch, capfd):
    """Who asks rubbish, resets or says nothing gets no line of the log, and no thread of its own for ever."""
    monkeypatch.setattr("classifier.metrics_page.PAGE_SECONDS", 0.05)
    address = f"127.0.0.1:{port_nobody_is_given()}"
    stop, before = serve_metrics(address, Metrics().registry), set(threading.enumerate())
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as silent:
        assert silent.recv(1) == b""  # it is ended
    with socket.create_connection((host, int(port)), timeout=60) as reset:
        reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with socket.create_connection((host, int(port)), timeout=60) as strange:
        strange.sendall(b"GET / HTTP/1.0\r\nAccept: application/openmetrics-text;version=abc\r\n\r\n")
        assert strange.recv(100).startswith(b"HTTP/1.0 ")  # 500, or the page from an old prometheus-client
    until(lambda: before.issuperset(threading.enumerate()))  # threads of other tests may end meanwhile
    stop()
    assert capfd.readouterr().err == ""


def test_a_worker_that_ended_counts_and_does_nothing_any_more(tmp_path):
    """What it counted stays on the page, what it was doing does not; one that never served leaves no file."""
    code = "import os; from classifier.telemetry import Metrics; m = Metrics(); m.call_started('Classify', ()); "
    code += "m.refused('INTERNAL'); print(os.getpid())"
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)

    def numbers():
        text = generate_latest(collected(str(tmp_path))).decode()
        return value(text, "classifier_in_flight"), value(text, "classifier_items_total")

    assert numbers() == (1, 1)
    reserve(7, str(tmp_path))
    forget_process(7, str(tmp_path), served=False)
    assert not list(tmp_path.glob("*_7.db"))
    forget_process(int(done.stdout), str(tmp_path), served=True)
    assert numbers() == (0, 1)


def test_the_page_is_there_where_a_worker_is_forgotten_meanwhile(tmp_path, monkeypatch):
    """A file that goes while the page is made is no error."""
    reserve(7, str(tmp_path))
    reserve(8, str(tmp_path))
    read = MultiProcessCollector.merge

    def merge(files, *, accumulate=True):
        forget_process(7, str(tmp_path), served=False)
        return read(files, accumulate=accumulate)

    monkeypatch.setattr(MultiProcessCollector, "merge", staticmethod(merge))
    assert generate_latest(collected(str(tmp_path))) == b""


def test_a_worker_for_whose_numbers_there_is_no_space_says_so(small_disk):
    """It ends with the reason, and not by the first number that it writes."""
    disk, _ = small_disk
    with contextlib.suppress(OSError), (disk / "fill").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with pytest.raises(errors.InputError, match=r"No space left on device\); make space, or name another .* TMPDIR"):
        reserve(7, str(disk))


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_COMPRESSION"])
def test_a_variable_that_opentelemetry_cannot_use_is_one_line(monkeypatch, variable):
    """Whatever OpenTelemetry raises of its variables, a server that is to send spans says that it cannot start."""
    pytest.importorskip("opentelemetry.sdk.trace")
    monkeypatch.setenv(variable, "abc")
    with pytest.raises(errors.SettingsError, match=r"traces: OpenTelemetry cannot start \(.*abc.*OTEL_\* variables"):
        Traces()


def test_no_prompt_is_in_logs_metrics_errors_or_spans(tiny_bundle_path):
    """A canary sent every way there is shows up in no log at any level, metric, error or answer."""
    arguments = ["--bundle", str(tiny_bundle_path), "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    arguments += ["--log-level", "debug", "--log-format", "json", "--max-request-bytes", "100000"]
    chat = [{"role": r, "content": f"{CANARY} {r}"} for r in ("system", "user", "assistant", "tool", "user")]
    told = []
    with server_process(*arguments) as server:
        [address] = server.wait_ready()
        with Client(address, timeout_seconds=60, fallback_tier=Tier.SIMPLE) as client:
            client.classify(chat, tools=(CANARY,), labels={"k": CANARY}, request_id=CANARY)
            client.classify_batch([CANARY, f"{CANARY}\0", CANARY * 1000])
            list(client.classify_stream([CANARY, f"{CANARY}\0"]))
        with Client(address, timeout_seconds=60) as client:
            for bad in ({"policy": CANARY}, {"request_id": CANARY * 99}, {"labels": {CANARY: "x" * 999}}):
                with pytest.raises(errors.ClassifierError) as error:
                    client.classify(CANARY, **bad)
                told.append(repr(error.value))
            with pytest.raises(errors.ClassifierError) as error:
                client.classify(CANARY * 20_000)
            told.append(repr(error.value))
        with grpc.insecure_channel(address) as channel:
            call = channel.unary_unary("/classifier.v1.ClassifierService/Classify")
            for data in (CANARY.encode(), b"\x0a\xff\xff\xff\xff" + CANARY.encode()):
                with pytest.raises(grpc.RpcError) as refusal:
                    call(data, timeout=60)
                told.append(refusal.value.details())
        told.append(server.metrics_page())
        server.signal(signal.SIGTERM)
        server.wait()
        told += server.lines
    assert not [line for line in told if CANARY in line]
    logged = [json.loads(line) for line in server.lines if not line.startswith("serving on")]
    assert {"draining", "stopped"} <= {entry["event"] for entry in logged}


def test_spans_are_children_of_the_callers_and_hold_no_text():
    """A call's span has the caller's trace, its status and the decision, and no prompt."""
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    traces = Traces(provider)
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with fake_server(observer=Observers([Metrics(), traces])) as address, grpc.insecure_channel(address) as channel:
        from classifier.v1 import classifier_pb2 as pb
        from classifier.v1 import classifier_pb2_grpc as pb_grpc

        stub = pb_grpc.ClassifierServiceStub(channel)
        metadata = (("traceparent", f"00-{trace}-{span}-01"),)
        stub.Classify(
            pb.ClassifyRequest(messages=[pb.Message(role="user", content=CANARY)]), timeout=60, metadata=metadata
        )
        with pytest.raises(grpc.RpcError):
            stub.Classify(pb.ClassifyRequest(), timeout=60)
    traces.close()
    first, second = exporter.get_finished_spans()
    assert first.name == "classifier.v1.ClassifierService/Classify"
    assert (f"{first.context.trace_id:032x}", f"{first.parent.span_id:016x}") == (trace, span)
    assert first.attributes["rpc.response.status_code"] == "OK"
    assert first.events[0].attributes["classifier.tier"] == "standard"
    assert (second.parent, second.attributes["rpc.response.status_code"]) == (None, "INVALID_ARGUMENT")
    assert CANARY not in first.to_json() + second.to_json()


def _fail():
    raise ValueError(CANARY)


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()], ids=["json", "text"])
def test_a_log_line_never_holds_an_exceptions_text(formatter):
    """An exception is logged by class and place; other libraries' messages without what was filled in."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    for name in ("classifier.x", "other.library"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        try:
            _fail()
        except ValueError:
            logger.exception("it failed")
        if name == "other.library":
            logger.error("it failed for %s", CANARY)
        logger.removeHandler(handler)
    assert CANARY not in stream.getvalue()
    assert stream.getvalue().count("ValueError") == 2
    assert "test_telemetry.py" in stream.getvalue()


def test_json_logs_are_an_object_a_line():
    """A JSON log line has time, level, logger and event, and the facts given with it."""
    stream = io.StringIO()
    root = logging.getLogger()
    before = (root.handlers[:], root.level, logging.raiseExceptions)
    try:
        configure_logging("auto", "info", stream)
        logging.getLogger("classifier.test").info("%d things", 3, extra={"facts": {"bundle": "b"}})
    finally:
        root.handlers[:], root.level, logging.raiseExceptions = before
    entry = json.loads(stream.getvalue())
    assert (entry["event"], entry["level"], entry["bundle"]) == ("3 things", "info", "b")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry["ts"])


def test_the_queue_and_the_calls_at_hand_are_gauges():
    """While requests run and wait the gauges say so, and no longer than that."""
    import threading

    gate = threading.Event()
    metrics, engine = Metrics(), FakeEngine(on_score=lambda: gate.wait(60))
    with (
        fake_server(engine=engine, metrics=metrics, cores=1) as address,
        Client(address, timeout_seconds=60) as client,
    ):
        calls = [threading.Thread(target=client.classify, args=("x",)) for _ in range(3)]
        for n, call in enumerate(calls, start=1):
            call.start()
            until(lambda n=n: value(page(metrics), "classifier_in_flight") == n)
        assert value(page(metrics), "classifier_queue_depth") == 1  # when the last one came
        gate.set()
        for call in calls:
            call.join()
    assert value(page(metrics), "classifier_in_flight") == 0
    assert value(page(metrics), "classifier_queue_depth") == 0


def test_an_observer_that_does_nothing_is_enough():
    """The service runs without metrics."""
    observer = Observer()
    assert observer.call_started("Classify", ()) is None


def test_drift_is_measured_on_live_traffic(tiny_engine):
    """Traffic like the reference has small indices, other traffic large ones; little, or another bundle's, has none."""
    from classifier.drift import reference_distributions

    words = ["hi", "explain the function", "debug this please", "prove the theorem"]
    prepared = [tiny_engine.prepare(Request.from_text(word)) for word in words]
    decisions = [tiny_engine.decide(p, tiny_engine.score(p)) for p in prepared]
    reference = reference_distributions(
        [d.probabilities for d in decisions] * 100, [p.input.signals for p in prepared] * 100
    )

    def index(order):
        metrics = Metrics()
        for i in order:
            metrics.decided(decisions[i], prepared[i], {})
        metrics.drift(reference)
        found = re.findall(r'^classifier_drift_index{of="(\w+)"} (\S+)$', page(metrics), re.MULTILINE)
        return {of: float(number) for of, number in found}

    alike, other = index([0, 1, 2, 3] * 100), index([3] * 400)
    assert set(alike) == {
        *("above_simple", "above_standard", "above_complex"),
        *("turns", "tools", "attachments", "length", "code", "script"),
    }
    assert max(alike.values()) < 0.01
    assert other["above_complex"] > 0.25
    assert index([0, 1]) == {}
    metrics = Metrics()
    metrics.bundle("old", "1", golden_ok=True)
    for i in [3] * 400:
        metrics.decided(decisions[i], prepared[i], {})
    metrics.drift(reference)
    metrics.bundle("new", "1", golden_ok=True)
    metrics.drift(reference)
    assert set(re.findall(r"^classifier_drift_index{.*} (\S+)$", page(metrics), re.MULTILINE)) == {"NaN"}
