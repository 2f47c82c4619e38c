"""Receipts in MLflow, where it is installed and a tracking server or database is named. Nothing depends on it.

A run of the loop becomes a run of the experiment: what was asked for as parameters, both models' numbers as metrics,
the decision as tags, the receipt and the candidate bundle as artefacts. What goes wrong here is said and never stops
the loop.

Knows nothing of models or stores.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

EXPERIMENT = "request-complexity-classifier"
Say = Callable[[str], object]


def track(receipt: Mapping[str, Any], *, uri: str, artefacts: Mapping[str, Path], say: Say) -> str:
    """Records a receipt.

    Args:
        receipt: of a finished run; plain JSON values.
        uri: of the tracking server, or of a database (`sqlite:///…`); "" records nothing.
        artefacts: folders to keep with it, by name.
        say: where it is said that something went wrong.

    Returns:
        MLflow's id of the run; "" where nothing was recorded.
    """
    if not uri:
        return ""
    try:
        import mlflow
    except ImportError:
        say(f"tracking in {shown(uri)} is asked for, but mlflow is not installed; pip install mlflow. The loop goes on")
        return ""
    try:
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment(EXPERIMENT)
        with mlflow.start_run(run_name=f"retrain-{receipt['run']}") as run:
            mlflow.log_params({k: str(v)[:500] for k, v in flat(receipt.get("options", {}))})
            numbers = {k: float(v) for k, v in flat(receipt) if isinstance(v, (int, float)) and not isinstance(v, bool)}
            mlflow.log_metrics({_name(k): v for k, v in numbers.items() if v == v})  # noqa: PLR0124 - NaN is none
            mlflow.set_tags({k: str(receipt.get(k, ""))[:4000] for k in ("decision", "why", "current", "candidate")})
            mlflow.log_dict(dict(receipt), "receipt.json")
            for name, folder in artefacts.items():
                mlflow.log_artifacts(str(folder), artifact_path=name)
            return str(run.info.run_id)
    except Exception as error:
        say(f"tracking in {shown(uri)} failed ({type(error).__name__}: {error}); the loop goes on")
        return ""


def shown(uri: str) -> str:
    """A URI without its password.

    >>> shown("https://me:secret@host/path")
    'https://me:***@host/path'
    """
    return re.sub(r"(?<=//)([^/@:]*):.*@", r"\1:***@", uri)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings and lists as (path, value) pairs.

    >>> list(flat({"a": {"b": 1}, "c": [2, 3]}))
    [('a.b', 1), ('c.0', 2), ('c.1', 3)]
    """
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)):
            yield from flat({str(i): item for i, item in enumerate(value)}, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _name(key: str) -> str:
    """A metric's name with only what MLflow allows."""
    return "".join(c if c.isalnum() or c in "_-. /" else "_" for c in key)
