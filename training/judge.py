"""Two bundles on the same rows: is the candidate better, and does it forget nothing?

The verdict is about the default policy, which promises a risk of at most α. Risk counts from the promise on: cheaper
within it is better, safer than it is not. On recent closed labels, and for cost on all recent requests:

- *accepted*: the candidate's risk is within α, or no worse than the current one's beyond `RISK_MARGIN`; its cost is no
  worse beyond `COST_MARGIN`; and one of the two is better with 95 % confidence (paired bootstrap).
- *repairs*: the current bundle breaks its promise (exact binomial test below 5 %), and the candidate, whose thresholds
  were fitted to keep it, is safer with 95 % confidence and does not break it. That may cost money: it is what the
  promise was made for.
- Either way the candidate must order golden rows as well as the current one, within `GOLDEN_MARGIN` of AUROC.

Where the log was explored, an off-policy estimate of both risks is told, and a candidate whose risk it finds worse than
the current one's beyond chance and margin is refused whatever the labels say.

Knows nothing of stores, files or registries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from classifier.engine import Engine
from classifier.metrics import auroc, paired_bootstrap
from classifier.policy import choose_many
from classifier.types import Request
from training.calibration_report import PRICES, under
from training.calibration_set import CalibrationSet
from training.corpus import Row, tiers
from training.feedback_set import Log
from training.off_policy import estimate

RISK_MARGIN = 0.02
COST_MARGIN = 0.03
"""Relative to the current bundle's cost."""
GOLDEN_MARGIN = 0.03
FEWEST_ROWS = 40
"""Recent closed labels below which nothing is said of risk."""
SIGNIFICANCE = 0.05

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a comparison found.

    Attributes:
        accepted: the candidate is better.
        repairs: the current bundle breaks its promise and the candidate keeps it.
        why: a sentence.
        current: risk, cost and golden AUROC of the current bundle.
        candidate: the same of the candidate.
        differences: candidate minus current: estimate, low, high of each.
        rows: how many rows each number stands on.
        off_policy: what the log says of both; empty where nothing was explored.
    """

    accepted: bool
    repairs: bool
    why: str
    current: Mapping[str, float]
    candidate: Mapping[str, float]
    differences: Mapping[str, Sequence[float]]
    rows: Mapping[str, int]
    off_policy: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def compare(
    current: Engine,
    candidate: Engine,
    *,
    recent: tuple[CalibrationSet, CalibrationSet] | None,
    traffic: Sequence[Request],
    golden: Sequence[Row],
    log: Log | None = None,
    prices: Sequence[float] = PRICES,
) -> Verdict:
    """The verdict on a candidate.

    Args:
        current: what serves.
        candidate: what may.
        recent: closed labels that neither was fitted on, scored by the current and by the candidate; None for none.
        traffic: recent requests, labelled or not.
        golden: rows of the base corpus that neither was trained on.
        log: recent decisions with their texts, at the tiers that were decided.
        prices: dollars a million tokens, cheapest tier first.
    """
    alpha = current.policies[current.default_policy].guarantee.alpha
    found: list[dict[str, float]] = [{}, {}]
    differences: dict[str, Sequence[float]] = {}
    rows = {"risk": 0, "cost": len(traffic), "golden": len(golden)}
    if traffic:
        costs = [np.array(prices)[_chosen(e, [_probabilities(e, r) for r in traffic])] for e in (current, candidate)]
        _note("cost", costs, found, differences)
    if golden:
        labels = tiers(golden)
        above = [np.array([_above(_probabilities(e, row.request)) for row in golden]) for e in (current, candidate)]
        for which, scores in zip(found, above, strict=True):
            which["golden"] = _mean_auroc(scores, labels)
        differences["golden"] = list(paired_bootstrap(_mean_auroc, above[1], above[0], labels, draws=400))
    if recent is not None and len(recent[0]) >= FEWEST_ROWS:
        rows["risk"] = len(recent[0])
        losses = [
            under(_chosen(e, e.bundle.calibration.apply(scored.logits)), scored.labels)
            for e, scored in zip((current, candidate), recent, strict=True)
        ]
        _note("risk", losses, found, differences)
    verdict = _verdict(alpha, found[0], found[1], differences, rows)
    if log is None or not len(log) or not log.explored:
        return replace(verdict, why=f"{verdict.why}; nothing was explored: judged on labels alone")
    return _with_log(verdict, log, current, candidate, prices)


def _with_log(verdict: Verdict, log: Log, current: Engine, candidate: Engine, prices: Sequence[float]) -> Verdict:
    requests = [request for request in log.requests if request is not None]
    found = [
        estimate(log, _chosen(e, [_probabilities(e, request) for request in requests]), prices=prices)
        for e in (current, candidate)
    ]
    told = {name: one.as_json() for name, one in zip(("current", "candidate"), found, strict=True)}
    before, after = (one.risk_dr for one in found)
    worse = before is not None and after is not None and after.low > before.high + RISK_MARGIN
    why = f"{verdict.why}; {found[1].as_text()}" + (", worse than the current one's" if worse else "")
    return replace(
        verdict,
        accepted=verdict.accepted and not worse,
        repairs=verdict.repairs and not worse,
        why=why,
        off_policy=told,
    )


def _verdict(
    alpha: float,
    current: Mapping[str, float],
    candidate: Mapping[str, float],
    differences: Mapping[str, Sequence[float]],
    rows: Mapping[str, int],
) -> Verdict:
    def verdict(why: str, *, accepted: bool = False, repairs: bool = False) -> Verdict:
        return Verdict(accepted, repairs, why, current, candidate, differences, rows)

    if "risk" not in current or "cost" not in current:
        return verdict(f"{rows['risk']} recent closed labels and {rows['cost']} requests are too few to judge on")
    told = (
        f"risk {current['risk']:.3f} to {candidate['risk']:.3f} ({alpha:g} is promised), "
        f"cost {current['cost']:.2f} to {candidate['cost']:.2f}"
    )
    if "golden" in differences and differences["golden"][0] < -GOLDEN_MARGIN:
        return verdict(f"{told}; but AUROC on golden rows falls by {-differences['golden'][0]:.3f}: it forgets")
    kept = candidate["risk"] <= alpha
    broken, still = (
        bool(stats.binom.sf(round(found["risk"] * rows["risk"]) - 1, rows["risk"], alpha) < SIGNIFICANCE)
        for found in (current, candidate)
    )
    risk_fine = kept or candidate["risk"] - current["risk"] <= RISK_MARGIN
    cost_fine = candidate["cost"] <= current["cost"] * (1 + COST_MARGIN)
    safer = differences["risk"][2] < 0 and current["risk"] > alpha
    cheaper = differences["cost"][2] < 0
    if risk_fine and cost_fine and (safer or cheaper):
        return verdict(told, accepted=True)
    if broken and not still and differences["risk"][2] < 0:
        return verdict(f"{told}: it keeps the promise that the current one breaks", repairs=True)
    reasons = [
        *([] if risk_fine else ["risk is worse"]),
        *([] if cost_fine else ["cost is worse"]),
        *([] if safer or cheaper else ["neither is better beyond chance"]),
    ]
    return verdict(f"{told}: {', '.join(reasons)}")


def _probabilities(engine: Engine, request: Request) -> tuple[float, ...]:
    return engine.score(engine.prepare(request)).probabilities


def _chosen(engine: Engine, probabilities: Any) -> NDArray[np.int64]:
    policy = engine.policies[engine.default_policy]
    return choose_many(probabilities, policy.threshold, policy.top_tier_threshold)


def _above(probabilities: Sequence[float]) -> list[float]:
    return [float(sum(probabilities[t + 1 :])) for t in range(len(probabilities) - 1)]


def _mean_auroc(above: Array, labels: NDArray[np.int64]) -> float:
    """Mean AUROC over the boundaries that have rows on both sides."""
    sides = [t for t in range(above.shape[1]) if 0 < (labels > t).sum() < len(labels)]
    return float(np.mean([auroc(above[:, t], labels > t) for t in sides])) if sides else 0.5


def _note(
    name: str, values: Sequence[Array], found: Sequence[dict[str, float]], differences: dict[str, Sequence[float]]
) -> None:
    for which, value in zip(found, values, strict=True):
        which[name] = float(value.mean())
    differences[name] = list(paired_bootstrap(np.mean, values[1], values[0], draws=1000))
