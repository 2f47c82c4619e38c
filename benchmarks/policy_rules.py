"""Would another rule than one threshold on P(label <= t) be cheaper at the same promise? Measured on held-out halves.

    python -m benchmarks.policy_rules --predictions predictions.npz [--splits 100] [--prices 0.1,0.3,2.4,100]

Each rule has one dial whose risk can only fall as it is turned up, so that conformal risk control fits all of them to
the same promise on one half; risk, cost and frontier misses are measured on the other, both ways, over random halves:

- one threshold: the cheapest t with P(label <= t) >= dial; what is served;
- one threshold, no frontier: the same, but complex at most;
- price-weighted: the t with the least price + dial * P(label > t);
- one threshold, frontier apart; price-weighted, frontier apart: complex at most, and frontier where P(frontier) is
  among the highest: as many requests as the first rule sends there on the fitting half, so that both spend the same;
- a threshold a boundary, frontier apart: the dial's odds moved by a constant at the boundary to complex; the constant
  is chosen for cost on one half of the fitting half, the dial fitted on the other.

Prints Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from classifier.calibration import IDENTITY
from classifier.policy import choose_many, cumulative_probabilities
from training.calibration_report import PRICES, constant_cost, frontier_misses, under
from training.predictions import model_of, read_predictions

ALPHAS = {"economy": 0.2, "balanced": 0.1, "quality": 0.05}
DIALS = 2000
Rule = Callable[[np.ndarray, float], np.ndarray]
"""(n, 4) probabilities and a dial in [0, 1] to (n,) tiers; at 1 every tier is the highest that the rule knows."""


def one_threshold(p: np.ndarray, dial: float, top: int = 3) -> np.ndarray:
    """The cheapest tier t with P(label <= t) >= dial, at most `top`; `top` for all at dial 1."""
    return np.minimum(choose_many(p, dial if dial < 1 else np.inf), top)


def price_weighted(p: np.ndarray, dial: float, prices: Sequence[float]) -> np.ndarray:
    """The tier with the least price + mu * P(label > t), where mu goes from 0 to infinity as the dial goes to 1."""
    if dial >= 1:
        return np.full(len(p), 3)
    mu = 10.0 ** (-2 + 8 * dial)
    above = np.clip(1 - cumulative_probabilities(p), 0, None)
    return (np.asarray(prices) + mu * above).argmin(axis=1)


def by_boundary(p: np.ndarray, dial: float, shift: float) -> np.ndarray:
    """As one threshold up to complex, with the dial's odds multiplied by exp(shift) at the second boundary."""
    if dial >= 1:
        return np.full(len(p), 2)
    odds = np.log(max(dial, 1e-12) / (1 - dial)) + np.array([0.0, shift])
    qualifies = cumulative_probabilities(p)[:, :2] >= 1 / (1 + np.exp(-odds))
    return np.where(qualifies.any(axis=1), qualifies.argmax(axis=1), 2)


def frontier_apart(rule: Rule, limit: float) -> Rule:
    """The rule, at most complex, with frontier where P(frontier) >= limit."""
    return lambda p, dial: np.where(p[:, 3] >= limit, 3, np.minimum(rule(p, dial), 2))


def fitted(rule: Rule, p: np.ndarray, y: np.ndarray, alpha: float) -> float:
    """The least dial at which (losses + 1) / (n + 1) <= alpha, on a grid that was fixed before; 1 where none does.

    Bisection: risk only falls as the dial rises. A rule that tops out below frontier may not reach alpha even there.
    """
    low, high = 0, DIALS
    while low < high:
        middle = (low + high) // 2
        lost = float(under(rule(p, middle / DIALS), y).sum())
        low, high = (low, middle) if (lost + 1) / (len(y) + 1) <= alpha else (middle + 1, high)
    return low / DIALS


def cheapest_shift(p: np.ndarray, y: np.ndarray, alpha: float, price: np.ndarray, limit: float) -> float:
    """The shift with the least cost at the promise on these rows."""
    best, found = np.inf, 0.0
    for shift in np.arange(-4.0, 1.01, 0.5):
        rule = frontier_apart(lambda q, d, s=float(shift): by_boundary(q, d, s), limit)
        cost = float(price[rule(p, fitted(rule, p, y, alpha))].mean())
        if cost < best:
            best, found = cost, float(shift)
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--predictions", type=Path, required=True)
    parser.add_argument("--splits", type=int, default=100)
    parser.add_argument("--most-rows", type=int, default=4000, help="drawn at random from the predictions")
    parser.add_argument("--prices", type=lambda text: tuple(map(float, text.split(","))), default=PRICES)
    asked = parser.parse_args()
    rows, price = read_predictions(asked.predictions), np.asarray(asked.prices)
    kept = np.random.default_rng(0).permutation(len(rows))[: asked.most_rows]
    p, y = IDENTITY.apply(rows.logits[kept]), rows.labels[kept]

    def weighted(q: np.ndarray, dial: float) -> np.ndarray:
        return price_weighted(q, dial, asked.prices)

    rules: dict[str, Rule] = {
        "one threshold": one_threshold,
        "one threshold, no frontier": lambda q, d: one_threshold(q, d, 2),
        "price-weighted": weighted,
    }
    print(f"{model_of(asked.predictions)}, {len(kept)} rows, {y[:, 3].sum():.0f} frontier")
    print(f"prices {asked.prices}, {asked.splits} halvings, both ways\n")
    print("| promise | rule | mean risk | cost | of it below frontier | frontier misses | constant mix of that risk |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for name, alpha in ALPHAS.items():
        found: dict[str, list[tuple[float, ...]]] = {}
        for seed in range(asked.splits):
            order = np.random.default_rng(seed).permutation(len(p))
            halves = order[: len(p) // 2], order[len(p) // 2 :]
            for fit, held in (halves, halves[::-1]):
                dials = {rule: fitted(make, p[fit], y[fit], alpha) for rule, make in rules.items()}
                choices = {rule: make(p[held], dials[rule]) for rule, make in rules.items()}
                often = float((one_threshold(p[fit], dials["one threshold"]) == 3).mean())
                limit = float(np.quantile(p[fit, 3], 1 - often)) if often else 2.0
                for rule, make in (("one threshold", one_threshold), ("price-weighted", weighted)):
                    apart = frontier_apart(make, limit)
                    dial = fitted(apart, p[fit], y[fit], alpha)
                    choices[f"{rule}, frontier apart"] = apart(p[held], dial)
                first, second = fit[::2], fit[1::2]
                shift = cheapest_shift(p[first], y[first], alpha, price, limit)
                apart = frontier_apart(lambda q, d, s=shift: by_boundary(q, d, s), limit)
                choices["a threshold a boundary, frontier apart"] = apart(
                    p[held], fitted(apart, p[second], y[second], alpha)
                )
                for rule, chosen in choices.items():
                    risk = float(under(chosen, y[held]).mean())
                    found.setdefault(rule, []).append((
                        risk, float(price[chosen].mean()), float((price[chosen] * (chosen < 3)).mean()),
                        frontier_misses(chosen, y[held]), constant_cost(risk, y[held], asked.prices),
                    ))  # fmt: skip
        for rule, values in found.items():
            risk, cost, below, misses, constant = np.nanmean(values, axis=0)
            numbers = f"{risk:.4f} | {cost:.2f} | {below:.2f} | {misses:.2f} | {constant:.2f}"
            print(f"| {name} ({alpha:g}) | {rule} | {numbers} |")


if __name__ == "__main__":
    main()
