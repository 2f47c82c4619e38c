"""Logs of a policy that explored, over a population of which the truth is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classifier.policy import choose_many, exploration
from classifier.types import TIERS, Tier
from training.decision_log import Log


@dataclass(frozen=True)
class Drawn:
    """A log and what it does not know.

    Attributes:
        log: as `build` makes it.
        truth: (n, 4) P(label = tier) that the labels were drawn from.
    """

    log: Log
    truth: NDArray[np.float64]

    def risk(self, chosen: NDArray[np.int64]) -> float:
        """P(label > chosen) over these rows."""
        above = 1 - np.cumsum(self.truth, axis=1)
        return float(above[np.arange(len(chosen)), chosen].mean())

    def cost(self, chosen: NDArray[np.int64], prices: tuple[float, ...]) -> float:
        """Mean price of the chosen tier, and of the one that satisfied where it failed."""
        p = np.asarray(prices)
        later = np.array([(row[c + 1 :] * p[c + 1 :]).sum() for row, c in zip(self.truth, chosen, strict=True)])
        return float((p[chosen] + later).mean())


def truths(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(n, 4) distributions of labels."""
    return rng.dirichlet((1.2, 1.5, 0.8, 0.4), n)


def draw_log(truth: NDArray[np.float64], seed: int, *, epsilon: float = 0.2, reporting: float = 0.7) -> Drawn:
    """One log over the rows: threshold .8 on probabilities that are too sure, exploration, and some silence."""
    rng = np.random.default_rng(seed)
    n = len(truth)
    believed = (truth**1.4 / (truth**1.4).sum(axis=1, keepdims=True)).astype(np.float32)
    base = choose_many(believed, 0.8)
    propensities = np.zeros((n, 4))
    for t in range(4):
        chances = exploration(Tier.from_index(t), epsilon)
        propensities[base == t] = [chances.get(tier, 0.0) for tier in TIERS]
    chosen = (rng.random(n)[:, None] > np.cumsum(propensities, axis=1)[:, :-1]).sum(axis=1)
    label = (rng.random(n)[:, None] > np.cumsum(truth, axis=1)[:, :-1]).sum(axis=1)
    observed = rng.random(n) < reporting
    failed = label > chosen
    return Drawn(
        Log(
            requests=(None,) * n,
            probabilities=believed,
            chosen=chosen.astype(np.int64),
            base=base,
            routed=np.tile(np.arange(4), (n, 1)),
            propensities=propensities,
            reporting=np.full(n, observed.mean()),
            observed=observed,
            at_least=np.where(observed & failed, chosen + 1, 0).astype(np.int64),
            at_most=np.where(observed, np.where(failed, label, chosen), 3).astype(np.int64),
            floors=np.zeros(n, dtype=np.int64),
            ceilings=np.full(n, 3, dtype=np.int64),
        ),
        truth,
    )
