"""The sha256 of files, and whether those of a folder are what they should be.

Knows nothing of bundles or stores.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from classifier.errors import BundleCorrupt, BundleError


def sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes(path: Path) -> dict[str, str]:
    """sha256 of each file in a folder, by its path there; none where it is no folder.

    Raises:
        BundleError: one cannot be read.
    """
    try:
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return {file.relative_to(path).as_posix(): sha256(file) for file in files}
    except OSError as error:
        raise BundleError(f"{error.filename or path}: cannot be read ({error.strerror}); check the rights") from error


def verify(
    path: Path, files: Mapping[str, str], *, stated_in: str = "listing", advice: str = "add the bundle again"
) -> None:
    """Checks the files of a folder against their sha256.

    Args:
        path: the folder.
        files: sha256 by file.
        stated_in: where those stand, for the message.
        advice: what to do where one is not as it should be.

    Raises:
        BundleCorrupt: one is missing, altered, or cannot be read.
    """
    for name, stated in files.items():
        try:
            if not (path / name).is_file():  # a pipe would be waited for, a device read for ever
                raise BundleCorrupt(f"{path}: {name} is missing; {advice}")
            found = sha256(path / name)
        except OSError as error:
            raise BundleCorrupt(f"{path}: {name} cannot be read ({error.strerror}); check the rights") from error
        if found != stated:
            raise BundleCorrupt(
                f"{path}: {name} has sha256 {found[:12]}…, the {stated_in} says {stated[:12]}…; {advice}"
            )
