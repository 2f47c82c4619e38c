"""The folder that a cluster's nodes write into, each for itself: on a shared disk, or in an object store.

Knows nothing of what is labelled there, or of the cluster.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from classifier.addresses import without_secrets
from classifier.durable import explained, write_whole
from classifier.errors import ClassifierError, InputError, absent_client
from classifier.objects import names_in, opened, protocols_of
from classifier.run_manifest import CLUSTER_MANIFEST, manifest_of


class Target:
    """The folder that every node writes into: on a shared disk, or at an fsspec URL.

    Attributes:
        url: as given, less its password.
        shared_url: for processes that run elsewhere; it holds the password.
    """

    def __init__(self, url: str) -> None:
        self.url = without_secrets(url)
        try:
            self._fs, self._root = opened(url)
        except (ImportError, ValueError) as error:
            raise InputError(f"{self.url}: {absent_client(error)}") from error
        self._local = "file" in protocols_of(self._fs)
        # What fsspec makes of a path does not say on whose disk it is, where its URL names a host.
        self.shared_url = str(self._fs.unstrip_protocol(self._root)) if self._local else url

    def write(self, name: str, data: bytes) -> None:
        """Writes a file that appears whole.

        Raises:
            InputError: it cannot be written.
        """
        path = f"{self._root}/{name}"
        with self._reached():
            if self._local:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                write_whole(Path(path), data)
            else:
                self._fs.pipe_file(path, data)

    def read(self, name: str) -> bytes | None:
        """The bytes of a file; None where there is none."""
        with self._reached(), contextlib.suppress(FileNotFoundError):
            return bytes(self._fs.cat_file(f"{self._root}/{name}"))
        return None

    def holds(self, name: str) -> bool:
        """Whether there is a file of that name."""
        with self._reached():
            return bool(self._fs.exists(f"{self._root}/{name}"))

    def names(self) -> list[str]:
        """Names in the folder."""
        with self._reached(), contextlib.suppress(FileNotFoundError):
            return names_in(self._fs, self._root)
        return []

    def parts(self) -> set[tuple[int, int]]:
        """The pieces that are there, by group and chunk."""
        found = (re.fullmatch(r"part-(\d+)-(\d+)\.parquet", name) for name in self.names())
        return {(int(match[1]), int(match[2])) for match in found if match}

    def manifest(self) -> dict[str, Any] | None:
        """What the run in this folder is about; None where there is none.

        Raises:
            InputError: it is damaged, or another's.
        """
        data = self.read(CLUSTER_MANIFEST)
        return None if data is None else manifest_of(data, f"{self.url}/{CLUSTER_MANIFEST}")

    def discard(self, name: str) -> None:
        """Deletes a folder in it."""
        with self._reached(), contextlib.suppress(FileNotFoundError):
            self._fs.rm(f"{self._root}/{name}", recursive=True)

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """Says what to do where the folder cannot be reached or written; every store has errors of its own."""
        try:
            with explained(self.url, "make space, then run the same command again: what is done is kept"):
                yield
        except ClassifierError:
            raise
        except Exception as error:
            raise InputError(
                f"{self.url}: cannot be reached ({type(error).__name__}: {str(error)[:120]}); run the same command "
                "again to go on"
            ) from error
