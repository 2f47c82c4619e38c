"""Files that appear whole under their name and survive a power cut, or not at all; and what to say where they cannot.

Knows nothing of what is in them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from classifier.errors import InputError


def write_whole(path: Path, data: bytes, *, staged_in: Path | None = None) -> None:
    """Writes a file at once or not at all; see `whole_file`."""
    with whole_file(path, staged_in=staged_in) as file:
        file.write(data)


@contextlib.contextmanager
def whole_file(path: Path, *, staged_in: Path | None = None, private: bool = False) -> Iterator[IO[bytes]]:
    """A file to write to that appears at `path`, whole and flushed to disk, when the block ends without an error.

    Args:
        path: its name.
        staged_in: a folder on the same disk where it grows until then; by default its own, under a hidden name.
        private: for its owner alone, for what may hold prompts.
    """
    staged = (staged_in or path.parent) / f".{path.name}-{os.getpid()}"
    try:
        # Whoever opens it before its rights are taken away keeps reading: it has none from the start.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with os.fdopen(os.open(staged, flags, 0o600 if private else 0o666), "wb") as file:
            if private:
                os.fchmod(file.fileno(), 0o600)  # one that a killed process left may have had more
            yield file
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, whose names survive a power cut as the files in them do."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in made:
        fsync(folder.parent)


def create_file(path: Path, data: bytes, *, private: bool = False) -> bool:
    """Makes a file, whole and flushed to disk, and its folder; False where there is one of that name, which stays.

    Args:
        path: its name.
        data: what it holds.
        private: for its owner alone.
    """
    make_folder(path.parent)
    descriptor, staged = tempfile.mkstemp(prefix=".", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if not private:
            Path(staged).chmod(0o644)
        try:
            os.link(staged, path)  # unlike a rename, it fails where there is one
        except FileExistsError:
            return False
        fsync(path.parent)
        return True
    finally:
        Path(staged).unlink()


def copy_durably(source: Path, target: Path) -> None:
    """Copies a file, flushed to disk, and makes its folder; not at once: whoever looks meanwhile sees a part."""
    make_folder(target.parent)
    with source.open("rb") as data, target.open("wb") as file:
        shutil.copyfileobj(data, file)
        file.flush()
        os.fsync(file.fileno())
    fsync(target.parent)


def fsync(path: Path) -> None:
    """Makes the bytes of a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unusable(error: OSError) -> str:
    """What a command says of a file that it could not use and that nothing else explained."""
    what = error.strerror or type(error).__name__
    return f"{error.filename or 'the output'} cannot be used ({what}); check the path, the space and the rights"


@contextlib.contextmanager
def explained(path: str | Path, advice: str = "make space, or choose another place") -> Iterator[None]:
    """Says what to do where a file cannot be written.

    Args:
        path: the file.
        advice: where it is not the rights that are wanting.

    Raises:
        InputError: the disk is full, the folder is not there or not ours, in place of the system's own error.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            advice = "see to the rights, or choose another place"
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            advice = "make its folder first, or choose another place"
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); {advice}") from error
