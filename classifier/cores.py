"""How many cores this process may use: those it may run on, or fewer where its container's time on them is limited.

Knows nothing of settings: what a person says with `--cores` comes before it.
"""

from __future__ import annotations

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux shows a container its own limits."""
_LIMITS = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))  # cgroup v2; v1, in two files


def available_cores(cgroup: Path = CGROUP) -> int:
    """Cores that this process may use, at least one: not the machine's count.

    Args:
        cgroup: the folder of the limits; what is not there limits nothing.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    for names in _LIMITS:
        try:
            limit = " ".join((cgroup / name).read_text(encoding="ascii") for name in names)
        except (OSError, ValueError):
            continue
        return min(cores, paid_cores(limit) or cores)
    return cores


def paid_cores(limit: str) -> int | None:
    """Whole cores that a limit pays for, at least one; None where it is no limit.

    Rounded down: what is above goes to the event loop. One run more would use the time up early, and Linux then stops
    every thread until the next period, a tenth of a second at most, which a request waits for.

    Args:
        limit: microseconds of processor time, and the period in microseconds that they are for, as in `cpu.max`.

    >>> [paid_cores(limit) for limit in ("200000 100000", "150000 100000", "50000 100000", "max 100000", "-1 100000")]
    [2, 1, 1, None, None]
    """
    try:
        quota, period = map(int, limit.split())
    except ValueError:
        return None
    return max(1, quota // period) if quota > 0 and period > 0 else None
