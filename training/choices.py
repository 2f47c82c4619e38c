"""What two bundles choose on the same rows: from engines to what the gate judges.

Three things keep the comparison fair. The candidate's thresholds are fitted on the recent audits, so its choices on
them are made *out of fold*: each row's by a threshold fitted on the rows of other folds, with the same targets and map.
The serving bundle's map and thresholds may have been fitted on some of them, in an earlier round: those do not judge.
And the golden rows carry RUBRIC labels, on which a policy for outcomes promises nothing: there both bundles are brought
to one cost, that of the serving one at its α, and the risks at that cost are compared.

Knows nothing of stores, files or registries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from classifier.bundle import Bundle
from classifier.engine import Engine
from classifier.policy import Policy, choose_many, cumulative_probabilities
from classifier.types import Request
from training.answers import ask
from training.calibration_report import PRICES
from training.calibration_set import MAP_ROWS, CalibrationSet
from training.corpus import Row, tiers
from training.decision_log import Log
from training.gate import LabelledSet
from training.off_policy import OffPolicy, estimate
from training.policy_fit import Targets, chosen_by, fit_policies
from training.risk_control import fit_threshold
from training.step_losses import EVERY_MISS, routing_losses, soft

FOLDS = 5

Choices = NDArray[np.int64]
Probabilities = NDArray[np.float32]


def recent_set(
    current: Engine,
    candidate: Engine,
    scored: tuple[CalibrationSet, CalibrationSet],
    traffic: Sequence[Request],
    gone: Bundle | None = None,
) -> LabelledSet:
    """The recent audits, with what the default policy promises or only aims at, and the costs on recent traffic.

    Audits that the serving bundle's map or thresholds were fitted on are left out, and so are those of one that was
    rolled back: they found it good.

    Args:
        current: what serves.
        candidate: what may; its thresholds were fitted on the audits.
        scored: the audits, scored by the current and by the candidate.
        traffic: recent requests, labelled or not; empty compares costs on the audits.
        gone: what was rolled back to the current one.
    """
    before, after = scored
    serving, new = _default(current), ~before.calibrated(current.bundle.manifest)
    if gone is not None:
        new &= ~before.calibrated(gone.manifest)
    return LabelledSet(
        "recent",
        before.labels[new],
        chosen_by(serving, current.bundle.calibration.apply(before.logits), before)[new],
        out_of_fold(candidate, after)[new],
        groups=before.groups[new],
        alpha=serving.guarantee.alpha,
        epsilon=serving.epsilon,
        severity=serving.guarantee.severity or EVERY_MISS,
        promised=serving.guarantee.proved,
        traffic=None if not traffic else (on_requests(current, traffic), on_requests(candidate, traffic)),
    )


def golden_set(current: Engine, candidate: Engine, golden: Sequence[Row], *, risk_margin: float) -> LabelledSet:
    """Rows of the base corpus, both bundles at the cost of the serving one where it has a risk of its α there.

    Args:
        current: what serves.
        candidate: what may.
        golden: rows that neither was trained on.
        risk_margin: by how much the risk at that cost may be worse: what may be forgotten.
    """
    labels = soft(tiers(golden))
    alpha = _default(current).guarantee.alpha
    requests = [row.request for row in golden]
    before, after = (ask(engine, requests, name="golden rows").probabilities for engine in (current, candidate))
    chosen = choose_many(before, fit_threshold(routing_losses(before, labels), alpha).threshold)
    return LabelledSet(
        "golden",
        labels,
        chosen,
        at_cost(after, float(np.asarray(PRICES)[chosen].mean())),
        groups=np.array([row.group for row in golden]),
        equal_cost=True,
        risk_margin=risk_margin,
    )


def off_policy_pair(current: Engine, candidate: Engine, log: Log) -> tuple[OffPolicy, OffPolicy] | None:
    """What an explored log says of both; None where nothing was explored."""
    if not len(log) or not log.explored:
        return None
    requests = [request for request in log.requests if request is not None]
    return estimate(log, on_requests(current, requests)), estimate(log, on_requests(candidate, requests))


def on_requests(engine: Engine, requests: Sequence[Request]) -> Choices:
    """What the default policy chooses, without floors, ceilings and exploration: (n,) int64."""
    return ask(engine, requests, name="traffic").chosen_by(_default(engine))


def out_of_fold(engine: Engine, rows: CalibrationSet) -> Choices:
    """What the default policy would choose on each row with thresholds fitted on the other folds: (n,) int64.

    Args:
        engine: whose map and targets they are.
        rows: closed labels with its logits; their groups are dealt to `FOLDS` folds by a hash. Those that its map was
            fitted on fit no threshold, as they fitted none of its own.
    """
    policy, calibration = _default(engine), engine.bundle.calibration
    mapped = rows.among(str(engine.bundle.manifest.get(MAP_ROWS, "")))
    fold = np.array([_position(group) % FOLDS for group in rows.groups.tolist()])
    shares = calibration.apply(rows.logits)
    chosen = np.zeros(len(rows), dtype=np.int64)
    for k in np.unique(fold):
        mine = fold == k
        (fitted,), _ = fit_policies(calibration, rows.take(~(mine | mapped)), targets_of((policy,)))
        chosen[mine] = chosen_by(fitted, shares[mine], rows.take(mine))
    return chosen


def targets_of(policies: Sequence[Policy]) -> Targets:
    """What policies promise, as it was asked for. What is not about one policy is the first one's.

    Raises:
        SettingsError: none of them promises anything.
    """
    first = policies[0]
    top = first.top_tier_guarantee
    return Targets(
        {policy.name: policy.guarantee.alpha for policy in policies if policy.guarantee.alpha},
        first.guarantee.delta,
        top.alpha if top is not None else 0.0,
        first.group_by,
        first.guarantee.severity or EVERY_MISS,
        first.epsilon,
        first.exempt_labels,
    )


def at_cost(shares: Probabilities, cost: float) -> Choices:
    """What the strictest threshold chooses whose mean price is at most `cost`: (n,) int64."""
    best = np.zeros(len(shares), dtype=np.int64)
    prices = np.asarray(PRICES)
    for threshold in np.unique(cumulative_probabilities(shares)[:, :-1]):
        chosen = choose_many(shares, float(threshold))
        if prices[chosen].mean() > cost:
            break
        best = chosen
    return best


def _default(engine: Engine) -> Policy:
    return engine.policies[engine.default_policy]


def _position(group: str) -> int:
    return int.from_bytes(hashlib.sha256(f"fold/{group}".encode()).digest()[:8], "big")
