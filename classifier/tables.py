"""Rows of JSON lines and CSV → the columns of a table: what types they have, and what does not fit.

The types are those of the first rows: true or false, whole numbers, numbers, texts, and JSON text for everything nested
or mixed. A later value of another type, or of a column that was not there, goes whole into `classifier_extra`.

Pure but for `pyarrow`. Knows nothing of requests or files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from classifier.arrow import pyarrow
from classifier.labelled import COLUMNS, JSON_ENCODED, PREFIX, json_encoded
from classifier.texts import encodable, json_text

MAX_COLUMNS = 1000
_INT64 = 2**63


def infer_schema(rows: Iterable[Mapping[str, Any]], texts: Sequence[str] = ()) -> Any:
    """The Arrow schema of these rows.

    Args:
        rows: the first rows of the input, parsed.
        texts: columns that are texts whatever the rows say: those of CSV files.
    """
    kinds: dict[str, str] = {}
    for row in rows:
        for name, value in row.items():
            if value is None and name not in kinds:
                kinds[name] = ""
            elif value is not None:
                kinds[name] = _merged(kinds.get(name, ""), _kind(value))
    for name in texts:
        kinds[name] = _merged(kinds.get(name, ""), "string")
    pa, _ = pyarrow()
    types = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "string": pa.string(), "": pa.string()}
    fields = []
    labelled = COLUMNS.keys() <= kinds.keys()  # one of them alone is the log's own
    for name, kind in list(kinds.items())[:MAX_COLUMNS]:
        if (name.startswith(PREFIX) and not labelled) or name != encodable(name):
            continue
        metadata = JSON_ENCODED if kind == "json" else None
        fields.append(pa.field(name, types.get(kind, pa.string()), metadata=metadata))
    return pa.schema(fields)


def fill_columns(
    rows: Sequence[Mapping[str, Any]], schema: Any, extras: list[dict[str, Any]], moved: dict[str, int]
) -> list[Any]:
    """The rows as Arrow arrays of the schema's fields.

    Args:
        rows: parsed rows.
        schema: of the input's columns.
        extras: one a row: what does not fit is put there.
        moved: told how many values of which column did not fit.
    """
    pa, _ = pyarrow()
    encoded = json_encoded(schema)
    known = set(schema.names)
    for row, extra in zip(rows, extras, strict=True):
        for name, value in row.items():
            if name not in known:
                extra[name] = value
                moved[name] = moved.get(name, 0) + 1
    arrays = []
    for field in schema:
        fits: Callable[[Any], bool] = _FITS.get(str(field.type), _never)
        values: list[Any] = []
        for row, extra in zip(rows, extras, strict=True):
            value = row.get(field.name)
            if value is not None:
                if field.name in encoded:
                    value = json_text(value)
                elif not fits(value):
                    extra[field.name] = value
                    moved[field.name] = moved.get(field.name, 0) + 1
                    value = _nearest(value, str(field.type))
            values.append(value)
        arrays.append(pa.array(values, type=field.type))
    return arrays


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if -_INT64 <= value < _INT64 else "json"
    if isinstance(value, float):
        return "float"
    return "string" if isinstance(value, str) else "json"


def _merged(one: str, other: str) -> str:
    if not one or one == other:
        return other
    return "float" if {one, other} == {"int", "float"} else "json"


def _nearest(value: Any, kind: str) -> Any:
    """What stands in the column for a value kept elsewhere: a text without its lone surrogates, else nothing."""
    return encodable(value) if kind == "string" and isinstance(value, str) else None


def _never(_: Any) -> bool:
    return False


_FITS: Mapping[str, Callable[[Any], bool]] = {
    "bool": lambda v: isinstance(v, bool),
    "int64": lambda v: isinstance(v, int) and not isinstance(v, bool) and -_INT64 <= v < _INT64,
    "double": lambda v: isinstance(v, float) or (isinstance(v, int) and not isinstance(v, bool) and abs(v) <= 2**53),
    "string": lambda v: isinstance(v, str) and v == encodable(v),
}
