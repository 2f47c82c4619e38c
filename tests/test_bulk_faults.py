"""Faults while logs are labelled: kills at random moments, kills at the worst ones, a full disk, mangled files."""

from __future__ import annotations

import gzip
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from click.testing import CliRunner

from classifier import bulk, cli
from classifier.bulk import label
from classifier.errors import ClassifierError, InputError
from classifier.labelled import open_labelled
from classifier.runs import Options
from tests.bulk_support import FakeMaker, prompts, write_lines
from tests.labelled_support import traffic, write_labelled
from tests.serving_support import limited, until

LOGS = Path(__file__).parent / "logs"
ONE = Options(processes=1)
long = pytest.mark.faults


def start(log, out, bundle, *, max_file_bytes=None):
    """The command as a process, the leader of a group of its own."""
    arguments = ["label", str(log), "-o", str(out), "--bundle", str(bundle), "--processes", "2"]
    return subprocess.Popen(
        [*limited(max_file_bytes), sys.executable, "-m", "classifier", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def run_here(*arguments, typed=""):
    """Runs a command in this process, with something typed."""
    return CliRunner().invoke(cli.command, [str(a) for a in arguments], input=typed, catch_exceptions=False)


def group_is_gone(group):
    """Whether no process of the group lives; what is killed and not yet reaped does not."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, found = status.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if int(found) == group and state != "Z":
            return False
    return True


def digest(path):
    """Hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("kills", [pytest.param(2, id="short"), pytest.param(20, id="long", marks=long)])
@pytest.mark.timeout(400)
def test_kills_at_random_moments_leave_no_trace(tiny_bundle_path, tmp_path, kills):
    """Killed with -9 at random moments, the parent alone or all, and started again: the file of an unbroken run."""
    draw = random.Random(9)
    rows = [{"prompt": f"{text} {draw.random()}", "n": i} for i, text in enumerate(prompts(2000 + 500 * kills))]
    rows[700] = b"{broken"
    log, out = write_lines(tmp_path / "log.jsonl", rows), tmp_path / "out.parquet"
    whole = tmp_path / "whole.parquet"
    done = start(log, whole, tiny_bundle_path)
    assert done.communicate(timeout=200)[1] == b""
    killed = 0
    while killed < kills:
        process = start(log, out, tiny_bundle_path)
        try:
            process.communicate(timeout=draw.uniform(0.2, 4.0))
        except subprocess.TimeoutExpired:
            if killed % 2:
                process.kill()  # its processes must end by themselves
            else:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            killed += 1
            group = process.pid
            until(lambda group=group: group_is_gone(group), 30)
        else:  # it was faster: the file must be right, and the next one begins anew
            assert digest(out) == digest(whole)
            out.unlink()
    last = start(log, out, tiny_bundle_path)
    assert last.communicate(timeout=200)[1] == b""
    assert digest(out) == digest(whole)
    assert sorted(p.name for p in tmp_path.glob("out*")) == ["out.parquet", "out.parquet.manifest.json"]


@pytest.mark.parametrize("moment", ["before-rename", "before-manifest", "before-cleaning"])
def test_kills_at_the_worst_moments_leave_no_trace(tmp_path, monkeypatch, moment):
    """A run that dies between merging, renaming, saying that it is complete and cleaning up is finished by the next."""
    log = write_lines(tmp_path / "log.jsonl", [{"prompt": text} for text in prompts(1500)])
    label([str(log)], str(tmp_path / "whole.parquet"), FakeMaker(), ONE)
    name = "merge_pieces" if moment == "before-rename" else "write_whole"
    real = getattr(bulk, name)

    def dies(*arguments, **named):
        last = name == "merge_pieces" or b'"complete": {' in arguments[1]
        if moment == "before-manifest" and last:
            raise KeyboardInterrupt
        real(*arguments, **named)
        if last:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bulk, name, dies)
        with pytest.raises(KeyboardInterrupt):
            label([str(log)], str(tmp_path / "out.parquet"), FakeMaker(), ONE)
    label([str(log)], str(tmp_path / "out.parquet"), FakeMaker(), ONE)
    assert digest(tmp_path / "out.parquet") == digest(tmp_path / "whole.parquet")
    assert not (tmp_path / "out.parquet.parts").exists()


def test_what_a_killed_merge_had_written_takes_no_space_for_long(tmp_path, monkeypatch):
    """The unfinished output of a run that was killed while it merged is gone when the next one begins to label."""
    log, out = write_lines(tmp_path / "log.jsonl", [{"prompt": text} for text in prompts(1500)]), tmp_path / "out.jsonl"

    def cut_off(pieces, file, *_):
        file.write(next(iter(pieces)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(bulk, "merge_pieces", cut_off)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # what is killed removes nothing
        label([str(log)], str(out), FakeMaker(), ONE)
    parts = tmp_path / "out.jsonl.parts"
    assert len(list(parts.glob(".out.jsonl-*"))) == 1
    (parts / "part-00000001").unlink()
    found = []
    label([str(log)], str(out), FakeMaker(), ONE, told=lambda _: found.append(list(parts.glob(".*"))))
    assert (found, parts.exists(), len(out.read_bytes().splitlines())) == ([[]], False, 1500)


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT], ids=["a process is killed", "ctrl-c"])
def test_a_run_with_chunks_that_wait_ends_at_once(tmp_path, signal_number):
    """Chunks of more than a pipe holds, which nobody will read any more, keep no run from ending; the next goes on."""
    rows = [{"prompt": f"{number} {'x' * 60_000}"} for number in range(800)]
    log, out = write_lines(tmp_path / "log.jsonl", rows), tmp_path / "out.parquet"

    killed = []

    def told(progress):
        if progress.tally.rows and signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        if progress.tally.rows and not killed:
            killed.append(multiprocessing.active_children()[0].pid)
            os.kill(killed[0], signal_number)

    error = KeyboardInterrupt if signal_number == signal.SIGINT else ClassifierError
    with pytest.raises(error):
        label([str(log)], str(out), FakeMaker(delay_seconds=0.005), Options(processes=2), told=told)
    assert not multiprocessing.active_children()
    assert label([str(log)], str(out), FakeMaker(), Options(processes=2)).tally.rows == 800
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.parquet", "out.parquet.manifest.json"]


@long
def test_a_file_that_may_not_grow_is_said_and_survived(tiny_bundle_path, tmp_path):
    """Where a process may write no larger file the command says what to do; without that limit it goes on."""
    rows = [{"prompt": f"{text} {os.urandom(20).hex()}"} for text in prompts(3000)]
    log, out, limit = write_lines(tmp_path / "log.jsonl", rows), tmp_path / "out.parquet", 20_000
    full = start(log, out, tiny_bundle_path, max_file_bytes=limit)
    _, told = full.communicate(timeout=100)
    assert full.returncode == 1
    assert b"out.parquet: cannot be written (File too large); make space" in told
    assert not out.exists()
    assert start(log, out, tiny_bundle_path).communicate(timeout=100)[1] == b""
    assert pq.read_table(out).num_rows == 3000


@pytest.mark.parametrize(
    ("kind", "taken", "pieces", "processes"),
    [
        pytest.param("parquet", 1020, 0, 1, id="at-once"),
        pytest.param("parquet", 700, 1, 1, id="in-a-piece"),
        pytest.param("jsonl", 450, 3, 1, id="in-the-end"),
        pytest.param("csv", 450, 3, 1, id="in-the-end-csv"),
        pytest.param("parquet", 700, 0, 2, id="two-processes", marks=long),
    ],
)
def test_a_full_disk_is_said_and_survived(small_disk, tmp_path, kind, taken, pieces, processes):
    """On a disk that is full the run says what to do and nothing is damaged; with space it goes on from there."""
    disk, resize = small_disk
    draw = random.Random(5)
    log = write_lines(tmp_path / "log.jsonl", ({"prompt": f"hi {draw.randbytes(60).hex()}"} for _ in range(3000)))
    out = disk / f"out.{kind}"
    if kind != "parquet":
        resize("2m")
    (disk / "others").write_bytes(bytes(taken * 1024))
    options = Options(processes=processes)
    for _ in range(2):  # the second time it is as full as the first
        with pytest.raises(InputError, match=r"cannot be written \(No space left on device\); make space"):
            label([str(log)], str(out), FakeMaker(), options)
        assert not out.exists()
    assert [path.name for path in disk.glob("**/.*")] == []
    resize("16m")
    progress = label([str(log)], str(out), FakeMaker(), options)
    assert (progress.tally.rows, progress.resumed_rows >= 1000 * pieces) == (3000, True)
    label([str(log)], str(tmp_path / f"whole.{kind}"), FakeMaker(), ONE)
    assert digest(out) == digest(tmp_path / f"whole.{kind}")
    assert sorted(path.name for path in disk.iterdir()) == ["others", out.name, f"{out.name}.manifest.json"]


def test_reports_and_samples_on_a_full_disk_leave_nothing(small_disk, tmp_path):
    """A page, a sample or an answer that cannot be written is said in one line, and leaves no half of a file."""
    disk, resize = small_disk
    labelled = write_labelled(tmp_path / "labelled.parquet", traffic())
    mine = ["sample", labelled, "--random", "50", "--annotate", "-o", disk / "mine.jsonl"]
    assert run_here(*mine, typed="1\n").exit_code == 0
    (disk / "others").write_bytes(bytes(1020 * 1024))
    sample = ["sample", labelled, "--random", "200", "-o", disk / "sample.jsonl"]
    for command in (["report", labelled, "-o", disk / "page.html"], sample):
        with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
            run_here(*command)
    with pytest.raises(InputError, match="every answer before this one is kept"):
        run_here(*mine, typed="2\n" * 49)
    assert sorted(path.name for path in disk.iterdir()) == ["mine.jsonl", "others"]
    kept = (disk / "mine.jsonl").read_text().splitlines()
    assert json.loads(kept[0])["tier"] == "simple"
    resize("16m")
    assert run_here(*sample).exit_code == 0


@pytest.mark.parametrize("source", ["log.jsonl", "-"])
def test_two_runs_never_write_one_output(tmp_path, monkeypatch, source):
    """A second run of the same output is refused while the first goes on, also where neither could be resumed."""
    log = write_lines(tmp_path / "log.jsonl", [{"prompt": text} for text in prompts(1500)])
    out = str(tmp_path / "out.parquet")
    source = source if source == "-" else str(log)

    def second(_):
        with pytest.raises(InputError, match="another run is writing it"):
            label([source], out, FakeMaker(), ONE)

    with log.open(encoding="utf-8") as typed:
        monkeypatch.setattr("sys.stdin", typed)
        assert label([source], out, FakeMaker(), ONE, told=second).tally.rows == 1500


_NASTY = [b'"', b"\\ud800", b"\n", b"\r", b"\0", b"[" * 2000, b"\xff\xfe", b'{"a":', b"1e999"]


def mangled(data: bytes, draw: random.Random) -> bytes:
    """Bytes with a few of them changed, cut out, doubled, or all of them random."""
    kind = draw.randrange(6)
    if kind == 0:
        return draw.randbytes(draw.randrange(2000))
    changed = bytearray(data)
    for _ in range(draw.randrange(1, 8)):
        at = draw.randrange(len(changed) + 1)
        if kind == 1 and changed:
            changed[at % len(changed)] = draw.randrange(256)
        elif kind == 2:
            del changed[at : at + draw.randrange(200)]
        elif kind == 3:
            changed[at:at] = draw.randbytes(draw.randrange(20))
        elif kind == 4:
            changed[at:at] = draw.choice(_NASTY)
        else:
            changed = changed[:at]
    return bytes(changed)


def packed(data: bytes, name: str, draw: random.Random, folder: Path) -> tuple[str, bytes]:
    """The bytes under a name that we read, mangled before or after they are packed."""
    kind = draw.choice(["plain", "gz", "zst", "parquet"])
    if kind == "parquet":
        lines = [line.decode("utf-8", "replace") for line in data.splitlines()]
        pq.write_table(pa.table({"messages": lines, "prompt": lines}), folder / "packed")
        return "a.parquet", mangled((folder / "packed").read_bytes(), draw)
    inner = mangled(data, draw)
    if kind == "plain":
        return name, inner
    outer = gzip.compress(inner) if kind == "gz" else zstandard.ZstdCompressor().compress(inner)
    return f"{name}.{kind}", mangled(outer, draw) if draw.random() < 0.5 else outer


@pytest.mark.parametrize("count", [pytest.param(30, id="short"), pytest.param(400, id="long", marks=long)])
@pytest.mark.timeout(300)
def test_no_bytes_end_a_run(tmp_path, count):
    """Whatever is in a file, of every format and mangled, it becomes rows, and the file after it is labelled."""
    seed = 2149007439 if count > 100 else 7
    draw = random.Random(seed)
    fixtures = sorted(LOGS.iterdir())
    for i in range(count):
        fixture = draw.choice(fixtures)
        name, data = packed(fixture.read_bytes(), fixture.name, draw, tmp_path)
        folder = tmp_path / "in"
        folder.mkdir()
        (folder / name).write_bytes(data)
        if name.endswith(".parquet"):
            pq.write_table(pa.table({"prompt": ["hi"]}), folder / "z.parquet")
        else:
            write_lines(folder / "z.jsonl", [{"prompt": "hi"}])
        out = tmp_path / draw.choice(["out.parquet", "out.jsonl", "out.csv"])
        try:
            tally = label([str(folder)], str(out), FakeMaker(), ONE).tally
            rows = list(open_labelled(out).rows())
        except InputError as error:
            if "do not fit one another" not in str(error):  # a table that became another one is told apart
                raise AssertionError(f"seed {seed}, file {i}, {name}") from error
            rows = None
        except Exception as error:
            raise AssertionError(f"seed {seed}, file {i}, {name}") from error
        if rows is not None:
            assert len(rows) == tally.rows, f"{seed}/{i}"
            assert rows[-1]["classifier_tier"] == "simple", f"{seed}/{i}"
            assert all((row["classifier_error"] is None) == (row["classifier_tier"] is not None) for row in rows)
        shutil.rmtree(folder)
        for path in tmp_path.glob("out*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
