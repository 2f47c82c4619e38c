"""Hostile bytes for everything that reads them: messages, conversations, rows of logs."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import pytest

from classifier import Request, errors, wire
from classifier.inputs import render
from classifier.lines import csv_rows, json_rows, parse_line
from classifier.payloads import FORMATS, request_of_row
from classifier.v1 import classifier_pb2 as pb
from tests.test_reporting import outcome

REQUEST = pb.ClassifyRequest(messages=[pb.Message(role="user", content="prove the theorem")])
LOGS = Path(__file__).parent / "logs"
long = pytest.mark.faults


@pytest.mark.parametrize("count", [pytest.param(3000, id="short"), pytest.param(120_000, id="long", marks=long)])
def test_no_bytes_crash_the_wire_or_the_inputs(count):
    """Messages with bytes flipped, cut, doubled and mixed are decoded and rendered, or refused as invalid."""
    draw = random.Random(count)
    chat = [
        pb.Message(role=role, content=f"<system-reminder>{role}</system-reminder> é中🙂[SEP]")
        for role in ("user", "tool")
    ]
    full = pb.ClassifyRequest(
        messages=chat, tools=[pb.Tool(name="t")], attachments=2, floor=2, ceiling=3, record=False, labels={"a": "b"}
    )
    examples = [
        REQUEST,
        full,
        pb.ClassifyBatchRequest(requests=[REQUEST, full]),
        pb.ClassifyStreamRequest(request=full),
        wire.outcome_to_proto(outcome("d", request=Request.from_text("x"))),
    ]
    seeds = [(type(example), example.SerializeToString()) for example in examples]
    read, refused = 0, 0
    for _ in range(count):
        kind, seed = draw.choice(seeds)
        data = bytearray(seed)
        for _ in range(draw.randrange(1, 4)):
            at, what = draw.randrange(len(data) + 1), draw.randrange(8)
            if what <= 3 and data:  # a flip within a text leaves a message that is read
                data[at % len(data)] ^= 1 << draw.randrange(8)
            elif what == 4:
                del data[at : at + draw.randrange(1, 9)]
            elif what == 5:
                data[at:at] = data[at : at + draw.randrange(1, 30)]
            elif what == 6:
                data[at:at] = draw.randbytes(draw.randrange(1, 9))
            else:
                data += draw.choice(seeds)[1]  # messages merge when they follow one another
        try:
            message = wire.parse(kind, bytes(data))
            if isinstance(message, pb.ReportOutcomeRequest):
                wire.outcome_from_proto(message)
            for item in {pb.ClassifyRequest: lambda m: [m], pb.ClassifyBatchRequest: lambda m: m.requests}.get(
                kind, lambda m: [m.request]
            )(message):
                render(wire.request_from_proto(item, max_messages=50))
            read += 1
        except errors.InvalidRequest:
            refused += 1
    assert read > count / 20
    assert refused > count / 20


def mangled(data: bytes, draw: random.Random) -> bytes:
    """A few bytes flipped, cut out, doubled, or put in from what parsers dislike."""
    changed = bytearray(data)
    for _ in range(draw.randrange(1, 4)):
        at, what = draw.randrange(len(changed) + 1), draw.randrange(4)
        if what == 0 and changed:
            changed[at % len(changed)] ^= 1 << draw.randrange(8)
        elif what == 1:
            del changed[at : at + draw.randrange(1, 40)]
        elif what == 2:
            changed[at:at] = changed[at : at + draw.randrange(1, 40)]
        else:
            changed[at:at] = draw.choice([b"\\ud800", b"\0", b"[" * 50, b'"', b"\xff", b"1e999", b"\r", b"\n", b",,"])
    return bytes(changed)


def another_shape(value, draw: random.Random):
    """A JSON value with one part, somewhere, of another type than it should be."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice(list(value))
        return {**value, key: another_shape(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.9:
        at = draw.randrange(len(value))
        return [*value[:at], another_shape(value[at], draw), *value[at + 1 :]]
    return draw.choice(
        [None, True, -1, 2.5, 10**40, "", "text", "\ud800", [], {}, [[]], [None], {"text": 1}, [{"type": "text"}]]
    )


@pytest.mark.parametrize("count", [pytest.param(1500, id="short"), pytest.param(120_000, id="long", marks=long)])
@pytest.mark.timeout(600)
def test_no_row_crashes_the_readers(count):
    """Rows of every format, mangled or of another shape, become requests that can be rendered, or are refused."""
    draw = random.Random(count)
    lines = [line for path in sorted(LOGS.glob("*.jsonl")) for line in path.read_bytes().splitlines()]
    tables = [path.read_bytes() for path in sorted(LOGS.glob("*.csv"))]
    read = refused = 0
    for number in range(count):
        if number % 10 == 0:
            rows = csv_rows(io.BytesIO(mangled(draw.choice(tables), draw)), "a.csv")
        elif number % 2:
            rows = json_rows(io.BytesIO(mangled(draw.choice(lines), draw)), "a.jsonl")
        else:
            values, _ = parse_line(draw.choice(lines))
            rows = json_rows(io.BytesIO(json.dumps(another_shape(values, draw)).encode()), "a.jsonl")
        for row in rows:
            values, error = parse_line(row.payload) if isinstance(row.payload, bytes) else (row.payload, row.error)
            if row.error or error:
                refused += 1
                continue
            try:
                render(request_of_row(values, draw.choice(("auto", "auto", *FORMATS))))
                read += 1
            except (errors.InvalidRequest, RecursionError):
                refused += 1
    assert read > count / 20
    assert refused > count / 20
