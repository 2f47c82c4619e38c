"""Who comes next: a bounded line that serves callers in turn and refuses at once when full. Pure, without a clock.

Theory of operation. `Line` holds the requests that wait, a first-in-first-out queue for each caller, and serves the
callers in turn. When the line is full, the newest request of the caller with the longest queue makes room for a caller
with a shorter one (longest-queue drop; Suter, Lakshman, Stiliadis and Choudhury, INFOCOM 1998), so a flooding caller
only displaces itself. A request that cannot start before its deadline, judged by the running mean of the time that a
run takes, is refused when it arrives and not after it has waited.

Knows nothing of threads, gRPC, models or of what is run.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from classifier.errors import DeadlinePassed, Overloaded

if TYPE_CHECKING:
    import asyncio

INITIAL_RUN_SECONDS = 0.003
MEAN_WEIGHT = 0.05  # of the newest run in the running mean: about the last 20 runs count
CALM = 32  # with a tenth of requests meeting another one, 32 in a row meet none in 3 % of cases
PROBE = 8
SHORT_RUN_SECONDS = 0.005


@dataclass(slots=True, eq=False)
class Ticket:
    """One request in the line or at a core. Times are seconds on the line's clock."""

    caller: str
    entered: float
    deadline: float
    latest_start: float
    left: bool = False
    queue_seconds: float = 0.0
    work: Callable[[], Any] | None = None
    future: asyncio.Future[Any] | None = None


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
        self._calm = 0
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
        self._calm = 0 if self.running or self.waiting else self._calm + 1
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

    def alone(self) -> bool:
        """Whether the request that comes now may run where it came, without a core's thread.

        Nobody is here, the last `CALM` requests found nobody either, and runs are short. Every `PROBE`-th of them takes
        a thread all the same: while it runs, whoever else comes is seen, and the calm is over.
        """
        if self.running or self.waiting or self.run_seconds > SHORT_RUN_SECONDS:
            return False
        return self._calm >= CALM and self._calm % PROBE > 0

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
