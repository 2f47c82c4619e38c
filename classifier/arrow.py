"""Arrow tables → plain values that JSON and CSV can hold, whatever the columns' types; a damaged cell costs no row.

Knows nothing of files or of what the columns mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from classifier.errors import MissingExtra


def pyarrow() -> tuple[Any, Any]:
    """The modules `pyarrow` and `pyarrow.parquet`.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtra(
            "Parquet and logs in bulk need pyarrow; "
            "pip install 'request-complexity-classifier[bulk]', or [report] for reports"
        ) from None
    return pa, pq


def type_of(name: str) -> Any:
    """The Arrow type of a name such as `string`, `int64`, `float` (32 bits), `double` or `list<float>`."""
    pa, _ = pyarrow()
    inner = name.removeprefix("list<").removesuffix(">")
    return pa.type_for_alias(name) if inner == name else pa.list_(type_of(inner))


def rows_at(batch: Any, places: Sequence[int]) -> Any:
    """The rows of a record batch at these places, in their order. Arrow's own `take` knows no views of texts."""
    pa, _ = pyarrow()
    try:
        return batch.take(pa.array(places, pa.int64()))
    except pa.ArrowNotImplementedError:
        table = pa.Table.from_batches([batch.slice(place, 1) for place in places], batch.schema).combine_chunks()
        return next(iter(table.to_batches()), batch.slice(0, 0))


def plain_rows(batch: Any) -> list[dict[str, Any]]:
    """The rows of a record batch: texts, numbers, true and false, None, dates and times, lists and dictionaries.

    Times in nanoseconds are texts, because Python's have microseconds; durations are whole numbers of the column's
    unit; bytes are texts, what is no UTF-8 in them escaped.
    """
    names = batch.schema.names
    columns = [_values(column) for column in batch.columns]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)] or [{}] * batch.num_rows


def _values(column: Any) -> list[Any]:
    pa, _ = pyarrow()
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return [None if value is None else value.decode("utf-8", "backslashreplace") for value in column.to_pylist()]
    wanted = _told(column.type)
    try:
        column = column if wanted == column.type else column.cast(wanted)
        values: list[Any] = column.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError):
        return [_value(scalar) for scalar in column]
    return values


def _told(kind: Any) -> Any:
    """The type to which values of this one are cast before Python sees them."""
    pa, _ = pyarrow()
    types = pa.types
    if types.is_timestamp(kind) or types.is_time64(kind):
        return pa.string() if kind.unit == "ns" else kind
    if types.is_duration(kind):
        return pa.int64()
    if types.is_struct(kind):
        return pa.struct([field.with_type(_told(field.type)) for field in kind])
    if types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_told(kind.value_type)))
    return kind


def _value(scalar: Any) -> Any:
    """A value by itself, where its column holds one that Python has no type for: that one becomes a text."""
    pa, _ = pyarrow()
    try:
        return scalar.as_py()
    except (ValueError, OverflowError):
        pass
    try:
        return scalar.cast(pa.string()).as_py()
    except pa.ArrowException:
        return None


def decodable(batch: Any) -> Any:
    """The batch with what is no UTF-8 in its texts replaced, nested ones too, so that a damaged cell costs no row.

    Raises:
        pyarrow.ArrowInvalid: it is damaged beyond that.
    """
    pa, _ = pyarrow()
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        columns = []
        for column in batch.columns:
            raw = _undecoded(column.type)
            if raw != column.type:
                values = [_decoded(value, column.type) for value in column.cast(raw).to_pylist()]
                column = pa.array(values, column.type)  # noqa: PLW2901
            columns.append(column)
        batch = pa.RecordBatch.from_arrays(columns, schema=batch.schema)
        batch.validate(full=True)
    return batch


def longest_texts(batch: Any) -> int:
    """Bytes of the longest text of each dictionary in a record batch, nested ones too, together."""
    return sum(map(_longest, batch.columns))


def _longest(column: Any) -> int:
    pa, _ = pyarrow()
    import pyarrow.compute as pc

    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _longest(column.storage)
    if pa.types.is_dictionary(kind):
        return int(pc.max(pc.binary_length(column.dictionary)).as_py() or 0)
    if pa.types.is_map(kind):
        return _longest(column.keys) + _longest(column.items)
    if pa.types.is_struct(kind):
        return sum(_longest(column.field(i)) for i in range(kind.num_fields))
    return _longest(column.values) if _is_list(kind) else 0


def _undecoded(kind: Any) -> Any:
    """The type with bytes in place of texts."""
    pa, _ = pyarrow()
    types = pa.types
    if _is_text(kind):
        return pa.large_binary() if types.is_large_string(kind) else pa.binary()
    if types.is_dictionary(kind):
        values = _undecoded(kind.value_type)
        return kind if values == kind.value_type else values
    if types.is_struct(kind):
        return pa.struct([field.with_type(_undecoded(field.type)) for field in kind])
    if types.is_map(kind):
        return pa.map_(_undecoded(kind.key_type), _undecoded(kind.item_type))
    if _is_list(kind):
        field = kind.value_field.with_type(_undecoded(kind.value_type))
        if types.is_fixed_size_list(kind):
            return pa.list_(field, kind.list_size)
        return pa.large_list(field) if types.is_large_list(kind) else pa.list_(field)
    return kind


def _decoded(value: Any, kind: Any) -> Any:
    """A value of `_undecoded(kind)` as one of `kind`."""
    pa, _ = pyarrow()
    types = pa.types
    if types.is_dictionary(kind):
        return _decoded(value, kind.value_type)
    if isinstance(value, bytes) and _is_text(kind):
        return value.decode("utf-8", "replace")
    if isinstance(value, list) and types.is_map(kind):
        return [(_decoded(key, kind.key_type), _decoded(item, kind.item_type)) for key, item in value]
    if isinstance(value, list) and _is_list(kind):
        return [_decoded(item, kind.value_type) for item in value]
    if isinstance(value, dict) and types.is_struct(kind):
        return {field.name: _decoded(value[field.name], field.type) for field in kind}
    return value


def _is_text(kind: Any) -> bool:
    types = pyarrow()[0].types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_list(kind: Any) -> bool:
    types = pyarrow()[0].types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))
