"""What a router would do with requests whose outcomes on every tier are known: cost against quality, and ranking.

The measures are those of RouteLLM (arXiv:2406.18665, section 3.3) between a weak and a strong tier, requests going to
the strong one in the order of a score. *Performance gap recovered*: PGR(c) = (quality(c) - quality(weak)) /
(quality(strong) - quality(weak)) at a share c of calls to the strong tier. APGR, its integral over c from 0 to 1, is .5
for a router that draws at random. CPT(x) is the least share c with PGR(c) >= x. Requests of equal score are sent in the
mean of all their orders, so that the order of a file does not help.

Knows nothing of pages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier.intervals import Statistic, bootstrap_interval, ranged
from classifier.metrics import ranked_areas
from classifier.policy import choose_many
from classifier.types import TIERS, Tier
from training.outcomes import Array, Outcomes

LEVELS = (0.5, 0.8)
FAILS_BELOW = 0.5
"""A tier fails on a request where fewer than this share of its tries satisfied."""
DRAWS = 400
FEWEST_ROWS = 30
Score = Callable[[Tier, Tier], Array]
"""(n,) numbers for a weak and a strong tier: the higher, the sooner a request goes to the strong one."""
PAIRS = ((Tier.SIMPLE, Tier.FRONTIER), (Tier.SIMPLE, Tier.COMPLEX), (Tier.STANDARD, Tier.COMPLEX))


def gap_recovered(scores: Array, weak: Array, strong: Array) -> tuple[Array, Array]:
    """The curve of PGR over the share of calls to the strong tier.

    Args:
        scores: (n,) the higher, the earlier a request goes to the strong tier.
        weak: (n,) success of the weak tier.
        strong: (n,) success of the strong tier.

    Returns:
        Shares and PGR, (n + 1,) each, from 0 to 1; PGR is NaN where the strong tier is not better.

    >>> gap_recovered(np.array([2.0, 1.0]), np.array([0.0, 1.0]), np.array([1.0, 1.0]))[1]
    array([0., 1., 1.])
    """
    gain = np.asarray(strong, dtype=np.float64) - np.asarray(weak, dtype=np.float64)
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    ranked, gains = np.asarray(scores)[order], gain[order]
    _, starts, inverse = np.unique(-ranked, return_index=True, return_inverse=True)
    sizes = np.diff(np.append(starts, len(ranked)))
    gains = (np.add.reduceat(gains, starts) / sizes)[inverse]
    total = gain.sum()
    recovered = np.concatenate([[0.0], np.cumsum(gains)])
    shares = np.arange(len(gain) + 1) / len(gain)
    return shares, recovered / total if total > 0 else np.full(len(shares), np.nan)


def apgr(scores: Array, weak: Array, strong: Array) -> float:
    """Average PGR: .5 for a router that draws at random, at most what the oracle has; NaN without a gap to recover.

    >>> apgr(np.zeros(3), np.array([0.0, 1.0, 0.0]), np.ones(3)).__round__(6)
    0.5
    """
    return float(_apgrs(scores, weak, strong)(np.ones((1, len(weak))))[0])


def _apgrs(scores: Array, weak: Array, strong: Array) -> Statistic:
    return ranked_areas(scores, np.ones(len(weak)), strong - weak)


def cpt(scores: Array, weak: Array, strong: Array, level: float) -> float:
    """Call-performance threshold: the least share of calls to the strong tier that recovers `level` of the gap.

    >>> cpt(np.array([2.0, 1.0]), np.array([0.0, 1.0]), np.array([1.0, 1.0]), 0.5)
    0.25
    """
    shares, recovered = gap_recovered(scores, weak, strong)
    if np.isnan(recovered).any():
        return float("nan")
    reached = int(np.argmax(recovered >= level - 1e-12))
    if reached == 0:
        return 0.0
    below, above = recovered[reached - 1], recovered[reached]
    part = (level - below) / (above - below) if above > below else 1.0
    return float(shares[reached - 1] + part * (shares[reached] - shares[reached - 1]))


def success_and_cost(chosen: NDArray[np.int64], success: Array, prices: Sequence[float]) -> tuple[float, float]:
    """Mean success and mean price of a choice of tiers, every request taken to be equally long.

    A tier that nobody tried on a request is served by the next above that was tried, else by the next below.

    Args:
        chosen: (n,) tier indices.
        success: (n, 4).
        prices: dollars a million tokens, cheapest tier first.
    """
    served = served_tiers(chosen, success)
    rows = np.arange(len(chosen))
    return float(success[rows, served].mean()), float(np.asarray(prices)[served].mean())


def served_tiers(chosen: NDArray[np.int64], success: Array) -> NDArray[np.int64]:
    """The tier that serves each request: the chosen one, else the next above that was tried, else below; (n,)."""
    tried = ~np.isnan(success)
    distance = np.arange(len(TIERS))[None, :] - chosen[:, None]
    order = np.where(distance >= 0, distance, len(TIERS) - distance).astype(np.float64)
    served: NDArray[np.int64] = np.argmin(np.where(tried, order, np.inf), axis=1)
    return served


def oracle_tiers(success: Array) -> NDArray[np.int64]:
    """The cheapest tier with the highest success of each request: (n,)."""
    best: NDArray[np.int64] = np.argmax(np.nan_to_num(success, nan=-1.0), axis=1)
    return best


def cost_quality(
    success: Array,
    probabilities: NDArray[np.float32],
    prices: Sequence[float],
    policies: Mapping[str, NDArray[np.int64]],
    others: Mapping[str, NDArray[np.int64]] | None = None,
) -> dict[str, Any]:
    """Quality and cost of every threshold, of the policies, of one tier for all, and of what they are compared with.

    Args:
        success: (n, 4).
        probabilities: (n, 4), the model's.
        prices: dollars a million tokens, cheapest tier first.
        policies: name → (n,) tiers that it chooses.
        others: name → (n,) tiers that other routers chose.

    Returns:
        `curve`, one point a threshold; `points`, by name; `random`, for each policy the router that draws tiers in its
        shares. Points are {"cost", "quality"}.
    """

    def point(chosen: NDArray[np.int64]) -> dict[str, float]:
        quality, cost = success_and_cost(chosen, success, prices)
        return {"cost": cost, "quality": quality}

    n = len(success)
    curve = [
        {"threshold": float(t)} | point(choose_many(probabilities, float(t)))
        for t in np.unique(np.quantile(np.cumsum(probabilities, axis=1)[:, :-1], np.linspace(0, 1, 61)))
    ]
    flat = {tier.label: point(np.full(n, tier.index)) for tier in TIERS if not np.isnan(success[:, tier.index]).all()}
    points = {f"all {name}": value for name, value in flat.items()} | {"oracle": point(oracle_tiers(success))}
    drawn = {}
    for name, chosen in policies.items():
        points[name] = point(chosen)
        mix = [(point(np.full(n, t.index)), float(np.mean(chosen == t.index))) for t in TIERS]
        drawn[name] = {key: sum(share * p[key] for p, share in mix) for key in ("cost", "quality")}
    points |= {name: point(chosen) for name, chosen in (others or {}).items()}
    return {"curve": curve, "points": points, "random": drawn, "prices": list(prices)}


def measure_pair(
    outcomes: Outcomes, scores: Mapping[str, Score], weak: Tier, strong: Tier, *, draws: int = DRAWS
) -> dict[str, Any] | None:
    """APGR and CPT of each score between two tiers; None where one of them was not tried.

    Args:
        outcomes: rows of one source.
        scores: by name; the first is the model's.
        weak: the cheaper tier.
        strong: the dearer one.
        draws: bootstrap samples.
    """
    low, high = outcomes.success[:, weak.index], outcomes.success[:, strong.index]
    both = ~np.isnan(low) & ~np.isnan(high)
    if both.sum() < FEWEST_ROWS or float((high - low)[both].sum()) <= 0:
        return None
    low, high = low[both], high[both]
    given = {name: np.asarray(score(weak, strong))[both] for name, score in scores.items()} | {"oracle": high - low}
    ours = next(iter(given))
    found: dict[str, Any] = {"rows": int(both.sum()), "weak": float(low.mean()), "strong": float(high.mean())}
    areas = {name: _apgrs(values, low, high) for name, values in given.items()}
    found["scores"] = {
        name: {
            "apgr": bootstrap_interval(areas[name], len(low), draws=draws),
            **{f"cpt_{level:.0%}": cpt(values, low, high, level) for level in LEVELS},
        }
        for name, values in given.items()
    }
    found["random"] = {"apgr": 0.5, **{f"cpt_{level:.0%}": level for level in LEVELS}}
    found["apgr_above"] = {
        name: bootstrap_interval(_difference(areas[ours], areas[name]), len(low), draws=draws)
        for name in given
        if name not in (ours, "oracle")
    }
    shares, recovered = gap_recovered(given[ours], low, high)
    kept = np.unique(np.linspace(0, len(shares) - 1, 51).astype(int))
    found["curve"] = {"share": shares[kept].tolist(), "recovered": recovered[kept].tolist()}
    return found


def measure_failures(outcomes: Outcomes, scores: Mapping[str, Score], *, draws: int = DRAWS) -> dict[str, Any] | None:
    """AUROC of each score for "simple fails"; None where it never, or always, does."""
    success = outcomes.success[:, Tier.SIMPLE.index]
    known = ~np.isnan(success)
    fails = success[known] < FAILS_BELOW
    if known.sum() < FEWEST_ROWS or fails.all() or not fails.any():
        return None
    given = {name: np.asarray(score(Tier.SIMPLE, TIERS[-1]))[known] for name, score in scores.items()}
    ours, n = next(iter(given)), int(known.sum())
    areas: dict[str, Statistic] = {name: ranked_areas(values, ~fails, fails) for name, values in given.items()}
    return {
        "rows": n,
        "fails": float(fails.mean()),
        "auroc": {name: bootstrap_interval(area, n, draws=draws) for name, area in areas.items()},
        "above": {
            name: bootstrap_interval(_difference(areas[ours], area), n, draws=draws)
            for name, area in areas.items()
            if name != ours
        },
    }


def _difference(one: Statistic, other: Statistic) -> Statistic:
    return lambda counts: one(counts) - other(counts)


def measure(
    outcomes: Outcomes,
    probabilities: NDArray[np.float32],
    *,
    prices: Sequence[float],
    policies: Mapping[str, NDArray[np.int64]] | None = None,
    routers: Mapping[str, NDArray[np.int64]] | None = None,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """Everything about a file of outcomes, by source: sources differ in difficulty, so they are never pooled.

    Args:
        outcomes: from `training.outcomes.read_outcomes`.
        probabilities: (n, 4), what the model says of each request.
        prices: dollars a million tokens, cheapest tier first.
        policies: name → (n,) tiers that it chooses.
        routers: tiers that other routers chose, by name, (n,) each.
        draws: bootstrap samples.

    Returns:
        By source `simple_fails` (`measure_failures`), `pairs` (`measure_pair`, where "model" orders by P(label > weak)
        and "model_between" by P(weak < label <= strong)) and `cost_quality`.
    """
    by_source: dict[str, Any] = {}
    for source in sorted(set(outcomes.sources.tolist())):
        rows = outcomes.sources == source
        part, shares = outcomes.take(rows), probabilities[rows]
        given = {"model": _above(shares), "length": _same(part.characters)}
        by_source[source] = {
            "rows": len(part),
            "simple_fails": measure_failures(part, given, draws=draws),
            "pairs": {
                f"{weak.label} against {strong.label}": measure_pair(
                    part, given | {"model_between": _between(shares)}, weak, strong, draws=draws
                )
                for weak, strong in PAIRS
            },
            "cost_quality": cost_quality(
                part.success,
                shares,
                prices,
                {k: v[rows] for k, v in (policies or {}).items()},
                {k: v[rows] for k, v in (routers or {}).items()},
            ),
        }
    return {"rows": len(outcomes), "fails_below": FAILS_BELOW, "sources": by_source}


def _above(shares: NDArray[np.float32]) -> Score:
    """P(label > weak): the order in which a rising threshold moves requests up."""
    return lambda weak, _: shares[:, weak.index + 1 :].sum(axis=1, dtype=np.float64)


def _between(shares: NDArray[np.float32]) -> Score:
    """P(weak < label <= strong): the expected gain of the strong tier, where labels are the cheapest that satisfies."""
    return lambda weak, strong: shares[:, weak.index + 1 : strong.index + 1].sum(axis=1, dtype=np.float64)


def _same(values: Array) -> Score:
    return lambda _weak, _strong: values


def as_text(report: Mapping[str, Any]) -> str:
    """The report for a terminal."""
    lines = [f"outcomes: {report['rows']} rows; a tier fails where less than {report['fails_below']:g} of its tries do"]
    for source, found in report["sources"].items():
        lines += ["", f"  {source} ({found['rows']} rows)"]
        fails = found["simple_fails"]
        if fails is not None:
            told = "   ".join(f"{name} {ranged(value)}" for name, value in fails["auroc"].items())
            lines.append(f"    simple fails on {fails['fails']:.1%}: AUROC {told}")
            lines += [f"      above {name} by {ranged(value)}" for name, value in fails["above"].items()]
        for pair, measured in found["pairs"].items():
            if measured is None:
                continue
            lines.append(f"    {pair}: success {measured['weak']:.3f} and {measured['strong']:.3f}")
            for name, numbers in measured["scores"].items():
                cpts = "   ".join(f"CPT({level:.0%}) {numbers[f'cpt_{level:.0%}']:.1%}" for level in LEVELS)
                lines.append(f"      {name:<10} APGR {ranged(numbers['apgr'])}   {cpts}")
            lines += [f"      above {name} by {ranged(value)}" for name, value in measured["apgr_above"].items()]
    return "\n".join(lines)
