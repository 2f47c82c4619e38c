"""Who may run now: at most one request a core, a bounded and fair wait, and a refusal at once when full.

Theory of operation. `classifier.waiting.Line` decides; here are the threads: one a core, each taking the next ticket as
soon as it is free, so no core waits for the event loop between two runs. A ticket whose caller left or whose deadline
passed is dropped there and never reaches the model. A request that comes alone, as those before it did, needs no
thread: it runs on the event loop, which saves two hand-overs between threads (docs/performance.md).

Knows nothing of gRPC, of models or of what it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from classifier.errors import Overloaded
from classifier.waiting import Line, Ticket

T = TypeVar("T")
MAX_RATE_LIMITED_CALLERS = 10_000
_CLOSED = "the server is shutting down; ask another one"


class Admission:
    """Runs work on as many threads as cores, in the order that `Line` says.

    Make it inside a running event loop, and close it there.

    Args:
        cores: threads; each runs one request at a time.
        queue_size: requests that may wait.
        max_wait_seconds: the longest that a request may wait, in seconds.
    """

    def __init__(self, cores: int, queue_size: int, max_wait_seconds: float) -> None:
        self._line = Line(cores, queue_size, max_wait_seconds)
        self._lock = threading.Lock()
        self._idle: list[_Core] = []
        self._loop = asyncio.get_running_loop()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._serve, args=(_Core(),), name=f"core-{i}", daemon=True) for i in range(cores)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def cores(self) -> int:
        """Requests that may run at once."""
        return self._line.cores

    @property
    def running(self) -> int:
        """Requests that run now."""
        return self._line.running

    @property
    def waiting(self) -> int:
        """Requests that wait now."""
        return self._line.waiting

    def check(self, caller: str, deadline: float = math.inf) -> None:
        """Raises Overloaded or DeadlinePassed where `run` would; before any work is spent on the request."""
        with self._lock:
            self._line.check(caller, time.monotonic(), deadline)

    async def run(
        self, work: Callable[[], T], caller: str, deadline: float = math.inf, *, single: bool = False
    ) -> tuple[T, float]:
        """What `work()` returns, run on a free core, and the seconds that it waited for one.

        Args:
            work: called on another thread, or on this one; releases the GIL for most of its time.
            caller: whose turn it counts as.
            deadline: on `time.monotonic()`; the work is never started after it.
            single: it is not one of several that are asked for together, and may run on this thread when it is alone.

        Raises:
            Overloaded: refused, at once or because another caller had fewer requests waiting, or after `close`.
            DeadlinePassed: the deadline passed before a core was free.
        """
        core, future = None, self._loop.create_future()
        with self._lock:
            if self._closed:  # no thread is left to take it
                raise Overloaded(_CLOSED)
            alone = single and self._line.alone()
            ticket, displaced = self._line.enter(caller, time.monotonic(), deadline)
            ticket.work, ticket.future = work, future
            if displaced is not None:
                self._settle(displaced, None, self._line.displacement())
            if alone:
                self._line.take()
            elif self._idle:
                core = self._idle.pop()
        if alone:
            return self._run_here(work), 0.0
        if core is not None:
            core.wake()
        try:
            return await future, ticket.queue_seconds
        except asyncio.CancelledError:
            with self._lock:
                self._line.leave(ticket)
            raise

    async def close(self) -> None:
        """Ends the threads after their runs at hand; whoever still waits is refused."""
        with self._lock:
            self._closed = True
            while self._idle:
                self._idle.pop().wake()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)

    def _run_here(self, work: Callable[[], T]) -> T:
        """Runs a ticket that was taken, on the event loop."""
        started = time.monotonic()
        try:
            return work()
        finally:
            with self._lock:
                self._line.finish(time.monotonic() - started)

    def _serve(self, core: _Core) -> None:
        """A core's thread: the next ticket, again and again."""
        while (ticket := self._next(core)) is not None:
            result, seconds, started = None, None, time.monotonic()
            problem: BaseException | None = self._line.refuse(ticket, started)
            if problem is None and not ticket.left:
                ticket.queue_seconds = started - ticket.entered
                assert ticket.work is not None
                try:
                    result = ticket.work()
                except BaseException as error:  # whatever it was, the caller gets it and the core goes on
                    problem = error
                seconds = time.monotonic() - started
            with self._lock:
                self._line.finish(seconds)
            try:
                self._loop.call_soon_threadsafe(self._settle, ticket, result, problem)
            except RuntimeError:  # the loop is closed: nobody is left to tell
                return

    def _next(self, core: _Core) -> Ticket | None:
        while True:
            with self._lock:
                if self._closed:
                    break
                if (ticket := self._line.take()) is not None:
                    return ticket
                self._idle.append(core)
            core.wait()
        refusal = Overloaded(_CLOSED)
        with self._lock:
            while (ticket := self._line.take()) is not None:
                self._line.finish(None)
                self._loop.call_soon_threadsafe(self._settle, ticket, None, refusal)
        return None

    @staticmethod
    def _settle(ticket: Ticket, result: Any, problem: BaseException | None) -> None:
        future = ticket.future
        ticket.work = None
        if future is None or future.done():
            return
        if isinstance(problem, StopIteration):  # no future takes it, and the caller would wait for ever
            problem = RuntimeError("the work raised StopIteration")
        if problem is not None:
            future.set_exception(problem)
        else:
            future.set_result(result)


class _Core:
    """Where a core's thread waits for work. Of those that wait the last to have run is woken: its caches are warm."""

    def __init__(self) -> None:
        self._asleep = threading.Lock()
        self._asleep.acquire()

    def wake(self) -> None:
        """Lets the thread go on, now or when it comes to wait."""
        self._asleep.release()

    def wait(self) -> None:
        """Waits for one `wake`."""
        self._asleep.acquire()


class RateLimit:
    """A token bucket for each caller: `rate` requests a second, `burst` at once. Pure; the clock is an argument."""

    def __init__(self, rate: float, burst: int) -> None:
        self.setting = (rate, burst)
        self._rate, self._burst = rate, float(burst)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str, now: float) -> None:
        """Counts one request.

        Raises:
            Overloaded: the caller's bucket is empty; says when the next request is due.
        """
        if self._rate <= 0:
            return
        level, last = self._buckets.pop(caller, (self._burst, now))
        level = min(self._burst, level + (now - last) * self._rate)
        allowed = level >= 1
        self._buckets[caller] = (level - 1 if allowed else level, now)
        if len(self._buckets) > MAX_RATE_LIMITED_CALLERS:
            self._buckets.popitem(last=False)
        if not allowed:
            wait = (1 - level) / self._rate
            raise Overloaded(
                f"this caller sends more than {self._rate:g} requests a second; try again in {wait:.3f} s",
                retry_after_seconds=wait,
            )


class Places:
    """Places for streams, held as long as these last. For the event loop alone.

    One caller has at most `PER_FREE` times as many as are free (dynamic thresholds: Choudhury & Hahne, IEEE/ACM
    Transactions on Networking 6(2), 1998): alone three quarters, two of them three sevenths each, and the rest is for
    whoever comes.
    """

    PER_FREE = 3

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()

    @contextlib.contextmanager
    def one(self, caller: str, most: int) -> Iterator[None]:
        """A place of `most` for the length of a block.

        Raises:
            Overloaded: there is none for this caller.
        """
        mine, taken = self._held[caller], self._held.total()
        if mine >= self.PER_FREE * (most - taken):
            told = f"{taken} of {most} streams are open, {mine} of them yours; end one or try again later"
            raise Overloaded(told, 1.0)
        self._held[caller] += 1
        try:
            yield
        finally:
            self._held[caller] -= 1
            if not self._held[caller]:
                del self._held[caller]
