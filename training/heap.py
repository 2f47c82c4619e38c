"""The memory that training frees and wants again a moment later."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_LIBC = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_KEPT = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 500_000_000}
_USUAL = {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 128 * 1024, _TOP_PAD: 128 * 1024}
"""Numbers of glibc's `mallopt` (mallopt(3)): what training sets, and what a process starts with."""


@contextmanager
def kept_heap() -> Iterator[None]:
    """Within it, glibc keeps what is freed; behind it, all of that is given back.

    Else each large buffer of a step is given back at once, and page faults make the next step a sixth longer
    (docs/LOG.md). Where the C library is another one, nothing changes.
    """
    _tell(_KEPT)
    try:
        yield
    finally:
        _tell(_USUAL)
        trim()


def trim() -> None:
    """Gives back what is kept and free now: batches of ever other lengths leave gaps that no later one fills."""
    if _LIBC is not None:
        _LIBC.malloc_trim(0)


def _tell(values: Mapping[int, int]) -> None:
    if _LIBC is not None:
        for parameter, value in values.items():
            _LIBC.mallopt(parameter, value)
