"""New tier shares from unlabelled traffic, and the weights that move calibration rows to them.

It assumes that only the shares changed: that the requests of each tier are of the same sort as before. An estimate
under an assumption, and no proof.

Knows nothing of thresholds, bundles or files.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from classifier.types import TIERS

VANISHED = 0.1
"""A tier whose share falls below this part of what it was is told to the reader."""
MOST_ITERATIONS, SETTLED = 1000, 1e-8
"""EM stops after so many steps, or where no share moves by more: far less than a reader is told of shares."""
_TIERS = len(TIERS)
Array = NDArray[np.float64]


def estimate_prior(probabilities: ArrayLike, prior: ArrayLike) -> Array:
    """Tier shares of unlabelled traffic by EM, assuming that P(request | tier) is as it was (Saerens et al. 2002).

    Args:
        probabilities: (m, 4) calibrated probabilities of the unlabelled requests.
        prior: (4,) shares under which they were calibrated.

    Returns:
        (4,) float64 that sum to 1; a tier with prior 0 stays at 0, because nothing is known of its requests.

    Raises:
        ValueError: probabilities of another shape, or that are not finite.
    """
    rows = np.asarray(probabilities, dtype=np.float64)
    old = np.asarray(prior, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] != _TIERS or not len(rows) or not np.isfinite(rows).all():
        raise ValueError(f"probabilities have shape {rows.shape} or values that are not finite, expected (m, {_TIERS})")
    ratio = np.divide(rows, old, out=np.zeros_like(rows), where=old > 0)
    share: Array = old / old.sum()
    for _ in range(MOST_ITERATIONS):
        joint = ratio * share
        new: Array = (joint / np.maximum(joint.sum(axis=1, keepdims=True), 1e-300)).mean(axis=0)
        new /= new.sum()
        moved, share = float(np.abs(new - share).max()), new
        if moved < SETTLED:
            break
    return share


def shift_weights(traffic: ArrayLike, calibration: ArrayLike, labels: Array) -> tuple[Array, str]:
    """Weight of each calibration row under the tier shares of unlabelled traffic.

    The old shares that EM starts from are the mean probabilities of the calibration rows, not their labels' shares:
    where the two differ a little, EM carries the difference far (Alexandari et al. 2020, arXiv:1901.06852). What it
    finds is on the model's scale as well, so a weight is the quotient of the two, and the new shares of labels are the
    old ones times it.

    Args:
        traffic: (m, 4) calibrated probabilities of the unlabelled requests.
        calibration: (n, 4) calibrated probabilities of the calibration rows.
        labels: (n, 4) float64, P(label = tier) of the calibration rows.

    Returns:
        (n,) float64 above 0, and a note for the reader: both shares, what is assumed, and which tiers all but vanish.
    """
    prior, start = labels.mean(axis=0), np.asarray(calibration, dtype=np.float64).mean(axis=0)
    ratio = np.divide(estimate_prior(traffic, start), start, out=np.zeros_like(start), where=start > 0)
    share = prior * ratio
    share /= share.sum()
    note = (
        "Thresholds were refitted for the tier shares "
        + " / ".join(f"{100 * s:.1f}" for s in share)
        + f" % estimated from {len(np.asarray(traffic))} unlabelled requests, instead of "
        + " / ".join(f"{100 * s:.1f}" for s in prior)
        + " %. This assumes that only the shares changed: that the requests of each tier are of the same sort as "
        "before. It is an estimate, not a proof."
    )
    gone = [tier.label for tier in TIERS if prior[tier.index] > 0 and ratio[tier.index] < VANISHED]
    if gone:
        note += (
            f" It says that {' and '.join(gone)} requests have all but vanished, so misses among them no longer count: "
            "label some of the traffic before believing it."
        )
    weights: Array = np.maximum(labels @ ratio, 1e-12)
    return weights, note
