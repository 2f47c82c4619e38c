"""Bytes → raw rows: JSON lines, a line a row (OTLP exports, a request a row), and CSV.

No line longer than `MAX_ROW_BYTES` is ever held, and whatever is wrong with a line makes it a bad row, not an end.

Knows nothing of where the bytes come from.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterator
from typing import IO, Any, NamedTuple

from classifier.spans import EXPORTS, spans_of
from classifier.texts import MAX_DEPTH, encodable, is_deep, parsed

MAX_ROW_BYTES = 16 * 2**20
MAX_ROW_LINES = 100_000
"""Lines of one row of CSV."""
MAX_NAMES = 100_000
"""Columns of a CSV file."""
KEPT_CHARS = 1000
"""Characters that are kept of a line that is too long."""
DELIMITERS = {"csv": ",", "tsv": "\t"}
"""What parts the columns of a container of `sources`."""
_BLOCK = 2**20
_MARKS = tuple(json.dumps(name).encode() for name in EXPORTS)
_UTF_16, _CONVERT = (b"\xff\xfe", b"\xfe\xff"), "is UTF-16; convert the file with iconv -t UTF-8"
_DEEP = f"is nested too deeply; the limit is {MAX_DEPTH} lists and objects within each other"
_NEVER_CLOSED = "has a quote that is not closed at the end of its column or its line"


class RawRow(NamedTuple):
    """A row before it is parsed.

    Attributes:
        source: the file's name.
        number: its line in the file, the first of several, from 1; behind a line of an OTLP export that holds several
            requests it counts requests, so that it grows within a file and no two rows share one.
        payload: a line of JSON, or a CSV row's columns; with an error the text of the line; None where there is
            nothing but an error.
        error: empty, or what is wrong with it.
    """

    source: str
    number: int
    payload: bytes | dict[str, str] | None
    error: str = ""


def json_rows(file: IO[bytes], name: str, row_format: str = "auto") -> Iterator[RawRow]:
    """Lines of JSON; those of an OTLP export become a row a request."""
    last = 0
    for number, line, error in bounded_lines(file.readline):
        if number == 1 and not error:
            line = line.removeprefix(b"\xef\xbb\xbf")  # noqa: PLW2901
            error = _not_lines(line)  # noqa: PLW2901
        if not error and not line.strip():
            continue
        last = max(last + 1, number)
        if error:
            yield RawRow(name, last, line[:KEPT_CHARS], error)
            if error == _CONVERT:
                return
        elif row_format in ("auto", "otel") and any(mark in line for mark in _MARKS):
            last -= 1
            for payload in _spans(line):
                last += 1
                yield RawRow(name, last, payload)
        else:
            yield RawRow(name, last, line)


def _spans(line: bytes) -> Iterator[bytes]:
    export = parsed(line)
    if not isinstance(export, dict) or not any(isinstance(export.get(name), list) for name in EXPORTS):
        yield line  # the word stands elsewhere in it; or whoever parses it says what is wrong
        return
    for span in spans_of(export):
        yield json.dumps(span).encode()


def bounded_lines(readline: Callable[[int], bytes]) -> Iterator[tuple[int, bytes, str]]:
    """(number, line, error) of every line of a file; of one that is too long only the head is held."""
    for number in itertools.count(1):
        line = readline(MAX_ROW_BYTES + 1)
        if not line:
            return
        error = ""
        if len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
            line, size = line[:KEPT_CHARS], len(line)
            while (rest := readline(_BLOCK)) and not rest.endswith(b"\n"):
                size += len(rest)
            found, limit = (size + len(rest)) // 2**20, MAX_ROW_BYTES // 2**20
            error = f"is {found} MiB long, the limit is {limit} MiB; only its head is kept"
        yield number, line, error


def _not_lines(line: bytes) -> str:
    """What a first line says of a file that is no JSON lines at all; empty where it may be."""
    if line.startswith(_UTF_16):
        return _CONVERT
    if line.strip() in (b"[", b"{"):
        return "begins a value of several lines; make it JSON lines with jq -c '.[]' or jq -c ."
    return ""


def parse_line(line: bytes) -> tuple[dict[str, Any], str]:
    """The object on a line of JSON, or why there is none.

    >>> parse_line(b'{"prompt": "hi"}'), parse_line(b"1")
    (({'prompt': 'hi'}, ''), ({}, 'is JSON, but no object'))
    """
    try:
        value = json.loads(line.rstrip().decode("utf-8"))
    except UnicodeDecodeError as error:
        return {}, f"is not UTF-8 (byte {error.start})"
    except RecursionError:
        return {}, _DEEP
    except json.JSONDecodeError as error:
        return {}, f"is not JSON ({error.msg.removesuffix(' at')} at character {error.pos})"
    except ValueError:
        return {}, "is not JSON (a number is too long)"
    if is_deep(value):
        return {}, _DEEP
    if isinstance(value, list):
        return {}, "is a JSON array; make it JSON lines with jq -c '.[]'"
    return (value, "") if isinstance(value, dict) else ({}, "is JSON, but no object")


def csv_rows(file: IO[bytes], name: str, delimiter: str = ",") -> Iterator[RawRow]:
    """Rows of CSV, or of TSV, a header first. Bytes that are not UTF-8 make their row a bad one."""
    header: list[str] | None = None
    for lines, fields, problem in _records(_csv_lines(file), delimiter):
        number, error = lines[0].number, problem
        if not fields and not error:
            continue
        if header is None:
            if error := error or _no_header(fields, lines[0].text, delimiter):
                yield RawRow(name, number, None, f"the header {error}")
                return
            header = _unique(fields)
            continue
        if not fields:
            yield RawRow(name, number, lines[0].text.encode("utf-8", "surrogateescape"), error)
            continue
        values = dict(zip(header, fields, strict=False))
        if not error and len(fields) != len(header):
            error = f"has {len(fields)} fields, the header has {len(header)}"
            if len(fields) > len(header):
                *_, beyond = _unique([*header, "fields"])
                values[beyond] = json.dumps(fields[len(header) :])
        if any(value != encodable(value) for value in values.values()):
            values = {column: _readable(value) for column, value in values.items()}
            error = error or "is not UTF-8; if the whole file is not, convert it, as with iconv -f CP1252 -t UTF-8"
        yield RawRow(name, number, values, error)


def header_of(file: IO[bytes], delimiter: str = ",") -> list[str]:
    """Names of the columns of CSV; empty where there are none, or `csv_rows` calls the header a bad one."""
    for lines, fields, error in _records(_csv_lines(file), delimiter):
        if fields or error:
            return [] if error or _no_header(fields, lines[0].text, delimiter) else _unique(fields)
    return []


def _no_header(fields: list[str], text: str, delimiter: str) -> str:
    """Why a line is no header; empty where it may be one."""
    if len(fields) > MAX_NAMES:  # each gets a name of its own, which takes a hundred times what it took in the file
        return f"has {len(fields)} columns, the limit is {MAX_NAMES}; leave out those that are empty"
    return _otherwise_parted(text, delimiter)


def _otherwise_parted(header: str, delimiter: str) -> str:
    """What a header says of a file whose columns something else parts, as some spreadsheets write it; else empty."""
    other = "semicolons" if ";" in header else "tabs" if "\t" in header else ""
    if delimiter != "," or not other or "," in header or '"' in header:
        return ""
    advice = "name the file .tsv" if other == "tabs" else "write the file with commas"
    return f"has {other} and no comma; {advice}, or where it is one column put its name in quotes"


class _Line(NamedTuple):
    """A line of CSV: its number, its text (of one with an error the head), and what is wrong with it."""

    number: int
    text: str
    error: str


def _csv_lines(file: IO[bytes]) -> Iterator[_Line]:
    for number, line, error in bounded_lines(file.readline):
        if number == 1 and line.startswith(_UTF_16):
            yield _Line(number, "", _CONVERT)
            return
        yield _Line(number, line.decode("utf-8-sig" if number == 1 else "utf-8", "surrogateescape"), error)


def _records(lines: Iterator[_Line], delimiter: str) -> Iterator[tuple[list[_Line], list[str], str]]:
    """(lines, fields, error) of every row; where there are no fields it is one line, empty or with an error.

    A quote that is never closed would swallow all rows up to the next quote, which then stands before a letter, or up
    to the end of the file. So a row of several lines has to be strictly right. If it is not, each of them is read
    alone, but for the last, where it went wrong: there a row begins anew. So no line is read more than three times.
    """
    csv.field_size_limit(MAX_ROW_BYTES)
    taken: list[_Line] = []

    def texts(first: list[_Line]) -> Iterator[str]:
        size = 0
        for line in itertools.chain(first, lines):
            size = len(line.text) if not taken else size + len(line.text)
            taken.append(line)
            if size > MAX_ROW_BYTES or len(taken) > MAX_ROW_LINES:
                raise csv.Error
            yield "\n" if line.error else line.text  # csv wants a line for a line

    reader = csv.reader(texts([]), delimiter=delimiter, strict=True)
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error:
            alone, again = (taken[:-1], taken[-1:]) if len(taken) > 1 else (taken[:], [])
            for line in alone:
                fields, error = _alone(line, delimiter)
                yield [line], fields, error
            reader = csv.reader(texts(again), delimiter=delimiter, strict=True)
        else:
            yield taken, fields, next((line.error for line in taken if line.error), "")
        taken.clear()


def _alone(line: _Line, delimiter: str) -> tuple[list[str], str]:
    """(fields, error) of a line that is no part of a longer row; quotes need not be right within it."""
    if line.error:
        return [], line.error
    reader = csv.reader([line.text, '"\n'], delimiter=delimiter)  # the second ends what the first leaves open
    try:
        fields = next(reader)
    except csv.Error as problem:
        return [], f"is not CSV ({problem})"
    return ([], _NEVER_CLOSED) if reader.line_num > 1 else (fields, "")


def _unique(names: list[str]) -> list[str]:
    """The names, a repeated or empty one with its position behind it."""
    found: dict[str, None] = {}
    for i, name in enumerate(names, start=1):
        unique = encodable(name) or f"column_{i}"
        while unique in found:  # also the name of another column may be what a repeated one would be called
            unique += f"_{i}"
        found[unique] = None
    return list(found)


def _readable(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
