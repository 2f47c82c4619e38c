"""How a server is asked: prompts of set lengths, callers that wait for an answer, and callers that do not."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable

import grpc

from classifier import Request, wire
from classifier.v1 import classifier_pb2 as pb

METHOD = f"/{wire.SERVICE}/Classify"
PROMPT = "please explain how the billing service retries failed payments and write a short test that shows what happens"
TEXT = f"""{PROMPT}
when the database is slow or the network drops half of the packets between two regions during a deploy on friday"""
TOKENS = {"20-60 tokens": 40, "200 tokens": 200, "2,000 tokens": 2000, "4 kB": 700, "1 MB": 175_000}


def prompts(words: int, count: int = 32) -> list[str]:
    """Prompts of about that many tokens, all different."""
    draw, vocabulary = random.Random(7), TEXT.split()
    return [" ".join(draw.choice(vocabulary) for _ in range(words)) for _ in range(count)]


def percentiles(seconds: list[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds."""
    ordered = sorted(seconds)
    return {
        "p50_ms": 1e3 * statistics.median(ordered),
        "p99_ms": 1e3 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
    }


def timed(work: Callable[[int], object], seconds: float) -> list[float]:
    """Durations of `work(i)`, again and again for that long."""
    took, end, i = [], time.perf_counter() + seconds, 0
    while (now := time.perf_counter()) < end:
        work(i)
        took.append(time.perf_counter() - now)
        i += 1
    return took


def fixed_request() -> Request:
    """What an echo that runs the model runs it on."""
    return Request.from_text(prompts(TOKENS["20-60 tokens"])[0])


def message(prompt: str) -> bytes:
    """A serialised ClassifyRequest."""
    return pb.ClassifyRequest(messages=[pb.Message(role="user", content=prompt)]).SerializeToString()


async def closed_loop(
    address: str, payloads: list[bytes], callers: int, connections: int, seconds: float
) -> dict[str, float]:
    """`callers` that each send the next request when the last is answered."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options) for _ in range(connections)]
    calls = [channel.unary_unary(METHOD) for channel in channels]
    await asyncio.gather(*(call(payloads[0], timeout=10) for call in calls))
    took: list[float] = []
    errors = 0
    end = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        nonlocal errors
        call, i = calls[number % connections], number
        while (now := time.perf_counter()) < end:
            try:
                await call(payloads[i % len(payloads)], timeout=10)
                took.append(time.perf_counter() - now)
            except grpc.RpcError:
                errors += 1
            i += 1

    started = time.perf_counter()
    await asyncio.gather(*(caller(n) for n in range(callers)))
    wall = time.perf_counter() - started
    for channel in channels:
        await channel.close()
    return {
        "per_second": len(took) / wall,
        "errors": errors,
        "answered": len(took),
        **percentiles(took or [float("nan")]),
    }


async def open_loop(address: str, payloads: list[bytes], rate: float, seconds: float) -> dict[str, float]:
    """Poisson arrivals at `rate` a second, whether or not the earlier ones were answered."""
    draw = random.Random(11)
    took: list[float] = []
    errors = 0
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(METHOD)
        await call(payloads[0], timeout=10)

        async def one(i: int, due: float) -> None:
            nonlocal errors
            try:
                await call(payloads[i % len(payloads)], timeout=10)
                took.append(time.perf_counter() - due)
            except grpc.RpcError:
                errors += 1

        due, end, tasks = time.perf_counter(), time.perf_counter() + seconds, []
        while due < end:
            due += draw.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(one(len(tasks), due)))
        await asyncio.gather(*tasks)
    return {"offered_per_second": rate, "errors": errors, **percentiles(took or [float("nan")])}
