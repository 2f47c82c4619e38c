"""Server processes: ready line, ports, drain, and what they refuse to start with."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import re
import shutil
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from classifier import AsyncClient, Client, Tier, errors, wire
from classifier.cli.serve import _is_there
from classifier.health import Health
from classifier.lifetime import print_ready, run, serve
from classifier.listening import check_free
from classifier.reload import Fixed
from classifier.server import Server
from classifier.settings import ServerSettings
from classifier.telemetry import Metrics
from classifier.testing import FakeEngine, fake_server
from classifier.v1 import classifier_pb2 as pb
from classifier.v1 import classifier_pb2_grpc as pb_grpc
from tests.serving_support import port_nobody_is_given, server_process, until

ANY = "127.0.0.1:0"
REQUEST = pb.ClassifyRequest(messages=[pb.Message(role="user", content="x")])


def test_a_server_says_when_it_is_ready_and_answers(tiny_bundle_path, tmp_path):
    """One line `serving on` names the addresses; TCP and the Unix socket answer alike; SIGTERM ends it with 0."""
    socket_path = f"unix:{tmp_path}/c.sock"
    with server_process("--bundle", str(tiny_bundle_path), "--listen", ANY, "--listen", socket_path) as server:
        tcp, unix = server.wait_ready()
        assert unix == socket_path
        for address in (tcp, unix):
            with Client(address, timeout_seconds=60) as client:
                assert client.classify("prove the theorem").tier is Tier.FRONTIER
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert len(server.ready_lines) == 1
        assert server.process.stdout.read() == ""


def test_the_event_loop_is_uvloop_where_it_is_installed():
    """With the extra `fast` a server runs on uvloop, without it on asyncio's own loop."""
    found = []

    async def main():
        found.append(type(asyncio.get_running_loop()).__module__.partition(".")[0])

    run(main())
    assert found == ["uvloop" if find_spec("uvloop") else "asyncio"]


def test_a_limit_that_grpc_holds_below_is_told_of_on_sighup(caplog):
    """The limit of gRPC itself is that of the start: above it a setting changes no more; log and GetInfo say so."""

    async def main(most):
        settings = ServerSettings(listen=(ANY,), store="off", shutdown_delay_seconds=0)
        fresh = replace(settings, max_request_bytes=most)
        server = Server(settings, source=Fixed(FakeEngine()), reread=lambda: fresh)
        await server.start()
        await server.reload()
        async with AsyncClient(*server.addresses) as client:
            info = await client.info(timeout_seconds=60)
        await server.stop()
        return info.limits.max_request_bytes

    at_start = ServerSettings().max_request_bytes
    for times, told in ((4, 0), (5, 1)):
        assert asyncio.run(main(times * at_start)) == 4 * at_start
        assert caplog.text.count("gRPC takes in no more") == told


@pytest.mark.parametrize("what", ["tokens", "routes"])
async def test_a_server_that_is_refused_its_files_leaves_no_thread_behind(what):
    """A process that starts one after another, as tests do, does not gather what nobody can close."""
    before = threading.active_count()
    server = Server(ServerSettings(listen=(ANY,), store="off", **{what: "/nowhere"}), source=Fixed(FakeEngine()))
    with pytest.raises(errors.SettingsError, match="/nowhere"):
        await server.start()
    assert threading.active_count() == before


async def test_sighup_says_how_often_to_look_from_now_on():
    """A server that would look again in an hour looks as often as the new settings say, at once."""
    looked = threading.Event()

    class Source(Fixed):
        def wanted(self):
            looked.set()
            return super().wanted()

    settings = ServerSettings(listen=(ANY,), store="off", shutdown_delay_seconds=0, watch_seconds=3600)
    often = replace(settings, watch_seconds=0.01)
    server = Server(settings, source=Source(FakeEngine()), reread=lambda: often)
    await server.start()
    await asyncio.sleep(0)  # the hour begins
    await server.reload()  # and itself looks once
    for _ in range(2):
        looked.clear()
        assert await asyncio.to_thread(looked.wait, 60)
    await server.stop()


def test_a_line_that_a_full_disk_does_not_take_ends_no_server(monkeypatch):
    """Where stderr cannot be written, requests are answered without the line that says so."""

    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, text)

    monkeypatch.setattr("sys.stderr", Full())
    print_ready([ANY])


def test_a_store_that_is_off_is_not_looked_for_at_any_price():
    """A folder that cannot be looked into holds up no server that keeps nothing."""
    assert not _is_there(Path("x" * 300))  # the system refuses such a name, as it does a folder of somebody else's


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_sigterm_that_comes_early_is_kept_for_the_start(tiny_bundle_path, workers):
    """One that comes before the server listens to it is no death: the first process of a container would lose it."""
    arguments = ["--bundle", str(tiny_bundle_path), "--listen", "127.0.0.1:0", "--workers", workers]
    with server_process(*arguments) as server:
        status = Path(f"/proc/{server.process.pid}/status")
        until(lambda: int(re.findall(r"SigBlk:\s*(\w+)", status.read_text())[0], 16) & 1)  # SIGHUP waits as well
        server.signal(signal.SIGTERM)
        assert (server.wait(), server.ready_lines) == (0, [])


@pytest.mark.parametrize(("number", "code", "workers"), [(signal.SIGTERM, 0, "1"), (signal.SIGINT, 130, "2")])
def test_a_server_told_to_stop_drains_and_ends_with_the_code_of_the_signal(tiny_bundle_path, number, code, workers):
    """SIGTERM and SIGINT both drain a server; the first is its end, and after Ctrl-C it was interrupted."""
    arguments = ["--bundle", str(tiny_bundle_path), "--listen", "127.0.0.1:0", "--workers", workers]
    with server_process(*arguments) as server:
        server.wait_ready()
        server.signal(number)
        assert server.wait() == code
        server.wait_said("draining")
        assert ("interrupted" in server.lines) == (code == 130)


@pytest.mark.parametrize(("number", "code", "workers"), [(signal.SIGTERM, 0, "1"), (signal.SIGINT, 130, "2")])
def test_a_server_that_still_loads_at_its_end_is_not_aborted(tiny_bundle_path, number, code, workers):
    """A load that takes too long is left where it is, and the exit code is the signal's all the same."""
    arguments = ["--bundle", str(tiny_bundle_path), "--listen", "127.0.0.1:0", "--workers", workers]
    with server_process(*arguments, module="tests.loading_server") as server:
        server.wait_said("loading")
        server.signal(number)
        assert (server.wait(), [line for line in server.lines if "terminate called" in line]) == (code, [])


def test_a_load_that_gets_on_may_finish_when_the_process_ends():
    """Who stops a server while it loads waits for the load: Python would end its thread by force, which aborts."""
    loading, loaded = threading.Event(), threading.Event()

    class Slow(Fixed):
        def load(self):
            loading.set()
            time.sleep(0.3)
            loaded.set()
            return super().load()

    async def main():
        stop = asyncio.Event()
        settings = ServerSettings(listen=(ANY,), store="off")
        serving = asyncio.create_task(serve(Server(settings, source=Slow(FakeEngine())), stop=stop))
        await asyncio.to_thread(loading.wait)
        stop.set()
        await serving

    asyncio.run(main())
    assert loaded.is_set()


async def test_a_server_whose_serving_is_cancelled_is_stopped(monkeypatch):
    """It would listen on after its event loop ends, where nobody answers and a call crashes the process."""
    for tuning in ("gc.freeze", "sys.setswitchinterval"):  # of the whole process, which here is the tests'
        monkeypatch.setattr(tuning, lambda *_: None)
    ready = asyncio.Event()
    server = Server(ServerSettings(listen=(ANY,), store="off", shutdown_delay_seconds=0), source=Fixed(FakeEngine()))
    serving = asyncio.create_task(serve(server, ready=lambda _: ready.set()))
    await ready.wait()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    host, _, port = server.addresses[0].rpartition(":")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, int(port))


async def test_a_store_opens_while_the_bundle_loads(monkeypatch, tmp_path):
    """Neither waits for the other: each of the two here ends only when the other has begun."""
    opening, loading, closed = threading.Event(), threading.Event(), threading.Event()

    def open_store(*_, **__):
        opening.set()
        assert loading.wait(60)
        return SimpleNamespace(name="here", keep="hash", close=closed.set)

    class Slow(Fixed):
        def load(self):
            loading.set()
            assert opening.wait(60)
            return super().load()

    monkeypatch.setattr("classifier.feedback.open_store", open_store)
    settings = ServerSettings(listen=(ANY,), feedback_url="sqlite:///f.db", key_file=str(tmp_path / "key"))
    server = Server(settings, source=Slow(FakeEngine()))
    await server.start()
    assert server.service.feedback.name == "here"
    await server.stop()
    assert closed.is_set()


async def test_a_store_beside_a_bundle_that_cannot_be_used_is_closed(monkeypatch, tmp_path):
    """What ends the start is the bundle, and the store that opened meanwhile is not left open."""
    loaded, closed = threading.Event(), threading.Event()

    def open_store(*_, **__):
        assert loaded.wait(60)
        return SimpleNamespace(name="here", keep="hash", close=closed.set)

    class Broken(Fixed):
        def load(self):
            loaded.set()
            raise errors.BundleCorrupt("broken")

    monkeypatch.setattr("classifier.feedback.open_store", open_store)
    settings = ServerSettings(listen=(ANY,), feedback_url="sqlite:///f.db", key_file=str(tmp_path / "key"))
    with pytest.raises(errors.BundleCorrupt):
        await Server(settings, source=Broken(FakeEngine())).start()
    assert closed.is_set()


def test_a_server_told_to_stop_before_it_is_ready_stops(tmp_path):
    """A server that is told to stop while it loads its bundle closes its socket and ends with 0."""
    pipe, path = tmp_path / "pipe", tmp_path / "c.sock"
    os.mkfifo(pipe)
    with server_process(f"unix:{path}", str(pipe), module="tests.hanging_server") as server:
        with pipe.open("wb"):  # waits until the server reads
            server.signal(signal.SIGTERM)
            until(lambda: not _listens(path))
        assert server.wait() == 0
        assert not server.ready_lines


def test_a_port_in_use_is_a_clear_error(tiny_bundle_path):
    """A port that another listens on is named, and the exit code says usage."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with server_process("--bundle", str(tiny_bundle_path), "--listen", address) as server:
            assert server.wait() == 2
            assert server.lines == [
                f"error: listen: {address} is in use; stop what listens there, or choose another --listen"
            ]


def test_a_unix_socket_in_use_is_not_taken_over(tmp_path):
    """A live Unix socket stays with its server."""
    address = f"unix:{tmp_path}/c.sock"
    with fake_server(listen=(address,)):
        with pytest.raises(Exception, match="is served already"), fake_server(listen=(address,)):
            pass
        with Client(address, timeout_seconds=60) as client:
            assert client.classify("x").tier is Tier.STANDARD


def test_a_unix_socket_whose_server_is_behind_is_not_waited_for(tmp_path):
    """Where a server has not accepted who came before, its socket is in use all the same."""
    path = f"{tmp_path}/c.sock"
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(path)
        listening.listen(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(path)
        before = socket.getdefaulttimeout()
        stack.callback(socket.setdefaulttimeout, before)
        socket.setdefaulttimeout(60)  # a connection that would be waited for ends
        with pytest.raises(errors.SettingsError, match="is served already"):
            check_free(f"unix:{path}", shared=False)


@pytest.mark.parametrize(
    ("path", "words"),
    [("file", "is no socket"), ("none/c.sock", "no folder"), ("x" * 108, "is longer than")],
    ids=["a file", "no folder", "too long"],
)
def test_a_path_that_can_hold_no_socket_is_refused_with_the_reason(tmp_path, path, words):
    """A file in the way stays, and a folder that is not there is named."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(errors.SettingsError, match=words), fake_server(listen=(f"unix:{tmp_path}/{path}",)):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_a_port_can_be_taken_again_at_once(tiny_engine):
    """A server that ended leaves its port to the next one."""
    address = f"127.0.0.1:{port_nobody_is_given()}"
    for _ in range(2):
        with fake_server(engine=tiny_engine, listen=(address,)) as found, Client(address, timeout_seconds=60) as client:
            assert found == address
            client.classify("hi")


@pytest.mark.parametrize("damage", ["missing", "truncated", "foreign"])
def test_a_bundle_that_cannot_be_trusted_is_refused(tiny_bundle_path, tmp_path, damage):
    """No bundle, a truncated file and a foreign folder each end the start with their reason."""
    path = tmp_path / "bundle"
    if damage == "truncated":
        shutil.copytree(tiny_bundle_path, path)
        model = path / "model.onnx"
        model.write_bytes(model.read_bytes()[:-100])
    elif damage == "foreign":
        path.mkdir()
        (path / "manifest.json").write_text('{"hello": 1}')
    with server_process("--bundle", str(path), "--listen", ANY) as server:
        assert server.wait() == 1
        [line] = server.lines
        assert line.startswith("error: ")
        assert str(path) in line


def test_what_is_in_flight_is_answered_when_the_server_is_told_to_stop():
    """What reached the server before it was told to stop is answered, with health at NOT_SERVING meanwhile."""
    gate, metrics = threading.Event(), Metrics()
    engine = FakeEngine(on_score=lambda: gate.wait(60))
    with ThreadPoolExecutor(9) as pool, contextlib.ExitStack() as later:
        with fake_server(engine=engine, metrics=metrics, cores=2, max_wait_seconds=60, drain_seconds=60) as address:
            channel = later.enter_context(grpc.insecure_channel(address))
            client = later.enter_context(Client(address, timeout_seconds=60))
            health = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
            assert next(health).status == health_pb2.HealthCheckResponse.SERVING
            answers = [pool.submit(client.classify, "x") for _ in range(8)]
            # The two that run hold the cores until health has changed, so none of the eight is done before.
            until(lambda: metrics.registry.get_sample_value("classifier_in_flight") == 8)
            drain = pool.submit(lambda: (next(health).status, gate.set(), health.cancel())[0])
        found = [a.result() for a in answers]
        assert drain.result() == health_pb2.HealthCheckResponse.NOT_SERVING
    assert all(answer.classified for answer in found)


async def test_balancers_get_the_time_to_notice():
    """For the shutdown delay a server that was told to stop says NOT_SERVING and still answers."""
    settings = ServerSettings(listen=(ANY,), store="off", shutdown_delay_seconds=60)
    server = Server(settings, source=Fixed(FakeEngine()))
    await server.start()
    async with grpc.aio.insecure_channel(server.addresses[0]) as channel:
        stub = pb_grpc.ClassifierServiceStub(channel)  # our client would go elsewhere
        health = aiter(health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60))
        assert (await anext(health)).status == health_pb2.HealthCheckResponse.SERVING
        stopping = asyncio.create_task(server.stop())
        assert (await anext(health)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        answer = await stub.Classify(REQUEST, timeout=60)
        assert not stopping.done()
        stopping.cancel()  # the test need not wait for the rest of the delay
        await asyncio.gather(stopping, return_exceptions=True)
        server.settings = replace(settings, shutdown_delay_seconds=0)
        await server.stop()
    assert answer.tier == Tier.STANDARD


def test_whoever_watches_health_hears_of_every_change():
    """A watcher that leaves takes nothing from the others, and none of them holds up the end of a server."""
    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as later:
        with fake_server(drain_seconds=60) as address:
            stubs = [health_pb2_grpc.HealthStub(later.enter_context(grpc.insecure_channel(address))) for _ in range(2)]
            first, other = (stub.Watch(health_pb2.HealthCheckRequest(service=wire.SERVICE)) for stub in stubs)
            assert next(first).status == next(other).status == health_pb2.HealthCheckResponse.SERVING
            first.cancel()
            time.sleep(0.1)  # the server hears of it
            rest = pool.submit(lambda: [found.status for found in other])
        assert rest.result() == [health_pb2.HealthCheckResponse.NOT_SERVING]
    assert time.monotonic() - started < 30


def test_health_of_a_service_that_is_not_here_is_not_known():
    """Whoever asks for another name is told so, and who watches it hears it first and last."""
    other = health_pb2.HealthCheckRequest(service="classifier.v2.ClassifierService")
    with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as later:
        with fake_server(drain_seconds=60) as address:
            stub = health_pb2_grpc.HealthStub(later.enter_context(grpc.insecure_channel(address)))
            with pytest.raises(grpc.RpcError) as refusal:
                stub.Check(other, timeout=60)
            watching = stub.Watch(other, timeout=60)
            assert next(watching).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            rest = pool.submit(lambda: [found.status for found in watching])
        assert rest.result() == []
    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watcher_that_is_told_slowly_hears_the_last_word():
    """What changes while a watcher is being told is told next, and only then does the watching end."""
    health, told = Health(), []

    class Slow:
        async def write(self, response):
            told.append(response.status)
            if len(told) == 1:
                health.set(serving=False)
                health.close()

    health.set(serving=True)
    await health.Watch(health_pb2.HealthCheckRequest(), Slow())
    assert told == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]


@pytest.mark.failure("down", "Python client")
def test_a_server_of_two_that_restarts_under_load_costs_no_request(tiny_bundle_path):
    """SIGTERM and the start of the next server take no answer from clients that have another server to ask."""
    ports, answered = [port_nobody_is_given() for _ in range(2)], r'classifier_items_total{result="classified"} [1-9]'
    done = threading.Event()

    def start(port, later):
        told = ("--bundle", str(tiny_bundle_path), "--listen", f"127.0.0.1:{port}", "--metrics-listen", ANY)
        server = later.enter_context(server_process(*told))
        server.wait_ready()
        return server

    with contextlib.ExitStack() as later:
        servers = [start(port, later) for port in ports]
        target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports)
        client = later.enter_context(Client(target, fallback_tier=Tier.SIMPLE, timeout_seconds=60))

        def ask():
            while not done.wait(0.01):  # the servers that start need the cores, too
                client.classify("hi")

        pool = later.enter_context(ThreadPoolExecutor(4))
        asking = [pool.submit(ask) for _ in range(4)]
        try:
            for port in ports:
                for server in servers:  # the client has found it
                    until(lambda: re.search(answered, server.metrics_page()))  # noqa: B023
                server = servers.pop(0)
                server.signal(signal.SIGTERM)
                assert server.wait() == 0
                servers.append(start(port, later))
        finally:
            done.set()
        for one in asking:
            one.result()
        assert set(client.counts) == {"classified"}


def test_other_machines_need_tls_or_the_word(tiny_bundle_path):
    """A server that others could reach without TLS does not start; the message says what is missing."""
    with server_process("--bundle", str(tiny_bundle_path), "--listen", "0.0.0.0:0") as server:
        assert server.wait() == 2
        assert "--insecure" in server.lines[0]
    with server_process("--bundle", str(tiny_bundle_path), "--listen", "0.0.0.0:0", "--insecure") as server:
        server.wait_ready()


def _listens(path):
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def test_settings_come_from_the_environment_too(tiny_bundle_path):
    """A CLASSIFIER_ variable is the flag of that name."""
    env = {"CLASSIFIER_BUNDLE": str(tiny_bundle_path), "CLASSIFIER_LISTEN": ANY, "CLASSIFIER_MAX_MESSAGES": "7"}
    with server_process(env=env) as server:
        [address] = server.wait_ready()
        with Client(address) as client:
            assert client.info(timeout_seconds=60).limits.max_messages == 7


def test_a_server_is_small(tiny_bundle_path):
    """With a tiny bundle a server is far below 200 MB."""
    with server_process("--bundle", str(tiny_bundle_path), "--listen", ANY) as server:
        [address] = server.wait_ready()
        with Client(address, timeout_seconds=60) as client:
            client.classify("hi")
        assert server.resident_bytes() < 200e6
