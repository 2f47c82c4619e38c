"""Decisions and outcomes in a database: SQLite, or PostgreSQL where several replicas share one.

Every write is one transaction that may be repeated: a decision's first row stays, an outcome is one row for its caller
and `outcome_id`. Nothing derived is stored: which outcome is the effective one (the latest `occurred_at`, then the
latest received, then the greatest id) is asked of the rows, so any order of arrival ends in the same answer. A
forgotten decision leaves its bare id behind, so that a late write or a retry does not bring it back.

Knows nothing of requests, callers' rights, queues, threads or connections.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa

from classifier.database import Database
from classifier.migrations import LOCK, decisions, forgotten, outcomes
from classifier.types import Cause, OutcomeState

Row = Mapping[str, Any]
_Query = TypeVar("_Query", sa.Select[Any], sa.Exists)
_CHUNK = 5000
_JOINED = sa.exists().where(decisions.c.decision_id == outcomes.c.decision_id)
_PENDING = ~_JOINED


class Ledger:
    """The decisions and outcomes in a database. Safe from any thread.

    Args:
        database: where they are.
        clock: seconds since the epoch; by default the database's.

    Attributes:
        clock: the same.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] | None = None) -> None:
        self._database = database
        self.clock = clock or database.now
        self._shared = database.path is None
        self._insert: Callable[[sa.Table], Any]
        if self._shared:  # beside SQLite nobody waits for the import of this dialect: 30 ms of a server's start
            from sqlalchemy.dialects import postgresql

            self._insert = postgresql.insert
        else:
            from sqlalchemy.dialects import sqlite

            self._insert = sqlite.insert

    def write(self, new_decisions: Sequence[Row], new_outcomes: Sequence[Row]) -> list[OutcomeState]:
        """Writes all of them durably, or none.

        Args:
            new_decisions: rows of the table; those that are there already, or were forgotten, are left out.
            new_outcomes: rows of the table.

        Returns:
            For each outcome: DUPLICATE where it was there already or its decision was forgotten; else JOINED where its
            decision is there; else PENDING.

        Raises:
            StoreUnavailable: the database is full, locked or gone.
        """
        # Sorted, so that two replicas with the same rows lock them in the same order.
        first = sorted(new_decisions, key=lambda row: row["decision_id"])
        with self._database.transaction() as connection:
            if self._shared:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock_shared(LOCK)))
            gone = self._forgotten_among(connection, {row["decision_id"] for row in (*first, *new_outcomes)})
            if rows := [row for row in first if row["decision_id"] not in gone]:
                connection.execute(self._insert(decisions).on_conflict_do_nothing(), rows)
            if not new_outcomes:
                return []
            mine = [row for row in new_outcomes if row["decision_id"] not in gone]
            keys = {(row["caller"], row["outcome_id"]): row for row in reversed(mine)}
            key = (outcomes.c.caller, outcomes.c.outcome_id)
            known = {tuple(row) for row in connection.execute(sa.select(*key).where(sa.tuple_(*key).in_(list(keys))))}
            fresh = {k: keys[k] for k in sorted(keys) if k not in known}
            joined = {
                tuple(row)
                for row in connection.execute(
                    sa.select(decisions.c.decision_id, decisions.c.caller).where(
                        decisions.c.decision_id.in_({row["decision_id"] for row in fresh.values()})
                    )
                )
            }
            if fresh:
                insert = self._insert(outcomes).on_conflict_do_nothing()
                if self._shared:  # another replica may have written the same since we looked: one of us was first
                    written = connection.execute(insert.returning(*key), list(fresh.values()))
                    fresh = {k: fresh[k] for k in map(tuple, written)}
                else:
                    connection.execute(insert, list(fresh.values()))
        states = []
        for row in new_outcomes:
            name = (row["caller"], row["outcome_id"])
            if fresh.get(name) is not row:  # it was there, or is a copy in this group, or its decision is forgotten
                states.append(OutcomeState.DUPLICATE)
                continue
            del fresh[name]
            found = (row["decision_id"], row["caller"]) in joined
            states.append(OutcomeState.JOINED if found else OutcomeState.PENDING)
        return states

    def forget(self, decision_ids: Collection[str]) -> tuple[int, int]:
        """Deletes the decisions and all that was reported of them, and keeps them from coming back.

        Returns:
            How many decisions and how many outcomes were deleted.

        Raises:
            StoreUnavailable: the database is full, locked or gone.
        """
        deleted = [0, 0]
        with self._database.transaction() as connection:
            if self._shared:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
            for ids in _chunks(sorted(set(decision_ids))):
                deleted = [sum(pair) for pair in zip(deleted, _delete(connection, ids), strict=True)]
                rows = [{"decision_id": decision_id, "forgotten_at": self.clock()} for decision_id in ids]
                connection.execute(self._insert(forgotten).on_conflict_do_nothing(), rows)
        self._database.scrub()
        return deleted[0], deleted[1]

    def labelled(self, name: str, value: str) -> set[str]:
        """Ids of the decisions whose request had this label, in a decision or in a request sent with an outcome.

        Raises:
            StoreUnavailable: the database is locked or gone.
        """
        # LIKE narrows it down on either database (on SQLite it ignores case); JSON decides.
        pair = json.dumps({name: value}, separators=(",", ":"))[1:-1]
        found: set[str] = set()
        with self._database.reading() as connection:
            for table, column in ((decisions, decisions.c.labels), (outcomes, outcomes.c.request)):
                query = sa.select(table.c.decision_id, column).where(column.contains(pair, autoescape=True))
                for decision_id, text in connection.execute(query):
                    labels = json.loads(text)
                    labels = labels if column is decisions.c.labels else labels.get("labels", {})
                    if labels.get(name) == value:
                        found.add(decision_id)
        return found

    def expire(self, age_seconds: float) -> bool:
        """Deletes some of what is older than that, forgotten ids too.

        Returns:
            Whether there may be more: call again.

        Raises:
            StoreUnavailable: the database is full, locked or gone.
        """
        with self._database.reading() as connection:
            before = self.clock() - age_seconds  # not earlier: the connection has told what the time is
            old = sa.select(decisions.c.decision_id).where(decisions.c.decided_at < before).limit(_CHUNK)
            key = (outcomes.c.caller, outcomes.c.outcome_id)
            orphans = sa.select(*key).where(outcomes.c.received_at < before, _PENDING).limit(_CHUNK)
            ids = list(connection.scalars(old))
            keys = [tuple(row) for row in connection.execute(orphans)]
            gone = connection.scalar(sa.select(sa.exists().where(forgotten.c.forgotten_at < before)))
        if not (ids or keys or gone):
            return False
        with self._database.transaction() as connection:
            _delete(connection, ids)
            connection.execute(outcomes.delete().where(sa.tuple_(*key).in_(keys)))
            connection.execute(forgotten.delete().where(forgotten.c.forgotten_at < before))
        return _CHUNK in (len(ids), len(keys))

    def rows(
        self, since: float = 0.0, until: float = math.inf, *, history: bool = False, bundle: str = ""
    ) -> Iterator[dict[str, Any]]:
        """Decisions with what became of them, by time: a stream that does not keep writers waiting.

        Args:
            since: the first moment of `decided_at`, seconds since the epoch.
            until: the first moment after the last.
            history: every outcome in a row of its own, also one whose decision is not there; else one row a decision,
                with its effective outcome.
            bundle: only decisions of the bundle of this version; "" for all.

        Returns:
            Mappings with the columns of `decisions`; those of `outcomes` with `outcome_` before their names where they
            would collide; `outcome_count`; `effective`.

        Raises:
            StoreUnavailable: the database is locked or gone.
        """
        ranked = _ranked(_between(_JOINED, decisions.c.decided_at, since, until))
        on = (ranked.c.decision_id == decisions.c.decision_id) & (ranked.c.caller == decisions.c.caller)
        made = sa.select(*decisions.c, *_reported(ranked)).select_from(
            decisions.outerjoin(ranked, on if history else on & (ranked.c.rank == 1))
        )
        if bundle:
            made = made.where(decisions.c.bundle_version == bundle)
        queries = [
            _between(made, decisions.c.decided_at, since, until).order_by(
                decisions.c.decided_at, decisions.c.decision_id
            )
        ]
        if history:
            queries[0] = queries[0].order_by(ranked.c.occurred_at, ranked.c.outcome_id)
            other = outcomes.alias()
            near = sa.exists().where(other.c.decision_id == outcomes.c.decision_id)
            ranked = _ranked(_PENDING & _between(near, other.c.received_at, since, until))
            orphans = sa.select(ranked.c.decision_id, ranked.c.caller, *_reported(ranked))
            queries.append(_between(orphans, ranked.c.received_at, since, until).order_by(ranked.c.received_at))
        with self._database.reading() as connection:
            for query in queries:
                for row in connection.execution_options(yield_per=1000).execute(query).mappings():
                    yield dict(row)

    def counts(self) -> dict[str, int]:
        """How many decisions, outcomes, pending outcomes and forgotten ids there are.

        Raises:
            StoreUnavailable: the database is locked or gone.
        """
        count = sa.select(sa.func.count())
        queries = {
            "decisions": count.select_from(decisions),
            "outcomes": count.select_from(outcomes),
            "pending": count.select_from(outcomes).where(_PENDING),
            "forgotten": count.select_from(forgotten),
        }
        with self._database.reading() as connection:
            return {name: connection.scalar(query) or 0 for name, query in queries.items()}

    def judged(self, since: float, until: float) -> int:
        """How many decisions of a time span have an outcome that judges quality, and not what a provider could not do.

        Raises:
            StoreUnavailable: the database is locked or gone.
        """
        told = _JOINED.where(outcomes.c.caller == decisions.c.caller, outcomes.c.cause == int(Cause.QUALITY))
        query = sa.select(sa.func.count()).select_from(decisions).where(told.correlate(decisions))
        with self._database.reading() as connection:
            return connection.scalar(_between(query, decisions.c.decided_at, since, until)) or 0

    def _forgotten_among(self, connection: sa.Connection, ids: set[str]) -> set[str]:
        if not ids or connection.scalar(sa.select(forgotten.c.decision_id).limit(1)) is None:
            return set()
        found: set[str] = set()
        for chunk in _chunks(sorted(ids)):
            found.update(
                connection.scalars(sa.select(forgotten.c.decision_id).where(forgotten.c.decision_id.in_(chunk)))
            )
        return found


def _ranked(which: sa.ColumnElement[bool]) -> sa.Subquery:
    """Those outcomes, with their rank among all of their decision, the effective one first, and how many these are.

    Args:
        which: all or none of a decision's are among them; for a short span those of all time are not to be ranked.
    """
    partition = (outcomes.c.decision_id, outcomes.c.caller)
    latest = [c.desc() for c in (outcomes.c.occurred_at, outcomes.c.received_at, outcomes.c.outcome_id)]
    return (
        sa.select(
            outcomes,
            sa.func.row_number().over(partition_by=partition, order_by=latest).label("rank"),
            sa.func.count().over(partition_by=partition).label("outcome_count"),
        )
        .where(which)
        .subquery()
    )


def _reported(ranked: sa.Subquery) -> list[sa.ColumnElement[Any]]:
    """What a row says of an outcome."""
    shared = {"caller", "decision_id", "request", "request_hash", "rank"}
    return [
        *(c for c in ranked.c if c.name not in shared),
        ranked.c.request.label("outcome_request"),
        ranked.c.request_hash.label("outcome_request_hash"),
        (ranked.c.rank == 1).label("effective"),
    ]


def _between(query: _Query, when: sa.ColumnElement[float], since: float, until: float) -> _Query:
    query = query.where(when >= since)
    return query if until == math.inf else query.where(when < until)


def _delete(connection: sa.Connection, ids: Sequence[str]) -> tuple[int, int]:
    counts = [
        connection.execute(table.delete().where(table.c.decision_id.in_(ids))).rowcount
        for table in (decisions, outcomes)
    ]
    return counts[0], counts[1]


def _chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _CHUNK):
        yield ids[start : start + _CHUNK]
