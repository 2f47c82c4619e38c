"""Reference and live distributions → indices and tests. Pure numpy.

Knows nothing of files, stores or prompts: it sees probabilities and signals.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from classifier.labels import outcome_interval
from classifier.types import TIERS, Tier

BINS = 10
ALARM = 0.001
"""P-value below which a difference is no accident at one look, where ten or so tests are looked at together."""
MAX_INDEX = 0.25
"""Stability index above which traffic is not what it was."""
_MIN_EXPECTED = 5.0
_BATCH = 5000


class _Histogram(NamedTuple):
    """Live counts and reference counts of one boundary, whose bins have an order, or of one kind of signal."""

    name: str
    live: NDArray[np.float64]
    reference: NDArray[np.float64]
    ordered: bool


def reference_distributions(probabilities: ArrayLike, signals: Sequence[Sequence[str]]) -> dict[str, Any]:
    """What `reference.json` holds: how scores and signals were distributed when the bundle was calibrated.

    Args:
        probabilities: (n, 4) calibrated.
        signals: the six signal names of each row.

    Returns:
        `n`; `scores`: for each boundary t the `edges` of bins of P(label > t) and the `shares` in them, of equal mass
        but for a value that fills several, which has one by itself; `signals`: the share of rows that carry each
        signal.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    n = len(p)
    scores = []
    for t in range(p.shape[1] - 1):
        above = p[:, t + 1 :].sum(axis=1)
        edges = _edges(above)
        shares = np.bincount(np.searchsorted(edges, above, side="right"), minlength=len(edges) + 1) / n
        scores.append({"edges": [float(e) for e in edges], "shares": [float(s) for s in shares]})
    counts = Counter(name for row in signals for name in row)
    return {
        "schema_version": 1,
        "n": n,
        "scores": scores,
        "signals": {name: counts[name] / n for name in sorted(counts)},
    }


def _edges(above: NDArray[np.float64]) -> NDArray[np.float64]:
    """Edges of the bins of (n,) scores; an edge belongs to the bin above it.

    A value that fills several bins has another edge behind it, halfway to the next: a map of few steps may give nine
    requests in ten the lowest score, and those that rose above it would be counted with it.
    """
    edges, times = np.unique(np.quantile(above, np.linspace(0, 1, BINS + 1)[1:-1]), return_counts=True)
    tied, values = edges[times > 1], np.unique(np.append(above, 1.0))
    following = values[np.minimum(np.searchsorted(values, tied, side="right"), len(values) - 1)]
    return np.unique(np.append(edges, (tied + following) / 2))


def check_reference(reference: Mapping[str, Any]) -> None:
    """Tries what should be a reference on two rows; one of no rows says nothing and is right.

    Raises:
        ValueError: it is not what `reference_distributions` returns.
    """
    if not reference.get("n"):
        return
    rows = np.eye(len(TIERS))[[0, -1]]  # they fall into the first and the last bin of every boundary
    try:
        with np.errstate(all="raise", under="ignore"):
            tried = shifts(rows, [(), ()], reference)
        right = all(math.isfinite(value) for found in tried.values() for value in found.values())
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        right = False
    if not right:
        raise ValueError("it does not say how scores and signals were distributed")


def shifts(
    probabilities: ArrayLike, signals: Sequence[Sequence[str]], reference: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """How far live traffic is from a bundle's reference, and whether chance explains it.

    `index` is the population stability index: below .1 alike, above .25 not. PSI = sum over bins of
    (live - reference) * ln(live / reference), each share with half a row added to every bin.

    `p_value` is of the chi-squared test that both are draws from one distribution, over the index's bins, rare ones
    pooled. With many rows it finds shifts too small to matter: an alarm needs both.

    Args:
        probabilities: (n, 4) calibrated, n at least 1.
        signals: the six signal names of each row.
        reference: what `reference_distributions` returned, of at least one row.

    Returns:
        Both for each boundary (`above_simple`, `above_standard`, `above_complex`) and kind of signal (`turns`…).
    """
    return _shifts(_histograms(probabilities, signals, reference), reference["n"])


def excess_p_value(failures: int, decisions: int, promised: float) -> float:
    """How likely at least so many failures would be if each decision failed with the promised probability.

    Exact binomial tail. Silence counts as no failure, so a small value means that the promise is broken even if every
    decision without an outcome was good enough.

    >>> round(excess_p_value(3, 10, 0.1), 4)
    0.0702
    """
    if failures <= 0:
        return 1.0
    if promised <= 0.0:
        return 0.0
    if promised >= 1.0:
        return 1.0
    k = np.arange(failures, decisions + 1, dtype=np.float64)
    choose = math.lgamma(decisions + 1) - np.array([math.lgamma(i + 1) + math.lgamma(decisions - i + 1) for i in k])
    return float(min(1.0, np.exp(choose + k * math.log(promised) + (decisions - k) * math.log1p(-promised)).sum()))


def fell_short(row: Mapping[str, Any]) -> bool | None:
    """Whether an outcome of quality says that the label is above the tier that was decided, whichever was served.

    All else is no failure, and is counted like silence. It must not be left out: of audits, which are served the
    cheapest tier whatever was decided, those that judge the decided tier are all of the cheapest. Nor does a rejection
    at the top tier break a promise, whatever was decided: what no tier satisfies is part of none. Nor may an answer be
    left out that a ceiling or a route lowered: the promise is about all requests, and without the hard ones the others
    miss more often.

    Args:
        row: a decision with its outcome, or none, as exports spell it.

    Returns:
        None where the policy promises nothing of such requests.
    """
    decided = Tier.parse(row["tier"])
    if not row["guaranteed"]:
        lowered = decided < Tier.parse(row["model_tier"]) and row["threshold"] <= 1.0
        return False if lowered else None
    if row["cause"] != "quality":
        return False
    served = Tier.parse(row["served_tier"])
    lowest, _ = outcome_interval(row["verdict"], served, None)
    return served is not TIERS[-1] and lowest > decided


def drift_report(
    rows: Iterable[Mapping[str, Any]], reference: Mapping[str, Any], promised: Mapping[str, float], *, max_index: float
) -> dict[str, Any]:
    """What has moved, and which promise is broken, in decisions of one bundle.

    Args:
        rows: decisions with their outcomes, as exports spell them.
        reference: the bundle's, of at least one row.
        promised: policy → P(chosen < label) at most.
        max_index: stability index above which something has drifted.

    Returns:
        `n` decisions; `shifts`: index and p-value by name; `failures`: decisions, failures, promised and p-value by
        policy; `alarms`: a sentence for each index above the limit with its test below `ALARM`, and for each policy
        with more reported failures than its promise allows (silence counts as success).
    """
    decisions, live = 0, list[_Histogram]()
    counts: dict[str, list[int]] = {}
    rows = iter(rows)
    while batch := list(islice(rows, _BATCH)):
        decisions += len(batch)
        found = _histograms([row["probabilities"] for row in batch], [row["signals"] for row in batch], reference)
        live = [a._replace(live=a.live + b.live) for a, b in zip(live, found, strict=True)] if live else found
        for row in batch:
            short = fell_short(row)
            if short is not None and row["policy"] in promised:
                count = counts.setdefault(row["policy"], [0, 0])
                count[0] += 1
                count[1] += short
    moved = _shifts(live, reference["n"])
    failures = {
        name: {
            "decisions": n,
            "failures": k,
            "promised": promised[name],
            "p_value": excess_p_value(k, n, promised[name]),
        }
        for name, (n, k) in counts.items()
    }
    alarms = [f"{name} has drifted" for name, s in moved.items() if s["index"] > max_index and s["p_value"] < ALARM]
    alarms += [f"policy {name} fails more often than promised" for name, f in failures.items() if f["p_value"] < ALARM]
    return {"n": decisions, "shifts": moved, "failures": failures, "alarms": alarms}


def _histograms(
    probabilities: ArrayLike, signals: Sequence[Sequence[str]], reference: Mapping[str, Any]
) -> list[_Histogram]:
    """Histograms over the reference's bins, for each boundary and kind of signal."""
    p, n = np.asarray(probabilities, dtype=np.float64), reference["n"]
    found: list[_Histogram] = []
    for t, scores in enumerate(reference["scores"]):
        above = p[:, t + 1 :].sum(axis=1)
        counts = np.zeros(len(scores["shares"]))
        np.add.at(counts, np.searchsorted(scores["edges"], above, side="right"), 1.0)
        name = f"above_{Tier.from_index(t).label}"
        found.append(_Histogram(name, counts, n * np.array(scores["shares"]), ordered=True))
    kinds: dict[str, list[str]] = {}
    for name in reference["signals"]:
        kinds.setdefault(name.strip("[]").partition("=")[0], []).append(name)
    carried = Counter(name for row in signals for name in row)
    for kind, names in kinds.items():
        known = np.array([carried[name] for name in names], dtype=np.float64)
        counts = np.append(known, len(signals) - known.sum())  # the last bin: values that the reference never saw
        before = n * np.append([reference["signals"][name] for name in names], 0.0)
        found.append(_Histogram(kind, counts, before, ordered=False))
    return found


def _shifts(histograms: Sequence[_Histogram], n: int) -> dict[str, dict[str, float]]:
    """`shifts` of histograms; the reference is of `n` rows."""
    return {
        name: {"index": _psi(live, before, n), "p_value": _homogeneity(live, before, ordered=ordered)}
        for name, live, before, ordered in histograms
    }


def _homogeneity(live: NDArray[np.float64], reference: NDArray[np.float64], *, ordered: bool = False) -> float:
    """P-value of the chi-squared test of homogeneity of two rows of counts, bins pooled until each has enough.

    Rare ones are pooled with each other, or with their neighbours where bins have an order: those of scores are equal
    in the reference, so that by their sums they would be pooled by what is live.

    Of very unequal rows the smaller one is expected to have next to none of what the larger one lacks, so that pooling
    would hide it there. So the rare bins together are tested by themselves as well, exactly: their total is dealt out
    to both rows by chance. The smaller of both p-values counts, twice, as it is the better of two.
    """
    table = np.stack([live, reference])
    if not ordered:
        table = table[:, np.argsort(table.sum(axis=0), kind="stable")]
    smaller = int(table.sum(axis=1).argmin())
    share = table[smaller].sum() / table.sum()
    expected = share * table.sum(axis=0)  # of the smaller row
    pooled = _pooled(table, np.cumsum(expected))
    rare = table[:, expected < _MIN_EXPECTED]
    if rare.shape[1] in (0, table.shape[1]):
        return pooled
    exact = excess_p_value(round(float(rare[smaller].sum())), round(float(rare.sum())), float(share))
    return min(1.0, 2 * min(pooled, exact))


def _pooled(table: NDArray[np.float64], least: NDArray[np.float64]) -> float:
    """P-value of the chi-squared test of a (2, k) table, bins pooled from the left until each has enough.

    Args:
        table: counts.
        least: (k,) what is expected of the smaller row up to each bin.
    """
    starts = [0]
    while least[-1] >= _MIN_EXPECTED:
        starts.append(int(np.searchsorted(least, _MIN_EXPECTED)) + 1)
        least = least - least[starts[-1] - 1]
    if len(starts) < 3:
        return 1.0
    table = np.add.reduceat(table, starts[:-1], axis=1)  # what is left over joins the last
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True) / table.sum()
    return _chi_squared_tail(float(((table - expected) ** 2 / expected).sum()), table.shape[1] - 1)


def _chi_squared_tail(x: float, degrees: int) -> float:
    """P(X > x) for chi-squared with a whole number of degrees of freedom: Q(k/2, x/2) by its recurrence in k."""
    half = x / 2
    odd = degrees % 2
    tail = math.erfc(math.sqrt(half)) if odd else math.exp(-half)
    for k in range(1 if odd else 2, degrees, 2):
        tail += math.exp((k / 2) * math.log(half) - half - math.lgamma(k / 2 + 1)) if half > 0 else 0.0
    return min(1.0, tail)


def _psi(live: NDArray[np.float64], reference: NDArray[np.float64], n: int) -> float:
    """The index of two rows of counts, of which the reference's are of `n` rows."""
    bins = len(live)
    now, before = (live + 0.5) / (live.sum() + 0.5 * bins), (reference + 0.5) / (n + 0.5 * bins)
    return float(np.sum((now - before) * np.log(now / before)))
