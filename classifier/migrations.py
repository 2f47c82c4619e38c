"""The tables of the feedback store, and the numbered steps that make them.

A step is plain DDL, frozen once released: it never looks at the tables below, which say what the steps add up to (a
test compares the two). Every step of a database runs in one transaction, behind a lock, so that replicas that start
together migrate once.

Knows nothing of requests, queues or connections' settings.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import sqlalchemy as sa

from classifier.errors import SettingsError

LOCK = 0x636C6173
"""Advisory lock of PostgreSQL ("clas") that migrations and `forget` take alone and writers share."""

metadata = sa.MetaData()

decisions = sa.Table(
    "decisions",
    metadata,
    sa.Column("decision_id", sa.Text, primary_key=True),
    sa.Column("caller", sa.Text, nullable=False),
    sa.Column("decided_at", sa.Double, nullable=False),
    sa.Column("tier", sa.SmallInteger, nullable=False),
    sa.Column("model_tier", sa.SmallInteger, nullable=False),
    sa.Column("reason", sa.SmallInteger, nullable=False),
    sa.Column("policy", sa.Text, nullable=False),
    sa.Column("threshold", sa.Double, nullable=False),
    sa.Column("guaranteed", sa.Boolean, nullable=False),
    sa.Column("propensity", sa.Double, nullable=False),
    sa.Column("probabilities", sa.Text, nullable=False),
    sa.Column("logits", sa.Text, nullable=False),
    sa.Column("signals", sa.Text, nullable=False),
    sa.Column("bundle_version", sa.Text, nullable=False),
    sa.Column("calibration_revision", sa.Text, nullable=False),
    sa.Column("truncated", sa.Boolean, nullable=False),
    sa.Column("input_tokens", sa.Integer, nullable=False),
    sa.Column("floor", sa.SmallInteger),
    sa.Column("ceiling", sa.SmallInteger),
    sa.Column("route", sa.Text, nullable=False),
    sa.Column("labels", sa.Text, nullable=False),
    sa.Column("request_hash", sa.Text, nullable=False),
    sa.Column("request", sa.Text),
)

outcomes = sa.Table(
    "outcomes",
    metadata,
    sa.Column("caller", sa.Text, primary_key=True),
    sa.Column("outcome_id", sa.Text, primary_key=True),
    sa.Column("decision_id", sa.Text, nullable=False),
    sa.Column("verdict", sa.SmallInteger, nullable=False),
    sa.Column("cause", sa.SmallInteger, nullable=False),
    sa.Column("source", sa.SmallInteger, nullable=False),
    sa.Column("served_tier", sa.SmallInteger, nullable=False),
    sa.Column("accepted_tier", sa.SmallInteger),
    sa.Column("occurred_at", sa.Double, nullable=False),
    sa.Column("received_at", sa.Double, nullable=False),
    sa.Column("request_hash", sa.Text),
    sa.Column("request", sa.Text),
)

forgotten = sa.Table(
    "forgotten",
    metadata,
    sa.Column("decision_id", sa.Text, primary_key=True),
    sa.Column("forgotten_at", sa.Double, nullable=False),
)

_versions = sa.Table(
    "schema_versions",
    sa.MetaData(),
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("applied_at", sa.Double, nullable=False),
)


def m001_decisions_and_outcomes(connection: sa.Connection) -> None:
    """What was answered, and what became of it."""
    key = _id_type(connection)
    _run(
        connection,
        f"""CREATE TABLE decisions (
            decision_id {key} PRIMARY KEY, caller {key} NOT NULL, decided_at DOUBLE PRECISION NOT NULL,
            tier SMALLINT NOT NULL, model_tier SMALLINT NOT NULL, reason SMALLINT NOT NULL,
            policy TEXT NOT NULL, threshold DOUBLE PRECISION NOT NULL, guaranteed BOOLEAN NOT NULL,
            propensity DOUBLE PRECISION NOT NULL, probabilities TEXT NOT NULL, logits TEXT NOT NULL,
            signals TEXT NOT NULL, bundle_version TEXT NOT NULL, calibration_revision TEXT NOT NULL,
            truncated BOOLEAN NOT NULL, input_tokens INTEGER NOT NULL, floor SMALLINT, ceiling SMALLINT,
            route TEXT NOT NULL, labels TEXT NOT NULL, request_hash TEXT NOT NULL, request TEXT)""",
        "CREATE INDEX decisions_by_time ON decisions (decided_at)",
        f"""CREATE TABLE outcomes (
            caller {key} NOT NULL, outcome_id {key} NOT NULL, decision_id {key} NOT NULL,
            verdict SMALLINT NOT NULL, cause SMALLINT NOT NULL, source SMALLINT NOT NULL,
            served_tier SMALLINT NOT NULL, accepted_tier SMALLINT, occurred_at DOUBLE PRECISION NOT NULL,
            received_at DOUBLE PRECISION NOT NULL, request_hash TEXT, request TEXT,
            PRIMARY KEY (caller, outcome_id))""",
        "CREATE INDEX outcomes_by_decision ON outcomes (decision_id)",
        "CREATE INDEX outcomes_by_time ON outcomes (received_at)",
    )


def m002_forgotten_decisions(connection: sa.Connection) -> None:
    """Ids that were forgotten, so that a late write or a retry does not bring them back."""
    _run(
        connection,
        f"""CREATE TABLE forgotten (
            decision_id {_id_type(connection)} PRIMARY KEY, forgotten_at DOUBLE PRECISION NOT NULL)""",
    )


MIGRATIONS: tuple[Callable[[sa.Connection], None], ...] = (m001_decisions_and_outcomes, m002_forgotten_decisions)
"""In order; the version of a database is how many of them it has seen."""


def schema_version(connection: sa.Connection) -> int:
    """How many migrations the database has seen; 0 where it is empty.

    Raises:
        SettingsError: a later package made it.
    """
    if not sa.inspect(connection).has_table(_versions.name):
        return 0
    version = connection.scalar(sa.select(sa.func.coalesce(sa.func.max(_versions.c.version), 0))) or 0
    if version > len(MIGRATIONS):
        raise SettingsError(
            f"the feedback store has schema version {version}, this package knows {len(MIGRATIONS)}; "
            "upgrade the package"
        )
    return version


def migrate(connection: sa.Connection, target: int = len(MIGRATIONS)) -> list[str]:
    """Brings the database to version `target`, in the transaction of `connection`.

    Returns:
        Names of the steps taken; none where there was nothing to do.

    Raises:
        SettingsError: the database was made by a later package.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
    version = schema_version(connection)
    _versions.create(connection, checkfirst=True)
    taken = []
    for number, step in enumerate(MIGRATIONS[version:target], start=version + 1):
        step(connection)
        connection.execute(_versions.insert(), {"version": number, "name": step.__name__, "applied_at": time.time()})
        taken.append(step.__name__)
    return taken


def _id_type(connection: sa.Connection) -> str:
    """Ids compare byte by byte on both databases, so that ties are broken alike."""
    return 'TEXT COLLATE "C"' if connection.dialect.name == "postgresql" else "TEXT"


def _run(connection: sa.Connection, *statements: str) -> None:
    for statement in statements:
        connection.exec_driver_sql(statement)
