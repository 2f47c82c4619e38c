"""Which labelled requests are worth a person's time: pure.

Two things are asked of a hand-labelled sample, and one draw cannot give both. To *calibrate thresholds* the rows must
be exchangeable with traffic: a plain random draw. To *learn where the model is wrong*, and to train, rows of rare tiers
and rows near a threshold say more: a stratified draw, which no threshold may be fitted on as it stands.

Knows nothing of files or text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classifier.types import TIERS

RANDOM, BOUNDARY = "random", "boundary"


@dataclass(frozen=True, slots=True)
class Drawn:
    """One row of a sample.

    Attributes:
        position: in the labelled traffic.
        reason: `random`; a tier's label, for a random row of those that went to it; or `boundary`.
        share: the chance with which the row was drawn; 0 where it was chosen and not drawn.
    """

    position: int
    reason: str
    share: float


def distance_to_boundary(
    probabilities: NDArray[np.float64], tiers: NDArray[np.int64], threshold: float, top_tier_threshold: float = 0.0
) -> NDArray[np.float64]:
    """How far each row is from another tier: (n,) in [0, 1].

    The tier is the cheapest t with P(label <= t) >= threshold; so it is the smaller of what P(label <= t) has over the
    threshold, and of what P(label <= t - 1) lacks of it. A top-tier threshold is one more, P(frontier) at or over it
    being frontier; a row that both send there is as far as the further of the two.

    >>> distance_to_boundary(np.array([[0.6, 0.3, 0.1, 0.0]]), np.array([1]), 0.7).round(3)
    array([0.1])
    """
    cumulative = np.cumsum(probabilities, axis=1)
    rows = np.arange(len(tiers))
    over = np.where(tiers < len(TIERS) - 1, cumulative[rows, tiers] - threshold, np.inf)
    lacks = np.where(tiers > 0, threshold - cumulative[rows, np.maximum(tiers - 1, 0)], np.inf)
    beyond = probabilities[:, -1] - (top_tier_threshold or np.inf)
    below = np.minimum(np.minimum(np.abs(over), np.abs(lacks)), np.abs(beyond))
    nearest: NDArray[np.float64] = np.where(tiers < len(TIERS) - 1, below, np.abs(np.maximum(lacks, beyond)))
    return nearest


def draw_random(n: int, most: int, seed: int = 0) -> list[Drawn]:
    """`most` of n rows, each with the same chance, in random order."""
    count = min(most, n)
    chosen = np.random.default_rng(seed).permutation(n)[:count]
    return [Drawn(int(i), RANDOM, count / n) for i in chosen]


def draw_by_tier(
    tiers: NDArray[np.int64],
    per_tier: int,
    *,
    distances: NDArray[np.float64] | None = None,
    seed: int = 0,
) -> list[Drawn]:
    """`per_tier` rows of each tier, in random order so that whoever labels cannot guess the tier from the place.

    Args:
        tiers: (n,) index of the tier that each row went to.
        per_tier: rows of each; all of a tier that has fewer.
        distances: (n,) from `distance_to_boundary`: half of each tier's rows are then its nearest to a threshold.
        seed: of the draw: the same call draws the same rows.
    """
    rng = np.random.default_rng(seed)
    drawn: list[Drawn] = []
    for tier in TIERS:
        members = np.flatnonzero(tiers == tier.index)
        near: NDArray[np.int64] = members[:0]
        if distances is not None:
            near = members[np.argsort(distances[members], kind="stable")][: per_tier // 2]
            drawn += [Drawn(int(i), BOUNDARY, 0.0) for i in near]
        rest = np.setdiff1d(members, near)
        count = min(per_tier - len(near), len(rest))
        chosen = rng.permutation(rest)[:count]
        drawn += [Drawn(int(i), tier.label, count / len(rest)) for i in chosen]
    return [drawn[i] for i in rng.permutation(len(drawn))]
