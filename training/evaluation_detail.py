"""What the evaluation page shows beyond `training.evaluate`: thresholds, policies, routers side by side, worst errors.

Risk is P(chosen < label), where labels are outcomes known as rates the expectation over them, as it is promised; costs
are dollars a million tokens, every request taken to be equally long.

Knows nothing of pages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier import metrics
from classifier.inputs import rated_text
from classifier.intervals import Statistic, bootstrap_each, mean, wider
from classifier.metrics import tier_shares
from classifier.policy import Guarantee, Policy, choose_many
from classifier.types import TIERS
from training.answers import Answers
from training.calibration_report import (
    constant_cost,
    frontier_misses,
    random_risk,
    reliability,
    under,
)
from training.calibration_set import closed_label
from training.calibration_text import promised_or_estimated
from training.corpus import Row, tiers

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
DRAWS = 400
MOST_ERRORS = 25
GRID = np.concatenate([np.linspace(0.0, 0.9, 37), np.linspace(0.91, 1.0, 19)])


def detail(
    rows: Sequence[Row],
    answers: Answers,
    policies: Mapping[str, Policy],
    default: str,
    *,
    prices: Sequence[float],
    rivals: Mapping[str, NDArray[np.float32]] | None = None,
    routers: Mapping[str, Indices] | None = None,
    show_text: bool = False,
) -> dict[str, Any]:
    """The numbers, JSON-ready.

    Args:
        rows: labelled rows.
        answers: the bundle's to them.
        policies: the bundle's, by name.
        default: name of the bundle's default policy.
        prices: cheapest tier first.
        rivals: (n, 4) probabilities of baselines, by name.
        routers: (n,) tiers that other routers chose, by name.
        show_text: list the worst errors with the beginning of their text.
    """
    labels, truth, probabilities = tiers(rows), np.array([closed_label(row) for row in rows]), answers.probabilities
    whole = {"bundle": probabilities, **(rivals or {})}
    chosen = {name: answers.chosen_by(policy) for name, policy in policies.items()}
    return {
        "prices": list(prices),
        "reliability": [reliability(probabilities, truth, t) for t in range(len(TIERS) - 1)],
        "risk_cost": {name: _sweep(p, truth, prices) for name, p in whole.items()},
        "policies": {
            name: _policy(policy, rows, labels, truth, chosen[name], prices) for name, policy in policies.items()
        },
        "routers": _routers(labels, truth, chosen[default], default, prices, whole, routers or {}),
        "worst": worst_errors(rows, labels, probabilities, MOST_ERRORS, show_text=show_text),
    }


def _sweep(probabilities: NDArray[np.float32], truth: Array, prices: Sequence[float]) -> list[dict[str, float]]:
    price = np.asarray(prices)
    points = []
    for threshold in GRID:
        chosen = choose_many(probabilities, float(threshold))
        shares = tier_shares(chosen)
        points.append({
            "threshold": float(threshold),
            "risk": float(under(chosen, truth).mean()),
            "cost": float(price[chosen].mean()),
            "random_router_risk": float(random_risk(shares, truth.mean(axis=0))),
        })  # fmt: skip
    return points


def _policy(
    policy: Policy, rows: Sequence[Row], labels: Indices, truth: Array, chosen: Indices, prices: Sequence[float]
) -> dict[str, Any]:
    fit = policy.guarantee
    risk = float(under(chosen, truth).mean())
    alike = {row.label for row in rows} == {fit.label}  # what is promised about one kind of label no other can break
    return _choice(chosen, labels, truth, prices) | {
        "threshold": policy.threshold,
        "group_by": policy.group_by,
        "alpha": fit.promised_risk if alike else None,
        "promise": _promise(fit) + (f", of {fit.label} labels" if fit.feasible and not alike else ""),
        "shares": list(tier_shares(chosen)),
        "random_router_risk": float(random_risk(tier_shares(chosen), truth.mean(axis=0))),
        "constant_router_cost": constant_cost(risk, truth.mean(axis=0), prices),
    }


def _promise(fit: Guarantee) -> str:
    """What is promised of the risk, for a table's cell."""
    if not fit.feasible:
        return "none"
    bound = f"{fit.alpha:.1%}" + (" of a weighted loss" if fit.severity else "")
    return promised_or_estimated(bound, fit)


def _numbers(chosen: Indices, labels: Indices, truth: Array, prices: Sequence[float]) -> dict[str, Statistic]:
    """What is told of a choice of tiers, by name, of (n,) chosen tiers, (n,) labels and (n, 4) their truth."""
    risk = under(chosen, truth)
    return {
        "accuracy": mean(chosen == labels),
        "quadratic_kappa": metrics.quadratic_kappas(chosen, labels),
        "risk": mean(risk),
        "over_routing": mean(1 - risk - truth[np.arange(len(chosen)), chosen]),
        "frontier_misses": frontier_misses(chosen, truth),
        "cost": mean(np.asarray(prices)[chosen]),
    }


def _choice(chosen: Indices, labels: Indices, truth: Array, prices: Sequence[float]) -> dict[str, Any]:
    """How a choice of tiers fares: each number with its interval."""
    found = bootstrap_each(_numbers(chosen, labels, truth, prices), len(labels), draws=DRAWS)
    of: dict[str, float] = dict.fromkeys(("accuracy", "risk", "over_routing"), len(labels))
    of["frontier_misses"] = float(truth[:, -1].sum())
    return found | {name: wider(found[name], n) for name, n in of.items()}


def _routers(
    labels: Indices,
    truth: Array,
    chosen: Indices,
    policy: str,
    prices: Sequence[float],
    whole: Mapping[str, NDArray[np.float32]],
    routers: Mapping[str, Indices],
) -> dict[str, Any]:
    """Side by side: the policy, arg-max of each set of probabilities, other routers, the oracle, the blind one."""
    table = {f"bundle, policy {policy}": _choice(chosen, labels, truth, prices)}
    table |= {f"{name}, arg-max": _choice(p.argmax(axis=1), labels, truth, prices) for name, p in whole.items()}
    table |= {name: _choice(tiers, labels, truth, prices) for name, tiers in routers.items()}
    # It knows each label by definition: no other rows could show otherwise, which Wilson's interval allows for.
    table["oracle"] = bootstrap_each(_numbers(labels, labels, truth, prices), len(labels), draws=DRAWS)
    # Drawn blindly in the policy's shares: a permutation of its own choices, many times over.
    rng, times = np.random.default_rng(0), max(1, 20_000 // len(chosen))
    drawn = np.concatenate([rng.permutation(chosen) for _ in range(times)])
    their, nan = (np.tile(labels, times), np.tile(truth, (times, 1))), float("nan")
    table[f"random router, shares of {policy}"] = {
        name: (float(of(np.ones((1, len(drawn))))[0]), nan, nan)  # the spread of its draws is no interval of anything
        for name, of in _numbers(drawn, *their, prices).items()
    }
    return table


def worst_errors(
    rows: Sequence[Row], labels: Indices, probabilities: NDArray[np.float32], most: int, *, show_text: bool = False
) -> list[dict[str, Any]]:
    """The rows that the model was surest and wrongest about, by ranked probability score; only those it got wrong.

    Args:
        rows: labelled rows.
        labels: (n,) tier indices of them.
        probabilities: (n, 4).
        most: how many.
        show_text: with the beginning of the rated message; else without any text.
    """
    scores = metrics.ranked_probability_scores(probabilities, labels)
    predicted = probabilities.argmax(axis=1)
    order = [int(i) for i in np.argsort(-scores, kind="stable") if predicted[i] != labels[i]][:most]
    listed = []
    for i in order:
        row = rows[i]
        entry = {
            "id": row.id,
            "source": row.source,
            "kind": row.kind,
            "language": row.language,
            "label": TIERS[labels[i]].label,
            "predicted": TIERS[predicted[i]].label,
            "probabilities": [float(p) for p in probabilities[i]],
            "score": float(scores[i]),
            "characters": row.request.characters,
        }
        if show_text:
            entry["text"] = rated_text(row.request)[:400]
        listed.append(entry)
    return listed


def histories(bundle: Path) -> dict[str, list[dict[str, float]]]:
    """Loss by epoch of each training run that lies beside the bundle: its folder's name → what `fit` recorded."""
    found = {}
    for path in sorted({*bundle.parent.glob("*/history.json"), *bundle.parent.glob("*/*/history.json")}):
        try:
            epochs = json.loads(path.read_text(encoding="utf-8"))
            found[str(path.parent.relative_to(bundle.parent))] = [
                {name: float(value) for name, value in epoch.items() if isinstance(value, int | float)}
                for epoch in epochs
            ]
        except (OSError, ValueError, TypeError, AttributeError):
            continue
    return {name: epochs for name, epochs in found.items() if epochs}
