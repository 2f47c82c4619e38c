"""Columns of every type → plain values, with what Python has no type for, with damage, and without pandas."""

from __future__ import annotations

import datetime as dt
import decimal
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from classifier.arrow import decodable, plain_rows, pyarrow, rows_at
from classifier.errors import MissingExtra

MOMENT = 1_767_225_600_123_456_789


def batch(**columns):
    """A record batch of one row."""
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (pa.array([MOMENT], pa.timestamp("ns")), "2026-01-01 00:00:00.123456789"),
        (pa.array([MOMENT], pa.timestamp("ns", "UTC")), "2026-01-01 00:00:00.123456789Z"),
        (pa.array([{"at": MOMENT}], pa.struct({"at": pa.timestamp("ns")})), {"at": "2026-01-01 00:00:00.123456789"}),
        (pa.array([[MOMENT]], pa.list_(pa.timestamp("ns"))), ["2026-01-01 00:00:00.123456789"]),
        (pa.array([MOMENT // 1000], pa.timestamp("us")), dt.datetime(2026, 1, 1, 0, 0, 0, 123456)),  # noqa: DTZ001
        (pa.array([2**60], pa.timestamp("s")), "<value out of range: 1152921504606846976>"),
        (pa.array([5], pa.time64("ns")), "00:00:00.000000005"),
        (pa.array([5], pa.duration("ns")), 5),
        (pa.array([b"\xc3\xa9t\xc3\xa9 \xff"], pa.binary()), "été \\xff"),
        (pa.array([decimal.Decimal("1.23")]), decimal.Decimal("1.23")),
        (pa.array(["a"]).dictionary_encode(), "a"),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int32())), [("k", 1)]),
        (pa.array([None], pa.timestamp("ns")), None),
    ],
    ids=str,
)
def test_every_type_has_a_plain_value(column, value):
    """Nothing is lost of a value, and none ends a run."""
    assert plain_rows(batch(x=column)) == [{"x": value}]


def test_a_table_without_columns_has_its_rows():
    """Rows of no columns are empty rows."""
    assert plain_rows(pa.RecordBatch.from_struct_array(pa.array([{}, {}], pa.struct([])))) == [{}, {}]


@pytest.mark.parametrize("kind", [pa.string(), pa.string_view(), pa.binary_view()], ids=str)
@pytest.mark.parametrize("places", [[2, 0], []], ids=["some", "none"])
def test_rows_are_picked_of_every_type(kind, places):
    """Some rows, or none, of a batch whose columns are of types that Arrow itself picks no rows of."""
    picked = rows_at(batch(x=pa.array(["a", "b", "c"], kind), n=pa.array([1, 2, 3])), places)
    assert picked["n"].to_pylist() == [n + 1 for n in places]
    assert (picked["x"].type, len(picked["x"])) == (kind, len(places))


def test_damaged_texts_are_mended_also_where_they_are_nested():
    """What is no UTF-8 inside a list of messages is replaced there; its neighbours stay as they are."""
    bytes_of = pa.list_(pa.struct({"role": pa.binary(), "content": pa.binary()}))
    raw = pa.array([[{"role": b"user", "content": b"\xe9t"}], None, [{"role": b"user", "content": None}]], bytes_of)
    kind = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
    offsets, structs = raw.offsets, raw.values
    texts = [pa.Array.from_buffers(pa.string(), len(f), f.buffers()) for f in structs.flatten()]
    messages = pa.ListArray.from_arrays(
        offsets, pa.StructArray.from_arrays(texts, fields=list(kind.value_type)), mask=raw.is_null()
    )
    rows = plain_rows(decodable(batch(messages=messages, n=pa.array([1, 2, 3]))))
    assert [row["messages"] for row in rows] == [
        [{"role": "user", "content": "\ufffdt"}],
        None,
        [{"role": "user", "content": None}],
    ]


_DAMAGED = pa.array([b"x", b"\xe9t"])
_TEXTS = pa.Array.from_buffers(pa.string(), 2, _DAMAGED.buffers())
_VIEWS = pa.Array.from_buffers(pa.string_view(), 2, _DAMAGED.cast(pa.binary_view()).buffers())


@pytest.mark.parametrize(
    ("column", "values"),
    [
        (_VIEWS, ["x", "\ufffdt"]),
        (pa.DictionaryArray.from_arrays(pa.array([1, 0]), _TEXTS, safe=False), ["\ufffdt", "x"]),
        (pa.LargeListArray.from_arrays([0, 1, 2], _TEXTS), [["x"], ["\ufffdt"]]),
        (pa.FixedSizeListArray.from_arrays(_TEXTS, 1), [["x"], ["\ufffdt"]]),
        (pa.MapArray.from_arrays([0, 1, 2], pa.array(["k", "l"]), _TEXTS), [[("k", "x")], [("l", "\ufffdt")]]),
    ],
    ids=["view", "dictionary", "large list", "fixed list", "map"],
)
def test_damaged_texts_are_mended_in_columns_of_every_type(column, values):
    """What is no UTF-8 costs neither its row nor the rest of the file, and the column keeps its type."""
    mended = decodable(batch(c=column, n=pa.array([1, 2])))
    assert [row["c"] for row in plain_rows(mended)] == values
    assert mended["c"].type == column.type


def test_tables_are_labelled_and_read_back_without_pandas(tmp_path):
    """Pandas is no dependency: nanoseconds come out of a Parquet file into every kind of output, and into a report."""
    table = {"prompt": pa.array([b"hi", b"prove it"]), "timestamp": pa.array([MOMENT] * 2, pa.timestamp("ns"))}
    pq.write_table(pa.table(table), tmp_path / "in.parquet")
    code = """
import sys
class NoPandas:
    def find_spec(self, name, *_):
        if name == "pandas":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NoPandas())
from classifier.bulk import label
from classifier.runs import Options
from classifier.traffic import read_traffic
from tests.bulk_support import FakeMaker
for kind in ("parquet", "jsonl", "csv"):
    out = f"{sys.argv[1]}/out.{kind}"
    assert label([f"{sys.argv[1]}/in.parquet"], out, FakeMaker(), Options(processes=1)).tally.bad == 0
    assert read_traffic(out).times.tolist() == [1767225600.123456] * 2
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=100)


def test_without_pyarrow_both_extras_that_bring_it_are_named(monkeypatch):
    """Labelling and reports alike end in a line with the extra of each."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"classifier\[bulk\]', or \[report\] for reports"):
        pyarrow()
