"""Reference and live distributions → indices. Pure numpy.

Knows nothing of files, stores or prompts: it sees probabilities and signals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

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
