"""A chunk of raw rows → a labelled piece of the output: parse, classify one by one, put beside the input's columns.

The same code runs in a process of one machine, in an actor of a cluster, and with a server's client in place of the
engine, so all three answer alike. A row that cannot be classified is kept with its error. Among the last
`REMEMBERED` different inputs of a process, each is answered once: the model is deterministic.

Knows nothing of processes, files on disk, or the order in which chunks come.
"""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from classifier.arrow import plain_rows, pyarrow
from classifier.errors import ClassifierError, InvalidRequest
from classifier.inputs import ModelInput
from classifier.labelled import COLUMNS, PREFIX
from classifier.lines import RawRow, parse_line
from classifier.payloads import reads, recognise, request_of_row
from classifier.progress import Tally
from classifier.readers import Chunk
from classifier.tables import fill_columns
from classifier.texts import csv_lines, json_text
from classifier.types import MAX_LABEL_CHARS, Decision, Request, Scores

REMEMBERED = 65_536


class Answerer(Protocol):
    """What answers requests: an engine, or a server's client.

    Attributes:
        golden_ok: whether the bundle's golden inputs replayed here.
        repeats: requests so far whose input had just been answered.
    """

    golden_ok: bool
    repeats: int

    def answer(self, request: Request) -> Decision:
        """The decision, never explored.

        Raises:
            InvalidRequest: the request cannot be classified.
        """


class EngineAnswerer:
    """An engine that remembers what it answered last.

    Args:
        engine: a `classifier.Engine`, or what has its `golden_ok`, `prepare`, `score` and `decide`.
    """

    def __init__(self, engine: Any) -> None:
        self.golden_ok: bool = engine.golden_ok
        self.repeats = 0
        self._engine = engine
        self._scores: OrderedDict[bytes, Scores] = OrderedDict()

    def answer(self, request: Request) -> Decision:
        """As `Engine.classify` without a draw; the model runs once for one input."""
        prepared = self._engine.prepare(request)
        key = _digest(prepared.input)
        scores = self._scores.get(key)
        if scores is None:
            scores = self._scores[key] = self._engine.score(prepared)
            if len(self._scores) > REMEMBERED:
                self._scores.popitem(last=False)
        else:
            self._scores.move_to_end(key)
            self.repeats += 1
        decision: Decision = self._engine.decide(prepared, scores)
        return decision


def _digest(model_input: ModelInput) -> bytes:
    """16 bytes that stand for everything that the model reads."""
    parts = (model_input.text, model_input.context, *model_input.signals, str(model_input.truncated))
    return hashlib.blake2b("\0".join(parts).encode("utf-8", "replace"), digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class Plan:
    """How rows are read and written. Travels to every process.

    Attributes:
        row_format: one of `payloads.FORMATS`.
        text_field: the column of texts.
        policy: the policy's name.
        group_by: the column that the policy groups by, where it has groups and the text does not tell them.
        kind: of the output: parquet, jsonl or csv.
        schema: the output's Arrow schema, serialised; ours are the last columns.
        bundle_version: of the bundle that every answer must be by.
        calibration_revision: of its calibration.
    """

    row_format: str
    text_field: str
    policy: str
    group_by: str
    kind: str
    schema: bytes
    bundle_version: str
    calibration_revision: str


@dataclass(slots=True)
class _Row:
    """One row on its way: its columns, ours, among them where it is from, and what fits none."""

    values: Mapping[str, Any]
    ours: dict[str, Any]
    extra: dict[str, Any] = field(default_factory=dict)


class Labeller:
    """Labels chunks by a plan.

    Attributes:
        schema: the output's Arrow schema.
    """

    def __init__(self, answerer: Answerer, plan: Plan) -> None:
        pa, _ = pyarrow()
        self.answerer = answerer
        self.plan = plan
        self.schema = pa.ipc.read_schema(pa.py_buffer(plan.schema))
        self._inputs = pa.schema(list(self.schema)[: -len(COLUMNS)])

    def label(self, chunk: Chunk) -> tuple[bytes, Tally]:
        """The piece of the output that a chunk becomes, as `labelled.merge_pieces` takes it, and its tally.

        Raises:
            ClassifierError: an answer is by another bundle than the run's: the server, or the folder, has changed it.
        """
        tally, repeats = Tally(rows=len(chunk), golden_ok=self.answerer.golden_ok), self.answerer.repeats
        rows = [self._parsed(raw, tally) for raw in chunk.rows] if chunk.batch is None else self._table_rows(chunk)
        for row in rows:
            if row.ours["classifier_error"] is None:
                self._answer(row, tally)
        tally.repeats = self.answerer.repeats - repeats
        return self._written(rows, chunk.batch, tally), tally

    def _parsed(self, raw: RawRow, tally: Tally) -> _Row:
        """A raw row's columns, or its error."""
        row = _Row({}, _ours(raw.source, raw.number))
        error = raw.error
        if isinstance(raw.payload, dict):
            row.values = raw.payload
        elif raw.payload is not None and error:
            row.extra["line"] = _readable(raw.payload)
        elif raw.payload is not None:
            values, error = parse_line(raw.payload)
            if error:
                row.extra["line"] = _readable(raw.payload)
            row.values = values
        if error:
            self._fail(row, error, tally)
        return row

    def _table_rows(self, chunk: Chunk) -> list[_Row]:
        """The rows of a table with those columns that a format may look at."""
        wanted = {self.plan.text_field, self.plan.group_by}
        names = [name for name in chunk.batch.schema.names if name in wanted or reads(name)]
        found = plain_rows(chunk.batch.select(names))
        return [_Row(row, _ours(chunk.source, number)) for number, row in zip(chunk.numbers, found, strict=True)]

    def _answer(self, row: _Row, tally: Tally) -> None:
        plan, ours = self.plan, row.ours
        try:
            kind = recognise(row.values, plan.text_field) if plan.row_format == "auto" else plan.row_format
            labels = {}
            if plan.group_by and row.values.get(plan.group_by) is not None:
                labels = {plan.group_by: str(row.values[plan.group_by])[:MAX_LABEL_CHARS]}
            request = request_of_row(
                row.values, kind, text_field=plan.text_field, policy=plan.policy, labels=labels, record=False
            )
            decision = self.answerer.answer(request)
        except InvalidRequest as error:
            self._fail(row, str(error), tally)
            return
        except RecursionError:
            self._fail(row, "is nested too deeply", tally)
            return
        found = (decision.bundle_version, decision.calibration_revision)
        if found != (plan.bundle_version, plan.calibration_revision):
            raise ClassifierError(
                f"the bundle changed from {plan.bundle_version} to {decision.bundle_version} (calibration "
                f"{plan.calibration_revision} to {decision.calibration_revision}) during the run; one output never "
                "holds two: label again into another file"
            )
        tally.tiers[decision.tier.label] += 1
        tally.formats[kind] += 1
        ours["classifier_tier"] = decision.tier.label
        ours["classifier_probabilities"] = list(decision.probabilities)
        ours["classifier_reason"] = decision.reason.label
        ours["classifier_truncated"] = decision.truncated
        ours["classifier_input_tokens"] = decision.input_tokens
        ours["classifier_characters"] = request.characters

    def _fail(self, row: _Row, error: str, tally: Tally) -> None:
        row.ours["classifier_error"] = error
        tally.failed((row.ours["classifier_file"], row.ours["classifier_row"]), error)

    def _written(self, rows: Sequence[_Row], batch: Any, tally: Tally) -> bytes:
        if self.plan.kind == "jsonl":
            return b"".join(json_text(values).encode() + b"\n" for values in self._objects(rows, batch, tally))
        pa, _ = pyarrow()
        if self.plan.kind == "csv" and batch is not None:
            values = self._objects(rows, batch, tally)
            return csv_lines([[row.get(name) for name in self.schema.names] for row in values])
        extras = [row.extra for row in rows]
        if batch is None:
            arrays = fill_columns([row.values for row in rows], self._inputs, extras, tally.moved)
        else:
            arrays = [_column(batch, f, extras, tally.moved) for f in self._inputs]
        ours = [_encodable(row) for row in rows]
        for name, f in zip(COLUMNS, list(self.schema)[-len(COLUMNS) :], strict=True):
            arrays.append(pa.array([values[name] for values in ours], type=f.type))
        table = pa.RecordBatch.from_arrays(arrays, schema=self.schema)
        if self.plan.kind == "csv":
            return csv_lines([list(row.values()) for row in table.to_pylist()])
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, self.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_batch(table)
        return sink.getvalue()

    def _objects(self, rows: Sequence[_Row], batch: Any, tally: Tally) -> list[dict[str, Any]]:
        """Every row as one object: its columns, then ours."""
        values = [row.values for row in rows] if batch is None else plain_rows(batch)
        objects = []
        for row, columns in zip(rows, values, strict=True):
            for name in [name for name in columns if name.startswith(PREFIX)]:
                row.extra[name] = columns[name]
                tally.moved[name] += 1
            kept = {name: value for name, value in columns.items() if not name.startswith(PREFIX)}
            objects.append({**kept, **row.ours, "classifier_extra": row.extra or None})
        return objects


def _column(batch: Any, wanted: Any, extras: list[dict[str, Any]], moved: dict[str, int]) -> Any:
    """A column of a batch in the output's type; nulls where the file has none, or where a value does not fit it.

    Args:
        batch: of one file.
        wanted: the output's field, of the type that all files fit into.
        extras: one a row: what does not fit is put there.
        moved: told how many values of which column did not fit.
    """
    pa, _ = pyarrow()
    if wanted.name not in batch.schema.names:
        return pa.nulls(batch.num_rows, wanted.type)
    column = batch.column(wanted.name)
    if column.type == wanted.type:
        return column
    try:
        return column.cast(wanted.type)
    except pa.ArrowException:
        cells = [column.slice(i, 1) for i in range(len(column))]
    for i, cell in enumerate(cells):
        try:
            cells[i] = cell.cast(wanted.type)
        except pa.ArrowException:
            cells[i] = pa.nulls(1, wanted.type)
            if cell.null_count:
                continue
            [extras[i][wanted.name]] = plain_rows(pa.RecordBatch.from_arrays([cell], [wanted.name]))[0].values()
            moved[wanted.name] = moved.get(wanted.name, 0) + 1
    return pa.concat_arrays(cells)


def _ours(source: str, number: int) -> dict[str, Any]:
    """Our columns of a row of which nothing is known but where it is from."""
    return {**dict.fromkeys(COLUMNS), "classifier_file": source, "classifier_row": number}


def _encodable(row: _Row) -> dict[str, Any]:
    """Our columns of a row as Arrow takes them."""
    told = {n: v.encode("utf-8", "backslashreplace").decode() if isinstance(v, str) else v for n, v in row.ours.items()}
    return told | {"classifier_extra": json_text(row.extra) if row.extra else None}


def _readable(line: bytes) -> str:
    return line.rstrip(b"\r\n").decode("utf-8", "backslashreplace")
