"""Log files → chunks of raw rows: JSON lines, CSV and Parquet, packed or plain; files, folders, globs, fsspec
URLs, standard input. The home of `pyarrow` for reading.

Theory of operation. What is read is cut into chunks of at most `CHUNK_ROWS` rows and about `CHUNK_BYTES` bytes, always
at the same places, so that a run that was stopped meets the same chunks again. Lines are handed on as bytes: parsing
them is work for the processes that label. A line that is too long is passed over without being held (`lines`). What is
damaged (a line, a row, the rest of a file) becomes a raw row with an error; what is not there, or cannot be reached,
ends the run.

Knows nothing of requests, formats of rows, models or outputs.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any

from classifier.arrow import decodable, pyarrow, rows_at
from classifier.errors import InputError
from classifier.lines import DELIMITERS, RawRow, csv_rows, header_of, json_rows
from classifier.packed import Broken, unpacked
from classifier.progress import Position
from classifier.row_groups import bounded_batches
from classifier.sources import STDIN, Source

CHUNK_ROWS = 1000
CHUNK_BYTES = 4 * 2**20
CUTS = 11
"""Raised whenever the same files become other rows or chunks, so that no run goes on with pieces of another cut."""
_BLOCK = 2**20
_FEW_ROWS = 50
"""Rows of a table that are decoded at once; fewer cost time, more memory where they are large."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows that are labelled together, in order.

    Attributes:
        index: 0, 1, 2… in the order of the input.
        rows: raw rows; empty for a chunk of a table.
        batch: an Arrow record batch, or None.
        source: the table's file.
        numbers: the rows of the table, from 1; those that were not sampled are left out.
    """

    index: int
    rows: tuple[RawRow, ...] = ()
    batch: Any = None
    source: str = ""
    numbers: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.numbers) if self.batch is not None else len(self.rows)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows are read.

    Attributes:
        share: share of the rows, in (0, 1], drawn by a hash of file and number: the same rows every time.
        limit: the first so many of those; None means all.
    """

    share: float = 1.0
    limit: int | None = None

    def keeps(self, source: str, number: int) -> bool:
        """Whether the share takes this row."""
        if self.share >= 1:
            return True
        digest = hashlib.blake2b(f"{source}\0{number}".encode("utf-8", "surrogateescape"), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.share * 2**64


ALL = Selection()


def read_chunks(
    sources: Iterable[Source],
    *,
    row_format: str = "auto",
    selection: Selection = ALL,
    position: Position | None = None,
) -> Iterator[Chunk]:
    """The chunks of all sources, in order; at most one of them is in memory.

    Args:
        sources: from `find_sources`.
        row_format: as `payloads.FORMATS`; OTLP exports, many spans a line, are taken apart for `auto` and `otel`.
        selection: which rows.
        position: told how far the reading is.

    Raises:
        InputError: a source is gone or cannot be reached.
        MissingExtra: reading it needs what is not installed.
    """
    position = position or Position()
    left = sys.maxsize if selection.limit is None else selection.limit
    indices = itertools.count()
    pending: list[RawRow] = []
    size = 0
    for source in sources if left > 0 else ():
        for item in _items(source, row_format, position):
            if left <= 0:
                break
            if isinstance(item, Chunk):
                chunk = _selected(item, selection, left)
                if pending:
                    yield Chunk(next(indices), tuple(pending))
                    pending, size = [], 0
                if len(chunk):
                    left -= len(chunk)
                    position.rows += len(chunk)
                    yield replace(chunk, index=next(indices))
                continue
            if not selection.keeps(item.source, item.number):
                continue
            weight = _weight(item.payload)
            if pending and (len(pending) >= CHUNK_ROWS or size + weight > CHUNK_BYTES):
                yield Chunk(next(indices), tuple(pending))
                pending, size = [], 0
            pending.append(item)
            size += weight
            left -= 1
            position.rows += 1
        position.done, position.current = position.done + (source.size or 0), 0
    if pending:
        yield Chunk(next(indices), tuple(pending))


def _items(source: Source, row_format: str, position: Position) -> Iterator[RawRow | Chunk]:
    if source.container == "parquet":
        return _read_parquet(source, position)
    return read_rows(source, row_format=row_format, position=position)


def _selected(chunk: Chunk, selection: Selection, left: int) -> Chunk:
    """The rows of a table's chunk that are wanted, at most `left`."""
    places = [i for i, number in enumerate(chunk.numbers) if selection.keeps(chunk.source, number)][:left]
    if len(places) == len(chunk.numbers):
        return chunk
    return replace(chunk, batch=rows_at(chunk.batch, places), numbers=tuple(chunk.numbers[i] for i in places))


def read_rows(source: Source, *, row_format: str = "auto", position: Position | None = None) -> Iterator[RawRow]:
    """The raw rows of a source of lines or of CSV.

    Raises:
        InputError: it is gone or cannot be reached.
    """
    position = position or Position()
    number = 0
    try:
        with _opened(source) as raw:
            file = unpacked(raw)
            if delimiter := DELIMITERS.get(source.container):
                rows = csv_rows(file, source.name, delimiter)
            else:
                rows = json_rows(file, source.name, row_format)
            for row in rows:
                number = row.number
                if not number % 256:
                    position.current = _tell(raw)
                yield row
    except OSError as error:
        raise _unreachable(source, error) from error
    except Broken as error:
        yield _rest_of(source, number, error)
    except Exception as error:
        if source.url:  # every store has errors of its own
            raise _unreachable(source, error) from error
        raise


def csv_header(source: Source) -> list[str]:
    """Names of the columns of a CSV source; empty where they cannot be read.

    Raises:
        InputError: it is gone or cannot be reached.
    """
    with _opened(source) as raw:
        try:
            return header_of(unpacked(raw), DELIMITERS[source.container])
        except (OSError, Broken, ValueError):
            return []  # whoever reads the rows says so


def _read_parquet(source: Source, position: Position) -> Iterator[RawRow | Chunk]:
    """The chunks of a Parquet file; a raw row with an error where it is damaged."""
    held: list[Any] = []
    rows = size = 0
    first = 1
    for found in _batches(source, position):
        broken = isinstance(found, RawRow)
        for part in (found,) if broken else _parted(found, CHUNK_ROWS - rows):
            more, weight = (0, 0) if broken else (part.num_rows, _decoded_bytes(part))
            if held and (broken or rows + more > CHUNK_ROWS or size + weight > CHUNK_BYTES):
                yield Chunk(0, batch=_joined(held), source=source.name, numbers=range(first, first + rows))
                first, held, rows, size = first + rows, [], 0, 0
            if broken:
                yield part
            else:
                held.append(part)
                rows, size = rows + more, size + weight
    if held:
        yield Chunk(0, batch=_joined(held), source=source.name, numbers=range(first, first + rows))


def _parted(batch: Any, first: int) -> Iterator[Any]:
    """The first rows of the batch, and the others."""
    for part in (batch.slice(0, first), batch.slice(first)):
        if part.num_rows:
            yield part


def _batches(source: Source, position: Position) -> Iterator[Any]:
    """Record batches of a few rows of a Parquet file, or of one that is large; last a raw row where it is damaged."""
    pa, pq = pyarrow()
    last = 0
    try:
        with _opened(source) as raw, pq.ParquetFile(raw, buffer_size=_BLOCK, pre_buffer=False) as file:
            for found in bounded_batches(file, raw, _FEW_ROWS):
                yield from _halved(decodable(found))
                last += found.num_rows
                position.current = (source.size or 0) * last // max(1, file.metadata.num_rows)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise _unreachable(source, error) from error
        yield _rest_of(source, last, error)


def _halved(batch: Any) -> Iterator[Any]:
    """The batch in parts of at most `CHUNK_BYTES`, or of one row."""
    half = batch.num_rows // 2
    if half and _decoded_bytes(batch) > CHUNK_BYTES:
        yield from _halved(batch.slice(0, half))
        yield from _halved(batch.slice(half))
    elif batch.num_rows:
        yield batch


def _decoded_bytes(batch: Any) -> int:
    """Size of a batch when each value stands for itself."""
    pa, _ = pyarrow()
    columns = (c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns)
    return sum(column.nbytes for column in columns)


def _joined(batches: list[Any]) -> Any:
    """The batches as one, copied: one that is part of a larger one would travel with all of it."""
    pa, _ = pyarrow()
    table = pa.Table.from_batches([batches[0].slice(0, 0), *batches])
    [joined] = table.combine_chunks().to_batches()
    return joined


def parquet_schema(source: Source) -> Any:
    """The Arrow schema of a Parquet source; None where its footer is damaged.

    Raises:
        InputError: it is gone or cannot be reached.
    """
    pa, pq = pyarrow()
    try:
        with _opened(source) as raw:
            return pq.read_schema(raw)
    except (pa.ArrowException, ValueError):
        return None
    except OSError as error:
        if error.errno is None:
            return None
        raise InputError(f"{source.name}: cannot be read ({error.strerror})") from error


def _unreachable(source: Source, error: Exception) -> InputError:
    """What to say of a source that cannot be reached."""
    reason = getattr(error, "strerror", None) or type(error).__name__
    first = "see to the rights, then " if isinstance(error, PermissionError) else ""
    return InputError(f"{source.name}: cannot be read ({reason}); {first}run the same command again to go on")


def _rest_of(source: Source, number: int, error: BaseException) -> RawRow:
    detail = str(error).split("\n", 1)[0][:120] or type(error).__name__
    return RawRow(source.name, number + 1, None, f"the rest of the file cannot be read ({detail})")


def _opened(source: Source) -> IO[bytes]:
    if source.name == STDIN:
        return io.BufferedReader(io.FileIO(sys.stdin.fileno(), closefd=False), _BLOCK)
    try:
        return source.open()
    except FileNotFoundError:
        raise InputError(
            f"{source.name}: is gone since the run began; put it back and run the same command again"
        ) from None


def _tell(raw: IO[bytes]) -> int:
    try:
        return raw.tell()
    except (OSError, ValueError):
        return 0


def _weight(payload: bytes | dict[str, str] | None) -> int:
    return sum(map(len, payload.values())) if isinstance(payload, dict) else len(payload or b"")
