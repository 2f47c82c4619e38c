"""The test that watches a promoted bundle's failures."""

from __future__ import annotations

import numpy as np
import pytest

from training.sequential import SequentialTest


def run(rate: float, bound: float, n: int, seed: int, error: float = 0.05) -> int | None:
    """Decisions until the test fires, or None."""
    test = SequentialTest(bound, error)
    for i, failed in enumerate(np.random.default_rng(seed).random(n) < rate):
        test.add(failed=bool(failed))
        if test.fired:
            return i + 1
    return None


def false_alarms(runs: int, n: int) -> float:
    return float(np.mean([run(0.1, 0.1, n, seed) is not None for seed in range(runs)]))


def test_a_sound_model_is_seldom_accused():
    """At exactly the promised rate, looked at after every one of 2,000 outcomes, 5 % or fewer of 100 runs fire."""
    assert false_alarms(100, 2000) <= 0.05


@pytest.mark.faults
def test_the_error_rate_holds_over_long_runs():
    """At exactly the promised rate at most 5 % of 500 runs of 5,000 outcomes ever fire."""
    assert false_alarms(500, 5000) <= 0.05


def test_a_broken_promise_is_found():
    """At twice the promised rate every one of 20 runs fires within 600 outcomes, at three times within 200."""
    assert all(run(0.2, 0.1, 600, seed) is not None for seed in range(20))
    assert all(run(0.3, 0.1, 200, seed) is not None for seed in range(20))


def test_it_stays_fired():
    """Good outcomes after the alarm do not take it back, and the record says what was counted."""
    test = SequentialTest(0.1)
    for failed in [True] * 20 + [False] * 5000:
        test.add(failed=failed)
    assert test.as_json() | {"stake": 0} == {
        "n": 5020, "failures": 20, "bound": 0.1, "error": 0.01, "stake": 0, "fired": True,
    }  # fmt: skip


@pytest.mark.parametrize(("bound", "error"), [(0.0, 0.1), (1.0, 0.1), (0.1, 0.0), (0.1, 1.0)])
def test_numbers_out_of_range_are_refused(bound: float, error: float):
    """A bound or an error rate that is no probability raises."""
    with pytest.raises(ValueError, match="between 0 and 1"):
        SequentialTest(bound, error)
