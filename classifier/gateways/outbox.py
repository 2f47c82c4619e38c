"""Outcomes on their way to the server: sent behind the request's back, and again while the server is away.

A few are on their way at once, so that one that has no luck holds up no other. They may arrive in any order: each says
when it was put here.

Knows nothing of gateways or channels.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from classifier.errors import ClassifierError
from classifier.types import Outcome

WAITING = 10_000
SENDERS = 4
"""Most outcomes on their way at once: 1.7 times as many a second as one by one; 8 slowed classifying beside them."""
ATTEMPTS = 11
"""With the waits between them about a minute."""
LONGEST_WAIT_SECONDS = 10.0
_PASSING = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"})
_log = logging.getLogger(__name__)


class Outbox:
    """What waits to be sent. Keep one for the life of an event loop, which sends what any thread puts here.

    Args:
        send: reports an outcome; raises ClassifierError where it was not taken.
        waiting: most outcomes that wait; one more is dropped and counted.
        pause: waits for so many seconds.
        clock: seconds since the epoch.

    Attributes:
        counts: how outcomes ended: `outcomes_sent`, `outcomes_refused`, `outcomes_lost`, `outcomes_dropped`.
    """

    def __init__(
        self,
        send: Callable[[Outcome], Awaitable[Any]],
        *,
        waiting: int = WAITING,
        pause: Callable[[float], Awaitable[Any]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._send, self._pause, self._clock = send, pause, clock
        self._most, self._queue = waiting, deque[Outcome]()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._senders: set[asyncio.Task[None]] = set()
        self._dropping = False

    def put(self, outcome: Outcome) -> None:
        """Takes an outcome, and returns at once. Where no event loop is known yet it waits for one."""
        if outcome.occurred_at is None:  # else it would be as late as its arrival, and hide what was said meanwhile
            outcome = replace(outcome, occurred_at=self._clock())
        if len(self._queue) >= self._most:
            self.counts["outcomes_dropped"] += 1
            if not self._dropping:
                self._dropping = True
                _log.warning("%d outcomes wait for the server; those that come now are dropped", len(self._queue))
            return
        self._queue.append(outcome)
        self.attend()

    def attend(self) -> None:
        """Has what waits sent, by the event loop of the first call that is made on one."""
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is not None and (self._loop is None or self._loop.is_closed()):
            self._loop, self._senders = here, set()
        if self._loop is None or self._loop.is_closed():
            return
        if self._loop is here:
            self._begin()
        else:
            self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._senders = {sender for sender in self._senders if not sender.done()}
        if self._queue and len(self._senders) < SENDERS:
            self._senders.add(asyncio.get_running_loop().create_task(self._run()))

    async def _run(self) -> None:
        while self._queue:
            outcome, ended = self._queue.popleft(), "outcomes_lost"
            try:
                ended = await self._sent(outcome)
            finally:
                self.counts[ended] += 1
        if self._dropping:
            self._dropping = False
            _log.warning("no more outcomes wait; %d were dropped so far", self.counts["outcomes_dropped"])

    async def _sent(self, outcome: Outcome) -> str:
        """Sends one; how it ended."""
        why: ClassifierError | None = None
        for attempt in range(ATTEMPTS):
            if attempt:
                await self._pause(min(LONGEST_WAIT_SECONDS, 0.125 * 2**attempt))
            try:
                await self._send(outcome)
            except ClassifierError as error:
                if error.status not in _PASSING:
                    _log.warning("an outcome was not taken: %s", error)
                    return "outcomes_refused"
                why = error
            except Exception:  # else its sender would end, and closing would raise
                _log.exception("an outcome could not be sent")
                return "outcomes_lost"
            else:
                return "outcomes_sent"
        _log.warning("an outcome was sent %d times in vain and is lost: %s", ATTEMPTS, why)
        return "outcomes_lost"

    async def drain(self, seconds: float) -> None:
        """Waits until all are sent, but not for longer; what is left then is lost."""
        self.attend()
        if not self._senders:
            return
        before = self.counts["outcomes_lost"]
        _, late = await asyncio.wait(self._senders, timeout=seconds)
        for sender in late:
            sender.cancel()
        if late:
            await asyncio.wait(late)
        while self._queue:
            self._queue.popleft()
            self.counts["outcomes_lost"] += 1
        if lost := self.counts["outcomes_lost"] - before:
            _log.warning("%d outcomes could not be sent before the end and are lost", lost)
