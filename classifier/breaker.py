"""When a client does not ask at all: a circuit breaker. Pure but for a lock; the clock is an argument."""

from __future__ import annotations

import math
import threading


class Breaker:
    """Stops asking a server that does not answer.

    After `failures` failures in a row it is open: nothing is asked for `open_seconds`. Then one request may try; its
    success closes the breaker, its failure opens it again. The failure of a call that began before the last success, or
    before the breaker opened, is none of these: of a burst the last ones may be late, and say nothing new.

    All moments are seconds of one clock that only goes forward.
    """

    def __init__(self, failures: float = 5, open_seconds: float = 1.0) -> None:
        if failures < 1:
            raise ValueError(f"failures is {failures!r}; give 1 or more, or math.inf for no breaker")
        self._limit, self._open_seconds = failures, open_seconds
        self._failures = 0
        self._told_at = -math.inf  # when it last opened, or the server last answered
        self._closed_until_probe = 0.0
        self._lock = threading.Lock()

    def allow(self, now: float) -> bool:
        """Whether a request may be sent; where it is the one that tries, others are held back until it is due again."""
        with self._lock:
            if self._failures < self._limit:
                return True
            if now < self._closed_until_probe:
                return False
            self._closed_until_probe = now + self._open_seconds
            return True

    def succeeded(self, now: float) -> None:
        """The server answered."""
        with self._lock:
            self._failures, self._told_at = 0, now

    def failed(self, now: float, began: float) -> None:
        """The server did not answer a call that began then, or not with sense."""
        with self._lock:
            if began <= self._told_at:
                return
            self._failures += 1
            if self._failures >= self._limit:
                self._told_at, self._closed_until_probe = now, now + self._open_seconds
