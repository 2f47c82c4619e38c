"""Stored predictions: a model's answers to labelled rows in one `.npz`, such as cross-validation by source leaves.

Its arrays are `logits` (n, 4), `labels` (n,) or (n, 4), `sources` (n,), optionally `groups`, `kinds`, `languages`,
`scripts`, texts `NAMEs` or `label_NAME` for a gateway's label NAME, `ids`, `label`, `model`: what answered, in words,
`model_sha256` of its model.onnx, and `baseline_NAME` (n, 4): probabilities of other models on the same rows. Others are
not read.

Knows nothing of thresholds.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier.bundle import Bundle
from classifier.errors import InputError
from classifier.types import TIERS
from training.calibration_set import FACETS, CalibrationSet
from training.corpus import OUTCOME, RUBRIC
from training.step_losses import soft

BASELINE = "baseline_"
"""What the arrays of other models begin with."""
MODEL = "model_sha256"
GATEWAY = "label_"
"""What the arrays of a gateway's labels begin with, whose names may be those of our own arrays."""
_OWN = ("logits", "labels", "groups", "ids")
"""Arrays of a file of predictions whose name ends as a facet's does and that are none."""


def model_sha256(bundle: Bundle) -> str:
    """The hash of a bundle's model, which recalibration leaves as it is."""
    return str(bundle.manifest["files"]["model.onnx"])


def read_archive(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of an `.npz`, by name.

    Raises:
        ValueError: it is none, in words that do not speak of pickles, as numpy's do.
        Exception: of a damaged one numpy, zipfile and tokenize raise what they like.
    """
    try:
        archive = zipfile.is_zipfile(path)
        with path.open("rb") as opened:
            if not archive:
                raise ValueError("no .npz archive")
            with np.load(opened, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error


def read_predictions(path: Path, bundle: Bundle | None = None) -> CalibrationSet:
    """The set in a file of stored predictions; see the module's text for its arrays.

    Args:
        path: the file.
        bundle: whose model must have given the answers; None for any.

    Raises:
        InputError: the file cannot be read, an array is missing or has another length, or another model answered.
    """
    try:
        arrays = read_archive(path)
        logits, labels, _ = arrays["logits"].astype(np.float32), soft(arrays["labels"]), arrays["sources"]
        n = len(logits)
    except KeyError as error:
        raise InputError(f"{path}: has no array {error.args[0]!r}; it takes logits, labels and sources") from error
    except Exception as error:
        raise InputError(f"{path}: not a usable file of predictions ({error})") from error
    if not n:
        raise InputError(f"{path}: holds no row")
    if bundle is not None and str(arrays.get(MODEL, "")) != model_sha256(bundle):
        whose = "another model's" if MODEL in arrays else "not said to be this model's"
        raise InputError(
            f"{path}: its logits are {whose}, and say nothing of what the bundle promises; give rows with their text, "
            f"or name the sha256 of the model.onnx that answered as {MODEL!r}"
        )
    ids = arrays.get("ids", np.array([f"{path.name}:{i}" for i in range(n)])).astype(str)
    facets = dict.fromkeys(FACETS, np.full(n, "")) | {
        name[:-1]: values.astype(str)
        for name, values in arrays.items()
        if name[-1] == "s" and name not in _OWN and (values.dtype.kind in "US" or name[:-1] in FACETS)
        if not name.startswith(GATEWAY)
    }
    facets |= {n.removeprefix(GATEWAY): values.astype(str) for n, values in arrays.items() if n.startswith(GATEWAY)}
    groups = arrays.get("groups", ids).astype(str)
    named = {"ids": ids, "groups": groups, **facets}
    lengths = {name: array.shape for name, array in named.items() if array.shape != (n,)}
    lengths |= {"labels": labels.shape} if len(labels) != n else {}
    if lengths or logits.shape != (n, len(TIERS)):
        raise InputError(f"{path}: logits have shape {logits.shape}, expected ({n}, {len(TIERS)}); others: {lengths}")
    label = str(arrays.get("label", RUBRIC))
    if label not in (RUBRIC, OUTCOME):
        raise InputError(f"{path}: label is {label!r}, expected {RUBRIC} or {OUTCOME}")
    return CalibrationSet(logits, labels, label, ids, groups, facets)


def model_of(path: Path) -> str:
    """What gave the answers in a file of stored predictions, as the file names it; else the file's own name."""
    with np.load(path, allow_pickle=False) as file:
        return str(file["model"]) if "model" in file.files else path.name


def read_baselines(path: Path) -> dict[str, NDArray[np.float32]]:
    """The probabilities of other models in a file of stored predictions: name → (n, 4) float32, rows sum to 1.

    Raises:
        InputError: an array `baseline_NAME` has another shape than the logits.
    """
    with np.load(path, allow_pickle=False) as file:
        shape = file["logits"].shape
        found = {
            n.removeprefix(BASELINE): file[n].astype(np.float32) for n in sorted(file.files) if n.startswith(BASELINE)
        }
    for name, rows in found.items():
        if rows.shape != shape or not np.isfinite(rows).all():
            raise InputError(f"{path}: {BASELINE}{name} has shape {rows.shape} or values that are not finite")
    return found


def write_predictions(path: Path, rows: CalibrationSet, bundle: Bundle) -> None:
    """The closed rows, answered by a bundle, as a file that `read_predictions` reads; open ones are left out."""
    facets: dict[str, Any] = {
        f"{name}s" if name in FACETS else f"{GATEWAY}{name}": values
        for name, values in rows.facets.items()
        if name != "source"
    }
    np.savez(
        path,
        logits=rows.logits,
        labels=rows.labels,
        sources=rows.sources,
        groups=rows.groups,
        ids=rows.ids,
        label=np.array(rows.label),
        model_sha256=np.array(model_sha256(bundle)),
        **facets,
    )
