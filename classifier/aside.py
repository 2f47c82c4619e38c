"""Work on threads that the process does not wait for long at its end: bundles are loaded there, and storage may hang.

Knows nothing of bundles, storage or servers.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
LAST_SECONDS = 5.0  # that work may still take when the process ends; a load takes half a second on an idle core
_THREAD = "aside"


async def aside(work: Callable[[], T]) -> T:
    """What `work` returns, on a thread of its own; whoever is cancelled waits `LAST_SECONDS` for it at most."""
    done: concurrent.futures.Future[T] = concurrent.futures.Future()
    done.set_running_or_notify_cancel()  # whoever leaves cannot take the future from the thread

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # a panic of the tokeniser's is no Exception, and whoever waits must hear of it
            done.set_exception(error)

    thread = threading.Thread(target=run, name=_THREAD, daemon=True)
    thread.start()
    try:
        return await asyncio.wrap_future(done)
    except asyncio.CancelledError:
        # The process ends. Work that gets on may finish; `lifetime.leave` ends the process under what does not.
        await asyncio.to_thread(thread.join, LAST_SECONDS)
        raise


def is_busy() -> bool:
    """Whether such work still runs, also some that nobody waits for any more."""
    return any(thread.name == _THREAD for thread in threading.enumerate())
