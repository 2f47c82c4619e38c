"""What a run leaves on disk while it goes on: pieces, and the manifest that says what the run is about.

A file appears whole under its name or not at all. A piece is a line of JSON (length, CRC-32, tally) and then its bytes;
which process made it, and when, leaves no trace in it.

Knows nothing of chunks, processes or what the bytes mean.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from classifier.durable import write_whole
from classifier.errors import InputError
from classifier.labelled import manifest_path
from classifier.progress import Tally
from classifier.texts import parsed

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


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest; None where there is none.

    Raises:
        InputError: it is damaged.
    """
    try:
        found = parsed(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the rights") from error
    if not (isinstance(found, dict) and all(isinstance(found.get(n) or {}, dict) for n in ("facts", "complete"))):
        raise InputError(
            f"{path}: is no manifest of a labelled file; choose another output, or remove it and begin anew"
        )
    return found


def check_same(output: str, found: Mapping[str, Any], stated: Mapping[str, Any]) -> None:
    """Refuses to go on with, or to write over, what was made by something else.

    Args:
        output: what is made.
        found: its manifest.
        stated: what the manifest of this run would say.

    Raises:
        InputError: they differ; every difference is named.
    """
    before, now = dict(found.get("facts") or {}), dict(stated["facts"])
    differences = [
        f"{name.removeprefix('classifier_').replace('_', ' ')} {before.get(name)}, now {now[name]}"
        for name in now
        if before.get(name) != now[name] and name != "classifier_policy_definition"
    ]
    if not differences and before != now:
        differences.append("another definition of the policy")
    if found.get("inputs") != stated["inputs"]:
        differences.append("other input files, or files that changed since")
    if found.get("chunks") != stated["chunks"]:
        differences.append("another version of this package, which reads the input otherwise")
    differences += [
        f"{name.replace('_', ' ')} {found.get(name)!r}, now {stated[name]!r}"
        for name in stated
        if name not in ("facts", "inputs", "chunks") and found.get(name) != stated[name]
    ]
    if differences:
        raise InputError(
            f"{output}: was begun with {'; '.join(differences)}; one output never mixes two: choose another file, or "
            f"remove {manifest_path(output).name}, {Path(output).name} and {Path(output).name}.parts to label anew"
        )


def as_json(value: Mapping[str, Any]) -> bytes:
    """A manifest's bytes."""
    return json.dumps(value, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
