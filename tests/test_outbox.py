"""Outcomes on their way: again while the server is away, none behind another, bounded."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from classifier.errors import InvalidRequest, NotConfigured, ServerUnreachable, StoreUnavailable
from classifier.gateways.outbox import ATTEMPTS, Outbox
from classifier.types import Cause, Outcome, Source, Tier, Verdict


def outcome(number):
    return Outcome("d", f"o{number}", Verdict.ACCEPTED, Cause.QUALITY, Source.USER, Tier.SIMPLE)


class Server:
    """Takes outcomes, after it raised what it was told to, and never the one that is `unlucky`."""

    def __init__(self, *errors, unlucky=""):
        self.errors, self.unlucky, self.taken, self.waits = list(errors), unlucky, [], []

    async def send(self, found):
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
        if found.outcome_id == self.unlucky:
            raise ServerUnreachable("x")
        self.taken.append(found)

    @property
    def ids(self):
        return sorted(found.outcome_id for found in self.taken)

    async def pause(self, seconds):
        self.waits.append(seconds)

    def outbox(self, **more):
        return Outbox(self.send, pause=self.pause, **more)


async def test_an_outcome_is_sent_again_while_the_server_is_away():
    """An outage loses nothing; the waits grow."""
    server = Server(ServerUnreachable("x"), StoreUnavailable("x"), ServerUnreachable("x"))
    box = server.outbox()
    box.put(outcome(0))
    await box.drain(60)
    assert (server.ids, server.waits) == (["o0"], [0.25, 0.5, 1.0])
    assert box.counts == {"outcomes_sent": 1}


async def test_one_that_has_no_luck_holds_up_no_other():
    """It waits to be tried again until all that came after it have arrived."""
    server, others = Server(unlucky="o0"), asyncio.Event()

    async def send(found):
        await server.send(found)
        if len(server.taken) == 49:
            server.unlucky = ""
            others.set()

    async def pause(_):
        await others.wait()

    box = Outbox(send, pause=pause)
    for number in range(50):
        box.put(outcome(number))
    await box.drain(60)
    assert (box.counts, server.taken[-1].outcome_id) == ({"outcomes_sent": 50}, "o0")


async def test_other_threads_may_put_outcomes():
    """The loop sends it: at once where it is known, else from its first call on, at the latest at the end."""
    sent = asyncio.Queue()
    box = Outbox(sent.put)
    await asyncio.to_thread(box.put, outcome(0))
    box.attend()
    assert (await sent.get()).outcome_id == "o0"
    await asyncio.to_thread(box.put, outcome(1))
    assert (await sent.get()).outcome_id == "o1"
    late = Outbox(sent.put)
    await asyncio.to_thread(late.put, outcome(2))
    await late.drain(60)
    assert (await sent.get()).outcome_id == "o2"


async def test_an_outcome_that_arrives_late_says_when_it_happened():
    """What was said while it waited is not hidden behind it; a time that its reporter gave stays."""
    server = Server()
    box = server.outbox(clock=lambda: 5.0)
    box.put(outcome(0))
    box.put(replace(outcome(1), occurred_at=3.0))
    await box.drain(60)
    assert {found.outcome_id: found.occurred_at for found in server.taken} == {"o0": 5.0, "o1": 3.0}


@pytest.mark.parametrize("error", [InvalidRequest("x"), NotConfigured("x")], ids=["bad", "no-store"])
async def test_what_is_refused_is_not_sent_again(error):
    """A refusal is final and does not hold up the next."""
    server = Server(error)
    box = server.outbox()
    box.put(outcome(0))
    box.put(outcome(1))
    await box.drain(60)
    assert (server.ids, server.waits) == (["o1"], [])
    assert box.counts == {"outcomes_refused": 1, "outcomes_sent": 1}


async def test_a_fault_in_sending_loses_one_outcome_and_not_the_line():
    """What nobody expected to be raised costs the outcome that it was raised for, and is counted."""
    server = Server(RuntimeError("a fault"))
    box = server.outbox()
    box.put(outcome(0))
    box.put(outcome(1))
    await box.drain(60)
    assert (server.ids, box.counts) == (["o1"], {"outcomes_lost": 1, "outcomes_sent": 1})


async def test_a_long_outage_loses_an_outcome_and_says_so(caplog):
    """After about a minute it is given up, counted and told of; the next is tried as often."""
    server = Server(unlucky="o0")
    box = server.outbox()
    box.put(outcome(0))
    box.put(outcome(1))
    await box.drain(60)
    assert server.ids == ["o1"]
    assert 50 < sum(server.waits) < 75
    assert box.counts == {"outcomes_lost": 1, "outcomes_sent": 1}
    assert f"sent {ATTEMPTS} times in vain" in caplog.text


async def test_what_waits_is_bounded(caplog):
    """With the line full the newest is dropped and counted; the log tells of the first, and of how many in the end."""
    server = Server()
    box = server.outbox(waiting=2)
    for number in range(5):
        box.put(outcome(number))
    await box.drain(60)
    assert (server.ids, box.counts["outcomes_dropped"]) == (["o0", "o1"], 3)
    assert [record.message.split(";")[0] for record in caplog.records] == [
        "2 outcomes wait for the server",
        "no more outcomes wait",
    ]


async def test_it_goes_on_after_it_was_empty():
    """Emptied once, it sends the next all the same."""
    server = Server()
    box = server.outbox()
    await box.drain(60)
    for number in range(2):
        box.put(outcome(number))
        await box.drain(60)
    assert server.ids == ["o0", "o1"]


async def test_what_is_left_at_the_end_is_counted_and_told(caplog):
    """A server that stays away until the end costs outcomes, and says how many."""
    server = Server(*[ServerUnreachable("x")] * 6)
    server.pause = asyncio.sleep
    box = server.outbox()
    for number in range(6):
        box.put(outcome(number))
    await box.drain(0.01)
    assert box.counts == {"outcomes_lost": 6}
    assert "6 outcomes could not be sent" in caplog.text
