"""kill -9: what was acknowledged is there, exactly once, however often the server or its database dies."""

from __future__ import annotations

import collections
import contextlib
import itertools
import random
import sqlite3
import threading
import time

import grpc
import pytest
import sqlalchemy as sa
from google.rpc.error_details_pb2 import RetryInfo
from grpc_status import rpc_status

from classifier import Client, wire
from classifier.database import Database
from classifier.decision_id import DecisionIds, read_key
from classifier.errors import ClassifierError
from classifier.types import OutcomeState
from classifier.v1.classifier_pb2_grpc import ClassifierServiceStub
from tests.feedback_support import PostgreSQL, outcome
from tests.serving_support import ServerProcess, server_process

CALLERS = 8


class Callers:
    """Gateways that classify and report without end; each repeats an outcome until it is acknowledged."""

    def __init__(self, ids: DecisionIds) -> None:
        self.acknowledged: list[str] = []
        self.sent: set[str] = set()
        self._ids = ids
        self._numbers = itertools.count()
        self._waiting: list[tuple[str, str] | None] = [None] * CALLERS

    def run(self, address: str, stop: threading.Event, *, through: bool = False) -> list[threading.Thread]:
        """Starts the callers; each ends when it is told to or, unless `through`, when a call fails."""
        threads = [
            threading.Thread(target=self._report, args=(n, address, stop, through), daemon=True) for n in range(CALLERS)
        ]
        for thread in threads:
            thread.start()
        return threads

    def _report(self, n: int, address: str, stop: threading.Event, through: bool) -> None:
        with Client(address, timeout_seconds=60) as client:
            while not stop.is_set():
                outcome_id, decision_id = self._waiting[n] or self._next(n, client)
                try:
                    client.report_outcome(outcome(decision_id, outcome_id), timeout_seconds=60)
                except ClassifierError:
                    if not through:
                        return
                    time.sleep(0.01)
                else:
                    self._waiting[n] = None
                    self.acknowledged.append(outcome_id)

    def _next(self, n: int, client: Client) -> tuple[str, str]:
        number = next(self._numbers)
        # Every fourth outcome is of a real decision, the others of ids that any replica could have minted.
        decision_id = self._ids.mint("", "", time.time())
        if number % 4 == 0:
            with contextlib.suppress(ClassifierError):
                decision_id = client.classify("hi").decision.decision_id
        waiting = (f"o{number}", decision_id)
        self._waiting[n] = waiting
        self.sent.add(waiting[0])
        return waiting


def check_every_acknowledged_outcome_is_there_once(url: str, callers: Callers) -> None:
    with contextlib.closing(Database(url)) as database, database.reading() as connection:
        found = collections.Counter(connection.execute(sa.text("select outcome_id from outcomes")).scalars())
        if database.path is not None:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    assert len(callers.acknowledged) == len(set(callers.acknowledged))
    assert set(callers.acknowledged) <= set(found)
    assert set(found.values()) <= {1}
    assert set(found) <= callers.sent


def kill_the_server(url: str, tmp_path, bundle, kills: int, seed: int = 0) -> int:
    """Kills the server that often under a stream of outcomes; returns how many were acknowledged."""
    rng = random.Random(seed)
    key = tmp_path / "key"
    callers = Callers(DecisionIds(read_key(key)))
    arguments = ["--bundle", str(bundle), "--listen", "127.0.0.1:0", "--key-file", str(key), "--feedback-url", url]
    stop = threading.Event()
    for _ in range(kills):
        with server_process(*arguments) as server:
            [address] = server.wait_ready()
            already = len(callers.acknowledged)
            threads = callers.run(address, stop)
            # Not before the stream runs, then at any moment of it.
            wait_for(lambda n=already: len(callers.acknowledged) > n, server)
            time.sleep(rng.uniform(0, 0.1))
            server.process.kill()
            server.wait()
            for thread in threads:
                thread.join(60)
    check_every_acknowledged_outcome_is_there_once(url, callers)
    return len(callers.acknowledged)


def kill_the_database(postgresql: PostgreSQL, tmp_path, bundle, kills: int) -> int:
    """Kills PostgreSQL that often under a server that stays; returns how many outcomes were acknowledged."""
    url = postgresql.migrated()
    key = tmp_path / "key"
    callers = Callers(DecisionIds(read_key(key)))
    arguments = ["--bundle", str(bundle), "--listen", "127.0.0.1:0", "--key-file", str(key), "--feedback-url", url]
    stop = threading.Event()
    rng = random.Random(1)
    with server_process(*arguments) as server:
        [address] = server.wait_ready()
        threads = callers.run(address, stop, through=True)
        for _ in range(kills):
            already = len(callers.acknowledged)
            wait_for(lambda n=already: len(callers.acknowledged) > n + 20, server)
            time.sleep(rng.uniform(0, 0.1))
            postgresql.kill()
            with Client(address, timeout_seconds=60) as client:
                assert client.classify("hi").classified  # answered while the database is dead
            postgresql.start()
        already = len(callers.acknowledged)
        wait_for(lambda: len(callers.acknowledged) > already + 20, server)
        stop.set()
        for thread in threads:
            thread.join(60)
    check_every_acknowledged_outcome_is_there_once(url, callers)
    return len(callers.acknowledged)


def wait_for(condition, server: ServerProcess, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert server.process.poll() is None, server.lines
        assert time.monotonic() < end, f"the condition did not come true in time: {server.lines[-5:]}"
        time.sleep(0.002)


def test_acknowledged_outcomes_survive_kills_of_the_server(tmp_path, tiny_bundle_path):
    """Two kills of a server on SQLite lose and double nothing that was acknowledged."""
    assert kill_the_server(f"sqlite:///{tmp_path}/feedback.db", tmp_path, tiny_bundle_path, kills=2) > 0


def test_acknowledged_outcomes_survive_a_kill_of_the_database(tmp_path, tiny_bundle_path, postgresql):
    """A kill of PostgreSQL under a running server loses and doubles nothing, and the server goes on by itself."""
    assert kill_the_database(postgresql, tmp_path, tiny_bundle_path, kills=1) > 0


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_acknowledged_outcomes_survive_fifty_kills_on_sqlite(tmp_path, tiny_bundle_path):
    """Fifty kills of a server on SQLite lose and double nothing that was acknowledged."""
    count = kill_the_server(f"sqlite:///{tmp_path}/feedback.db", tmp_path, tiny_bundle_path, kills=50)
    print(f"{count} outcomes acknowledged over 50 kills, all there once")


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_acknowledged_outcomes_survive_fifty_kills_on_postgresql(tmp_path, tiny_bundle_path, postgresql):
    """Fifty kills of a server on PostgreSQL lose and double nothing that was acknowledged."""
    count = kill_the_server(postgresql.migrated(), tmp_path, tiny_bundle_path, kills=50)
    print(f"{count} outcomes acknowledged over 50 kills, all there once")


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_acknowledged_outcomes_survive_ten_kills_of_the_database(tmp_path, tiny_bundle_path, postgresql):
    """Ten kills of PostgreSQL lose and double nothing that was acknowledged."""
    count = kill_the_database(postgresql, tmp_path, tiny_bundle_path, kills=10)
    print(f"{count} outcomes acknowledged over 10 kills of the database, all there once")


def test_a_locked_store_is_unavailable_with_the_time_to_come_back(tmp_path, tiny_bundle_path):
    """While the store is locked outcomes are UNAVAILABLE with RetryInfo, classification goes on, and it recovers."""
    database, key = tmp_path / "feedback.db", tmp_path / "key"
    arguments = ["--bundle", str(tiny_bundle_path), "--listen", "127.0.0.1:0", "--key-file", str(key)]
    with server_process(*arguments, "--feedback-url", f"sqlite:///{database}") as server:
        [address] = server.wait_ready()
        with Client(address, timeout_seconds=60) as client, grpc.insecure_channel(address) as channel:
            decision_id = client.classify("hi").decision.decision_id
            report = wire.outcome_to_proto(outcome(decision_id))
            with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                with pytest.raises(grpc.RpcError) as refusal:
                    ClassifierServiceStub(channel).ReportOutcome(report, timeout=60)
                assert all(client.classify(f"hi {n}").classified for n in range(20))
                other.execute("ROLLBACK")
            assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
            details = rpc_status.from_call(refusal.value).details
            [retry] = [d for d in details if d.Is(RetryInfo.DESCRIPTOR)]
            again = RetryInfo()
            retry.Unpack(again)
            assert 0 < again.retry_delay.ToTimedelta().total_seconds() <= 5

            def taken() -> bool:
                with contextlib.suppress(ClassifierError):
                    return client.report_outcome(outcome(decision_id), timeout_seconds=60) is OutcomeState.JOINED
                return False

            wait_for(taken, server)
    with contextlib.closing(Database(f"sqlite:///{database}")) as found, found.reading() as connection:
        assert connection.execute(sa.text("select count(*) from decisions")).scalar() == 21
