"""What one retraining run sees of the feedback store: frozen at its beginning, split by time, deleted at its end.

A run may be cut off and go on an hour later, and outcomes keep coming; so its rows are written down once. The *recent*
part of the window calibrates and judges, the *earlier* part trains.

Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classifier.database import Database
from classifier.exports import export_row, read_export, write_export
from classifier.ledger import Ledger
from training.corpus import conversation_sha256
from training.decision_log import ExportRow, is_audit, request_of

EXPORT = "feedback.jsonl"


@dataclass(frozen=True, slots=True)
class Frozen:
    """The rows of one run, as exports spell them, oldest first.

    Attributes:
        earlier: what trains.
        recent: what calibrates and judges.
        audit: name and value of the label of audited requests.
    """

    earlier: list[dict[str, Any]]
    recent: list[dict[str, Any]]
    audit: tuple[str, str]

    def audited(self, row: ExportRow) -> bool:
        """Whether the gateway drew this request for an audit."""
        return is_audit(row, self.audit)


def freeze(
    url: str, out: Path, *, since: float, until: float, held_out: float, audit: tuple[str, str]
) -> dict[str, Any]:
    """Writes the window's decisions with their effective outcomes into `out`, readable by their owner only.

    Args:
        url: of the feedback store.
        out: a folder.
        since: first moment, seconds since the epoch.
        until: first moment after the last.
        held_out: share of the window's decisions, the latest ones, that calibrates and judges; in (0, 1).
        audit: name and value of the label of audited requests.

    Returns:
        Counts, the moment that splits the window, and a hash of the rows; `until` is the first moment after the last
        decision, for a clock that runs ahead has not seen what came before its moment.
    """
    path = out / EXPORT
    with contextlib.closing(Database(url, make=False)) as database:
        count = write_export(map(export_row, Ledger(database).rows(since, until)), path)
    times = [float(row["decided_at"]) for row in read_export(path)]
    split = times[min(count - 1, math.floor(count * (1 - held_out)))] if times else until
    reported = [row for row in read_export(path) if row["outcome_id"] is not None]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "since": since,
        "until": math.nextafter(times[-1], until) if times else until,
        "split": split,
        "decisions": count,
        "outcomes": len(reported),
        "without_text": sum(row["request"] is None for row in reported),
        "explored": sum(row["reason"] == "explored" for row in reported),
        "audits": sum(is_audit(row, audit) for row in reported),
        "sha256": digest,
    }


def thaw(folder: Path, split: float, audit: tuple[str, str]) -> Frozen:
    """What `freeze` wrote.

    Raises:
        InputError: it cannot be read.
    """
    rows = list(read_export(folder / EXPORT))
    return Frozen(
        [row for row in rows if row["decided_at"] < split], [row for row in rows if row["decided_at"] >= split], audit
    )


def melt(folder: Path) -> None:
    """Deletes what `freeze` wrote: texts belong in the store, where they can be forgotten."""
    (folder / EXPORT).unlink(missing_ok=True)


def outcomes_between(url: str, since: float, until: float) -> int:
    """Decisions of a time span that have an outcome of quality: an outage is nothing to begin a round for."""
    with contextlib.closing(Database(url, make=False)) as database:
        return Ledger(database).judged(since, until)


def conversations(rows: Iterable[ExportRow]) -> set[str]:
    """Hashes of the conversations whose text is there, as corpus rows have them."""
    return {conversation_sha256(request) for request in map(request_of, rows) if request is not None}
