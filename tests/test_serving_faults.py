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

from classifier import Client, Request, Tier, errors
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
    ("requests", "reloads"), [pytest.param(400, 2, id="short"), pytest.param(100_000, 20, id="long", marks=long)]
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
    codes, seen, done, reloaded = Counter(), Counter(), [0], asyncio.Event()
    memory = []
    with server_process(*arguments) as server:
        [address] = server.wait_ready()
        async with grpc.aio.insecure_channel(address) as channel:
            stub = pb_grpc.ClassifierServiceStub(channel)

            async def caller():
                while done[0] < requests or not reloaded.is_set():  # whoever waits for a reload needs answers
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
                reloaded.set()

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
    with server_process(*arguments) as server, contextlib.ExitStack() as ended:
        [address] = server.wait_ready()

        def ask(number):
            # A client a few requests long, so that connections spread over the workers again and again.
            i = 0
            while not stop.is_set():
                with Client(address, timeout_seconds=60, fallback_tier=Tier.COMPLEX) as client:
                    for _ in range(20):
                        stop.wait(0.005)  # the worker that starts needs the cores, too
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
            ended.callback(thread.join)
        ended.callback(stop.set)  # first, also where the test fails
        for _ in range(kills):
            before = len(acknowledged)
            until(lambda before=before: len(acknowledged) > before + 50)
            replaced = len([line for line in server.lines if "serves" in line])
            os.kill(random.choice(children(server.process.pid)), signal.SIGKILL)
            until(lambda n=replaced: len([line for line in server.lines if "serves" in line]) > n)
        before = len(answers)
        until(lambda: len(answers) > before + 100)
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

    acknowledged, refused = [], []
    with server_process(*arguments, max_file_bytes=400_000) as server:
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


@long
def test_a_disk_that_fills_and_gets_room_again_loses_nothing_acknowledged(tiny_bundle_path, tmp_path, small_disk):
    """On a real disk that is full time and again outcomes are refused, and taken as soon as there is room."""
    disk, resize = small_disk
    arguments = ["--bundle", str(tiny_bundle_path), "--listen", "127.0.0.1:0", "--key-file", str(tmp_path / "key")]
    acknowledged, full = [], 0
    with server_process(*arguments, "--feedback-url", f"sqlite:///{disk}/f.db") as server:
        [address] = server.wait_ready()
        with Client(address, timeout_seconds=60) as client:

            def report(number):
                decision = client.classify("prove the theorem", labels={"filler": "x" * 200}).decision
                told = outcome(decision.decision_id, f"o{number}", request=Request.from_text("x" * 3000))
                try:
                    client.report_outcome(told, timeout_seconds=60)
                except errors.StoreUnavailable:
                    return False
                acknowledged.append((f"o{number}",))
                return True

            number = 0
            for size in (2, 3, 4, 5):
                resize(f"{size}m")
                until(lambda: report(f"again-{len(acknowledged)}"))
                while report(number := number + 1):
                    assert number < 20_000
                full += 1
            assert client.classify("prove the theorem").tier is Tier.FRONTIER
    resize("16m")
    with contextlib.closing(sqlite3.connect(disk / "f.db")) as connection:
        kept = set(connection.execute("select outcome_id from outcomes").fetchall())
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    assert full == 4
    assert set(acknowledged) <= kept


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


@pytest.mark.parametrize("count", [pytest.param(1, id="short"), pytest.param(40, id="long", marks=long)])
def test_a_bundle_that_comes_while_it_drains_comes_too_late(tiny_bundle_path, tmp_path, count):
    """A reload during the drain neither holds it up nor breaks what is still being answered."""
    served, fresh = tmp_path / "served", tiny_bundle(tmp_path / "fresh", scale=5.0).path
    shutil.copytree(tiny_bundle_path, served)
    arguments = ["--bundle", str(served), "--listen", "127.0.0.1:0", "--watch-seconds", "0.01"]
    item = pb.ClassifyStreamRequest(request=REQUEST)
    with server_process(*arguments, "--drain-seconds", "60") as server:
        [address] = server.wait_ready()
        with grpc.insecure_channel(address) as channel:
            stub = pb_grpc.ClassifierServiceStub(channel)
            sent: list[queue.Queue[pb.ClassifyStreamRequest | None]] = [queue.Queue() for _ in range(count)]
            streams = [stub.ClassifyStream(iter(each.get, None), timeout=60) for each in sent]
            for each in sent:
                each.put(item)
            versions = {next(stream).result.response.bundle_version for stream in streams}
            server.signal(signal.SIGTERM)
            server.wait_said("draining")
            served.rename(tmp_path / "old")
            fresh.rename(served)
            server.signal(signal.SIGHUP)
            for each in sent:
                each.put(item)
            versions |= {next(stream).result.response.bundle_version for stream in streams}
            for each in sent:
                each.put(None)
            assert [left for stream in streams for left in stream] == []
        assert server.wait() == 0
        assert versions == {Folder(tiny_bundle_path).wanted()}
        assert not [line for line in server.lines if "Traceback" in line or "rror" in line]


@pytest.mark.parametrize("count", [pytest.param(2, id="short"), pytest.param(25, id="long", marks=long)])
@pytest.mark.timeout(600)
def test_bundles_written_by_halves_change_nothing(tiny_bundle_path, tmp_path, count):
    """A bundle that breaks off anywhere is refused while requests are served, and the whole one then taken over."""
    other = tiny_bundle(tmp_path / "other", scale=5.0).path
    served, draw = tmp_path / "served", random.Random(count)
    shutil.copytree(tiny_bundle_path, served)
    first, second = Folder(tiny_bundle_path).wanted(), Folder(other).wanted()
    answers, stop = [], threading.Event()
    arguments = ["--bundle", str(served), "--listen", "127.0.0.1:0", "--watch-seconds", "60"]
    with server_process(*arguments) as server, contextlib.ExitStack() as ended:
        [address] = server.wait_ready()
        client = ended.enter_context(Client(address, timeout_seconds=60, fallback_tier=Tier.SIMPLE))

        def ask():
            while not stop.is_set():
                answers.append(client.classify("prove the theorem"))

        def replaced_by(folder, number):
            served.rename(tmp_path / f"was{number}")
            folder.rename(served)
            server.signal(signal.SIGHUP)

        asking = threading.Thread(target=ask)
        asking.start()
        ended.callback(asking.join)
        ended.callback(stop.set)
        until(lambda: answers)
        for number in range(count):
            half = tmp_path / f"half{number}"
            half.mkdir()
            files = sorted(other.iterdir(), key=lambda path: path.name != "manifest.json")  # the manifest comes first
            for path in files[: draw.randrange(1, len(files))]:
                shutil.copy(path, half)
            last = draw.choice(sorted(half.iterdir()))
            last.write_bytes(last.read_bytes()[: draw.randrange(last.stat().st_size)])
            replaced_by(half, number)
            until(lambda wanted=number + 1: len([line for line in server.lines if "stays" in line]) >= wanted)
        assert client.info(timeout_seconds=60).bundle_version == first
        whole = tmp_path / "whole"
        shutil.copytree(other, whole)
        replaced_by(whole, count)
        until(lambda: answers[-1].decision and answers[-1].decision.bundle_version == second)
    assert {answer.fallback for answer in answers} == {""}
    assert {answer.decision.bundle_version for answer in answers} == {first, second}


@pytest.mark.parametrize("rounds", [pytest.param(1, id="short"), pytest.param(20, id="long", marks=long)])
def test_a_certificate_is_replaced_while_calls_go_on(tiny_bundle_path, tmp_path, rounds):
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
            for number in range(rounds):
                authority = ("two", "one")[number % 2]
                install(authority)
                for _ in range(2):
                    with Client(target, tls_ca=tmp_path / authority / "ca.pem", timeout_seconds=60) as new:
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
            own = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own: it is another caller
            channel = channels.enter_context(grpc.insecure_channel(address, own))
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
