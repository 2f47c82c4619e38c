"""Files, folders, globs, archives and URLs: what is found, and how it is unpacked."""

from __future__ import annotations

import bz2
import gzip
import http.server
import json
import lzma
import os
import threading
import zipfile
from pathlib import Path

import fsspec
import pytest
import zstandard

from classifier import readers
from classifier.addresses import without_secrets
from classifier.errors import InputError
from classifier.readers import read_chunks
from classifier.sources import CONTAINERS, container_of, find_sources
from tests.bulk_support import labelled, prompts, write_lines


@pytest.mark.parametrize("pack", ["plain", "gz", "zst", "zst-frames", "bz2", "xz", "bom"])
def test_compressed_files_are_read_as_plain_ones(pack, tmp_path):
    """Packed by one of four, in one frame or several, or marked as UTF-8: the same rows; names do not matter."""
    lines = [json.dumps({"prompt": text}).encode() + b"\n" for text in prompts(10)]
    data = b"".join(lines)
    one = zstandard.ZstdCompressor().compress
    packed = {
        "plain": data,
        "gz": gzip.compress(data[:100]) + gzip.compress(data[100:]),
        "zst": one(data),
        "bz2": bz2.compress(data[:100]) + bz2.compress(data[100:]),
        "xz": lzma.compress(data[:100]) + bytes(4) + lzma.compress(data[100:]),
        "zst-frames": one(data[:100]) + one(data[100:]),
        "bom": b"\xef\xbb\xbf" + data,
    }[pack]
    (tmp_path / "log.jsonl").write_bytes(packed)
    [chunk] = read_chunks(find_sources([str(tmp_path)]))
    assert [row.payload for row in chunk.rows] == lines
    assert [row.number for row in chunk.rows] == list(range(1, 11))


def skipped(size: int, kind: int = 0) -> bytes:
    """A frame of Zstandard that holds nothing of the file."""
    return bytes([0x50 + kind]) + b"\x2a\x4d\x18" + size.to_bytes(4, "little") + os.urandom(size)


@pytest.mark.parametrize("size", [0, 4, 4096, 100_000])
def test_frames_of_zstandard_that_are_to_be_skipped_are(size, tmp_path):
    """At the head as pzstd writes them, in between, and at the end as in the seekable format: no row is lost."""
    one = zstandard.ZstdCompressor().compress
    rows = [b'{"prompt": "hi"}\n', b'{"prompt": "ho"}\n']
    packed = [skipped(size), one(rows[0]), skipped(size, 7), skipped(size), one(rows[1]), skipped(size, 15)]
    (tmp_path / "log.jsonl.zst").write_bytes(b"".join(packed))
    [chunk] = read_chunks(find_sources([str(tmp_path)]))
    assert [row.payload for row in chunk.rows] == rows


def test_a_skipped_frame_that_breaks_off_is_said(tmp_path):
    """A file that ends in the middle of such a frame is one whose end is missing, and what came before is read."""
    packed = zstandard.ZstdCompressor().compress(b'{"prompt": "hi"}\n')
    for cut in (2, 6, 50):
        path = tmp_path / "log.jsonl.zst"
        path.write_bytes(packed + skipped(100)[:cut])
        errors, _ = labelled(path, tmp_path)
        assert errors[0] is None
        assert "it breaks off" in errors[1]
        (tmp_path / "log.jsonl.zst.jsonl").unlink()
        (tmp_path / "log.jsonl.zst.jsonl.manifest.json").unlink()


@pytest.mark.parametrize("padding", [1, 511, 4096, 10_240, 1_000_000])
def test_padding_of_any_length_between_members_loses_no_row(padding, tmp_path):
    """Two files off a block device, one behind the other: what follows the zeros is read, and zeros end the file."""
    rows = [b'{"prompt": "hi"}\n', b'{"prompt": "ho"}\n']
    (tmp_path / "log.jsonl.gz").write_bytes(b"".join(gzip.compress(row) + bytes(padding) for row in rows))
    [chunk] = read_chunks(find_sources([str(tmp_path)]))
    assert [row.payload for row in chunk.rows] == rows


def test_inputs_are_files_folders_globs_and_urls(tmp_path):
    """A folder is read below, in order, without hidden and other files; a glob and a URL name the same."""
    (tmp_path / "b").mkdir()
    names = ["a.jsonl", "b/c.csv", "b/d.jsonl.gz", ".hidden.jsonl", "_temporary.jsonl", "README.md"]
    for name in names:
        (tmp_path / name).write_text("{}\n")
    found = [Path(s.name).relative_to(tmp_path).as_posix() for s in find_sources([str(tmp_path)])]
    assert found == names[:3]
    assert len(find_sources([str(tmp_path / "**" / "*.jsonl*")])) == 3
    remote = fsspec.filesystem("memory")
    remote.pipe("/logs/a.jsonl", b'{"prompt": "hi"}\n')
    remote.pipe("/logs/b.jsonl", b'{"prompt": "ho"}\n')
    for url in ("memory://logs", "memory://logs/*.jsonl"):
        [chunk] = read_chunks(find_sources([url]))
        assert [json.loads(row.payload)["prompt"] for row in chunk.rows] == ["hi", "ho"]
    with pytest.raises(InputError, match="named twice"):
        find_sources([str(tmp_path / "a.jsonl"), str(tmp_path / "a.jsonl")])


def test_a_file_that_comes_twice_is_named(tmp_path, monkeypatch):
    """A folder and the same one by its whole path, or as a URL, are one: no row is labelled twice."""
    (tmp_path / "logs").mkdir()
    write_lines(tmp_path / "logs" / "a.jsonl", [{"prompt": "hi"}])
    monkeypatch.chdir(tmp_path)
    for again in (str(tmp_path / "logs"), "./logs/a.jsonl", f"file://{tmp_path}/logs/*.jsonl"):
        with pytest.raises(InputError, match="named twice"):
            find_sources(["logs", again])


def test_what_a_folder_leaves_out_is_said(tmp_path, caplog):
    """Names count without their case; of files that are no logs by their names there is a number and an example."""
    names = ["B.JSONL.GZ", "a.jsonl", "c.jsonl.lz4", "gw.log.1", ".hidden", "_temporary.txt", "a.parquet.manifest.json"]
    remote = fsspec.filesystem("memory")
    for name in names:
        (tmp_path / name).write_text("{}\n")
        remote.pipe(f"/rotated/{name}", b"{}\n")
    for folder in (str(tmp_path), "memory://rotated"):
        caplog.clear()
        assert [source.name.rsplit("/", 1)[1] for source in find_sources([folder])] == ["B.JSONL.GZ", "a.jsonl"]
        [message] = [record.getMessage() for record in caplog.records]
        assert message.startswith(f"{folder}: 2 files are left out, such as ")
        assert "c.jsonl.lz4; names end in .jsonl" in message


def test_the_one_file_that_a_folder_leaves_out_is_named(tmp_path, caplog):
    """One is no number with an example."""
    for name in ("a.jsonl", "notes.txt"):
        (tmp_path / name).write_text("{}\n")
    find_sources([str(tmp_path)])
    assert f"{tmp_path}: 1 file is left out, {tmp_path}/notes.txt; names end in .jsonl" in caplog.text


@pytest.mark.parametrize("ending", [*CONTAINERS, ".gz", ".zst", ".zstd", ".bz2", ".xz"])
def test_every_ending_of_a_log_is_told(ending, tmp_path):
    """What the page says that is read, and what a folder without logs is told, is what is read."""
    assert container_of(f"a{ending}") or container_of(f"a.jsonl{ending}")
    assert f"`{ending}`" in (Path(__file__).parent.parent / "docs" / "bulk.md").read_text()
    with pytest.raises(InputError, match=rf"\{ending}\b"):
        find_sources([str(tmp_path)])


def test_a_linked_folder_is_left_out_and_named(tmp_path, caplog):
    """Links to folders are not followed, as one may lead back or to logs that are read anyway; that is said."""
    for name in ("logs/a", "elsewhere", ".hidden"):
        (tmp_path / name).mkdir(parents=True)
        write_lines(tmp_path / name / "x.jsonl", [{"prompt": "hi"}])
    (tmp_path / "logs" / "a" / "b").symlink_to(tmp_path / "elsewhere")
    found = find_sources([str(tmp_path / "logs")])
    assert [source.name for source in found] == [str(tmp_path / "logs" / "a" / "x.jsonl")]
    assert f"{tmp_path}/logs: 1 linked folder is left out, {tmp_path}/logs/a/b; a link is not followed" in caplog.text
    named = find_sources([str(tmp_path / "logs"), str(tmp_path / "logs" / "a" / "b")])
    assert [source.name.removeprefix(f"{tmp_path}/logs/") for source in named] == ["a/x.jsonl", "a/b/x.jsonl"]
    (tmp_path / "logs" / "back").symlink_to(tmp_path / "logs")
    find_sources([str(tmp_path / "logs")])
    assert f"2 linked folders are left out, such as {tmp_path}/logs/a/b; " in caplog.text


def test_outputs_in_a_store_are_no_inputs_either(caplog):
    """A folder of a store with an output and its manifest is read without them, as one on a disk is."""
    remote = fsspec.filesystem("memory")
    for name in ("a.jsonl", "out.jsonl", "out.jsonl.manifest.json"):
        remote.pipe(f"/uploaded/{name}", b"{}\n")
    for url in ("memory://uploaded", "memory://uploaded/*"):
        caplog.clear()
        assert [source.name for source in find_sources([url])] == ["memory:///uploaded/a.jsonl"]
        assert f"{url}: 1 file is left out, /uploaded/out.jsonl" in caplog.text


@pytest.mark.parametrize(
    "form", ["{}", "{}/*/*.jsonl", "{}/**/*.jsonl", "{}/**", "{}/[mt]*/*", "file://{}", "file://{}/*/*"]
)
def test_a_folder_that_may_not_be_read_is_named(form, tmp_path, caplog, monkeypatch):
    """What stands in a folder below that belongs to somebody else is left out, and that is said."""
    for name in ("mine", "theirs", ".theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").write_text("{}\n")
    scandir = os.scandir

    def refused(place):
        if str(place).rstrip("/").endswith("theirs"):
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refused)
    monkeypatch.setattr(os, "access", lambda place, _: not str(place).rstrip("/").endswith("theirs"))
    assert [source.name for source in find_sources([form.format(tmp_path)])] == [str(tmp_path / "mine" / "a.jsonl")]
    [message] = [record.getMessage() for record in caplog.records]
    assert message == f"{tmp_path}/theirs: cannot be read (Permission denied); what is in it is left out"


def test_a_file_that_may_not_be_read_ends_the_run_with_advice(tmp_path, monkeypatch):
    """To give the command again helps only once the rights are seen to."""
    [source] = find_sources([str(write_lines(tmp_path / "a.jsonl", [{"prompt": "hi"}]))])

    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(readers, "_opened", refused)
    with pytest.raises(
        InputError, match=r"a\.jsonl: cannot be read \(Permission denied\); see to the rights, then run"
    ):
        list(readers.read_rows(source))


def test_archives_are_read_by_their_urls(tmp_path):
    """A file within an archive, or all of one, is opened where its URL says; other contents are another input."""
    archive = tmp_path / "logs.zip"

    def found(url, prompt):
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("a.jsonl", json.dumps({"prompt": prompt}) + "\n")
            file.writestr("b/c.csv", f"prompt\n{prompt}\n")
        return find_sources([url])

    for url, names in (
        (f"zip://a.jsonl::{archive}", ["a.jsonl"]),
        (f"zip://*.jsonl::{archive}", ["a.jsonl"]),
        (f"zip://::{archive}", ["a.jsonl", "b/c.csv"]),
        (f"simplecache::zip://b/c.csv::{archive}", ["b/c.csv"]),
    ):
        sources = found(url, "hi")
        assert [source.name for source in sources] == [f"zip://{name}::{archive}" for name in names]
        assert [row.payload for chunk in read_chunks(sources) for row in chunk.rows] == [
            {"prompt": "hi"} if name.endswith("csv") else b'{"prompt": "hi"}\n' for name in names
        ]
    url = f"zip://a.jsonl::{archive}"
    assert found(url, "ho")[0].stamp != found(url, "hi")[0].stamp


@pytest.mark.parametrize("named", ["logs/a.jsonl", "logs", "logs/", "logs/*.jsonl"])
def test_files_on_a_host_are_read_there_and_named_without_its_password(named, disks):
    """A URL whose paths do not name its host is opened on that host; nobody is shown the password."""
    disks.pipe("/logs/a.jsonl", b'{"prompt": "hi"}\n')
    (source,) = find_sources([f"disks://me:secret@nas/{named}"])
    assert [row.payload for chunk in read_chunks([source]) for row in chunk.rows] == [b'{"prompt": "hi"}\n']
    assert source.name == "disks://me:***@nas/logs/a.jsonl"
    assert "secret" not in repr(source)
    with pytest.raises(InputError, match=r"^disks://me:\*\*\*@nas/logs: cannot be read \(the password is wrong\)$"):
        find_sources(["disks://me:wrong@nas/logs"])


class _Signed(http.server.BaseHTTPRequestHandler):
    """A store that answers whoever has signed the URL."""

    def do_HEAD(self):
        self.send_response(200 if self.path == "/logs/a.csv?key=k/y.parquet" else 403)
        self.send_header("Content-Length", "10")
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(b"prompt\nhi\n")

    def log_message(self, *_):
        """Nothing."""


@pytest.mark.parametrize("first", ["http", "https"])
def test_a_signed_url_is_read_as_what_its_path_names(first, monkeypatch):
    """What follows the question mark in a URL of HTTP is no part of the file's name, nor a pattern.

    To older fsspec all of HTTP has the scheme that the process read first.
    """
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(fsspec.get_filesystem_class("http"), "protocol", first)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Signed) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            sources = find_sources([f"http://127.0.0.1:{server.server_port}/logs/a.csv?key=k/y.parquet"])
            assert [row.payload for chunk in read_chunks(sources) for row in chunk.rows] == [{"prompt": "hi"}]
        finally:
            server.shutdown()
            thread.join()


SIGNED = [
    "sv=1&sig={}",
    "X-Amz-Expires=9&X-Amz-Signature={}",
    "Expires=9&Signature={}",
    "access_token={}",
    "api_key={}",
]


@pytest.mark.parametrize("query", SIGNED)
def test_what_signs_a_url_is_not_shown(query, nowhere):
    """Neither beside a row nor in an error, the client's own words included."""
    pytest.importorskip("aiohttp")
    url = f"http://{nowhere}/a.jsonl?{query.format('secret')}"
    with pytest.raises(InputError, match=r"a\.jsonl\?\*\*\*: cannot be read") as raised:
        find_sources([url])
    assert "secret" not in str(raised.value)
    assert without_secrets(f"403, url='{url}'") == f"403, url='http://{nowhere}/a.jsonl?***'"


def test_inputs_that_differ_in_what_signs_them_are_two(monkeypatch):
    """A run is not gone on with where another token may mean another file; a query that signs nothing is shown."""
    remote = fsspec.filesystem("memory")
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url: (remote, url))
    monkeypatch.setattr(remote, "info", lambda path: {"name": path, "type": "file", "size": 10})
    monkeypatch.setattr(remote, "unstrip_protocol", lambda path: path)
    one, two, month = find_sources([f"https://logs/a.csv?{query}" for query in ("token=1", "token=2", "month=1")])
    assert (one.name, two.name, month.name) == (*["https://logs/a.csv?***"] * 2, "https://logs/a.csv?month=1")
    assert one.stamp != two.stamp
    assert [one] == find_sources(["https://logs/a.csv?token=1"])


def test_a_url_that_cannot_be_read_says_why(nowhere):
    """Where a server refuses, or none listens, its own reason stands beside the URL."""
    pytest.importorskip("aiohttp")
    with pytest.raises(InputError, match=r"a\.jsonl: cannot be read \(Cannot connect to host"):
        find_sources([f"http://{nowhere}/a.jsonl"])


def test_a_url_whose_client_is_not_installed_says_what_brings_it(monkeypatch):
    """The extra for S3 is named, as where a registry is there."""

    def absent(*_, **__):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(InputError, match=r"Install s3fs .*; pip install 'request-complexity-classifier\[s3\]'"):
        find_sources(["s3://logs/a.jsonl"])
