"""What is remembered of decisions, and what became of them.

Decisions are written off the hot path, in batches, and never make `Classify` wait. Outcomes are on disk before `report`
returns. By default a request leaves only a keyed hash, its labels, its signals and the model's logits: enough to
recalibrate, to measure drift and to audit. Text is kept where `keep` is "text", and where a gateway sends it with an
outcome.

Knows nothing of the wire, of callers' credentials (ids are checked before an outcome comes here) or of files.
"""

from __future__ import annotations

import asyncio
import functools
import hmac
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from classifier.database import Database
from classifier.decision_id import derive_key
from classifier.errors import SettingsError, StoreUnavailable
from classifier.ledger import Ledger, Row
from classifier.recorder import MAX_QUEUED_BYTES, Recorder
from classifier.types import Decision, Outcome, OutcomeState, Request, Tier

log = logging.getLogger(__name__)

RETENTION_DAYS = 90.0
REPORT_SECONDS = 5.0
"""The longest that `report` waits for the disk."""
_ROW_BYTES = 2000  # what a row without text and labels takes in memory, measured generously


def open_store(
    url: str,
    *,
    key: bytes,
    keep: str = "hash",
    retention_days: float = RETENTION_DAYS,
    max_queued_bytes: int = MAX_QUEUED_BYTES,
    clock: Callable[[], float] | None = None,
) -> FeedbackStore:
    """The feedback store at a URL, ready to be written.

    A SQLite file is made and migrated. A store that cannot be reached now is no error: it is tried again when needed.

    Args:
        url: `sqlite:///PATH` or `postgresql+psycopg://…`.
        key: secret of the hashes, shared by the replicas; `classifier.decision_id.read_key` has it.
        keep: what is kept of a request, "hash" or "text".
        retention_days: decisions and outcomes older than this are deleted, some every ten minutes.
        max_queued_bytes: memory for decisions that wait to be written, more are dropped and counted; and as much for
            outcomes, more are refused.
        clock: seconds since the epoch; by default PostgreSQL's where that is the database, else this machine's.

    Raises:
        SettingsError: the URL is not usable, the database was not migrated, or `keep` or `retention_days` is wrong.
        MissingExtra: PostgreSQL's driver is not installed.
    """
    if keep not in ("hash", "text"):
        raise SettingsError(f"store: expected hash or text, found {keep!r}; for off open no store")
    if not retention_days > 0:
        raise SettingsError(f"retention_days: expected more than 0, found {retention_days:g}")
    database = Database(url)
    try:
        database.check()
    except SettingsError:
        database.close()
        raise
    except StoreUnavailable as error:
        log.warning("%s; classification goes on, outcomes are refused until it is back", error)
    return FeedbackStore(
        database,
        key=key,
        keep=keep,
        retention_days=retention_days,
        max_queued_bytes=max_queued_bytes,
        clock=clock,
    )


class FeedbackStore:
    """Keeps decisions and outcomes. Safe from any thread. Made by `open_store`.

    Attributes:
        keep: what is kept of a request, "hash" or "text".
        name: where it is, without a password.
        ledger: the rows, for those who read them.
    """

    def __init__(
        self,
        database: Database,
        *,
        key: bytes,
        keep: str,
        retention_days: float,
        max_queued_bytes: int,
        clock: Callable[[], float] | None,
    ) -> None:
        self.keep = keep
        self.name = database.name
        self.ledger = Ledger(database, clock=clock)
        self._database = database
        self._hash_key = derive_key(key, "request")
        self._retention_seconds = retention_days * 86_400
        self._clock = self.ledger.clock
        self._recorder = Recorder(self._write, self._expire, max_queued_bytes=max_queued_bytes)

    @property
    def dropped(self) -> int:
        """Decisions that were not written and never will be: the queue was full, or a row could not be stored."""
        return self._recorder.dropped

    @property
    def queued(self) -> int:
        """Decisions that wait to be written."""
        return self._recorder.queued

    def record(
        self,
        decision: Decision,
        request: Request,
        caller: str,
        *,
        signals: Sequence[str] = (),
        logits: Sequence[float] = (),
    ) -> None:
        """Queues a decision to be written. Never waits and never raises; what is lost is counted in `dropped`.

        Args:
            decision: with its `decision_id`.
            request: what was decided on.
            caller: the principal that may report its outcome.
            signals: what the model was told beside the text.
            logits: the model's answer before calibration.
        """
        # A run of the model sweeps the processor's caches, and this comes right after one: what can wait for the
        # recorder's thread waits, where the rows of a batch are made one after the other.
        try:
            text = _text(request) if self.keep == "text" else None
            hashed = request_hash(request, self._hash_key)
            bounds = request.floor, request.ceiling
            make = functools.partial(
                _decision_row, decision, self._clock(), caller, signals, logits, bounds, request.labels, hashed, text
            )
            self._recorder.add(make, _size(text, request.labels))
        except Exception:  # feedback is never worth an answer
            log.exception("a decision could not be recorded")

    async def report(self, outcome: Outcome, caller: str) -> OutcomeState:
        """Writes an outcome; it is on disk when this returns. The same again changes nothing.

        Args:
            outcome: its `decision_id` has been verified.
            caller: the authenticated principal.

        Raises:
            StoreUnavailable: the store is full, locked, gone or too slow; retrying is safe.
        """
        now = self._clock()
        sent = outcome.request
        if sent is not None and sent.record is False:  # the verdict is kept, and nothing of what was asked
            sent = None
        text = None if sent is None else _text(sent)
        row = {
            "caller": caller,
            "outcome_id": outcome.outcome_id,
            "decision_id": outcome.decision_id,
            "verdict": int(outcome.verdict),
            "cause": int(outcome.cause),
            "source": int(outcome.source),
            "served_tier": int(outcome.served_tier),
            "accepted_tier": None if outcome.accepted_tier is None else int(outcome.accepted_tier),
            "occurred_at": now if outcome.occurred_at is None else min(outcome.occurred_at, now),
            "received_at": now,
            "request_hash": None if sent is None else request_hash(sent, self._hash_key),
            "request": text,
        }
        written = asyncio.wrap_future(self._recorder.submit(row, _size(text)))
        try:
            return await asyncio.wait_for(written, REPORT_SECONDS)
        except TimeoutError:
            raise StoreUnavailable("the feedback store is too slow; the outcome may be written yet, retry it") from None

    def flush(self, timeout_seconds: float = 5.0) -> bool:
        """Waits until what was recorded is on disk; False where that took too long."""
        return self._recorder.flush(timeout_seconds)

    def close(self) -> None:
        """Writes what is queued and closes the store."""
        self._recorder.close()
        self._database.close()

    def _write(self, decisions: Sequence[Callable[[], Row]], outcomes: Sequence[Row]) -> list[OutcomeState]:
        return self.ledger.write([make() for make in decisions], outcomes)

    def _expire(self) -> bool:
        return self.ledger.expire(self._retention_seconds)


def request_hash(request: Request, key: bytes) -> str:
    """HMAC-SHA256 of what was asked (messages, tools, attachments), 32 hexadecimal digits.

    Equal requests have equal hashes under one key, and without the key a hash cannot be compared with a guess.
    """
    parts = []
    for message in request.messages:
        content = message.content.encode("utf-8", "surrogatepass")
        parts += [f"{message.role}\0{len(content)}\0".encode(), content]
    beside = (
        json.dumps([list(request.tools), request.attachments]) if request.tools or request.attachments else "[[], 0]"
    )
    parts.append(beside.encode())
    return hmac.digest(key, b"".join(parts), "sha256").hex()[:32]


def _decision_row(
    decision: Decision,
    decided_at: float,
    caller: str,
    signals: Sequence[str],
    logits: Sequence[float],
    bounds: tuple[Tier | None, Tier | None],
    labels: Mapping[str, str],
    hashed: str,
    text: str | None,
) -> Row:
    """A decision as a row of its table."""
    floor, ceiling = (None if bound is None else int(bound) for bound in bounds)
    return {
        "decision_id": decision.decision_id,
        "caller": caller,
        "decided_at": decided_at,
        "tier": int(decision.tier),
        "model_tier": int(decision.model_tier),
        "reason": int(decision.reason),
        "policy": decision.policy,
        "threshold": float(decision.threshold),
        "guaranteed": decision.guaranteed,
        "propensity": float(decision.propensity),
        "probabilities": _floats(decision.probabilities),
        "logits": _floats(logits),
        "signals": _signals(tuple(signals)),
        "bundle_version": decision.bundle_version,
        "calibration_revision": decision.calibration_revision,
        "truncated": decision.truncated,
        "input_tokens": decision.input_tokens,
        "floor": floor,
        "ceiling": ceiling,
        "route": decision.route,
        "labels": json.dumps(dict(labels), separators=(",", ":")) if labels else "{}",
        "request_hash": hashed,
        "request": text,
    }


def _text(request: Request) -> str:
    """The request as compact JSON in ASCII (`Ledger.labelled` relies on both): a corpus line, with its labels."""
    labels = {"labels": dict(request.labels)} if request.labels else {}
    return json.dumps(request.to_json() | labels, separators=(",", ":"))


def _size(text: str | None, labels: Mapping[str, str] = MappingProxyType({})) -> int:
    """Bytes that a row takes in memory, rather too many; a character of a label has one to four."""
    return _ROW_BYTES + len(text or "") + sum(100 + sys.getsizeof(k) + sys.getsizeof(v) for k, v in labels.items())


def _floats(values: Sequence[float]) -> str:
    return json.dumps([float(v) for v in values])


@functools.lru_cache(maxsize=4096)
def _signals(signals: tuple[str, ...]) -> str:
    return json.dumps(signals)
