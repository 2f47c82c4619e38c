"""Names for bundles: versions, aliases, history; several writers and readers; crashes at every step.

In a folder, in memory, and with `make test-s3` on two S3 servers.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest import mock

import fsspec
import pytest

from classifier import durable, objects
from classifier.bundle import FILES, MANIFEST, SHIPPED, read_bundle
from classifier.errors import BundleCorrupt, BundleError, BundleNotFound, SettingsError
from classifier.history import event_bytes
from classifier.registry import Registry
from classifier.reload import source_of
from tests import s3_support
from tests.feedback_support import quick_folder
from tests.registry_support import DAY, STEPS, crash_points
from tests.tiny import tiny_bundle


@pytest.fixture(scope="session")
def bundles(tmp_path_factory) -> list[Path]:
    """Three bundles of different versions."""
    folder = tmp_path_factory.mktemp("bundles")
    return [tiny_bundle(folder / f"b{n}", scale=5.0 + n).path for n in range(3)]


@pytest.fixture(scope="session")
def versions(bundles) -> list[str]:
    """Their versions."""
    return [read_bundle(path).version for path in bundles]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """Weights as retraining keeps them."""
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 8)
    (folder / "config.json").write_text("{}")
    return folder


_numbers = itertools.count()


@pytest.fixture(scope="session")
def seaweedfs():
    """An S3 server."""
    with s3_support.running("seaweedfs") as server:
        yield server


@pytest.fixture(scope="session")
def moto():
    """An S3 server that words its errors as AWS does."""
    with s3_support.running("moto") as server:
        yield server


@pytest.fixture(params=["folder", "memory", *s3_support.installed()])
def url(request, monkeypatch):
    """A new registry's URL."""
    if request.param == "memory":
        yield f"memory://registry-{next(_numbers)}"
        return
    if request.param != "folder":
        server = request.getfixturevalue(request.param)
        monkeypatch.setitem(fsspec.config.conf, "s3", server.options)
        yield f"s3://{s3_support.BUCKET}/registry-{next(_numbers)}"
        return
    folder = quick_folder("classifier-registry-")
    yield str(folder / "registry")
    shutil.rmtree(folder)


@pytest.fixture
def registry(url, tmp_path):
    """A new registry."""
    return Registry(url, cache=tmp_path / "cache", by="tester")


def stored(registry: Registry) -> set[str]:
    """The folders with something in them; SeaweedFS lists the name of one that was emptied for a while."""
    folders = [f"bundles/{name}" for name in registry._objects.names("bundles")]
    return {folder for folder in folders if registry._objects.written_at(folder) is not None}


def bundle_files(registry: Registry) -> set[str]:
    """Every file below bundles/, as its store names it."""
    return set(registry._objects._fs.find(registry._objects.path("bundles")))


def test_a_registry_starts_empty(registry):
    """Nothing has a name yet, and asking for one says how to add one to this very registry."""
    assert registry.state().number == 0
    assert registry.history() == []
    how = re.escape(f"'classifier bundle promote ./FOLDER --registry {registry.url}'")
    with pytest.raises(BundleNotFound, match=f"nothing yet; add one with {how}"):
        registry.fetch("current")


def test_a_bundle_is_stored_under_its_content_hash(registry, bundles, versions):
    """What comes out is what went in, and the same again is no change."""
    assert registry.add(bundles[0]) == versions[0]
    number = registry.state().number
    assert registry.add(bundles[0]) == versions[0]
    assert registry.state().number == number
    assert read_bundle(registry.fetch(versions[0])).version == versions[0]


def test_promotion_and_rollback_move_the_aliases(registry, bundles, versions):
    """Current, candidate and previous are what the last changes made them, and rolling back twice is where it was."""
    registry.add(bundles[0])
    assert registry.promote(versions[0]).aliases == {"current": versions[0]}
    registry.add(bundles[1], candidate=True)
    assert registry.state().aliases == {"current": versions[0], "candidate": versions[1]}
    assert registry.promote("candidate").aliases == {"current": versions[1], "previous": versions[0]}
    assert registry.rollback().aliases == {"current": versions[0], "previous": versions[1]}
    assert registry.rollback().aliases == {"current": versions[1], "previous": versions[0]}


def test_promoting_what_is_current_changes_nothing(registry, bundles, versions):
    """A promotion that is repeated does not overwrite what was previous."""
    for n in (0, 1):
        registry.add(bundles[n])
        registry.promote(versions[n])
    again = registry.promote(versions[1])
    assert again.aliases == {"current": versions[1], "previous": versions[0]}
    assert again.number == registry.state().number == 4


def test_an_alias_whose_bundle_is_not_there_is_not_named_as_there(registry, bundles):
    """An event edited by hand may name a version that the registry lacks: what it has is said without that alias."""
    version = registry.add(bundles[0])
    event = replace(registry.promote(version), number=3, aliases={"current": "f" * 16})
    assert registry._objects.create("events/00000003.json", event_bytes(event))
    with pytest.raises(BundleNotFound, match=f"no bundle 'current' there; it has {version}$"):
        registry.resolve("current")


def test_nothing_to_roll_back_to_is_said(registry, bundles, versions):
    """Without a previous bundle there is no rollback."""
    registry.add(bundles[0])
    registry.promote(versions[0])
    with pytest.raises(BundleNotFound, match="'previous'"):
        registry.rollback()


def test_the_history_says_who_did_what_and_why(url, tmp_path, bundles, versions):
    """Every change is there with its actor, reason and time, and is never rewritten."""
    now = itertools.count(100)
    first = Registry(url, cache=tmp_path / "cache", by="ann@lab", clock=lambda: float(next(now)))
    first.add(bundles[0], why="nightly")
    Registry(url, cache=tmp_path / "cache", by="bob@desk", clock=lambda: 500.0).promote(versions[0], why="gate passed")
    told = [(e.number, e.action, e.version, e.by, e.why) for e in first.history()]
    assert told == [
        (1, "add", versions[0], "ann@lab", "nightly"),
        (2, "promote", versions[0], "bob@desk", "gate passed"),
    ]
    assert first.state().at == 500.0


def test_a_checkpoint_lies_beside_its_bundle(registry, bundles, versions, checkpoint):
    """Weights for retraining come back as they were; a bundle without them has none."""
    registry.add(bundles[0], checkpoint=checkpoint)
    registry.add(bundles[1])
    found = registry.checkpoint(versions[0])
    assert found is not None
    assert {p.name: p.read_bytes() for p in found.iterdir()} == {p.name: p.read_bytes() for p in checkpoint.iterdir()}
    assert registry.checkpoint(versions[1]) is None
    assert not (registry.fetch(versions[0]) / "model.safetensors").exists()


def test_a_checkpoint_may_come_later(registry, bundles, versions, checkpoint, tmp_path):
    """What was stored without weights gets them when it is added again with them; other weights are refused."""
    registry.promote(registry.add(bundles[0]))
    assert registry.add(bundles[0], checkpoint=checkpoint) == versions[0]
    found = registry.checkpoint("current")
    assert found is not None
    assert {p.name for p in found.iterdir()} == {p.name for p in checkpoint.iterdir()}
    assert read_bundle(registry.fetch("current")).version == versions[0]
    before = registry.state()
    registry.add(bundles[0], checkpoint=checkpoint)
    registry.add(bundles[0])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(BundleError, match="keeps the other checkpoint"):
        registry.add(bundles[0], checkpoint=tmp_path / "other")
    assert registry.state() == before


@pytest.mark.parametrize("what", ["nowhere", "a file", "an empty folder"])
def test_a_checkpoint_that_is_none_is_refused(registry, bundles, tmp_path, what):
    """A path that holds no weights is an error, and stores nothing."""
    path = tmp_path / "checkpoint"
    if what == "a file":
        path.write_bytes(b"weights")
    elif what == "an empty folder":
        path.mkdir()
    with pytest.raises(BundleError, match="no folder with weights"):
        registry.add(bundles[0], checkpoint=path)
    assert registry.state().folders == {}


def test_every_folder_of_a_new_registry_survives_a_power_cut(bundles, tmp_path, monkeypatch):
    """The names of new folders are flushed to disk as the files in them are."""
    flushed = set()
    fsync = durable.fsync
    monkeypatch.setattr(durable, "fsync", lambda path: (flushed.add(Path(path)), fsync(path)))
    Registry(tmp_path / "new" / "registry").add(bundles[0])
    root = tmp_path / "new" / "registry"
    [folder] = (root / "bundles").iterdir()
    assert {tmp_path, tmp_path / "new", root, root / "bundles", folder, folder / "bundle"} <= flushed


def test_only_a_whole_bundle_is_stored(registry, bundles, tmp_path):
    """A folder that is not what its manifest says is refused, and nothing of it is kept."""
    broken = tmp_path / "broken"
    shutil.copytree(bundles[0], broken)
    (broken / "policy.json").write_text("{}")
    with pytest.raises(BundleCorrupt, match=r"policy\.json"):
        registry.add(broken)
    with pytest.raises(BundleNotFound):
        registry.add(tmp_path / "nowhere")
    assert registry.state().folders == {}


def test_what_lies_in_a_bundles_folder_and_is_not_of_it_stays_there(registry, bundles, tmp_path):
    """A registry that others read gets the files of the manifest, no export with prompts, link or .env beside them."""
    crowded = Path(shutil.copytree(bundles[0], tmp_path / "crowded"))
    (crowded / "feedback.jsonl").write_text("{}")
    (crowded / "link").symlink_to(__file__)
    (crowded / ".git").mkdir()
    (crowded / ".git" / "config").write_text("")
    registry.promote(registry.add(crowded))
    found = registry.fetch("current")
    assert {p.relative_to(found).as_posix() for p in found.rglob("*")} == {*FILES, MANIFEST}


def test_a_bundle_that_was_damaged_is_neither_served_nor_promoted(tmp_path, bundles, versions):
    """A file that changed in the registry is named; what was current stays."""
    registry = Registry(tmp_path / "registry")
    for bundle in bundles[:2]:
        registry.add(bundle)
    registry.promote(versions[0])
    model = registry.fetch(versions[1]) / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    for attempt in (registry.fetch, registry.promote):
        with pytest.raises(BundleCorrupt, match=r"model\.onnx"):
            attempt(versions[1])
    model.unlink()
    with pytest.raises(BundleCorrupt, match=r"model\.onnx"):
        registry.fetch(versions[1])
    assert registry.resolve("current") == versions[0]


@pytest.mark.parametrize("damage", ["altered", "missing", "unlisted"])
def test_a_damaged_bundle_is_mended_by_adding_it_again(registry, bundles, versions, checkpoint, tmp_path, damage):
    """What the error says helps: the same version again, whole, under the names that it had, with its weights."""
    registry.promote(registry.add(bundles[0], checkpoint=checkpoint))
    before, name = registry.state(), "files.json" if damage == "unlisted" else "bundle/model.onnx"
    path = registry._objects.path(before.folders[versions[0]], name)
    registry._objects._fs.rm_file(path)
    if damage == "altered":
        registry._objects._fs.pipe_file(path, b"")
    elsewhere = Registry(registry.url, cache=tmp_path / "elsewhere")
    with pytest.raises(BundleCorrupt, match="add the bundle again"):
        elsewhere.fetch("current")
    assert registry.add(bundles[0]) == versions[0]
    assert read_bundle(elsewhere.fetch("current")).version == versions[0]
    assert registry.state().aliases == before.aliases
    assert (elsewhere.checkpoint("current") is None) == (damage == "unlisted")
    after = registry.state()
    registry.add(bundles[0])
    assert registry.state() == after


def test_a_damaged_checkpoint_is_mended_by_adding_it_again(registry, bundles, checkpoint, tmp_path):
    """Weights that were altered in the store are replaced by the same ones."""
    registry.promote(registry.add(bundles[0], checkpoint=checkpoint))
    folder = next(iter(registry.state().folders.values()))
    path = registry._objects.path(folder, "checkpoint", "model.safetensors")
    registry._objects._fs.rm_file(path)
    registry._objects._fs.pipe_file(path, b"")
    registry.add(bundles[0], checkpoint=checkpoint)
    found = Registry(registry.url, cache=tmp_path / "elsewhere").checkpoint("current")
    assert found is not None
    assert (found / "model.safetensors").read_bytes() == (checkpoint / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "name", ["bundle/../../../stolen", "bundle//{root}/stolen", "bundle/a\0b"], ids=["up", "root", "nul"]
)
def test_a_listing_names_no_file_outside_its_folder(tmp_path, bundles, name):
    """Whoever can write to the store has no file written where he likes on the machines that read from it."""
    registry = Registry(tmp_path / "registry")
    registry.promote(registry.add(bundles[0]))
    [listing] = (tmp_path / "registry").glob("bundles/*/files.json")
    (tmp_path / "registry" / "stolen").write_text("x")
    more = {name.format(root=tmp_path): hashlib.sha256(b"x").hexdigest()}
    listing.write_text(json.dumps(json.loads(listing.read_text()) | more))
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    with pytest.raises(BundleCorrupt, match="outside its folder"):
        registry.pull("current", tmp_path / "a" / "b" / "c" / "mine")
    assert list(tmp_path.glob("a/**/stolen")) == []
    listing.write_text("[]")
    with pytest.raises(BundleCorrupt, match="not readable"):
        registry.fetch("current")


def test_a_damaged_copy_in_the_cache_is_fetched_again(tmp_path, bundles, versions):
    """Of a remote registry a local copy is used while it is whole."""
    registry = Registry(f"memory://registry-{next(_numbers)}", cache=tmp_path / "cache")
    registry.add(bundles[0])
    copy = registry.fetch(versions[0])
    (copy / "model.onnx").write_bytes(b"")
    assert read_bundle(registry.fetch(versions[0])).version == versions[0]
    before = (copy / "model.onnx").stat().st_mtime_ns
    assert registry.fetch(versions[0]) == copy
    assert (copy / "model.onnx").stat().st_mtime_ns == before
    assert list(copy.parent.iterdir()) == [copy]


@pytest.mark.parametrize("look", [1, 2], ids=["before it is fetched", "when it is put in its place"])
def test_a_copy_that_another_mended_meanwhile_stays(tmp_path, bundles, versions, monkeypatch, look):
    """Of two that find a copy damaged the slower one keeps the other's, or puts its own there; no rubbish stays."""
    registry = Registry(f"memory://registry-{next(_numbers)}", cache=tmp_path / "cache")
    registry.add(bundles[0])
    copy = registry.fetch(versions[0])
    (copy / "model.onnx").write_bytes(b"")
    damaged, verify, mended = [], objects.verify, []

    def verify_as_another_mends(path, files):
        try:
            verify(path, files)
        except BundleCorrupt:
            damaged.append(path)
            if len(damaged) == look:
                copy.rename(tmp_path / "moved by another")
                shutil.copytree(bundles[0], copy)
                mended.append((copy / "model.onnx").open("rb"))
            raise

    monkeypatch.setattr(objects, "verify", verify_as_another_mends)
    assert registry.fetch(versions[0]) == copy
    assert read_bundle(copy).version == versions[0]
    [opened] = mended
    with opened:
        assert (os.fstat(opened.fileno()).st_ino == (copy / "model.onnx").stat().st_ino) is (look == 1)
    assert [path for path in copy.parent.iterdir() if path != copy] == []


def test_pull_copies_a_bundle_into_a_new_folder(registry, bundles, versions, tmp_path):
    """What is pulled is whole, and nothing is overwritten."""
    registry.add(bundles[0])
    path = registry.pull(versions[0], tmp_path / "out" / "mine")
    assert read_bundle(path).version == versions[0]
    (tmp_path / "link").symlink_to("nowhere")
    for taken in (path, tmp_path / "link"):
        with pytest.raises(BundleError, match="already exists"):
            registry.pull(versions[0], taken)


def test_gc_removes_what_has_had_no_name_for_long(url, tmp_path, bundles, versions):
    """Versions with an alias stay, and so do those that lost theirs a short while ago."""
    now = [1000 * DAY]
    registry = Registry(url, cache=tmp_path / "cache", clock=lambda: now[0])
    for bundle in bundles:
        registry.add(bundle)
    registry.promote(versions[0])
    now[0] += 50 * DAY
    registry.promote(versions[1])
    registry.promote(versions[2])  # version 0 loses its last alias now
    now[0] += 10 * DAY
    assert registry.gc(older_than_days=30, dry_run=True) == []
    now[0] += 21 * DAY
    assert registry.gc(older_than_days=30, dry_run=True) == [versions[0]]
    assert registry.gc(older_than_days=30) == [versions[0]]
    assert set(registry.state().folders) == set(versions[1:])
    with pytest.raises(BundleNotFound):
        registry.promote(versions[0])
    assert registry.add(bundles[0]) == versions[0]
    assert read_bundle(registry.fetch(versions[0])).version == versions[0]


def test_gc_without_anything_to_do_writes_no_history(registry, bundles, versions):
    """Running it often costs nothing."""
    registry.add(bundles[0])
    registry.promote(versions[0])
    assert registry.gc(older_than_days=0) == []
    assert [e.action for e in registry.history()] == ["add", "promote"]


def test_an_expected_current_that_is_not_current_refuses(registry, bundles, versions):
    """A promoter that compared with one bundle does not replace another."""
    for bundle in bundles:
        registry.add(bundle)
    registry.promote(versions[0])
    with pytest.raises(BundleError, match="compare again"):
        registry.promote(versions[2], expected=versions[1])
    assert registry.promote(versions[2], expected=versions[0]).aliases["current"] == versions[2]


def test_a_rollback_of_what_is_no_longer_current_refuses(registry, bundles, versions):
    """Who judged one bundle and would roll it back does not bring it back where another was promoted meanwhile."""
    for bundle in bundles:
        registry.add(bundle)
    registry.promote(versions[0])
    registry.promote(versions[1])
    registry.promote(versions[2])
    with pytest.raises(BundleError, match="compare again"):
        registry.rollback(expected=versions[1])
    assert registry.resolve("current") == versions[2]
    assert registry.rollback(expected=versions[2]).aliases["current"] == versions[1]


def test_promoters_are_serialised(url, tmp_path, bundles, versions):
    """Of many promotions at once each sees the one before: the history is a chain, and the last is current."""
    Registry(url, cache=tmp_path / "cache").add(bundles[0])
    for bundle in bundles[1:]:
        Registry(url, cache=tmp_path / "cache").add(bundle)

    def promote(n: int) -> None:
        Registry(url, cache=tmp_path / f"cache{n % 3}", by=f"p{n}").promote(versions[n % 3])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(promote, range(24)))
    history = Registry(url).history()
    assert [e.number for e in history] == list(range(1, len(history) + 1))
    promotions = [e for e in history if e.action == "promote"]
    for before, after in itertools.pairwise(promotions):
        assert after.aliases["previous"] == before.aliases["current"]
        assert after.aliases["current"] == after.version != before.version


def test_two_that_compared_with_the_same_current_cannot_both_win(url, tmp_path, bundles, versions):
    """Of two promoters that expect the same current, exactly one succeeds."""
    registry = Registry(url, cache=tmp_path / "cache")
    for bundle in bundles:
        registry.add(bundle)
    registry.promote(versions[0])
    gate = threading.Barrier(2)

    def promote(n: int) -> bool:
        gate.wait(10)
        try:
            Registry(url, cache=tmp_path / f"c{n}").promote(versions[n], expected=versions[0])
        except BundleError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(promote, (1, 2))) == [False, True]


def test_writers_of_the_same_bundle_leave_one(url, tmp_path, bundles, versions):
    """Many that add the same version at once agree, and only one copy stays."""
    with ThreadPoolExecutor(6) as pool:
        added = list(pool.map(lambda _: Registry(url, cache=tmp_path / "c").add(bundles[0]), range(6)))
    assert set(added) == {versions[0]}
    registry = Registry(url, cache=tmp_path / "cache")
    assert stored(registry) == set(registry.state().folders.values())


def test_a_listing_that_another_thread_asked_for_earlier_is_not_believed(monkeypatch, url, registry, bundles, versions):
    """Threads share a store: an old listing that comes in late, before or after the own one, hides nothing."""
    registry.add(bundles[0])
    store, root = objects.opened(url)
    folder = f"{root.rstrip('/')}/events"
    stale, ask = store.ls(folder, detail=True), store.ls

    def late(*_, **__):
        store.dircache.update({folder: stale})

    def listed(*arguments, **options):
        found = ask(*arguments, **options)
        late()
        return found

    registry.add(bundles[1], candidate=True)
    monkeypatch.setattr(store, "invalidate_cache", late)
    monkeypatch.setattr(store, "ls", listed)
    assert registry.resolve("candidate") == versions[1]


def test_readers_meet_whole_bundles_while_writers_write(url, tmp_path, bundles, versions):
    """However many changes go on, a reader of current gets a verified bundle every time."""
    writer = Registry(url, cache=tmp_path / "cache-writer")
    writer.add(bundles[0])
    writer.promote(versions[0])
    done = threading.Event()
    seen: list[str] = []

    def read(n: int) -> None:
        reader = Registry(url, cache=tmp_path / f"cache-{n}")
        last = False
        while not last:
            last = done.is_set()
            seen.append(read_bundle(reader.fetch("current")).version)

    with ThreadPoolExecutor(3) as pool:
        reading = [pool.submit(read, n) for n in range(3)]
        try:
            for n in range(1, 8):
                writer.add(bundles[n % 3], candidate=True)
                writer.promote("candidate")
        finally:
            done.set()
        for future in reading:
            future.result(120)
    assert set(seen) <= set(versions)


@pytest.mark.parametrize("action", STEPS)
def test_a_crash_at_any_step_leaves_one_valid_current(monkeypatch, action, url, tmp_path, bundles, versions):
    """Whatever dies where, the registry has one valid current, the old or the new, and goes on working."""
    clock = [time.time()]
    for n, survivor in crash_points(monkeypatch, action, url, tmp_path, bundles, versions, clock):
        current = survivor.resolve("current")
        allowed = {"promote": {versions[1], versions[2]}, "rollback": {versions[0], versions[1]}}
        assert current in allowed.get(action, {versions[1]}), n
        for version in survivor.state().folders:
            assert read_bundle(survivor.fetch(version)).version == version
        clock[0] += 100 * DAY
        # It goes on: the same again succeeds, and gc clears what the crash left.
        survivor.add(bundles[2], candidate=True)
        survivor.promote("candidate")
        assert survivor.resolve("current") == versions[2]
        clock[0] += 10_000 * DAY
        survivor.gc(older_than_days=1)
        assert stored(survivor) == set(survivor.state().folders.values())


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("url", ["folder", *s3_support.installed()], indirect=True)
def test_promoters_that_are_killed_leave_one_valid_current(url, request, tmp_path, bundles, versions):
    """Eight times two processes promote at once and one is killed: current is one of theirs, whole, and has a past."""
    server = request.getfixturevalue(request.node.callspec.params["url"]) if url.startswith("s3:") else None
    environ = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "theirs"), **(server.environ if server else {})}
    registry = Registry(url, cache=tmp_path / "ours")

    def promote(bundle: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "classifier", "bundle", "promote", str(bundle), "--registry", url]
        return subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def ended(process: subprocess.Popen[bytes]) -> int:
        print(process.communicate(timeout=60)[1].decode())
        return process.returncode

    begun = time.monotonic()
    assert ended(promote(bundles[0])) == 0
    usual, rng = time.monotonic() - begun, random.Random(0)
    for n in range(8):
        killed, spared = promote(bundles[(n + 1) % 3]), promote(bundles[(n + 2) % 3])
        time.sleep(rng.uniform(0.3, 1.2) * usual)
        killed.kill()
        ended(killed)
        assert ended(spared) == 0
        assert registry.resolve("current") in versions
        for version in registry.state().folders:
            assert read_bundle(registry.fetch(version)).version == version
        registry.gc(older_than_days=0)  # what has no name is uploaded anew the next time
    promotions = [e for e in registry.history() if e.action == "promote"]
    assert len(promotions) >= 8
    for before, after in itertools.pairwise(promotions):
        assert after.aliases["previous"] == before.aliases["current"] != after.aliases["current"]


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
    url = f"memory://registry-{next(_numbers)}"
    registry = Registry(url, cache=tmp_path / "cache")
    registry.promote(registry.add(bundles[0]))
    assert Registry(f"filecache::{url}", cache=tmp_path / "other").resolve("current") == versions[0]


def test_a_full_disk_here_is_not_the_stores_trouble(small_disk, tmp_path, bundles):
    """Where the copy of a remote bundle cannot be written the message names its folder, and not the registry."""
    disk, _ = small_disk
    url = f"memory://registry-{next(_numbers)}"
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
    registry = Registry(f"memory://registry-{next(_numbers)}", cache=tmp_path / "cache")
    pipe = registry._objects._fs.pipe_file
    monkeypatch.setattr(registry._objects._fs, "pipe_file", lambda path, data, mode="": pipe(path, data))
    with pytest.raises(SettingsError, match="ignores If-None-Match"):
        registry.add(bundles[0])
    assert registry._objects.names("bundles") == registry._objects.names("events") == []


def test_a_change_whose_answer_was_lost_is_not_made_again(monkeypatch, tmp_path, bundles, versions):
    """Where the store wrote and the answer did not arrive, rolling back reports what it did and not a conflict."""
    registry = Registry(f"memory://registry-{next(_numbers)}", cache=tmp_path / "cache")
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


def test_an_event_that_is_none_is_named(tmp_path):
    """A foreign file among the events is an error with its path, not a guess."""
    registry = Registry(tmp_path)
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "00000001.json").write_text(json.dumps({"hello": 1}))
    with pytest.raises(BundleError, match=r"00000001\.json"):
        registry.state()


@pytest.mark.parametrize(
    "fields",
    [
        {"number": "1"},
        {"by": None},
        {"at": "now"},
        {"at": 1e300},
        {"at": float("nan")},
        {"aliases": []},
        {"aliases": {"current": ["x"]}},
        {"folders": 3},
        {"since": {"x": None}},
        {"folders": {"x": "../precious"}},
        {"folders": {"x": "bundles/.."}},
        {"folders": {"x": "bundles/a/../../../precious"}},
    ],
    ids=str,
)
def test_an_event_that_nobody_here_wrote_is_not_followed(tmp_path, bundles, fields):
    """An event with other fields than ours is named; least of all does gc delete a folder outside the registry."""
    registry = Registry(tmp_path / "registry")
    registry.promote(registry.add(bundles[0]))
    (tmp_path / "precious").mkdir()
    event = tmp_path / "registry" / "events" / "00000002.json"
    event.write_text(json.dumps(json.loads(event.read_text()) | fields))
    for use in (registry.state, registry.history, lambda: registry.gc(older_than_days=0), registry.fetch):
        with pytest.raises(BundleError, match=r"00000002\.json: is no event"):
            use()
    assert (tmp_path / "precious").is_dir()


@pytest.mark.parametrize("where", ["bundles/*/bundle/model.onnx", "bundles/*/files.json", "events/00000002.json"])
def test_a_pipe_in_a_files_place_is_damage_and_not_waited_for(tmp_path, bundles, where):
    """What would never come to an end is not begun: whoever watches the registry would look for nothing any more."""
    registry = Registry(tmp_path / "registry")
    registry.promote(registry.add(bundles[0]))
    [path] = (tmp_path / "registry").glob(where)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BundleError, match=rf"{path.name}.* (is missing|is not readable|is no event)"):
        registry.fetch()


def test_files_of_other_names_are_no_events(tmp_path, bundles):
    """What lies among the events and is not numbered as they are is left out."""
    registry = Registry(tmp_path / "registry")
    registry.promote(registry.add(bundles[0]))
    for name in ("²0000003.json", "notes.json", "00000003.json~"):
        (tmp_path / "registry" / "events" / name).write_text("x")
    assert registry.state().number == 2


def test_a_version_is_no_path_to_delete_or_to_write_to(tmp_path, bundles):
    """Whoever can write to a remote registry has no folder deleted or filled on the machines that read from it."""
    name = f"registry-{next(_numbers)}"
    registry = Registry(f"memory://{name}", cache=tmp_path / "cache")
    registry.promote(registry.add(bundles[0]))
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    event = fsspec.filesystem("memory")
    state = json.loads(event.cat_file(f"/{name}/events/00000002.json"))
    [folder] = state["folders"].values()
    for version in ("../../precious", str(tmp_path / "precious"), "..", ""):
        forged = state | {"number": 3, "folders": {version: folder}, "aliases": {"current": version}, "since": {}}
        event.pipe_file(f"/{name}/events/00000003.json", json.dumps(forged).encode())
        with pytest.raises(BundleError, match=r"00000003\.json: is no event"):
            registry.fetch("current")
    assert [path.name for path in (tmp_path / "precious").iterdir()] == ["file"]


def test_what_a_server_starts_from(tmp_path, bundles, versions):
    """A folder is itself, a name is looked up; nothing is current of a registry that is given, else the shipped one."""
    registry = Registry(tmp_path / "registry")
    registry.add(bundles[1])
    registry.promote(versions[1])
    assert source_of("", "").wanted() == read_bundle(SHIPPED).version
    assert source_of(str(bundles[0]), registry.url).wanted() == versions[0]
    assert source_of("", registry.url).wanted() == source_of(versions[1], registry.url).wanted() == versions[1]
