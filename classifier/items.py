"""Many requests in one call: the items of a batch or a stream, each answered alone, in order, a few in hand at a time.

A caller that asks for much in one call gets no more of the cores at once than one that keeps as many single calls open:
`width` items are in hand. A stream is read as fast as its answers are read.

Knows nothing of gRPC, messages or what an item is.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from classifier.errors import DeadlinePassed, Overloaded

Item = TypeVar("Item")
Answer = TypeVar("Answer")


async def answer_all(items: Sequence[Item], answer: Callable[[Item], Awaitable[Answer]], *, width: int) -> list[Answer]:
    """The answers to all items, in their order.

    Where one fails or the caller leaves, what was begun is cancelled and waited for.
    """
    answers: list[Any] = [None] * len(items)
    left = iter(range(len(items)))

    async def serve() -> None:
        for i in left:
            answers[i] = await answer(items[i])
            await asyncio.sleep(0)  # an item that is refused waits for nothing, and others are to have their turn

    tasks = [asyncio.create_task(serve()) for _ in range(min(len(items), width))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return answers


async def answer_in_order(
    items: AsyncIterator[Item],
    answer: Callable[[Item], Coroutine[Any, Any, Answer]],
    write: Callable[[Answer], Awaitable[Any]],
    *,
    width: int,
    most: int,
    idle_seconds: float,
) -> None:
    """Writes the answer to each item of a stream, in order; reads an item only when it has a place in hand for it.

    Args:
        items: the stream; ends with StopAsyncIteration or, as gRPC's does, goes on for ever.
        answer: never raises for what an item holds.
        write: waits while the caller does not read.
        width: items in hand at once: read, and their answers not yet written.
        most: items of one stream.
        idle_seconds: how long it may send nothing, or read no answer that waits for it.

    Raises:
        Overloaded: there are more than `most`.
        DeadlinePassed: it sent or read nothing for too long.
    """
    in_hand: asyncio.Queue[asyncio.Task[Answer] | Exception | None] = asyncio.Queue()
    places = asyncio.Semaphore(width)
    tasks: set[asyncio.Task[Any]] = set()

    async def read() -> None:
        end: Exception | None = None
        try:
            for n in itertools.count():
                await places.acquire()
                async with asyncio.timeout(idle_seconds):
                    item = await anext(items, None)
                if item is None:
                    break
                if n == most:
                    end = Overloaded(f"a stream holds at most {most} requests; open another", 0.0)
                    break
                task = asyncio.create_task(answer(item))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                in_hand.put_nowait(task)
        except TimeoutError:
            end = DeadlinePassed(f"the stream sent nothing for {idle_seconds:g} s; open another when there is more")
        except Exception as error:  # the writer raises it
            end = error
        in_hand.put_nowait(end)

    reader = asyncio.create_task(read())
    try:
        while isinstance(task := await in_hand.get(), asyncio.Task):
            answered = await task
            try:
                async with asyncio.timeout(idle_seconds):
                    await write(answered)
            except TimeoutError:
                raise DeadlinePassed(f"none of the stream's answers was read for {idle_seconds:g} s") from None
            places.release()
        if task is not None:
            raise task
    finally:
        for unfinished in (reader, *tasks):
            unfinished.cancel()
        await asyncio.gather(reader, *tasks, return_exceptions=True)
