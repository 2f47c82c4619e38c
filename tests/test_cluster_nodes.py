"""What a node of a cluster does by itself: unpack a bundle, label a chunk, see what is done. Needs no Ray."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
from types import SimpleNamespace

import pytest

from classifier import cluster
from classifier.answering import EngineMaker
from classifier.bundle import read_bundle
from classifier.cluster import bundle_files, unpack_bundle
from classifier.errors import InputError
from classifier.labelled import output_schema
from classifier.readers import read_chunks
from classifier.runs import Options, input_schema, plan_of
from classifier.sources import find_sources
from classifier.target import Target
from tests.bulk_support import write_lines


@pytest.fixture
def files(tiny_bundle_path, tmp_path, monkeypatch):
    """A bundle that travels, to a node with a folder for temporary files of its own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return bundle_files(tiny_bundle_path)


def test_a_node_unpacks_a_bundle_once_and_a_damaged_one_anew(files, tiny_bundle_path):
    """The bundle's folder is made once on a node; one that was damaged there is not used."""
    folder = unpack_bundle(files)
    assert unpack_bundle(files) == folder
    (folder / "model.onnx").write_bytes(b"damaged")
    assert read_bundle(unpack_bundle(files)).version == read_bundle(tiny_bundle_path).version
    shutil.rmtree(folder)
    assert unpack_bundle(files) == folder


def test_a_node_keeps_bundles_apart_that_differ_in_their_manifest_alone(files):
    """The same files may have been made for other inputs: what lies on a node from before an upgrade is not used."""
    before = json.dumps({**json.loads(files["manifest.json"]), "input_version": 0}).encode()
    old = unpack_bundle({**files, "manifest.json": before})
    assert (old / "manifest.json").read_bytes() == before
    assert (unpack_bundle(files) / "manifest.json").read_bytes() == files["manifest.json"]


@pytest.mark.parametrize("taken", ["manifest.json", "model.onnx", "policy.json"])
def test_what_a_cleaner_of_old_files_took_from_a_node_is_unpacked_again(files, taken):
    """A bundle's folder that lost a file, were it the manifest, is no error and is not used."""
    folder = unpack_bundle(files)
    (folder / taken).unlink()
    found = unpack_bundle(files)
    assert found != folder
    assert bundle_files(found) == files


def test_another_bundle_under_the_wanted_name_is_not_used(files):
    """A folder is known by its manifest: a whole bundle of another one is somebody's mistake, or worse."""
    folder = unpack_bundle(files)
    (folder / "manifest.json").write_bytes(files["manifest.json"] + b"\n")
    found = unpack_bundle(files)
    assert (found / "manifest.json").read_bytes() == files["manifest.json"]


@pytest.mark.parametrize("how", ["another's", "open to all", "a link", "a file"])
def test_a_folder_that_others_may_write_into_is_not_used(files, tmp_path, how, monkeypatch):
    """Where anybody may make temporary files, a bundle is loaded only from what is this user's alone."""
    theirs = unpack_bundle(files).parent
    if how == "another's":
        mine = os.getuid()
        theirs = theirs.rename(theirs.with_name(f"classifier-bundles-{mine + 1}"))
        monkeypatch.setattr(os, "getuid", lambda: mine + 1)
    elif how == "open to all":
        theirs.chmod(0o777)
    elif how == "a link":
        theirs.symlink_to(theirs.rename(tmp_path / "elsewhere"))
    else:
        shutil.rmtree(theirs)
        theirs.touch()
    found = unpack_bundle(files)
    assert bundle_files(found) == files
    assert theirs not in found.parents
    assert found.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("lost", ["part-000000-000000.parquet", "_tallies/part-000000-000000.json"])
def test_a_chunk_is_done_where_its_piece_and_tally_are(files, tiny_bundle_path, tmp_path, monkeypatch, lost):
    """A piece that somebody removed is made again by the next run, as one is that was stopped before its tally."""
    sources = find_sources([str(write_lines(tmp_path / "log.jsonl", [{"prompt": "hi"}, {"prompt": "ho"}]))])
    [chunk] = read_chunks(sources)
    identity = EngineMaker(tiny_bundle_path).identity("")
    plan = plan_of(Options(), identity, "parquet", output_schema(input_schema(sources, [chunk]), identity.facts()))
    monkeypatch.setattr(cluster, "_ray", lambda: SimpleNamespace(get=lambda stored: stored))
    actor = cluster._Labelling([files], plan, str(tmp_path / "out"))

    def label() -> tuple[int, bool]:
        told = json.loads(actor({"group": [0], "chunk": [0], "rows": [pickle.dumps(chunk)]})["tally"][0])
        return told["tally"]["rows"], told["resumed"]

    assert [label(), label()] == [(2, False), (2, True)]
    before = (tmp_path / "out" / "part-000000-000000.parquet").read_bytes()
    (tmp_path / "out" / lost).unlink()
    assert [label(), label()] == [(2, False), (2, True)]
    assert (tmp_path / "out" / "part-000000-000000.parquet").read_bytes() == before


@pytest.mark.parametrize("found", [b"", b'{"facts": {', b"\xff\xfe", b"[]", b"7", b"{}", b"[" * 100_000])
def test_a_damaged_manifest_is_one_line(tmp_path, found):
    """What no longer says how the folder was made is said to be no manifest, with what to do, and is left as it is."""
    (tmp_path / "_manifest.json").write_bytes(found)
    with pytest.raises(InputError, match=r"/_manifest\.json: is no manifest of a labelled file; label into another"):
        Target(str(tmp_path)).manifest()
    assert (tmp_path / "_manifest.json").read_bytes() == found
