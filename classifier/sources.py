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


def find_sources(inputs: Iterable[str], *, written: str = "") -> list[Source]:
    """The files that the inputs name, sorted within each input.

    Args:
        inputs: files, folders, globs, fsspec URLs, or `-`.
        written: the output, a file or a folder. It and what is beside it while it is made is no input where a folder
            or a pattern names it, so that the same command means the same files when it is given again.

    Raises:
        InputError: an input names nothing that can be read, or a file comes twice.
    """
    inputs = list(inputs)
    if STDIN in inputs and len(inputs) > 1:
        raise InputError("standard input (-) cannot be mixed with files")
    found = [source for name in inputs for source in _find(name, written)]
    names = [source.name for source in found]
    if (
        twice := next((name for i, name in enumerate(names) if name in names[:i]), None)
        if len(set(names)) < len(names)
        else None
    ):
        raise InputError(f"{twice}: is named twice; its rows would be labelled twice")
    return found


def _find(name: str, written: str) -> list[Source]:
    if name == STDIN:
        return [Source(STDIN)]
    if "://" in name:
        return [source for source in _find_remote(name) if not _is_of(source.name, written)]
    path = Path(name)
    if path.exists() and not path.is_dir():
        return [_local(path)]
    if path.is_dir():
        listed = [
            p for p in sorted(path.rglob("*")) if not _left_out(p.relative_to(path).parts) and container_of(p.name)
        ]
        missing = f"{name}: no log files in this folder; {_KINDS}"
    else:
        listed = [Path(p) for p in sorted(glob.glob(name, recursive=True))]
        missing = f"{name}: no such file or folder, and no file that this pattern matches"
    output = written and str(Path(written).resolve())
    paths = [p for p in listed if p.is_file() and not _is_of(str(p.resolve()), output)]
    if not paths:
        raise InputError(missing)
    return [_local(p) for p in paths]


def _is_of(path: str, written: str) -> bool:
    """Whether a path is that of an output, or of what is beside it while it is made."""
    written = written.rstrip("/")
    if not written:
        return False
    return path in (written, f"{written}.manifest.json") or path.startswith((f"{written}/", f"{written}.parts/"))


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
    except Exception as error:  # every store has errors of its own
        raise InputError(f"{url}: cannot be reached ({type(error).__name__}: {str(error)[:120]})") from error
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


def _left_out(parts: tuple[str, ...]) -> bool:
    """Whether a folder's file is hidden, or the manifest of a labelled one."""
    return any(part.startswith((".", "_")) for part in parts) or parts[-1].endswith(".manifest.json")
