"""A linear probe: what a frozen language model already knows about tiers, learnt in minutes instead of hours.

The base's last hidden states are averaged over the tokens of each request, as sentence embeddings are, and a logistic
regression maps them to tiers. The base saw no label of ours, so for a source that is left out of the regression its
answers are honest predictions of new traffic: weaker than a trained student's, and told apart by name wherever they
are used.

Knows nothing of folds or files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from classifier.inputs import render
from classifier.signals import SIGNALS
from classifier.types import TIERS
from training.corpus import Row, tiers
from training.fit import bfloat16, inputs_of
from training.model import load_base, tokenizer_of
from training.progress import progress_bar

TOKENS = 96
"""Longest input; head and tail of longer ones are kept."""
BATCH = 64
SMALLEST = -30.0
"""Log-probability of a tier that no row of the regression had."""


def embed(rows: Sequence[Row], base: str = "minilm") -> NDArray[np.float32]:
    """What the frozen base makes of each request: (rows, width + signals + 1) float32.

    Mean of the last hidden states, whether each signal is set, and the logarithm of the length in characters.

    Args:
        rows: any rows.
        base: as `training.model.load_base` takes it.
    """
    model, fast = load_base(base, TOKENS)
    encoder, tokenizer = model.base_model.eval(), tokenizer_of(fast, TOKENS)
    inputs = [render(row.request) for row in rows]
    sequences = [tokenizer.ids(i)[:2] for i in inputs]
    order = sorted(range(len(rows)), key=lambda i: len(sequences[i][0]))
    means = np.zeros((len(rows), model.config.hidden_size), dtype=np.float32)
    device = torch.device("cpu")
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16(device)):
        for start in progress_bar(range(0, len(order), BATCH), desc="embedding", unit="batch"):
            chunk = order[start : start + BATCH]
            batch = inputs_of(encoder, tokenizer, [sequences[i] for i in chunk], device)
            mask = batch["attention_mask"][..., None].float()
            hidden = encoder(**batch).last_hidden_state.float()
            means[chunk] = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    signals = np.array([[s in i.signals for s in SIGNALS] for i in inputs], dtype=np.float32)
    lengths = np.array([[np.log1p(row.request.characters)] for row in rows], np.float32)
    return np.hstack([means, signals.reshape(len(rows), -1), lengths])


def probe(
    features: NDArray[np.float32], train: NDArray[np.int64], held: NDArray[np.int64], rows: Sequence[Row]
) -> NDArray[np.float32]:
    """Log-probabilities of the held-out rows by a regression on the training rows: (held, 4) float32.

    Args:
        features: (rows, width), from `embed`.
        train: indices of rows to learn from.
        held: indices of rows to answer.
        rows: all rows, with their labels.
    """
    labels = tiers([rows[i] for i in train])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=300)).fit(features[train], labels)
    answers = np.full((len(held), len(TIERS)), SMALLEST, dtype=np.float32)
    answers[:, model.classes_] = np.maximum(model.predict_log_proba(features[held]), SMALLEST)
    return answers
