"""The student: a few of the teacher's layers, taught by labels and by the teacher's answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer
from transformers import PreTrainedModel

from training.corpus import Row
from training.fit import FitOptions, fit
from training.model import load_checkpoint, save_checkpoint, student_from, tokenizer_of


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
    if (out / "done").is_file():
        return load_checkpoint(checkpoint)[0]
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
    save_checkpoint(student, fast, checkpoint, max_tokens)
    (out / "history.json").write_text(json.dumps(history), encoding="utf-8")
    (out / "done").touch()
    # What is exported is what is kept: the weights as the checkpoint rounds them.
    return load_checkpoint(checkpoint)[0]
