"""Clients that are closed, cancelled, forked or moved to another event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import subprocess
import sys
import threading

import pytest

from classifier import AsyncClient, Client, Tier, errors
from classifier.client import Breaker
from classifier.testing import FakeEngine, fake_server


def test_an_async_client_may_be_older_than_its_loop_and_outlive_it(address):
    """Made before a loop runs it is connected on the first that does, and anew where that one is closed."""
    client = AsyncClient(address, fallback_tier=Tier.COMPLEX, timeout_seconds=60)

    async def use():
        return (await client.classify("frontier")).tier

    assert [asyncio.run(use()) for _ in range(2)] == [Tier.FRONTIER] * 2
    asyncio.run(client.close())


def test_an_async_client_on_a_second_loop_falls_back(address):
    """A loop that another thread runs meanwhile gets no connection of the first one's, and the fallback."""
    client = AsyncClient(address, fallback_tier=Tier.COMPLEX, timeout_seconds=60)

    async def main():
        assert (await client.classify("x")).classified
        meanwhile = await asyncio.to_thread(lambda: asyncio.run(client.classify("x")))
        assert (meanwhile.tier, meanwhile.fallback) == (Tier.COMPLEX, "UNAVAILABLE")
        assert (await client.classify("x")).classified
        await client.close()

    asyncio.run(main())


class Held:
    """A server that answers nothing before it is let go."""

    def __init__(self):
        self._began, self._gate = threading.Event(), threading.Event()

    @contextlib.contextmanager
    def server(self):
        with fake_server(engine=FakeEngine(on_score=self._hold)) as address:
            try:
                yield address
            finally:
                self._gate.set()

    def began(self):
        assert self._began.wait(60)

    def _hold(self):
        self._began.set()
        self._gate.wait(60)


def test_closing_a_client_ends_what_is_in_flight_with_the_fallback():
    """Threads that wait for an answer have one, and so has who asks later."""
    held = Held()
    with held.server() as where, concurrent.futures.ThreadPoolExecutor() as threads:
        client = Client(where, fallback_tier=Tier.COMPLEX, timeout_seconds=60, breaker=Breaker(failures=1))
        asked = threads.submit(client.classify, "x")
        held.began()
        client.close()
        found = [asked.result(60), client.classify("x"), *client.classify_batch(["x"]), *client.classify_stream(["x"])]
        assert [answer.fallback for answer in found] == ["CANCELLED"] * 4
        with pytest.raises(errors.ServerUnreachable, match="the client is closed"):
            client.info()


def test_closing_an_async_client_ends_what_is_in_flight_with_the_fallback():
    """Tasks that wait for an answer are not cancelled: nobody cancelled them."""
    held = Held()

    async def use(where):
        client = AsyncClient(where, fallback_tier=Tier.COMPLEX, timeout_seconds=60, breaker=Breaker(failures=1))

        async def streamed():
            return [answer async for answer in client.classify_stream(["x", "y"])]

        asked = [asyncio.create_task(some) for some in (client.classify("x"), client.classify_batch(["x"]), streamed())]
        await asyncio.to_thread(held.began)
        await client.close()
        one, batch, stream = await asyncio.gather(*asked)
        found = [one, *batch, *stream, await client.classify("x"), *await client.classify_batch(["x"])]
        assert [answer.fallback for answer in found] == ["CANCELLED"] * 6
        assert [answer.fallback for answer in await streamed()] == ["CANCELLED"] * 2
        with pytest.raises(errors.ServerUnreachable, match="the client is closed"):
            await client.info()

    with held.server() as where:
        asyncio.run(use(where))


@pytest.mark.parametrize("used", [True, False])
def test_an_async_client_that_was_closed_stays_so(address, used):
    """Also on another loop, and where it was closed before its first call."""
    client = AsyncClient(address, fallback_tier=Tier.COMPLEX, timeout_seconds=60)

    async def use():
        assert not used or (await client.classify("x")).classified
        await client.close()

    asyncio.run(use())
    assert asyncio.run(client.classify("x")).fallback == "CANCELLED"


def test_a_task_that_is_cancelled_stays_so_where_its_client_is_closed():
    """A caller that leaves gets no answer."""
    held = Held()

    async def use(where):
        client = AsyncClient(where, fallback_tier=Tier.COMPLEX, timeout_seconds=60)
        asked = asyncio.create_task(client.classify("x"))
        await asyncio.to_thread(held.began)
        asked.cancel()
        await client.close()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert client.counts == {}

    with held.server() as where:
        asyncio.run(use(where))


FORKED = """
import asyncio, os, sys
from classifier import AsyncClient, Client, Tier

address, used = sys.argv[1:]
first, second = (AsyncClient(address, fallback_tier=Tier.COMPLEX, timeout_seconds=60) for _ in range(2))
threads = Client(address, fallback_tier=Tier.COMPLEX, timeout_seconds=60)
if used == "async":
    assert asyncio.run(first.classify("x")).classified
else:
    assert threads.classify("x").classified
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
found = [asyncio.run(client.classify("x")) for client in (first, second)]
if used == "sync":
    found.append(threads.classify("x"))
print(*(answer.fallback or "classified" for answer in found), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(("used", "expected"), [("sync", ["classified"] * 3), ("async", ["UNAVAILABLE"] * 2)])
def test_a_process_that_is_forked_has_an_answer_too(address, used, expected):
    """Not one that waits for ever: what gRPC answers to nobody after a fork falls back at once."""
    command = [sys.executable, "-c", FORKED, address, used]
    child = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    assert child.stdout.split() == expected
