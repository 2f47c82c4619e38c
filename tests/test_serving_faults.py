"""Faults against real server processes: kills, many connections, full disks, hostile bytes, long runs with reloads."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import random
import resource
import shutil
import signal
import socket
import sqlite3
import threading
import time
from collections import Counter

import grpc
import pytest

from classifier import Client, Request, Tier, errors, wire
from classifier.inputs import render
from classifier.types import OutcomeState
from classifier.v1 import classifier_pb2 as pb
from classifier.v1 import classifier_pb2_grpc as pb_grpc
from tests.serving_support import make_certificates, server_process, until
from tests.test_reload import Folder
from tests.test_reporting import outcome
from tests.test_workers import children
from tests.tiny import tiny_bundle

REQUEST = pb.ClassifyRequest(messages=[pb.Message(role="user", content="prove the theorem")])
long = pytest.mark.faults


@pytest.mark.parametrize("count", [pytest.param(50, id="short"), pytest.param(1000, id="long", marks=long)])
async def test_many_connections_are_served(tiny_bundle_path, count):
    """Each of a thousand connections, open at once, gets its answer; as many that say nothing hinder nobody."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    arguments = ["--bundle", str(tiny_bundle_path), "--listen", "127.0.0.1:0", "--queue-size", "2000"]
    with server_process(*arguments, "--max-wait-seconds", "30") as server, contextlib.ExitStack() as silent:
        [address] = server.wait_ready()
        host, port = address.split(":")
        for _ in range(count // 2):
            silent.enter_context(socket.create_connection((host, int(port)), timeout=30))
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels = [grpc.aio.insecure_channel(address, options) for _ in range(count // 2)]

        async def ask(channel):
            return (
                await pb_grpc.ClassifierServiceStub(channel).Classify(REQUEST, timeout=60, wait_for_ready=True)
            ).tier

        tiers = await asyncio.gather(*(ask(channel) for channel in channels))
        again = await asyncio.gather(*(ask(channel) for channel in channels))
        for channel in channels:
            await channel.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert Counter(tiers + again) == {pb.TIER_FRONTIER: 2 * (count // 2)}


@pytest.mark.parametrize(
    ("requests", "reloads"), [pytest.param(1500, 2, id="short"), pytest.param(100_000, 20, id="long", marks=long)]
)
@pytest.mark.timeout(1800)
async def test_a_long_run_with_reloads_fails_nothing_and_does_not_grow(tiny_bundle_path, tmp_path, requests, reloads):
    """Through many requests with hot reloads among them none fails, and memory stays flat."""
    other = tiny_bundle(tmp_path / "other", scale=5.0).path
    served = tmp_path / "served"
    shutil.copytree(tiny_bundle_path, served)
    versions = [Folder(tiny_bundle_path).wanted(), Folder(other).wanted()]
    arguments = ["--bundle", str(served), "--listen", "127.0.0.1:0", "--watch-seconds", "0.02", "--queue-size", "256"]
    arguments += ["--max-wait-seconds", "10"]
    codes, seen, done = Counter(), Counter(), [0]
    memory = []
    with server_process(*arguments) as server:
        [address] = server.wait_ready()
        async with grpc.aio.insecure_channel(address) as channel:
            stub = pb_grpc.ClassifierServiceStub(channel)

            async def caller():
                while done[0] < requests:
                    done[0] += 1
                    try:
                        answer = await stub.Classify(REQUEST, timeout=60)
                        codes["OK" if answer.tier == pb.TIER_FRONTIER else "wrong"] += 1
                        seen[answer.bundle_version] += 1
                    except grpc.RpcError as error:
                        codes[error.code().name] += 1

            async def reload():
                for number in range(1, reloads + 1):
                    while done[0] < number * requests / (reloads + 1):  # noqa: ASYNC110 - a count, not an event
                        await asyncio.sleep(0.005)
                    memory.append(server.resident_bytes())
                    fresh = tmp_path / f"fresh{number}"
                    shutil.copytree(other if number % 2 else tiny_bundle_path, fresh)
                    served.rename(tmp_path / f"old{number}")
                    fresh.rename(served)
                    wanted, end = versions[number % 2], time.monotonic() + 60
                    while seen[wanted] == 0 or (await stub.GetInfo(pb.GetInfoRequest())).bundle_version != wanted:
                        assert time.monotonic() < end, f"reload {number} did not come"
                        await asyncio.sleep(0.01)

            await asyncio.gather(reload(), *(caller() for _ in range(16)))
        memory.append(server.resident_bytes())
    assert codes == {"OK": sum(codes.values())}
    assert sum(codes.values()) >= requests
    if reloads > 5:  # after the first few reloads every arena has been touched
        assert memory[-1] <= 1.05 * memory[4], [f"{m / 1e6:.1f} MB" for m in memory]


@pytest.mark.parametrize("kills", [pytest.param(1, id="short"), pytest.param(6, id="long", marks=long)])
def test_killed_workers_cost_no_answer_and_no_acknowledged_outcome(tiny_bundle_path, tmp_path, kills):
    """While workers are killed every call gets a tier, and every outcome that was acknowledged is in the store."""
    database = tmp_path / "f.db"
    arguments = ["--bundle", str(tiny_bundle_path), "--listen", "127.0.0.1:0", "--workers", "2", "--cores", "2"]
    arguments += ["--feedback-url", f"sqlite:///{database}", "--key-file", str(tmp_path / "key")]
    answers, acknowledged, stop = [], [], threading.Event()
    with server_process(*arguments) as server:
        [address] = server.wait_ready()

        def ask(number):
            # A client a few requests long, so that connections spread over the workers again and again.
            i = 0
            while not stop.is_set():
                with Client(address, timeout_seconds=60, fallback_tier=Tier.COMPLEX) as client:
                    for _ in range(20):
                        answer = client.classify("prove the theorem")
                        answers.append(answer)
                        i += 1
                        if answer.classified:
                            with contextlib.suppress(errors.ClassifierError):
                                client.report_outcome(
                                    outcome(answer.decision.decision_id, f"{number}-{i}"), timeout_seconds=60
                                )
                                acknowledged.append((f"{number}-{i}",))

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(kills):
            before = len(acknowledged)
            until(lambda before=before: len(acknowledged) > before + 50)
            replaced = len([line for line in server.lines if "serves" in line])
            os.kill(random.choice(children(server.process.pid)), signal.SIGKILL)
            until(lambda n=replaced: len([line for line in server.lines if "serves" in line]) > n)
        before = len(answers)
        until(lambda: len(answers) > before + 100)
        stop.set()
        for thread in threads:
            thread.join()
    wrong = [a for a in answers if a.tier is not (Tier.FRONTIER if a.classified else Tier.COMPLEX)]
    assert not wrong
    # A kill costs a caller at most what is left of one client's life.
    assert sum(not a.classified for a in answers) <= kills * len(threads) * 20
    with contextlib.closing(sqlite3.connect(database)) as connection:
        kept = set(connection.execute("select outcome_id from outcomes").fetchall())
    assert set(acknowledged) <= kept


def test_a_full_disk_refuses_outcomes_and_serves_on(tiny_bundle_path, tmp_path):
    """When the store's disk is full outcomes are refused, none that was acknowledged is lost, answers go on."""
    database = tmp_path / "f.db"
    arguments = ["--bundle", str(tiny_bundle_path), "--listen", "127.0.0.1:0", "--key-file", str(tmp_path / "key")]
    arguments += ["--feedback-url", f"sqlite:///{database}"]

    def small_files():  # every write beyond this fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))

    acknowledged, refused = [], []
    with server_process(*arguments, limit=small_files) as server:
        [address] = server.wait_ready()
        with Client(address, timeout_seconds=60) as client:
            for i in range(400):
                decision = client.classify("prove the theorem", labels={"filler": "x" * 200}).decision
                text = Request.from_text("x" * 3000)
                try:
                    told = outcome(decision.decision_id, f"o{i}", request=text)
                    assert client.report_outcome(told, timeout_seconds=60) in set(OutcomeState)
                    acknowledged.append((f"o{i}",))
                except errors.StoreUnavailable as error:
                    refused.append(error.retry_after_seconds)
                    if len(refused) > 5:
                        break
            assert client.classify("prove the theorem").tier is Tier.FRONTIER
    assert refused
    assert min(refused) > 0
    assert acknowledged
    with contextlib.closing(sqlite3.connect(database)) as connection:
        kept = set(connection.execute("select outcome_id from outcomes").fetchall())
    assert set(acknowledged) <= kept


@pytest.mark.parametrize("count", [pytest.param(3000, id="short"), pytest.param(120_000, id="long", marks=long)])
def test_no_bytes_crash_the_wire_or_the_inputs(count):
    """Messages with bytes flipped, cut, doubled and mixed are decoded and rendered, or refused as invalid."""
    draw = random.Random(count)
    chat = [
        pb.Message(role=role, content=f"<system-reminder>{role}</system-reminder> é中🙂[SEP]")
        for role in ("user", "tool")
    ]
    full = pb.ClassifyRequest(
        messages=chat, tools=[pb.Tool(name="t")], attachments=2, floor=2, ceiling=3, record=False, labels={"a": "b"}
    )
    examples = [
        REQUEST,
        full,
        pb.ClassifyBatchRequest(requests=[REQUEST, full]),
        pb.ClassifyStreamRequest(request=full),
        wire.outcome_to_proto(outcome("d", request=Request.from_text("x"))),
    ]
    seeds = [(type(example), example.SerializeToString()) for example in examples]
    read, refused = 0, 0
    for _ in range(count):
        kind, seed = draw.choice(seeds)
        data = bytearray(seed)
        for _ in range(draw.randrange(1, 4)):
            at, what = draw.randrange(len(data) + 1), draw.randrange(8)
            if what <= 3 and data:  # a flip within a text leaves a message that is read
                data[at % len(data)] ^= 1 << draw.randrange(8)
            elif what == 4:
                del data[at : at + draw.randrange(1, 9)]
            elif what == 5:
                data[at:at] = data[at : at + draw.randrange(1, 30)]
            elif what == 6:
                data[at:at] = draw.randbytes(draw.randrange(1, 9))
            else:
                data += draw.choice(seeds)[1]  # messages merge when they follow one another
        try:
            message = wire.parse(kind, bytes(data))
            if isinstance(message, pb.ReportOutcomeRequest):
                wire.outcome_from_proto(message)
            for item in {pb.ClassifyRequest: lambda m: [m], pb.ClassifyBatchRequest: lambda m: m.requests}.get(
                kind, lambda m: [m.request]
            )(message):
                render(wire.request_from_proto(item, max_messages=50))
            read += 1
        except errors.InvalidRequest:
            refused += 1
    assert read > count / 20
    assert refused > count / 20


@pytest.mark.parametrize("count", [pytest.param(50, id="short"), pytest.param(1500, id="long", marks=long)])
def test_hostile_connections_do_not_stop_the_server(tiny_bundle_path, count):
    """Bytes that are no HTTP/2, and HTTP/2 that is no gRPC, are dropped; the server serves on."""
    draw = random.Random(5)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    with server_process("--bundle", str(tiny_bundle_path), "--listen", "127.0.0.1:0") as server:
        [address] = server.wait_ready()
        host, port = address.split(":")
        for number in range(count):
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=60) as connection:
                connection.sendall((preface if number % 2 else b"") + draw.randbytes(draw.randrange(1, 2000)))
        with Client(address, timeout_seconds=60) as client:
            assert client.classify("prove the theorem").tier is Tier.FRONTIER
        assert server.process.poll() is None


def test_a_bundle_that_comes_while_it_drains_comes_too_late(tiny_bundle_path, tmp_path):
    """A reload during the drain neither holds it up nor breaks what is still being answered."""
    served, fresh = tmp_path / "served", tiny_bundle(tmp_path / "fresh", scale=5.0).path
    shutil.copytree(tiny_bundle_path, served)
    arguments = ["--bundle", str(served), "--listen", "127.0.0.1:0", "--watch-seconds", "0.01"]
    with server_process(*arguments, "--drain-seconds", "60") as server:
        [address] = server.wait_ready()
        with grpc.insecure_channel(address) as channel:
            sent: queue.Queue[pb.ClassifyStreamRequest | None] = queue.Queue()
            stream = pb_grpc.ClassifierServiceStub(channel).ClassifyStream(iter(sent.get, None), timeout=60)
            sent.put(pb.ClassifyStreamRequest(request=REQUEST))
            before = next(stream).result.response
            server.signal(signal.SIGTERM)
            server.wait_said("draining")
            served.rename(tmp_path / "old")
            fresh.rename(served)
            server.signal(signal.SIGHUP)
            sent.put(pb.ClassifyStreamRequest(request=REQUEST))
            after = next(stream).result.response
            sent.put(None)
            assert list(stream) == []
        assert server.wait() == 0
        assert after.bundle_version == before.bundle_version
        assert not [line for line in server.lines if "Traceback" in line or "rror" in line]


def test_a_certificate_is_replaced_while_calls_go_on(tiny_bundle_path, tmp_path):
    """A new certificate is used for new connections, the old connection goes on, and a broken file changes nothing."""
    for authority in ("one", "two"):
        make_certificates(tmp_path / authority, "server")
    cert, key = tmp_path / "server.pem", tmp_path / "server.key"

    def install(authority):
        for target in (cert, key):
            shutil.copy(tmp_path / authority / target.name, target)

    install("one")
    arguments = ["--bundle", str(tiny_bundle_path), "--tls-cert", str(cert), "--tls-key", str(key)]
    with server_process(*arguments, "--listen", "127.0.0.1:0") as server:
        target = "localhost:" + server.wait_ready()[0].rpartition(":")[2]
        with Client(target, tls_ca=tmp_path / "one" / "ca.pem", timeout_seconds=60) as old:
            old.classify("hi")
            install("two")
            for _ in range(2):
                with Client(target, tls_ca=tmp_path / "two" / "ca.pem", timeout_seconds=60) as new:
                    assert new.classify("prove the theorem").tier is Tier.FRONTIER
                cert.write_text("broken")
            assert old.classify("prove the theorem").tier is Tier.FRONTIER
        assert server.process.poll() is None


@pytest.mark.parametrize("count", [pytest.param(3, id="short"), pytest.param(60, id="long", marks=long)])
def test_clients_that_stall_hinder_nobody_and_are_sent_away(tiny_bundle_path, count):
    """Streams that stop sending end after the idle time; others are answered all the while."""
    arguments = ["--bundle", str(tiny_bundle_path), "--listen", "127.0.0.1:0", "--stream-idle-seconds", "2"]
    stop = threading.Event()

    def one_and_then_nothing():
        yield pb.ClassifyStreamRequest(request=REQUEST)
        stop.wait(60)

    with server_process(*arguments) as server, contextlib.ExitStack() as channels:
        [address] = server.wait_ready()
        streams = []
        for _ in range(count):
            channel = channels.enter_context(grpc.insecure_channel(address))
            streams.append(pb_grpc.ClassifierServiceStub(channel).ClassifyStream(one_and_then_nothing(), timeout=60))
        with Client(address, timeout_seconds=60) as client:
            assert client.classify("prove the theorem").tier is Tier.FRONTIER
        codes = []
        for stream in streams:
            with pytest.raises(grpc.RpcError) as end:
                list(stream)
            codes.append(end.value.code())
        stop.set()
        assert set(codes) == {grpc.StatusCode.DEADLINE_EXCEEDED}
        with Client(address, timeout_seconds=60) as client:
            assert client.classify("prove the theorem").tier is Tier.FRONTIER
