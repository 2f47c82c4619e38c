"""The teacher: as strong a model as the machine allows; an ensemble where the recipe names several seeds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from tokenizers import Tokenizer as FastTokenizer
from transformers import PreTrainedModel, set_seed

from training import processes
from training.adapters import Lora, merged, with_adapters
from training.corpus import UNLABELLED, Row
from training.fit import fit, predict
from training.model import load_base, load_checkpoint, save_checkpoint, tokenizer_of
from training.recipe import FitOptions


def train_teachers(
    rows: Sequence[Row],
    base: str,
    seeds: Sequence[int],
    options: FitOptions,
    *,
    max_tokens: int,
    out: Path,
    lora: Lora | None = None,
) -> tuple[PreTrainedModel, FastTokenizer, NDArray[np.float32]]:
    """Trains one teacher a seed on the labelled rows and asks all of them about every row.

    A teacher that `out` already has is not trained again. Without a seed the base itself is asked, as it is.

    Args:
        rows: labelled rows, and unlabelled ones for the answers.
        base: see `training.model.load_base`.
        seeds: one teacher each; none where the base is to go on from its own answers.
        options: of training.
        max_tokens: longest sequence.
        out: folder that keeps each teacher's checkpoint and history.
        lora: train adapters, which are merged before anything else happens; None trains every weight.

    Returns:
        The first teacher, its tokeniser, and the mean of the teachers' log-probabilities: (rows, 4) float32.
    """
    if not seeds:
        model, fast = load_base(base, max_tokens)
        logits = predict(model, tokenizer_of(fast, max_tokens), rows, name="answers of the base")
        return model, fast, log_softmax(logits, axis=1)
    labelled = [r for r in rows if r.label != UNLABELLED]
    first: tuple[PreTrainedModel, FastTokenizer] | None = None
    answers = []
    for seed in seeds:
        folder = out / f"teacher-{seed}"
        if not (folder / "done").is_file():
            set_seed(seed)
            model, fast = load_base(base, max_tokens)
            tokenizer = tokenizer_of(fast, max_tokens)
            learner = model if lora is None else with_adapters(model, lora, tokenizer.reserved_ids)
            history = fit(
                learner,
                tokenizer,
                labelled,
                replace(options, seed=seed),
                name=f"teacher {seed}",
                state=folder / "state",
            )
            model = model if lora is None else merged(learner)
            keep(folder, model, fast, history, max_tokens=max_tokens, checkpoint=folder)
        model, fast = load_checkpoint(folder)
        logits = predict(model, tokenizer_of(fast, max_tokens), rows, name=f"teacher {seed} answers")
        answers.append(log_softmax(logits, axis=1))
        first = first or (model, fast)
    assert first is not None
    return *first, np.mean(answers, axis=0).astype(np.float32)


def keep(
    folder: Path,
    model: PreTrainedModel,
    fast: FastTokenizer,
    history: Sequence[Mapping[str, float]],
    *,
    max_tokens: int,
    checkpoint: Path,
) -> None:
    """Writes what a stage trained, and then marks `folder` as done; the first process writes, the others wait for it.

    What goes on from here reads the checkpoint, whose weights are rounded, so that a run that was stopped in between
    goes on from the same.
    """
    if processes.is_first():
        save_checkpoint(model, fast, checkpoint, max_tokens)
        (folder / "history.json").write_text(json.dumps(history), encoding="utf-8")
        (folder / "done").touch()
        shutil.rmtree(folder / "state", ignore_errors=True)
    processes.wait_for_all()
