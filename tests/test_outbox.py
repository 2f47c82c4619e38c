"""Outcomes on their way: in order, again while the server is away, bounded."""

from __future__ import annotations

import asyncio

import pytest

from classifier.errors import InvalidRequest, NotConfigured, ServerUnreachable, StoreUnavailable
from classifier.gateways.outbox import ATTEMPTS, Outbox
from classifier.types import Cause, Outcome, Source, Tier, Verdict


def outcome(number):
    return Outcome("d", f"o{number}", Verdict.ACCEPTED, Cause.QUALITY, Source.USER, Tier.SIMPLE)


class Server:
    """Takes outcomes, after it raised what it was told to."""

    def __init__(self, *errors):
        self.errors, self.taken, self.waits = list(errors), [], []

    async def send(self, found):
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
        self.taken.append(found.outcome_id)

    async def pause(self, seconds):
        self.waits.append(seconds)

    def outbox(self, **more):
        return Outbox(self.send, pause=self.pause, **more)


async def test_outcomes_are_sent_in_order_and_again_while_the_server_is_away():
    """An outage holds the line up and loses nothing; the waits grow."""
    server = Server(ServerUnreachable("x"), StoreUnavailable("x"), ServerUnreachable("x"))
    box = server.outbox()
    for number in range(3):
        box.put(outcome(number))
    await box.drain(60)
    assert (server.taken, server.waits) == (["o0", "o1", "o2"], [0.25, 0.5, 1.0])
    assert box.counts == {"outcomes_sent": 3}


@pytest.mark.parametrize("error", [InvalidRequest("x"), NotConfigured("x")], ids=["bad", "no-store"])
async def test_what_is_refused_is_not_sent_again(error):
    """A refusal is final and does not hold up the next."""
    server = Server(error)
    box = server.outbox()
    box.put(outcome(0))
    box.put(outcome(1))
    await box.drain(60)
    assert (server.taken, server.waits) == (["o1"], [])
    assert box.counts == {"outcomes_refused": 1, "outcomes_sent": 1}


async def test_a_fault_in_sending_loses_one_outcome_and_not_the_line():
    """What nobody expected to be raised costs the outcome that it was raised for, and is counted."""
    server = Server(RuntimeError("a fault"))
    box = server.outbox()
    box.put(outcome(0))
    box.put(outcome(1))
    await box.drain(60)
    assert (server.taken, box.counts) == (["o1"], {"outcomes_lost": 1, "outcomes_sent": 1})


async def test_a_long_outage_loses_outcomes_one_by_one_and_counts_them():
    """After about a minute one is given up; the next is tried as often."""
    server = Server(*[ServerUnreachable("x")] * ATTEMPTS)
    box = server.outbox()
    box.put(outcome(0))
    box.put(outcome(1))
    await box.drain(60)
    assert server.taken == ["o1"]
    assert 55 < sum(server.waits) < 75
    assert box.counts == {"outcomes_lost": 1, "outcomes_sent": 1}


async def test_what_waits_is_bounded():
    """With the line full the newest is dropped and counted."""
    server = Server()
    box = server.outbox(waiting=2)
    for number in range(3):
        box.put(outcome(number))
    await box.drain(60)
    assert (server.taken, box.counts["outcomes_dropped"]) == (["o0", "o1"], 1)


async def test_it_goes_on_after_it_was_empty():
    """Emptied once, it sends the next all the same."""
    server = Server()
    box = server.outbox()
    await box.drain(60)
    for number in range(2):
        box.put(outcome(number))
        await box.drain(60)
    assert server.taken == ["o0", "o1"]


async def test_what_is_left_at_the_end_is_counted_and_told(caplog):
    """A server that stays away until the end costs outcomes, and says how many."""
    server = Server(*[ServerUnreachable("x")] * 3)
    server.pause = asyncio.sleep
    box = server.outbox()
    for number in range(3):
        box.put(outcome(number))
    await box.drain(0.01)
    assert box.counts == {"outcomes_lost": 3}
    assert "3 outcomes could not be sent" in caplog.text
