"""Bulk labelling on real S3 servers: logs read from one, a cluster's output written to one. `make test-s3` runs it."""

from __future__ import annotations

import json
import re

import pytest

from classifier.bulk import label
from classifier.errors import InputError
from classifier.labelled import open_labelled
from classifier.runs import Options
from classifier.sources import find_sources
from classifier.target import Target
from tests import s3_support
from tests.bulk_support import FakeMaker, prompts

ONE = Options(processes=1)


@pytest.fixture(scope="module", params=s3_support.installed())
def s3(request):
    """A server with logs in a folder of its bucket."""
    with s3_support.running(request.param) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environ.items():
            patch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()  # of the other server
        files = s3fs.S3FileSystem(**server.options)
        for i in range(3):
            lines = "".join(json.dumps({"prompt": text, "file": i}) + "\n" for text in prompts(700))
            files.pipe(f"{s3_support.BUCKET}/logs/{i}.jsonl", lines.encode())
        files.pipe(f"{s3_support.BUCKET}/logs/notes.txt", b"not a log")
        yield server


@pytest.mark.parametrize("name", ["logs", "logs/", "logs/*.jsonl"])
def test_logs_are_read_from_a_store(s3, tmp_path, name):
    """A folder and a pattern of an object store are labelled in order; the same command again finds nothing to do."""
    url, out = f"s3://{s3_support.BUCKET}/{name}", str(tmp_path / "out.parquet")
    assert label([url], out, FakeMaker(), ONE).tally.rows == 2100
    rows = list(open_labelled(out).rows(["file", "classifier_file", "classifier_row", "classifier_tier"]))
    assert [row["file"] for row in rows] == [i for i in range(3) for _ in range(700)]
    assert rows[700]["classifier_file"] == f"s3://{s3_support.BUCKET}/logs/1.jsonl"
    assert label([url], out, FakeMaker(), ONE).resumed_rows == 2100


def test_logs_that_came_since_are_found(s3):
    """What was looked up earlier in a process is looked up again."""
    import s3fs

    files, url = s3fs.S3FileSystem(**s3.options, skip_instance_cache=True), f"s3://{s3_support.BUCKET}/days"
    for n in (1, 2):
        files.pipe(f"{s3_support.BUCKET}/days/{n}.jsonl", b'{"prompt": "Hi"}\n' * n)
        assert [len(find_sources([name])) for name in (url, f"{url}/*.jsonl")] == [n, n]


def test_what_is_not_in_a_store_is_one_line(s3):
    """A missing object, bucket or store says which it is."""
    for name in (f"{s3_support.BUCKET}/nothing.jsonl", "nowhere/logs", f"{s3_support.BUCKET}/nothing/*.jsonl"):
        with pytest.raises(InputError, match=re.escape(f"s3://{name}")):
            find_sources([f"s3://{name}"])


def test_a_store_that_is_away_is_one_line(s3, monkeypatch):
    """A server that does not answer is said to be that, for what is read and for what is written."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    for reach in (lambda: find_sources(["s3://models/logs"]), lambda: Target("s3://models/out").names()):
        with pytest.raises(InputError, match=r"s3://models/(logs|out): cannot be reached"):
            reach()
    s3fs.S3FileSystem.clear_instance_cache()


def test_a_clusters_folder_may_lie_in_a_store(s3):
    """Pieces, tallies and the manifest are written and found there, and are no input of the same command again."""
    import s3fs

    folder = f"s3://{s3_support.BUCKET}/cluster"
    s3fs.S3FileSystem(**s3.options, skip_instance_cache=True).pipe(f"{folder}/0.jsonl", b'{"prompt": "Hi"}\n')
    target = Target(f"{folder}/labelled")
    assert (target.names(), target.manifest(), target.read("x")) == ([], None, None)
    target.write("_manifest.json", b'{"facts": {}, "complete": null}')
    target.write("_tallies/part-000000-000000.json", b"{}")
    target.write("part-000000-000000.parquet", b"PAR1")
    assert target.manifest() == {"facts": {}, "complete": None}
    assert target.parts() == {(0, 0)}
    assert [target.holds(f"part-000000-00000{i}.parquet") for i in (0, 1)] == [True, False]
    assert [source.name for source in find_sources([folder], written=target.url)] == [f"{folder}/0.jsonl"]
    target.discard("_tallies")
    assert target.read("_tallies/part-000000-000000.json") is None
