"""Synthetic populations of which the truth is known, and corpus files that the tiny bundle can score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.tiny import WORDS
from training.calibration_set import CalibrationSet
from training.step_losses import soft

NAMES = list(WORDS)
ALPHAS = {"economy": 0.2, "balanced": 0.1, "quality": 0.05}


def write_rows(path: Path, n: int, *, seed: int = 0, scripts: bool = False, **fields: Any) -> Path:
    """`n` labelled lines; the words hint at the tier, one in five is a tier off."""
    rng = np.random.default_rng(seed)
    with path.open("w", encoding="utf-8") as file:
        for i in range(n):
            tier = rng.choice(4, p=[0.4, 0.35, 0.15, 0.1])
            shown = int(np.clip(tier + rng.choice([-1, 0, 1], p=[0.12, 0.8, 0.08]), 0, 3))
            words = [
                *rng.choice(WORDS[NAMES[shown]], 1 + i % 3),
                *rng.choice(["the", "a", "to", "please"], 3),
                f"{seed}x{i}",
            ]
            prompt = " ".join(words) + (" да нет или как" * 6 if scripts and i % 4 == 0 else "")
            row = {"id": str(i), "prompt": prompt, "tier": NAMES[tier], "source": f"s{i % 7}", "language": "en"}
            file.write(json.dumps({k: v for k, v in (row | fields).items() if v is not None}) + "\n")
    return path


def few(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes lines of a corpus as they are."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def population(
    n: int,
    seed: int,
    *,
    sharpness: float = 1.0,
    prior: tuple[float, ...] = (1.0, 1.5, 0.7, 0.2),
    decimals: int | None = None,
    sources: int = 8,
) -> CalibrationSet:
    """Rows whose labels are drawn from known probabilities; the logits tell those, sharpened.

    Args:
        n: rows.
        seed: of everything.
        sharpness: 1 for a calibrated model, above 1 over-confident, below under-confident.
        prior: of the Dirichlet that the probabilities come from.
        decimals: round the logits, so that many rows tie.
        sources: how many sources.
    """
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(prior, n)
    y = (rng.random(n)[:, None] > np.cumsum(p, axis=1)[:, :-1]).sum(axis=1)
    logits = (sharpness * np.log(np.maximum(p, 1e-9))).astype(np.float32)
    if decimals is not None:
        logits = logits.round(decimals)
    names = np.array([f"s{i % sources}" for i in range(n)])
    ids = np.array([str(i) for i in range(n)])
    return CalibrationSet(logits, soft(y), "RUBRIC", ids, ids, {"source": names})


def mixed_sources(names: list[str], hard: str) -> CalibrationSet:
    """500 rows a source, calibrated but for one on which labels are a tier higher than the model thinks."""
    rows = population(500 * len(names), 3, sources=len(names))
    source = np.array(names)[np.arange(len(rows)) % len(names)]
    labels = rows.labels.argmax(axis=1)
    labels[source == hard] = np.minimum(labels[source == hard] + 1, 3)
    return CalibrationSet(rows.logits, np.eye(4)[labels], "RUBRIC", rows.ids, rows.groups, {"source": source})
