"""A connection to SQLite or PostgreSQL that keeps what it commits, and says plainly when it cannot.

SQLite runs in WAL mode with `synchronous=FULL`, which is read back: what is committed survives a killed process and a
power cut. PostgreSQL's `synchronous_commit` is turned on where it is off, and its clock is the one that replicas go by.
Any trouble of the database becomes StoreUnavailable, without the database's own text, which may quote a row; the next
use connects anew.

Knows nothing of what is stored.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from classifier.errors import MissingExtra, SettingsError, StoreUnavailable
from classifier.migrations import MIGRATIONS, migrate, schema_version
from classifier.texts import encodable

log = logging.getLogger(__name__)

_EPOCH = sa.select(sa.extract("epoch", sa.func.clock_timestamp()))
BUSY_SECONDS = 2.0
"""How long a lock is waited for."""
# A row that the database refuses is not the database's trouble.
_ROW_AT_FAULT = (sa.exc.DataError, sa.exc.IntegrityError)
# PostgreSQL's class of errors for what exceeds a limit, such as an index's row; psycopg calls it operational.
_TOO_LARGE = "54"

_NEW_ONE = "restore it from a backup, or move it away and a server makes a new one"
_FULL = "its disk is full: make space"
# By the beginning of SQLite's code, or PostgreSQL's; the first alone a later try mends.
_ADVICE = {
    "SQLITE_BUSY": "another process holds its lock: retry when that one is done",
    "SQLITE_NOTADB": f"the file is no SQLite database: check its address; if it was one, {_NEW_ONE}",
    "SQLITE_CORRUPT": f"the file is damaged: {_NEW_ONE}",
    "SQLITE_READONLY": "this user may not write it: see to the rights on it and on its folder",
    "SQLITE_FULL": _FULL,
    "42501": "its user lacks a right: have it granted, or give one that has it",
    "53100": _FULL,
}


class Database:
    """A database of this package's tables. Safe from any thread.

    Args:
        url: `sqlite:///PATH`, the path as it is, or `postgresql+psycopg://…`; nothing is connected to yet.
        make: make a SQLite file where there is none; else `check` refuses one that is no feedback store.

    Attributes:
        path: SQLite's file; None for PostgreSQL.
        name: the URL without its password.

    Raises:
        SettingsError: the URL is not one of these.
        MissingExtra: PostgreSQL's driver is not installed.
    """

    def __init__(self, url: str, *, make: bool = True) -> None:
        parsed = _parse(url)
        self.path = Path(parsed.database or "") if parsed.get_backend_name() == "sqlite" else None
        self.name = parsed.render_as_string(hide_password=True) if self.path is None else url
        self._make = make
        self._inode: int | None = None
        self._migrated = False
        self._ahead = 0.0
        self._engine = _engine(parsed)
        # PostgreSQL's statements each have a moment of their own unless told; SQLite's transactions have one.
        self._reads = {"isolation_level": "REPEATABLE READ"} if self.path is None else {"classifier_reads": True}
        if self.path is not None and not make:
            sa.event.listen(self._engine, "connect", self._only_ours, insert=True)

    def now(self) -> float:
        """Seconds since the epoch, by PostgreSQL's clock since it was first heard of, else by this machine's.

        Asks nothing: how far the two differ was told at the beginning of the last transaction.
        """
        return time.time() + self._ahead

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """A transaction that writes: committed durably at its end, or not at all.

        Raises:
            StoreUnavailable: the database is full, locked, gone or not migrated.
        """
        self._prepare()
        with self._guarded(), self._engine.begin() as connection:
            self._set_clock(connection)
            yield connection
        if self.path is not None:
            with self._guarded():
                if self.path.stat().st_ino != self._inode:
                    raise StoreUnavailable(f"{self.name}: the file was replaced while it was written; retry")

    @contextlib.contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that only reads, all of it as of one moment, and keeps no writer waiting.

        Raises:
            StoreUnavailable: the database is locked, gone or not migrated.
        """
        self._prepare()
        with self._guarded(), self._engine.connect().execution_options(**self._reads) as connection:
            self._set_clock(connection)
            yield connection

    def check(self) -> None:
        """Makes sure that the tables are there: a SQLite file is made and migrated, PostgreSQL must have been.

        Raises:
            SettingsError: it was not migrated, or by a later package.
            StoreUnavailable: the database is locked, gone or, where none may be made, not there.
        """
        if self.path is not None:
            with self._guarded():
                if not self._make and not self.path.is_file():
                    raise self._not_there()
            self._follow(self.path)
        if self._migrated:
            return
        if self.path is not None:
            self.migrate()
            return
        version = self._version()
        if version != len(MIGRATIONS):
            raise SettingsError(
                f"{self.name}: schema version is {version}, expected {len(MIGRATIONS)}; "
                "run 'classifier feedback migrate'"
            )
        self._migrated = True

    def migrate(self) -> list[str]:
        """Brings the tables to this package's version; returns the names of the steps taken.

        Raises:
            SettingsError: a later package made them.
            StoreUnavailable: the database is full, locked or gone.
        """
        if self.path is not None:
            self._follow(self.path)
        with self._guarded(), self._engine.begin() as connection:
            taken = migrate(connection)
        self._migrated = True
        return taken

    def scrub(self) -> None:
        """Moves deleted text out of SQLite's log; `secure_delete` has overwritten it in the file."""
        if self.path is None:
            return
        with self._guarded(), contextlib.closing(self._engine.raw_connection()) as connection:
            cursor = connection.cursor()
            busy = cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            cursor.close()
        if busy:
            log.warning("deleted text may stay in the database's log until its readers finish; run forget again then")

    def close(self) -> None:
        """Closes the connections."""
        self._engine.dispose()

    def _version(self) -> int:
        with self._guarded(), self._engine.connect() as connection:
            self._set_clock(connection)
            return schema_version(connection)

    def _set_clock(self, connection: sa.Connection) -> None:
        """Corrects `now` where PostgreSQL's clock cannot have said what it said between the question and the answer."""
        if self.path is None:
            asked = time.time()
            told = float(connection.execute(_EPOCH).scalar_one())
            self._ahead = min(max(self._ahead, told - time.time()), told - asked)

    def _only_ours(self, connection: Any, _record: Any) -> None:
        """Looks before anything is asked of a file: write-ahead logging alone would change one that is not ours."""
        if connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'schema_versions'").fetchone() is None:
            raise self._not_there()

    def _not_there(self) -> StoreUnavailable:
        return StoreUnavailable(f"{self.name}: no feedback store there; give --feedback-url, as the server has it")

    def _prepare(self) -> None:
        try:
            self.check()
        except SettingsError as error:
            raise StoreUnavailable(str(error)) from error

    def _follow(self, path: Path) -> None:
        """Opens the database anew where its file was removed or replaced: an open one would write into nowhere."""
        try:
            inode = path.stat().st_ino
        except OSError:
            inode = None
        if inode is not None and inode == self._inode:
            return
        self._migrated = False
        self._engine.dispose()
        with self._guarded():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Prompts may be in it: for its owner alone.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            found = path.stat()
            self._inode = found.st_ino
            if found.st_mode & 0o077:
                log.warning(
                    "%s may be read by others than its owner (mode %o); run chmod 600", path, found.st_mode & 0o777
                )

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turns the database's trouble into StoreUnavailable."""
        try:
            yield
        except _ROW_AT_FAULT:
            raise
        except (sa.exc.DBAPIError, sa.exc.TimeoutError, self._engine.dialect.loaded_dbapi.Error, OSError) as error:
            origin = getattr(error, "orig", None) or error
            if (getattr(origin, "sqlstate", None) or "").startswith(_TOO_LARGE):
                raise
            self._migrated = False
            codes = (getattr(origin, name, None) for name in ("sqlite_errorname", "sqlstate", "strerror"))
            code = next(filter(None, codes), "")
            # psycopg gives no code where no connection came up, and its text is not to be shown.
            then = "see that it is there, and that user, password and database are right"
            if code:
                told = (advice for start, advice in _ADVICE.items() if code.startswith(start))
                then = next(told, "retry later, and check its address and the rights")
            what = f"{type(origin).__name__} {code}".rstrip()
            raise StoreUnavailable(f"{self.name}: the feedback store failed ({what}); {then}") from error


def _parse(text: str) -> sa.URL:
    expected = "feedback_url: expected sqlite:///PATH or postgresql+psycopg://…, found"
    try:
        url = sa.make_url(text)
    except (sa.exc.ArgumentError, ValueError):  # what is wrong may stand beside a password
        raise SettingsError(f"{expected} {text.partition(':')[0][:16]!r}…, which is no URL") from None
    if "@" in (url.host or ""):  # the rest of a password, which would be shown as the host
        raise SettingsError("feedback_url: an @ of the password is written %40; or give the password in PGPASSWORD")
    backend = url.get_backend_name()
    if url.drivername in ("sqlite", "sqlite+pysqlite"):
        path = text.partition("///")[2]  # as it is: SQLAlchemy 2.1 reads %2F in it as a slash, 2.0 does not
        if not path or path == ":memory:":
            raise SettingsError("feedback_url: sqlite needs a file, as in sqlite:////var/lib/classifier/feedback.db")
        if "?" in text:
            raise SettingsError("feedback_url: sqlite takes a path and no options; no ? can be in it")
        return url.set(database=path)
    if backend != "postgresql":
        raise SettingsError(f"{expected} {url.drivername}")
    if encodable(text) != text:
        raise SettingsError(f"{expected} a postgresql URL that is not UTF-8")
    url = url.set(drivername="postgresql+psycopg")
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise MissingExtra("PostgreSQL needs psycopg; pip install 'request-complexity-classifier[postgres]'") from None
    return url


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() == "sqlite":
        engine = sa.create_engine(url, connect_args={"timeout": BUSY_SECONDS}, hide_parameters=True)
        sa.event.listen(engine, "connect", _connect_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
        return engine
    # A peer that vanished is noticed within ten seconds; a lock is waited for as long as on SQLite. A URL may say else.
    told = {name: url.query[name] for name in ("connect_timeout", "tcp_user_timeout") if name in url.query}
    options = " ".join([f"-c lock_timeout={BUSY_SECONDS:g}s", *url.normalized_query.get("options", ())])
    arguments = {"connect_timeout": 3, "tcp_user_timeout": 10_000, **told, "options": options}
    engine = sa.create_engine(url, connect_args=arguments, pool_pre_ping=True, hide_parameters=True)
    sa.event.listen(engine, "connect", _connect_postgresql)
    return engine


def _wal(connection: Any) -> str:
    """Asks for write-ahead logging. SQLite waits for no lock here where two ask a new file at once, so we do."""
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return str(connection.execute("PRAGMA journal_mode=WAL").fetchone()[0])
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname != "SQLITE_BUSY" or time.monotonic() > end:
                raise
            time.sleep(0.01)


def _connect_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say so
    mode = _wal(connection)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA secure_delete=ON")
    synchronous = connection.execute("PRAGMA synchronous").fetchone()[0]
    if (mode, synchronous) != ("wal", 2):
        raise StoreUnavailable(
            f"SQLite answers journal_mode={mode}, synchronous={synchronous} where wal and 2 (full) were asked for; "
            "put the feedback store on a local disk"
        )


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads and then writes may find itself outdated; one that starts as a writer waits its turn.
    reads = connection.get_execution_options().get("classifier_reads")
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _connect_postgresql(connection: Any, _record: Any) -> None:
    with connection.cursor() as cursor:
        if cursor.execute("SHOW synchronous_commit").fetchone()[0] == "off":
            cursor.execute("SET synchronous_commit = on")
        if cursor.execute("SHOW fsync").fetchone()[0] == "off":
            log.warning("PostgreSQL runs with fsync=off: what it acknowledges may be lost in a crash")
    connection.commit()
