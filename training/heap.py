"""The memory that training frees and wants again a moment later."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_KEPT = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: 500_000_000}
_USUAL = {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 128 * 1024, _TOP_PAD: 128 * 1024}
"""Numbers of glibc's `mallopt` (mallopt(3)): what training sets, and what a process starts with."""


@contextmanager
def kept_heap() -> Iterator[None]:
    """Within it, glibc keeps what is freed; behind it, all of that is given back.

    Else each large buffer of a step is given back at once, and page faults take a seventh of the next step's time
    (docs/LOG.md). Where the C library is another one, nothing changes.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt"):
        yield
        return
    try:
        for parameter, value in _KEPT.items():
            libc.mallopt(parameter, value)
        yield
    finally:
        for parameter, value in _USUAL.items():
            libc.mallopt(parameter, value)
        libc.malloc_trim(0)
