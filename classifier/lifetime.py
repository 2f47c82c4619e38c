"""A server's life in its process: from the start to the signal that ends it, on a loop that is tuned for it.

SIGTERM and SIGINT drain the server, SIGHUP reads its settings again. After SIGINT the command was interrupted, and says
so; after SIGTERM it is done.

Knows nothing of what a server does.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from classifier.aside import is_busy

if TYPE_CHECKING:
    from classifier.server import Server

T = TypeVar("T")
log = logging.getLogger(__name__)
SWITCH_SECONDS = 0.0005


async def serve(
    server: Server, *, ready: Callable[[Sequence[str]], None] | None = None, stop: asyncio.Event | None = None
) -> signal.Signals | None:
    """Starts the server and serves until SIGTERM or SIGINT, then drains.

    Args:
        server: not started yet.
        ready: called with the addresses when the server is SERVING; by default prints the line `serving on ADDRESS`.
        stop: another way to end it.

    Returns:
        The signal that ended it, for `leave`; None where `stop` did.
    """
    if signal.SIGTERM in signal.sigpending():  # it came before this process listened, and nothing is begun
        return signal.SIGTERM
    stop, hung_up = stop or asyncio.Event(), asyncio.Event()
    told = first_signal()
    told.add_done_callback(lambda _: stop.set())
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hung_up.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # blocked from the start on

    async def reload() -> None:
        while await hung_up.wait():
            hung_up.clear()  # one that comes from here on is for the next round, and not lost
            try:
                await server.reload()
            except Exception as error:  # the next one must be heard all the same
                log.warning("reload failed with %s", type(error).__name__)

    stopping = asyncio.create_task(stop.wait())
    starting = asyncio.create_task(server.start())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        return _result(told)
    if starting.exception() is not None:
        stopping.cancel()
    starting.result()
    reloading = asyncio.create_task(reload())
    # What is there now stays: without this every full collection walks all modules, and a request waits for it. There
    # is nothing to collect before: of a start some four objects are left over, and to look for them takes 15 ms.
    gc.freeze()
    # A core's thread that comes back from a run waits this long at most for the event loop to let go of the GIL;
    # Python's 5 ms are two runs. Worth 5 % of throughput at 32 callers (docs/performance.md).
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        (ready or print_ready)(server.addresses)
        await stopping
        log.info("draining")
    finally:  # also where this task is cancelled: gRPC crashes where a server that outlived its loop is called
        reloading.cancel()
        await asyncio.gather(reloading, return_exceptions=True)
        await server.stop()
    log.info("stopped")
    return _result(told)


def first_signal() -> asyncio.Future[signal.Signals]:
    """The first of SIGTERM and SIGINT that comes from here on; neither does anything else until the loop ends.

    Also where they were blocked: by `classifier serve` until here, or by what started this process, which inherits it.
    """
    loop = asyncio.get_running_loop()
    told: asyncio.Future[signal.Signals] = loop.create_future()

    def tell(number: signal.Signals) -> None:
        if not told.done():
            told.set_result(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, tell, number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    return told


def _result(told: asyncio.Future[signal.Signals]) -> signal.Signals | None:
    return told.result() if told.done() else None


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs `serve` or the like to its end, on uvloop where it is installed (extra `fast`), else on asyncio's loop."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)


def leave(by: signal.Signals | None) -> None:
    """Ends a command that a signal stopped, when all else is closed; returns where it is simply done.

    Raises:
        KeyboardInterrupt: it was SIGINT.
    """
    if is_busy():
        # Python's own end kills the thread, which in onnxruntime's or the tokeniser's code aborts the process.
        log.warning("a bundle still loads; it is left at that")
        logging.shutdown()
        os._exit(130 if by == signal.SIGINT else 0)
    if by == signal.SIGINT:
        raise KeyboardInterrupt


def print_ready(addresses: Sequence[str]) -> None:
    """The line that says that requests are answered now; where a full disk takes it not they are all the same."""
    with contextlib.suppress(OSError):
        print(f"serving on {', '.join(addresses)}", file=sys.stderr, flush=True)
