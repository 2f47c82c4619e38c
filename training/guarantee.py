"""Does the promise hold, how far does it carry, what does it cost?

The tables of `training.promise_test`, `training.transfer` and `training.cost_at_risk`, of a bundle with labelled rows
or of stored predictions.

Knows nothing of how a bundle is written, or of the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier.calibration import IDENTITY, Calibration
from classifier.engine import Engine
from classifier.errors import InputError
from classifier.policy import choose_many
from training import cost_at_risk, promise_test, transfer
from training.calibration_report import PRICES
from training.calibration_set import CalibrationSet
from training.corpus import Row
from training.evaluate import baselines
from training.policy_fit import chosen_by
from training.predictions import read_baselines, read_predictions
from training.risk_control import fit_threshold
from training.step_losses import routing_losses

REFITTED = ("half-splits", "transfer")
"""Tables for which thresholds are fitted anew."""


@dataclass(frozen=True, slots=True)
class Study:
    """What the tables are made of.

    Attributes:
        rows: labelled rows with logits.
        alphas: policy → target, of a plain promise: one threshold for all, every miss counts 1, nothing is explored.
        others: policies that promise something else.
        calibration: the map that comes with the logits.
        chosen: policy → (n,) tier indices.
        rivals: (n, 4) probabilities of other models on the same rows, by name.
        prices: dollars a million tokens, cheapest tier first.
        seed: of everything drawn.
    """

    rows: CalibrationSet
    alphas: Mapping[str, float]
    chosen: Mapping[str, NDArray[np.int64]]
    calibration: Calibration = IDENTITY
    rivals: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    prices: Sequence[float] = PRICES
    seed: int = 0
    others: Sequence[str] = ()


def study(asked: Study, tables: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The tables asked for, by name in snake case, and why one could not be made of these rows."""
    rows, seed, calibration = asked.rows, asked.seed, asked.calibration
    makers: dict[str, Callable[[], dict[str, Any]]] = {
        "half-splits": lambda: transfer.half_splits(rows, asked.alphas, calibration=calibration, seed=seed),
        "transfer": lambda: transfer.transfer(rows, asked.alphas, calibration=calibration, seed=seed),
        "cost": lambda: cost_at_risk.study(rows, asked.chosen, asked.rivals, asked.prices, seed=seed),
        "calibration": lambda: transfer.calibration_across(rows, current=calibration, seed=seed),
    }
    found: dict[str, Any] = {}
    missing = []
    for name, make in makers.items():
        if name in tables:
            if name in REFITTED and asked.others:
                missing.append(
                    f"no {name} table of {', '.join(asked.others)}: it fits plain thresholds, and these have groups, "
                    "weigh misses or explore; calibrate without --group-by, --severity and --epsilon for it"
                )
                if not asked.alphas:
                    continue
            try:
                found[name.replace("-", "_")] = make()
            except InputError as error:
                missing.append(f"no {name} table: {error}")
    return found, missing


def of_predictions(path: Path, alphas: Mapping[str, float], prices: Sequence[float], seed: int) -> Study:
    """The study of stored predictions: each policy's threshold is the conformal one of all the rows."""
    rows = read_predictions(path)
    probabilities = IDENTITY.apply(rows.logits)
    losses = routing_losses(probabilities, rows.labels)
    chosen = {name: choose_many(probabilities, fit_threshold(losses, a).threshold) for name, a in alphas.items()}
    return Study(rows, alphas, chosen, rivals=read_baselines(path), prices=prices, seed=seed)


def of_bundle(
    engine: Engine, rows: CalibrationSet, rivals: Mapping[str, NDArray[np.float32]], prices: Sequence[float], seed: int
) -> Study:
    """The study of a bundle: its own thresholds, on rows that it has not seen."""
    calibration, promised = engine.bundle.calibration, engine.policies
    probabilities = calibration.apply(rows.logits)
    chosen = {name: chosen_by(p, probabilities, rows) for name, p in promised.items()}
    aimed = {name: p for name, p in promised.items() if p.guarantee.alpha}
    others = [name for name, p in aimed.items() if p.group_by or p.guarantee.severity or p.epsilon]
    alphas = {name: p.guarantee.alpha for name, p in aimed.items() if name not in others}
    return Study(rows, alphas, chosen, calibration, rivals, prices, seed, others)


def baselines_of(train: Sequence[Row], judged: Sequence[Row], rows: CalibrationSet) -> dict[str, NDArray[np.float32]]:
    """Length and TF-IDF with logistic regression, learnt from `train` without the rows that are judged.

    Returns:
        (n, 4) float32 each, for the closed rows of `rows` in their order.

    Raises:
        InputError: what is left to learn from has one tier only.
    """
    by_hash = {row.sha256: row for row in judged}
    closed = [by_hash[i] for i in rows.ids.tolist()]
    rest = [row for row in train if row.closed and row.sha256 not in by_hash]
    if len({row.tier for row in rest}) < 2:
        raise InputError("--baseline-data: baselines take rows of two tiers, besides those that are judged")
    return {name: p for name, p in baselines(rest, closed).items() if name != "majority"}


def as_text(found: Mapping[str, Any]) -> str:
    """Every table found, as Markdown."""
    writers: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "half_splits": transfer.halves_as_text,
        "transfer": transfer.transfer_as_text,
        "cost": cost_at_risk.as_text,
        "calibration": transfer.calibration_as_text,
    }
    head = [promise_test.as_text(found)] if "policies" in found else []
    head += [f"Answers of: {found['model']}"] if "model" in found else []
    return "\n\n".join([*head, *(write(found[name]) for name, write in writers.items() if name in found)])
