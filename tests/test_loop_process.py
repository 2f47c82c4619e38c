"""The loop as a user runs it: real processes, killed for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from classifier.bundle import read_bundle
from classifier.registry import Registry
from tests.serving_support import until
from tests.test_retrain import base  # noqa: F401 - a fixture

pytestmark = [pytest.mark.training, pytest.mark.faults, pytest.mark.timeout(600)]
ROOT = Path(__file__).parent.parent


def command(base: Path, work: Path, *verb: str) -> list[str]:  # noqa: F811
    return [
        *(sys.executable, "-W", "ignore", "-m", "training", *verb, "--registry", str(base / "registry")),
        *("--feedback-url", f"sqlite:///{base}/feedback.db", "--work", str(work), "--data", str(base / "data")),
        *("--recipe", str(base / "recipe.toml"), "--held-out", "0.5", "--window-days", "40000", "--json"),
    ]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    """The command as a terminal starts it: what a script runs in the background ignores Ctrl-C, and tests may be."""
    arguments = ["env", "--default-signal=INT", *arguments]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ, cwd=ROOT)


def test_killed_at_every_step(base, tmp_path):  # noqa: F811
    """SIGKILL right after each step began leaves one valid current bundle; the last start ends the round."""
    arguments = command(base, tmp_path / "work", "retrain", "--promote")
    run = tmp_path / "work" / "000001"
    killed = []
    for step in (
        "snapshot",
        "recalibrate",
        "judge-recalibrated",
        "thresholds",
        "judge-thresholds",
        "train",
        "calibrate-trained",
        "judge-retrained",
    ):
        process = start(arguments)
        part, done = run / f".{step}.part", run / step
        until(lambda p=process, a=part, b=done: a.exists() or b.exists() or p.poll() is not None, 120)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed.append(step)
        process.communicate()
        registry = Registry(base / "registry")
        assert read_bundle(registry.fetch("current")).version == registry.resolve("current")
        (run / "attempts").unlink(missing_ok=True)  # a person would not start it so often
    assert "snapshot" in killed
    process = start(arguments)
    out, err = process.communicate(timeout=300)
    assert process.returncode in (0, 3), err
    assert json.loads(out)["decision"] in ("promoted", "keep")
    assert (run / "receipt.json").is_file()


def test_two_at_once(base, tmp_path):  # noqa: F811
    """Of two retrainers one is refused with exit code 1 and the other's process number."""
    first = start(command(base, tmp_path / "a", "retrain"))
    until(lambda: (tmp_path / "a" / "000001").exists() or first.poll() is not None, 120)
    first.send_signal(signal.SIGSTOP)  # it cannot be done before the second comes
    second = start(command(base, tmp_path / "b", "retrain"))
    _, err = second.communicate(timeout=120)
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 1
    assert f"process {first.pid} on" in err
    first.communicate(timeout=300)
    assert first.returncode in (0, 3)


def test_sigterm_ends_the_loop(base, tmp_path):  # noqa: F811
    """A loop that waits ends with exit code 0 on SIGTERM."""
    loop = start([*command(base, tmp_path / "work", "loop"), "--every", "1h", "--min-outcomes", "1000000"])
    assert json.loads(loop.stdout.readline())["decision"] == "wait"
    loop.send_signal(signal.SIGTERM)
    loop.communicate(timeout=60)
    assert loop.returncode == 0


@pytest.mark.parametrize(("number", "code", "said"), [(signal.SIGTERM, 143, "terminated: "), (signal.SIGINT, 130, "")])
@pytest.mark.parametrize("verb", [("retrain",), ("loop", "--once", "--min-outcomes", "1")])
def test_a_signal_ends_a_round_where_it_is_and_the_next_start_goes_on(base, tmp_path, verb, number, code, said):  # noqa: F811
    """It says that the round goes on, exits by the signal's number, and takes no attempt of the round."""
    arguments = command(base, tmp_path / "work", *verb)
    run = tmp_path / "work" / "000001"
    process = start(arguments)
    until(lambda: (run / "attempts").exists() or process.poll() is not None, 120)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert f"{said}a round that has begun goes on at the next start" in err.splitlines()
    assert "Traceback" not in err
    assert ((run / "attempts").read_text(), (run / "receipt.json").exists()) == ("0", False)
