"""Who may run now: at most one request a core, a bounded and fair wait, and a refusal at once when full.

Theory of operation. `Line` is the pure part: it holds the requests that wait, a first-in-first-out queue for each
caller, and serves the callers in turn. When the line is full, the newest request of the caller with the longest queue
makes room for a caller with a shorter one (longest-queue drop; Suter, Lakshman, Stiliadis and Choudhury, INFOCOM 1998),
so a flooding caller only displaces itself. A request that cannot start before its deadline, judged by the running mean
of the time that a run takes, is refused when it arrives and not after it has waited. `Admission` adds the threads: one
a core, each taking the next ticket as soon as it is free, so no core waits for the event loop between two runs. A
ticket whose caller left or whose deadline passed is dropped there and never reaches the model.

Knows nothing of gRPC, of models or of what it runs.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, TypeVar

from classifier.errors import DeadlinePassed, Overloaded

T = TypeVar("T")
INITIAL_RUN_SECONDS = 0.003
MEAN_WEIGHT = 0.05  # of the newest run in the running mean: about the last 20 runs count
MAX_RATE_LIMITED_CALLERS = 10_000


class Ticket:
    """One request in the line or at a core. Times are seconds on the line's clock."""

    __slots__ = ("caller", "deadline", "entered", "future", "latest_start", "left", "queue_seconds", "work")

    def __init__(self, caller: str, entered: float, deadline: float, latest_start: float) -> None:
        self.caller = caller
        self.entered = entered
        self.deadline = deadline
        self.latest_start = latest_start
        self.left = False
        self.queue_seconds = 0.0
        self.work: Callable[[], Any] | None = None
        self.future: asyncio.Future[Any] | None = None


class Line:
    """The waiting line, without threads and without a clock.

    Args:
        cores: requests that may run at once.
        size: requests that may wait.
        max_wait: the longest that a request may wait, in seconds.
    """

    def __init__(self, cores: int, size: int, max_wait: float) -> None:
        self.cores, self.size, self.max_wait = cores, size, max_wait
        self.running = 0
        self.waiting = 0
        self.run_seconds = INITIAL_RUN_SECONDS
        self._queues: OrderedDict[str, deque[Ticket]] = OrderedDict()

    def check(self, caller: str, now: float, deadline: float = math.inf) -> None:
        """Raises what `enter` would raise, without entering: a cheap look before any work is done.

        Raises:
            Overloaded: there is no room, or the wait would outlast the deadline.
            DeadlinePassed: the deadline is over already.
        """
        if now >= deadline:
            raise DeadlinePassed("the deadline passed before the request was looked at; allow more time")
        if self.running + self.waiting < self.cores:
            return
        mine = len(self._queues.get(caller, ()))
        if self._full() and mine + 1 >= self._longest():
            raise self._refusal(f"all {self.cores} cores are busy and {self.waiting} requests wait")
        # In turn: before this one come at most as many of every caller as this caller has waiting.
        ahead = min(self.waiting, (mine + 1) * (len(self._queues) + 1))
        wait = (ahead + 1) / self.cores * self.run_seconds
        if wait > self.max_wait or now + wait > deadline:
            raise self._refusal(f"the wait would be about {wait:.3f} s, longer than the request allows")

    def enter(self, caller: str, now: float, deadline: float = math.inf) -> tuple[Ticket, Ticket | None]:
        """Puts a request in line.

        Returns:
            Its ticket, and the ticket that lost its place to it, if any.

        Raises:
            Overloaded, DeadlinePassed: as `check`.
        """
        self.check(caller, now, deadline)
        displaced = None
        if self._full():
            longest = max(self._queues.values(), key=len)
            displaced = longest[-1]
            self._remove(displaced)
        ticket = Ticket(caller, now, deadline, min(deadline, now + self.max_wait))
        self._queues.setdefault(caller, deque()).append(ticket)
        self.waiting += 1
        return ticket, displaced

    def take(self) -> Ticket | None:
        """The next ticket to run, callers in turn; None where nobody waits or every core is busy."""
        if not self.waiting or self.running >= self.cores:
            return None
        caller, queue = self._queues.popitem(last=False)
        ticket = queue.popleft()
        if queue:
            self._queues[caller] = queue  # at the end: the others come first now
        self.waiting -= 1
        self.running += 1
        return ticket

    def finish(self, run_seconds: float | None) -> None:
        """Says that a ticket's run is over and how long it took; None where it was dropped unrun."""
        self.running -= 1
        if run_seconds is not None:
            self.run_seconds += MEAN_WEIGHT * (run_seconds - self.run_seconds)

    def leave(self, ticket: Ticket) -> None:
        """Takes a waiting ticket out; does nothing where it runs already."""
        ticket.left = True
        self._remove(ticket)

    def refuse(self, ticket: Ticket, now: float) -> Exception | None:
        """Why a ticket must not run after all; None where it may."""
        if now >= ticket.deadline:
            return DeadlinePassed("the deadline passed while the request waited for a core; allow more time")
        if now > ticket.latest_start:
            return self._refusal("the request waited longer than max_wait_seconds allows")
        return None

    def displacement(self) -> Overloaded:
        """What the ticket that lost its place is told."""
        return self._refusal("the line is full and another caller had fewer requests in it")

    def _remove(self, ticket: Ticket) -> None:
        queue = self._queues.get(ticket.caller)
        if queue is None or ticket not in queue:
            return
        queue.remove(ticket)
        self.waiting -= 1
        if not queue:
            del self._queues[ticket.caller]

    def _full(self) -> bool:
        # A ticket counts as waiting until a core's thread has woken up and taken it.
        return self.running + self.waiting >= self.cores + self.size

    def _longest(self) -> int:
        return max((len(queue) for queue in self._queues.values()), default=0)

    def _refusal(self, what: str) -> Overloaded:
        retry = max(self.run_seconds, (self.waiting + 1) / self.cores * self.run_seconds)
        return Overloaded(f"{what}; try again in {retry:.3f} s or add cores", retry_after_seconds=retry)


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

    async def run(self, work: Callable[[], T], caller: str, deadline: float = math.inf) -> tuple[T, float]:
        """What `work()` returns, run on a free core, and the seconds that it waited for one.

        Args:
            work: called on another thread; releases the GIL for most of its time.
            caller: whose turn it counts as.
            deadline: on `time.monotonic()`; the work is never started after it.

        Raises:
            Overloaded: refused, at once or because another caller had fewer requests waiting.
            DeadlinePassed: the deadline passed before a core was free.
        """
        future = self._loop.create_future()
        with self._lock:
            ticket, displaced = self._line.enter(caller, time.monotonic(), deadline)
            ticket.work, ticket.future = work, future
            if displaced is not None:
                self._settle(displaced, None, self._line.displacement())
            core = self._idle.pop() if self._idle else None
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

    def _serve(self, core: _Core) -> None:
        """A core's thread: the next ticket, again and again."""
        while (ticket := self._next(core)) is not None:
            result, problem, seconds = None, None, None
            started = time.monotonic()
            problem = self._refusal(ticket, started)
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
        refusal = Overloaded("the server is shutting down; ask another one")
        with self._lock:
            while (ticket := self._line.take()) is not None:
                self._line.finish(None)
                self._loop.call_soon_threadsafe(self._settle, ticket, None, refusal)
        return None

    def _refusal(self, ticket: Ticket, now: float) -> BaseException | None:
        return self._line.refuse(ticket, now) if now > ticket.latest_start else None

    @staticmethod
    def _settle(ticket: Ticket, result: Any, problem: BaseException | None) -> None:
        future = ticket.future
        ticket.work = None
        if future is None or future.done():
            return
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
