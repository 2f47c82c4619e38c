"""A run of named steps in one folder: each runs once, and what it leaves appears whole or not at all.

    runs/loop/000003/
    snapshot/ recalibrate/ train/ …    a finished step: its files and `result.json`
    .train.part/                       one that was cut off; begun again from nothing
    state/                             what a long step keeps to go on from

Theory of operation. A step works in a folder of its own whose name starts with a dot; at the end its result is written
there, everything is flushed to the disk, and the folder is renamed. So a crash at any moment leaves a step done or not
begun, and a run that is started again does what is left. A step that acts on the world outside (the registry) must
therefore be harmless to repeat: it can have acted and not been recorded.

One run at a time: `only_one` holds a lock that the kernel frees when its process ends, however it ends.

Knows nothing of models, stores or registries.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from classifier.durable import fsync, write_whole
from classifier.errors import Busy
from classifier.texts import finite

_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_RESULT = "result.json"
RECEIPT = "receipt.json"
_NAME = re.compile("[0-9]{6,}")


class Run:
    """One run's folder.

    Args:
        folder: made where it is not there.
        say: where progress goes.

    Attributes:
        folder: as given.
    """

    def __init__(self, folder: Path, *, say: Callable[[str], object] = lambda _: None) -> None:
        self.folder = folder
        self._say = say
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def name(self) -> str:
        """The folder's name, such as 000003."""
        return self.folder.name

    def step(self, name: str, work: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
        """The result of a step: read where it is done, else worked out by `work` and kept.

        Args:
            name: of the step and of its folder.
            work: gets a folder to write into; what it returns is plain JSON values.
        """
        done = self.folder / name
        if (done / _RESULT).is_file():
            return self.result(name)
        part = self.folder / f".{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        self._say(name)
        try:
            result = dict(work(part))
        except Exception:
            shutil.rmtree(part, ignore_errors=True)  # it may hold texts, and is begun again from nothing
            raise
        write_json(part / _RESULT, result)
        _flush(part)
        part.rename(done)
        fsync(self.folder)
        return result

    def result(self, name: str) -> dict[str, Any]:
        """What a finished step found."""
        found: dict[str, Any] = json.loads((self.path(name) / _RESULT).read_text(encoding="utf-8"))
        return found

    def results(self) -> dict[str, dict[str, Any]]:
        """What every finished step found, by its name."""
        finished = sorted(path.parent.name for path in self.folder.glob(f"*/{_RESULT}"))
        return {name: self.result(name) for name in finished if not name.startswith(".")}

    def path(self, name: str) -> Path:
        """The folder of a finished step."""
        return self.folder / name

    def state(self, name: str) -> Path:
        """A folder that a crash leaves as it is, for steps that go on from where they were."""
        return self.folder / "state" / name

    def close(self, receipt: Mapping[str, Any]) -> dict[str, Any]:
        """Ends the run with its receipt; what was kept only to go on from is removed."""
        write_json(self.folder / RECEIPT, receipt)
        shutil.rmtree(self.folder / "state", ignore_errors=True)
        for part in self.folder.glob(".*.part"):
            shutil.rmtree(part, ignore_errors=True)
        return dict(receipt)

    @contextlib.contextmanager
    def attempt(self) -> Iterator[int]:
        """Counts a beginning of this run, and says which one it is: 1, 2, …

        One that is stopped, or that finds the disk full, is taken back: it says nothing of the run.
        """
        path = self.folder / "attempts"
        before = int(path.read_text()) if path.is_file() else 0
        try:
            write_whole(path, str(before + 1).encode())
            yield before + 1
        except (KeyboardInterrupt, Exception) as error:
            if isinstance(error, KeyboardInterrupt) or _full_disk(error):
                with contextlib.suppress(OSError):  # on a disk still full it counts
                    write_whole(path, str(before).encode())
            raise


def receipts(work: Path) -> list[dict[str, Any]]:
    """The receipts of finished runs, oldest first."""
    found = (run / RECEIPT for run in _runs(work))
    return [json.loads(path.read_text(encoding="utf-8")) for path in found if path.is_file()]


def last_round(work: Path, *, trains: bool, now: float) -> float:
    """Up to when the last round saw decisions, of those that might train the last one if `trains`; 0 for none.

    One that saw decisions of later than `now` went by a clock that was set back since, and says nothing of what comes
    now.
    """
    past = [r for r in receipts(work) if "until" in r]
    if trains:
        past = [r for r in past if r.get("options", {}).get("recalibrate_only") != str(True)]
    return max((until for r in past if (until := float(r["until"])) <= now), default=0.0)


def unfinished(work: Path) -> Path | None:
    """The newest run's folder, where it has no receipt yet."""
    runs = _runs(work)
    return runs[-1] if runs and not (runs[-1] / RECEIPT).is_file() else None


def next_folder(work: Path) -> Path:
    """A folder for a new run: 000001, 000002, …"""
    runs = _runs(work)
    return work / f"{int(runs[-1].name) + 1 if runs else 1:06d}"


def keep_receipts(work: Path) -> None:
    """Deletes what runs left beside their receipts: bundles and weights, some 200 MB for a run that trained."""
    for run in _runs(work):
        for folder in run.glob("*/"):
            shutil.rmtree(folder, ignore_errors=True)


def _runs(work: Path) -> list[Path]:
    """The folders of runs, oldest first. Others' may lie beside them, such as `2026-11-01-base`."""
    found = (path for path in work.glob("[0-9]*") if _NAME.fullmatch(path.name) and path.is_dir())
    return sorted(found, key=lambda path: int(path.name))


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Holds the lock file `path` while the block runs. The kernel frees it when the process ends.

    Raises:
        Busy: another process holds it; the message says which.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    holder = path.with_name(f"{path.name}.holder")
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        who = "another process"
        with contextlib.suppress(FileNotFoundError):  # not written yet, or gone just now
            who = holder.read_text(encoding="utf-8")
        raise Busy(f"{path}: {who} is retraining; one at a time, try again when it is done") from None
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
        holder.unlink(missing_ok=True)
    finally:
        lock.release()


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """JSON into a file that appears whole or not at all; null for what is no number, which other readers refuse."""
    write_whole(path, (json.dumps(finite(content), indent=1) + "\n").encode())


def _full_disk(error: Exception) -> bool:
    """Whether that says so: libraries in Rust or C++ raise errors of their own, with the system's words."""
    return getattr(error, "errno", None) in _FULL_DISK or any(os.strerror(code) in str(error) for code in _FULL_DISK)


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        fsync(path)
    fsync(folder)
