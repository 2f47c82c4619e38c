"""What one retraining run sees of the feedback store: frozen at its beginning, split by time, deleted at its end.

A run may be cut off and go on an hour later, and outcomes keep coming; so its rows are written down once. The *recent*
part of the window calibrates and judges, the *earlier* part trains. Closed labels are taken from audits alone: requests
that the gateway drew at random, tried from the cheapest tier up whatever it was told, and marked with a label. Their
label is known whatever the classifier thought; all other closed labels are known *because* of what it chose, and would
teach the thresholds to rise for ever.

Knows nothing of models.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classifier.database import Database
from classifier.errors import InputError
from classifier.exports import export_row, read_export, write_export
from classifier.ledger import Ledger
from classifier.types import TIERS, Request
from training.corpus import OUTCOME, RUBRIC, Row, parse_row

EXPORT = "feedback.jsonl"

ExportRow = Mapping[str, Any]


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
        return bool(row["labels"] and row["labels"].get(self.audit[0]) == self.audit[1])


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
        Counts, the moment that splits the window, and a hash of the rows.
    """
    path = out / EXPORT
    path.touch(mode=0o600)
    with contextlib.closing(Database(url)) as database:
        count = write_export(map(export_row, Ledger(database).rows(since, until)), path)
    path.chmod(0o600)
    times = [float(row["decided_at"]) for row in read_export(path)]
    split = times[min(count - 1, math.floor(count * (1 - held_out)))] if times else until
    reported = [row for row in read_export(path) if row["outcome_id"] is not None]
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "since": since,
        "until": until,
        "split": split,
        "decisions": count,
        "outcomes": len(reported),
        "without_text": sum(row["request"] is None for row in reported),
        "explored": sum(row["reason"] == "explored" for row in reported),
        "audits": sum(bool(row["labels"]) and row["labels"].get(audit[0]) == audit[1] for row in reported),
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


def outcomes_since(url: str, since: float) -> int:
    """Decisions made since a moment that have an outcome."""
    with contextlib.closing(Database(url)) as database:
        return sum(row["outcome_id"] is not None for row in Ledger(database).rows(since))


def request_of(row: ExportRow) -> Request | None:
    """The request of a row where its text is there."""
    return None if row["request"] is None else Request.from_json(row["request"])


def closed_label(row: ExportRow) -> str | None:
    """The cheapest tier that satisfied an audit; None where none did, or where quality was not judged."""
    if row["cause"] != "quality" or row["served_tier"] != TIERS[0].label:
        return None
    if row["verdict"] == "accepted":
        return TIERS[0].label
    accepted: str | None = row["accepted_tier"]
    return accepted


def audit_rows(frozen: Frozen, rows: Iterable[ExportRow]) -> tuple[list[Row], dict[str, int]]:
    """Audited requests with their labels, as corpus rows of the kind OUTCOME; one a conversation, the latest.

    Returns:
        The rows, and counts: audits, closed, open (nothing satisfied, or no outcome), without_text.
    """
    found: dict[str, Row] = {}
    counts = {"audits": 0, "closed": 0, "open": 0, "without_text": 0}
    for row in rows:
        if not frozen.audited(row):
            continue
        counts["audits"] += 1
        label = closed_label(row)
        if label is None:
            counts["open"] += 1
        elif row["request"] is None:
            counts["without_text"] += 1
        else:
            data = {**row["request"], "id": row["decision_id"], "tier": label, "label": OUTCOME, "source": "feedback"}
            data["group"] = row["request_hash"]
            parsed = parse_row(data, "feedback")
            found[parsed.sha256] = parsed
            counts["closed"] += 1
    return list(found.values()), counts


def conversations(rows: Iterable[ExportRow]) -> set[str]:
    """Hashes of the conversations whose text is there, as corpus rows have them."""
    return {parse_row(row["request"], "feedback").sha256 for row in rows if row["request"] is not None}


@dataclass(frozen=True, slots=True)
class Labels:
    """Labelled rows of one run by their use; none was trained on by the bundle that serves.

    Attributes:
        recent: recent audits: thresholds are fitted on them, and candidates are judged on them out of fold.
        earlier: audits from before, for the probability map.
        golden: held-out rows of the base corpus, to judge on.
        traffic: recent requests, whatever became of them.
        counts: of recent audits.
    """

    recent: list[Row]
    earlier: list[Row]
    golden: list[Row]
    traffic: list[Request]
    counts: dict[str, int]


def labels_of(frozen: Frozen, base: Sequence[Row], *, most: int) -> Labels:
    """The labels of a run.

    Args:
        frozen: its rows.
        base: the base corpus.
        most: golden rows and requests of traffic are at most so many each, chosen by their hash and the latest.
    """
    recent, counts = audit_rows(frozen, frozen.recent)
    known = {row.sha256 for row in recent}
    earlier, _ = audit_rows(frozen, frozen.earlier)
    golden = [row for row in base if row.label == RUBRIC and row.probabilities is not None and row.split == "test"]
    requests = [request for row in frozen.recent if (request := request_of(row)) is not None]
    return Labels(
        recent,
        [row for row in earlier if row.sha256 not in known],
        sorted(golden, key=lambda row: row.sha256)[:most],
        requests[-most:],
        counts,
    )


def parse_audit(text: str) -> tuple[str, str]:
    """Name and value of `NAME=VALUE`.

    Raises:
        InputError: it is not that.
    """
    name, found, value = text.partition("=")
    if not (name and found and value):
        raise InputError(f"--audit-label {text}: give NAME=VALUE, such as sample=audit")
    return name, value
