"""What the user named → the files to read: a file, a folder, a glob, an fsspec URL, `-` for standard input.

Knows nothing of what is in them.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from classifier.errors import InputError

STDIN = "-"
CONTAINERS = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "lines",
    ".log": "lines",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_COMPRESSED = (".gz", ".zst", ".zstd")
_KINDS = "names end in .jsonl, .ndjson, .json, .log, .csv (also .gz or .zst) or .parquet"


@dataclass(frozen=True, slots=True)
class Source:
    """A file to read.

    Attributes:
        name: as it is shown and written beside each row.
        container: lines, csv or parquet.
        size: bytes; None where nobody says.
        stamp: changes when the file does: its time of change, or what the store says in its place.
        remote: whether `name` is an fsspec URL.
    """

    name: str
    container: str = "lines"
    size: int | None = None
    stamp: str = ""
    remote: bool = False

    def open(self) -> IO[bytes]:
        """The file, for reading bytes.

        Raises:
            OSError: it cannot be opened.
        """
        if not self.remote:
            return Path(self.name).open("rb")
        import fsspec

        file: IO[bytes] = fsspec.open(self.name, "rb").open()
        return file


def find_sources(inputs: Iterable[str]) -> list[Source]:
    """The files that the inputs name, sorted within each input.

    Raises:
        InputError: an input names nothing that can be read, or a file comes twice.
    """
    inputs = list(inputs)
    if STDIN in inputs and len(inputs) > 1:
        raise InputError("standard input (-) cannot be mixed with files")
    found = [source for name in inputs for source in _find(name)]
    names = [source.name for source in found]
    if (
        twice := next((name for i, name in enumerate(names) if name in names[:i]), None)
        if len(set(names)) < len(names)
        else None
    ):
        raise InputError(f"{twice}: is named twice; its rows would be labelled twice")
    return found


def _find(name: str) -> list[Source]:
    if name == STDIN:
        return [Source(STDIN)]
    if "://" in name:
        return _find_remote(name)
    path = Path(name)
    if path.is_dir():
        paths = [
            p
            for p in sorted(path.rglob("*"))
            if p.is_file() and not _hidden(p.relative_to(path).parts) and container_of(p.name)
        ]
        if not paths:
            raise InputError(f"{name}: no log files in this folder; {_KINDS}")
        return [_local(p) for p in paths]
    if path.exists():
        return [_local(path)]
    paths = [Path(p) for p in sorted(glob.glob(name, recursive=True)) if Path(p).is_file()]
    if not paths:
        raise InputError(f"{name}: no such file or folder, and no file that this pattern matches")
    return [_local(p) for p in paths]


def _local(path: Path) -> Source:
    try:
        facts = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return Source(str(path), container_of(path.name) or "lines", facts.st_size, str(facts.st_mtime_ns))


def _find_remote(url: str) -> list[Source]:
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(url)
        if any(sign in path for sign in "*?["):
            listed = fs.glob(path, detail=True)
        elif fs.isdir(path):
            listed = {
                p: facts for p, facts in fs.find(path, detail=True).items() if container_of(PurePosixPath(p).name)
            }
        else:
            listed = {path: fs.info(path)}
    except (ImportError, ValueError) as error:
        raise InputError(f"{url}: cannot be used ({error})") from error
    except OSError as error:
        raise InputError(f"{url}: cannot be read ({error.strerror or error})") from error
    if not listed:
        raise InputError(f"{url}: no files there; {_KINDS}")
    return [_remote(fs, path, facts) for path, facts in sorted(listed.items()) if facts.get("type") != "directory"]


def _remote(fs: Any, path: str, facts: Any) -> Source:
    stamp = next(
        (str(facts[k]) for k in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created") if facts.get(k)), ""
    )
    size = facts.get("size")
    name = PurePosixPath(path).name
    return Source(fs.unstrip_protocol(path), container_of(name) or "lines", size, stamp, remote=True)


def container_of(name: str) -> str | None:
    """lines, csv or parquet by a file's name; None where it does not tell.

    >>> container_of("a.jsonl.gz"), container_of("b.csv"), container_of("README.md")
    ('lines', 'csv', None)
    """
    path = PurePosixPath(name)
    if path.suffix in _COMPRESSED:
        path = PurePosixPath(path.stem)
    return CONTAINERS.get(path.suffix.lower())


def _hidden(parts: tuple[str, ...]) -> bool:
    return any(part.startswith((".", "_")) for part in parts)
