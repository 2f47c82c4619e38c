"""Logs to labelled rows: nothing is lost of what is damaged, hostile or large."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from classifier import readers, row_groups
from classifier.bulk import label
from classifier.errors import InvalidRequest
from classifier.labelled import open_labelled
from classifier.lines import MAX_ROW_BYTES
from classifier.payloads import request_of_row
from classifier.readers import CHUNK_BYTES, read_chunks
from classifier.runs import Options
from classifier.sources import find_sources
from classifier.texts import MAX_DEPTH
from tests.bulk_support import FakeMaker, labelled, prompts, write_lines
from tests.logs_support import BROKEN, LOGS, told

ONE = Options(processes=1)


def test_every_log_has_a_broken_twin():
    """For each fixture of good rows there is one that says what of its form can be broken."""
    names = {path.name for path in LOGS.iterdir()}
    assert {name.replace(".", "_broken.") for name in names if "_broken" not in name} == names & set(BROKEN)
    assert set(BROKEN) == {name for name in names if "_broken" in name}


@pytest.mark.parametrize("name", BROKEN)
def test_each_broken_row_is_kept_with_what_is_wrong(name, tmp_path):
    """Every broken row of every format is in the output, in its place, with an error that names the field."""
    row_format = "corpus" if name.startswith("corpus") else "auto"
    options = Options(row_format=row_format, text_field="question" if name.endswith("csv") else "prompt", processes=1)
    label([str(LOGS / name)], str(tmp_path / "out.parquet"), FakeMaker(), options)
    errors = [row["classifier_error"] or "" for row in open_labelled(tmp_path / "out.parquet").rows()]
    assert len(errors) == len(BROKEN[name])
    for found, wanted in zip(errors, BROKEN[name], strict=True):
        assert wanted in found
        assert "secret" not in found


def test_one_spans_line_is_many_rows(tmp_path):
    """An OTLP export's line becomes a row for each span that is a request, and numbers still grow."""
    data = (LOGS / "otel_collector.jsonl").read_bytes()
    (tmp_path / "spans.jsonl").write_bytes(data + b'{"prompt": "hi"}\n')
    label([str(tmp_path / "spans.jsonl")], str(tmp_path / "out.parquet"), FakeMaker(), ONE)
    rows = list(open_labelled(tmp_path / "out.parquet").rows())
    assert [row["classifier_row"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["attributes"]["gen_ai.usage.input_tokens"] == 97
    assert rows[0]["resource"] == {"service.name": "shop", "telemetry.sdk.language": "python"}
    assert [row["classifier_error"] for row in rows] == [None] * 4


def value_of(value):
    """A value as OTLP has it in JSON."""
    if isinstance(value, dict):
        return {"kvlistValue": {"values": [{"key": k, "value": value_of(v)} for k, v in value.items()]}}
    return {"stringValue": value}


def record(name, body, span="1", **attributes):
    """A log record of an event."""
    pairs = value_of({"gen_ai.system": "openai", **attributes})["kvlistValue"]["values"]
    return {"eventName": name, "traceId": "7", "spanId": span, "attributes": pairs, "body": value_of(body)}


def test_events_in_logs_are_requests_by_their_span(tmp_path):
    """Log records of an OTLP export are one request where they share a span; an event with all of it is one, too."""
    told_whole = {"gen_ai.input.messages": '[{"role": "user", "parts": [{"type": "text", "content": "whole"}]}]'}
    records = [
        record("gen_ai.system.message", {"content": "Be brief."}),
        record("gen_ai.user.message", {"content": "other"}, span="2"),
        record("gen_ai.user.message", {"content": "hi"}),
        record("gen_ai.choice", {"message": {"content": "Hello!"}}),
        record("gen_ai.client.inference.operation.details", {}, **told_whole),
        record("gen_ai.client.inference.operation.details", {}, **{"gen_ai.operation.name": "embeddings"}),
        record("gen_ai.user.message", {}, span="3"),
        record("gen_ai.user.message", {"content": "whose?"}, span=""),
        record("http.request", {"content": "other logs"}),
    ]
    export = {"resourceLogs": [{"scopeLogs": [{"logRecords": records}]}]}
    log = write_lines(tmp_path / "logs.jsonl", [export])
    *rows, silent, lost = (json.loads(row.payload) for row in readers.read_rows(find_sources([str(log)])[0]))
    assert [told(request_of_row(row))[0] for row in rows] == [
        [("system", "Be brief."), ("user", "hi")],
        [("user", "other")],
        [("user", "whole")],
    ]
    for row, error in ((silent, "has no content"), (lost, "spanId: is not there")):
        with pytest.raises(InvalidRequest, match=error):
            request_of_row(row)


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.csv", "blank.jsonl", "empty.jsonl.gz"])
def test_an_empty_file_is_an_empty_output(name, tmp_path):
    """An empty file, or one of blank lines, makes an output without rows, and no error."""
    data = b"\n \n" if name.startswith("blank") else b""
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    label([str(tmp_path / name)], str(tmp_path / "out.parquet"), FakeMaker(), ONE)
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0


@pytest.mark.parametrize("pack", ["gz", "zst", "bz2", "xz", "parquet", "parquet-footer"])
def test_the_rest_of_a_file_that_breaks_off_is_one_bad_row(pack, tmp_path):
    """What comes before the damage is labelled; the rest is one bad row that says so."""
    rows = [{"prompt": f"{text} {os.urandom(30).hex()}"} for text in prompts(5000)]
    path = tmp_path / f"log.{pack.split('-')[0]}"
    if pack.startswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=1000)
        data = path.read_bytes()
        path.write_bytes(data[:-40] if pack.endswith("footer") else data[:90_000] + bytes(20_000) + data[110_000:])
    else:
        path = path.with_name(f"log.jsonl.{pack}")
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        blocks = partial(bz2.compress, compresslevel=1)  # what breaks off is lost in blocks of 100 kB
        how = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress, "bz2": blocks, "xz": lzma.compress}
        packed = how[pack](data)
        path.write_bytes(packed[: len(packed) // 2])
    errors, tally = labelled(path, tmp_path)
    assert errors[-1].startswith("the rest of the file cannot be read")
    assert all(error is None for error in errors[:-2])
    assert tally.rows == len(errors)
    assert pack == "parquet-footer" or tally.rows > 500


@pytest.mark.parametrize("name", ["logs.zip", "logs.csv"])
def test_an_archive_that_is_named_as_a_file_says_how_to_name_it(name, tmp_path):
    """A ZIP archive is one bad row, which says by which URL its files are read."""
    with zipfile.ZipFile(tmp_path / name, "w") as file:
        file.writestr("a.jsonl", '{"prompt": "hi"}\n' * 100)
    [error], _ = labelled(tmp_path / name, tmp_path)
    assert "is a ZIP archive; name what is in it, as zip://*.jsonl::FILE.zip" in error


def test_utf_16_and_json_of_many_lines_say_what_to_do(tmp_path):
    """A file that is no JSON lines says so on its first row, with the command that makes it so."""
    for name in ("a.jsonl", "a.csv", "a.tsv"):
        (tmp_path / name).write_bytes('{"prompt": "hi"}\n{"prompt": "ho"}\n'.encode("utf-16"))
        [error], _ = labelled(tmp_path / name, tmp_path)
        assert "iconv" in error
    (tmp_path / "b.json").write_text(json.dumps([{"prompt": "hi"}], indent=1))
    assert "jq -c" in labelled(tmp_path / "b.json", tmp_path)[0][0]


def test_mixed_encodings_cost_their_rows_only(tmp_path):
    """A row in another encoding is kept, readable, and counted; its neighbours are labelled."""
    rows = [b'{"prompt": "hi"}', '{"prompt": "señor"}'.encode("latin-1"), '{"prompt": "привет"}'.encode()]
    errors, _ = labelled(write_lines(tmp_path / "a.jsonl", rows), tmp_path)
    assert errors == [None, "is not UTF-8 (byte 14)", None]
    assert list(open_labelled(tmp_path / "a.jsonl.jsonl").rows())[1]["classifier_extra"] == {
        "line": '{"prompt": "se\\xf1or"}'
    }


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"prompt": ' + b"9" * 5000 + b"}", "is not JSON (a number is too long)"),
        (b'{"prompt": 7}', "prompt: is not a text"),
        (b'"text"', "is JSON, but no object"),
        (b'[{"prompt": "hi"}]', "is a JSON array; make it JSON lines with jq -c '.[]'"),
        (b'{"messages": [[["deep"]]]}', "messages[0]: is not an object"),
        (
            b'{"messages": [{"role": "user", "content": [{"type": "text", "text": {"a": [1]}}]}]}',
            "messages[0].content[0].text: is not a text",
        ),
        (b"\x00\x01\x02", "is not JSON"),
    ],
    ids=["deep", "long-number", "number", "text", "array", "nested", "nested-text", "bytes"],
)
def test_hostile_lines_are_bad_rows(line, error, tmp_path):
    """Nesting, huge numbers and bytes end as a row with an error, and the next line is read."""
    errors, tally = labelled(write_lines(tmp_path / "a.jsonl", [line, b'{"prompt": "hi"}']), tmp_path)
    assert (errors[0] or "").startswith(error or "")
    assert (errors[0] is None) == (error is None)
    assert errors[1] is None
    assert tally.rows == 2


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("last", ["7", "NaN", "Infinity", '"\\ud800"'], ids=["number", "NaN", "infinity", "surrogate"])
def test_no_depth_ends_a_run(last, kind, tmp_path):
    """A line nested to the limit is labelled and written whatever stands innermost; a deeper one is a bad row, kept."""
    deep = [f'{{"prompt": "hi", "more": {"[" * n}{last}{"]" * n}}}' for n in (MAX_DEPTH - 1, MAX_DEPTH, 400, 960, 5000)]
    log = write_lines(tmp_path / "a.jsonl", [line.encode() for line in [*deep, '{"prompt": "ho"}']])
    label([str(log)], str(tmp_path / f"out.{kind}"), FakeMaker(), ONE)
    rows = list(open_labelled(tmp_path / f"out.{kind}").rows())
    error = f"is nested too deeply; the limit is {MAX_DEPTH} lists and objects within each other"
    assert [row["classifier_error"] or None for row in rows] == [None, *[error] * 4, None]
    assert [row["classifier_extra"]["line"] for row in rows[1:5]] == deep[1:]


def test_an_export_that_is_nested_too_deeply_is_one_bad_row(tmp_path):
    """Its spans are not looked for, and the next line is read."""
    value = '{"stringValue": "chat"}'
    for _ in range(300):
        value = f'{{"arrayValue": {{"values": [{value}]}}}}'
    span = f'{{"name": "chat", "attributes": [{{"key": "gen_ai.operation.name", "value": {value}}}]}}'
    export = f'{{"resourceSpans": [{{"scopeSpans": [{{"spans": [{span}]}}]}}]}}'
    errors, _ = labelled(write_lines(tmp_path / "a.jsonl", [export.encode(), b'{"prompt": "hi"}']), tmp_path)
    assert [(error or "")[:20] for error in errors] == ["is nested too deeply", ""]


@pytest.mark.parametrize(
    "line",
    [
        {"prompt": "hi", "meta": {"resourceSpans": 3}},
        {"prompt": "hi", "kind": "resourceSpans"},
        [{"resourceSpans": []}],
        {"resourceSpans": {"spans": []}},
    ],
    ids=["inside", "a-value", "in-a-list", "no-list"],
)
def test_a_line_that_is_no_export_is_never_lost(line, tmp_path):
    """A line that holds the word resourceSpans, and is no export of spans, is a row, labelled or with an error."""
    errors, _ = labelled(write_lines(tmp_path / "a.jsonl", [line, {"prompt": "hi"}]), tmp_path)
    assert [error is None for error in errors] == ["prompt" in line, True]


def test_a_span_whose_operation_is_no_text_ends_nothing(tmp_path):
    """In an export a span with an operation of another shape is no request, and the next line is read."""
    operation = {"key": "gen_ai.operation.name", "value": {"kvlistValue": {"values": []}}}
    export = {"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "chat", "attributes": [operation]}]}]}]}
    log = write_lines(tmp_path / "a.jsonl", [export, {"prompt": "hi"}])
    assert labelled(log, tmp_path)[0] == [None]


class Endless(io.RawIOBase):
    """A line of so many bytes, and then a small one, made as they are read."""

    def __init__(self, size):
        self.left, self.tail = size, b'\n{"prompt": "hi"}\n'

    def readable(self):
        return True

    def readinto(self, buffer):
        if self.left:
            n = min(self.left, len(buffer))
            buffer[:n] = b"x" * n
            self.left -= n
            return n
        n = min(len(self.tail), len(buffer))
        buffer[:n], self.tail = self.tail[:n], self.tail[n:]
        return n


def test_a_line_of_200_mb_is_passed_over(monkeypatch):
    """A line over the limit is one bad row, is never held, and the next one is read."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr(readers, "_opened", lambda _: io.BufferedReader(Endless(200 * 2**20)))
    long, short = readers.read_rows(readers.Source("big.jsonl"))
    assert long.error == "is 200 MiB long, the limit is 16 MiB; only its head is kept"
    assert long.payload == b"x" * 1000
    assert json.loads(short.payload) == {"prompt": "hi"}
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 5 * MAX_ROW_BYTES


def test_random_bytes_are_bad_rows_whatever_the_name(tmp_path):
    """A file of random bytes ends as bad rows, one at least, under every name that we read."""
    code = """
import os, sys
from classifier.bulk import label
from classifier.runs import Options
from tests.bulk_support import FakeMaker
for i, name in enumerate(["a.jsonl", "a.csv", "a.parquet", "a.jsonl.gz", "a.log"]):
    path = os.path.join(sys.argv[1], f"{i}-{name}")
    open(path, "wb").write(os.urandom(200_000))
    tally = label([path], path + ".out.parquet", FakeMaker(), Options(processes=1)).tally
    assert tally.bad == tally.rows > 0, name
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=100)


@pytest.mark.parametrize("stored", ["plain", "dictionary", "nested"])
def test_a_text_that_repeats_makes_no_large_chunk(stored, tmp_path):
    """A long text in every row, which a Parquet file holds once, is counted as often as it is handed on."""
    count, text = 700, "You are terse. " * 4000
    system = pa.array([text] * count)
    if stored == "nested":
        system = pa.array([[{"role": "system", "content": text}]] * count)
    table = pa.table({"system": system.dictionary_encode() if stored == "dictionary" else system, "n": range(count)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    assert (tmp_path / "a.parquet").stat().st_size < 200_000
    chunks = list(read_chunks(find_sources([str(tmp_path / "a.parquet")])))
    assert [n for chunk in chunks for n in chunk.batch["n"].to_pylist()] == list(range(count))
    assert [number for chunk in chunks for number in chunk.numbers] == list(range(1, count + 1))
    assert min(map(len, chunks)) > 1
    for chunk in chunks:
        assert len(chunk) * len(text) < CHUNK_BYTES
        assert len(pickle.dumps(chunk, pickle.HIGHEST_PROTOCOL)) < 1.1 * CHUNK_BYTES


@contextlib.contextmanager
def arrow_memory():
    """What Arrow takes within, in a pool of its own."""
    before, pool = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(pool)
    try:
        yield pool
    finally:
        pa.set_memory_pool(before)


@pytest.mark.parametrize("stored", ["plain", "dictionary", "nested", "map", "delta"])
def test_a_huge_text_that_repeats_is_unpacked_a_few_rows_at_a_time(stored, tmp_path, monkeypatch):
    """Of a huge text that a Parquet file holds once, memory holds a few, however many rows there are."""
    count, text = 100, "a" * 2**20
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), [text])
    ends = pa.array(range(count + 1), pa.int32())
    column = {
        "nested": lambda: pa.ListArray.from_arrays(ends, pa.StructArray.from_arrays([shared], ["content"])),
        "map": lambda: pa.MapArray.from_arrays(ends, pa.array(range(count)), shared),
        "delta": shared.dictionary_decode,
    }.get(stored, lambda: shared)()
    delta = {"use_dictionary": False, "column_encoding": {"system": "DELTA_BYTE_ARRAY"}} if stored == "delta" else {}
    table, path = pa.table({"system": column, "n": range(count)}), tmp_path / "a.parquet"
    pq.write_table(table, path, compression="zstd", store_schema=stored == "dictionary", **delta)
    monkeypatch.setattr(row_groups, "DECODED_BYTES", 4 * 2**20)
    with arrow_memory() as pool:
        numbers = [number for chunk in read_chunks(find_sources([str(path)])) for number in chunk.numbers]
    assert numbers == list(range(1, count + 1))
    assert pool.max_memory() < 30 * len(text)


def test_a_huge_text_that_repeats_in_an_output_is_unpacked_a_few_rows_at_a_time(tmp_path, monkeypatch):
    """Whoever reads what was labelled, as reports do, needs no more memory than whoever labelled it."""
    count, text = 100, "a" * 2**20
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), [text])
    pq.write_table(pa.table({"prompt": shared}), tmp_path / "a.parquet", store_schema=False)
    label([str(tmp_path / "a.parquet")], str(tmp_path / "out.parquet"), FakeMaker(), ONE)
    monkeypatch.setattr(row_groups, "DECODED_BYTES", 4 * 2**20)
    with arrow_memory() as pool:
        assert sum(row["prompt"] == text for row in open_labelled(tmp_path / "out.parquet").rows()) == count
    assert pool.max_memory() < 30 * len(text)


def test_a_table_of_small_rows_is_cut_where_lines_are(tmp_path):
    """Small rows of a Parquet file go a thousand to a chunk, whatever its row groups are."""
    pq.write_table(pa.table({"prompt": prompts(2500)}), tmp_path / "a.parquet", row_group_size=730)
    assert [len(chunk) for chunk in read_chunks(find_sources([str(tmp_path / "a.parquet")]))] == [1000, 1000, 500]


def test_a_cell_that_is_no_utf8_costs_no_row(tmp_path):
    """In a Parquet file a damaged cell is read with signs of replacement; its row and the others are labelled."""
    cells = pa.array([b"hi", b"\xf2what is this", None], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), len(cells), cells.buffers())
    pq.write_table(pa.table({"prompt": texts, "n": [1, 2, 3]}), tmp_path / "in.parquet")
    label([str(tmp_path / "in.parquet")], str(tmp_path / "out.parquet"), FakeMaker(), Options(processes=1))
    rows = list(open_labelled(tmp_path / "out.parquet").rows())
    assert [row["n"] for row in rows] == [1, 2, 3]
    assert [row["classifier_tier"] is not None for row in rows] == [True, True, False]
    assert rows[1]["prompt"] == "\ufffdwhat is this"
