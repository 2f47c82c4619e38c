"""What lies in a registry's store, and a store that dies at its n-th change."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from classifier import objects
from classifier.registry import Registry

DAY = 86_400.0
STEPS = ("add", "promote", "rollback", "gc")
numbers = itertools.count()
"""Of registries in memory, which all tests share."""


def stored(registry: Registry) -> set[str]:
    """The folders with something in them; SeaweedFS lists the name of one that was emptied for a while."""
    folders = [f"bundles/{name}" for name in registry._objects.names("bundles")]
    return {folder for folder in folders if registry._objects.written_at(folder) is not None}


def bundle_files(registry: Registry) -> set[str]:
    """Every file below bundles/, as its store names it."""
    return set(registry._objects._fs.find(registry._objects.path("bundles")))


class Crash(BaseException):
    """The process dies here."""


class Dying:
    """Counts the changes of a store, and dies at the n-th: before it, or half-way through it."""

    def __init__(self, n: int) -> None:
        self.died = False
        self._n = n
        self._touched = itertools.count()
        self._dead = threading.Event()

    def at(self, original: Callable[..., Any], half: Callable[..., Any] | None = None) -> Callable[..., Any]:
        """The function, as one of the changes that are counted."""

        def run(*args: Any, **kwargs: Any) -> Any:
            if self._dead.is_set():
                raise Crash
            if next(self._touched) == self._n:
                self.died = True
                self._dead.set()
                if half is not None:
                    half(*args, **kwargs)
                raise Crash
            return original(*args, **kwargs)

        return run

    def inside(self, registry: Registry, patch: pytest.MonkeyPatch) -> None:
        """Lets this registry, and what is below it, die."""
        for owner, name, half in (
            (os, "link", None),
            (os, "fsync", None),
            (objects, "copy_durably", _half_a_file),
            (objects.Objects, "create", None),
            (objects.Objects, "copy", None),
            (objects.Objects, "discard", None),
        ):
            patch.setattr(owner, name, self.at(getattr(owner, name), half))
        if not registry._objects.local:
            patch.setattr(registry._objects, "_fs", _Filesystem(registry._objects._fs, self))


class _Filesystem:
    """An fsspec filesystem whose changes are counted."""

    def __init__(self, filesystem: Any, dying: Dying) -> None:
        self._filesystem, self._dying = filesystem, dying

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._filesystem, name)
        return self._dying.at(found) if name in ("pipe_file", "put_file", "rm_file") else found


def _half_a_file(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes()[: source.stat().st_size // 2])


def crash_points(
    monkeypatch: pytest.MonkeyPatch,
    action: str,
    url: str,
    tmp_path: Path,
    bundles: list[Path],
    versions: list[str],
    clock: list[float],
) -> Iterator[tuple[int, Registry]]:
    """Runs the action again and again on equal registries, dying at its 1st, 2nd, … change of the store.

    Yields the step and the registry as another process finds it then; the last one did not die.
    """
    for n in itertools.count():
        where = f"{url}-{n}"
        registry = Registry(where, cache=tmp_path / "cache", clock=lambda: clock[0])
        registry.add(bundles[0])
        registry.add(bundles[1])
        registry.promote(versions[0])
        registry.promote(versions[1])
        registry.add(bundles[2]) if action != "add" else None
        if action == "gc":
            clock[0] += 100 * DAY
        dying = Dying(n)
        with monkeypatch.context() as patch, contextlib.suppress(Crash):
            dying.inside(registry, patch)
            _act(registry, action, bundles, versions)
        yield n, Registry(where, cache=tmp_path / f"cache-{n}", clock=lambda: clock[0])
        if not dying.died:
            assert n > 2, "the action touched nothing: the test tests nothing"
            return


def _act(registry: Registry, action: str, bundles: list[Path], versions: list[str]) -> None:
    if action == "add":
        registry.add(bundles[2], candidate=True)
    elif action == "promote":
        registry.promote(versions[2])
    elif action == "rollback":
        registry.rollback()
    else:
        registry.gc(older_than_days=1)
