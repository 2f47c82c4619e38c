"""What a policy costs beside routers that are as safe as it is: does routing pay?

"Cheaper than always the best model" is true of every router that sends something elsewhere. So each policy stands
beside routers of *equal risk*, each at its cheapest on the same rows:

- the best mix of constant tiers, which does not look at the request at all;
- the best such mix that misses no more frontier requests than the policy either: where frontier requests are rarer than
  the risk allows, the first one may give up on all of them, and no team would;
- any model's probabilities under the same rule, its threshold moved until the risk is the policy's.

All of it twice: as it is, and under a ceiling at complex, because the frontier's price alone decides the first. The
random router draws the policy's own *shares*: equal cost, so there the risks are compared.

Risk is P(chosen < label), costs are dollars a million tokens, every request taken to be equally long.

Knows nothing of bundles, files or how thresholds were fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier.intervals import Interval, Statistic, bootstrap_intervals, mean, ranged, wider
from classifier.metrics import tier_shares
from classifier.policy import cumulative_probabilities
from classifier.types import TIERS
from training.calibration_report import BOOTSTRAPS, constant_mix, frontier_misses, random_risk, resampled, under
from training.calibration_set import CalibrationSet

CEILING = len(TIERS) - 2
"""Index of complex."""
CONSTANT, CONSTANT_EQUAL_MISSES = "constant mix", "constant mix, equal frontier misses"

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
Router = Callable[[Array], tuple[Array, Array]]
"""How often each of many samples holds each row → its cost and frontier misses at the risk of the choices there."""


class RiskCost:
    """Cost and frontier misses of the threshold rule on some rows, at any risk: λ is moved until the risk is met.

    Between two neighbouring λ the router draws between them, so that every risk is met exactly. Rows of one score are
    moved together, as λ does: one by one their order in the file would tell the hard ones from the easy ones.

    Args:
        probabilities: (n, 4) float32.
        labels: (n, 4) float64, rows sum to 1.
        prices: dollars a million tokens, cheapest tier first, non-decreasing.
        top: index of the highest tier that is used.
    """

    def __init__(self, probabilities: NDArray[np.float32], labels: Array, prices: Sequence[float], top: int) -> None:
        scores = cumulative_probabilities(probabilities)[:, :top].ravel()
        order = np.argsort(scores, kind="stable")
        self._rows, boundary = order // top, order % top
        ranked = scores[order]
        self._cuts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1], [True]]))
        # A row is lost at boundary t while λ is at or below its C_t; once λ is above, it pays for the next tier.
        self._lost = labels[:, 1 : top + 1].ravel()[order]
        self._paid = np.diff(np.asarray(prices, dtype=np.float64))[boundary]
        self._missed = np.where(boundary == top - 1, labels[self._rows, -1], 0.0) if top == len(TIERS) - 1 else None
        self._beyond = labels[:, top + 1 :].sum(axis=1)
        self._top, self._cheapest = labels[:, -1], float(prices[0])

    def at(self, risk: Array, counts: Array) -> tuple[Array, Array]:
        """(cost, frontier misses), (draws,) each, of many samples: at (draws,) risks, from how often each holds each
        row, (draws, n) float64.

        Below the smallest risk that the rule can reach it is that of always the highest tier.
        """
        weights, n = counts[:, self._rows], counts.sum(axis=1)
        lost = self._left(weights * self._lost) + (counts @ self._beyond)[:, None]
        paid = np.insert((weights * self._paid).cumsum(axis=1), 0, 0.0, axis=1)[:, self._cuts]
        cost = paid + self._cheapest * n[:, None]
        met = lost <= (risk * n)[:, None]
        at = np.where(met[:, -1], met.argmax(axis=1), lost.shape[1] - 1)
        before, each = np.maximum(at - 1, 0), np.arange(len(counts))
        step = lost[each, before] - lost[each, at]
        part = np.divide(risk * n - lost[each, at], step, out=np.zeros(len(counts)), where=step > 0).clip(0.0, 1.0)

        def between(values: Array) -> Array:
            mixed: Array = (1 - part) * values[each, at] + part * values[each, before]
            return mixed

        tops = counts @ self._top
        missed = tops if self._missed is None else between(self._left(weights * self._missed))
        return between(cost) / n, np.divide(missed, tops, out=np.full(len(counts), np.nan), where=tops > 0)

    def _left(self, values: Array) -> Array:
        """What of (draws, steps) values in order of score is left at each λ, from the lowest to above all scores."""
        left: Array = np.append(values[:, ::-1].cumsum(axis=1)[:, ::-1], np.zeros((len(values), 1)), axis=1)
        return left[:, self._cuts]


def costs(
    chosen: Indices,
    labels: Array,
    rivals: Mapping[str, NDArray[np.float32]],
    prices: Sequence[float],
    *,
    units: NDArray[np.str_],
    seed: int = 0,
) -> dict[str, Any]:
    """A policy's choices beside routers of equal risk, every number with a 95 % bootstrap interval, shares with at
    least Wilson's.

    Args:
        chosen: (n,) tier indices.
        labels: (n, 4) float64, rows sum to 1.
        rivals: (n, 4) probabilities of other models, by name.
        prices: dollars a million tokens, cheapest tier first, non-decreasing.
        units: (n,) what is resampled as a whole.
        seed: of the resampling; all numbers share their samples.

    Returns:
        `shares`, `cheap_share`, `frontier_rows`; `risk`, `frontier_misses`, `random_router_risk`,
        `risk_below_random_router`; and, for all tiers and under the ceiling, `cost`, `risk` and `beside`: by router
        its `cost`, its `frontier_misses` and what the policy saves, in dollars (`saved`) and as a share of the rival's
        cost (`saved_share`), which is NaN where that is 0.

    Raises:
        ValueError: prices that fall from one tier to the next.
    """
    if np.any(np.diff(np.asarray(prices, dtype=np.float64)) < 0):
        raise ValueError(f"prices are {tuple(prices)}, expected non-decreasing from the cheapest tier on")

    def intervals(statistics: Callable[[Array], Sequence[Array]]) -> list[Interval]:
        return bootstrap_intervals(statistics, len(chosen), groups=units, draws=BOOTSTRAPS, seed=seed)

    def interval(statistic: Statistic) -> Interval:
        return intervals(lambda counts: [statistic(counts)])[0]

    shares, n, top = tier_shares(chosen), len(chosen), float(labels[:, -1].sum())
    share_of, by_label, risk = mean(np.eye(len(TIERS))[chosen]), mean(labels), mean(under(chosen, labels))

    def blind(counts: Array) -> Array:
        return random_risk(share_of(counts), by_label(counts))

    return {
        "prices": list(prices),
        "n": n,
        "shares": list(shares),
        "cheap_share": wider(interval(mean(chosen <= 1)), n)._asdict(),
        "frontier_rows": top,
        "frontier_misses": wider(interval(frontier_misses(chosen, labels)), top)._asdict(),
        "random_router_risk": interval(blind)._asdict(),
        "risk_below_random_router": interval(lambda counts: blind(counts) - risk(counts))._asdict(),
        "all tiers": _beside(intervals, chosen, labels, rivals, prices, len(TIERS) - 1),
        "ceiling at complex": _beside(intervals, chosen, labels, rivals, prices, CEILING),
    }


def study(
    rows: CalibrationSet,
    chosen: Mapping[str, Indices],
    rivals: Mapping[str, NDArray[np.float32]],
    prices: Sequence[float],
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """`costs` of each policy."""
    units = resampled(rows)
    return {name: costs(c, rows.labels, rivals, prices, units=units, seed=seed) for name, c in chosen.items()}


def _beside(
    intervals: Callable[[Callable[[Array], Sequence[Array]]], list[Interval]],
    chosen: Indices,
    labels: Array,
    rivals: Mapping[str, NDArray[np.float32]],
    prices: Sequence[float],
    top: int,
) -> dict[str, Any]:
    """The policy and its rivals when no tier above `top` is used."""
    used = np.minimum(chosen, top)
    own, risk = mean(np.asarray(prices, dtype=np.float64)[used]), mean(under(used, labels))
    by_label, misses = mean(labels), frontier_misses(chosen, labels)

    def constant(counts: Array) -> tuple[Array, Array]:
        return constant_mix(risk(counts), by_label(counts), prices[: top + 1])

    def equal_misses(counts: Array) -> tuple[Array, Array]:
        return constant_mix(risk(counts), by_label(counts), prices, most_missed=misses(counts))

    def along(curve: RiskCost) -> Router:
        return lambda counts: curve.at(risk(counts), counts)

    routers: dict[str, Router] = {CONSTANT: constant}
    if top == len(TIERS) - 1:
        routers[CONSTANT_EQUAL_MISSES] = equal_misses
    routers |= {name: along(RiskCost(p, labels, prices, top)) for name, p in rivals.items()}
    table = {}
    for name, router in routers.items():
        cost, missed = router(np.ones((1, len(labels))))
        saved, share = intervals(partial(_saved, own, router))
        table[name] = {
            "cost": float(cost[0]),
            "frontier_misses": float(missed[0]),
            "saved": saved._asdict(),
            "saved_share": share._asdict(),
        }
    risks, costs = intervals(lambda counts: [risk(counts), own(counts)])
    return {"risk": wider(risks, len(labels))._asdict(), "cost": costs._asdict(), "beside": table}


def _saved(own: Statistic, router: Router, counts: Array) -> tuple[Array, Array]:
    """What is saved, and of the rival's cost; NaN where it costs nothing, as on tiers of one's own machines."""
    ours, (theirs, _) = own(counts), router(counts)
    return theirs - ours, 1 - np.divide(ours, theirs, out=np.full(len(theirs), np.nan), where=theirs > 0)


def as_text(found: Mapping[str, Any]) -> str:
    """Markdown tables of `study`."""
    first = next(iter(found.values()))
    lines = [
        f"{first['n']} rows, {first['frontier_rows']:.0f} of them frontier; dollars a million tokens at "
        + " / ".join(f"{p:g}" for p in first["prices"]),
        "",
        "| policy | simple / standard / complex / frontier | risk | random router of these shares | frontier misses "
        "| cost |",
        "|---|---|---|---|---|---|",
    ]
    for name, e in found.items():
        shares = " / ".join(f"{100 * s:.0f}" for s in e["shares"])
        lines.append(
            f"| {name} | {shares} % | {_told(e['all tiers']['risk'])} | {_told(e['random_router_risk'])} | "
            f"{_told(e['frontier_misses'])} | {_told(e['all tiers']['cost'], 2)} |"
        )
    lines += [
        "",
        "| policy | tiers | its risk | its cost | beside, at equal risk | cost there | frontier misses there | saved "
        "| of it |",
        "|---|---|---:|---:|---|---:|---:|---|---|",
    ]
    for name, e in found.items():
        for tiers in ("all tiers", "ceiling at complex"):
            part = e[tiers]
            for router, r in part["beside"].items():
                lines.append(
                    f"| {name} | {tiers} | {part['risk']['estimate']:.3f} | {part['cost']['estimate']:.2f} | {router} "
                    f"| {r['cost']:.2f} | {r['frontier_misses']:.2f} | {_told(r['saved'], 2)} | "
                    f"{_told({k: 100 * v for k, v in r['saved_share'].items()}, 0)} % |"
                )
    return "\n".join(lines)


def _told(interval: Mapping[str, float], digits: int = 3) -> str:
    return "-" if np.isnan(interval["estimate"]) else ranged(Interval(**interval), digits)
