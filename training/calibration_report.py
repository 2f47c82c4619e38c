"""What a calibration and its policies do on labelled rows: numbers and curves.

Every number is measured on the rows given. With soft labels it is the expectation over them. Costs are in US dollars a
million tokens and take requests of all tiers to be equally long.

Knows nothing of how thresholds were fitted, or of files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from classifier import routing
from classifier.calibration import Calibration
from classifier.intervals import Interval, Statistic, bootstrap_interval, mean, ratio, wider
from classifier.metrics import calibration_error, tier_shares
from classifier.policy import Policy, choose_many
from classifier.types import TIERS
from training.calibration_fit import expected_scores
from training.calibration_set import CalibrationSet, OpenRows
from training.policy_fit import Targets, chosen_by
from training.risk_control import fit_threshold, method_for, risk_bound, unexplored
from training.step_losses import EVERY_MISS, routing_losses

PRICES = tuple(routing.PRICES.values())
"""Dollars a million tokens, cheapest tier first; a user's own come by argument."""
ALPHAS = (0.02, 0.03, 0.05, 0.075, 0.10, 0.125, 0.15, 0.20, 0.25, 0.30, 0.40)
FEWEST_IN_SLICE, FEWEST_IN_SOURCE = 20, 50
"""Rows, of any slice and of a source that is judged by itself; fewer say nothing, and are left out."""
BINS = 10
"""Of a reliability curve, each of at least ten rows."""
BOOTSTRAPS = 400
FEWEST_UNITS = 5  # to draw from: over one a bootstrap has no width, over two it covers half the time, over five .80
_TINY = 1e-12  # instead of 0 in a denominator

Array = NDArray[np.float64]


def under(chosen: NDArray[np.int64], labels: Array) -> Array:
    """P(label > chosen) of each row: (n,) float64."""
    above = np.cumsum(labels[:, ::-1], axis=1)[:, ::-1]
    tail = np.append(above[:, 1:], np.zeros((len(labels), 1)), axis=1)
    values: Array = tail[np.arange(len(chosen)), chosen]
    return values


def frontier_misses(chosen: NDArray[np.int64], labels: Array) -> Statistic:
    """P(chosen < frontier, given label frontier); NaN where no label is."""
    return ratio(labels[:, -1] * (chosen < len(TIERS) - 1), labels[:, -1])


def resampled(rows: CalibrationSet) -> NDArray[np.str_]:
    """What a bootstrap draws as a whole: (n,) the sources where there are enough, else the groups, else the rows."""
    enough = (units for units in (rows.sources, rows.groups) if len(np.unique(units)) >= FEWEST_UNITS)
    return next(enough, np.arange(len(rows)).astype(np.str_))


def random_risk(shares: ArrayLike, labels: Array) -> Array:
    """Risk, 0 to 1, of a router that draws tiers blindly in `shares` where `labels` are shares, too: (..., 4) each."""
    risks: Array = np.clip((np.asarray(shares) * (1 - np.cumsum(labels, axis=-1))).sum(axis=-1), 0, 1)
    return risks


def constant_mix(
    risk: ArrayLike, labels: Array, prices: Sequence[float], *, most_missed: ArrayLike = 1.0
) -> tuple[Array, Array]:
    """The cheapest router that ignores the request and has at most this risk: a mix of constant tiers.

    Args:
        risk: (...,) P(chosen < label) at most.
        labels: (..., 4) shares of the rows by label.
        prices: dollars a million tokens, cheapest tier first; as many as there are tiers to use.
        most_missed: (...,) P(chosen < frontier, given label frontier) at most; NaN for no bound.

    Returns:
        Its cost, and the part of the frontier requests that it misses, (...,) each. Always the dearest tier where none
        has the risk.
    """
    above = np.clip(1 - np.cumsum(labels, axis=-1), 0, 1)
    # Whoever ignores the request misses as many frontier requests as all others: so many must go to frontier.
    fixed = np.nan_to_num(1 - np.asarray(most_missed, dtype=np.float64)) * (len(prices) == len(TIERS))
    left = np.asarray(risk) / np.maximum(1 - fixed, _TINY)
    best = np.full(above.shape[:-1], float(prices[-1]))
    missed = np.full(above.shape[:-1], float(len(prices) < len(TIERS)))
    for low in range(len(prices)):  # an optimum mixes at most two tiers
        for high in range(low, len(prices)):
            span = above[..., low] - above[..., high]
            share = np.where(span > 0, np.minimum(1.0, (left - above[..., high]) / np.maximum(span, _TINY)), 1.0)
            cost = fixed * prices[-1] + (1 - fixed) * (share * prices[low] + (1 - share) * prices[high])
            better = (above[..., high] <= left) & (cost < best)
            top = share * (low == len(TIERS) - 1) + (1 - share) * (high == len(TIERS) - 1)
            best, missed = np.where(better, cost, best), np.where(better, (1 - fixed) * (1 - top), missed)
    return best, missed


def constant_cost(risk: float, labels: Array, prices: Sequence[float]) -> float:
    """Cost of `constant_mix` at one risk, in dollars a million tokens; `labels` are (4,) shares."""
    return float(constant_mix(risk, labels, prices)[0])


def measure_policy(
    policy: Policy,
    rows: CalibrationSet,
    probabilities: NDArray[np.float32],
    open_probabilities: NDArray[np.float32],
    *,
    prices: Sequence[float] = PRICES,
    seed: int = 0,
) -> dict[str, Any]:
    """What the policy does on the rows, without floors, ceilings and exploration.

    Intervals are 95 % bootstrap, over what `resampled` says; of shares the wider of that and Wilson's.
    """
    chosen = chosen_by(policy, probabilities, rows)
    labels, price = rows.labels, np.asarray(prices, dtype=np.float64)
    units, risks, shares = resampled(rows), under(chosen, labels), tier_shares(chosen)
    risk_of, by_label, cost_of, share_of = (mean(v) for v in (risks, labels, price[chosen], np.eye(len(TIERS))[chosen]))

    def interval(statistic: Statistic) -> Interval:
        return bootstrap_interval(statistic, len(rows), groups=units, draws=BOOTSTRAPS, seed=seed)

    def saving(counts: Array) -> Array:
        return constant_mix(risk_of(counts), by_label(counts), prices)[0] - cost_of(counts)

    def advantage(counts: Array) -> Array:
        return random_risk(share_of(counts), by_label(counts)) - risk_of(counts)

    risk, top = wider(interval(risk_of), len(rows)), float(labels[:, -1].sum())
    return {
        "risk": risk._asdict(),
        "frontier_misses": wider(interval(frontier_misses(chosen, labels)), top)._asdict(),
        "frontier_rows": top,
        "shares": list(shares),
        "cheap_share": shares[0] + shares[1],
        "cost": float(price[chosen].mean()),
        "random_router_risk": float(random_risk(shares, labels.mean(axis=0))),
        "risk_below_random_router": interval(advantage)._asdict(),
        "constant_router_cost": constant_cost(risk.estimate, labels.mean(axis=0), prices),
        "saving_over_constant_router": interval(saving)._asdict(),
        "open_rows": open_band(policy, rows.open_rows, open_probabilities, float(risks.sum()), len(rows)),
        "by": {
            name: _by(values, risks, chosen, rows.groups, seed)
            for name, values in rows.facets.items()
            if len(np.unique(values)) > 1
        },
    }


def _by(
    values: NDArray[np.str_], risks: Array, chosen: NDArray[np.int64], groups: NDArray[np.str_], seed: int
) -> dict[str, Any]:
    """Risk by value, with the wider of two intervals: groups resampled, and Wilson's for single rows."""
    table = {}
    for value in np.unique(values):
        kept = values == value
        if (n := int(kept.sum())) >= FEWEST_IN_SLICE:
            shares = tier_shares(chosen[kept])
            found = bootstrap_interval(mean(risks[kept]), n, groups=groups[kept], draws=BOOTSTRAPS, seed=seed)
            risk, low, high = wider(found, n)
            table[str(value)] = {"n": n, "risk": risk, "low": low, "high": high, "cheap_share": shares[0] + shares[1]}
    return table


def open_band(
    policy: Policy, rows: OpenRows, probabilities: NDArray[np.float32], lost: float, n: int
) -> dict[str, Any] | None:
    """Risk over closed and open rows together, if every open label were as low, or as high, as it can be."""
    if not len(rows):
        return None
    chosen = chosen_by(policy, probabilities, rows)
    total = n + len(chosen)
    return {
        "n": len(chosen),
        "risk_at_best": (lost + float((chosen < rows.at_least).sum())) / total,
        "risk_at_worst": (lost + float((chosen < rows.at_most).sum())) / total,
    }


def measure_calibration(calibration: Calibration, rows: CalibrationSet, *, seed: int = 0) -> dict[str, Any]:
    """Ranked probability score, calibration error with its null band, and a reliability curve for each boundary."""
    probabilities = calibration.apply(rows.logits)
    hard = rows.drawn(seed).labels.argmax(axis=1)
    errors = calibration_error(probabilities, hard, seed=seed) if len(rows) >= FEWEST_IN_SLICE else ()
    return {
        "method": calibration.method,
        "revision": calibration.revision,
        "ranked_probability_score": float(expected_scores(probabilities, rows.labels).mean()),
        "calibration_error": [asdict(e) | {"within_null": e.within_null} for e in errors],
        "reliability": [reliability(probabilities, rows.labels, t) for t in range(len(TIERS) - 1)],
    }


def reliability(probabilities: NDArray[np.float32], labels: Array, tier: int) -> list[list[float]]:
    """Predicted and observed P(label <= tier) and the rows, for each of up to `BINS` bins of equal mass.

    Equal predictions share a bin: which of them comes first would be an accident of the file's order.
    """
    predicted = probabilities[:, : tier + 1].sum(axis=1, dtype=np.float64)
    observed = labels[:, : tier + 1].sum(axis=1)
    order = np.argsort(predicted, kind="stable")
    bins = max(1, min(BINS, len(order) // 10))
    ranked = predicted[order]
    starts = np.unique(np.searchsorted(ranked, ranked[np.arange(bins) * len(order) // bins], side="left"))
    parts = np.split(order, starts[1:])
    return [[float(predicted[p].mean()), float(observed[p].mean()), len(p)] for p in parts]


def curves(
    rows: CalibrationSet,
    probabilities: NDArray[np.float32],
    prices: Sequence[float],
    targets: Targets,
    shift: Array | None = None,
) -> dict[str, Any]:
    """Mean loss and what the targets' method proves of it against λ; λ, shares and cost against α, which counts what is
    explored.

    Of all rows together, also where thresholds go by groups; `loss` is "risk", or "weighted loss" by severity.
    """
    losses = routing_losses(probabilities, rows.labels, severity=targets.severity, weights=shift)
    method, price = method_for(losses, targets.delta), np.asarray(prices)
    by_threshold = []
    for threshold in np.linspace(0.0, 1.0, 101):
        chosen = choose_many(probabilities, threshold)
        by_threshold.append(
            {
                "threshold": float(threshold),
                "risk": losses.risk(float(threshold)),
                "bound": risk_bound(losses, float(threshold), targets.delta, method),
                "cheap_share": float((chosen <= 1).mean()),
            }
        )
    by_alpha = []
    for alpha in (a for a in ALPHAS if a > targets.epsilon):
        fit = fit_threshold(losses, unexplored(alpha, targets.epsilon), delta=targets.delta)
        chosen = choose_many(probabilities, fit.threshold)
        risk = float(under(chosen, rows.labels).mean())
        by_alpha.append(
            {
                "alpha": alpha,
                "threshold": fit.threshold,
                "feasible": fit.feasible,
                "shares": list(tier_shares(chosen)),
                "cost": float(price[chosen].mean()),
                "constant_router_cost": constant_cost(risk, rows.labels.mean(axis=0), prices),
            }
        )
    return {
        "method": method,
        "loss": "risk" if targets.severity == EVERY_MISS else "weighted loss",
        "group_by": targets.group_by,
        "risk_by_threshold": by_threshold,
        "cost_by_alpha": by_alpha,
    }
