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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier.intervals import Interval, bootstrap_interval, wider
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
Router = Callable[[Indices, Array, Array], tuple[float, float]]
"""Choices, labels and weights of rows → cost and frontier misses at the risk of those choices."""


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

    def at(self, risk: float, counts: Array) -> tuple[float, float]:
        """(cost, frontier misses) at a risk, with each row counted `counts` times: (n,) float64.

        Below the smallest risk that the rule can reach it is that of always the highest tier.
        """
        weights, n = counts[self._rows], counts.sum()
        lost = self._left(weights * self._lost) + float(counts @ self._beyond)
        cost = np.append(0.0, (weights * self._paid).cumsum())[self._cuts] + self._cheapest * n
        at = int(np.argmax(lost <= risk * n)) if lost[-1] <= risk * n else len(lost) - 1
        part = 0.0
        if at and lost[at - 1] > lost[at]:
            part = float(np.clip((risk * n - lost[at]) / (lost[at - 1] - lost[at]), 0.0, 1.0))
        tops = float(counts @ self._top)
        misses = 1.0 if tops else float("nan")
        if self._missed is not None and tops:
            left = self._left(weights * self._missed)
            misses = float(((1 - part) * left[at] + part * left[at - 1 if at else 0]) / tops)
        return float(((1 - part) * cost[at] + part * cost[at - 1 if at else 0]) / n), misses

    def _left(self, values: Array) -> Array:
        """What of (steps,) values in order of score is left at each λ, from the lowest to above all scores."""
        left: Array = np.append(values[::-1].cumsum()[::-1], 0.0)[self._cuts]
        return left


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

    def interval(
        statistic: Callable[[Indices, Array, Array], float], share_of: float | None = None
    ) -> dict[str, float]:
        def of(rows: Indices) -> float:
            counts = np.bincount(rows, minlength=len(chosen)).astype(np.float64)
            return statistic(chosen[rows], labels[rows], counts)

        found: Interval = bootstrap_interval(of, np.arange(len(chosen)), groups=units, draws=BOOTSTRAPS, seed=seed)
        return (found if share_of is None else wider(found, share_of))._asdict()

    shares, n, top = tier_shares(chosen), len(chosen), float(labels[:, -1].sum())
    return {
        "prices": list(prices),
        "n": n,
        "shares": list(shares),
        "cheap_share": interval(lambda c, _y, _w: float((c <= 1).mean()), n),
        "frontier_rows": top,
        "frontier_misses": interval(lambda c, y, _: frontier_misses(c, y), top),
        "random_router_risk": interval(lambda c, y, _: random_risk(tier_shares(c), y)),
        "risk_below_random_router": interval(lambda c, y, _: random_risk(tier_shares(c), y) - _risk(c, y)),
        "all tiers": _beside(interval, chosen, labels, rivals, prices, len(TIERS) - 1),
        "ceiling at complex": _beside(interval, chosen, labels, rivals, prices, CEILING),
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
    interval: Callable[..., dict[str, float]],
    chosen: Indices,
    labels: Array,
    rivals: Mapping[str, NDArray[np.float32]],
    prices: Sequence[float],
    top: int,
) -> dict[str, Any]:
    """The policy and its rivals when no tier above `top` is used."""
    price = np.asarray(prices, dtype=np.float64)
    curves = {name: RiskCost(p, labels, prices, top) for name, p in rivals.items()}

    def own(c: Indices) -> float:
        return float(price[np.minimum(c, top)].mean())

    def constant(c: Indices, y: Array, _: Array) -> tuple[float, float]:
        return constant_mix(_risk(np.minimum(c, top), y), y, prices[: top + 1])

    def equal_misses(c: Indices, y: Array, _: Array) -> tuple[float, float]:
        return constant_mix(_risk(c, y), y, prices, most_missed=frontier_misses(c, y))

    def along(curve: RiskCost) -> Router:
        return lambda c, y, w: curve.at(_risk(np.minimum(c, top), y), w)

    routers: dict[str, Router] = {CONSTANT: constant}
    if top == len(TIERS) - 1:
        routers[CONSTANT_EQUAL_MISSES] = equal_misses
    for name, curve in curves.items():
        routers[name] = along(curve)
    everything = np.ones(len(labels))
    table = {}
    for name, router in routers.items():
        cost, misses = router(chosen, labels, everything)
        table[name] = {
            "cost": cost,
            "frontier_misses": misses,
            "saved": interval(lambda c, y, w, router=router: router(c, y, w)[0] - own(c)),
            "saved_share": interval(lambda c, y, w, router=router: _saved_share(own(c), router(c, y, w)[0])),
        }
    return {
        "risk": interval(lambda c, y, _: _risk(np.minimum(c, top), y), len(labels)),
        "cost": interval(lambda c, _y, _w: own(c)),
        "beside": table,
    }


def _saved_share(own: float, theirs: float) -> float:
    """What is saved of the rival's cost; NaN where it costs nothing, as on tiers of one's own machines."""
    return 1 - own / theirs if theirs else float("nan")


def _risk(chosen: Indices, labels: Array) -> float:
    return float(under(chosen, labels).mean())


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
    if np.isnan(interval["estimate"]):
        return "-"
    return f"{interval['estimate']:.{digits}f} ({interval['low']:.{digits}f} to {interval['high']:.{digits}f})"
