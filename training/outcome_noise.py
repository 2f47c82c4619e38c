"""How often outcomes are wrong, by who judged and what they said.

A verdict is a rater's word on a hidden truth: whether the tier is good enough for the request. Where the same request
was judged at the same tier more than once, verdicts agree or differ, and expectation-maximisation after Dawid and Skene
(1979) tells how often each source accepts what is bad and fails what is good. It needs repetition; where there is
little, a Beta prior (`PRIORS`, worth `STRENGTH` verdicts) answers, so that a few lucky agreements prove nothing. The
truth's own rate is the tier's, never the model's opinion: a model must not talk the evidence against it away.

The loss takes one number a row: of a verdict v, eta = P(v | wrong side) / (P(v | wrong side) + P(v | right side)),
which has the likelihood ratio of the two-sided model and differs from it by a constant alone. A try that happened to
pass, or to fail, is the same to the loss as a judge who erred, and is in eta with it.

Knows nothing of text, files or models.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

PRIORS: Mapping[str, tuple[float, float]] = MappingProxyType(
    {"automatic": (0.15, 0.15), "user": (0.20, 0.15), "reviewer": (0.05, 0.05), "judge": (0.12, 0.12)}
)
"""By source: chance of accepting what is bad, chance of failing what is good. Guesses, which data overrule."""
STRENGTH = 40.0
REPORTING_STRENGTH = 20.0
"""Decisions that the overall share of reports is worth in each cell, so that a few of its own prove nothing."""
LIMITS = (0.01, 0.45)
"""No source is believed blindly, and none is read as its opposite."""
_STEPS = 100


def error_rates(
    items: ArrayLike, tiers: ArrayLike, sources: ArrayLike, accepted: ArrayLike
) -> dict[str, tuple[float, float]]:
    """P(accepts | bad) and P(fails | good) of each source.

    Args:
        items: (m,) what was judged, one name for each request and tier.
        tiers: (m,) int, the tier's index.
        sources: (m,) str, keys of `PRIORS`.
        accepted: (m,) bool, what was said.

    Returns:
        By source, each within `LIMITS`; every source of `PRIORS` has an entry.
    """
    rates = dict(PRIORS)
    names, item = np.unique(np.asarray(items), return_inverse=True)
    repeated = np.bincount(item, minlength=len(names)) > 1
    kept = repeated[item] if len(names) else np.zeros(0, dtype=bool)
    if not kept.any():
        return rates
    _, item = np.unique(item[kept], return_inverse=True)
    tier, source = np.asarray(tiers)[kept], np.asarray(sources)[kept].astype(str)
    said = np.asarray(accepted, dtype=bool)[kept]
    count = int(item.max()) + 1
    tier_of = np.zeros(count, dtype=np.int64)
    tier_of[item] = tier
    good = np.bincount(item, weights=said, minlength=count) / np.bincount(item, minlength=count)
    for _ in range(_STEPS):
        before, share = dict(rates), np.zeros(count)
        for t in np.unique(tier_of):
            share[tier_of == t] = (good[tier_of == t].sum() + 1) / ((tier_of == t).sum() + 2)
        for name in np.unique(source):
            mine, prior = source == name, PRIORS[name]
            is_good = good[item[mine]]
            rates[name] = (
                _map(float((said[mine] * (1 - is_good)).sum()), float((1 - is_good).sum()), prior[0]),
                _map(float((~said[mine] * is_good).sum()), float(is_good.sum()), prior[1]),
            )
        passes_bad = np.array([rates[name][0] for name in source])
        fails_good = np.array([rates[name][1] for name in source])
        if_good = np.where(said, 1 - fails_good, fails_good)
        if_bad = np.where(said, passes_bad, 1 - passes_bad)
        odds = np.log(share) - np.log1p(-share)
        odds += np.bincount(item, weights=np.log(if_good) - np.log(if_bad), minlength=count)
        good = 1 / (1 + np.exp(-np.clip(odds, -30, 30)))
        if max(abs(a - b) for name in rates for a, b in zip(rates[name], before[name], strict=True)) < 1e-6:
            break
    return rates


def eta_of(rates: tuple[float, float], *, accepted: bool) -> float:
    """Chance, for the loss, that the interval of a verdict is wrong.

    Args:
        rates: P(accepts | bad) and P(fails | good).
        accepted: the verdict.

    >>> round(eta_of((0.2, 0.1), accepted=True), 3)
    0.182
    """
    passes_bad, fails_good = rates
    wrong, right = (passes_bad, 1 - fails_good) if accepted else (fails_good, 1 - passes_bad)
    return float(np.clip(wrong / (wrong + right), *LIMITS))


def _map(wrong: float, of: float, prior: float) -> float:
    return float(np.clip((wrong + STRENGTH * prior) / (of + STRENGTH), *LIMITS))


def reporting_chances(cells: ArrayLike, reported: ArrayLike) -> NDArray[np.float64]:
    """P(an outcome of quality came in) for each decision, by its cell (tier and caller).

    The share in the cell, drawn towards the share overall as if `REPORTING_STRENGTH` further decisions had that one.

    Args:
        cells: (n,) names.
        reported: (n,) bool.

    Returns:
        (n,) float64 in [0, 1]; 0 only where nothing was reported at all.
    """
    told = np.asarray(reported, dtype=np.float64)
    if not len(told):
        return told
    _, cell = np.unique(np.asarray(cells), return_inverse=True)
    overall = float(told.mean())
    share = (np.bincount(cell, weights=told) + REPORTING_STRENGTH * overall) / (np.bincount(cell) + REPORTING_STRENGTH)
    chances: NDArray[np.float64] = share[cell]
    return chances
