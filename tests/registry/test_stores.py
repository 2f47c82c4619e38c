"""Where a registry is: stores that fail, lack something or cannot be written, and what is said of them."""

from __future__ import annotations

import contextlib
import shutil
from unittest import mock

import fsspec
import pytest

from classifier.bundle import read_bundle
from classifier.errors import BundleError, SettingsError
from classifier.registry import Registry
from tests.registry.support import DAY, bundle_files, numbers, stored


@pytest.mark.parametrize("part", ["te[am]", "te*m", "te?m"])
def test_signs_of_patterns_in_an_address_are_letters(url, tmp_path, bundles, versions, part):
    """In a registry whose address holds [, * or ? what is removed goes, and what is in one that they match stays."""
    now = [1000 * DAY]
    signed, plain = (Registry(f"{url}/{p}", cache=tmp_path / "c", clock=lambda: now[0]) for p in (part, "team"))
    for registry in (signed, plain):
        registry.add(bundles[0])
        registry.promote(versions[0])
    for registry in (signed, plain):
        registry._objects.upload("bundles/same-00000000", {"bundle/README.md": bundles[0] / "README.md"})
    before = bundle_files(plain)
    signed._objects.discard("bundles/same-00000000")
    assert bundle_files(plain) == before
    signed.add(bundles[1])
    now[0] += 100 * DAY
    assert signed.gc() == [versions[1]]
    assert stored(signed) == {signed.state().folders[versions[0]]}


def test_an_upload_that_goes_on_is_not_taken_for_a_crash(registry, bundles, tmp_path):
    """A folder that no event names is left alone for a day, however eager gc is."""
    registry._objects.upload("bundles/unfinished-00000000", {"bundle/README.md": bundles[0] / "README.md"})
    assert registry.gc(older_than_days=0) == []
    assert stored(registry) == {"bundles/unfinished-00000000"}


def test_a_store_without_exclusive_creation_is_read_and_not_written(tmp_path, bundles, versions):
    """Where two writers could overwrite each other a registry serves, and refuses every change."""
    registry = Registry(tmp_path / "registry")
    registry.add(bundles[0])
    registry.promote(versions[0])
    shutil.make_archive(str(tmp_path / "registry"), "zip", tmp_path, "registry")
    zipped = Registry(f"zip://registry::{tmp_path}/registry.zip", cache=tmp_path / "cache")
    assert zipped.resolve("current") == versions[0]
    assert read_bundle(zipped.fetch("current")).version == versions[0]
    for change in (
        lambda: zipped.add(bundles[1]),
        lambda: zipped.promote(versions[0]),
        lambda: zipped.gc(older_than_days=0),
    ):
        with pytest.raises(SettingsError, match="two writers"):
            change()
    with pytest.raises(SettingsError, match="cannot be used"):
        Registry("nosuchprotocol://x")
    with pytest.raises(BundleError, match="the store failed"):
        Registry(f"zip://registry::{tmp_path}/nowhere.zip")


def test_a_store_whose_listings_take_no_option_is_read(tmp_path, bundles, versions):
    """A filesystem such as SFTP's, SMB's or one behind a cache of files lists a path and knows of no `refresh`."""
    url = f"memory://registry-{next(numbers)}"
    registry = Registry(url, cache=tmp_path / "cache")
    registry.promote(registry.add(bundles[0]))
    assert Registry(f"filecache::{url}", cache=tmp_path / "other").resolve("current") == versions[0]


def test_a_full_disk_here_is_not_the_stores_trouble(small_disk, tmp_path, bundles):
    """Where the copy of a remote bundle cannot be written the message names its folder, and not the registry."""
    disk, _ = small_disk
    url = f"memory://registry-{next(numbers)}"
    registry = Registry(url, cache=tmp_path / "cache")
    registry.promote(registry.add(bundles[0]))
    (disk / "bundles").mkdir()
    with contextlib.suppress(OSError), (disk / "fill").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with pytest.raises(BundleError, match=rf"^{disk}/bundles/\w+: cannot be written \(No space left"):
        Registry(url, cache=disk).fetch("current")


def test_a_store_whose_client_is_not_installed_says_what_brings_it(monkeypatch):
    """The extra for S3 is named."""

    def absent(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(SettingsError, match=r"Install s3fs .*; pip install 'request-complexity-classifier\[s3\]'"):
        Registry("s3://bucket/registry")


def test_a_store_that_overwrites_after_all_is_refused(monkeypatch, tmp_path, bundles):
    """A store, or a client of it, that ignores the condition is found out before anything is written there."""
    registry = Registry(f"memory://registry-{next(numbers)}", cache=tmp_path / "cache")
    pipe = registry._objects._fs.pipe_file
    monkeypatch.setattr(registry._objects._fs, "pipe_file", lambda path, data, mode="": pipe(path, data))
    with pytest.raises(SettingsError, match="ignores If-None-Match"):
        registry.add(bundles[0])
    assert registry._objects.names("bundles") == registry._objects.names("events") == []


def test_a_change_whose_answer_was_lost_is_not_made_again(monkeypatch, tmp_path, bundles, versions):
    """Where the store wrote and the answer did not arrive, rolling back reports what it did and not a conflict."""
    registry = Registry(f"memory://registry-{next(numbers)}", cache=tmp_path / "cache")
    for n in (0, 1):
        registry.add(bundles[n])
        registry.promote(versions[n])
    pipe = registry._objects._fs.pipe_file

    def written_and_lost(path, data, mode):
        pipe(path, data, mode=mode)
        raise FileExistsError  # what a client says that tried again by itself

    monkeypatch.setattr(registry._objects._fs, "pipe_file", written_and_lost)
    assert registry.rollback().aliases == {"current": versions[0], "previous": versions[1]}
    assert [e.action for e in registry.history()][-2:] == ["promote", "rollback"]


def test_a_store_that_fails_is_one_error_of_ours(monkeypatch, url, tmp_path, bundles, versions):
    """Whatever a store raises, callers see that the registry cannot be used, and nobody a traceback."""
    registry = Registry(url, cache=tmp_path / "cache")
    registry.add(bundles[0])
    registry.promote(versions[0])
    fails = mock.Mock(side_effect=RuntimeError("no route to host"))
    for name in ("ls", "cat_file", "pipe_file", "put_file", "find", "rm"):
        monkeypatch.setattr(registry._objects._fs, name, fails)
    for use in (registry.state, registry.history, registry.fetch, lambda: registry.promote(versions[0])):
        with pytest.raises(BundleError, match=r"the store failed \(RuntimeError: no route to host\)"):
            use()


def test_a_password_in_an_address_is_not_shown():
    """A server logs each failure of its registry."""
    with pytest.raises(BundleError, match=r"ftp://router:\*\*\*@127\.0\.0\.1:1/bundles: the store failed"):
        Registry("ftp://router:secret@127.0.0.1:1/bundles").state()


def test_a_registry_that_cannot_be_there_is_said(tmp_path, bundles):
    """A path that leads through a file is an error that names the path."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BundleError, match=r"file: the store failed \(NotADirectoryError"):
        Registry(tmp_path / "file").add(bundles[0])
