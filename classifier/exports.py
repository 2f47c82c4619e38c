"""The feedback store's export on disk: JSON lines or Parquet, written whole or not at all, read by training and bulk.

`COLUMNS` is the schema. Tiers, reasons, verdicts, causes and sources are their names in lower case; times are seconds
since the epoch, UTC. docs/feedback-store.md says what each column means.

Knows nothing of databases.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any

from classifier.arrow import pyarrow, type_of
from classifier.durable import explained, whole_file
from classifier.errors import InputError
from classifier.row_groups import bounded_batches
from classifier.texts import parsed
from classifier.types import Cause, Reason, Source, Tier, Verdict

SCHEMA_VERSION = 1
COLUMNS: Mapping[str, str] = {
    "decision_id": "string",
    "caller": "string",
    "decided_at": "double",
    "tier": "string",
    "model_tier": "string",
    "reason": "string",
    "policy": "string",
    "threshold": "double",
    "guaranteed": "bool",
    "propensity": "double",
    "probabilities": "list<double>",
    "logits": "list<double>",
    "signals": "list<string>",
    "bundle_version": "string",
    "calibration_revision": "string",
    "truncated": "bool",
    "input_tokens": "int32",
    "floor": "string",
    "ceiling": "string",
    "route": "string",
    "labels": "json",
    "request_hash": "string",
    "request": "json",
    "outcome_id": "string",
    "verdict": "string",
    "cause": "string",
    "source": "string",
    "served_tier": "string",
    "accepted_tier": "string",
    "occurred_at": "double",
    "received_at": "double",
    "outcome_count": "int32",
    "effective": "bool",
}
"""Name and type of each column, in order. `json` is an object in JSON lines and its text in Parquet."""

_ENUMS = {
    "tier": Tier,
    "model_tier": Tier,
    "floor": Tier,
    "ceiling": Tier,
    "served_tier": Tier,
    "accepted_tier": Tier,
    "reason": Reason,
    "verdict": Verdict,
    "cause": Cause,
    "source": Source,
}
_JSON = ("probabilities", "logits", "signals", "labels", "request")
_TEXTS = [name for name, kind in COLUMNS.items() if kind == "json"]
"""Columns that Parquet holds as the text of JSON."""
_BATCH = 5000


def export_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `Ledger.rows` as the export spells it.

    The request is the decision's own text; else the text that came with the outcome, if its hash is the decision's:
    what a gateway sends later is believed only where it is what was decided on.
    """
    values = dict(row)
    sent = values.get("outcome_request_hash")
    if values.get("request") is None and sent is not None and values.get("request_hash") in (None, sent):
        values["request"], values["request_hash"] = values.get("outcome_request"), sent
    for name, kind in _ENUMS.items():
        number = values.get(name)
        values[name] = None if number is None else kind(number).label
    for name in _JSON:
        text = values.get(name)
        values[name] = None if text is None else json.loads(text)
    values["outcome_count"] = values.get("outcome_count") or 0
    values["effective"] = bool(values.get("effective"))
    return {name: values.get(name) for name in COLUMNS}


def write_export(rows: Iterable[Mapping[str, Any]], path: Path) -> int:
    """Writes rows of `export_row` into a `.jsonl` or `.parquet` file, whole and for its owner alone; returns how many.

    Raises:
        InputError: another suffix, or the folder cannot be written.
        MissingExtra: Parquet needs pyarrow.
    """
    if path.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"{path}: expected a name that ends in .jsonl or .parquet")
    with explained(path), whole_file(path, private=True) as file:
        return _write_parquet(rows, file) if path.suffix == ".parquet" else write_lines(rows, file)


def write_lines(rows: Iterable[Mapping[str, Any]], file: IO[bytes]) -> int:
    """Writes rows of `export_row` as JSON lines; returns how many."""
    count = 0
    for count, row in enumerate(rows, start=1):  # noqa: B007
        file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")
    return count


def read_export(path: str | Path) -> Iterator[dict[str, Any]]:
    """The rows of an export, in its order, as `export_row` made them.

    Raises:
        InputError: it cannot be read, or is no export of this schema.
        MissingExtra: Parquet needs pyarrow.
    """
    path = Path(path)
    try:
        yield from (_read_parquet if path.suffix == ".parquet" else _read_lines)(path)
    except (OSError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__}); export it again") from error


def _write_parquet(rows: Iterable[Mapping[str, Any]], file: IO[bytes]) -> int:
    pa, pq = pyarrow()
    metadata = {"classifier_export_version": str(SCHEMA_VERSION)}
    types = [(name, type_of("string" if name in _TEXTS else kind)) for name, kind in COLUMNS.items()]
    schema = pa.schema(types, metadata=metadata)
    count = 0
    source = iter(rows)
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while batch := [dict(row) for row in islice(source, _BATCH)]:
            for row in batch:
                row.update({name: None if row[name] is None else json.dumps(row[name]) for name in _TEXTS})
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
            count += len(batch)
    return count


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            row = parsed(line)
            if not isinstance(row, dict) or not COLUMNS.keys() <= row.keys():
                raise InputError(f"{path}:{number}: is no row of a feedback export; export it again")
            yield row


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    _, pq = pyarrow()
    with path.open("rb") as raw, pq.ParquetFile(raw) as file:
        found = (file.schema_arrow.metadata or {}).get(b"classifier_export_version")
        if found != str(SCHEMA_VERSION).encode():
            raise InputError(
                f"{path}: is no feedback export of version {SCHEMA_VERSION}; export it again, or give "
                "rows of your own as JSON lines"
            )
        for batch in bounded_batches(file, raw, _BATCH):
            for row in batch.to_pylist():
                yield {**row, **{name: None if row[name] is None else json.loads(row[name]) for name in _TEXTS}}
