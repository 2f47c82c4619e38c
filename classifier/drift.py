"""Reference and live distributions → indices. Pure numpy.

Knows nothing of files, stores or prompts: it sees probabilities and signals.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from classifier.types import Tier

BINS = 10


def reference_distributions(probabilities: ArrayLike, signals: Sequence[Sequence[str]]) -> dict[str, Any]:
    """What `reference.json` holds: how scores and signals were distributed when the bundle was calibrated.

    Args:
        probabilities: (n, 4) calibrated.
        signals: the six signal names of each row.

    Returns:
        `n`; `scores`: for each boundary t the `edges` of equal-mass bins of P(label > t) and the `shares` in them;
        `signals`: the share of rows that carry each signal.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    n = len(p)
    scores = []
    for t in range(p.shape[1] - 1):
        above = p[:, t + 1 :].sum(axis=1)
        edges = np.unique(np.quantile(above, np.linspace(0, 1, BINS + 1)[1:-1]))
        shares = np.bincount(np.searchsorted(edges, above, side="right"), minlength=len(edges) + 1) / n
        scores.append({"edges": [float(e) for e in edges], "shares": [float(s) for s in shares]})
    counts: dict[str, int] = {}
    for row in signals:
        for name in row:
            counts[name] = counts.get(name, 0) + 1
    return {
        "schema_version": 1,
        "n": n,
        "scores": scores,
        "signals": {name: counts[name] / n for name in sorted(counts)},
    }


def stability_indices(
    probabilities: ArrayLike, signals: Sequence[Sequence[str]], reference: Mapping[str, Any]
) -> dict[str, float]:
    """Population stability index of live traffic against a bundle's reference: below .1 alike, above .25 not.

    PSI = sum over bins of (live - reference) * ln(live / reference), each share with half a row added to every bin.

    Args:
        probabilities: (n, 4) calibrated, n at least 1.
        signals: the six signal names of each row.
        reference: what `reference_distributions` returned, of at least one row.

    Returns:
        An index for each boundary (`above_simple`, `above_standard`, `above_complex`) and kind of signal (`turns`…).
    """
    p = np.asarray(probabilities, dtype=np.float64)
    n = len(p)
    indices = {}
    for t, scores in enumerate(reference["scores"]):
        above = p[:, t + 1 :].sum(axis=1)
        counts = np.bincount(np.searchsorted(scores["edges"], above, side="right"), minlength=len(scores["shares"]))
        indices[f"above_{Tier.from_index(t).label}"] = _psi(counts, n, np.array(scores["shares"]), reference["n"])
    kinds: dict[str, list[str]] = {}
    for name in reference["signals"]:
        kinds.setdefault(name.strip("[]").partition("=")[0], []).append(name)
    carried = Counter(name for row in signals for name in row)
    for kind, names in kinds.items():
        known = np.array([carried[name] for name in names], dtype=np.float64)
        counts = np.append(known, n - known.sum())  # the last bin: values that the reference never saw
        shares = np.append([reference["signals"][name] for name in names], 0.0)
        indices[kind] = _psi(counts, n, shares, reference["n"])
    return indices


def _psi(counts: ArrayLike, n: int, shares: NDArray[np.float64], reference_n: int) -> float:
    bins = len(shares)
    live = (np.asarray(counts, dtype=np.float64) + 0.5) / (n + 0.5 * bins)
    expected = (shares * reference_n + 0.5) / (reference_n + 0.5 * bins)
    return float(np.sum((live - expected) * np.log(live / expected)))
