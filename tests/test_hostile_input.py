"""What somebody made slow or large to read costs no more than its size: by the square of it these would not end."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import threading
import tracemalloc
from functools import partial
from itertools import repeat

import pytest
import zstandard

from classifier.columns import MAX_NAME_CHARS, places_of
from classifier.gateways.asking import MOST_VALUES, beside
from classifier.lines import MAX_NAMES, csv_rows, header_of, json_rows
from classifier.packed import unpacked
from classifier.payloads import request_of_row
from classifier.turns import messages_of
from tests.bulk_support import labelled, write_lines

PACKED = {
    "gz": gzip.compress,
    "zst": zstandard.compress,
    "bz2": bz2.compress,
    "xz": partial(lzma.compress, preset=0),
}


@pytest.mark.parametrize("number", ["²", "--5", "9" * 5000, 5, "-5", True], ids=lambda value: str(value)[:3])
def test_a_number_of_a_span_that_is_none_ends_nothing(number, tmp_path):
    """In an export a whole number that Python does not read is a text, and the next line is read."""
    tokens = {"key": "gen_ai.usage.input_tokens", "value": {"intValue": number}}
    export = {"resourceSpans": [{"scopeSpans": [{"spans": [{"name": "chat", "attributes": [tokens]}]}]}]}
    errors, _ = labelled(write_lines(tmp_path / "a.jsonl", [export, {"prompt": "hi"}]), tmp_path)
    assert [error is None for error in errors] == [False, True]


@pytest.mark.parametrize("kind", ["spans", "logs"])
def test_a_long_resource_is_not_repeated_for_each_of_its_spans(kind):
    """What an export says of a resource stands beside each of its requests, and where it is long beside the first."""
    body = {"kvlistValue": {"values": [{"key": "content", "value": {"stringValue": "hi"}}]}}
    spans = [{"spanId": str(i), "attributes": [{"key": "gen_ai.system", "value": {}}]} for i in range(3)]
    records = [{"spanId": str(i), "eventName": "gen_ai.user.message", "body": body} for i in range(3)]
    for size, repeated in ((100, 3), (100_000, 1)):
        about = {"attributes": [{"key": "process.command_line", "value": {"stringValue": "x" * size}}]}
        scope = {"scopeSpans": [{"spans": spans}]} if kind == "spans" else {"scopeLogs": [{"logRecords": records}]}
        line = json.dumps({f"resource{kind.title()}": [{"resource": about, **scope}]}).encode()
        rows = [json.loads(row.payload) for row in json_rows(io.BytesIO(line), "a")]
        assert [bool(row["resource"]) for row in rows] == [True] * repeated + [False] * (3 - repeated)


def test_many_events_of_many_attributes_are_one_request():
    """Each event of a span adds its attributes to those of the others, which are not copied for it."""
    asked = [{"role": "user", "content": "hi"}]
    events = [{"name": "e", "attributes": {"gen_ai.input.messages": asked}} for _ in range(20_000)]
    attributes = {str(i): i for i in range(20_000)}
    request = request_of_row({"span_id": "1", "attributes": attributes, "events": events})
    assert request.messages[-1].content == "hi"


@pytest.mark.parametrize("pack", PACKED)
def test_a_file_made_to_burst_is_unpacked_by_and_by(pack):
    """Of a packed file little is in memory at once, whatever its next bytes become."""
    packed = io.BytesIO(PACKED[pack](bytes(2**24)) * 2)
    tracemalloc.start()
    file, size = unpacked(packed), 0
    while part := file.read(2**16):
        size += len(part)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size == 2**25
    assert most < 3 * 2**22


def test_a_header_of_a_hundred_thousand_commas_is_none():
    """Every column of CSV has a name of its own in memory; a header that has more than anybody's says how many."""
    header = io.BytesIO(b"," * MAX_NAMES + b"\n1\n")
    [row] = csv_rows(header, "a.csv")
    assert row.error == "the header has 100001 columns, the limit is 100000; leave out those that are empty"
    header.seek(0)
    assert header_of(header) == []


def test_a_text_of_nothing_but_marks_takes_memory_of_its_size():
    """Marks before a template's turns are read one after another, and none is remembered."""
    text = "<s>" * 2**18
    tracemalloc.start()
    [message] = messages_of(text)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert message["content"] == text
    assert most < 4 * len(text)


def test_what_is_below_a_name_too_long_for_one_is_no_place():
    """A place is called by its whole path: a name of a megabyte would be written before each of those below it."""
    held = {"cost": 1, "k" * MAX_NAME_CHARS: {"cost": 2}}
    assert sorted(map(len, places_of(["a"], [{"a": held}]))) == [1, 6, MAX_NAME_CHARS + 2]


def test_names_that_are_parted_beyond_all_use_end_nothing():
    """A dotted name of more parts than anybody nests is no message, and no error of Python's."""
    names = {f"llm.input_messages.0.message{'.a' * 10_000}": 1, "llm.input_messages.0.message.content": "hi"}
    request = request_of_row({"span_id": "1", "attributes": {**names, "llm.input_messages.0.message.role": "user"}})
    assert request.messages[-1].content == "hi"


@pytest.mark.parametrize(("values", "is_beside"), [(10, False), (MOST_VALUES + 1, True)])
@pytest.mark.parametrize("place", ["messages", "input", "tools", "system"])
@pytest.mark.asyncio
async def test_a_body_of_very_many_values_keeps_nobody_else_waiting(values, is_beside, place):
    """What takes long to read is read beside the event loop of a gateway, which is also that of all other callers."""
    body = {place: [{"role": "user", "content": list(repeat({}, values))}]}
    assert (await beside(body, threading.get_ident) != threading.get_ident()) is is_beside
