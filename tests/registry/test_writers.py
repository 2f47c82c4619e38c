"""Several writers and readers of one registry, and crashes of them at every step."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from classifier import objects
from classifier.bundle import read_bundle
from classifier.errors import BundleError
from classifier.registry import Registry
from tests import s3_support
from tests.registry.support import DAY, STEPS, crash_points, stored


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
