"""Which files a corpus is, and their lines; packed or plain, none longer in memory than logs' may be.

Knows nothing of what stands in a line.
"""

from __future__ import annotations

import glob
import gzip
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from classifier.errors import InputError
from classifier.lines import bounded_lines

SUFFIXES = (".jsonl", ".jsonl.gz")


def expand(paths: Iterable[str | Path]) -> list[Path]:
    """Files that the paths name: a file, the corpus files of a folder (deep), or a glob, sorted.

    Raises:
        InputError: a path matches nothing.
    """
    found: list[Path] = []
    for given in paths:
        path = Path(given)
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.name.endswith(SUFFIXES))
        elif path.is_file():
            files = [path]
        else:
            files = sorted(Path(p) for p in glob.glob(str(given)))
        if not files:
            raise InputError(f"{given}: no corpus file there; give a .jsonl or .jsonl.gz file, a folder, or a glob")
        found.extend(files)
    return list(dict.fromkeys(found))


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line of a file that is not blank, of a compressed file too.

    Raises:
        InputError: the file cannot be read to its end, or a line is not UTF-8, or longer than 16 MiB.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as lines:
            for number, line, error in bounded_lines(lines.readline):
                if error:
                    raise InputError(f"{path}:{number}: {error.partition(';')[0]}")
                if line.strip():
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}:{number}: is not UTF-8 ({error.reason} at byte {error.start}); a corpus is JSON lines"
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"{path}: cannot be read after line {number} ({error}); check that the file is whole"
        ) from error
