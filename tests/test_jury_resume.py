"""A jury that was stopped, killed or asked otherwise: what is paid for is kept, and nothing is asked twice."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("httpx")

from tests.jury_run_support import ROOT, TEXTS, lines_of, run, six_prompts
from tests.jury_support import endpoint, honest


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Trying again takes no time."""
    monkeypatch.setattr("training.jury_endpoint.LONGEST_BACKOFF", 0.0)


@pytest.fixture
def log(tmp_path) -> Path:
    """Six prompts, one of which comes twice, and a bad line."""
    return six_prompts(tmp_path / "log.jsonl")


def test_second_run_asks_only_what_is_missing(log, tmp_path):
    """The same command asks nothing again; another vote or model asks for that alone; votes stay in order."""
    out = tmp_path / "out.jsonl"
    with endpoint(honest) as server:
        run(log, "-o", out, "--limit", 2, url=server.url)
        assert len(server.asked) == 2
        run(log, "-o", out, url=server.url)
        assert sorted(server.texts) == sorted(TEXTS)
        before = out.read_bytes()
        done = run(log, "-o", out, url=server.url)
        assert (len(server.asked), out.read_bytes()) == (6, before)
        assert "6 responses, 0 of them now" in done.output
        run(log, "-o", out, "--votes", 2, "--model", "m", "--model", "n", url=server.url)
    assert Counter(a.body["model"] for a in server.asked) == {"m": 12, "n": 12}
    assert all(line["readers"] == ["m", "m", "n", "n"] for line in lines_of(out))


def test_journal_cut_at_any_byte_loses_one_answer_at_most(log, tmp_path):
    """Wherever a dying process cut the journal off, what was whole in it is kept, and only the rest is asked."""
    out = tmp_path / "out.jsonl"
    with endpoint(honest) as server:
        run(log, "-o", out, url=server.url)
    journal = out.with_name("out.jsonl.votes")
    data, wanted = journal.read_bytes(), out.read_bytes()
    ends = [i + 1 for i, byte in enumerate(data) if byte == 10]
    for cut in sorted({0, 1, ends[0] - 1, ends[0], ends[0] + 1, ends[2] - 1, ends[2], ends[3] + 9, len(data) - 1}):
        journal.write_bytes(data[:cut])
        out.unlink(missing_ok=True)
        with endpoint(honest) as server:
            assert run(log, "-o", out, url=server.url).exit_code == 0
        kept = max(0, sum(end <= cut for end in ends) - 1)
        assert len(server.asked) == 6 - kept, cut
        assert sorted(lines_of(out), key=str) == sorted(map(json.loads, wanted.decode().splitlines()), key=str)


def start(log: Path, out: Path, url: str, *arguments: object) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "training", "jury", str(log), "-o", str(out), "--base-url", url, "--model", "m"]
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("width", [1, 4])
def test_killed_run_goes_on_and_asks_nothing_twice(log, tmp_path, width):
    """A run that is killed and started again asks again for what was under way, and for nothing that was answered."""
    out, processes = tmp_path / "out.jsonl", []

    def deadly(asked):
        if asked.count == 3:
            processes[0].kill()
            processes[0].wait()
        return honest(asked)

    with endpoint(deadly) as server:
        processes.append(start(log, out, server.url, "--concurrency", width, "--votes", 2))
        processes[0].communicate(timeout=60)
        assert processes[0].returncode == -signal.SIGKILL
        assert not out.exists()
        answered = len((tmp_path / "out.jsonl.votes").read_bytes().splitlines()) - 1
    with endpoint(honest) as other:
        done = run(log, "-o", out, "--votes", 2, url=other.url)
    assert done.exit_code == 0, done.output
    assert len(other.asked) == 12 - answered
    assert len(server.asked) - answered <= width
    assert len(lines_of(out)) == 6


def test_interrupted_run_waits_for_what_is_paid(log, tmp_path):
    """Ctrl-C puts no further question, keeps the answers that are under way, and exits with 130."""
    out, processes = tmp_path / "out.jsonl", []

    def interrupting(asked):
        if asked.count == 1:
            processes[0].send_signal(signal.SIGINT)
        return honest(asked)

    with endpoint(interrupting) as server:
        processes.append(start(log, out, server.url, "--concurrency", 1))
        stdout, stderr = processes[0].communicate(timeout=60)
    assert processes[0].returncode == 130
    assert "the same command goes on from here" in stdout
    assert "waiting for the answers that are under way" in stderr
    assert "Traceback" not in stderr
    assert len(lines_of(out)) == len(server.asked) <= 3


def test_interrupted_run_does_not_wait_for_a_rest(log, tmp_path):
    """A question that rests until the endpoint takes it again is not under way: Ctrl-C leaves it to the next run."""
    out, processes = tmp_path / "out.jsonl", []

    def resting(asked):
        if asked.count != 1:
            return honest(asked)
        threading.Timer(1.0, processes[0].send_signal, (signal.SIGINT,)).start()
        return 429, {"retry-after": "600"}, {}

    with endpoint(resting) as server:
        processes.append(start(log, out, server.url, "--concurrency", 1))
        _, stderr = processes[0].communicate(timeout=60)
        assert (processes[0].returncode, len(lines_of(out)), "Traceback" in stderr) == (130, 1, False), stderr
        assert run(log, "-o", out, url=server.url).exit_code == 0
    assert (len(server.asked), len(lines_of(out))) == (6 + 1, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-chars", "500"], "put with another most chars; one output never mixes two"),
        (["--body", '{"temperature": 1}'], "put with another body;"),
        (["--answer-format", "text"], "put with another answer format;"),
        (["--guidelines", "OTHER"], "put with another rubric;"),
    ],
)
def test_answers_to_questions_put_otherwise_are_not_mixed(arguments, message, log, tmp_path):
    """A journal goes on with the questions it was begun with, and refuses others."""
    (tmp_path / "other.md").write_text("All is simple.")
    out = tmp_path / "out.jsonl"
    with endpoint(honest) as server:
        run(log, "-o", out, "--limit", 1, url=server.url)
        given = [str(tmp_path / "other.md") if a == "OTHER" else a for a in arguments]
        done = run(log, "-o", out, *given, url=server.url)
    assert (done.exit_code, len(server.asked)) == (1, 1)
    assert message in done.output


def test_questions_may_be_put_otherwise_while_nothing_is_answered(log, tmp_path):
    """A run that got no answer, as its endpoint knows no schema, is begun again with another answer format."""
    out = tmp_path / "out.jsonl"
    refused = (400, {}, {"error": {"code": "unknown_parameter"}})
    with endpoint(lambda asked: refused if "response_format" in asked.body else honest(asked)) as server:
        assert run(log, "-o", out, url=server.url).exit_code == 1
        assert run(log, "-o", out, "--answer-format", "text", url=server.url).exit_code == 0
        assert "put with another answer format;" in run(log, "-o", out, url=server.url).output
    assert len(lines_of(out)) == 6


@pytest.mark.parametrize(
    ("sound", "damaged", "line"),
    [(rb'"vote": 0', b'"vote": x', 2), (rb'"row": .*', b"", 2), (rb"\A.*", b"1", 1)],
    ids=["a number", "half a line", "the first line"],
)
def test_damaged_journal_is_named_by_its_line(sound, damaged, line, log, tmp_path):
    """A line of the journal that cannot be read is named."""
    out = tmp_path / "out.jsonl"
    with endpoint(honest) as server:
        run(log, "-o", out, url=server.url)
    journal = out.with_name("out.jsonl.votes")
    journal.write_bytes(re.sub(sound, damaged, journal.read_bytes(), count=1))
    done = run(log, "-o", out)
    assert (done.exit_code, "Traceback" in done.output) == (1, False)
    assert f"{journal}:{line}: is damaged" in done.output


def test_two_runs_never_write_one_journal(log, tmp_path):
    """While a run has an output, a second one is refused."""
    from training.jury_journal import open_journal

    out = tmp_path / "out.jsonl"
    with open_journal(out, {}):
        done = run(log, "-o", out)
    assert done.exit_code == 1
    assert "another run is writing it" in done.output
