"""The conversations of a stream: gRPC reads them while the call lasts, the client after it, and none is lost between.

gRPC reads what it sends on a thread or in a task of its own, which it may leave in the middle of a read, and whatever
the source raises there it takes for a call that failed. So the source is read behind a lock, each plan is kept until it
has its answer, and what the source raised is kept for the caller.

Knows nothing of channels, breakers or fallbacks.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Any

from classifier.errors import ClassifierError
from classifier.fallback import Conversation, Plan, check_several
from classifier.v1 import classifier_pb2 as pb


class _Plans:
    """What both kinds of stream keep.

    Attributes:
        over: nothing more is to be sent.
        broken: what the source raised; None where it did not.
        began: when, seconds of `time.monotonic`.
    """

    def __init__(self) -> None:
        self.over = False
        self.broken: BaseException | None = None
        self.began = time.monotonic()
        self._ended = False
        self._sent = deque[Plan]()

    @property
    def waiting(self) -> int:
        """How many plans wait for an answer."""
        return len(self._sent)

    def answered(self) -> Plan:
        """The plan whose answer came. Raises ClassifierError where none waits for one."""
        if not self._sent:
            raise ClassifierError("the server answered more of a stream than it was sent")
        return self._sent.popleft()

    def check(self) -> None:
        """Raises ClassifierError where a call that ended well has not answered all of the source."""
        if self._sent or not self._ended:
            raise ClassifierError("the server ended a stream before it had answered all of it")


class Stream(_Plans):
    """For threads.

    Args:
        conversations: the source.
        plan: what is to be sent of one of them; raises nothing for what it holds.
    """

    def __init__(self, conversations: Iterable[Conversation], plan: Callable[[Conversation], Plan]) -> None:
        check_several(conversations)
        super().__init__()
        self._source, self._plan = iter(conversations), plan
        self._lock = threading.Lock()

    def messages(self) -> Iterator[pb.ClassifyStreamRequest]:
        """What gRPC sends."""
        while not self.over:
            with self._lock:
                plan = self._read()
            if plan is None:
                return
            yield _message(plan)

    def unanswered(self) -> Iterator[Plan]:
        """The plans without an answer, then the rest of the source: once the call has failed."""
        self.over = True
        while True:
            while self._sent:  # without the lock: a source may wait for these before it goes on
                yield self._sent.popleft()
            with self._lock:  # gRPC's thread may be in the source still: what it comes back with is the next
                if not self._sent and self._read() is None:
                    return

    def _read(self) -> Plan | None:
        """The next plan of the source; None at its end."""
        if self._ended:
            return None
        try:
            plan = self._plan(next(self._source))
        except BaseException as error:  # the caller gets it
            self._ended = True
            self.broken = None if isinstance(error, StopIteration) else error
            return None
        self._sent.append(plan)
        return plan


class AsyncStream(_Plans):
    """For an event loop. Only a task of ours is in the source, so that gRPC's cancelling of its own never gets there.

    Args:
        conversations: the source, async or not.
        plan: as for `Stream`.
    """

    def __init__(
        self,
        conversations: Iterable[Conversation] | AsyncIterable[Conversation],
        plan: Callable[[Conversation], Plan],
    ) -> None:
        check_several(conversations)
        super().__init__()
        self._lock = asyncio.Lock()
        self._queue: asyncio.Queue[Plan | None] = asyncio.Queue(1)
        self._reader = asyncio.create_task(self._read_all(conversations, plan))

    async def messages(self) -> AsyncIterator[pb.ClassifyStreamRequest]:
        """As `Stream.messages`."""
        while not self.over:
            async with self._lock:
                plan = await self._read()
            if plan is None:
                return
            yield _message(plan)

    async def unanswered(self) -> AsyncIterator[Plan]:
        """As `Stream.unanswered`."""
        self.over = True
        while True:
            while self._sent:
                yield self._sent.popleft()
            async with self._lock:
                if not self._sent and await self._read() is None:
                    return

    async def close(self) -> None:
        """Ends the reading of the source."""
        self.over = True
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        if self._queue.empty():
            self._queue.put_nowait(None)  # a task of gRPC's may wait for it

    async def _read(self) -> Plan | None:
        plan = None if self._ended else await self._queue.get()
        if plan is None:
            self._ended = True
        else:
            self._sent.append(plan)
        return plan

    async def _read_all(self, conversations: Any, plan: Callable[[Conversation], Plan]) -> None:
        try:
            async for conversation in _aiter(conversations):
                await self._queue.put(plan(conversation))
        except BaseException as error:  # the caller gets it
            if self._reader.cancelling():  # by `close`
                raise
            self.broken = error
        await self._queue.put(None)


def _message(plan: Plan) -> pb.ClassifyStreamRequest:
    """An invalid request is sent as an empty one, so that answers stay in step; the server refuses it as well."""
    return pb.ClassifyStreamRequest(request=plan.message or pb.ClassifyRequest())


async def _aiter(source: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if isinstance(source, AsyncIterable):
        async for item in source:
            yield item
    else:
        for item in source:
            yield item
            await asyncio.sleep(0)  # a long list must not keep the loop from reading answers
