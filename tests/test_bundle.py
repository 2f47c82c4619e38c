"""The artefact on disk: verified before anything is built from it, written all at once."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from unittest import mock

import pytest

from classifier.bundle import FILES, MANIFEST, content_version, read_bundle, write_bundle
from classifier.checksums import sha256
from classifier.errors import BundleCorrupt, BundleError, BundleNotFound
from tests.tiny import tiny_bundle


@pytest.fixture
def copy(tiny_bundle_path, tmp_path) -> Path:
    """A bundle that a test may break."""
    return Path(shutil.copytree(tiny_bundle_path, tmp_path / "copy"))


def read_manifest(path: Path) -> dict:
    """A bundle's manifest."""
    return json.loads((path / MANIFEST).read_text())


def restate(path: Path, **fields) -> None:
    """Rewrites fields of a manifest."""
    (path / MANIFEST).write_text(json.dumps({**read_manifest(path), **fields}))


def test_version_is_a_hash_of_the_content(tiny_bundle_path, tmp_path):
    """The same content has the same version; another model has another."""
    version = read_bundle(tiny_bundle_path).version
    assert tiny_bundle(tmp_path / "same").version == version
    assert tiny_bundle(tmp_path / "other", scale=5.0).version != version


def test_folder_without_manifest_is_not_found(tmp_path):
    """A folder that holds no bundle is not found, and the message says what to give, whoever asked."""
    with pytest.raises(BundleNotFound, match=r"give the folder of a bundle$"):
        read_bundle(tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_altered_file_is_refused(copy, name):
    """A file that is not what the manifest says is refused by name."""
    with (copy / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(BundleCorrupt, match=name):
        read_bundle(copy)


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_refused(copy, name):
    """A file that is not there is refused by name."""
    (copy / name).unlink()
    with pytest.raises(BundleCorrupt, match=f"{name} is missing"):
        read_bundle(copy)


@pytest.mark.parametrize(
    "put", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path)], ids=["folder", "pipe", "loop"]
)
@pytest.mark.parametrize("name", ["model.onnx", MANIFEST])
def test_what_is_no_file_is_neither_read_nor_waited_for(copy, name, put):
    """A folder, a pipe or a link in a circle in a file's place is refused like a file that is not there."""
    (copy / name).unlink()
    put(copy / name)
    with pytest.raises(BundleError, match=name):
        read_bundle(copy)


def test_what_may_not_be_read_is_said(copy, monkeypatch):
    """A folder that is closed to us, a name too long and a file that fails are errors with their path."""
    with pytest.raises(BundleNotFound, match="cannot be read"):
        read_bundle("./" + "long" * 100)
    monkeypatch.setattr("classifier.checksums.sha256", mock.Mock(side_effect=PermissionError(13, "Permission denied")))
    with pytest.raises(BundleCorrupt, match=r"config\.json cannot be read \(Permission denied\)"):
        read_bundle(copy)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"schema_version": 99}, "schema version 99"),
        ({"files": {"model.onnx": "0"}}, "does not list exactly"),
        ({"version": "0" * 16}, "not the hash"),
    ],
    ids=["schema", "files", "version"],
)
def test_manifest_that_does_not_hold_is_refused(copy, fields, says):
    """A manifest of another schema, other files or another version is refused with the reason."""
    restate(copy, **fields)
    with pytest.raises(BundleCorrupt, match=says):
        read_bundle(copy)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", "\x00\xff", "[" * 100_000],
    ids=["empty", "cut", "list", "null", "bytes", "deep"],
)
def test_unreadable_manifest_is_refused(copy, content):
    """A truncated or foreign manifest is refused, not a crash."""
    (copy / MANIFEST).write_text(content)
    with pytest.raises(BundleCorrupt):
        read_bundle(copy)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("reference.json", "[]", "reference.json holds a list, expected an object"),
        ("reference.json", '{"n": 5}', "reference.json is malformed"),
        (
            "reference.json",
            '{"n": NaN, "scores": [{"edges": [], "shares": [1]}], "signals": {}}',
            "reference.json is malformed",
        ),
        ("config.json", "[]", "config.json holds a list, expected an object"),
        ("calibration.json", f'{{"n": {10**400}}}', "calibration.json holds a number that is too large"),
    ],
    ids=["list", "empty", "nan", "config", "large"],
)
def test_foreign_content_with_right_checksum_is_refused(copy, name, content, says):
    """JSON that is not what its name says is refused by name although its checksum holds."""
    (copy / name).write_text(content)
    files = {**read_manifest(copy)["files"], name: sha256(copy / name)}
    restate(copy, files=files, version=content_version(files))
    with pytest.raises(BundleCorrupt, match=says):
        read_bundle(copy)


def test_thresholds_of_another_model_are_refused(copy, tmp_path):
    """A policy file that was fitted on another model is refused even with right checksums."""
    other = tiny_bundle(tmp_path / "other", scale=5.0)
    with pytest.raises(BundleCorrupt):
        write_bundle(tmp_path / "mixed", _with(copy, other.path / "policy.json", tmp_path), read_bundle(copy).manifest)


def test_write_never_overwrites(tiny_bundle_path, copy):
    """Writing onto a folder that exists is refused and changes nothing."""
    before = sha256(copy / MANIFEST)
    with pytest.raises(BundleError, match="already exists"):
        write_bundle(copy, tiny_bundle_path, {})
    assert sha256(copy / MANIFEST) == before


def test_failed_write_leaves_nothing(tiny_bundle_path, tmp_path):
    """A write that fails leaves neither a bundle nor a scrap."""
    source = Path(shutil.copytree(tiny_bundle_path, tmp_path / "source"))
    (source / "calibration.json").write_text("{}")
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(BundleError):
        write_bundle(target / "bundle", source, {})
    assert list(target.iterdir()) == []


def test_written_bundle_reads_back(tiny_bundle_path, tmp_path):
    """What is written reads back with the same content and the facts that were given."""
    made = write_bundle(tmp_path / "again", tiny_bundle_path, {"seed": 7, "schema_version": 99})
    assert made == read_bundle(tmp_path / "again")
    assert made.version == read_bundle(tiny_bundle_path).version
    assert made.manifest["seed"] == 7


def test_a_changed_file_takes_the_place_of_the_source_s(copy, tmp_path):
    """A file that is given is written instead of the source's, which need not have it: text as it is, else as JSON."""
    (copy / "README.md").unlink()
    made = write_bundle(tmp_path / "made", copy, {}, {"README.md": "# Größer\n", "config.json": {"model_type": "new"}})
    assert (made.path / "README.md").read_text(encoding="utf-8") == "# Größer\n"
    assert made.config == {"model_type": "new"}
    assert sha256(made.path / "model.onnx") == sha256(copy / "model.onnx")


def _with(source: Path, replaced: Path, tmp_path: Path) -> Path:
    mixed = Path(shutil.copytree(source, tmp_path / "source"))
    shutil.copyfile(replaced, mixed / replaced.name)
    return mixed
