"""The servers that a benchmark measures, as processes, and what its numbers depend on."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path


class Process:
    """A Python process that serves: its address, CPU seconds and resident memory.

    Attributes:
        address: that it serves on.
        ready_seconds: from its start until it served.
    """

    def __init__(self, *command: str) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("CLASSIFIER_")}
        # An installed package's code is compiled; where this forbade that, each start would compile it anew.
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        started = time.perf_counter()
        self._process = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True, env=environ)
        assert self._process.stderr is not None
        found = None
        while not found:
            line = self._process.stderr.readline()
            if not line:
                raise SystemExit(f"{' '.join(command)} ended with {self._process.wait()}")
            found = re.match(r"serving on (\S+)", line)
        self.ready_seconds = time.perf_counter() - started
        self.address = found[1]

    def cpu_seconds(self) -> float:
        """CPU time so far of all its threads, also of those that ended, to the nanosecond (Linux)."""
        return time.clock_gettime((~self._process.pid << 3) | 2)  # what clock_getcpuclockid(3) gives for a process

    def resident_mb(self) -> float:
        """Resident memory (Linux)."""
        return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def close(self) -> None:
        """Ends it."""
        self._process.terminate()
        self._process.wait(30)
        assert self._process.stderr is not None
        self._process.stderr.close()


@contextlib.contextmanager
def process(*command: str) -> Iterator[Process]:
    """A server process for the length of a block."""
    running = Process(*command)
    try:
        yield running
    finally:
        running.close()


def serving(bundle: Path, *more: str) -> contextlib.AbstractContextManager[Process]:
    """`classifier serve` with that bundle and these further arguments, on a port that it picks."""
    return process("-m", "classifier", "serve", "--listen", "127.0.0.1:0", "--bundle", str(bundle), *more)


def facts(bundle: Path) -> dict[str, object]:
    """What the numbers depend on."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": cpu[1] if cpu else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: version(name) for name in ("grpcio", "onnxruntime", "tokenizers")},
        "event_loop": "uvloop" if find_spec("uvloop") else "asyncio",
        "bundle": json.loads((bundle / "manifest.json").read_text())["version"],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
