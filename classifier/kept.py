"""What files held when they were last good: read again when they change, and kept where they cannot be used then.

Knows nothing of what the files are for.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from classifier.errors import SettingsError

T = TypeVar("T")
_Stamp = tuple[int, ...]
"""Empty where nothing can be seen there; the first number is the mode."""


class Kept(Generic[T]):
    """The value of some files.

    Args:
        read: makes the value of what the files hold now; raises where that cannot be used.
        paths: the files.

    Attributes:
        value: what was read when the files were last good.
    """

    def __init__(self, read: Callable[[], T], *paths: Path) -> None:
        self._read, self._paths = read, paths
        self._seen = self._stamps()  # before the reading, so that a change meanwhile is one
        self._refused = False
        self.value = read()

    def reload(self, *, again: bool = False) -> bool:
        """Reads the files again if they changed; keeps the value there was where `read` raises. True where it is new.

        Args:
            again: also what was refused before and has not changed since.

        Raises:
            SettingsError: one of them is something else now; and what `read` raises.
        """
        now = self._stamps()
        if now == self._seen and not (again and self._refused):
            return False
        self._seen, self._refused = now, True
        for path, stamp in zip(self._paths, now, strict=True):
            if stamp and not stat.S_ISREG(stamp[0]):  # of what is not there, reading it says why
                raise SettingsError(f"{path}: is no file any more; a pipe would be waited for, and all else with it")
        self.value = self._read()
        self._refused = False
        return True

    def _stamps(self) -> tuple[_Stamp, ...]:
        return tuple(_stamp(path) for path in self._paths)


def _stamp(path: Path) -> _Stamp:
    """Changes when the file does, or who may read it, also when a link is switched as Kubernetes does."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return (status.st_mode, status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
