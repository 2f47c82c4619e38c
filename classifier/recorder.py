"""One thread that writes what many tell it: decisions in batches, outcomes at once and together.

Theory of operation. Decisions go into a bounded queue and never make anybody wait: where it is full they are counted
and dropped. Outcomes are promises: each caller holds a future that ends when its row is on disk; where too many wait
one more is refused, and one whose caller has left by its turn is not written. The thread takes all that has gathered
and writes it in one transaction, decisions first; while it waits for the disk the next group gathers, so the number of
commits does not grow with the number of callers (group commit). A lone decision waits `linger_seconds` for company.
What is being written counts as queued until it is.

Where a write fails because the store is full, locked or gone, decisions stay queued, outcomes are refused, and for
`retry_seconds` further outcomes are refused at once; then the next one tries again. Where it fails for another reason,
one row must be at fault: the rows are written one by one, and that one is refused alone.

Knows nothing of SQL, nor of what a decision is: `write` is a function that takes what `add` was given.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

from classifier.errors import StoreUnavailable
from classifier.types import OutcomeState

Row = dict[str, Any]
Queued = tuple[Any, int]
Promised = tuple[Row, int, Future[OutcomeState]]
Group = tuple[list[Queued], list[Promised]]
Write = Callable[[Sequence[Any], Sequence[Row]], Sequence[OutcomeState]]
log = logging.getLogger(__name__)

MAX_QUEUED_BYTES = 64 * 2**20
MAX_QUEUED_OUTCOMES = 8192
BATCH = 500
HOUSEKEEPING_SECONDS = 600.0
CLOSE_SECONDS = 10.0
"""The longest that closing takes: half of it for what is queued, half for what is being written by then."""


class Recorder:
    """Writes rows on a thread of its own. Safe from any thread.

    Args:
        write: writes decisions and outcomes, all or none, and returns the outcomes' states; raises StoreUnavailable.
        housekeep: called about every ten minutes on the thread; returns whether there is more to do at once.
        max_queued_bytes: decisions beyond it are dropped, by the sizes that `add` was told; outcomes beyond as much
            again are refused.
        linger_seconds: how long a decision may wait for others.
        retry_seconds: how long a failed store is left alone.

    Attributes:
        dropped: decisions that were not written and never will be.
    """

    def __init__(
        self,
        write: Write,
        housekeep: Callable[[], bool] | None = None,
        *,
        max_queued_bytes: int = MAX_QUEUED_BYTES,
        linger_seconds: float = 0.5,
        retry_seconds: float = 1.0,
    ) -> None:
        self.dropped = 0
        self._write = write
        self._housekeep = housekeep
        self._max_bytes = max_queued_bytes
        self._linger = linger_seconds
        self._retry = retry_seconds
        self._decisions: deque[Queued] = deque()
        self._outcomes: deque[Promised] = deque()
        self._decision_bytes = self._outcome_bytes = 0
        self._down_until = 0.0
        self._failing = False
        self._writing = False
        self._in_hand = 0
        self._flush = False
        self._closing = False
        self._given_up = False
        self._next_housekeeping = 0.0
        self._changed = threading.Condition(threading.Lock())
        self._thread = threading.Thread(target=self._run, name="feedback-recorder", daemon=True)
        self._thread.start()

    @property
    def queued(self) -> int:
        """Decisions that wait to be written, or are being written."""
        return len(self._decisions) + self._in_hand

    def add(self, decision: Any, size: int) -> bool:
        """Queues a decision of about `size` bytes; False where it was dropped. Never waits for the store."""
        with self._changed:
            if self._closing or self._decision_bytes + size > self._max_bytes:
                self.dropped += 1
                return False
            self._decisions.append((decision, size))
            self._decision_bytes += size
            if len(self._decisions) in (1, BATCH):
                self._changed.notify()
            return True

    def submit(self, outcome: Row, size: int) -> Future[OutcomeState]:
        """A future that ends when the outcome, of about `size` bytes, is on disk, or with StoreUnavailable."""
        future: Future[OutcomeState] = Future()
        with self._changed:
            down = self._down_until - time.monotonic()
            if self._closing:
                future.set_exception(StoreUnavailable("the feedback store is being closed; retry at another replica"))
            elif down > 0:
                future.set_exception(StoreUnavailable("the feedback store cannot be written; retry later", down))
            elif len(self._outcomes) >= MAX_QUEUED_OUTCOMES or self._outcome_bytes + size > self._max_bytes:
                future.set_exception(StoreUnavailable("too many outcomes wait for the feedback store; retry later"))
            else:
                self._outcomes.append((outcome, size, future))
                self._outcome_bytes += size
                self._changed.notify()
        return future

    def flush(self, timeout_seconds: float) -> bool:
        """Waits until everything queued so far is on disk; False where that took too long."""
        with self._changed:
            self._flush = True
            self._changed.notify_all()
            done = self._changed.wait_for(
                lambda: not (self._decisions or self._outcomes or self._writing), timeout_seconds
            )
            self._flush = False
            return done

    def close(self, timeout_seconds: float = CLOSE_SECONDS) -> None:
        """Takes nothing more, writes what is queued, and ends the thread. What cannot be written in time is dropped.

        Dropped is dropped, once: what a hanging write ends in after that changes no count, and closing again nothing.
        """
        if self._given_up:
            return
        self.flush(timeout_seconds / 2)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_seconds / 2)
        with self._changed:
            left = 0 if self._given_up else self.queued
            self.dropped += left
            self._given_up = True
            self._decisions.clear()
            self._in_hand = 0
            waiting = [future for *_, future in self._outcomes]
            self._outcomes.clear()
        for future in waiting:
            _end(future, StoreUnavailable("the feedback store was closed; retry at another replica"))
        if left:
            log.warning("%d decisions could not be written before the feedback store was closed", left)

    def _run(self) -> None:
        while (group := self._gather()) is not None:
            decisions, outcomes = group
            if decisions or outcomes:
                self._write_all(decisions, outcomes)
            with self._changed:
                self._writing = False
                self._changed.notify_all()
            self._keep_house()

    def _gather(self) -> Group | None:
        """What to write next, perhaps nothing; None at the end. Waits until there is something to do."""
        with self._changed:
            self._changed.wait_for(self._awake, self._patience())
            if self._decisions and not self._due():
                # A lone decision gives others the time to come.
                self._changed.wait_for(self._due, self._linger)
            return None if self._closing else self._take()

    def _awake(self) -> bool:
        """Whether there is anything to do."""
        return self._closing or bool(self._outcomes) or (bool(self._decisions) and not self._down())

    def _down(self) -> bool:
        return time.monotonic() < self._down_until

    def _due(self) -> bool:
        """Whether to write now, without waiting for more."""
        if self._closing or self._outcomes:
            return True
        if self._down():
            return False
        return len(self._decisions) >= BATCH or (self._flush and bool(self._decisions))

    def _patience(self) -> float:
        """Seconds until something must be looked at even if nobody comes."""
        now = time.monotonic()
        if self._decisions or self._down():  # one that comes while the store is down wakes nobody
            return max(self._down_until - now, 0.0)
        return min(max(self._next_housekeeping - now, 0.0), HOUSEKEEPING_SECONDS) if self._housekeep else 3600.0

    def _take(self) -> Group:
        if self._down() and not self._outcomes:
            return [], []
        # Rows may become three times as large when they are made: an eighth of the memory at a time.
        decisions = _first(self._decisions, 2 * BATCH, self._max_bytes // 8)
        taken = _first(self._outcomes, BATCH, self._max_bytes // 8)
        outcomes = [promised for promised in taken if not promised[2].cancelled()]
        self._outcome_bytes -= _size(taken) - _size(outcomes)
        self._writing = bool(decisions or outcomes)
        self._in_hand = len(decisions)
        return decisions, outcomes

    def _write_all(self, decisions: list[Queued], outcomes: list[Promised]) -> None:
        try:
            self._write_together(decisions, outcomes)
        except StoreUnavailable as error:
            self._fail(decisions, outcomes, error)
        except Exception:
            self._write_singly(decisions, outcomes)

    def _write_together(self, decisions: list[Queued], outcomes: list[Promised]) -> None:
        states = self._write([row for row, _ in decisions], [row for row, *_ in outcomes])
        self._let_go(decisions, outcomes)
        if self._failing:
            self._failing = False
            log.warning("the feedback store is written again")
        for (*_, future), state in zip(outcomes, states, strict=True):
            _end(future, state)

    def _write_singly(self, decisions: list[Queued], outcomes: list[Promised]) -> None:
        while decisions or outcomes:
            decision, outcome = (decisions[:1], []) if decisions else ([], outcomes[:1])
            try:
                self._write_together(decision, outcome)
            except StoreUnavailable as error:  # so it would be for all that are left
                self._fail(decisions, outcomes, error)
                return
            except Exception as error:
                self._let_go(decision, outcome)
                if outcome:
                    _end(outcome[0][2], error)
                else:
                    log.warning("a decision cannot be written (%s) and is dropped", type(error).__name__)
                    with self._changed:
                        self.dropped += not self._given_up
            del (decisions or outcomes)[0]

    def _fail(
        self,
        decisions: list[Queued],
        outcomes: list[Promised],
        error: StoreUnavailable,
    ) -> None:
        with self._changed:
            if not self._failing:
                self._failing = True
                log.warning("%s; %d decisions wait", error, len(decisions) + len(self._decisions))
            self._down_until = time.monotonic() + self._retry
            if not self._given_up:
                self._decisions.extendleft(reversed(decisions))
                self._in_hand -= len(decisions)
            outcomes += self._outcomes
            self._outcomes.clear()
        self._let_go([], outcomes)
        for *_, future in outcomes:
            _end(future, error)

    def _let_go(self, decisions: list[Queued], outcomes: list[Promised]) -> None:
        """Gives their memory to others."""
        with self._changed:
            self._in_hand -= 0 if self._given_up else len(decisions)
            self._decision_bytes -= _size(decisions)
            self._outcome_bytes -= _size(outcomes)

    def _keep_house(self) -> None:
        if self._housekeep is None or time.monotonic() < self._next_housekeeping:
            return
        try:
            again = self._housekeep()
        except StoreUnavailable:
            again = False
        except Exception:
            log.exception("housekeeping of the feedback store failed")
            again = False
        self._next_housekeeping = time.monotonic() + (0.0 if again else HOUSEKEEPING_SECONDS)


def _first(queue: deque[Any], most: int, max_bytes: int) -> list[Any]:
    """Takes rows off a queue until they are so many, or so large."""
    rows: list[Any] = []
    size = 0
    while queue and len(rows) < most and size <= max_bytes:
        rows.append(queue.popleft())
        size += rows[-1][1]
    return rows


def _size(rows: Iterable[Queued | Promised]) -> int:
    return sum(row[1] for row in rows)


def _end(future: Future[OutcomeState], result: OutcomeState | BaseException) -> None:
    """Ends the future, unless its caller has left."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)
