"""A new bundle beside the old one: looked for, verified, warmed, then swapped in between two requests.

A bundle that cannot be used is counted and remembered; the old one stays, and the bad one is not tried again until its
files change, something else is wanted or SIGHUP asks. Where storage fails it is tried again at every look. A shadow
bundle is kept up to date in the same way and scored off the hot path; a server starts without one.

Knows nothing of ports, calls or messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import queue
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from classifier.aside import aside
from classifier.bundle import FILES, MANIFEST, SHIPPED, is_folder
from classifier.errors import BundleCorrupt, BundleNotFound, ClassifierError
from classifier.kept import Kept
from classifier.routing import RoutingTable, read_table
from classifier.seams import Classifies
from classifier.settings import own_registry
from classifier.texts import parsed
from classifier.types import Decision

if TYPE_CHECKING:
    from classifier.telemetry import Metrics

log = logging.getLogger(__name__)
SHADOW_QUEUE = 64  # requests that may wait for the shadow; it is a sample, so more are dropped and counted
_VERDICTS = (BundleNotFound, BundleCorrupt)  # on a bundle; a store that failed says nothing of it, and is asked again
_LAST_RUNS_SECONDS = 0.5  # until requests that began with the engine before have it no more


class BundleSource(Protocol):
    """Where an engine comes from."""

    def wanted(self) -> str:
        """Identity of the bundle that should answer now; cheap.

        Raises:
            BundleError: there is none.
        """

    def stamp(self) -> str:
        """Changes when what is there may have become another, of the same identity."""

    def load(self) -> Classifies:
        """The engine of that bundle: verified, and warmed by its golden inputs.

        Raises:
            BundleError: it cannot be used.
        """


def routes_of(path: str) -> Kept[RoutingTable | None]:
    """The routing table in a TOML file; always None where `path` is empty.

    Raises:
        SettingsError: it cannot be used.
    """
    return Kept(lambda: read_table(path), Path(path)) if path else Kept(lambda: None)


class Fixed:
    """An engine that is there already."""

    def __init__(self, engine: Classifies) -> None:
        self._engine = engine

    def wanted(self) -> str:
        """See `BundleSource`."""
        return self._engine.bundle_version

    def stamp(self) -> str:
        """See `BundleSource`."""
        return ""

    def load(self) -> Classifies:
        """See `BundleSource`."""
        return self._engine


class Folder:
    """A bundle's folder; what is put in its place is taken over."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def wanted(self) -> str:
        """See `BundleSource`."""
        manifest = self._path / MANIFEST
        try:
            if not manifest.is_file():  # a pipe would be waited for
                raise FileNotFoundError(manifest)
            return str(parsed(manifest.read_bytes())["version"])
        except (OSError, KeyError, TypeError):
            raise BundleNotFound(
                f"{self._path}: no manifest.json with a version there; give a bundle's folder"
            ) from None

    def stamp(self) -> str:
        """See `BundleSource`; a copy into the folder may bring the manifest before the files that it names."""
        found = []
        for name in (*FILES, MANIFEST):
            with contextlib.suppress(OSError):
                facts = (self._path / name).stat()
                found.append(f"{name} {facts.st_ino} {facts.st_size} {facts.st_ctime_ns}")
        return "\n".join(found)

    def load(self) -> Classifies:
        """See `BundleSource`."""
        from classifier.engine import Engine

        while True:
            engine = Engine.from_pretrained(self._path)
            # Files are verified and then opened by their names: where another folder took the place meanwhile, the
            # graph may be that one's.
            if engine.bundle_version == self.wanted():
                return engine


class Named:
    """A name in the registry: an alias such as `current`, or a version."""

    def __init__(self, registry: str, name: str) -> None:
        from classifier.registry import Registry

        self._registry = Registry(registry)
        self._name = name

    def wanted(self) -> str:
        """See `BundleSource`."""
        return self._registry.resolve(self._name)

    def stamp(self) -> str:
        """See `BundleSource`; what is registered is whole."""
        return ""

    def load(self) -> Classifies:
        """See `BundleSource`."""
        from classifier.engine import Engine

        return Engine.from_pretrained(self._registry.fetch(self._name))


def source_of(name: str, registry: str) -> BundleSource:
    """What a bundle's name means.

    Args:
        name: a bundle's folder as ./NAME, or a name in the registry; empty means `current` of the registry that was
            given, or the shipped bundle where none was.
        registry: folder or URL; empty means the user's own, which names are looked up in but whose `current` is only
            served where it is asked for by name.
    """
    if is_folder(name):
        return Folder(name)
    if registry or name:
        return Named(registry or own_registry(), name or "current")
    return Folder(SHIPPED)


class Watched:
    """The engine of a source, loaded again when the source wants another.

    Args:
        what: "bundle" or "shadow", for logs and metrics.
        source: where it comes from.
        swap: takes the new engine; called on the event loop.
        metrics: counts.
    """

    def __init__(self, what: str, source: BundleSource, swap: Callable[[Classifies], None], metrics: Metrics) -> None:
        self._what, self._source, self._swap, self._metrics = what, source, swap, metrics
        self._have = ""
        self._refused = ("", "")
        self._trouble: tuple[str, type[ClassifierError]] | None = None
        self._engine: Classifies | None = None

    async def start(self) -> None:
        """Loads the first engine.

        Raises:
            BundleError: it cannot be used.
        """
        engine = await aside(self._source.load)
        self._have, self._engine = engine.bundle_version, engine
        self._swap(engine)

    async def check(self, *, again: bool = False) -> None:
        """Takes over what is wanted now; where nothing was started with, the first engine too.

        Args:
            again: also try what was refused before.
        """
        wanted = stamp = ""
        try:
            wanted = await aside(self._source.wanted)
            if wanted == self._have:
                self._refused, self._trouble = ("", ""), None  # what was refused may come back mended, of the same hash
                return
            stamp = await aside(self._source.stamp)
            if (wanted, stamp) == self._refused and not again:
                return
            engine = await aside(self._source.load)
        except ClassifierError as error:
            if isinstance(error, _VERDICTS):
                self._refused = wanted, stamp
            trouble = (wanted, type(error))
            if again or trouble != self._trouble:  # what lasts is said and counted once
                self._trouble = trouble
                self._metrics.reloaded(self._what, ok=False)
                log.warning("%s: %s; %s", self._what, error, f"{self._have} stays" if self._have else "it is awaited")
            return
        self._refused, self._trouble, before, self._have = ("", ""), None, self._have, engine.bundle_version
        old, self._engine = [self._engine], engine
        self._swap(engine)
        self._metrics.reloaded(self._what, ok=True)
        if not before:
            log.info("%s: %s", self._what, self._have)
            return
        log.info("%s: %s took over from %s", self._what, self._have, before)
        await asyncio.sleep(_LAST_RUNS_SECONDS)
        # Not on the event loop: to free a model takes it many milliseconds.
        await asyncio.to_thread(_free, old)


def _free(engines: list[Any]) -> None:
    """Lets go of engines, and gives their memory back to the machine where the C library has a word for that (glibc).

    Without it each reload left some 10 MB more in the allocator's pools, until there was enough to go round.
    """
    engines.clear()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class Shadow:
    """Scores a candidate on a share of the requests, on one thread, when no request waits; never answers.

    Args:
        share: of the requests, 0 to 1.
        busy: whether requests wait for a core right now.
        metrics: gets the pairs of tiers.
    """

    def __init__(self, share: float, busy: Callable[[], bool], metrics: Metrics) -> None:
        self.engine: Classifies | None = None
        self.share = share
        self._busy, self._metrics = busy, metrics
        self._queue: queue.Queue[tuple[Any, Decision] | None] = queue.Queue(SHADOW_QUEUE)
        self._random = random.Random()  # noqa: S311 - a sample, not a secret
        self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)
        self._thread.start()

    def offer(self, prepared: Any, decision: Decision) -> None:
        """Puts a request up for scoring, or drops it; never waits."""
        if self._random.random() >= self.share:
            return
        try:
            if self._busy():
                raise queue.Full  # noqa: TRY301 - the same end as a full queue
            self._queue.put_nowait((prepared, decision))
        except queue.Full:
            self._metrics.shadow_dropped()

    def close(self) -> None:
        """Ends the thread after the run at hand."""
        with contextlib.suppress(queue.Empty):
            while True:  # the thread takes from the queue, too: only the taking says that it is empty
                self._queue.get_nowait()
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            prepared, decision = item
            engine = self.engine
            if engine is None or engine.bundle_version == decision.bundle_version:  # promoted: it answers by now
                continue
            try:
                again = engine.prepare(prepared.request)
                other = engine.decide(again, engine.score(again))
            except Exception as error:  # a candidate's failure is a fact about the candidate
                log.warning("shadow: failed with %s", type(error).__name__)
                continue
            self._metrics.shadowed(decision.model_tier, other.model_tier)
