"""What only a database across a socket can do: be away, come back, be shared, be set up badly."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import string
import time
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from classifier.database import Database
from classifier.errors import SettingsError, StoreUnavailable
from classifier.feedback import open_store
from classifier.types import OutcomeState
from tests.feedback_support import KEY, PROMPT, PostgreSQL, decision, mint, outcome, report_until_taken, request

JOINED, PENDING, DUPLICATE = OutcomeState


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """A machine that stands still for seconds refuses no outcome here."""
    monkeypatch.setattr("classifier.feedback.REPORT_SECONDS", 60.0)


@pytest.fixture
def url(postgresql):
    """A new, migrated database."""
    return postgresql.migrated()


def test_a_database_that_was_not_migrated_is_refused(postgresql):
    """A server does not change a shared database by itself: it names the command that does."""
    with pytest.raises(SettingsError, match="feedback migrate"):
        open_store(postgresql.database(), key=KEY)


async def test_a_store_that_is_away_at_the_start_is_tried_later(postgresql: PostgreSQL, url, caplog):
    """A server starts while its database is down, refuses outcomes, and takes them when it is up."""
    postgresql.kill()
    store = open_store(url, key=KEY)
    assert "outcomes are refused" in caplog.text
    i = mint()
    store.record(decision(i), request(), "gateway")
    with pytest.raises(StoreUnavailable):
        await store.report(outcome(i), "gateway")
    postgresql.start()
    assert await report_until_taken(store, i) is JOINED
    store.close()


async def test_a_database_that_was_killed_is_used_again(postgresql: PostgreSQL, url):
    """After a kill -9 of the database outcomes go on without a restart, and what was acknowledged is there."""
    store = open_store(url, key=KEY)
    before, during = mint(), mint()
    assert await store.report(outcome(before, "before"), "gateway") is PENDING
    postgresql.kill()
    with pytest.raises(StoreUnavailable):
        await store.report(outcome(during), "gateway")
    postgresql.start()
    assert await report_until_taken(store, during) is PENDING
    assert await store.report(outcome(before, "before"), "gateway") is DUPLICATE
    assert store.ledger.counts()["outcomes"] == 2
    store.close()


async def test_replicas_share_decisions_and_outcomes(url):
    """An outcome may be reported to another replica than the one that decided, and twice to two."""
    one, two = open_store(url, key=KEY), open_store(url, key=KEY)
    ids = [mint() for _ in range(40)]
    for i in ids:
        one.record(decision(i), request(), "gateway")
    assert one.flush(60)
    both = await asyncio.gather(*(s.report(outcome(i, i), "gateway") for i in ids for s in (one, two)))
    assert set(both) <= {JOINED, DUPLICATE}
    assert one.ledger.counts() == {"decisions": 40, "outcomes": 40, "pending": 0, "forgotten": 0}
    one.close()
    two.close()


async def test_a_history_is_of_one_moment(url):
    """An outcome whose decision arrives while a history is read is in it, as one that waits for its decision."""
    store = open_store(url, key=KEY)
    ids = mint(), mint()
    store.record(decision(ids[0]), request(), "gateway")
    assert store.flush(60)
    assert await store.report(outcome(ids[1], "early"), "gateway") is PENDING
    rows = store.ledger.rows(history=True)
    assert next(rows)["decision_id"] == ids[0]
    store.record(decision(ids[1]), request(), "gateway")
    assert store.flush(60)
    assert [(row["decision_id"], row["outcome_id"]) for row in rows] == [(ids[1], "early")]
    assert [row["outcome_id"] for row in store.ledger.rows(history=True)] == [None, "early"]
    store.close()


@pytest.mark.parametrize("ahead", [-3600.0, 365 * 86_400.0], ids=["an hour behind", "a year ahead"])
async def test_replicas_go_by_the_databases_clock(url, monkeypatch, ahead):
    """What a replica of another time writes has the moment it was written, and it deletes nothing that others keep."""
    right = open_store(url, key=KEY)
    ids = mint(), mint()
    right.record(decision(ids[0]), request(), "gateway")
    assert right.flush(30)
    monkeypatch.setattr("classifier.database.time", SimpleNamespace(time=lambda: time.time() + ahead))
    wrong = open_store(url, key=KEY)
    wrong.record(decision(ids[1]), request(), "gateway")
    assert await wrong.report(outcome(ids[0]), "gateway") is JOINED
    wrong.close()
    rows = {row["decision_id"]: row for row in right.ledger.rows()}
    moments = [rows[ids[0]]["received_at"], rows[ids[1]]["decided_at"]]
    assert all(abs(moment - time.time()) < 60 for moment in moments)
    right.close()


async def test_commits_are_synchronous_even_where_the_default_is_not(postgresql: PostgreSQL):
    """A database set up to answer before it has written is told to write first."""
    url = postgresql.database()
    with contextlib.closing(Database(url)) as database:
        database.migrate()
        with database.transaction() as connection:
            name = url.rsplit("/", 1)[0] and url.split("/")[3].split("?")[0]
            connection.exec_driver_sql(f"ALTER DATABASE {name} SET synchronous_commit = off")
    with contextlib.closing(Database(url)) as database, database.reading() as connection:
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"


async def test_a_locked_table_refuses_outcomes_in_time(postgresql: PostgreSQL, url):
    """Somebody else's lock is not waited for till it is free; classification's recording does not wait at all."""
    import psycopg

    store = open_store(url, key=KEY)
    store._recorder._linger = 60.0  # the outcome is what meets the lock
    await store.report(outcome(mint(), "first"), "gateway")
    plain = url.replace("postgresql+psycopg", "postgresql")
    with psycopg.connect(plain) as other:
        other.execute("LOCK TABLE outcomes")
        store.record(decision(mint()), request(), "gateway")
        with pytest.raises(StoreUnavailable, match="55P03"):
            await store.report(outcome(mint()), "gateway")
        other.rollback()
    assert await report_until_taken(store, mint()) is PENDING
    store.close()


def test_what_the_url_says_of_the_connection_counts(url):
    """Options in the URL stand beside ours, and before them where they say the same."""
    for option, wanted in (("statement_timeout", ["7s", "2s"]), ("lock_timeout", ["0", "7s"])):
        told = Database(f"{url}&options=-c%20{option}%3D7s")
        with contextlib.closing(told) as database, database.reading() as connection:
            names = ("statement_timeout", "lock_timeout")
            assert [connection.exec_driver_sql(f"SHOW {name}").scalar() for name in names] == wanted


async def test_a_row_that_is_too_large_is_refused_alone(url):
    """What PostgreSQL cannot index is that row's fault, and no outage: those beside it are written; no text is told."""
    store = open_store(url, key=KEY)
    long = "".join(secrets.choice(string.ascii_letters) for _ in range(9000))
    found = await asyncio.gather(
        *(
            store.report(outcome(mint(), f"o{n}", request=request()), caller)
            for n, caller in enumerate(["a", long, "b"])
        ),
        return_exceptions=True,
    )
    assert [found[0], found[2]] == [PENDING, PENDING]
    assert isinstance(found[1], sa.exc.OperationalError)
    assert PROMPT not in str(found[1])
    store.close()


def test_a_password_is_not_shown(caplog):
    """Neither the log nor the error has the URL's password."""
    caplog.set_level(logging.DEBUG)
    store = open_store("postgresql+psycopg://classifier:hunter2@/x?host=/nowhere", key=KEY)
    with pytest.raises(StoreUnavailable) as refusal:
        store.ledger.counts()
    store.close()
    assert "hunter2" not in caplog.text + str(refusal.value)
