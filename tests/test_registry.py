"""Names for bundles: versions, aliases, history; several writers and readers; crashes at every step."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from classifier import objects
from classifier.bundle import SHIPPED, read_bundle
from classifier.errors import BundleCorrupt, BundleError, BundleNotFound, SettingsError
from classifier.registry import Registry, resolve_bundle
from tests.feedback_support import quick_folder
from tests.tiny import tiny_bundle

DAY = 86_400.0


class Crash(BaseException):
    """The process dies here."""


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


_memories = itertools.count()


@pytest.fixture(params=["folder", "memory"])
def url(request):
    """A new registry's URL."""
    if request.param == "memory":
        yield f"memory://registry-{next(_memories)}"
        return
    folder = quick_folder("classifier-registry-")
    yield str(folder / "registry")
    shutil.rmtree(folder)


@pytest.fixture
def registry(url, tmp_path):
    """A new registry."""
    return Registry(url, cache=tmp_path / "cache", by="tester")


def test_a_registry_starts_empty(registry):
    """Nothing has a name yet, and asking for one says so."""
    assert registry.state().number == 0
    assert registry.history() == []
    with pytest.raises(BundleNotFound, match="nothing yet"):
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


def test_a_damaged_copy_in_the_cache_is_fetched_again(tmp_path, bundles, versions):
    """Of a remote registry a local copy is used while it is whole."""
    registry = Registry(f"memory://registry-{next(_memories)}", cache=tmp_path / "cache")
    registry.add(bundles[0])
    copy = registry.fetch(versions[0])
    (copy / "model.onnx").write_bytes(b"")
    assert read_bundle(registry.fetch(versions[0])).version == versions[0]
    before = (copy / "model.onnx").stat().st_mtime_ns
    assert registry.fetch(versions[0]) == copy
    assert (copy / "model.onnx").stat().st_mtime_ns == before


def test_pull_copies_a_bundle_into_a_new_folder(registry, bundles, versions, tmp_path):
    """What is pulled is whole, and nothing is overwritten."""
    registry.add(bundles[0])
    path = registry.pull(versions[0], tmp_path / "out" / "mine")
    assert read_bundle(path).version == versions[0]
    with pytest.raises(BundleError, match="already exists"):
        registry.pull(versions[0], path)


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
    assert [f"bundles/{n}" for n in registry._objects.names("bundles")] == list(registry.state().folders.values())


def test_readers_meet_whole_bundles_while_writers_write(url, tmp_path, bundles, versions):
    """However many changes go on, a reader of current gets a verified bundle every time."""
    writer = Registry(url, cache=tmp_path / "cache-writer")
    writer.add(bundles[0])
    writer.promote(versions[0])
    done = threading.Event()
    seen: list[str] = []

    def read(n: int) -> None:
        reader = Registry(url, cache=tmp_path / f"cache-{n}")
        while not done.is_set():
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
            future.result(30)
    assert seen
    assert set(seen) <= set(versions)


STEPS = ("add", "promote", "rollback", "gc")


def crash_points(monkeypatch, action, url, tmp_path, bundles, versions, clock):
    """Runs the action again and again on equal registries, dying at its 1st, 2nd, … touch of the store."""
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
        with monkeypatch.context() as patch:
            died = die_at(patch, n)
            try:
                with contextlib.suppress(Crash):
                    act(registry, action, bundles, versions)
            finally:
                finished = not died
        yield n, Registry(where, cache=tmp_path / f"cache-{n}", clock=lambda: clock[0])
        if finished:
            assert n > 2, "the action touched nothing: the test tests nothing"
            return


def act(registry, action, bundles, versions):
    if action == "add":
        registry.add(bundles[2], candidate=True)
    elif action == "promote":
        registry.promote(versions[2])
    elif action == "rollback":
        registry.rollback()
    else:
        registry.gc(older_than_days=1)


def die_at(patch, n: int) -> list[str]:
    """Makes the n-th change of the store the process's last: before it, or half-way through it, it dies."""
    died: list[str] = []
    touched = itertools.count()
    dead = threading.Event()

    def dying(name, original, half=None):
        def run(*args, **kwargs):
            if dead.is_set():
                raise Crash
            if next(touched) == n:
                died.append(name)
                dead.set()
                if half is not None:
                    half(*args, **kwargs)
                raise Crash
            return original(*args, **kwargs)

        return run

    def half_a_file(source, target):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes()[: source.stat().st_size // 2])

    for owner, name, half in (
        (objects.os, "link", None),
        (objects.os, "fsync", None),
        (objects, "_copy_durably", half_a_file),
        (objects.Objects, "create", None),
        (objects.Objects, "copy", None),
        (objects.Objects, "discard", None),
    ):
        patch.setattr(owner, name, dying(name, getattr(owner, name), half))
    filesystem = MemoryFileSystem
    for name in ("pipe_file", "put_file", "rm"):
        patch.setattr(filesystem, name, dying(name, getattr(filesystem, name)))
    return died


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
        named = set(survivor.state().folders.values())
        assert {f"bundles/{name}" for name in survivor._objects.names("bundles")} == named


def test_an_upload_that_goes_on_is_not_taken_for_a_crash(registry, bundles, tmp_path):
    """A folder that no event names is left alone for a day, however eager gc is."""
    registry._objects.upload("bundles/unfinished-00000000", {"bundle": bundles[0]})
    assert registry.gc(older_than_days=0) == []
    assert registry._objects.names("bundles") == ["unfinished-00000000"]


def test_a_store_without_exclusive_creation_is_refused():
    """Where two writers could overwrite each other there is no registry."""
    with pytest.raises(SettingsError, match="two writers"):
        Registry("data://x")
    with pytest.raises(SettingsError, match="cannot be used"):
        Registry("nosuchprotocol://x")


def test_an_event_that_is_none_is_named(tmp_path):
    """A foreign file among the events is an error with its path, not a guess."""
    registry = Registry(tmp_path)
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "00000001.json").write_text(json.dumps({"hello": 1}))
    with pytest.raises(BundleError, match=r"00000001\.json"):
        registry.state()


def test_what_a_server_starts_from(tmp_path, bundles, versions):
    """A folder is itself, a name is looked up, nothing means current where there is one and the shipped one else."""
    registry = Registry(tmp_path / "registry")
    assert resolve_bundle("", None) == resolve_bundle("", registry) == SHIPPED
    assert resolve_bundle(str(bundles[0]), None) == bundles[0]
    registry.add(bundles[1])
    registry.promote(versions[1])
    assert read_bundle(resolve_bundle("", registry)).version == versions[1]
    assert read_bundle(resolve_bundle(versions[1], registry)).version == versions[1]
    with pytest.raises(BundleNotFound, match="no registry"):
        resolve_bundle("candidate", None)


def test_on_an_s3_server(tmp_path, bundles, versions, checkpoint):
    """The same holds on S3 over HTTP: add, promote, race, roll back, gc, pull."""
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    moto = pytest.importorskip("moto.server", reason="no S3 server: pip install 'moto[server]'")
    import s3fs

    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {"key": "k", "secret": "s", "endpoint_url": f"http://{host}:{port}"}
        s3fs.S3FileSystem(**options).mkdir("models")
        objects.fsspec.config.conf["s3"] = options
        url = "s3://models/registry"
        registry = Registry(url, cache=tmp_path / "cache")
        for bundle in bundles:
            registry.add(bundle, checkpoint=checkpoint)
        registry.promote(versions[0])

        def promote(n: int) -> None:
            Registry(url, cache=tmp_path / f"c{n}").promote(versions[n])

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(promote, (1, 2)))
        aliases = registry.state().aliases
        assert {aliases["current"], aliases["previous"]} == set(versions[1:])
        assert registry.rollback().aliases["current"] == aliases["previous"]
        assert read_bundle(registry.pull("current", tmp_path / "pulled")).version == aliases["previous"]
        assert registry.checkpoint("current") is not None
        assert not registry._objects.create("events/00000001.json", b"again")
        assert registry.gc(older_than_days=0) == [versions[0]]
    finally:
        objects.fsspec.config.conf.pop("s3", None)
        server.stop()
