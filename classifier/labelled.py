"""The labelled output on disk: the input's columns and ours, as Parquet, JSON lines or CSV; merged, and read back.

`COLUMNS` are ours. `classifier_file` and `classifier_row` are the order key. What stands in a text column whose field
says `classifier_encoding: json` is JSON (nested values of JSON lines); what did not fit its column is in
`classifier_extra`, an object, and is put back when rows are read. Facts of the run (`answering.Identity.facts`) are in
the Parquet file's metadata, for the other two in the manifest beside them. docs/bulk.md is the page for users.

Knows nothing of engines, requests or how the pieces are made. The home of `pyarrow` for labelled files.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from classifier.arrow import plain_rows, pyarrow, rows_at, type_of
from classifier.errors import InputError
from classifier.row_groups import bounded_batches
from classifier.run_manifest import CLUSTER_MANIFEST, manifest_path, read_manifest, schema_of
from classifier.texts import csv_lines

PREFIX = "classifier_"
COLUMNS: Mapping[str, str] = {
    "classifier_file": "string",
    "classifier_row": "int64",
    "classifier_tier": "string",
    "classifier_probabilities": "list<float>",
    "classifier_reason": "string",
    "classifier_truncated": "bool",
    "classifier_input_tokens": "int32",
    "classifier_characters": "int64",
    "classifier_error": "string",
    "classifier_extra": "string",
}
"""Name and type of our columns, in order; all but the first two are null where they say nothing."""

LABEL_VERSION = "1"
KINDS = {".parquet": "parquet", ".jsonl": "jsonl", ".csv": "csv"}
JSON_ENCODED = {b"classifier_encoding": b"json"}
GROUP_ROWS = 32_768
GROUP_BYTES = 64 * 2**20
"""A row group of the output holds at most so many rows and about so many bytes of Arrow memory."""
THIN_FROM, THIN_STEP = 1000, 100
"""Of a thinned file every row before the one is read, and after it those whose position the other divides."""


def kind_of(path: str) -> str:
    """parquet, jsonl or csv, by the name's end.

    Raises:
        InputError: it is none of them.
    """
    kind = KINDS.get(Path(path).suffix)
    if kind is None:
        raise InputError(f"{path}: expected a name that ends in {', '.join(KINDS)}")
    return kind


def our_fields() -> list[Any]:
    """Our columns as Arrow fields."""
    pa, _ = pyarrow()
    return [pa.field(name, type_of(kind)) for name, kind in COLUMNS.items()]


def output_schema(inputs: Any, facts: Mapping[str, str]) -> Any:
    """The output's Arrow schema: the input's fields, ours, and the facts as metadata.

    Raises:
        InputError: the input has columns of our names: it was labelled before.
    """
    pa, _ = pyarrow()
    if taken := [name for name in inputs.names if name.startswith(PREFIX)]:
        raise InputError(
            f"the input has a column {taken[0]}: it was labelled before; apply another policy with 'classifier "
            "relabel', or drop the columns classifier_*"
        )
    return with_facts(pa.schema([*inputs, *our_fields()], metadata=inputs.metadata), facts)


def with_facts(schema: Any, facts: Mapping[str, str]) -> Any:
    """The schema with the facts in its metadata, over those that it had."""
    encoded = {name.encode(): value.encode() for name, value in facts.items()}
    return schema.with_metadata({**(schema.metadata or {}), **encoded})


def merge_pieces(pieces: Iterable[bytes], file: IO[bytes], kind: str, schema: Any) -> None:
    """Writes the pieces of an output into one file, in their order: the same bytes for the same pieces, always.

    Args:
        pieces: for Parquet Arrow IPC streams of `schema`, else lines.
        file: where to.
        kind: parquet, jsonl or csv.
        schema: from `output_schema`; for CSV its names are the header.
    """
    if kind == "csv":
        file.write(csv_lines([schema.names]))
    if kind != "parquet":
        for piece in pieces:
            file.write(piece)
        return
    pa, pq = pyarrow()
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        group: list[Any] = []
        rows = size = 0
        for piece in pieces:
            table = pa.ipc.open_stream(piece).read_all()
            if group and (rows + table.num_rows > GROUP_ROWS or size + table.nbytes > GROUP_BYTES):
                _write_group(writer, group)
                group, rows, size = [], 0, 0
            group.append(table)
            rows, size = rows + table.num_rows, size + table.nbytes
        if group:
            _write_group(writer, group)


def _write_group(writer: Any, tables: list[Any]) -> None:
    pa, _ = pyarrow()
    table = pa.concat_tables(tables).unify_dictionaries()
    writer.write_table(table, row_group_size=max(1, table.num_rows))


@dataclass(frozen=True, slots=True)
class Labelled:
    """A labelled output, to read.

    Attributes:
        path: the file, or the folder of a cluster's run.
        kind: parquet, jsonl or csv.
        facts: of the run, by their names without the prefix, such as "bundle_version" and "policy".
        names: the columns, and what else its manifest says that values were moved from.
    """

    path: Path
    kind: str
    facts: Mapping[str, str]
    names: tuple[str, ...]

    @property
    def files(self) -> list[Path]:
        """The files, in the order of the input."""
        return sorted(self.path.glob("*.parquet")) if self.path.is_dir() else [self.path]

    def rows(self, columns: Sequence[str] | None = None, *, thinned: bool = False) -> Iterator[dict[str, Any]]:
        """Every row, in the order of the input, with nested values opened and each value in its column.

        Memory does not grow with the file.

        Args:
            columns: those to read; None means all. One that is not there is left out.
            thinned: read `THIN_FROM` rows of each file and a part of the others: enough to learn what is in it.

        Raises:
            InputError: a file is damaged.
        """
        wanted = None if columns is None else set(columns)
        read = None if wanted is None else wanted | {"classifier_error", "classifier_extra"}
        for file in self.files:
            if self.kind == "parquet":
                rows = _parquet_rows(file, read, thinned)
            else:
                rows = (_json_rows if self.kind == "jsonl" else _csv_rows)(file, thinned)
            with undamaged(file):
                for row in map(restored, rows):
                    yield row if wanted is None else {name: row[name] for name in row if name in wanted}


@contextlib.contextmanager
def undamaged(path: Path) -> Iterator[None]:
    """Says that a labelled file is damaged where its rows cannot be read as they were written.

    Raises:
        InputError: in place of what JSON, CSV or Parquet raised.
    """
    try:
        yield
    except (OSError, LookupError, TypeError, ValueError, AttributeError, RecursionError, csv.Error) as error:
        if isinstance(error, OSError) and error.errno is not None:  # Arrow's own has none
            raise
        raise InputError(
            f"{path}: is damaged, or was changed since it was labelled ({type(error).__name__}); label again"
        ) from error


def restored(row: dict[str, Any]) -> dict[str, Any]:
    """A row with what did not fit its column back in it; of a bad row it stays beside.

    >>> restored({"n": None, "classifier_error": None, "classifier_extra": {"n": "x"}})["n"]
    'x'
    """
    extra = row.get("classifier_extra")
    if not extra or row.get("classifier_error") is not None:
        return row
    empty = {name for name in extra if not name.startswith(PREFIX) and row.get(name) in (None, "")}
    return {**row, **{name: extra[name] for name in empty}}


def open_labelled(path: str | Path) -> Labelled:
    """A labelled output: `.parquet`, `.jsonl` or `.csv`, or a folder of Parquet files from a cluster.

    Raises:
        InputError: it is not there, or was not made by `classifier label`.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: is not there; 'classifier label' makes it")
    try:
        if path.is_dir() or path.suffix == ".parquet":
            return _open_parquet(path)
        kind = kind_of(str(path))
        manifest = read_manifest(manifest_path(path))
        if manifest is None:
            raise InputError(
                f"{path}: has no {manifest_path(path).name} beside it, which 'classifier label' makes; copy it along, "
                "or label again"
            )
        facts, names = manifest["facts"], _names(schema_of(manifest), manifest)
        path.open("rb").close()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: cannot be read as labelled rows ({type(error).__name__}: {str(error)[:120]}); label again"
        ) from error
    return Labelled(path, kind, {name.removeprefix(PREFIX): str(facts[name]) for name in facts}, names)


def _names(schema: Any, manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns, and those from which values were moved because they are no columns."""
    moved = (manifest.get("complete") or {}).get("moved", ())
    return tuple(dict.fromkeys([*schema.names, *(name for name in moved if not name.startswith(PREFIX))]))


def _open_parquet(path: Path) -> Labelled:
    pa, pq = pyarrow()
    file = min(path.glob("*.parquet"), default=None) if path.is_dir() else path
    if file is None:
        raise InputError(f"{path}: holds no Parquet file; 'classifier label --engine ray' fills such a folder")
    beside = path / CLUSTER_MANIFEST if path.is_dir() else manifest_path(path)
    manifest = read_manifest(beside)
    if path.is_dir() and manifest is not None and not manifest.get("complete"):
        raise InputError(f"{path}: is not complete; run the same 'classifier label --engine ray' again to finish it")
    try:
        with file.open("rb") as raw:  # Arrow opens no name that is not UTF-8
            schema = pq.read_schema(raw)
    except pa.ArrowException as error:
        raise InputError(f"{file}: is no Parquet file ({str(error)[:120]})") from error
    metadata = {k.decode(): v.decode() for k, v in (schema.metadata or {}).items() if k.startswith(PREFIX.encode())}
    if metadata.get("classifier_label_version") != LABEL_VERSION:
        raise InputError(f"{file}: is no output of 'classifier label' (version {LABEL_VERSION}); label it first")
    facts = {name.removeprefix(PREFIX): value for name, value in metadata.items()}
    return Labelled(path, "parquet", facts, _names(schema, manifest or {}))


def json_encoded(schema: Any) -> set[str]:
    """Names of the text columns that hold JSON."""
    return {field.name for field in schema if JSON_ENCODED.items() <= (field.metadata or {}).items()}


def opened_rows(batch: Any) -> Iterator[dict[str, Any]]:
    """The rows of a record batch of an output, with its JSON opened."""
    encoded = (json_encoded(batch.schema) | {"classifier_extra"}) & set(batch.schema.names)
    for row in plain_rows(batch):
        for name in encoded:
            row[name] = None if row[name] is None else json.loads(row[name])
        yield row


def _parquet_rows(path: Path, wanted: set[str] | None, thinned: bool) -> Iterator[dict[str, Any]]:
    _, pq = pyarrow()
    position = 0
    with path.open("rb") as raw, pq.ParquetFile(raw, pre_buffer=False) as file:
        names = None if wanted is None else [name for name in file.schema_arrow.names if name in wanted]
        for batch in bounded_batches(file, raw, 1000, names):
            picked = [i for i in range(batch.num_rows) if not thinned or _picked(position + i)]
            position += batch.num_rows
            yield from opened_rows(rows_at(batch, picked) if thinned else batch)


def _picked(position: int) -> bool:
    """Whether a row is read of a thinned file."""
    return position < THIN_FROM or position % THIN_STEP == 0


def _json_rows(path: Path, thinned: bool) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for position, line in enumerate(file):
            if not thinned or _picked(position):
                yield json.loads(line)


_CSV_KINDS: Mapping[str, Callable[[str], Any]] = {
    "int64": int,
    "int32": int,
    "bool": lambda text: text == "true",
    "list<float>": json.loads,
}


def _csv_rows(path: Path, thinned: bool) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8", newline="") as file:
        for position, row in enumerate(csv.DictReader(file)):
            if thinned and not _picked(position):
                continue
            values: dict[str, Any] = dict(row)
            if None in values or None in values.values():
                raise ValueError("another number of fields than columns")
            for name, kind in COLUMNS.items():
                text = row.get(name)
                values[name] = None if not text else _CSV_KINDS.get(kind, str)(text)
            values["classifier_extra"] = json.loads(values["classifier_extra"]) if values["classifier_extra"] else None
            yield values
