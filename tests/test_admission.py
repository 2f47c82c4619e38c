"""Who may run, who waits, and who is refused."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections import Counter

import pytest

from classifier.admission import Admission, Places, RateLimit
from classifier.errors import DeadlinePassed, Overloaded
from classifier.waiting import CALM, PROBE, Line


def line(cores=1, size=4, max_wait=10.0):
    return Line(cores, size, max_wait)


def test_a_free_core_takes_a_request_at_once():
    """A request that finds a free core runs and does not wait."""
    subject = line()
    ticket, displaced = subject.enter("a", now=0.0)
    assert (subject.take(), displaced, subject.running, subject.waiting) == (ticket, None, 1, 0)


def test_no_more_run_than_there_are_cores():
    """While every core is busy nothing more is taken from the line."""
    subject = line(cores=2)
    for _ in range(3):
        subject.enter("a", now=0.0)
    assert [subject.take() is not None for _ in range(3)] == [True, True, False]
    subject.finish(0.001)
    assert subject.take() is not None


def test_a_full_line_refuses_at_once_and_says_when_to_come_back():
    """When the line is full a request of the only caller is refused with a positive waiting time."""
    subject = line(size=1)
    subject.enter("a", now=0.0)
    subject.take()
    subject.enter("a", now=0.0)
    with pytest.raises(Overloaded) as refusal:
        subject.enter("a", now=0.0)
    assert refusal.value.retry_after_seconds > 0


def test_callers_are_served_in_turn():
    """A caller with one request does not wait behind all of another caller's."""
    subject = line(size=10)
    for _ in range(5):
        subject.enter("flood", now=0.0)
    subject.enter("quiet", now=0.0)
    served = []
    for _ in range(6):
        ticket = subject.take()
        served.append(ticket.caller)
        subject.finish(0.001)
    assert served.index("quiet") <= 1
    assert served.count("flood") == 5


def test_nobody_is_served_twice_while_another_caller_waits():
    """Of callers with several requests each one is served, and then each again, its oldest first."""
    subject = line(size=10)
    tickets = {name: [subject.enter(name, now=0.0)[0] for _ in range(2)] for name in ("a", "b", "c")}
    served = []
    for _ in range(6):
        served.append(subject.take())
        subject.finish(0.001)
    assert served == [tickets[name][i] for i in range(2) for name in ("a", "b", "c")]


def test_a_caller_who_floods_loses_its_own_place():
    """In a full line the newest request of the longest queue makes room for a caller with fewer."""
    subject = line(size=3)
    subject.enter("flood", now=0.0)
    subject.take()
    tickets = [subject.enter("flood", now=0.0)[0] for _ in range(3)]
    _, displaced = subject.enter("quiet", now=0.0)
    assert displaced is tickets[-1]
    assert subject.waiting == 3


def test_a_wait_that_would_outlast_the_deadline_is_refused_on_arrival():
    """A request that cannot start before its deadline is refused when it comes and not after it waited."""
    subject = line(size=100)
    subject.run_seconds = 0.02
    subject.enter("a", now=0.0)
    subject.take()
    for _ in range(5):
        subject.enter("a", now=0.0)
    with pytest.raises(Overloaded):
        subject.enter("a", now=0.0, deadline=0.05)
    subject.enter("a", now=0.0, deadline=1.0)


def test_a_request_waits_for_those_that_run():
    """Where nobody waits, but every core is busy, one that has less time than a run takes is refused."""
    subject = line()
    subject.run_seconds = 0.02
    subject.enter("a", now=0.0)
    subject.take()
    with pytest.raises(Overloaded):
        subject.check("b", now=0.0, deadline=0.01)
    subject.check("b", now=0.0, deadline=0.03)


def test_who_is_refused_is_told_to_come_back_when_the_line_has_moved():
    """The more wait, the later; the more cores, the sooner: three that wait at two cores take two runs with it."""
    subject = line(cores=2, size=3)
    for _ in range(5):
        subject.enter("a", now=0.0)
        subject.take()
    subject.run_seconds = 0.1
    with pytest.raises(Overloaded) as refusal:
        subject.enter("a", now=0.0)
    assert refusal.value.retry_after_seconds == pytest.approx(0.2)


def test_a_deadline_that_is_over_is_said_so():
    """A request whose deadline passed before it came is told that, also on an idle server."""
    with pytest.raises(DeadlinePassed):
        line().enter("a", now=2.0, deadline=1.0)


def test_a_caller_who_left_gives_its_place_back():
    """A request that is cancelled while it waits leaves the line."""
    subject = line()
    subject.enter("a", now=0.0)
    subject.take()
    ticket, _ = subject.enter("a", now=0.0)
    subject.leave(ticket)
    subject.finish(0.001)
    assert (subject.take(), subject.waiting) == (None, 0)


def test_the_estimate_follows_the_runs():
    """The running mean of run times moves towards what runs take."""
    subject = line()
    for _ in range(200):
        subject.enter("a", now=0.0)
        subject.take()
        subject.finish(0.1)
    assert subject.run_seconds == pytest.approx(0.1, rel=0.01)


def served_alone(subject, count, run_seconds=0.001):
    """Serves so many requests one after another; says of each whether it was alone."""
    alone = []
    for _ in range(count):
        alone.append(subject.alone())
        subject.enter("a", now=0.0)
        subject.take()
        subject.finish(run_seconds)
    return alone


def test_after_a_calm_spell_a_lone_request_needs_no_thread():
    """When many requests in a row found nobody, the next is alone; every few of them probe for company all the same."""
    found = served_alone(line(), CALM + 4 * PROBE)
    assert not any(found[:CALM])
    assert found[CALM:].count(False) == 4


def test_company_ends_the_calm():
    """A request that comes while another runs ends the calm, and it has to build up again."""
    subject = line(cores=2)
    served_alone(subject, CALM + 1)
    subject.enter("a", now=0.0)
    subject.take()
    assert not subject.alone()
    subject.enter("b", now=0.0)
    subject.take()
    subject.finish(0.001)
    subject.finish(0.001)
    assert not any(served_alone(subject, CALM))


def test_long_runs_are_never_alone():
    """Where a run takes long, nothing runs where it came: whoever comes meanwhile would wait for it."""
    assert not any(served_alone(line(), 10 * CALM, run_seconds=0.1)[CALM:])


async def test_a_lone_request_runs_where_it_came_and_one_of_several_does_not(monkeypatch):
    """After a calm spell single requests run on the event loop, items of a batch or stream never do."""
    # A machine that stands still for a moment makes a run long; what is long has a test of its own.
    monkeypatch.setattr("classifier.waiting.SHORT_RUN_SECONDS", 60.0)
    admission = Admission(cores=1, queue_size=4, max_wait_seconds=60.0)

    async def thread_of(*, single):
        return (await admission.run(threading.get_ident, "a", single=single))[0]

    threads = [await thread_of(single=True) for _ in range(CALM + 2 * PROBE)]
    items = [await thread_of(single=False) for _ in range(2 * PROBE)]
    here = threading.get_ident()
    assert here not in threads[:CALM]
    assert threads[CALM:].count(here) == 2 * PROBE - 2
    assert here not in items
    with pytest.raises(ZeroDivisionError):
        for _ in range(PROBE):
            await admission.run(lambda: 1 // 0, "a", single=True)
    assert admission.running == 0
    await admission.close()


async def test_work_runs_on_threads_no_wider_than_the_cores():
    """Never more than `cores` pieces of work run at the same moment, and that many do."""
    admission = Admission(cores=2, queue_size=50, max_wait_seconds=60.0)
    now, peak, lock = [0], [0], threading.Lock()
    both = threading.Barrier(2, timeout=60)

    def work():
        with lock:
            now[0] += 1
            peak[0] = max(peak[0], now[0])
        both.wait()  # each waits for another one to run beside it
        with lock:
            now[0] -= 1
        return threading.current_thread().name

    results = await asyncio.gather(*(admission.run(work, "a") for _ in range(20)))
    await admission.close()
    assert peak[0] == 2
    assert {name for name, _ in results} == {"core-0", "core-1"}


async def test_no_error_keeps_its_caller_waiting():
    """StopIteration, which no future takes, ends the wait as another error."""
    admission = Admission(cores=1, queue_size=4, max_wait_seconds=60.0)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await admission.run(lambda: next(iter(())), "a")
    await admission.close()


async def test_an_error_reaches_its_caller_and_the_core_goes_on():
    """An exception in the work is raised to whoever asked; the next request is served."""
    admission = Admission(cores=1, queue_size=4, max_wait_seconds=10.0)

    def broken():
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await admission.run(broken, "a")
    assert (await admission.run(lambda: 7, "a"))[0] == 7
    await admission.close()


async def test_who_left_and_who_is_late_never_reach_the_work():
    """A request whose caller left or whose deadline passed while it waited is never run."""
    admission = Admission(cores=1, queue_size=10, max_wait_seconds=10.0)
    admission._line.run_seconds = 0.0  # so that the estimate lets the late one in
    gate, ran = threading.Event(), []
    first = asyncio.create_task(admission.run(gate.wait, "a"))
    await _until(lambda: admission.running == 1)
    left = asyncio.create_task(admission.run(lambda: ran.append("left"), "b"))
    late = asyncio.create_task(admission.run(lambda: ran.append("late"), "c", time.monotonic() + 60))
    await _until(lambda: admission.waiting == 2)
    left.cancel()
    await _until(lambda: admission.waiting == 1)
    [ticket] = admission._line._queues["c"]
    ticket.deadline = ticket.latest_start = time.monotonic()  # it passes while the request waits
    gate.set()
    await first
    with pytest.raises(DeadlinePassed):
        await late
    with pytest.raises(asyncio.CancelledError):
        await left
    await admission.close()
    assert ran == []


async def test_who_loses_a_place_is_told_at_once():
    """A waiting request that makes room for another caller's is refused then, and not when its turn would come."""
    admission = Admission(cores=1, queue_size=2, max_wait_seconds=60.0)
    gate = threading.Event()
    first = asyncio.create_task(admission.run(gate.wait, "flood"))
    await _until(lambda: admission.running == 1)
    _, newest = (asyncio.create_task(admission.run(gate.wait, "flood")) for _ in range(2))
    await _until(lambda: admission.waiting == 2)
    quiet = asyncio.create_task(admission.run(lambda: 7, "quiet"))
    with pytest.raises(Overloaded, match="another caller had fewer"):
        await asyncio.wait_for(newest, 60)
    assert not first.done()
    gate.set()
    answer, waited = await quiet
    assert (answer, waited > 0) == (7, True)
    await admission.close()


async def test_who_waits_at_the_end_is_told():
    """Closing answers those that still wait, and lets the run at hand finish."""
    admission = Admission(cores=1, queue_size=4, max_wait_seconds=10.0)
    gate = threading.Event()
    first = asyncio.create_task(admission.run(gate.wait, "a"))
    await _until(lambda: admission.running == 1)
    second = asyncio.create_task(admission.run(gate.wait, "a"))
    await _until(lambda: admission.waiting == 1)
    closing = asyncio.create_task(admission.close())
    await asyncio.sleep(0)
    gate.set()
    await closing
    assert (await first)[0] is True
    with pytest.raises(Overloaded):
        await second
    with pytest.raises(Overloaded):  # and so is who comes later
        await asyncio.wait_for(admission.run(gate.wait, "a"), 60)


def test_a_flood_takes_no_more_than_its_share():
    """While one caller asks for ten times what can be served, another gets all it asks for up to half."""
    for wanted in (0.1, 0.3, 0.5):
        subject, served, asked, refused = line(size=16), Counter(), 0.0, 0
        for step in range(1000):  # a run a step
            now = step * 0.003
            asked += wanted
            callers = ["flood"] * 10 + ["quiet"] * int(asked)
            asked %= 1
            for caller in callers:
                try:
                    _, displaced = subject.enter(caller, now)
                    refused += displaced is not None and displaced.caller == "quiet"
                except Overloaded:
                    refused += caller == "quiet"
            served[subject.take().caller] += 1
            subject.finish(0.003)
        assert refused == 0
        assert served["quiet"] >= 1000 * wanted - 2
        assert sum(served.values()) == 1000


def test_a_token_bucket_lets_a_burst_through_and_then_the_rate():
    """A caller may send its burst at once and then as many a second as the rate."""
    bucket = RateLimit(rate=10, burst=2)
    bucket.take("a", now=0.0)
    bucket.take("a", now=0.0)
    with pytest.raises(Overloaded) as refusal:
        bucket.take("a", now=0.0)
    assert refusal.value.retry_after_seconds == pytest.approx(0.1)
    bucket.take("a", now=0.1)


def test_one_callers_bucket_is_not_anothers():
    """A caller over its rate does not keep another one out."""
    bucket = RateLimit(rate=1, burst=1)
    bucket.take("a", now=0.0)
    bucket.take("b", now=0.0)
    with pytest.raises(Overloaded):
        bucket.take("a", now=0.0)


def test_the_caller_who_was_away_longest_is_forgotten_first(monkeypatch):
    """A flood of callers' names takes no more memory, and lets out nobody who sends on and on."""
    monkeypatch.setattr("classifier.admission.MAX_RATE_LIMITED_CALLERS", 2)
    bucket = RateLimit(rate=1, burst=2)
    for caller in ("gone", "busy", "busy", "new"):
        bucket.take(caller, now=0.0)
    with pytest.raises(Overloaded):
        bucket.take("busy", now=0.0)
    bucket.take("gone", now=0.0)
    bucket.take("gone", now=0.0)


def test_no_rate_means_no_limit():
    """A rate of zero lets everything through."""
    bucket = RateLimit(rate=0, burst=1)
    for _ in range(10):
        bucket.take("a", now=0.0)


def test_an_endless_deadline_is_the_default():
    """Without a deadline only the longest wait bounds a request."""
    ticket, _ = line(max_wait=2.0).enter("a", now=1.0)
    assert (ticket.deadline, ticket.latest_start) == (math.inf, 3.0)


async def _until(condition, seconds=60.0):
    """Polls until it holds; fails after the deadline."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        await asyncio.sleep(0.001)


@pytest.mark.parametrize(("callers", "each"), [("a", 48), ("ab", 28), ("abc", 20)])
def test_callers_who_want_all_streams_leave_some(callers, each):
    """However many callers take all that they get, each has its share and one more finds a place."""
    subject = Places()
    with contextlib.ExitStack() as held:
        found = Counter()
        for caller in callers * 64:
            with contextlib.suppress(Overloaded):
                held.enter_context(subject.one(caller, 64))
                found[caller] += 1
        assert max(found.values()) <= each
        assert max(found.values()) - min(found.values()) <= 1
        held.enter_context(subject.one("another", 64))
    with subject.one("a", 1), pytest.raises(Overloaded), subject.one("another", 1):
        pytest.fail("there is only one")


def test_a_stream_that_ends_gives_back_its_own_place_alone():
    """A caller at its limit may open one stream for each that ends."""
    places, open_ones = Places(), contextlib.ExitStack()
    with open_ones:
        for _ in range(5):
            open_ones.enter_context(places.one("a", most=8))
        with places.one("a", most=8), pytest.raises(Overloaded), places.one("a", most=8):
            pass
        with places.one("a", most=8), pytest.raises(Overloaded), places.one("a", most=8):
            pass
