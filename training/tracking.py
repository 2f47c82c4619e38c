"""Receipts in MLflow, where it is installed and a tracking server or database is named. Nothing depends on it.

A run of the loop becomes a run of the experiment: what was asked for as parameters, both models' numbers as metrics,
the decision as tags, the receipt and the candidate bundle as artefacts. What goes wrong here is said and never stops
the loop.

Knows nothing of models or stores.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_plus

from classifier.addresses import shown_url
from training.progress import Say

EXPERIMENT = "request-complexity-classifier"


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
        say(f"tracking in {shown_url(uri)} is asked for, but mlflow is missing: pip install mlflow. The loop goes on")
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
        say(f"tracking in {shown_url(uri)} failed ({_told(error, uri)}); the loop goes on")
        return ""


def _told(error: Exception, uri: str) -> str:
    """What went wrong; only its kind where the text repeats what a URI is shown without."""
    text = str(error)
    kind = type(error).__name__
    return kind if any(secret in text for secret in _secrets(uri)) else f"{kind}: {text}"


def _secrets(uri: str) -> set[str]:
    """The password of a URI, or the token in its place, and the values of its query, as they are and decoded."""
    user, _, password = uri.partition("//")[2].rpartition("@")[0].partition(":")
    values = (pair.partition("=")[2] or pair for pair in re.split("[?#&;]", uri)[1:])
    return {form for one in (password or user, *values) for form in (one, unquote(one), unquote_plus(one)) if form}


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
