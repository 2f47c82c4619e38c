"""Files in a folder or an object store: created only where there is none, uploaded and copied together.

The one operation that everything stands on is `create`: an object appears whole, and only if there was none. A local
folder has it through a hard link, S3 through `If-None-Match`, memory through a lock. Elsewhere fsspec looks first and
then writes, so such a store is read and not written.

Knows nothing of bundles, names or versions.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import secrets
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from classifier.addresses import without_secrets
from classifier.checksums import sha256, verify
from classifier.durable import copy_durably, create_file, staged_folder
from classifier.errors import BundleCorrupt, BundleError, ClassifierError, SettingsError, absent_client
from classifier.texts import parsed

EXCLUSIVE = ("file", "memory", "s3")
"""Stores tested to create an object only where there is none."""
LISTING = "files.json"
"""Beside what is uploaded: sha256 by file. Written last: without it an upload never finished."""
_memory = threading.Lock()
_NO_TURN = contextlib.nullcontext()


class Objects:
    """Files below a folder or an fsspec URL.

    Attributes:
        url: as given, less its password.
        local: whether they are plain files.

    Every method raises BundleError where the store cannot be reached, or refuses.

    Raises:
        SettingsError: the URL names no store.
    """

    def __init__(self, url: str) -> None:
        self.url = without_secrets(url)
        try:
            self._fs, root = opened(url)
        except (ImportError, ValueError, TypeError) as error:
            raise SettingsError(f"registry: {self.url} {absent_client(error)}") from error
        except OSError as error:  # some stores are connected to at once
            raise _failed(self.url, error) from error
        protocols = protocols_of(self._fs)
        self.local = "file" in protocols
        self._exclusive = bool(protocols & set(EXCLUSIVE))
        self._proved = self.local
        # fsspec's memory looks and then writes, and its readers share one position: one at a time there.
        self._turn: contextlib.AbstractContextManager[object] = _memory if "memory" in protocols else _NO_TURN
        self._root = root.rstrip("/")

    def path(self, *parts: str) -> str:
        """Where a file is, as the store names it; a path where it is local."""
        return "/".join((self._root, *parts))

    def shown(self, *parts: str) -> str:
        """The same for people: some stores' names are URLs, which may hold a password."""
        return without_secrets(self.path(*parts))

    def prove(self) -> None:
        """Makes sure, once, that the store refuses to create what is there: several writers are safe on no other.

        Raises:
            SettingsError: it does not.
        """
        unsafe = f"registry: {self.url}: two writers could overwrite each other there; "
        if not self._exclusive:
            raise SettingsError(f"{unsafe}it can be read, but written only on {', '.join(EXCLUSIVE)}")
        if self._proved:
            return
        folder = f"bundles/proof-{secrets.token_hex(4)}"
        self.create(f"{folder}/first", b"1")
        try:
            if self.create(f"{folder}/first", b"2"):
                raise SettingsError(f"{unsafe}it ignores If-None-Match; use another store, or a later s3fs")
        finally:
            self.discard(folder)
        self._proved = True

    def create(self, name: str, data: bytes) -> bool:
        """Creates a file, whole, only if there is none of that name; False where there is another's.

        Where the answer is lost on its way, the file itself says whether it was written.
        """
        path = self.path(name)
        with self._guarded():
            if self.local:
                return create_file(Path(path), data)
            try:
                with self._turn:
                    self._fs.pipe_file(path, data, mode="create")
            except Exception as error:  # each store has errors of its own
                if self._holds(name, data):
                    return True
                if _taken(error):
                    return False
                raise
            return True

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            FileNotFoundError: there is none.
        """
        if self.local and not Path(self.path(name)).is_file():  # a pipe would be waited for
            raise FileNotFoundError(self.path(name))
        with self._guarded(missing_is_an_answer=True), self._turn:
            return bytes(self._fs.cat_file(self.path(name)))

    def names(self, folder: str) -> list[str]:
        """Names in a folder, sorted; none where there is no such folder."""
        try:
            with self._guarded(missing_is_an_answer=True):
                return names_in(self._fs, self.path(folder))
        except FileNotFoundError:
            return []

    def upload(self, folder: str, files: Mapping[str, Path]) -> None:
        """Copies local files into the new folder `folder`, each under its name there, and then their listing."""
        listing: dict[str, str] = {}
        try:
            with self._guarded():
                for name, source in files.items():
                    listing[name] = sha256(source)
                    if self.local:
                        copy_durably(source, Path(self.path(folder, name)))
                    else:
                        self._fs.put_file(str(source), self.path(folder, name))
            self.create(f"{folder}/{LISTING}", json.dumps(listing, indent=1).encode())
        except BaseException:
            with contextlib.suppress(BundleError):  # gc takes what cannot be taken back now
                self.discard(folder)
            raise

    def listing(self, folder: str, kind: str) -> dict[str, str]:
        """sha256 by file of what was uploaded as `kind`.

        Raises:
            BundleCorrupt: the upload never finished, or was damaged.
        """
        try:
            files = parsed(self.read(f"{folder}/{LISTING}"))
            found = {name.removeprefix(f"{kind}/"): str(d) for name, d in files.items() if name.startswith(f"{kind}/")}
        except (FileNotFoundError, AttributeError) as error:
            raise BundleCorrupt(f"{self.shown(folder)}: {LISTING} is not readable; add the bundle again") from error
        if not all(map(_stays_inside, found)):
            raise BundleCorrupt(f"{self.shown(folder)}: {LISTING} names files outside its folder; add the bundle again")
        return found

    def check(self, folder: str, kind: str) -> None:
        """Reads what was uploaded as `kind`, every byte of it.

        Raises:
            BundleCorrupt: a file is missing or altered.
        """
        for name, stated in self.listing(folder, kind).items():
            try:
                found = hashlib.sha256(self.read(f"{folder}/{kind}/{name}")).hexdigest()
            except FileNotFoundError:
                found = ""
            if found != stated:
                raise BundleCorrupt(f"{self.shown(folder, kind)}: {name} is missing or altered; add the bundle again")

    def copy(self, folder: str, kind: str, target: Path) -> Path:
        """A verified local copy, in the folder `target`, which appears whole; one that is there and whole is used.

        Raises:
            BundleCorrupt: a file is missing or altered.
            BundleError: the store cannot be reached, or `target` not be written.
        """
        files = self.listing(folder, kind)
        try:
            if target.is_dir():
                with contextlib.suppress(BundleCorrupt):
                    verify(target, files)
                    return target
            target.parent.mkdir(parents=True, exist_ok=True)
            with staged_folder(target) as staging:
                for name in files:
                    self._copy_file(f"{folder}/{kind}/{name}", staging / name)
                verify(staging, files)
                staging.chmod(0o755)
                _put(staging, target, files)
        except OSError as error:
            advice = "check the space and the rights, or choose another folder"
            raise BundleError(f"{target}: cannot be written ({error.strerror}); {advice}") from error
        return target

    def _copy_file(self, name: str, target: Path) -> None:
        """Copies a file out of the store, if there is one; raises OSError where it cannot be written."""
        try:
            data = self.read(name)  # all of it: so a full disk here is not taken for the store's trouble
        except FileNotFoundError:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def written_at(self, folder: str) -> float | None:
        """When something was last written in a folder, seconds since the epoch; None where the store does not tell."""
        times: list[float] = []
        with self._guarded():
            found = self._fs.find(self.path(folder), withdirs=True, detail=True)
        for info in found.values():
            stamp = next((info[k] for k in ("mtime", "LastModified", "created") if k in info), None)
            if isinstance(stamp, dt.datetime):
                times.append(stamp.timestamp())
            elif stamp is not None:
                times.append(float(stamp))
        return max(times, default=None)

    def discard(self, folder: str) -> None:
        """Deletes a folder, the listing first, so that what is half deleted is seen to be unfinished."""
        for name in (f"{folder}/{LISTING}", folder):
            with contextlib.suppress(FileNotFoundError), self._guarded(missing_is_an_answer=True):
                self._remove(self.path(name))

    def _remove(self, path: str) -> None:
        """Deletes a file, or a folder with all that is in it, of exactly that name."""
        if self.local:
            self._fs.rm(path, recursive=True)
            return
        # Elsewhere `rm` takes [, * and ? for a pattern: it would miss the folder, and may meet another.
        found = self._fs.find(path, withdirs=True, detail=True)
        for name in sorted(found, reverse=True):  # what is in a folder before the folder
            if found[name].get("type") != "directory":
                self._fs.rm_file(name)
                continue
            with contextlib.suppress(OSError):  # S3 has no folders
                self._fs.rmdir(name)

    def _holds(self, name: str, data: bytes) -> bool:
        try:
            return self.read(name) == data
        except (FileNotFoundError, BundleError):
            return False

    @contextlib.contextmanager
    def _guarded(self, *, missing_is_an_answer: bool = False) -> Iterator[None]:
        """Turns the store's trouble into BundleError."""
        try:
            yield
        except ClassifierError:
            raise
        except Exception as error:  # each store has errors of its own, and not all are OSErrors
            if missing_is_an_answer and isinstance(error, FileNotFoundError):
                raise
            raise _failed(self.url, error) from error


def opened(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URL, and where it stands there; of S3 one that remembers no listing.

    Threads share a filesystem, and s3fs looks a file up in what any of them had listed before: one that is newer was
    said to be missing.
    """
    options = {name: {"use_listings_cache": False} for name in ("s3", "s3a") if f"{name}://" in url}
    filesystem, path = fsspec.core.url_to_fs(url, **options)
    return filesystem, str(path)


def protocols_of(filesystem: Any) -> set[str]:
    """What URLs of an fsspec filesystem begin with, before `://`; `file` where it is this machine's."""
    named = filesystem.protocol
    return {named} if isinstance(named, str) else set(named)


def names_in(filesystem: Any, folder: str) -> list[str]:
    """Names in a folder of an fsspec filesystem as it is now, sorted.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    filesystem.invalidate_cache()
    # Threads share a filesystem of asynchronous calls with its cache of listings, if it has one: what another asked
    # earlier may be put there at any time. Others, such as SFTP's and SMB's, take no `refresh`.
    fresh = {"refresh": True} if getattr(type(filesystem), "async_impl", False) else {}
    return sorted(PurePosixPath(path).name for path in filesystem.ls(folder, detail=False, **fresh))


def _put(staging: Path, target: Path, files: Mapping[str, str]) -> None:
    """Renames a verified copy to `target`; another process's good one stays, and a damaged one makes room.

    Raises:
        OSError: `target` cannot be written.
    """
    with contextlib.suppress(OSError):
        staging.rename(target)
        return
    with contextlib.suppress(BundleCorrupt):
        verify(target, files)
        return
    # Under a name of its own: what another puts in its place meanwhile is not what is deleted.
    with staged_folder(target) as aside:
        with contextlib.suppress(FileNotFoundError):
            target.rename(aside / target.name)
        with contextlib.suppress(OSError):
            staging.rename(target)
            return
    verify(target, files)  # another process was faster, with the same content


def _failed(url: str, error: Exception) -> BundleError:
    said = getattr(error, "strerror", None) or without_secrets(str(error).partition("\n")[0]) or "it does not say why"
    what = f"the store failed ({type(error).__name__}: {said})"
    return BundleError(f"registry: {url}: {what}; check the address, the rights and the space")


def _stays_inside(name: str) -> bool:
    """Whether a path leads into the folder that it is joined to: who can write to the store can write a listing."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _taken(error: BaseException) -> bool:
    """Whether a store said that the file is there already, or that another is writing it."""
    # S3 answers 412, or 409 where two come at once. s3fs makes FileExistsError of it only where the server names the
    # condition, as AWS does.
    response = getattr(error.__cause__, "response", None) or {}
    return isinstance(error, FileExistsError) or response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (
        409,
        412,
    )
