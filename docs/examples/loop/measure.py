"""What a router does to held-out traffic: risk, cost, mix, and how far it is from an oracle of equal risk.

Risk is P(label > chosen): the chance that the chosen tier does not satisfy, among tries that some tier satisfies. What
satisfies nowhere has no label, for the promise as for calibration; its share is measured apart. Cost is the mean price
of the chosen tier over all requests, in dollars a million tokens. The oracle knows each request's success at each tier
and pays the least that any router with the same risk could pay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from environment import Task
from numpy.typing import NDArray

from classifier.policy import cumulative_probabilities
from classifier.types import TIERS
from training.calibration_report import PRICES

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measured:
    """A router on some tasks.

    Attributes:
        risk: mean P(label > chosen).
        cost: mean price of the chosen tier.
        oracle: least cost of any router with this risk.
        mix: share of each tier, cheapest first.
        unserved: P(no tier satisfies).
    """

    risk: float
    cost: float
    oracle: float
    mix: tuple[float, ...]
    unserved: float

    @property
    def excess(self) -> float:
        """Cost above the oracle of equal risk."""
        return self.cost - self.oracle


def missed(tasks: Sequence[Task]) -> Array:
    """What each task and tier adds to the risk: (n, 4) float64, mean over the tasks P(label > tier | some tier does).

    One number drawn for a request decides all of its tries, so a tier misses where a higher one satisfies with the
    difference of their chances.
    """
    success = np.array([task.success for task in tasks])
    return (success[:, -1:] - success) / success[:, -1].mean()


def measure(chosen: NDArray[np.int64], tasks: Sequence[Task]) -> Measured:
    """A choice of tiers on the tasks.

    Args:
        chosen: (n,) tier indices.
        tasks: n of them.
    """
    losses = missed(tasks)
    risk = float(losses[np.arange(len(chosen)), chosen].mean())
    mix = np.bincount(chosen, minlength=len(TIERS)) / len(chosen)
    unserved = float(np.mean([1 - task.success[-1] for task in tasks]))
    cost = float(np.array(PRICES)[chosen].mean())
    return Measured(risk, cost, oracle_cost(losses, risk), tuple(mix.tolist()), unserved)


def oracle_cost(losses: Array, risk: float) -> float:
    """The least mean price with a mean loss of at most `risk`, knowing each request's losses: its Lagrangian's optimum.

    Args:
        losses: (n, 4), non-increasing along tiers, 0 at the top.
        risk: the mean loss allowed.
    """
    prices = np.array(PRICES)

    def at(weight: float) -> tuple[float, float]:
        best = np.argmin(prices[None, :] + weight * losses, axis=1)
        return float(losses[np.arange(len(losses)), best].mean()), float(prices[best].mean())

    low, high = 0.0, 1e7
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle)[0] > risk else (low, middle)
    (risk_low, cost_low), (risk_high, cost_high) = at(high), at(low)
    if risk_high <= risk_low:
        return cost_low
    # Between two corners the oracle mixes them.
    share = min(1.0, max(0.0, (risk - risk_low) / (risk_high - risk_low)))
    return share * cost_high + (1 - share) * cost_low


def choices_at_risk(probabilities: Array, tasks: Sequence[Task], risk: float) -> NDArray[np.int64]:
    """What the scores choose at the threshold that, in hindsight, comes closest to `risk` from below: (n,) int64."""
    losses, scores = missed(tasks), cumulative_probabilities(probabilities)
    candidates = np.unique(np.quantile(scores[:, :-1], np.linspace(0, 1, 801)))
    best = np.full(len(tasks), len(TIERS) - 1)
    for threshold in candidates[::-1]:
        qualifies = scores >= threshold
        qualifies[:, -1] = True
        chosen = qualifies.argmax(axis=1)
        if losses[np.arange(len(chosen)), chosen].mean() > risk:
            break
        best = chosen
    return best
