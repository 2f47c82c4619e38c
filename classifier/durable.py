"""Files that appear whole under their name and survive a power cut, or not at all, and folders; and what to say where
they cannot.

Knows nothing of what is in them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from classifier.errors import InputError

_LEFT_SECONDS = 3600.0
"""Who has written nothing for so long was killed."""


def write_whole(path: Path, data: bytes, *, staged_in: Path | None = None) -> None:
    """Writes a file at once or not at all.

    A process that is killed within leaves a hidden file as large as `data` at most; nobody looks for it, as in a folder
    of very many files that takes longer than to write one.
    """
    with _staged(path, staged_in or path.parent, private=False) as file:
        file.write(data)


@contextlib.contextmanager
def whole_file(path: Path, *, staged_in: Path | None = None, private: bool = False) -> Iterator[IO[bytes]]:
    """A file to write to that appears at `path`, whole and flushed to disk, when the block ends without an error.

    What a process that was killed has left of such a file is removed once it is an hour old.

    Args:
        path: its name.
        staged_in: a folder on the same disk where it grows until then; by default its own, under a hidden name.
        private: for its owner alone, for what may hold prompts.
    """
    folder = staged_in or path.parent
    with _staged(path, folder, private=private) as file:
        _remove_leftovers(path, folder, os.fstat(file.fileno()).st_mtime - _LEFT_SECONDS)
        yield file


@contextlib.contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """A hidden folder beside `path` to fill and then to rename to it; it is removed where that was not done.

    What processes that were killed have left there of such folders is removed once nothing was written for an hour.
    """
    ours = path.with_name("classifier-folder")  # whatever is made there: it may be made by now, and not again
    staged = path.parent / _hidden(ours)
    staged.mkdir(0o700)
    try:
        _remove_leftovers(ours, path.parent, staged.stat().st_mtime - _LEFT_SECONDS)
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextlib.contextmanager
def _staged(path: Path, folder: Path, *, private: bool) -> Iterator[IO[bytes]]:
    staged, descriptor = _open_staged(path, folder, private=private)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def _open_staged(path: Path, folder: Path, *, private: bool) -> tuple[Path, int]:
    """A new file under a hidden name, and its descriptor; with the rights that the umask leaves it."""
    staged = folder / _hidden(path)
    # Whoever opens it before its rights are taken away keeps reading: it has none from the start.
    return staged, os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)


def _hidden(path: Path) -> str:
    """A name for what is to become `path`, at random: processes of two machines with one disk may have one number."""
    return f".{path.name}-{secrets.token_hex(4)}.new"


def _remove_leftovers(path: Path, folder: Path, before: float) -> None:
    """Removes what was to become the file or folder and was last written before then, by the disk's own clock."""
    name = re.compile(re.escape(f".{path.name}-") + r"[0-9a-f]{8}\.new")
    with contextlib.suppress(OSError):  # another may remove it, or it is another's
        for left in folder.iterdir():
            if name.fullmatch(left.name):
                inside = list(left.iterdir()) if left.is_dir() else []
                if max(part.stat().st_mtime for part in (left, *inside)) < before:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()


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
    staged, descriptor = _open_staged(path, path.parent, private=private)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(staged, path)  # unlike a rename, it fails where there is one
        except FileExistsError:
            return False
        fsync(path.parent)
        return True
    finally:
        staged.unlink()


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
