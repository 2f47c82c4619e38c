"""What is damaged, altered or made by somebody else in a registry is told, mended, and never followed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import fsspec
import pytest

from classifier import objects
from classifier.bundle import read_bundle
from classifier.errors import BundleCorrupt, BundleError
from classifier.registry import Registry
from tests.registry.support import numbers


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
    registry = Registry(f"memory://registry-{next(numbers)}", cache=tmp_path / "cache")
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
    registry = Registry(f"memory://registry-{next(numbers)}", cache=tmp_path / "cache")
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
    name = f"registry-{next(numbers)}"
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
