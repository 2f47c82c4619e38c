"""The processes that label: each with what answers of its own, each ending with its parent, however that ends.

Knows nothing of the order of chunks, of manifests, or of the output.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from importlib.abc import MetaPathFinder
from multiprocessing.connection import wait as wait_for_any
from pathlib import Path
from typing import Any

from classifier.answering import Maker
from classifier.arrow import pyarrow
from classifier.errors import ClassifierError
from classifier.labelling import Labeller, Plan
from classifier.pieces import write_piece
from classifier.readers import Chunk

Submit = Callable[[Chunk, Path], Future[dict[str, Any]]]
"""Hands over a chunk and the path of its piece; the future holds the tally, as JSON."""

_labeller: Labeller | None = None
_problem: Exception | None = None


def _make(maker: Maker, plan: Plan) -> None:
    """Makes what answers in this process."""
    global _labeller, _problem  # noqa: PLW0603 (a pool's initialiser can leave something only there)
    _labeller = _problem = None
    try:
        _labeller = Labeller(maker(), plan)
    except Exception as error:  # raised where somebody listens: with the first chunk
        _problem = error


def _start(maker: Maker, plan: Plan) -> None:
    """Begins a process, which ends with its parent and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    _spare_pandas()
    _make(maker, plan)


class _NoPandas(MetaPathFinder):
    """Says of pandas that it is not installed."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        del path, target
        if fullname == "pandas":
            raise ModuleNotFoundError(fullname)


def _spare_pandas() -> None:
    """Lets pyarrow look for pandas now and not find it.

    It looks when it first makes an array of a list, and imports what it finds: a third of the time that a process takes
    to start, for something that no row needs. The process is ours alone.
    """
    pa, _ = pyarrow()
    sys.meta_path.insert(0, finder := _NoPandas())
    pa.array([0])
    sys.meta_path.remove(finder)


def _end_with(sentinel: int) -> None:
    """Ends this process when its parent is gone, also when that was killed and could not say so."""
    wait_for_any([sentinel])
    os._exit(1)


def _make_part(chunk: Chunk, path: Path) -> dict[str, Any]:
    """Labels a chunk into its piece; returns the tally."""
    if _labeller is None:
        raise _problem or ClassifierError("this process was not started to label")
    piece, tally = _labeller.label(chunk)
    write_piece(path, piece, tally)
    return tally.to_json()


def _make_part_here(chunk: Chunk, path: Path) -> Future[dict[str, Any]]:
    """As a process would, at once and in this one."""
    future: Future[dict[str, Any]] = Future()
    try:
        future.set_result(_make_part(chunk, path))
    except Exception as error:
        future.set_exception(error)
    return future


def _hand_over(pool: Executor, chunk: Chunk, path: Path) -> Future[dict[str, Any]]:
    """Hands over a chunk as a file beside its piece.

    A pool's pipe takes 64 kB. Where a chunk is larger and a process ends before it has read it, Pythons without the fix
    of python/cpython#94777 wait for ever for the rest to be read.
    """
    handed = path.with_suffix(".chunk")
    handed.write_bytes(pickle.dumps(chunk, pickle.HIGHEST_PROTOCOL))
    return pool.submit(_make_handed, handed, path)


def _make_handed(handed: Path, path: Path) -> dict[str, Any]:
    chunk = pickle.loads(handed.read_bytes())  # noqa: S301 (ours, of a moment ago)
    handed.unlink()
    return _make_part(chunk, path)


@contextlib.contextmanager
def processes_of(count: int, maker: Maker, plan: Plan) -> Iterator[Submit]:
    """Processes that make pieces of chunks; left early, it stops them at once. A single one is this process itself.

    Raises:
        ClassifierError: a process died.
    """
    if count == 1:
        _make(maker, plan)
        yield _make_part_here
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count, context, _start, (maker, plan))
    try:
        yield partial(_hand_over, pool)
    except BrokenProcessPool:
        raise ClassifierError(
            "a labelling process died (killed by the system, perhaps for memory); run the same command again to go "
            "on, with fewer --processes if it happens again"
        ) from None
    except BaseException:
        for process in list((pool._processes or {}).values()):  # what they are at would only be made again
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
