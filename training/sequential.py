"""A test that may be looked at after every outcome: has a rate of failures risen above its bound?

A bet against "each failure has a conditional chance of at most `bound`". Betting on a rate r > bound multiplies the
stake by r / bound at a failure and by (1 - r) / (1 - bound) at a success, which nobody gains by in expectation while
the bound holds. The stake is spread over several rates, and the test fires where it has grown to 1 / error. By Ville's
inequality a sound model is ever accused with a chance of at most `error`, however long and however often it is looked
at (Shafer 2021, "Testing by betting"; Waudby-Smith and Ramdas 2024).

Knows nothing of bundles, stores or time.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

ERROR = 0.01
"""Chance of ever accusing a model whose failures stay within their bounds, all its policies together."""
_RATES = (1.15, 1.3, 1.6, 2.0, 3.0)
"""The rates bet on, as multiples of the bound: a small excess takes long to tell, a large one shows in a few rows."""


class SequentialTest:
    """Counts failures against a bound; see the module's text.

    Args:
        bound: highest failure rate that is promised, in (0, 1).
        error: chance of ever firing while the promise holds, in (0, 1).

    Raises:
        ValueError: one of them is out of range.

    >>> test = SequentialTest(0.1)
    >>> for _ in range(8):
    ...     test.add(failed=True)
    >>> test.fired
    True
    """

    def __init__(self, bound: float, error: float = ERROR) -> None:
        for name, value in (("bound", bound), ("error", error)):
            if not 0 < value < 1:
                raise ValueError(f"{name} is {value!r}, expected a number between 0 and 1")
        self.bound, self.error = bound, error
        self.n = self.failures = 0
        rates = np.array([min(factor * bound, (1 + bound) / 2) for factor in _RATES])
        self._gain, self._cost = np.log(rates / bound), np.log((1 - rates) / (1 - bound))
        self._highest = 0.0

    def add(self, *, failed: bool) -> None:
        """Counts one decision that was covered by the promise."""
        self.n += 1
        self.failures += failed
        self._highest = max(self._highest, self.log_stake)

    @property
    def log_stake(self) -> float:
        """Logarithm of what a stake of 1 has become."""
        logs = self.failures * self._gain + (self.n - self.failures) * self._cost
        return float(np.logaddexp.reduce(logs) - math.log(len(logs)))

    @property
    def fired(self) -> bool:
        """Whether the stake ever grew to 1 / error: the bound is broken."""
        return self._highest >= -math.log(self.error)

    def as_json(self) -> dict[str, Any]:
        """What was counted, and the verdict."""
        return {
            "n": self.n,
            "failures": self.failures,
            "bound": self.bound,
            "error": self.error,
            "stake": math.exp(min(self._highest, 700.0)),
            "fired": self.fired,
        }
