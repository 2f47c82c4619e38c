"""The recorder: what waits to be written, in groups, while the store is there, slow or gone."""

from __future__ import annotations

import threading

import pytest

from classifier.errors import StoreUnavailable
from classifier.recorder import Recorder
from classifier.types import OutcomeState

PENDING = OutcomeState.PENDING


def test_outcomes_that_wait_together_are_written_together():
    """While one group is written the next gathers, so many callers cost few commits."""
    groups, gate = [], threading.Event()

    def write(_, outcomes):
        gate.wait(10)
        groups.append(len(outcomes))
        return [PENDING] * len(outcomes)

    recorder = Recorder(write)
    futures = [recorder.submit({"n": n}, 1) for n in range(100)]
    gate.set()
    assert [f.result(10) for f in futures] == [PENDING] * 100
    assert sum(groups) == 100
    assert len(groups) <= 2
    recorder.close()


def test_decisions_wait_for_company_and_outcomes_do_not():
    """Decisions are written in batches; an outcome takes along what is queued, at once."""
    batches = []

    def write(decisions, outcomes):
        batches.append((len(decisions), len(outcomes)))
        return [PENDING] * len(outcomes)

    recorder = Recorder(write, linger_seconds=30)
    for n in range(10):
        recorder.add({"n": n}, 1)
    assert recorder.submit({}, 1).result(10) is PENDING
    assert batches == [(10, 1)]
    recorder.close()


def test_a_closed_recorder_refuses(caplog):
    """After close outcomes are refused, and decisions are counted as dropped."""
    recorder = Recorder(lambda _, outcomes: [PENDING] * len(outcomes))
    recorder.close()
    assert not recorder.add({}, 1)
    with pytest.raises(StoreUnavailable):
        recorder.submit({}, 1).result(1)
    assert recorder.dropped == 1


def test_a_decision_that_comes_while_the_store_is_down_is_written_when_it_is_back():
    """It needs neither an outcome nor others to wake the writer."""
    away, written = [True], threading.Event()

    def write(decisions, outcomes):
        if away[0]:
            raise StoreUnavailable("away")
        written.set()
        return [PENDING] * len(outcomes)

    recorder = Recorder(write, retry_seconds=0.5)
    with pytest.raises(StoreUnavailable):
        recorder.submit({}, 1).result(60)
    away[0] = False
    assert recorder.add({}, 1)
    assert written.wait(60)
    recorder.close()


def test_a_store_that_goes_while_a_bad_row_is_looked_for_keeps_the_rest_in_order():
    """The first write that finds it gone is the last until it is back; what was not written then is, as it came."""
    written, away, tried = [], threading.Event(), []

    def write(decisions, outcomes):
        if 2 in decisions:
            raise ValueError("a row")
        if written == [0, 1] and not away.is_set():
            tried.append(decisions)
            raise StoreUnavailable("away")
        written.extend(decisions)
        return [PENDING] * len(outcomes)

    recorder = Recorder(write, linger_seconds=30)
    for n in range(6):
        recorder.add(n, 1)
    with pytest.raises(StoreUnavailable):
        recorder.submit({}, 1).result(60)
    assert [row for row in tried if len(row) == 1] == [[3]]
    away.set()
    assert recorder.flush(60)
    assert (written, recorder.dropped) == ([0, 1, 3, 4, 5], 1)
    recorder.close()


def test_a_store_that_stays_away_loses_only_what_it_must(caplog):
    """Closing while the store is away gives up after the time allowed, and says how many decisions were lost."""

    def write(decisions, outcomes):
        raise StoreUnavailable("away")

    recorder = Recorder(write, retry_seconds=0.01)
    for n in range(3):
        recorder.add({"n": n}, 1)
    recorder.close(timeout_seconds=0.2)
    assert recorder.dropped == 3
    assert "3 decisions could not be written" in caplog.text


def test_a_store_that_hangs_loses_what_it_has_not_written(caplog):
    """Closing while a write does not come back counts its decisions as lost, beside those that wait behind it."""
    begun, end = threading.Event(), threading.Event()

    def write(decisions, outcomes):
        begun.set()
        end.wait()
        return []

    recorder = Recorder(write, linger_seconds=0.0)
    recorder.add({}, 1)
    assert begun.wait(60)
    recorder.add({}, 1)
    assert recorder.queued == 2
    recorder.close(timeout_seconds=0.1)
    end.set()
    assert recorder.dropped == 2
    assert "2 decisions could not be written" in caplog.text


@pytest.mark.parametrize("fault", [None, StoreUnavailable("away"), ValueError("a row")], ids=["none", "away", "row"])
def test_what_is_lost_at_the_close_is_counted_once(fault):
    """However the write ends that hung, and however often the recorder is closed, nothing is lost twice."""
    begun, end = threading.Event(), threading.Event()

    def write(decisions, outcomes):
        begun.set()
        end.wait()
        if fault:
            raise fault
        return []

    recorder = Recorder(write, linger_seconds=0.0)
    recorder.add({}, 1)
    assert begun.wait(60)
    recorder.add({}, 1)
    recorder.close(timeout_seconds=0.1)
    recorder.close(timeout_seconds=0.1)
    assert (recorder.dropped, recorder.queued) == (2, 0)
    end.set()
    recorder._thread.join(60)
    recorder.close(timeout_seconds=0.1)
    assert (recorder.dropped, recorder.queued) == (2, 0)
    assert not recorder.add({}, 1)
    assert recorder.dropped == 3
