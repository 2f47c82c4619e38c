"""Names for bundles: versions, aliases, history; what is stored with a bundle, pulled and collected."""

from __future__ import annotations

import itertools
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from classifier import durable
from classifier.bundle import FILES, MANIFEST, SHIPPED, read_bundle
from classifier.errors import BundleCorrupt, BundleError, BundleNotFound
from classifier.history import event_bytes
from classifier.registry import Registry
from classifier.reload import source_of
from tests.registry.support import DAY


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


@pytest.mark.parametrize("back", [Registry.rollback, lambda registry: registry.promote("previous")])
def test_what_was_left_for_what_served_before_is_given_up(registry, bundles, versions, back):
    """A rollback gives a bundle up, and so does promoting the one before it; a promotion of a new one gives up none."""
    told = [registry.given_up()]
    for n in (0, 1):
        registry.promote(registry.add(bundles[n]))
        told.append(registry.given_up())
    back(registry)
    assert [*told, registry.given_up()] == ["", "", "", versions[1]]
    registry.promote(registry.add(bundles[2]))
    assert registry.given_up() == ""


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


def test_what_a_server_starts_from(tmp_path, bundles, versions):
    """A folder is itself, a name is looked up; nothing is current of a registry that is given, else the shipped one."""
    registry = Registry(tmp_path / "registry")
    registry.add(bundles[1])
    registry.promote(versions[1])
    assert source_of("", "").wanted() == read_bundle(SHIPPED).version
    assert source_of(str(bundles[0]), registry.url).wanted() == versions[0]
    assert source_of("", registry.url).wanted() == source_of(versions[1], registry.url).wanted() == versions[1]
