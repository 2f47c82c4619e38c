"""The test that watches a promoted bundle's failures."""

from __future__ import annotations

import numpy as np
import pytest
import scipy

from training.sequential import SequentialTest


def run(rate: float, bound: float, n: int, seed: int, error: float = 0.05) -> int | None:
    """Decisions until the test fires, or None."""
    test = SequentialTest(bound, error)
    for i, failed in enumerate(np.random.default_rng(seed).random(n) < rate):
        test.add(failed=bool(failed))
        if test.fired:
            return i + 1
    return None


def after(failures: int, n: int, bound: float) -> SequentialTest:
    """The test after `n` outcomes, the failures first."""
    test = SequentialTest(bound)
    for i in range(n):
        test.add(failed=i < failures)
    return test


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


@pytest.mark.parametrize("bound", [0.02, 0.1, 0.5, 0.9])
def test_nobody_gains_by_betting_against_a_promise_that_is_just_kept(bound: float):
    """At exactly the promised rate the stake is 1 on average, after however many outcomes, whatever the bound."""
    for n in (1, 2, 7, 30):
        stakes = [after(failures, n, bound).as_json()["stake"] for failures in range(n + 1)]
        logs = [after(failures, n, bound).log_stake for failures in range(n + 1)]
        chances = scipy.stats.binom.pmf(range(n + 1), n, bound)
        assert chances @ np.exp(logs) == pytest.approx(1)
        assert (np.array(stakes) >= np.maximum(1, np.exp(logs)) * (1 - 1e-9)).all()  # the highest one is told


@pytest.mark.parametrize("error", [0.5, 0.05, 0.001])
def test_it_fires_once_the_stake_has_grown_to_one_over_the_error(error: float):
    """Neither before, so that a sound model is safe, nor later, so that a broken promise is found soon."""
    test, fired = SequentialTest(0.1, error), []
    assert not test.fired
    for _ in range(12):
        test.add(failed=True)
        fired.append(test.fired)
        assert test.fired is (test.as_json()["stake"] >= 1 / error)
    assert fired == sorted(fired)
    assert fired[-1]


def test_a_stake_beyond_all_numbers_is_told_as_a_number():
    """After thousands of failures the record still holds a finite stake, and one without outcomes holds 1."""
    assert SequentialTest(0.1).as_json()["stake"] == 1
    assert 1e300 < after(5000, 5000, 0.1).as_json()["stake"] < np.inf


@pytest.mark.parametrize(("bound", "error"), [(0.0, 0.1), (1.0, 0.1), (0.1, 0.0), (0.1, 1.0)])
def test_numbers_out_of_range_are_refused(bound: float, error: float):
    """A bound or an error rate that is no probability raises."""
    with pytest.raises(ValueError, match="between 0 and 1"):
        SequentialTest(bound, error)
