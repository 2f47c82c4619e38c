"""Outcomes on their way to the server: sent in order behind the request's back, and again while the server is away.

Knows nothing of gateways or channels.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from classifier.errors import ClassifierError
from classifier.types import Outcome

WAITING = 10_000
ATTEMPTS = 11
"""With the waits between them about a minute."""
LONGEST_WAIT_SECONDS = 10.0
_PASSING = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"})
_log = logging.getLogger(__name__)


class Outbox:
    """What waits to be sent. Keep one for the life of an event loop.

    Args:
        send: reports an outcome; raises ClassifierError where it was not taken.
        waiting: most outcomes that wait; one more is dropped and counted.
        pause: waits for so many seconds.

    Attributes:
        counts: how outcomes ended: `outcomes_sent`, `outcomes_refused`, `outcomes_lost`, `outcomes_dropped`.
    """

    def __init__(
        self,
        send: Callable[[Outcome], Awaitable[Any]],
        *,
        waiting: int = WAITING,
        pause: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._send, self._pause = send, pause
        self._queue: asyncio.Queue[Outcome] = asyncio.Queue(waiting)
        self._sender: asyncio.Task[None] | None = None

    def put(self, outcome: Outcome) -> None:
        """Takes an outcome, and returns at once."""
        try:
            self._queue.put_nowait(outcome)
        except asyncio.QueueFull:
            self.counts["outcomes_dropped"] += 1
            return
        if self._sender is None or self._sender.done():
            self._sender = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while not self._queue.empty():
            outcome, ended = self._queue.get_nowait(), "outcomes_lost"
            try:
                ended = await self._sent(outcome)
            finally:
                self.counts[ended] += 1

    async def _sent(self, outcome: Outcome) -> str:
        """Sends one; how it ended."""
        for attempt in range(ATTEMPTS):
            try:
                await self._send(outcome)
            except ClassifierError as error:
                if error.status not in _PASSING:
                    _log.warning("an outcome was not taken: %s", error)
                    return "outcomes_refused"
                await self._pause(min(LONGEST_WAIT_SECONDS, 0.25 * 2**attempt))
            except Exception:  # else the line would stand still, and closing would raise
                _log.exception("an outcome could not be sent")
                return "outcomes_lost"
            else:
                return "outcomes_sent"
        return "outcomes_lost"

    async def drain(self, seconds: float) -> None:
        """Waits until all are sent, but not for longer; what is left then is lost."""
        if self._sender is None:
            return
        before = self.counts["outcomes_lost"]
        with contextlib.suppress(TimeoutError, asyncio.CancelledError):
            await asyncio.wait_for(self._sender, seconds)
        while not self._queue.empty():
            self._queue.get_nowait()
            self.counts["outcomes_lost"] += 1
        if lost := self.counts["outcomes_lost"] - before:
            _log.warning("%d outcomes could not be sent before the end and are lost", lost)
