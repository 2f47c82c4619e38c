"""A new bundle, new settings, a shadow: taken over while requests are served."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from classifier import Client, Tier
from classifier.bundle import read_bundle
from classifier.errors import BundleCorrupt, BundleError, BundleNotFound, Unauthenticated
from classifier.reload import Folder, Shadow, Watched
from classifier.telemetry import Metrics
from classifier.testing import FakeEngine
from tests.serving_support import server_process, until
from tests.tiny import tiny_bundle


@pytest.fixture(scope="module")
def other_bundle_path(tmp_path_factory) -> Path:
    """A second tiny bundle, of another version."""
    return tiny_bundle(tmp_path_factory.mktemp("other") / "tiny", scale=5.0).path


class Pretend:
    """A source that wants and loads what it is told; a class as engine is an error to raise."""

    def __init__(self, engine):
        self.engine = engine
        self.loads = 0

    def wanted(self):
        return "broken" if isinstance(self.engine, Exception) else self.engine.bundle_version

    def stamp(self):
        return ""

    def load(self):
        self.loads += 1
        if isinstance(self.engine, Exception):
            raise self.engine
        return self.engine


async def test_a_new_bundle_is_swapped_in_and_counted():
    """What the source wants now is loaded and takes over."""
    metrics, taken = Metrics(), []
    source = Pretend(FakeEngine(bundle_version="one"))
    watched = Watched("bundle", source, taken.append, metrics)
    await watched.start()
    await watched.check()
    source.engine = FakeEngine(bundle_version="two")
    await watched.check()
    assert [engine.bundle_version for engine in taken] == ["one", "two"]
    assert source.loads == 2
    assert 'classifier_reloads_total{what="bundle"} 1.0' in generate_latest(metrics.registry).decode()


async def test_a_bad_bundle_is_counted_once_and_the_old_one_stays():
    """A bundle that cannot be used is not tried again by itself; asking again tries it, a good one takes over."""
    metrics, taken = Metrics(), []
    source = Pretend(FakeEngine(bundle_version="one"))
    watched = Watched("bundle", source, taken.append, metrics)
    await watched.start()
    source.engine = BundleNotFound("gone")
    for _ in range(3):
        await watched.check()
    assert source.loads == 2
    await watched.check(again=True)
    assert source.loads == 3
    assert [engine.bundle_version for engine in taken] == ["one"]
    assert 'classifier_reload_failures_total{what="bundle"} 2.0' in generate_latest(metrics.registry).decode()
    source.engine = FakeEngine(bundle_version="two")
    await watched.check()
    assert taken[-1].bundle_version == "two"


async def test_a_bundle_that_was_refused_and_mended_takes_over_when_it_is_wanted_again():
    """After a way back the version that was refused is tried again: mended, it has the same hash."""
    taken = []
    source = Pretend(FakeEngine(bundle_version="one"))
    watched = Watched("bundle", source, taken.append, Metrics())
    await watched.start()
    source.engine = BundleCorrupt("half")
    await watched.check()
    source.engine = FakeEngine(bundle_version="one")
    await watched.check()
    source.engine = FakeEngine(bundle_version="broken")
    await watched.check()
    assert [engine.bundle_version for engine in taken] == ["one", "broken"]


async def test_a_store_that_fails_is_asked_again_and_counted_once():
    """A failure of the registry's storage refuses no bundle: it takes over when the storage is back."""
    metrics, taken = Metrics(), []
    source = Pretend(FakeEngine(bundle_version="one"))
    watched = Watched("bundle", source, taken.append, metrics)
    await watched.start()
    for number in range(3):
        source.engine = BundleError(f"the store failed ({number})")
        await watched.check()
    assert 'classifier_reload_failures_total{what="bundle"} 1.0' in generate_latest(metrics.registry).decode()
    source.engine = FakeEngine(bundle_version="broken")
    await watched.check()
    assert [engine.bundle_version for engine in taken] == ["one", "broken"]


async def test_a_shadow_that_is_awaited_is_counted_once():
    """Where there is no candidate, as after one was promoted, looking for it again is no further failure."""
    metrics, taken = Metrics(), []
    source = Pretend(BundleNotFound("no candidate"))
    source.wanted = source.load
    watched = Watched("shadow", source, taken.append, metrics)
    for _ in range(3):
        await watched.check()
    assert 'classifier_reload_failures_total{what="shadow"} 1.0' in generate_latest(metrics.registry).decode()
    assert not taken


async def test_a_load_that_ends_in_no_ordinary_exception_is_heard_of():
    """What a panic of the tokeniser's raises comes back to who looks, so that the next look finds what came since."""

    class Panic(BaseException):
        pass

    class Source(Pretend):
        def load(self):
            if isinstance(self.engine, Panic):
                raise self.engine
            return super().load()

        def wanted(self):
            return "panics" if isinstance(self.engine, Panic) else super().wanted()

    taken = []
    source = Source(Panic())
    watched = Watched("bundle", source, taken.append, Metrics())
    with pytest.raises(Panic):
        await watched.check()
    source.engine = FakeEngine(bundle_version="two")
    await watched.check()
    assert [engine.bundle_version for engine in taken] == ["two"]


def test_a_folder_wants_its_manifests_version(tiny_bundle_path, tmp_path):
    """A folder's bundle is known by its manifest; a folder without one has none."""
    source = Folder(tiny_bundle_path)
    assert source.wanted() == source.load().bundle_version
    with pytest.raises(BundleNotFound):
        Folder(tmp_path).wanted()
    (tmp_path / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(BundleNotFound):
        Folder(tmp_path).wanted()
    (tmp_path / "manifest.json").unlink()
    os.mkfifo(tmp_path / "manifest.json")  # would be waited for
    with pytest.raises(BundleNotFound):
        Folder(tmp_path).wanted()


def test_a_folder_that_is_replaced_while_it_is_loaded_gives_one_bundle(
    tiny_bundle_path, other_bundle_path, tmp_path, monkeypatch
):
    """Not the thresholds of the one that was verified over the graph of the one that took its place."""
    served = tmp_path / "served"
    served.symlink_to(tiny_bundle_path)

    def replaced_after(path):
        bundle = read_bundle(path)
        fresh = tmp_path / "fresh"
        fresh.symlink_to(other_bundle_path)
        fresh.replace(served)
        monkeypatch.undo()
        return bundle

    monkeypatch.setattr("classifier.engine.read_bundle", replaced_after)
    loaded = Folder(served).load()
    assert (loaded.bundle_version, loaded.golden_ok) == (Folder(other_bundle_path).wanted(), True)


async def test_a_folder_that_was_refused_is_tried_again_once_its_files_change(tiny_bundle_path, tmp_path):
    """A copy over a folder may bring the manifest first: until it is whole it is refused, and counted once."""
    metrics, taken, served = Metrics(), [], tmp_path / "served"
    watched = Watched("bundle", Folder(served), taken.append, metrics)
    served.mkdir()
    for name in ("manifest.json", "config.json"):
        shutil.copy(tiny_bundle_path / name, served)
        for _ in range(2):
            await watched.check()
    shutil.copytree(tiny_bundle_path, served, dirs_exist_ok=True)
    await watched.check()
    assert [engine.bundle_version for engine in taken] == [Folder(tiny_bundle_path).wanted()]
    assert 'classifier_reload_failures_total{what="bundle"} 1.0' in generate_latest(metrics.registry).decode()


@pytest.mark.parametrize("damage", ["half", "altered"])
@pytest.mark.failure("a bad bundle", "Python client", "LiteLLM hook", "LiteLLM plugin", "Envoy", "HTTP gateway")
def test_bundles_change_under_load_without_a_failed_request(tiny_bundle_path, other_bundle_path, tmp_path, damage):
    """While requests are served a bad bundle changes nothing, and a good one takes over without a failed request."""
    served = tmp_path / "served"
    shutil.copytree(tiny_bundle_path, served)
    first, second = Folder(tiny_bundle_path).wanted(), Folder(other_bundle_path).wanted()
    assert first != second
    answers, stop = [], threading.Event()
    with server_process("--bundle", str(served), "--listen", "127.0.0.1:0", "--watch-seconds", "0.05") as server:
        [address] = server.wait_ready()
        with Client(address, timeout_seconds=60, fallback_tier=Tier.SIMPLE) as client:

            def ask():
                while not stop.is_set():
                    answers.append(client.classify("prove the theorem"))

            asking = threading.Thread(target=ask)
            asking.start()
            until(lambda: answers)
            if damage == "half":  # the manifest comes first, the model has not
                shutil.copy(other_bundle_path / "manifest.json", served / "manifest.json")
            else:
                model = served / "model.onnx"
                model.write_bytes(model.read_bytes() + b"x")
                shutil.copy(other_bundle_path / "manifest.json", served / "manifest.json")
            server.wait_said("stays")
            assert answers[-1].decision.bundle_version == first
            whole = tmp_path / "whole"
            shutil.copytree(other_bundle_path, whole)
            served.rename(tmp_path / "old")
            whole.rename(served)
            until(lambda: answers[-1].decision and answers[-1].decision.bundle_version == second)
            stop.set()
            asking.join()
    assert {answer.fallback for answer in answers} == {""}
    assert {answer.decision.bundle_version for answer in answers} == {first, second}
    assert {answer.tier for answer in answers} == {Tier.FRONTIER}


def test_the_registrys_current_is_served_and_followed(tiny_bundle_path, other_bundle_path, tmp_path):
    """A server of a registry answers with `current`, and with the next one when that is promoted."""
    registry = pytest.importorskip("classifier.registry").Registry(tmp_path / "registry")
    first, second = registry.add(tiny_bundle_path), registry.add(other_bundle_path)
    registry.promote(first)
    arguments = ["--registry", str(tmp_path / "registry"), "--listen", "127.0.0.1:0", "--watch-seconds", "0.05"]
    with server_process(*arguments) as server:
        [address] = server.wait_ready()
        with Client(address, timeout_seconds=60) as client:
            assert client.info(timeout_seconds=60).bundle_version == first
            registry.promote(second)
            until(lambda: client.info(timeout_seconds=60).bundle_version == second)
            registry.rollback()
            until(lambda: client.info(timeout_seconds=60).bundle_version == first)


def test_a_name_without_a_registry_is_looked_up_in_the_users_own(tiny_bundle_path, other_bundle_path, tmp_path):
    """`--bundle NAME` and `--shadow NAME` mean the user's registry; an unknown bundle is refused, a shadow awaited."""
    from classifier.registry import Registry

    env = {"XDG_STATE_HOME": str(tmp_path)}
    registry = Registry(tmp_path / "classifier" / "registry")
    first = registry.add(tiny_bundle_path)
    registry.promote(first)
    second = registry.add(other_bundle_path, candidate=True)
    arguments = ["--bundle", "current", "--shadow", "candidate", "--shadow-share", "1", "--listen", "127.0.0.1:0"]
    with server_process(*arguments, "--metrics-listen", "127.0.0.1:0", "--watch-seconds", "0.05", env=env) as server:
        [address] = server.wait_ready()
        with Client(address, timeout_seconds=60) as client:
            assert client.classify("hi").decision.bundle_version == first
            until(lambda: "classifier_shadow_total{" in server.metrics_page())
            registry.promote(second)
            until(lambda: client.info(timeout_seconds=60).bundle_version == second)
    with server_process(*arguments, "--metrics-listen", "127.0.0.1:0", "--watch-seconds", "0.05", env=env) as server:
        [address] = server.wait_ready()
        server.wait_said("no bundle 'candidate' there")
        registry.add(tiny_bundle_path, candidate=True)
        server.wait_said(f"shadow: {first}")
    with server_process("--bundle", "nope", "--listen", "127.0.0.1:0", env=env) as server:
        assert server.wait() == 1
        assert "no bundle 'nope' there" in server.lines[-1]


def test_sighup_reads_the_settings_again(tiny_bundle_path, tmp_path):
    """Limits of the file are in force after SIGHUP; a file that cannot be is refused and changes nothing."""
    config = tmp_path / "c.toml"
    config.write_text("max_messages = 7\n")
    arguments = ["--bundle", str(tiny_bundle_path), "--listen", "127.0.0.1:0", "--config", str(config)]
    with server_process(*arguments) as server:
        [address] = server.wait_ready()
        with Client(address, timeout_seconds=60) as client:
            assert client.info(timeout_seconds=60).limits.max_messages == 7
            config.write_text("max_messages = 8\nqueue_size = 3\n")
            server.signal(signal.SIGHUP)
            until(lambda: client.info(timeout_seconds=60).limits.max_messages == 8)
            server.wait_said("queue_size need a restart")
            config.write_text("max_messages = 'many'\n")
            server.signal(signal.SIGHUP)
            server.wait_said("the ones there were stay")
            config.unlink()
            os.mkfifo(config)  # would be waited for
            server.signal(signal.SIGHUP)
            server.wait_said("is no file, and what it held cannot be read again")
            assert client.info(timeout_seconds=60).limits.max_messages == 8


def test_a_bundle_whose_storage_hangs_keeps_no_token_valid(tiny_bundle_path, tmp_path):
    """Tokens and settings are read again while a look at the bundle does not come back, and the end is an end."""
    bundle, tokens, config = tmp_path / "bundle", tmp_path / "tokens", tmp_path / "c.toml"
    shutil.copytree(tiny_bundle_path, bundle)
    tokens.write_text(f"old {'a' * 20}\n")
    tokens.chmod(0o600)
    config.write_text("max_messages = 7\n")
    arguments = ["--bundle", str(bundle), "--listen", "127.0.0.1:0", "--config", str(config), "--tokens", str(tokens)]
    with server_process(*arguments, "--watch-seconds", "0.2") as server:
        [address] = server.wait_ready()
        (bundle / "manifest.json").unlink()
        os.mkfifo(bundle / "manifest.json")  # what opens it waits for ever
        tokens.write_text(f"new {'b' * 20}\n")
        with Client(address, token="b" * 20, timeout_seconds=60) as client:
            until(lambda: accepted(client))
            config.write_text("max_messages = 8\n")
            server.signal(signal.SIGHUP)
            until(lambda: client.info(timeout_seconds=60).limits.max_messages == 8)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def accepted(client):
    with contextlib.suppress(Unauthenticated):
        return client.info(timeout_seconds=60)


def test_a_shadow_is_scored_and_never_answers(tiny_engine):
    """A shadow bundle sees the share of requests; its tiers are counted beside those that were answered."""
    metrics = Metrics()
    shadow = Shadow(1.0, lambda: False, metrics)
    shadow.engine = FakeEngine(tier_of=lambda request: Tier.FRONTIER)
    from classifier import Request

    prepared = tiny_engine.prepare(Request.from_text("hi"))
    decision = tiny_engine.decide(prepared, tiny_engine.score(prepared))
    shadow.offer(prepared, decision)
    line = 'classifier_shadow_total{shadow_tier="frontier",tier="simple"} 1.0'
    until(lambda: line in generate_latest(metrics.registry).decode())
    shadow.close()


def test_a_shadow_that_was_promoted_is_not_scored_beside_itself(tiny_engine):
    """Where the bundle that answers is the shadow's own, a second run would say nothing."""
    from classifier import Request

    shadow = Shadow(1.0, lambda: False, Metrics())
    shadow.engine = promoted = FakeEngine(bundle_version=tiny_engine.bundle_version)
    prepared = tiny_engine.prepare(Request.from_text("hi"))
    decision = tiny_engine.decide(prepared, tiny_engine.score(prepared))
    shadow.offer(prepared, decision)
    until(shadow._queue.empty)
    shadow.close()
    assert promoted.runs == 0


def test_a_shadow_with_no_time_drops_and_counts(tiny_engine):
    """While requests wait for a core the shadow sees none; what it missed is counted."""
    from classifier import Request

    metrics = Metrics()
    shadow = Shadow(1.0, lambda: True, metrics)
    prepared = tiny_engine.prepare(Request.from_text("hi"))
    decision = tiny_engine.decide(prepared, tiny_engine.score(prepared))
    shadow.offer(prepared, decision)
    shadow.share = 0.0
    shadow.offer(prepared, decision)
    shadow.close()
    assert "classifier_shadow_dropped_total 1.0" in generate_latest(metrics.registry).decode()


def test_a_shadow_that_takes_the_last_request_while_it_is_closed_is_closed(monkeypatch):
    """A queue that is empty by the time it is emptied does not break the end of a server off."""
    shadow = Shadow(1.0, lambda: False, Metrics())
    monkeypatch.setattr(shadow._queue, "empty", lambda: False)  # so it was at the look
    shadow.close()
    assert not shadow._thread.is_alive()


def test_a_server_scores_its_shadow(tiny_bundle_path, other_bundle_path):
    """--shadow scores a candidate beside the bundle that answers."""
    arguments = ["--bundle", str(tiny_bundle_path), "--shadow", str(other_bundle_path), "--shadow-share", "1"]
    arguments += ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"]
    with server_process(*arguments) as server:
        [address] = server.wait_ready()
        with Client(address, timeout_seconds=60) as client:
            assert client.classify("hi").decision.bundle_version == Folder(tiny_bundle_path).wanted()
        line = 'classifier_shadow_total{shadow_tier="simple",tier="simple"} 1.0'
        until(lambda: line in server.metrics_page())
