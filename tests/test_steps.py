"""A run of steps: each is done once, and what it leaves is there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("filelock")
pytest.importorskip("safetensors")

from safetensors import SafetensorError

from classifier.errors import BundleError, Busy
from training.steps import Run, keep_receipts, next_folder, only_one, receipts, unfinished


def test_step_runs_once(tmp_path):
    """A finished step is read, not run again, also by another process."""
    calls = []

    def work(out):
        calls.append(1)
        (out / "made").write_text("x")
        return {"n": len(calls)}

    assert Run(tmp_path / "1").step("a", work) == {"n": 1}
    assert Run(tmp_path / "1").step("a", work) == {"n": 1}
    assert (Run(tmp_path / "1").path("a") / "made").read_text() == "x"


def test_results_are_those_of_finished_steps(tmp_path):
    """A step that was cut off when all but its name was there has none; it is begun again."""
    run = Run(tmp_path / "1")
    run.step("b", lambda _: {"n": 2})
    run.step("a", lambda _: {"n": 1})
    (run.path("b")).rename(run.folder / ".b.part")
    assert run.results() == {"a": run.result("a")} == {"a": {"n": 1}}
    assert run.step("b", lambda _: {"n": 3}) == run.results()["b"] == {"n": 3}


def test_step_that_fails_leaves_nothing_behind(tmp_path):
    """A step that dies half-way begins again in an empty folder."""

    def dies(out):
        (out / "half").write_text("x")
        raise KeyboardInterrupt

    run = Run(tmp_path / "1")
    with pytest.raises(KeyboardInterrupt):
        run.step("a", dies)
    assert not run.path("a").exists()
    assert run.step("a", lambda out: {"files": len(list(out.iterdir()))}) == {"files": 0}


def test_state_outlives_a_crash_and_ends_with_the_run(tmp_path):
    """What a long step keeps to go on from is there until the receipt is."""
    run = Run(tmp_path / "1")
    run.state("train").mkdir(parents=True)
    assert unfinished(tmp_path) is None or Run(tmp_path / "1").state("train").is_dir()
    run.close({"decision": "keep"})
    assert not run.state("train").exists()


def test_runs_are_numbered_and_the_newest_without_a_receipt_is_unfinished(tmp_path):
    """Runs are 000001, 000002, …; the last one is unfinished until it has its receipt."""
    assert unfinished(tmp_path) is None
    run = Run(next_folder(tmp_path))
    assert (run.name, unfinished(tmp_path)) == ("000001", run.folder)
    run.close({"decision": "keep"})
    assert unfinished(tmp_path) is None
    assert next_folder(tmp_path).name == "000002"
    assert receipts(tmp_path) == [{"decision": "keep"}]


@pytest.mark.parametrize("name", ["2026-11-01-base", "2026", "000009.bak", "٠٠٠٠٠٩"])
def test_a_folder_that_is_no_run_is_left_alone(tmp_path, name):
    """What lies among the runs and begins with a digit is neither gone on with, nor counted, nor deleted."""
    theirs = tmp_path / name / "bundle" / "model.onnx"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("theirs")
    (tmp_path / name / "receipt.json").write_text("[]")
    (tmp_path / "20261101").write_text("a note")
    run = Run(next_folder(tmp_path))
    assert (run.name, unfinished(tmp_path)) == ("000001", run.folder)
    run.step("train", lambda _: {})
    run.close({"decision": "keep"})
    keep_receipts(tmp_path)
    assert (receipts(tmp_path), theirs.read_text()) == ([{"decision": "keep"}], "theirs")
    assert not run.path("train").exists()


def test_the_millionth_run_is_the_newest(tmp_path):
    """Runs are in the order of their numbers, not of their letters."""
    for name in ("999999", "1000000"):
        Run(tmp_path / name).close({"run": name})
    assert (receipts(tmp_path)[-1]["run"], next_folder(tmp_path).name) == ("1000000", "1000001")


def begin(folder: Path, error: BaseException) -> int:
    """The attempt of a run that ends in `error`."""
    run = Run(folder)
    with contextlib.suppress(BaseException), run.attempt():
        raise error
    return int((folder / "attempts").read_text())


def test_attempts_are_counted(tmp_path):
    """A run knows how often it was begun and did not end."""
    assert [begin(tmp_path / "1", error) for error in (ValueError(), SystemExit(), PermissionError())] == [1, 2, 3]


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        OSError(errno.ENOSPC, "full"),
        OSError(errno.EDQUOT, "quota"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        BundleError("/srv/bundles: the store failed (OSError: No space left on device)"),
    ],
)
def test_who_stops_a_run_or_a_full_disk_takes_no_attempt(tmp_path, error):
    """A run that a person stopped, or that found the disk full, may be begun as often as before."""
    assert [begin(tmp_path / "1", error) for _ in range(5)] == [0] * 5


def test_only_one_process_at_a_time(tmp_path):
    """A second process is refused with the first one's number, and let in when the first has died."""
    code = (
        "import sys; from training.steps import only_one; from pathlib import Path\n"
        "with only_one(Path(sys.argv[1])):\n  print('in', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(Busy, match=f"process {other.pid} on .* is retraining"), only_one(tmp_path / "lock"):
            pass
    finally:
        other.kill()
        other.communicate()
    with only_one(tmp_path / "lock"):
        assert "process" in (tmp_path / "lock.holder").read_text()


def test_what_is_no_number_is_null_in_a_receipt(tmp_path):
    """A gate that refuses has no cost; what it leaves is JSON to every reader all the same."""
    Run(tmp_path / "1").close({"verdict": {"cost": float("nan"), "high": float("inf")}})

    def no_constant(name):
        raise AssertionError(name)

    text = (tmp_path / "1" / "receipt.json").read_text()
    assert json.loads(text, parse_constant=no_constant) == {"verdict": {"cost": None, "high": None}}
