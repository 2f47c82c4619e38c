"""Lines of CSV, TSV and JSON to rows, by number, whatever is wrong with some of them."""

from __future__ import annotations

import gzip
import io
import json

import pytest

from classifier.labelled import open_labelled
from classifier.lines import MAX_ROW_BYTES, MAX_ROW_LINES, csv_rows, json_rows
from tests.bulk_support import labelled

OPEN = "has a quote that is not closed at the end of its column or its line"
COUNT = "has 1 fields, the header has 2"


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (['"hi,1', "ho,2", "hu,3"], [('"hi,1', OPEN), ("ho", ""), ("hu", "")]),
        (['"hi,1', "ho,2", '"a, b",3', '"x\ny",4'], [('"hi,1', OPEN), ("ho", ""), ("a, b", ""), ("x\ny", "")]),
        (["hi,1", '"ho,2', '"hu",3'], [("hi", ""), ('"ho,2', OPEN), ("hu", "")]),
        (['"hi', '"hi', '"hi" x,2'], [('"hi', OPEN), ('"hi', OPEN), ("hi x", "")]),
        (['"a\nb\r\n""c""",1', "hi,2"], [('a\nb\r\n"c"', ""), ("hi", "")]),
        (["hi,1", "ho\ra,2", "hu,3"], [("hi", ""), ("ho\ra,2", "is not CSV"), ("hu", "")]),
        (['a",",'] * 3, [('a",",', OPEN)] * 3),
        (['"a', "b", "", 'c",1', "hi"], [("a\nb\n\nc", ""), ("hi", COUNT)]),
    ],
    ids=["to-the-end", "to-a-quote", "to-a-quote-at-the-start", "twice", "right", "return", "each-opens", "blank"],
)
def test_a_quote_that_is_never_closed_costs_its_line(lines, found):
    """Where a quote in CSV is not closed, its line is a bad row with its text, and the rows after it are read."""
    rows = list(csv_rows(io.BytesIO("\n".join(["prompt,id", *lines]).encode()), "a.csv"))
    texts = [row.payload.decode().rstrip() if isinstance(row.payload, bytes) else row.payload["prompt"] for row in rows]
    assert texts == [text for text, _ in found]
    for row, (_, error) in zip(rows, found, strict=True):
        assert row.error.startswith(error)
        assert bool(row.error) == bool(error)
    assert [row.number for row in rows] == sorted({row.number for row in rows})


def test_a_row_of_csv_has_the_number_of_its_first_line():
    """That is where an editor goes to; blank lines and bad rows count as lines."""
    data = b'prompt,id\n"a\nb",1\n\nhi\n"c\n\nd",2\nho,3\n'
    assert [(row.number, bool(row.error)) for row in csv_rows(io.BytesIO(data), "a.csv")] == [
        (2, False), (5, True), (6, False), (9, False)
    ]  # fmt: skip


def test_each_request_of_an_export_has_a_number_of_its_own():
    """Rows behind a line of several requests go on counting, so that a file and a number name one row."""
    attributes = [{"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}}]
    export = {"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "chat", "attributes": attributes}] * 3}]}]}
    data = b"\n" + json.dumps(export).encode() + b'\n{"resourceSpans"\n\n\n\n{"prompt": "hi"}\n'
    assert [row.number for row in json_rows(io.BytesIO(data), "a.jsonl")] == [2, 3, 4, 5, 7]


@pytest.mark.parametrize("line", ['"open,1', 'a",",', 'x"y,"', "x,1"], ids=["open", "strict", "lenient", "rows"])
def test_a_quote_that_is_never_closed_takes_no_time_and_memory(line):
    """Behind a quote that is never closed each line is read a few times at most, and not all are held at once."""
    count = MAX_ROW_LINES + 10
    head = b'prompt,id\n"never closed,0\n'
    rows = csv_rows(io.BytesIO(head + f"{line}\n".encode() * count), "a.csv")
    assert sum(row.number > 0 for row in rows) == count + 1


def test_a_line_of_csv_that_is_too_long_keeps_its_head(tmp_path):
    """A line of CSV over the limit is a bad row with its head, and the next one is labelled."""
    (tmp_path / "a.csv").write_bytes(b"prompt\n" + b"x" * (MAX_ROW_BYTES + 10) + b"\nhi\n")
    errors, _ = labelled(tmp_path / "a.csv", tmp_path)
    assert errors == ["is 16 MiB long, the limit is 16 MiB; only its head is kept", None]
    rows = list(open_labelled(tmp_path / "a.csv.jsonl").rows(["classifier_extra"]))
    assert rows[0]["classifier_extra"] == {"line": "x" * 1000}


@pytest.mark.parametrize(
    ("header", "names"),
    [
        (b"a,a_3,a", ["a", "a_3", "a_3_3"]),
        (b"a,a,a_2", ["a", "a_2", "a_2_3"]),
        (b"column_2,,b", ["column_2", "column_2_2", "b"]),
    ],
    ids=["before", "behind", "empty"],
)
def test_no_column_of_csv_takes_the_place_of_another(header, names):
    """A repeated or empty name becomes one that no other column has, and every value is kept."""
    [row] = csv_rows(io.BytesIO(header + b"\n1,2,3\n"), "a.csv")
    assert row.payload == dict(zip(names, "123", strict=True))


def test_fields_beyond_the_header_are_kept_beside_a_column_called_fields():
    """Of a CSV row that is too long every field is kept, also that of a column that is called as the rest would be."""
    [row] = csv_rows(io.BytesIO(b"prompt,fields\nhi,mine,more\n"), "a.csv")
    assert row.payload == {"prompt": "hi", "fields": "mine", "fields_3": '["more"]'}


def test_a_tsv_file_is_parted_by_tabs(tmp_path):
    """Its columns are kept by name, with commas, quotes and lines in them; a bad row costs itself, packed or not."""
    rows = b'id\tprompt\n1\thi, you\n2\t"two\nlines\t""x"""\n3\n4\tsay "so"\n5\t"open\n'
    (tmp_path / "a.tsv").write_bytes(rows)
    (tmp_path / "b.tsv.gz").write_bytes(gzip.compress(rows))
    for name in ("a.tsv", "b.tsv.gz"):
        errors, _ = labelled(tmp_path / name, tmp_path)
        assert errors == [None, None, "has 1 fields, the header has 2", None, OPEN]
        found = [row["prompt"] for row in open_labelled(tmp_path / f"{name}.jsonl").rows(["prompt"]) if row]
        assert found[:2] == ["hi, you", 'two\nlines\t"x"']
        assert 'say "so"' in found


@pytest.mark.parametrize(("sign", "name"), [(b";", "semicolons"), (b"\t", "tabs")], ids=["semicolons", "tabs"])
def test_csv_without_commas_says_so_once(sign, name, tmp_path):
    """A file parted by semicolons or tabs is one bad row that says what to do; in quotes the sign is part of a name."""
    (tmp_path / "a.csv").write_bytes(b"prompt" + sign + b"model\nhi" + sign + b"x, y\n")
    (tmp_path / "b.csv").write_bytes(b'"prompt' + sign + b'model"\nhi\n')
    [error], _ = labelled(tmp_path / "a.csv", tmp_path)
    advice = {"tabs": "name the file .tsv", "semicolons": "write the file with commas"}[name]
    assert error.startswith(f"the header has {name} and no comma; {advice}")
    assert labelled(tmp_path / "b.csv", tmp_path, text_field=f"prompt{sign.decode()}model")[0] == [None]
