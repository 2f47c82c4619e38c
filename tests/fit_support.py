"""Rows, options and a model for the tests of the training loop; imported by its processes, too."""

from __future__ import annotations

import numpy as np
import torch

from tests.tiny import WORDS
from training import fit as fitting
from training.corpus import Row, parse_row
from training.model import load_base, tokenizer_of
from training.recipe import FitOptions

OPTIONS = FitOptions(epochs=2, batch_size=8, learning_rate=1e-3, augment=0.5, seed=3)
MAX_TOKENS = 64


def tiny_rows(count: int = 101) -> list[Row]:
    """Rows whose words give their tier away; the last step of an epoch is not full, nor even."""
    rng = np.random.default_rng(0)
    names = list(WORDS)
    return [
        parse_row(
            {"id": f"r{i}", "prompt": " ".join(rng.choice(WORDS[names[i % 4]], 1 + i % 5)), "tier": names[i % 4]},
            "test",
        )
        for i in range(count)
    ]


def without_dropout():
    """The tiny model and its tokeniser, in single precision and without dropout: what is left is arithmetic."""
    fitting.bfloat16 = lambda _: False
    model, fast = load_base("tiny", MAX_TOKENS)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model, tokenizer_of(fast, MAX_TOKENS)
