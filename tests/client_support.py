"""What tests of the clients share: servers to ask, and both clients behind the same calls."""

from __future__ import annotations

import asyncio
import concurrent.futures

import grpc

from classifier import AsyncClient, Client, Outcome, Request, Tier
from classifier.types import Cause, Source, Verdict
from classifier.v1 import classifier_pb2_grpc as pb_grpc

OUTCOME = Outcome("d", "o", Verdict.ACCEPTED, Cause.QUALITY, Source.USER, Tier.SIMPLE)


def by_word(request: Request) -> Tier:
    return next((tier for tier in Tier if tier.label in request.messages[-1].content), Tier.STANDARD)


class Both:
    """The sync and the async client behind the same calls, so that each test holds for both."""

    def __init__(self, kind, *args, **kwargs):
        self.kind, self.args, self.kwargs = kind, args, kwargs

    def run(self, use):
        """Runs `use(client, call)` where call(method, ...) is a plain call on either client."""
        if self.kind == "sync":
            with Client(*self.args, **self.kwargs) as client:
                return use(client, lambda name, *a, **k: self._collect(getattr(client, name)(*a, **k)))

        with asyncio.Runner() as runner:

            async def make():
                return AsyncClient(*self.args, **self.kwargs)

            async def one(method, a, k):
                found = method(*a, **k)
                if hasattr(found, "__aiter__"):
                    return [answer async for answer in found]
                return await found

            client = runner.run(make())
            try:
                return use(client, lambda name, *a, **k: runner.run(one(getattr(client, name), a, k)))
            finally:
                runner.run(client.close())

    @staticmethod
    def _collect(found):
        return list(found) if hasattr(found, "__next__") else found


def source_of(kind, steps):
    """The items of a stream; a function among them is called, on a thread where the client has an event loop."""
    if kind == "sync":
        return (item for step in steps for item in ([step] if isinstance(step, str) else (step() or ())))

    async def items():
        for step in steps:
            if isinstance(step, str):
                yield step
            else:
                await asyncio.to_thread(step)

    return items()


def answering(**methods):
    """A server whose calls are these functions, and its address."""
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    pb_grpc.add_ClassifierServiceServicer_to_server(
        type("Some", (pb_grpc.ClassifierServiceServicer,), methods)(), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, f"127.0.0.1:{port}"
