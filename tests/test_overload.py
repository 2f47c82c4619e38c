"""Ten times more than can be served: answered or refused in time, in fair shares, and over when it is over."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from classifier.v1 import classifier_pb2 as pb
from classifier.v1 import classifier_pb2_grpc as pb_grpc
from tests.serving_support import server_process

RUN_SECONDS, CORES = 0.02, 2
CAPACITY = CORES / RUN_SECONDS
DEADLINE = 2.0  # far above max_wait_seconds: only a machine that stands still would miss it
REQUEST = pb.ClassifyRequest(messages=[pb.Message(role="user", content="x")])
TOKENS = {"flood": "flood-0123456789abcdef", "quiet": "quiet-0123456789abcdef"}


async def offer(address, caller, rate, seconds, found):
    """Sends `rate` requests a second, whatever becomes of them; counts the status of each, and who was late."""
    metadata = (("authorization", f"Bearer {TOKENS[caller]}"),)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.ClassifierServiceStub(channel)

        async def one():
            started = time.monotonic()
            try:
                await stub.Classify(REQUEST, timeout=DEADLINE, metadata=metadata)
                status = "OK"
            except grpc.RpcError as error:
                status = error.code().name
            found[caller][status] += 1
            if time.monotonic() - started > DEADLINE + 0.5:
                found[caller]["late"] += 1

        start, tasks = time.monotonic(), []
        while (now := time.monotonic() - start) < seconds:
            tasks += [asyncio.create_task(one()) for _ in range(int(now * rate) - len(tasks))]
            await asyncio.sleep(0.005)
        await asyncio.gather(*tasks)


async def health(address, stop, seen):
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while not stop.is_set():
            seen.append((await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)).status)
            await asyncio.sleep(0.05)


async def overload(address, seconds):
    """(statuses by caller, seconds that the load took, health seen, seconds until an answer after the end)."""
    found, seen, stop = {"flood": Counter(), "quiet": Counter()}, [], asyncio.Event()
    watching = asyncio.create_task(health(address, stop, seen))
    started = time.monotonic()
    await asyncio.gather(
        offer(address, "flood", 9.7 * CAPACITY, seconds, found), offer(address, "quiet", 0.3 * CAPACITY, seconds, found)
    )
    took = time.monotonic() - started
    ended = time.monotonic()
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.ClassifierServiceStub(channel)
        metadata = (("authorization", f"Bearer {TOKENS['flood']}"),)
        await stub.Classify(REQUEST, timeout=DEADLINE, metadata=metadata)
    recovered = time.monotonic() - ended
    stop.set()
    await watching
    return found, took, seen, recovered


@pytest.mark.parametrize(
    "seconds", [pytest.param(2.0, id="short"), pytest.param(20.0, id="long", marks=pytest.mark.faults)]
)
async def test_overload_is_refused_in_time_and_in_fair_shares(tmp_path, seconds):
    """At ten times the capacity all are answered or refused in time, goodput holds, the quiet caller is served."""
    tokens = tmp_path / "tokens"
    tokens.write_text("".join(f"{name} {token}\n" for name, token in TOKENS.items()))
    settings = [f"cores={CORES}", "queue_size=16", "max_wait_seconds=0.3", f"tokens={tokens}"]
    with server_process(str(RUN_SECONDS), *settings, module="tests.slow_server") as server:
        [address] = server.wait_ready()
        found, took, seen, recovered = await overload(address, seconds)
    total = found["flood"] + found["quiet"]
    assert set(total) <= {"OK", "RESOURCE_EXHAUSTED"}, total
    assert total["OK"] >= 0.8 * CAPACITY * took
    assert found["quiet"]["OK"] >= 0.9 * sum(found["quiet"].values()), found
    assert set(seen) == {health_pb2.HealthCheckResponse.SERVING}
    assert recovered < 1.0
