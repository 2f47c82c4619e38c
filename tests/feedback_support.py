"""Decisions, outcomes, and a PostgreSQL of our own, for the tests of what is remembered."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import secrets
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from classifier.database import Database
from classifier.decision_id import DecisionIds
from classifier.errors import StoreUnavailable
from classifier.feedback import FeedbackStore
from classifier.ledger import Ledger
from classifier.types import Cause, Decision, Outcome, OutcomeState, Reason, Request, Source, Tier, Verdict
from tests.serving_support import child_processes

KEY = bytes(range(32))
IDS = DecisionIds(KEY)
PROMPT = "my secret question about the merger"


def decision(decision_id: str, tier: Tier = Tier.SIMPLE) -> Decision:
    """A decision as the service makes it."""
    return Decision(
        tier=tier,
        probabilities=(0.7, 0.2, 0.07, 0.03),
        model_tier=Tier.SIMPLE,
        reason=Reason.MODEL,
        policy="balanced",
        threshold=0.65,
        guaranteed=True,
        bundle_version="0123456789abcdef",
        calibration_revision="c1",
        input_tokens=12,
        decision_id=decision_id,
    )


def outcome(decision_id: str, outcome_id: str = "o1", verdict: Verdict = Verdict.ACCEPTED, **fields) -> Outcome:
    """An outcome as a gateway reports it."""
    values = {"cause": Cause.QUALITY, "source": Source.USER, "served_tier": Tier.SIMPLE, **fields}
    return Outcome(decision_id, outcome_id, verdict, **values)


def request(text: str = PROMPT, **fields) -> Request:
    """A request with one message."""
    return Request.from_text(text, **fields)


def mint(caller: str = "gateway", request_id: str = "") -> str:
    """A valid decision id."""
    return IDS.mint(caller, request_id, time.time())


@contextlib.contextmanager
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[list[str], threading.Event]]:
    """Ledgers whose writes neither end nor fail until the block does: the outcomes they got, and that one began."""
    written, begun, gate = list[str](), threading.Event(), threading.Event()
    write = Ledger.write

    def hang(self, decisions, outcomes):
        written.extend(row["outcome_id"] for row in outcomes)
        begun.set()
        gate.wait(30)
        return write(self, decisions, outcomes)

    monkeypatch.setattr(Ledger, "write", hang)
    try:
        yield written, begun
    finally:
        gate.set()


async def report_until_taken(store: FeedbackStore, decision_id: str, seconds: float = 90.0) -> OutcomeState:
    """Retries as a client does."""
    end = time.monotonic() + seconds
    while True:
        try:
            return await store.report(outcome(decision_id), "gateway")
        except StoreUnavailable as error:
            assert time.monotonic() < end, "the store did not come back"
            await asyncio.sleep(min(error.retry_after_seconds, 0.05))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process's write lock on a SQLite file."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


class PostgreSQL:
    """A PostgreSQL server on a Unix socket, run by an unprivileged user, its data in a temporary folder."""

    def __init__(self) -> None:
        self._bin = binaries()
        self.folder = quick_folder("classifier-pg-")
        self._user = _unprivileged()
        self.folder.chmod(0o755)
        if self._user is not None:
            shutil.chown(self.folder, self._user.pw_name)
        initdb = ["-D", self.folder / "data", "-U", "classifier", "--auth=trust", "--encoding=UTF8", "--no-locale"]
        subprocess.run(self._command("initdb", *initdb), check=True, capture_output=True, cwd="/")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Starts the server and waits until it answers; again where the last one's children are still leaving."""
        import psycopg

        end = time.monotonic() + 30
        while True:
            if self._process is None or self._process.poll() is not None:
                command = self._command("postgres", "-D", self.folder / "data", "-k", self.folder)
                with (self.folder / "log").open("ab") as log:
                    self._process = subprocess.Popen(
                        [*command, "-c", "listen_addresses="], stdout=log, stderr=log, cwd="/"
                    )
            try:
                psycopg.connect(host=str(self.folder), user="classifier", dbname="postgres").close()
            except psycopg.OperationalError:
                said = (self.folder / "log").read_text(errors="replace")[-2000:]
                assert time.monotonic() < end, f"PostgreSQL did not start in time: {said}"
                time.sleep(0.02)
            else:
                return

    def kill(self) -> None:
        """Ends it as kill -9 does, its connections' processes too: they may answer once more before they notice."""
        assert self._process is not None
        children = child_processes(self._process.pid)
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(30)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    def stop(self) -> None:
        """Ends the server and removes its data."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)

    def database(self) -> str:
        """The URL of a new empty database."""
        import psycopg

        name = f"t{secrets.token_hex(6)}"
        with psycopg.connect(
            host=str(self.folder), user="classifier", dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql+psycopg://classifier@/{name}?host={self.folder}"

    def migrated(self) -> str:
        """The URL of a new database that is ready to be written to."""
        url = self.database()
        with contextlib.closing(Database(url)) as database:
            database.migrate()
        return url

    def _command(self, program: str, *arguments: str | Path) -> list[str | Path]:
        """One of PostgreSQL's programs as the unprivileged user.

        `subprocess.run(user=…)` would fork, and beside gRPC's threads the child of a fork may crash before it gets to
        run a program. setpriv becomes the program, so a signal to it reaches the program.
        """
        command = [self._bin / program, *arguments]
        if self._user is None:
            return command
        user, group = f"--reuid={self._user.pw_uid}", f"--regid={self._user.pw_gid}"
        return ["setpriv", user, group, "--clear-groups", "--", *command]


def quick_folder(prefix: str) -> Path:
    """A new temporary folder, in memory where there is room: kill -9 loses no page cache, so it tests as much."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 2**30
    return Path(tempfile.mkdtemp(prefix=prefix, dir=memory if roomy else None))


def binaries() -> Path:
    """The folder of PostgreSQL's programs; skips where there is none, unless it is required."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if (folder / "postgres").exists():
            return folder
    reason = "PostgreSQL's server is not installed (Debian: apt-get install postgresql)"
    if os.environ.get("CLASSIFIER_REQUIRE_POSTGRES") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def _unprivileged() -> pwd.struct_passwd | None:
    """A user that PostgreSQL agrees to run as; None where we are one ourselves."""
    if os.getuid() != 0:
        return None
    users = {entry.pw_name: entry for entry in pwd.getpwall()}
    return users.get("postgres", users["nobody"])
