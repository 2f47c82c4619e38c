"""What a run leaves on disk while it goes on: pieces of its output.

A file appears whole under its name or not at all. A piece is a line of JSON (length, CRC-32, tally) and then its bytes;
which process made it, and when, leaves no trace in it.

Knows nothing of chunks, processes or what the bytes mean.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from classifier.durable import write_whole
from classifier.errors import InputError
from classifier.progress import Tally

SPACE = (
    "make space (labelling needs about twice the output's size), then run the same command again: what is done is kept"
)
"""What to do where a run cannot write."""


def write_piece(path: Path, piece: bytes, tally: Tally) -> None:
    """Writes a piece with its tally."""
    facts = {"crc32": zlib.crc32(piece), "bytes": len(piece), "tally": tally.to_json()}
    write_whole(path, json.dumps(facts).encode() + b"\n" + piece)


def read_tally(path: Path) -> Tally:
    """The tally of a piece.

    Raises:
        InputError: see `read_piece`.
    """
    with _undamaged(path), path.open("rb") as file:
        return Tally.from_json(json.loads(file.readline())["tally"])


def read_piece(path: Path) -> bytes:
    """The bytes of a piece.

    Raises:
        InputError: they are not what was written; the piece is removed, so that it is made anew.
    """
    with _undamaged(path), path.open("rb") as file:
        header, piece = json.loads(file.readline()), file.read()
        if len(piece) != header["bytes"] or zlib.crc32(piece) != header["crc32"]:
            raise ValueError("other bytes than were written")
    return piece


@contextlib.contextmanager
def _undamaged(path: Path) -> Iterator[None]:
    """Removes a piece that cannot be read as one, its first line or the rest, and says what to do."""
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        path.unlink()
        raise InputError(
            f"{path}: was damaged on disk and is removed; run the same command again to make it anew"
        ) from error
