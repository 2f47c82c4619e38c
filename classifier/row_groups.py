"""The rows of a Parquet file, as many at once as fit into memory, whatever the file says of its size.

What a file says counts a text once that many rows share. So where texts could be long the longest of each dictionary is
looked up; of texts that are stored by what they share with the one before, all of a row group is taken to be one.

Knows nothing of what the columns mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import IO, Any

from classifier.arrow import longest_texts, pyarrow

DECODED_BYTES = 64 * 2**20
"""What the rows that are decoded together may become."""
_BLOCK = 2**20


def bounded_batches(file: Any, raw: IO[bytes], rows: int, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """Record batches, none over two row groups.

    Args:
        file: a `pyarrow.parquet.ParquetFile`.
        raw: what it reads from.
        rows: of a batch, at most.
        columns: names of those to read; None means all.

    Raises:
        pyarrow.ArrowException, OSError: it is damaged.
    """
    for group in range(file.num_row_groups):
        fit = _rows_that_fit(raw, file.metadata, group, rows, columns)
        yield from file.iter_batches(fit, row_groups=[group], columns=columns, use_threads=False)


def _rows_that_fit(raw: IO[bytes], facts: Any, group: int, rows: int, columns: Sequence[str] | None) -> int:
    _, pq = pyarrow()
    of_group = facts.row_group(group)
    found = map(of_group.column, range(of_group.num_columns))
    wanted = "" if columns is None else tuple(f"{name}." for name in columns)
    read = [c for c in found if f"{c.path_in_schema}.".startswith(wanted)]
    rows = max(1, min(rows, DECODED_BYTES * of_group.num_rows // max(1, sum(c.total_uncompressed_size for c in read))))
    texts = [c for c in read if c.physical_type == "BYTE_ARRAY"]
    if rows * sum(c.total_uncompressed_size for c in texts) <= DECODED_BYTES:
        return rows
    most: int = sum(c.total_uncompressed_size for c in texts if "DELTA_BYTE_ARRAY" in c.encodings)
    names = [c.path_in_schema for c in texts if "DELTA_BYTE_ARRAY" not in c.encodings]
    with pq.ParquetFile(raw, metadata=facts, read_dictionary=names, buffer_size=_BLOCK, pre_buffer=False) as file:
        batches = file.iter_batches(1, row_groups=[group], columns=names, use_threads=False)
        most += sum(map(longest_texts, islice(batches, 1)))
    return max(1, min(rows, DECODED_BYTES // max(1, most)))
