"""What a labelling run is about, on one machine or a cluster: what it reads, by whom the answers are, which columns.

Knows nothing of processes, of pieces, or of how rows are labelled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from classifier.answering import Identity
from classifier.arrow import pyarrow
from classifier.errors import InputError
from classifier.labelled import LABEL_VERSION
from classifier.labelling import Plan
from classifier.lines import DELIMITERS, MAX_ROW_BYTES, parse_line
from classifier.readers import ALL, CHUNK_BYTES, CHUNK_ROWS, CUTS, Chunk, Selection, csv_header, parquet_schema
from classifier.sources import Source
from classifier.tables import infer_schema

HEAD_CHUNKS = 10
"""The columns of lines are those of the first so many chunks."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a run reads and what it is allowed to use.

    Attributes:
        row_format: one of `payloads.FORMATS`.
        text_field: the column of texts.
        policy: the policy's name; empty is the default.
        selection: which rows.
        processes: how many; None means the cores there are.
    """

    row_format: str = "auto"
    text_field: str = "prompt"
    policy: str = ""
    selection: Selection = ALL
    processes: int | None = None


def stated_of(sources: Sequence[Source], identity: Identity, options: Options) -> dict[str, Any]:
    """What a run is about, for its manifest."""
    from classifier.session import onnxruntime_version

    return {
        "label_version": LABEL_VERSION,
        "facts": identity.facts(),
        "inputs": [[source.name, source.size, source.stamp] for source in sources],
        "format": options.row_format,
        "text_field": options.text_field,
        "share": options.selection.share,
        "limit": options.selection.limit,
        "chunks": [CHUNK_ROWS, CHUNK_BYTES, MAX_ROW_BYTES, CUTS],
        "onnxruntime": onnxruntime_version(),
    }


def plan_of(options: Options, identity: Identity, kind: str, schema: Any) -> Plan:
    """How every process reads and writes rows."""
    return Plan(
        row_format=options.row_format,
        text_field=options.text_field,
        policy=identity.policy,
        group_by=identity.group_by,
        kind=kind,
        schema=schema.serialize().to_pybytes(),
        bundle_version=identity.bundle_version,
        calibration_revision=identity.calibration_revision,
    )


def input_schema(sources: Sequence[Source], head: Sequence[Chunk]) -> Any:
    """The Arrow schema of the input's columns: of its tables, or of its first lines.

    Raises:
        InputError: tables and lines are mixed, or tables do not fit one another.
    """
    pa, _ = pyarrow()
    tables = [source for source in sources if source.container == "parquet"]
    if tables and len(tables) < len(sources):
        other = next(source for source in sources if source.container != "parquet")
        raise InputError(f"{tables[0].name} is Parquet and {other.name} is not; label them into two outputs")
    if tables:
        found = {source.name: parquet_schema(source) for source in tables}
        schemas = [schema for schema in found.values() if schema is not None]
        for name, schema in found.items():
            if twice := [column for column, n in Counter(schema.names if schema else ()).items() if n > 1]:
                raise InputError(f"{name}: has several columns {twice[0]!r}; rename all but one of them")
        try:
            return pa.unify_schemas(schemas, promote_options="permissive") if schemas else pa.schema([])
        except pa.ArrowException as error:
            raise InputError(f"the Parquet files do not fit one another ({error}); label them apart") from error
    texts = list(dict.fromkeys(chain.from_iterable(csv_header(s) for s in sources if s.container in DELIMITERS)))
    rows = (row for chunk in head for row in chunk.rows)
    parsed = (parse_line(row.payload)[0] for row in rows if isinstance(row.payload, bytes) and not row.error)
    return infer_schema(parsed, texts)
