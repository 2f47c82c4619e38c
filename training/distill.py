"""The student: a few of the teacher's layers, taught by labels and by the teacher's answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer
from transformers import PreTrainedModel

from classifier.errors import InputError
from classifier.types import TIERS
from training.corpus import Row
from training.fit import fit
from training.model import load_checkpoint, student_from, tokenizer_of
from training.predictions import read_archive
from training.recipe import FitOptions
from training.teacher import keep


def read_answers(path: Path, rows: Sequence[Row]) -> NDArray[np.float32]:
    """Log-probabilities that teachers elsewhere gave: (rows, 4) float32, NaN for rows that they were not asked about.

    Args:
        path: `.npz` with `rows` (m,) str, the first 16 hex digits of each row's sha256, and `log_probabilities` (m, 4).
        rows: whose answers are wanted.

    Raises:
        InputError: the file cannot be read, lacks an array, has one of another shape, or answers none of the rows.
    """
    try:
        arrays = read_archive(path)
        names, answers = arrays["rows"], arrays["log_probabilities"].astype(np.float32)
    except Exception as error:
        raise InputError(f"{path}: not a file of answers ({error}); it takes rows and log_probabilities") from error
    if names.shape != answers.shape[:1] or answers.shape[1:] != (len(TIERS),):
        raise InputError(
            f"{path}: rows have shape {names.shape} and log_probabilities {answers.shape}, expected (m,) and "
            f"(m, {len(TIERS)})"
        )
    known = dict(zip(names.tolist(), answers, strict=True))
    missing = np.full(len(TIERS), np.nan, np.float32)
    found = np.array([known.get(row.sha256[:16], missing) for row in rows], np.float32).reshape(-1, len(TIERS))
    if np.isnan(found).all():
        raise InputError(f"{path}: answers none of the {len(rows)} rows; ask the teachers about this corpus")
    return found


def distill(
    teacher: PreTrainedModel,
    fast: FastTokenizer,
    rows: Sequence[Row],
    teacher_logits: NDArray[np.float32],
    layers: int,
    options: FitOptions,
    *,
    max_tokens: int,
    out: Path,
) -> PreTrainedModel:
    """Trains a student of `layers` layers; one that `out` already has is not trained again.

    Args:
        teacher: whose layers the student starts from.
        fast: their tokeniser.
        rows: labelled and unlabelled rows; the latter follow the teacher alone.
        teacher_logits: (rows, 4) float32.
        layers: depth of the student.
        options: of training; `distill_weight` says how much of the loss follows the teacher.
        max_tokens: longest sequence.
        out: folder that keeps `checkpoint/` and the history.
    """
    checkpoint = out / "checkpoint"
    if not (out / "done").is_file():
        student = student_from(teacher, layers)
        history = fit(
            student,
            tokenizer_of(fast, max_tokens),
            rows,
            options,
            name="student",
            teacher_logits=teacher_logits,
            state=out / "state",
        )
        keep(out, student, fast, history, max_tokens=max_tokens, checkpoint=checkpoint)
    return load_checkpoint(checkpoint)[0]
