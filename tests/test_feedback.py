"""What is remembered: decisions and outcomes, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import re
import sqlite3
import stat
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from classifier import migrations
from classifier.database import Database
from classifier.errors import InputError, SettingsError, StoreUnavailable
from classifier.exports import COLUMNS, export_row, read_export, write_export
from classifier.feedback import FeedbackStore, open_store, request_hash
from classifier.ledger import Ledger
from classifier.types import Message, OutcomeState, Request, Tier, Verdict
from tests.feedback_support import KEY, PROMPT, decision, hanging, locked, mint, outcome, report_until_taken, request
from tests.serving_support import until

JOINED, PENDING, DUPLICATE = OutcomeState


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """A machine that stands still for seconds refuses no outcome here."""
    monkeypatch.setattr("classifier.feedback.REPORT_SECONDS", 60.0)


OUTCOME = {
    **dict.fromkeys(("verdict", "cause", "source", "served_tier"), 1),
    **dict.fromkeys(("accepted_tier", "request_hash", "request")),
}
"""What else is in an outcome's row."""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path):
    """A new, migrated database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store/feedback.db"
    return request.getfixturevalue("postgresql").migrated()


@pytest.fixture
def open_at(url):
    """Opens the store, and closes it at the end."""
    with contextlib.ExitStack() as stack:

        def opened(**options) -> FeedbackStore:
            store = open_store(url, key=KEY, **options)
            stack.callback(store.close)
            return store

        yield opened


@pytest.fixture
def store(open_at):
    """A store with the defaults."""
    return open_at()


@pytest.fixture
def sqlite_url(tmp_path):
    """A new SQLite database, for what only SQLite has."""
    return f"sqlite:///{tmp_path}/feedback.db"


def only(store: FeedbackStore) -> dict:
    """The one row of the store's export."""
    [row] = [export_row(row) for row in store.ledger.rows()]
    return row


async def test_an_outcome_joins_the_decision_that_was_just_recorded(store):
    """An outcome finds its decision although that still waited to be written."""
    i = mint()
    store.record(decision(i), request(), "gateway")
    assert await store.report(outcome(i), "gateway") is JOINED


async def test_an_outcome_that_comes_first_is_kept_and_joins_later(store):
    """An outcome that precedes its decision is pending, and is joined when the decision comes."""
    i = mint()
    assert await store.report(outcome(i), "gateway") is PENDING
    store.record(decision(i), request(), "gateway")
    assert store.flush(60)
    assert only(store)["outcome_id"] == "o1"


async def test_the_same_outcome_again_changes_nothing(store):
    """A retry is told that it is one, whatever else it says."""
    i = mint()
    await store.report(outcome(i, "o1", Verdict.ACCEPTED), "gateway")
    assert await store.report(outcome(i, "o1", Verdict.REJECTED), "gateway") is DUPLICATE
    store.record(decision(i), request(), "gateway")
    store.flush(60)
    assert only(store)["verdict"] == "accepted"


async def test_copies_in_one_group_are_one_outcome(store):
    """Of copies that arrive together, one is new and the others are duplicates."""
    i = mint()
    states = await asyncio.gather(*(store.report(outcome(i), "gateway") for _ in range(20)))
    assert sorted(states) == [PENDING] + [DUPLICATE] * 19


async def test_outcome_ids_belong_to_their_caller(store):
    """Two callers may use the same outcome_id, and neither's outcome joins the other's decision."""
    mine, theirs = mint("alice"), mint("bob")
    store.record(decision(mine), request(), "alice")
    assert await store.report(outcome(mine, "o1"), "alice") is JOINED
    assert await store.report(outcome(theirs, "o1"), "bob") is PENDING
    assert await store.report(outcome(mine, "o2", Verdict.REJECTED), "bob") is PENDING
    assert only(store)["verdict"] == "accepted"


async def test_the_latest_to_occur_is_effective_and_the_rest_is_history(open_at):
    """Contradicting outcomes are all kept; the one that occurred last counts, in whatever order they came."""
    store = open_at(clock=lambda: 1000.0)
    i = mint()
    store.record(decision(i), request(), "gateway")
    for outcome_id, verdict, occurred_at in (
        ("b", Verdict.REJECTED, 300.0),
        ("c", Verdict.ACCEPTED, 500.0),
        ("a", Verdict.REJECTED, 400.0),
    ):
        await store.report(outcome(i, outcome_id, verdict, occurred_at=occurred_at), "gateway")
    row = only(store)
    assert (row["outcome_id"], row["verdict"], row["outcome_count"]) == ("c", "accepted", 3)
    history = [export_row(r) for r in store.ledger.rows(history=True)]
    assert [(r["outcome_id"], r["effective"]) for r in history] == [("b", False), ("a", False), ("c", True)]


async def test_an_outcome_from_the_future_occurred_when_it_was_received(open_at):
    """A clock that runs ahead does not win over what comes later."""
    now = iter([1.0, 1000.0, 2000.0, *[3000.0] * 50])
    store = open_at(clock=lambda: next(now))
    i = mint()
    store.flush(60)
    await store.report(outcome(i, "ahead", occurred_at=9e9), "gateway")
    [row] = store.ledger.rows(history=True)
    assert row["occurred_at"] == row["received_at"] < 9e9


def test_by_default_no_text_is_kept(sqlite_url, tmp_path):
    """With the default setting no file of the store has any part of the prompt."""
    store = open_store(sqlite_url, key=KEY)
    store.record(decision(mint()), request(labels={"tenant": "acme"}), "gateway", signals=("[turns=1]",), logits=(1.5,))
    assert store.flush(60)
    row = only(store)
    assert (row["request"], row["labels"], row["signals"], row["logits"]) == (
        None,
        {"tenant": "acme"},
        ["[turns=1]"],
        [1.5],
    )
    assert len(row["request_hash"]) == 32
    assert not found_in_files(tmp_path, PROMPT.encode())
    store.close()


def test_text_is_kept_when_asked_for(open_at):
    """With `text` the request is kept as a corpus line spells it."""
    store = open_at(keep="text")
    asked = Request((Message("system", "be brief"), Message("user", "héllo \ud800")), tools=("search",), attachments=2)
    store.record(decision(mint()), asked, "gateway")
    store.flush(60)
    assert only(store)["request"] == {
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "héllo \ud800"}],
        "tools": ["search"],
        "attachments": 2,
    }


def test_a_hash_is_keyed_and_tells_requests_apart():
    """Equal requests have equal hashes under one key; another key, text, role, split or tool gives another."""
    base = Request((Message("user", "a"), Message("user", "b")))
    others = [
        Request((Message("user", "ab"),)),
        Request((Message("user", "a"), Message("assistant", "b"), Message("user", ""))),
        Request((Message("user", "a"), Message("system", "b"))),
        Request(base.messages, tools=("t",)),
        Request(base.messages, attachments=1),
    ]
    assert request_hash(base, KEY) == request_hash(Request((Message("user", "a"), Message("user", "b"))), KEY)
    assert len({request_hash(r, KEY) for r in (base, *others)} | {request_hash(base, b"x" * 32)}) == 7


@pytest.mark.parametrize(("sent", "kept"), [(PROMPT, PROMPT), ("something else", None)], ids=["same", "other"])
async def test_text_that_comes_with_an_outcome_counts_where_it_is_what_was_decided_on(store, sent, kept):
    """A gateway may bring the text later; it is exported only if its hash is the decision's."""
    i = mint()
    store.record(decision(i), request(), "gateway")
    await store.report(outcome(i, request=request(sent)), "gateway")
    row = only(store)
    assert (row["request"] and row["request"]["messages"][0]["content"]) == kept


async def test_a_request_that_is_not_to_be_recorded_leaves_its_outcome_alone(store):
    """Of a request with record=False neither the text nor its hash is kept, and the verdict is."""
    assert await store.report(outcome(mint(), request=request(record=False, labels={"a": "b"})), "gateway") is PENDING
    [row] = store.ledger.rows(history=True)
    assert (row["verdict"], row["outcome_request"], row["outcome_request_hash"]) == (int(Verdict.ACCEPTED), None, None)


async def test_a_forgotten_decision_does_not_come_back(store):
    """After forget neither a late write, nor a retry of the request, nor an outcome brings anything back."""
    i, other = mint(), mint()
    for each in (i, other):
        store.record(decision(each), request(), "gateway")
        await store.report(outcome(each, f"o-{each}"), "gateway")
    assert store.ledger.forget([i]) == (1, 1)
    store.record(decision(i), request(), "gateway")
    assert await store.report(outcome(i, "late"), "gateway") is DUPLICATE
    assert store.ledger.counts() == {"decisions": 1, "outcomes": 1, "pending": 0, "forgotten": 1}
    assert only(store)["decision_id"] == other


async def test_what_is_forgotten_is_overwritten(sqlite_url, tmp_path):
    """After forget no file of the store has the text any more, neither the database nor its log."""
    store = open_store(sqlite_url, key=KEY, keep="text")
    i = mint()
    store.record(decision(i), request(PROMPT * 2000), "gateway")
    await store.report(outcome(i, request=request()), "gateway")
    until(lambda: store._recorder._next_housekeeping)  # it reads, and then nothing is overwritten
    assert found_in_files(tmp_path, PROMPT.encode())
    store.ledger.forget([i])
    assert not found_in_files(tmp_path, PROMPT.encode())
    store.close()


async def test_a_label_is_matched_exactly(store):
    """Forgetting by label reaches that name and value, not others that look alike."""
    labels = [
        {"tenant": "acme"},
        {"tenant": "Acme"},
        {"tenant": "acme2"},
        {"x": 'y","tenant":"acme'},
        {'my"tenant': "acme"},
        {"tenant": "a%me"},
        {"team": "z", "tenant": "acme"},
        {},
    ]
    ids = [mint() for _ in labels]
    for i, facts in zip(ids, labels, strict=True):
        store.record(decision(i), request(labels=facts), "gateway")
    pending = mint()
    await store.report(outcome(pending, request=request(labels={"tenant": "acme"})), "gateway")
    assert store.ledger.labelled("tenant", "acme") == {ids[0], ids[6], pending}
    assert store.ledger.labelled("tenant", "a%me") == {ids[5]}


async def test_what_is_too_old_is_deleted(open_at):
    """Decisions expire with their outcomes, an outcome without a decision by its receipt; younger ones stay."""
    now = [0.0]
    store = open_at(clock=lambda: now[0], retention_days=10)
    old, young = mint(), mint()
    store.record(decision(old), request(), "gateway")
    await store.report(outcome(old, "o1"), "gateway")
    await store.report(outcome(mint(), "orphan"), "gateway")
    now[0] = 9 * 86_400.0
    store.record(decision(young), request(), "gateway")
    await store.report(outcome(young, "o2"), "gateway")
    await store.report(outcome(old, "late"), "gateway")
    assert store.ledger.expire(86_400.0) is False
    assert store.ledger.counts() == {"decisions": 1, "outcomes": 1, "pending": 0, "forgotten": 0}
    assert only(store)["decision_id"] == young


def test_forgotten_ids_expire_as_well(open_at):
    """A bare id that keeps a decision from coming back goes at its age, though nothing else does."""
    now = [0.0]
    store = open_at(clock=lambda: now[0])
    store.ledger.forget([mint()])
    assert store.ledger.expire(1.0) is False
    now[0] = 2.0
    assert store.ledger.counts()["forgotten"] == 1
    assert store.ledger.expire(1.0) is False
    assert store.ledger.counts()["forgotten"] == 0


def test_retention_is_enforced_without_being_asked(sqlite_url):
    """A store that is opened deletes what is too old by itself."""
    store = open_store(sqlite_url, key=KEY, clock=lambda: 0.0)
    store.record(decision(mint()), request(), "gateway")
    store.close()
    store = open_store(sqlite_url, key=KEY, retention_days=1)
    until(lambda: store.ledger.counts()["decisions"] == 0)
    store.close()


def test_closing_writes_what_is_queued(url):
    """What was recorded before close is there after it."""
    store = open_store(url, key=KEY)
    for _ in range(700):
        store.record(decision(mint()), request(), "gateway")
    store.close()
    with contextlib.closing(Database(url)) as database:
        assert Ledger(database).counts()["decisions"] == 700


async def test_recording_never_waits_and_counts_what_is_lost(sqlite_url, tmp_path):
    """While the database is locked recording returns; beyond the queue's memory decisions are dropped and counted."""
    store = open_store(sqlite_url, key=KEY, max_queued_bytes=200_000)
    with locked(tmp_path / "feedback.db"):
        for _ in range(500):
            store.record(decision(mint()), request(), "gateway")  # returns under the lock, so it does not wait for it
        assert store.dropped >= 300
    assert store.flush(60)
    assert store.ledger.counts()["decisions"] == 500 - store.dropped
    store.close()


async def test_a_locked_database_refuses_outcomes_until_it_is_free(sqlite_url, tmp_path, monkeypatch):
    """While another holds the lock an outcome is UNAVAILABLE with a time to come back; afterwards it is taken."""
    store = open_store(sqlite_url, key=KEY)
    store._recorder._retry = 600.0
    written, write = [], store.ledger.write
    monkeypatch.setattr(store.ledger, "write", lambda *arguments: written.append(1) or write(*arguments))
    i = mint()
    with locked(tmp_path / "feedback.db"):
        with pytest.raises(StoreUnavailable, match="another process holds its lock: retry") as refusal:
            await store.report(outcome(i), "gateway")
        assert refusal.value.retry_after_seconds > 0
        with pytest.raises(StoreUnavailable):
            await store.report(outcome(i), "gateway")
        assert len(written) == 1, "it was tried again so soon"
    store._recorder._down_until = 0.0
    assert await report_until_taken(store, i) is PENDING
    store.close()


async def test_a_full_database_refuses_outcomes_until_there_is_room(sqlite_url):
    """When the database cannot grow, outcomes are refused, decisions wait; with room again both are written."""
    store = open_store(sqlite_url, key=KEY, keep="text")
    until(lambda: store._recorder._next_housekeeping)  # its connection outlives no dispose
    engine, room = store._database._engine, [40]
    sa.event.listen(engine, "connect", lambda c, _: c.execute(f"PRAGMA max_page_count={room[0]}"))
    engine.dispose()
    store._recorder._linger = 60.0  # the outcome is what meets the full disk
    i = mint()
    store.record(decision(i), request("x" * 500_000), "gateway")
    with pytest.raises(StoreUnavailable, match="FULL"):
        await store.report(outcome(i), "gateway")
    assert store.queued == 1
    room[0] = 1_000_000
    engine.dispose()
    assert await report_until_taken(store, i) is JOINED
    store.close()


async def test_a_database_that_was_removed_is_made_anew(tmp_path):
    """Removing the file or its folder under a running store loses what was in it, and nothing after it."""
    folder = tmp_path / "store"
    store = open_store(f"sqlite:///{folder}/feedback.db", key=KEY)
    await store.report(outcome(mint(), "before"), "gateway")
    until(lambda: store._recorder._next_housekeeping)  # it writes, too
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("in the way")
    with pytest.raises(StoreUnavailable):
        await store.report(outcome(mint()), "gateway")
    folder.unlink()
    assert await report_until_taken(store, mint()) is PENDING
    with contextlib.closing(sqlite3.connect(folder / "feedback.db")) as other:
        assert other.execute("select outcome_id from outcomes").fetchall() == [("o1",)]
    store.close()


async def test_a_damaged_database_is_unavailable_and_no_traceback(tmp_path):
    """A file that is no database refuses outcomes; classification's recording is not disturbed."""
    path = tmp_path / "feedback.db"
    path.write_bytes(b"this is not a database, " * 100)
    store = open_store(f"sqlite:///{path}", key=KEY)
    store._recorder._linger = 60.0  # the outcome is what meets it
    store.record(decision(mint()), request(), "gateway")
    with pytest.raises(StoreUnavailable, match="NOTADB"):
        await store.report(outcome(mint()), "gateway")
    path.unlink()
    assert await report_until_taken(store, mint()) is PENDING
    store.close()


def test_a_row_that_cannot_be_stored_is_dropped_alone(store):
    """One bad row does not take the others of its batch with it."""
    ids = [mint() for _ in range(10)]
    for n, i in enumerate(ids):
        # SQLite refuses a lone surrogate, PostgreSQL that and a NUL.
        store.record(decision(i), request(), "gateway" if n != 4 else "gate\ud800way")
    assert store.flush(60)
    assert {row["decision_id"] for row in store.ledger.rows()} == set(ids) - {ids[4]}
    assert store.dropped == 1


@pytest.mark.parametrize(
    ("decided", "asked", "said"),
    [("no decision", request(), "cannot be written"), (decision("d"), "no request", "could not be recorded")],
    ids=["row", "request"],
)
def test_a_fault_of_ours_in_recording_is_logged_and_not_raised(store, caplog, decided, asked, said):
    """Recording never fails a classification, nor the decisions beside it."""
    store.record(decided, asked, "gateway")
    store.record(decision("good"), request(), "gateway")
    assert store.flush(60)
    assert said in caplog.text
    assert [row["decision_id"] for row in store.ledger.rows()] == ["good"]


def test_reading_keeps_no_writer_waiting(store):
    """A long export sees one moment, and outcomes are written meanwhile."""
    for _ in range(50):
        store.record(decision(mint()), request(), "gateway")
    store.flush(60)
    rows = store.ledger.rows()
    next(rows)
    store.record(decision(mint()), request(), "gateway")
    assert store.flush(60)
    assert 1 + sum(1 for _ in rows) == 50
    assert store.ledger.counts()["decisions"] == 51


def test_rows_of_a_time_span(open_at):
    """A span has its first moment and not its last."""
    now = [0.0]
    store = open_at(clock=lambda: now[0], retention_days=1e6)
    for now[0] in (1.0, 2.0, 3.0):
        store.record(decision(mint()), request(), "gateway")
    store.flush(60)
    assert [row["decided_at"] for row in store.ledger.rows(since=2.0, until=3.0)] == [2.0]


def exported(store: FeedbackStore, *span: float, history: bool) -> tuple[list[dict], int]:
    """Rows of a span, and the hundreds of steps that SQLite took for them."""
    steps = list[None]()

    def count(connection, *_) -> None:
        connection.set_progress_handler(lambda: steps.append(None), 100)

    sa.event.listen(store.ledger._database._engine, "checkout", count)
    rows = [dict(row) for row in store.ledger.rows(*span, history=history)]
    sa.event.remove(store.ledger._database._engine, "checkout", count)
    return rows, len(steps)


def report(store: FeedbackStore, decision_id: str, outcome_id: str, at: float) -> None:
    """Queues an outcome."""
    times = {"occurred_at": at, "received_at": at}
    row = {**OUTCOME, "caller": "gateway", "outcome_id": outcome_id, "decision_id": decision_id, **times}
    store._recorder.submit(row, 1)


@pytest.mark.parametrize("history", [False, True])
def test_a_short_span_looks_at_no_other_outcomes(sqlite_url, history):
    """What an export costs is a matter of its span, and its rows are those of an export of all times."""
    now = [0.0]
    store = open_store(sqlite_url, key=KEY, clock=lambda: now[0], retention_days=1e6)
    for n in range(600):
        now[0] = float(n)
        store.record(decision(i := mint()), request(), "gateway")
        for name, said in ((i, "first"), (i, "second"), (f"orphan{n}", "orphan")):
            report(store, name, f"{said}{n}", now[0])
    assert store.flush(60)
    everything, most = exported(store, 0.0, 1e9, history=history)
    found, few = exported(store, 300.0, 310.0, history=history)
    store.close()
    assert found == [row for row in everything if 300 <= (row.get("decided_at") or row["received_at"]) < 310]
    assert len(found) == (30 if history else 10)
    assert few < most / 5


@pytest.mark.parametrize("history", [False, True])
def test_many_outcomes_of_one_decision_are_as_dear_as_those_of_many(tmp_path, history):
    """A caller that reports one decision a thousand times makes no export slower than a thousand honest reports."""
    cost = []
    for reported in (1, 1000):
        store = open_store(f"sqlite:///{tmp_path}/{reported}.sqlite", key=KEY)
        ids = [mint() for _ in range(1000)]
        for i in ids:
            store.record(decision(i), request(), "gateway")
        for n in range(1000):
            report(store, ids[n % reported], f"o{n}", float(n))
        assert store.flush(60)
        cost.append(exported(store, history=history)[1])
        store.close()
    assert cost[0] < 2 * cost[1]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
async def test_an_export_reads_back_as_it_was(open_at, tmp_path, suffix):
    """Both formats hold the same rows with every column, in order."""
    store = open_at(keep="text")
    for n in range(20):
        i = mint()
        bounds = {"floor": Tier.SIMPLE, "ceiling": Tier.COMPLEX} if n % 2 else {}
        store.record(decision(i), request(f"prompt {n}", labels={"n": str(n)}, **bounds), "gateway", logits=(0.1, 0.2))
        if n % 3:
            report = outcome(i, f"o{n}", Verdict.ESCALATED, accepted_tier=Tier.COMPLEX, occurred_at=5.0)
            await store.report(report, "gateway")
    store.flush(60)
    rows = [export_row(row) for row in store.ledger.rows()]
    path = tmp_path / f"feedback{suffix}"
    assert write_export(rows, path) == 20
    assert list(read_export(path)) == rows
    assert all(list(row) == list(COLUMNS) for row in rows)
    assert rows[1]["request"] == {"messages": [{"role": "user", "content": "prompt 1"}], "labels": {"n": "1"}}
    assert (rows[1]["accepted_tier"], rows[1]["floor"], rows[0]["verdict"]) == ("complex", "simple", None)


@pytest.mark.parametrize(
    ("name", "labels"),
    [("cut.jsonl", None), ("deep.jsonl", "[" * 100_000), ("cut.parquet", "{"), ("deep.parquet", "[" * 100_000)],
)
def test_a_damaged_export_is_named(tmp_path, name, labels):
    """A row that was cut, or is no JSON where it should be, ends in one line that names the file."""
    path = tmp_path / name
    row = dict.fromkeys(COLUMNS) | {"outcome_count": 0, "effective": False}
    write_export([row | {"labels": "?"}], path)
    if path.suffix == ".jsonl":
        whole = path.read_text()
        path.write_text(whole[:50] if labels is None else whole.replace('"?"', labels))
    else:
        table = pq.read_table(path)
        at = table.schema.get_field_index("labels")
        pq.write_table(table.set_column(at, table.schema.field(at), pa.array([labels])), path)
    with pytest.raises(InputError, match=f"{name}:?1?: (cannot be read|is no row of a feedback export)"):
        list(read_export(path))


def test_a_sqlite_store_is_durable_and_private(tmp_path):
    """SQLite runs in WAL mode with full synchronisation, and its files are for their owner alone."""
    path = tmp_path / "deep" / "feedback.db"
    store = open_store(f"sqlite:///{path}", key=KEY)
    store.record(decision(mint()), request(), "gateway")
    store.flush(60)
    with store._database._engine.connect() as connection:
        found = [connection.exec_driver_sql(f"PRAGMA {p}").scalar() for p in ("journal_mode", "synchronous")]
    assert found == ["wal", 2]
    assert {stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()} == {0o600}
    store.close()


def test_a_file_that_others_may_read_is_named(tmp_path, caplog):
    """A database that was there keeps its rights, and the log says what they are."""
    path = tmp_path / "feedback.db"
    path.touch(mode=0o644)
    open_store(f"sqlite:///{path}", key=KEY).close()
    assert f"{path} may be read by others than its owner (mode 644)" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": "mysql://db/x"}, "found mysql"),
        ({"url": "no url"}, "expected sqlite"),
        ({"url": "postgresql://u:hunter2@db:abc/x"}, "^(?!.*hunter2).*which is no URL"),
        ({"url": "postgresql://u:hun@ter2@db/x"}, "^(?!.*ter2).*written %40"),
        ({"url": "sqlite+aiosqlite:////tmp/x.db"}, "found sqlite.aiosqlite"),
        ({"url": "postgresql://u:\udcff@db/x"}, "not UTF-8"),
        ({"url": "sqlite://"}, "needs a file"),
        ({"url": "sqlite:///:memory:"}, "needs a file"),
        ({"keep": "everything"}, "expected hash or text"),
        ({"retention_days": 0.0}, "more than 0"),
    ],
    ids=["database", "url", "port", "password", "driver", "bytes", "nothing", "memory", "keep", "retention"],
)
def test_settings_that_cannot_be_are_named(sqlite_url, arguments, message):
    """A store that could not keep its word is not opened."""
    with pytest.raises(SettingsError, match=message):
        open_store(**{"url": sqlite_url, "key": KEY, **arguments})


@pytest.mark.parametrize("name", [b"a%2Fb%41 c#.db", b"\xe9.db"], ids=["percent", "bytes"])
def test_the_path_of_a_sqlite_url_is_taken_as_it_is(tmp_path, name):
    """No escape is read in it, by whatever SQLAlchemy: the state folder of a user stands in it unquoted."""
    path = tmp_path / os.fsdecode(name)
    with contextlib.closing(Database(f"sqlite:///{path}")) as database:
        database.migrate()
        assert database.name == f"sqlite:///{path}"
    assert path.is_file()


def test_a_database_that_is_not_reached_says_what_to_look_at():
    """Where no connection comes up waiting may not help, so the address and who asks are named."""
    pytest.importorskip("psycopg")
    with (
        contextlib.closing(Database("postgresql+psycopg://u@127.0.0.1:1/x")) as database,
        pytest.raises(StoreUnavailable, match="see that it is there, and that user, password and database are right"),
    ):
        database.check()


def test_the_migrations_make_the_tables_that_are_written(url):
    """What the numbered steps add up to is what the code believes: tables, columns, types, keys."""
    with contextlib.closing(Database(url)) as database, database.transaction() as connection:
        found = sa.inspect(connection)
        for table in migrations.metadata.sorted_tables:
            columns = {c["name"]: c for c in found.get_columns(table.name)}
            assert list(columns) == [c.name for c in table.columns]
            assert found.get_pk_constraint(table.name)["constrained_columns"] == [c.name for c in table.primary_key]
            for column in table.columns:
                there = columns[column.name]
                assert there["nullable"] == column.nullable or column.primary_key, (table.name, column.name)
                assert there["type"]._type_affinity is column.type._type_affinity or connection.dialect.name == "sqlite"


def test_a_database_of_an_earlier_version_is_brought_forward(sqlite_url):
    """Rows written under version 1 are there under the latest."""
    database = Database(sqlite_url)
    with contextlib.closing(database), database._engine.begin() as connection:
        assert migrations.migrate(connection, target=1) == ["m001_decisions_and_outcomes"]
        assert migrations.schema_version(connection) == 1
    store = open_store(sqlite_url, key=KEY)
    store.record(decision(mint()), request(), "gateway")
    store.flush(60)
    row = only(store)
    store.close()
    with contextlib.closing(Database(sqlite_url)) as database, database._engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE forgotten")
        connection.exec_driver_sql("DELETE FROM schema_versions WHERE version = 2")
    store = open_store(sqlite_url, key=KEY)
    assert only(store) == row
    assert store.ledger.forget([row["decision_id"]]) == (1, 0)
    store.close()


def test_a_database_of_a_later_version_is_refused(url):
    """A package that does not know the tables does not touch them, and sends nobody to migrate what it cannot."""
    open_store(url, key=KEY).close()
    with contextlib.closing(Database(url)) as database, database._engine.begin() as connection:
        connection.exec_driver_sql("INSERT INTO schema_versions VALUES (99, 'm099', 0)")
    with pytest.raises(SettingsError, match=r"version 99.*upgrade the package"):
        open_store(url, key=KEY)


def test_replicas_that_start_together_migrate_once(tmp_path, postgresql, monkeypatch):
    """Of many that migrate at once, one does and the others find it done."""
    monkeypatch.setattr("classifier.database.BUSY_SECONDS", 60.0)
    for url in (f"sqlite:///{tmp_path}/feedback.db", postgresql.database()):
        databases = [Database(url) for _ in range(6)]
        with ThreadPoolExecutor(6) as pool:
            taken = list(pool.map(lambda d: d.migrate(), databases))
        assert sorted(map(len, taken)) == [0, 0, 0, 0, 0, len(migrations.MIGRATIONS)]
        for database in databases:
            database.close()


@pytest.mark.parametrize("what", ["labels", "outcomes"])
async def test_what_waits_takes_no_more_memory_than_it_may(sqlite_url, monkeypatch, what):
    """Whatever makes rows large, labels or texts that come with outcomes, what a store holds in memory is bounded."""
    budget = 8 * 2**20
    store = open_store(sqlite_url, key=KEY, max_queued_bytes=budget)
    tasks, i, sent = [], mint(), request("x" * 20_000)

    async def report(n):
        try:
            return await store.report(outcome(i, f"o{n}", request=sent), "gateway")
        except StoreUnavailable as error:
            return str(error)

    with hanging(monkeypatch):
        tracemalloc.start()
        for n in range(1500):
            if what == "labels":
                store.record(
                    decision(i),
                    request(labels={f"{k:03}" + "😀" * 250: f"{n}" + "😀" * 250 for k in range(16)}),
                    "gateway",
                )
            else:
                tasks.append(asyncio.create_task(report(n)))
        for _ in range(20):
            await asyncio.sleep(0.01)
        gc.collect()  # those that were refused are gone
        held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    states = await asyncio.gather(*tasks)
    store.close()
    assert budget / 4 < held < budget * 1.5
    if what == "labels":
        assert store.dropped > 0
    else:
        assert {PENDING, "too many outcomes wait for the feedback store; retry later"} <= set(states)


async def test_an_outcome_whose_caller_left_is_not_written(sqlite_url, monkeypatch):
    """Retries while a store hangs do not pile up: of those who gave up nothing is written, and memory is free again."""
    store = open_store(sqlite_url, key=KEY)
    i = mint()
    with hanging(monkeypatch) as (written, begun):
        first = asyncio.create_task(store.report(outcome(i, "first"), "gateway"))
        assert await asyncio.to_thread(begun.wait, 30)
        monkeypatch.setattr("classifier.feedback.REPORT_SECONDS", 0.05)
        for _ in range(20):
            with pytest.raises(StoreUnavailable, match="too slow"):
                await store.report(outcome(i, "again"), "gateway")
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert len(store._recorder._outcomes) == 20
    monkeypatch.setattr("classifier.feedback.REPORT_SECONDS", 60.0)
    assert await store.report(outcome(i, "last"), "gateway") is PENDING
    assert written == ["first", "last"]
    assert store._recorder._outcome_bytes == 0
    store.close()


def found_in_files(folder: Path, text: bytes) -> bool:
    """Whether any file below the folder holds the bytes."""
    return any(text in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_every_column_of_the_export_is_documented():
    """The documentation's table names the columns, all and in order."""
    page = (Path(__file__).parent.parent / "docs" / "feedback-store.md").read_text(encoding="utf-8")
    table = page.split("| column | meaning |")[1].split("\n\n")[0]
    named = [
        name
        for line in table.splitlines()
        for name in re.findall(r"`(\w+)`", line.split("|")[1] if "|" in line else "")
    ]
    assert named == list(COLUMNS)
