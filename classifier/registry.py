"""Names for bundles: `current`, `candidate`, `previous`, and the history of who promoted what and why.

Layout, in a folder or at any fsspec URL whose store can create an object only if it is not there:

    events/00000007.json            what happened, and all names and versions after it
    bundles/VERSION-1a2b3c4d/       bundle/, checkpoint/ beside it, and files.json with a sha256 of each file

Theory of operation. The events are the state, and changes to it are serialised (`classifier.history`). Folders are
written before an event names them and their names are never used twice; gc takes a version out of the state first and
deletes its folder after. So a reader never sees half a bundle, and a deletion never meets a new upload.

Knows nothing of models or servers.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from classifier.bundle import FILES, MANIFEST, is_folder, read_bundle
from classifier.checksums import hashes, verify
from classifier.errors import BundleCorrupt, BundleError, BundleNotFound, SettingsError
from classifier.history import Event, History
from classifier.objects import Objects
from classifier.settings import cache_folder

_UPLOAD_SECONDS = 86_400.0
"""A folder that no event names yet may still be being written for so long."""


class Registry:
    """Bundles by name, in a folder or an object store. Safe with several writers and readers.

    Args:
        url: a folder or an fsspec URL.
        cache: folder for copies of remote bundles; by default the user's cache.
        by: who acts; by default user@host.
        clock: seconds since the epoch.

    Every method raises BundleError where the store cannot be reached; those that write raise SettingsError where two
    writers could overwrite each other.

    Raises:
        SettingsError: the URL names no store.
    """

    def __init__(
        self,
        url: str | Path,
        *,
        cache: str | Path | None = None,
        by: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._objects = Objects(str(url))
        self.url = self._objects.url
        self._cache = Path(cache) if cache else None
        self._clock = clock
        self._history = History(self._objects, by=by, clock=clock)

    def state(self) -> Event:
        """The last event: every alias and version.

        Raises:
            BundleError: the registry cannot be read.
        """
        return self._history.last()

    def history(self) -> list[Event]:
        """Every event, oldest first."""
        return self._history.events()

    def last_change(self) -> Event | None:
        """The promotion or rollback that made what is current so; None where there was none."""
        return next((event for event in self._history.backwards() if event.action in ("promote", "rollback")), None)

    def given_up(self) -> str:
        """The version that was left for what is current, where that had been current before; "" where it is new.

        A rollback does that, and so does promoting an earlier version by its name.
        """
        held = [event.version for event in self.history() if event.action in ("promote", "rollback")]
        return held[-2] if held[-1:] and held[-1] in held[:-1] else ""

    def resolve(self, name: str) -> str:
        """The version that an alias or a version names.

        Raises:
            BundleNotFound: there is none.
        """
        return _resolve(self.state(), name, self.url)

    def fetch(self, name: str = "current") -> Path:
        """A local folder with the bundle of that name, verified: the registry's own, or a copy in the cache.

        Raises:
            BundleNotFound: there is none of that name.
            BundleCorrupt: its files are not what its manifest says.
        """
        return self._local_folder(name, "bundle")

    def checkpoint(self, name: str = "current") -> Path | None:
        """A local folder with the checkpoint beside the bundle of that name, verified; None where it has none.

        Raises:
            BundleNotFound: there is none of that name.
            BundleCorrupt: a file is missing or altered.
        """
        state = self.state()
        if not self._objects.listing(state.folders[_resolve(state, name, self.url)], "checkpoint"):
            return None
        return self._local_folder(name, "checkpoint")

    def pull(self, name: str, target: str | Path) -> Path:
        """Copies the bundle of that name into the new folder `target`, verified, all at once.

        Raises:
            BundleNotFound: there is none of that name.
            BundleCorrupt: its files are not what its manifest says.
            BundleError: `target` exists.
        """
        target = Path(target)
        if os.path.lexists(target):  # a link that leads nowhere, too
            raise BundleError(f"{target}: already exists; choose another folder")
        state = self.state()
        return self._objects.copy(state.folders[_resolve(state, name, self.url)], "bundle", target)

    def add(
        self, path: str | Path, *, checkpoint: str | Path | None = None, candidate: bool = False, why: str = ""
    ) -> str:
        """Stores a verified bundle under its version; the same again changes nothing but the alias, and mends damage.

        Args:
            path: the bundle's folder.
            checkpoint: folder of the weights that retraining starts from; put beside a version that has none yet.
            candidate: make it the candidate.
            why: for the history.

        Returns:
            Its version.

        Raises:
            BundleNotFound: there is no bundle there.
            BundleCorrupt: it is not what its manifest says.
            BundleError: the checkpoint is no folder with files, or the version has another one already.
        """
        version = read_bundle(path).version
        weights = hashes(Path(checkpoint)) if checkpoint else {}
        if checkpoint and not weights:
            raise BundleError(f"{checkpoint}: no folder with weights; give the checkpoint's folder")
        self._objects.prove()
        has = functools.cache(lambda stored: self._has(stored, weights))  # a folder's files never change: one look
        before, folder = self.state().folders.get(version), ""
        if not has(before):
            folder = f"bundles/{version}-{secrets.token_hex(4)}"
            if before and not checkpoint:
                with contextlib.suppress(BundleCorrupt, BundleNotFound):
                    checkpoint = self.checkpoint(version)
            files = {f"bundle/{name}": Path(path) / name for name in (*FILES, MANIFEST)}  # nothing else lying there
            if checkpoint:
                files |= {f"checkpoint/{name}": Path(checkpoint) / name for name in weights or hashes(Path(checkpoint))}
            self._objects.upload(folder, files)

        def change(state: Event) -> Event | None:
            aliases = {**state.aliases, "candidate": version} if candidate else state.aliases
            if has(state.folders.get(version)):
                return None if aliases == state.aliases else replace(state, aliases=aliases)
            if not folder:
                raise BundleError(f"{self.url}: {version} was removed meanwhile; add it again")
            return replace(state, aliases=aliases, folders={**state.folders, version: folder})

        after = self._history.append("add", version, why, change)
        if folder and after.folders.get(version) != folder:
            self._objects.discard(folder)  # another writer stored the same version first
        return version

    def promote(self, name: str, *, why: str = "", expected: str | None = None) -> Event:
        """Makes a verified version the current one; what was current becomes the previous one.

        Args:
            name: an alias or a version.
            why: for the history.
            expected: the version that must still be current, for promoters that compared with it.

        Raises:
            BundleNotFound: there is none of that name.
            BundleCorrupt: its files are not what its manifest says.
            BundleError: another version than `expected` is current.
        """
        version = self.resolve(name)
        self.fetch(version)

        def change(state: Event) -> Event | None:
            _check_current(state, expected, self.url)
            current = state.aliases.get("current")
            _resolve(state, version, self.url)
            if current == version:
                return None
            aliases = {k: v for k, v in state.aliases.items() if (k, v) != ("candidate", version)}
            aliases["current"] = version
            if current:
                aliases["previous"] = current
            return replace(state, aliases=aliases)

        return self._history.append("promote", version, why, change)

    def rollback(self, *, why: str = "", expected: str | None = None) -> Event:
        """Makes the previous version the current one, and the current one the previous.

        Args:
            why: for the history.
            expected: the version that must still be current, for who judged it.

        Raises:
            BundleNotFound: there is no previous one.
            BundleCorrupt: its files are not what its manifest says.
            BundleError: another version than `expected` is current, or another became the previous one meanwhile.
        """
        version = self.resolve("previous")
        self.fetch(version)

        def change(state: Event) -> Event | None:
            _check_current(state, expected, self.url)
            if state.aliases.get("previous") != version:
                raise BundleError(f"{self.url}: somebody else changed what is previous; look and roll back again")
            return replace(state, aliases={**state.aliases, "current": version, "previous": state.aliases["current"]})

        return self._history.append("rollback", version, why, change)

    def gc(self, *, older_than_days: float = 30.0, dry_run: bool = False) -> list[str]:
        """Removes versions without an alias, and uploads that never finished, once they are old enough.

        Args:
            older_than_days: how long ago it was added, or lost its last alias; readers may still be at younger ones.
            dry_run: remove nothing.

        Returns:
            What is removed: versions, and folders of unfinished uploads.

        Raises:
            SettingsError: `older_than_days` is negative.
        """
        if not older_than_days >= 0:
            raise SettingsError(f"older_than_days: expected 0 or more, found {older_than_days:g}")
        before = self._clock() - older_than_days * 86_400
        earlier = self.state()

        def left(state: Event) -> dict[str, str]:
            kept = set(state.aliases.values())
            return {v: f for v, f in state.folders.items() if v in kept or state.since.get(v, 0.0) > before}

        def change(state: Event) -> Event | None:
            return None if left(state) == state.folders else replace(state, folders=left(state))

        # What the event took out counts, not what was seen before it.
        why = f"no alias for {older_than_days:g} days"
        after = replace(earlier, folders=left(earlier)) if dry_run else self._history.append("gc", "", why, change)
        removed = {v: f for v, f in earlier.folders.items() if v not in after.folders}
        # A folder that no event names was left by a crash, of a writer or of an earlier gc, unless it is being written.
        before = min(before, self._clock() - _UPLOAD_SECONDS)
        named = {*after.folders.values(), *removed.values()}
        unnamed = [f for f in (f"bundles/{name}" for name in self._objects.names("bundles")) if f not in named]
        orphans = [f for f in unnamed if (at := self._objects.written_at(f)) is not None and at <= before]
        if not dry_run:
            for folder in [*removed.values(), *orphans]:
                self._objects.discard(folder)
        return [*sorted(removed), *orphans]

    def _has(self, folder: str | None, weights: Mapping[str, str]) -> bool:
        """Whether a folder is there and whole, with the checkpoint of these sha256 by file where one is given."""
        if not folder:
            return False
        try:
            found = self._objects.listing(folder, "checkpoint") if weights else {}
            if found and found != weights:
                raise BundleError(
                    f"{self._objects.shown(folder)}: keeps the other checkpoint that it has; leave --checkpoint out"
                )
            for kind in ("bundle", "checkpoint") if weights else ("bundle",):
                self._objects.check(folder, kind)
        except BundleCorrupt:
            return False
        return bool(found) == bool(weights)

    def _local_folder(self, name: str, kind: str) -> Path:
        """The registry's own folder where it is local, else a copy in the cache; verified either way."""
        state = self.state()
        version = _resolve(state, name, self.url)
        folder = state.folders[version]
        if self._objects.local:
            path = Path(self._objects.path(folder, kind))
            verify(path, self._objects.listing(folder, kind))
        else:
            path = self._objects.copy(folder, kind, (self._cache or cache_folder()) / f"{kind}s" / version)
        if kind == "bundle":
            read_bundle(path)
        return path


def _check_current(state: Event, expected: str | None, url: str) -> None:
    current = state.aliases.get("current")
    if expected is not None and current != expected:
        raise BundleError(f"{url}: current is {current}, expected {expected}; compare again")


def _resolve(state: Event, name: str, where: str) -> str:
    version = state.aliases.get(name, name)
    if version not in state.folders:
        nothing = f"nothing yet; add one with 'classifier bundle promote ./FOLDER --registry {where}'"
        there = {alias for alias, of in state.aliases.items() if of in state.folders}
        known = ", ".join(sorted({*there, *state.folders})) or nothing
        meant = f"; did you mean ./{name}?" if not is_folder(name) and (Path(name) / MANIFEST).is_file() else ""
        raise BundleNotFound(f"{where}: no bundle {name!r} there; it has {known}{meant}")
    return version
