"""What training frees stays with the process while it trains, and no longer."""

import mmap
import platform
import resource
from pathlib import Path

import pytest

from training.heap import kept_heap

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")

LARGE = 64 * 1024 * 1024


def _faults(times=8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        bytearray(LARGE)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def _resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_buffers_that_are_freed_are_used_again_while_the_heap_is_kept():
    """Large buffers one after the other take the same pages, where each had new ones."""
    usual = _faults()
    with kept_heap():
        bytearray(LARGE)
        assert _faults() < usual / 2


def test_what_was_kept_is_given_back():
    """After training a process holds no more than before it: a loop waits an hour for its next round."""
    before = _resident()
    with kept_heap():
        bytearray(LARGE)
        assert _resident() > before + LARGE / 2
    assert _resident() < before + LARGE / 2
