"""Receipts go to MLflow where it is installed and named; whatever goes wrong there, the loop goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from training.tracking import track

ROOT = Path(__file__).parent.parent
RECEIPT = {
    "run": "000001",
    "decision": "promoted",
    "why": "risk fell",
    "current": "aaaa",
    "candidate": "bbbb",
    "options": {"promote": "True"},
    "steps": {"judge": {"risk": 0.09, "cost": 12.5, "accepted": True, "missing": float("nan")}},
}


def mlflow_python() -> str:
    """An interpreter that has MLflow: this one, or that of `make setup-mlflow`, whose pins do not fit ours."""
    if find_spec("mlflow") is not None:
        return sys.executable
    other = ROOT / ".venv-mlflow" / "bin" / "python"
    if not other.is_file():
        pytest.skip("MLflow is not installed (make setup-mlflow)")
    return str(other)


def test_nothing_is_tracked_unless_asked_for(tmp_path):
    """Without a tracking URI nothing is imported, said or written."""
    said: list[str] = []
    assert track(RECEIPT, uri="", artefacts={}, say=said.append) == ""
    assert said == []


@pytest.mark.skipif(find_spec("mlflow") is not None, reason="MLflow is installed")
def test_missing_mlflow_is_said_and_survived(tmp_path):
    """Where MLflow is asked for and not installed, that is said and the loop goes on."""
    said: list[str] = []
    assert track(RECEIPT, uri=tmp_path.as_uri(), artefacts={}, say=said.append) == ""
    assert "pip install mlflow" in said[0]


def test_failing_server_is_said_and_survived(monkeypatch):
    """A tracking server that fails is said, and the loop goes on."""

    def refuse(_uri: str) -> None:
        raise ConnectionError("refused")

    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(set_tracking_uri=refuse))
    said: list[str] = []
    assert track(RECEIPT, uri="http://127.0.0.1:1", artefacts={}, say=said.append) == ""
    assert said == ["tracking in http://127.0.0.1:1 failed (ConnectionError: refused); the loop goes on"]


@pytest.mark.parametrize("uri", ["https://s%33cret@h/p", "https://me:s%33cret@h/p", "https://h/p?token=s%33cret"])
@pytest.mark.parametrize(
    ("error", "told"), [("refused", "ValueError: refused"), ("no s3cret", "ValueError"), ("URI", "ValueError")]
)
def test_what_is_secret_in_a_uri_is_not_said(monkeypatch, uri, error, told):
    """Neither userinfo nor query of a tracking URI is said, nor an error's text that repeats their secret."""

    def refuse(uri: str) -> None:
        raise ValueError(error.replace("URI", uri))

    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(set_tracking_uri=refuse))
    said: list[str] = []
    track(RECEIPT, uri=uri, artefacts={}, say=said.append)
    assert said == [f"tracking in https://h/p failed ({told}); the loop goes on"]


@pytest.mark.faults
def test_receipt_becomes_a_run_of_the_real_mlflow(tmp_path):
    """The real MLflow, in a local store, gets parameters, metrics, tags, the receipt and the bundle."""
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "manifest.json").write_text("{}")
    code = f"""
import json, sys
from pathlib import Path
from training.tracking import track
uri = "sqlite:///{tmp_path}/mlflow.db"
run = track(json.loads(sys.stdin.read()), uri=uri, artefacts={{"bundle": Path({str(bundle)!r})}}, say=print)
import mlflow
found = mlflow.get_run(run)
names = [f.path for f in mlflow.MlflowClient().list_artifacts(run)]
print(json.dumps([found.data.params, found.data.metrics, found.data.tags["decision"], sorted(names)]))
"""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        [mlflow_python(), "-W", "ignore", "-c", code], input=json.dumps(RECEIPT), capture_output=True, text=True,
        env=environ, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    params, metrics, decision, names = json.loads(done.stdout.splitlines()[-1])
    assert params == {"promote": "True"}
    assert metrics == {"steps.judge.risk": 0.09, "steps.judge.cost": 12.5}
    assert decision == "promoted"
    assert names == ["bundle", "receipt.json"]
