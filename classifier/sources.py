"""What the user named → the files to read: a file, a folder, a glob, an fsspec URL, `-` for standard input.

Knows nothing of what is in them.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import logging
import os
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from classifier.addresses import without_secrets
from classifier.errors import InputError, absent_client

STDIN = "-"
CONTAINERS = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "lines",
    ".log": "lines",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_COMPRESSED = (".gz", ".zst", ".zstd", ".bz2", ".xz")
MANIFEST_SUFFIX = ".manifest.json"
"""What the name of an output's manifest has behind that of the output."""
_KINDS = "names end in .jsonl, .ndjson, .json, .log, .csv, .tsv (also .gz, .zst, .zstd, .bz2, .xz), .parquet or .pq"
_HIDDEN = (".", "_")
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """A file to read.

    Attributes:
        name: as it is shown and written beside each row; a password in a URL, or what signs it, is `***` there.
        container: lines, csv, tsv or parquet.
        size: bytes; None where nobody says.
        stamp: changes when the file does: its time of change, or what the store says in its place; where the name lacks
            what signs a URL also its hash, as another token may mean another file.
        url: what fsspec opens; empty where `name` is a path.
    """

    name: str
    container: str = "lines"
    size: int | None = None
    stamp: str = ""
    url: str = field(default="", repr=False)

    def open(self) -> IO[bytes]:
        """The file, for reading bytes.

        Raises:
            OSError: it cannot be opened.
        """
        if not self.url:
            return Path(self.name).open("rb")
        import fsspec

        opened = fsspec.open(self.url, "rb")
        file: IO[bytes] = opened.open()
        weakref.finalize(file, id, opened.fs)  # an archive's file system closes the archive when nobody holds it
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
    seen: set[str] = set()
    for source in found:
        place = _place(source)
        if place in seen:
            raise InputError(f"{source.name}: is named twice; its rows would be labelled twice")
        seen.add(place)
    return found


def _find(name: str, written: str) -> list[Source]:
    if name == STDIN:
        return [Source(STDIN)]
    if name.startswith("file://"):
        name = os.path.expanduser(name.removeprefix("file://"))  # noqa: PTH111 - a path may be a pattern
    if not name:  # an unset variable of a script; as a path it would be the folder here and all below it
        raise InputError("an input is empty; give a file, a folder, a pattern or a URL")
    if "://" in name:
        return _find_remote(name, written)
    # A path's own questions raise where a folder above may not be read.
    path, is_folder = Path(name), os.path.isdir(name)  # noqa: PTH112
    if os.path.exists(name) and not is_folder:  # noqa: PTH110
        return [_local(path)]
    output = written and str(Path(written.removeprefix("file://")).resolve())
    listed = _files_below(path) if is_folder else _matching(name)
    paths = [p for p in listed if p.is_file() and not _is_of(str(p.resolve()), output)]
    paths = [Path(p) for p in _without_outputs(name, [str(p) for p in paths], os.path.exists)]
    if is_folder:
        paths = [Path(p) for p in _logs_among(name, {str(p): p.relative_to(path).parts for p in paths})]
        missing = f"{name}: no log files in this folder; {_KINDS}"
    else:
        missing = f"{name}: no such file or folder, and no file that this pattern matches"
    if not paths:
        raise InputError(missing)
    return [_local(p) for p in paths]


def _files_below(folder: Path) -> list[Path]:
    """Every file below a folder but for hidden and linked folders, sorted; says which may not be read or are linked."""
    found: list[Path] = []
    linked: list[str] = []
    for place, folders, names in os.walk(folder, onerror=_say_unread):
        folders[:] = [name for name in folders if not name.startswith(_HIDDEN)]
        found += [Path(place, name) for name in names]
        linked += [str(Path(place, name)) for name in folders if Path(place, name).is_symlink()]
    _say_left_out(str(folder), sorted(linked), "a link is not followed; name it as an input, too", "linked folder")
    return sorted(found)


def _matching(pattern: str) -> list[Path]:
    """What a pattern matches, sorted; says which folders on its way may not be read, over which `glob` passes."""
    parts, closed = Path(pattern).parts, set()
    for i, part in enumerate(parts):
        above = os.path.join(".", *parts[: i + (part == "**")], "")  # noqa: PTH118 - with a slash behind it: only folders
        wanted = os.X_OK | os.R_OK * glob.has_magic(part)
        closed |= {Path(f) for f in glob.glob(above, recursive=True) if not os.access(f, wanted)}
    for folder in sorted(closed):
        _say_unread(PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder)))
    return [Path(found) for found in sorted(glob.glob(pattern, recursive=True))]


def _say_unread(error: OSError) -> None:
    _logger.warning("%s: cannot be read (%s); what is in it is left out", error.filename, error.strerror)


def _place(source: Source) -> str:
    """The same for the names of a local file, relative and absolute."""
    if source.url or source.name == STDIN:
        return source.url or STDIN
    return os.path.abspath(source.name)  # noqa: PTH100 - a link beside its file is no mistake


def _logs_among(folder: str, files: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The logs among a folder's files, told by their names; says how many others there are.

    Args:
        folder: its name, to show.
        files: the parts of their paths below the folder.
    """
    shown = {name: parts for name, parts in files.items() if not any(part.startswith(_HIDDEN) for part in parts)}
    logs = [name for name, parts in shown.items() if container_of(parts[-1])]
    if logs:
        _say_left_out(folder, [name for name, parts in shown.items() if not container_of(parts[-1])], _KINDS)
    return logs


def _without_outputs(where: str, names: Sequence[str], is_there: Callable[[str], bool]) -> list[str]:
    """The files that a folder or a pattern names without what this command made of others, told by its manifests.

    Their rows are those of logs that lie beside them, and would be labelled twice.
    """
    names = [name for name in names if not name.endswith(MANIFEST_SUFFIX)]
    made = {name: None for name in names if is_there(f"{name}{MANIFEST_SUFFIX}")}
    _say_left_out(where, list(made), "a manifest beside it says that it was labelled")
    return [name for name in names if name not in made]


def _say_left_out(where: str, names: Sequence[str], why: str, what: str = "file") -> None:
    """Says how many files are left out, if any, and why."""
    if names:
        told = f"1 {what} is left out, " if len(names) == 1 else f"{len(names)} {what}s are left out, such as "
        _logger.warning("%s: %s%s; %s", where, told, without_secrets(names[0]), why)


def _is_of(path: str, written: str) -> bool:
    """Whether a path is that of an output, or of what is beside it while it is made."""
    written = written.rstrip("/")
    if not written:
        return False
    beside = (written, f"{written}{MANIFEST_SUFFIX}", f"{written}.votes")
    return path in beside or path.startswith((f"{written}/", f"{written}.parts/"))


def _local(path: Path) -> Source:
    try:
        facts = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return Source(str(path), container_of(path.name) or "lines", facts.st_size, str(facts.st_mtime_ns))


def _find_remote(url: str, written: str) -> list[Source]:
    import fsspec

    shown, written = without_secrets(url), without_secrets(written)
    try:
        fs, path = fsspec.core.url_to_fs(url)
        fs.invalidate_cache()  # of an earlier run in this process
        is_pattern = any(sign in _without_query(path) for sign in "*?[")
        listed = {} if is_pattern else {path: fs.info(path)}
        # Asked of HTTP, isdir reads all of it.
        is_file = not is_pattern and container_of(_file_name(path)) and listed[path]["type"] == "file"
        is_folder = not is_pattern and not is_file and fs.isdir(path)
        if is_pattern or is_folder:
            listed = (fs.find if is_folder else fs.glob)(path, detail=True)
            kept = _without_outputs(shown, list(listed), listed.__contains__)
            if is_folder:
                below = (_file_name(p) if p == path else p[len(path) :].strip("/") for p in kept)
                kept = _logs_among(shown, {p: PurePosixPath(b).parts for p, b in zip(kept, below, strict=True)})
            listed = {p: listed[p] for p in kept}
    except (ImportError, ValueError) as error:
        raise InputError(f"{shown}: {absent_client(error)}") from error
    except OSError as error:  # of HTTP it is always that there is no such file, and its cause says why
        why = without_secrets(str(error.strerror or error.__cause__ or error))
        raise InputError(f"{shown}: cannot be read ({why})") from error
    except Exception as error:  # every store has errors of its own
        why = f"{type(error).__name__}: {without_secrets(str(error))[:120]}"
        raise InputError(f"{shown}: cannot be reached ({why})") from error
    sources = [_remote(fs, p, facts, url) for p, facts in sorted(listed.items()) if facts.get("type") != "directory"]
    sources = [source for source in sources if not _is_of(source.name, written)]
    if not sources:
        raise InputError(f"{shown}: no files there; {_KINDS}")
    return sources


def _remote(fs: Any, path: str, facts: Any, url: str) -> Source:
    import fsspec

    keys = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created", "CRC")
    stamp = next((str(facts[k]) for k in keys if facts.get(k)), "")
    link = path if _is_url(path) else fs.unstrip_protocol(path)
    links = url.split("::")  # of a chain; what follows the file's own link is the archive that it is in
    own = f"{link.partition('://')[0]}://"
    at = next((i for i, other in enumerate(links) if other.startswith(own)), len(links))
    if at < len(links) and fsspec.get_filesystem_class(own.removesuffix("://"))._get_kwargs_from_urls(links[at]):
        host = links[at].removeprefix(own).partition("/")[0]  # FTP's paths, and others', do not say on whose disk
        link = f"{own}{host}/{path.lstrip('/')}"
    whole = "::".join([link, *links[at + 1 :]])
    container = container_of(_file_name(path)) or "lines"
    name = without_secrets(whole)
    if "?***" in name:
        stamp += hashlib.blake2b(whole.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    return Source(name, container, facts.get("size"), stamp, url=whole)


def _is_url(path: str) -> bool:
    """Whether a path is one of HTTP; other stores' paths are no URLs."""
    return path.startswith(("http://", "https://"))


def _without_query(path: str) -> str:
    """A path without what signs it, which only URLs have."""
    return path.partition("?")[0] if _is_url(path) else path


def _file_name(path: str) -> str:
    return PurePosixPath(_without_query(path)).name


def container_of(name: str) -> str | None:
    """lines, csv, tsv or parquet by a file's name; None where it does not tell.

    >>> container_of("a.jsonl.gz"), container_of("B.CSV.GZ"), container_of("README.md")
    ('lines', 'csv', None)
    """
    path = PurePosixPath(name)
    if path.suffix.lower() in _COMPRESSED:
        path = PurePosixPath(path.stem)
    return CONTAINERS.get(path.suffix.lower())
