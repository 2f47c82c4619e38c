"""Ten times more than can be served: answered or refused in time, in fair shares, and over when it is over."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections import Counter

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from classifier.v1 import classifier_pb2 as pb
from classifier.v1 import classifier_pb2_grpc as pb_grpc
from tests.serving_support import server_process

CORES, TIMES = 2, 10
LONGEST_TURN = 0.5
"""Seconds between two looks at the clock; where a machine stands still for longer nothing is offered, nor asked for."""
REQUEST = pb.ClassifyRequest(messages=[pb.Message(role="user", content="x")])
TOKENS = {"flood": "flood-0123456789abcdef", "quiet": "quiet-0123456789abcdef"}


def connection(address):
    return grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])


async def offer(address, caller, rate, seconds, deadline, found):
    """Sends `rate` requests a second, whatever becomes of them; counts the status of each. Returns seconds stood still.

    Over several connections: on one alone gRPC itself refuses more than `max_concurrent_calls`.
    """
    metadata = (("authorization", f"Bearer {TOKENS[caller]}"),)
    async with contextlib.AsyncExitStack() as open_channels:
        stubs = [
            pb_grpc.ClassifierServiceStub(await open_channels.enter_async_context(connection(address)))
            for _ in range(4)
        ]

        async def one(number):
            try:
                await stubs[number % 4].Classify(REQUEST, timeout=deadline, metadata=metadata)
                found[caller]["OK"] += 1
            except grpc.RpcError as error:
                found[caller][error.code().name] += 1

        started, offered, tasks = time.monotonic(), 0.0, []
        last = started
        while offered < seconds:
            due = int(offered * rate) - len(tasks)
            tasks += [asyncio.create_task(one(len(tasks) + i)) for i in range(due)]
            await asyncio.sleep(0.005)
            now = time.monotonic()
            offered += min(now - last, LONGEST_TURN)
            last = now
        await asyncio.gather(*tasks)
        return last - started - offered


async def health(address, stop, seen):
    async with connection(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while not stop.is_set():
            seen.append((await stub.Check(health_pb2.HealthCheckRequest(), timeout=60)).status)
            await asyncio.sleep(0.05)


async def calls_a_second(address, seconds=1.0):
    """How many calls that take no time this machine can send and answer."""
    answered, end = 0, time.monotonic() + seconds
    metadata = (("authorization", f"Bearer {TOKENS['quiet']}"),)
    async with connection(address) as channel:
        stub = pb_grpc.ClassifierServiceStub(channel)

        async def caller():
            nonlocal answered
            while time.monotonic() < end:
                await stub.Classify(REQUEST, timeout=60, metadata=metadata)
                answered += 1

        await asyncio.gather(*(caller() for _ in range(16)))
    return answered / seconds


async def overload(address, capacity, seconds, deadline):
    """(statuses by caller, seconds that the load took, health seen, seconds until an answer after the end)."""
    found, seen, stop = {"flood": Counter(), "quiet": Counter()}, [], asyncio.Event()
    watching = asyncio.create_task(health(address, stop, seen))
    started = time.monotonic()
    stood, _ = await asyncio.gather(
        offer(address, "flood", (TIMES - 0.3) * capacity, seconds, deadline, found),
        offer(address, "quiet", 0.3 * capacity, seconds, deadline, found),
    )
    ended = time.monotonic()
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.ClassifierServiceStub(channel)
        await stub.Classify(REQUEST, timeout=deadline, metadata=(("authorization", f"Bearer {TOKENS['flood']}"),))
    recovered = time.monotonic() - ended
    stop.set()
    await watching
    return found, ended - started - stood, seen, recovered


@pytest.mark.parametrize(
    ("seconds", "run_seconds"),
    [pytest.param(3.0, 0.1, id="short"), pytest.param(20.0, 0.02, id="long", marks=pytest.mark.faults)],
)
async def test_overload_is_refused_in_time_and_in_fair_shares(tmp_path, seconds, run_seconds):
    """At ten times the capacity all are answered or refused in time, goodput holds, the quiet caller is served."""
    tokens = tmp_path / "tokens"
    tokens.write_text("".join(f"{name} {token}\n" for name, token in TOKENS.items()))
    settings = [f"cores={CORES}", "queue_size=16", f"tokens={tokens}"]
    with server_process("0", *settings, "max_wait_seconds=10", module="tests.slow_server") as server:
        [address] = server.wait_ready()
        most = await calls_a_second(address)
    # What a machine cannot even read gRPC cancels by itself: it is offered two thirds of what it can do.
    run_seconds = max(run_seconds, 1.5 * TIMES * CORES / most)
    max_wait = 25 * run_seconds
    settings.append(f"max_wait_seconds={max_wait}")
    with server_process(str(run_seconds), *settings, module="tests.slow_server") as server:
        [address] = server.wait_ready()
        # Far above max_wait: only a machine that stands still would miss it.
        found, took, seen, recovered = await overload(address, CORES / run_seconds, seconds, max_wait + 5.0)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        ran = json.loads(server.process.stdout.read())
    total = found["flood"] + found["quiet"]
    goodput = total["OK"] * ran["mean_run_seconds"] / (CORES * took)  # of what the cores could have run in that time
    print(f"{most:.0f} calls a second are possible; runs of {run_seconds:.3f} s")
    print(f"{dict(total)} in {took:.1f} s, goodput {goodput:.1%}, quiet {found['quiet']}")
    print(f"recovered {recovered:.3f} s")
    assert set(total) <= {"OK", "RESOURCE_EXHAUSTED"}, total
    assert total["OK"] == ran["runs"] - 1  # nothing was run for nobody; one came after the load
    assert goodput >= 0.8
    assert found["quiet"]["OK"] >= 0.9 * sum(found["quiet"].values()), found
    assert set(seen) == {health_pb2.HealthCheckResponse.SERVING}
