"""Five rounds of learning from outcomes on one stream: a naive loop, ours, and one that knows every label. Simulated.

Requests are two numbers, labels are drawn from an ordinal logit, and the classifier is one too, fitted by maximum
likelihood with the loss of training. It starts from labels that overrate what the first number tells. Rows go through
`training.feedback_set.build` as an export would; audits fit the probability map and the thresholds, as in the loop.

    python -m benchmarks.feedback_rounds rounds.svg 10
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from classifier.calibration import Calibration
from classifier.exports import COLUMNS
from classifier.policy import choose_many, exploration
from classifier.types import TIERS, Tier
from training.calibration_fit import fit_map
from training.feedback_set import build
from training.risk_control import fit_threshold
from training.step_losses import routing_losses, soft

ALPHA = 0.1
EPSILON = 0.05
AUDITS = 0.08
REPORTING = 0.6
NOISE = 0.02
TRUE = np.array([1.5, 1.2, 0.3, np.log(2.2 - 0.3), np.log(4.2 - 2.2)])
"""Two weights, the first cut and the logarithm of each step to the next, as `probabilities` takes them."""
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """Rows to fit on: features, allowed tiers, chance that these are wrong, weight."""

    x: Array
    inside: Array
    eta: Array
    weight: Array

    def __add__(self, other: Evidence) -> Evidence:
        pairs = ((getattr(self, f), getattr(other, f)) for f in ("x", "inside", "eta", "weight"))
        return Evidence(*(np.concatenate(p) for p in pairs))


def probabilities(theta: Array, x: Array) -> Array:
    """P(label = tier) of an ordinal logit: (n, 4)."""
    cuts = np.cumsum([theta[2], *np.exp(theta[3:])])
    below = 1 / (1 + np.exp(-(cuts[None] - (x @ theta[:2])[:, None])))
    edges = np.column_stack([np.zeros(len(x)), below, np.ones(len(x))])
    return np.maximum(np.diff(edges, axis=1), 1e-9)


def fit(rows: Evidence, start: Array) -> Array:
    """The parameters that make the evidence likeliest."""

    def loss(theta: Array) -> float:
        p = (probabilities(theta, rows.x) * rows.inside).sum(axis=1)
        return float(-(rows.weight * np.log((1 - rows.eta) * p + rows.eta * (1 - p) + 1e-9)).sum() / rows.weight.sum())

    return np.asarray(minimize(loss, start, method="L-BFGS-B").x)


def closed(x: Array, labels: NDArray[np.int64], weight: float = 1.0) -> Evidence:
    """Evidence whose label is known."""
    n = len(x)
    return Evidence(x, np.eye(4)[labels], np.zeros(n), np.full(n, weight))


def draw(p: Array, rng: np.random.Generator) -> NDArray[np.int64]:
    """A label of each row: (n,)."""
    return (rng.random(len(p))[:, None] > np.cumsum(p, axis=1)[:, :-1]).sum(axis=1).astype(np.int64)


def threshold(theta: Array, x: Array, labels: NDArray[np.int64], alpha: float) -> float:
    """λ of conformal risk control on closed labels."""
    return fit_threshold(routing_losses(probabilities(theta, x).astype(np.float32), labels), alpha).threshold


def recalibrated(theta: Array, rows: Evidence, labels: NDArray[np.int64], group: Array) -> tuple[Calibration, float]:
    """The map of a third of the audits, and λ on the others: (n,) `group` says which, uniform in [0, 1)."""
    logits, mapped = np.log(probabilities(theta, rows.x)).astype(np.float32), group < 1 / 3
    found = fit_map("cumulative_platt", logits[mapped], soft(labels[mapped]), "OUTCOME")
    shares = found.apply(logits[~mapped])
    return found, fit_threshold(routing_losses(shares, labels[~mapped]), ALPHA).threshold


def export_rows(
    x: Array, labels: NDArray[np.int64], chosen: NDArray[np.int64], p: Array, rng: np.random.Generator,
    *, outages: float, audited: NDArray[np.bool_], name: str, when: float,
) -> list[dict[str, Any]]:  # fmt: skip
    """What a gateway leaves of a round: some silence, some outages, a little noise, audits tried from simple up."""
    rows = []
    for i, (features, label, choice, audit) in enumerate(zip(x, labels, chosen, audited, strict=True)):
        served = 0 if audit else int(choice)
        text = f"{features[0]:.6f} {features[1]:.6f}"
        row: dict[str, Any] = dict.fromkeys(COLUMNS) | {
            "decision_id": f"{name}{i}", "caller": f"gateway{i % 5}", "decided_at": when, "occurred_at": when,
            "tier": TIERS[choice].label, "model_tier": TIERS[choice].label, "reason": "model", "propensity": 1.0,
            "probabilities": p[i].tolist(), "request_hash": f"{name}{i}", "effective": False,
            "request": {"messages": [{"role": "user", "content": text}]},
            "labels": {"sample": "audit"} if audit else {},
        }  # fmt: skip
        said = {"outcome_id": f"o{name}{i}", "source": "automatic", "cause": "quality", "effective": True,
                "served_tier": TIERS[served].label}  # fmt: skip
        failed = label > served
        if not audit:
            failed ^= rng.random() < NOISE and served < 3
        if not audit and rng.random() < outages:
            up = min(served + 1, 3)
            row |= said | {"verdict": "escalated", "cause": "availability",
                           "accepted_tier": TIERS[up].label if up > served else None}  # fmt: skip
        elif audit or rng.random() < REPORTING:
            end = TIERS[max(int(label), served + 1)].label if failed else None
            row |= said | {"verdict": "escalated" if failed else "accepted", "accepted_tier": end}
        rows.append(row)
    return rows


def evidence_of(rows: Sequence[Any]) -> Evidence:
    """Corpus rows as arrays."""
    x = np.array([[float(v) for v in row.request.messages[0].content.split()] for row in rows]).reshape(-1, 2)
    inside = np.array([[float(row.at_least <= t <= row.at_most) for t in TIERS] for row in rows]).reshape(-1, 4)
    return Evidence(x, inside, np.array([row.eta or 0.0 for row in rows]), np.array([row.weight for row in rows]))


def run(loop: str, *, seed: int = 0, rounds: int = 5, n: int = 3000, outages: float = 0.2) -> list[Array]:
    """Shares of the tiers on held-out traffic before the first round and after each: (4,) arrays, cheapest first.

    Args:
        loop: "naive" (every escalation is a label, outages included), "ours", or "full" (every label is known).
        seed: of the stream, which is the same for every loop.
        rounds: how many.
        n: requests of a round.
        outages: share of outcomes that are escalations for availability.
    """
    world = np.random.default_rng(seed)
    base_x = world.normal(size=(600, 2))
    base_y = draw(probabilities(np.array([2.2, 0.3, -0.6, np.log(1.5), np.log(1.5)]), base_x), world)
    streams = [world.normal(size=(n, 2)) for _ in range(rounds)]
    labels = [draw(probabilities(TRUE, x), world) for x in streams]
    audits = [world.random(n) < AUDITS for _ in range(rounds)]
    later = world.normal(size=(20_000, 2))
    rng, groups = np.random.default_rng(seed + 1), np.random.default_rng(seed + 2)
    calibration = Calibration("identity", "OUTCOME", 0, {})
    base = closed(base_x, base_y, 0.2)
    theta = fit(base, np.array([1.0, 1.0, 0.0, 0.0, 0.0]))
    limit = threshold(theta, base_x, base_y, ALPHA)
    shares = [mix(theta, calibration, limit, later)]
    group: dict[str, float] = {}
    exported: list[dict[str, Any]] = []
    for k in range(rounds):
        x, y = streams[k], labels[k]
        p = probabilities(theta, x)
        chosen = choose_many(mapped(theta, calibration, x), limit)
        if loop == "ours":
            reach = np.zeros((n, 4))
            for t in range(4):
                chances = exploration(Tier.from_index(t), EPSILON)
                reach[chosen == t] = [chances.get(tier, 0.0) for tier in TIERS]
            chosen = draw(reach, rng)
        none = np.zeros(n, dtype=bool)
        audited = audits[k] if loop == "ours" else none
        exported += export_rows(x, y, chosen, p, rng, outages=outages, audited=audited, name=f"{k}.", when=1e6 + k)
        if loop == "full":
            seen_x, seen_y = np.concatenate(streams[: k + 1]), np.concatenate(labels[: k + 1])
            theta = fit(base + closed(seen_x, seen_y), theta)
            limit = threshold(theta, seen_x, seen_y, ALPHA)
        elif loop == "naive":
            ends = [r for r in exported if r["verdict"] == "escalated" and r["accepted_tier"]]
            seen_x = np.array([[float(v) for v in r["request"]["messages"][0]["content"].split()] for r in ends])
            seen_y = np.array([Tier.parse(r["accepted_tier"]).index for r in ends], dtype=np.int64)
            theta = fit(base + closed(seen_x, seen_y), theta)
            limit = threshold(theta, np.concatenate([base_x, seen_x]), np.concatenate([base_y, seen_y]), ALPHA)
        else:
            found = build(exported)
            theta = fit(base + evidence_of(found.rows), theta)
            drawn = {r["decision_id"] for r in exported if r["labels"]}
            known = [c.row for c in found.closed if c.row.id in drawn]
            group |= {row.id: groups.random() for row in known if row.id not in group}
            calibration, limit = recalibrated(
                theta,
                evidence_of(known),
                np.array([row.tier.index for row in known], dtype=np.int64),
                np.array([group[row.id] for row in known]),
            )
        shares.append(mix(theta, calibration, limit, later))
    return shares


def mapped(theta: Array, calibration: Calibration, x: Array) -> NDArray[np.float32]:
    """What the classifier says: (n, 4)."""
    return calibration.apply(np.log(probabilities(theta, x)).astype(np.float32))


def mix(theta: Array, calibration: Calibration, limit: float, x: Array) -> Array:
    """Shares of the tiers: (4,)."""
    return np.bincount(choose_many(mapped(theta, calibration, x), limit), minlength=4) / len(x)


def main() -> None:
    """Runs the three loops with several seeds, prints the cheap shares and draws them."""
    from matplotlib.figure import Figure

    path, seeds = (*sys.argv[1:], *("rounds.svg", "3")[len(sys.argv) - 1 :])
    styles = {"full": "k--", "ours": "C0-o", "naive": "C3-s"}
    cheap = {loop: [[s[:2].sum() for s in run(loop, seed=seed)] for seed in range(int(seeds))] for loop in styles}
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for loop, style in styles.items():
        for seed, shares in enumerate(cheap[loop]):
            print(f"{loop:6} seed {seed}", " ".join(f"{v:.3f}" for v in shares))
            axes.plot(range(len(shares)), shares, style[:2].rstrip("-"), linewidth=0.6, alpha=0.35)
        label = {"full": "every label known"}.get(loop, loop)
        axes.plot(range(len(cheap[loop][0])), np.mean(cheap[loop], axis=0), style, label=label)
    gaps = [ours[-1] - full[-1] for ours, full in zip(cheap["ours"], cheap["full"], strict=True)]
    print(f"ours less full after the last round: mean {np.mean(gaps):+.3f}, largest {max(np.abs(gaps)):.3f}")
    axes.set(xlabel="round", ylabel="share of simple + standard", ylim=(0, 1))
    axes.set_title(f"Simulated, 20 % outages; {seeds} seeds and their mean", fontsize=10)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
