"""Outcomes over the wire, into a real store."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import sqlite3

import pytest

from classifier import Client, Outcome, Request, Tier, errors
from classifier.testing import FakeEngine, fake_server
from classifier.types import Cause, OutcomeState, Source, Verdict
from tests.feedback_support import hanging
from tests.serving_support import server_process, until

ALICE, BOB = "alice-0123456789abcdef", "bob-0123456789abcdef"


def outcome(decision_id, outcome_id="o1", **fields):
    values = {"verdict": Verdict.ACCEPTED, "cause": Cause.QUALITY, "source": Source.USER, "served_tier": Tier.SIMPLE}
    return Outcome(decision_id=decision_id, outcome_id=outcome_id, **{**values, **fields})


@pytest.fixture
def served(tmp_path):
    """Address and database of a server that keeps feedback and knows two callers."""
    tokens = tmp_path / "tokens"
    tokens.write_text(f"alice {ALICE}\nbob {BOB}\n")
    database = tmp_path / "feedback.db"
    with fake_server(
        feedback_url=f"sqlite:///{database}", key_file=str(tmp_path / "key"), tokens=str(tokens)
    ) as address:
        yield address, database


def rows(database, query):
    with sqlite3.connect(database) as connection:
        found = connection.execute(query).fetchall()
    connection.close()
    return found


def test_an_outcome_joins_its_decision_once(served):
    """A decision's outcome is joined, the same again is a duplicate, and both are in the database."""
    address, database = served
    with Client(address, token=ALICE, timeout_seconds=60) as client:
        decision = client.classify("hi", labels={"tenant": "t"}).decision
        until(lambda: rows(database, "select count(*) from decisions") == [(1,)])
        assert client.report_outcome(outcome(decision.decision_id), timeout_seconds=60) is OutcomeState.JOINED
        assert client.report_outcome(outcome(decision.decision_id), timeout_seconds=60) is OutcomeState.DUPLICATE
        assert client.info(timeout_seconds=60).store == "hash"
    assert rows(database, "select decision_id, caller from decisions") == [(decision.decision_id, "alice")]
    assert rows(database, "select outcome_id from outcomes") == [("o1",)]


def test_an_outcome_may_bring_the_request_along(served):
    """A gateway that keeps the text may send it with the outcome."""
    address, _ = served
    with Client(address, token=ALICE, timeout_seconds=60) as client:
        decision = client.classify("hi").decision
        told = outcome(decision.decision_id, request=Request.from_text("hi"), occurred_at=1_700_000_000.0)
        assert client.report_outcome(told, timeout_seconds=60) in set(OutcomeState)


def test_a_store_that_hangs_keeps_no_answer_waiting(served, monkeypatch):
    """While writes neither end nor fail, requests are answered and outcomes refused in time; then all is written."""
    monkeypatch.setattr("classifier.feedback.REPORT_SECONDS", 0.2)
    address, database = served
    with hanging(monkeypatch) as (_, begun), Client(address, token=ALICE, timeout_seconds=60) as client:
        first = client.classify("hi").decision
        assert begun.wait(30)
        for _ in range(20):
            assert client.classify("hi").fallback == ""
        with pytest.raises(errors.ClassifierError, match="too slow"):
            client.report_outcome(outcome(first.decision_id), timeout_seconds=20)
    until(lambda: rows(database, "select count(*) from decisions") == [(21,)])
    with Client(address, token=ALICE, timeout_seconds=60) as client:
        monkeypatch.setattr("classifier.feedback.REPORT_SECONDS", 30.0)
        assert client.report_outcome(outcome(first.decision_id), timeout_seconds=60) in set(OutcomeState)


def test_a_forged_id_or_anothers_is_refused(served):
    """An id that was not minted here, or for another caller, is invalid; the field is named."""
    address, _ = served
    with (
        Client(address, token=ALICE, timeout_seconds=60) as alice,
        Client(address, token=BOB, timeout_seconds=60) as bob,
    ):
        mine = alice.classify("hi").decision.decision_id
        for client, decision_id in ((alice, "A" * 43), (alice, mine[:-1]), (alice, "é"), (bob, mine)):
            with pytest.raises(errors.InvalidRequest) as refusal:
                client.report_outcome(outcome(decision_id), timeout_seconds=60)
            assert refusal.value.violations[0][0] == "decision_id"


def test_a_request_that_is_not_to_be_recorded_is_not(served):
    """record=False leaves nothing in the store."""
    address, database = served
    with Client(address, token=ALICE, timeout_seconds=60) as client:
        client.classify("hi", record=False)
        kept = client.classify("hi").decision.decision_id
        until(lambda: rows(database, "select count(*) from decisions") != [(0,)])
    assert rows(database, "select decision_id from decisions") == [(kept,)]


def test_store_off_keeps_nothing_and_takes_no_outcomes(tmp_path):
    """With --store off there is no feedback, also where a URL is given."""
    settings = {"feedback_url": f"sqlite:///{tmp_path}/f.db", "key_file": str(tmp_path / "key"), "store": "off"}
    with fake_server(**settings) as address, Client(address, timeout_seconds=60) as client:
        decision = client.classify("hi").decision
        assert client.info(timeout_seconds=60).store == "off"
        with pytest.raises(errors.NotConfigured):
            client.report_outcome(outcome(decision.decision_id), timeout_seconds=60)
    assert not (tmp_path / "f.db").exists()


def test_only_what_is_kept_is_explored(tmp_path):
    """A policy's exploration moves recorded decisions alone, the same way for the same request_id."""
    engine = FakeEngine()
    policy = dataclasses.replace(engine.policies["default"], epsilon=0.5)
    engine = FakeEngine(policies={"default": policy})
    settings = {"feedback_url": f"sqlite:///{tmp_path}/f.db", "key_file": str(tmp_path / "key")}
    with fake_server(engine=engine, **settings) as address, Client(address, timeout_seconds=60) as client:
        first = [client.classify("x", request_id=f"r{i}").decision for i in range(30)]
        again = [client.classify("x", request_id=f"r{i}").decision for i in range(30)]
        unkept = [client.classify("x", request_id=f"r{i}", record=False).decision for i in range(30)]
    assert [d.tier for d in first] == [d.tier for d in again]
    assert {d.tier for d in first} > {Tier.STANDARD}
    assert {(d.tier, d.propensity) for d in unkept} == {(Tier.STANDARD, 1.0)}


def test_what_was_acknowledged_survives_kill_nine(tiny_bundle_path, tmp_path):
    """An outcome that was answered is in the database although the server was killed at once."""
    database = tmp_path / "f.db"
    arguments = ["--bundle", str(tiny_bundle_path), "--listen", "127.0.0.1:0", "--key-file", str(tmp_path / "key")]
    arguments += ["--feedback-url", f"sqlite:///{database}"]
    with server_process(*arguments) as server:
        [address] = server.wait_ready()
        with Client(address, timeout_seconds=60) as client:
            decision = client.classify("hi").decision
            states = [
                client.report_outcome(outcome(decision.decision_id, f"o{i}"), timeout_seconds=60) for i in range(5)
            ]
        server.process.kill()
        server.wait()
    assert OutcomeState.DUPLICATE not in states
    assert sorted(rows(database, "select outcome_id from outcomes")) == [(f"o{i}",) for i in range(5)]
    with server_process(*arguments) as server:
        [address] = server.wait_ready()
        with Client(address, timeout_seconds=60) as client:
            assert (
                client.report_outcome(outcome(decision.decision_id, "o0"), timeout_seconds=60) is OutcomeState.DUPLICATE
            )


def test_a_drained_server_has_written_its_decisions(tiny_bundle_path, tmp_path):
    """SIGTERM writes what was recorded before the process ends."""
    database = tmp_path / "f.db"
    arguments = ["--bundle", str(tiny_bundle_path), "--listen", "127.0.0.1:0", "--key-file", str(tmp_path / "key")]
    with server_process(*arguments, "--feedback-url", f"sqlite:///{database}") as server:
        [address] = server.wait_ready()
        with Client(address, timeout_seconds=60) as client:
            for _ in range(50):
                client.classify("hi")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    assert rows(database, "select count(*) from decisions") == [(50,)]


@pytest.mark.faults
def test_a_store_that_is_gone_does_not_stop_classification(tiny_bundle_path, tmp_path):
    """Without a usable store outcomes are UNAVAILABLE with the time to come back, and classification goes on."""
    arguments = ["--bundle", str(tiny_bundle_path), "--listen", "127.0.0.1:0", "--key-file", str(tmp_path / "key")]
    folder = tmp_path / "store"
    folder.mkdir()
    with server_process(*arguments, "--feedback-url", f"sqlite:///{folder}/f.db") as server:
        [address] = server.wait_ready()
        with Client(address, timeout_seconds=60) as client:
            decision = client.classify("hi").decision
            until(lambda: shutil.rmtree(folder, ignore_errors=True) or not folder.exists())  # the server writes into it
            folder.write_text("no folder any more")
            with pytest.raises((errors.StoreUnavailable, errors.DeadlinePassed)):
                for i in range(20):
                    client.report_outcome(outcome(decision.decision_id, f"o{i}"), timeout_seconds=60)
            assert client.classify("hi").classified
