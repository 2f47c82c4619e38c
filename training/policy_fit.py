"""Targets and labelled rows in, policies with their guarantees out. Pure.

Groups get thresholds of their own, the top tier gets a second threshold, exploration gets room; what cannot be promised
is served as always-frontier, marked infeasible, and said in a note with what it would take.

Knows nothing of files, bundles or reports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier.calibration import Calibration
from classifier.errors import InputError, SettingsError
from classifier.metrics import tier_shares
from classifier.policy import ALWAYS_FRONTIER, Guarantee, Policy, choose_many
from training.calibration_set import CalibrationSet, OpenRows
from training.risk_control import ThresholdFit, fit_threshold, fit_top_tier, risk_bound, unexplored
from training.step_losses import EVERY_MISS, routing_losses

FEWEST_FRONTIER = 60
MOST_TO_TOP_TIER = 0.15
"""Share of traffic that a top-tier threshold may cost before it is called infeasible in practice."""


@dataclass(frozen=True, slots=True)
class Targets:
    """What the policies shall promise.

    Attributes:
        alphas: policy → P(chosen < label) at most, exploration included.
        delta: 0 for promises on the expectation, else the confidence is 1 - delta.
        top_tier_miss: P(chosen < frontier, given label frontier) at most; 0 for no top-tier threshold.
        group_by: "script", a gateway's label, or "".
        severity: loss of choosing 1, 2, 3 tiers too low.
        epsilon: share of requests that will be explored.
        exempt_labels: labels whose requests never are, as `Policy` has them.
    """

    alphas: Mapping[str, float]
    delta: float = 0.0
    top_tier_miss: float = 0.0
    group_by: str = ""
    severity: tuple[float, ...] = EVERY_MISS
    epsilon: float = 0.0
    exempt_labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.alphas:
            raise SettingsError("no policy is asked for; give at least one, as in --policy balanced=0.10")
        if not 0 <= self.delta < 1:
            raise SettingsError(f"delta: {self.delta} is no probability; give a number between 0 and 1, as in 0.05")
        if not 0 <= self.epsilon < 1:
            raise SettingsError(f"epsilon: {self.epsilon} is no share of requests; give a number from 0 up to 1")
        if not 0 < self.severity[0] <= self.severity[1] <= self.severity[2] <= 1:
            raise SettingsError(
                f"severity: {', '.join(f'{s:g}' for s in self.severity)} are no losses of 1, 2 and 3 tiers too low; "
                "give three numbers above 0 and at most 1 that do not fall, as in 0.5,1,1"
            )
        for what, value in (
            {f"policy {n}": a for n, a in self.alphas.items()} | {"top-tier-miss": self.top_tier_miss}
        ).items():
            if not (0 < value < 1 or (value == 0 and what == "top-tier-miss")):
                raise SettingsError(f"{what}: {value} is no share of requests; give a number between 0 and 1")
            if 0 < value <= self.epsilon:
                raise SettingsError(
                    f"{what}: exploring a share of {self.epsilon} leaves nothing of {value}; explore less or allow more"
                )
        if nameless := [label for label in self.exempt_labels if not label.partition("=")[0]]:
            raise SettingsError(f"exempt-label: {nameless[0]!r} names no label; give NAME or NAME=VALUE")
        if self.group_by in ("kind", "language", "source"):
            raise SettingsError(
                f"--group-by {self.group_by}: it is not known of a request when it is served, so nothing can be "
                "promised by it; group by 'script' or by a label that the gateway sends"
            )


def thresholds_of(policy: Policy, rows: CalibrationSet | OpenRows) -> NDArray[np.float64]:
    """The λ that each row gets under the policy: (n,) float64.

    Raises:
        InputError: the policy goes by a fact that the rows do not carry.
    """
    if not policy.group_by:
        return np.full(len(rows), policy.threshold)
    if policy.group_by not in rows.facets:
        raise InputError(
            f"policy {policy.name!r} goes by {policy.group_by!r}, which these rows do not carry; give rows that do"
        )
    return np.array([policy.threshold_of(group) for group in rows.facets[policy.group_by].tolist()])


def chosen_by(policy: Policy, probabilities: NDArray[np.float32], rows: CalibrationSet | OpenRows) -> NDArray[np.int64]:
    """What a policy chooses, without floors, ceilings and exploration: (n,) int64 tier indices.

    Args:
        policy: any.
        probabilities: (n, 4) float32, calibrated.
        rows: whose probabilities they are, for the thresholds of groups.
    """
    return choose_many(probabilities, thresholds_of(policy, rows), policy.top_tier_threshold)


def shown(threshold: float) -> str:
    """A threshold for the reader: what no probability reaches is none.

    >>> shown(0.9), shown(ALWAYS_FRONTIER)
    ('0.9000', 'always frontier')
    """
    return f"{threshold:.4f}" if threshold <= 1 else "always frontier"


def fit_policies(
    calibration: Calibration,
    rows: CalibrationSet,
    targets: Targets,
    *,
    shift: NDArray[np.float64] | None = None,
    also: CalibrationSet | None = None,
    notes: list[str] | None = None,
) -> tuple[list[Policy], dict[str, Any]]:
    """Every policy's thresholds on the rows, and by policy what was fitted for each group and for the top tier.

    Args:
        calibration: fitted on other rows.
        rows: what the thresholds are fitted on.
        targets: what to promise.
        shift: (n,) weights of the rows, or None.
        also: rows of other kinds on which the thresholds, the top tier's too, must keep the targets, or None. One is
            then the stricter of two, and what is proved on `rows` of the milder one holds for it all the more.
        notes: sentences for the reader are appended here.

    Raises:
        InputError: there are no rows.
    """
    notes = [] if notes is None else notes
    if not len(rows):
        raise InputError("no row has a closed label, so no threshold can be fitted; label some, or lower --group-by")
    probabilities = calibration.apply(rows.logits)
    top, top_detail = _top_tier(calibration, rows, targets, also, notes)
    policies: list[Policy] = []
    details: dict[str, Any] = {}
    severity = () if targets.severity == EVERY_MISS else targets.severity
    for name, alpha in targets.alphas.items():
        other = _other_fit(calibration, also, targets, alpha)

        def fit(
            kept: NDArray[np.bool_] | slice, alpha: float = alpha, other: ThresholdFit | None = other
        ) -> tuple[ThresholdFit, ThresholdFit]:
            """What those rows ask for, and the stricter of that and of what the further rows do."""
            losses = routing_losses(
                probabilities[kept],
                rows.labels[kept],
                severity=targets.severity,
                weights=None if shift is None else shift[kept],
            )
            found = fit_threshold(losses, unexplored(alpha, targets.epsilon), delta=targets.delta)
            if other is None or other.threshold <= found.threshold:
                return found, found
            return found, replace(
                found,
                threshold=other.threshold,
                feasible=other.feasible,
                empirical_risk=losses.risk(other.threshold),
                bound=risk_bound(losses, other.threshold, targets.delta, found.method),
                rows_needed=None,
            )

        own, whole = fit(slice(None))
        fitted = _group_fits(rows, targets.group_by, fit)
        groups = {group: served for group, (_, served) in fitted.items()}
        if other is not None:
            notes.append(
                f"{name}: on the {other.n} further rows alone the threshold would be {shown(other.threshold)} (risk "
                f"{other.empirical_risk:.4f}"
                + ("" if other.feasible else f"; {_needed(other)}")
                + "); the stricter one is served."
            )
        fits = list(groups.values()) if groups else [whole]
        feasible = any(f.feasible for f in fits)
        # An infeasible group goes to frontier, where nothing is lost: it says nothing of what is promised elsewhere.
        worst = max((f for f in fits if f.feasible or not feasible), key=lambda f: (f.bound, f.empirical_risk))
        # An unseen group gets the strictest threshold that any seen one needed.
        threshold = max([whole.threshold, *(f.threshold for f in fits if f.feasible)]) if feasible else ALWAYS_FRONTIER
        _note_infeasible(name, alpha, own, {group: asked for group, (asked, _) in fitted.items()}, notes)
        promised = replace(worst, method=whole.method, n=len(rows), feasible=feasible)
        policy = Policy(
            name=name,
            threshold=threshold,
            top_tier_threshold=top if feasible else 0.0,
            guarantee=replace(_guarantee(promised, alpha, rows, targets), severity=severity),
            top_tier_guarantee=top_detail,
            group_by=targets.group_by,
            group_thresholds={group: f.threshold for group, f in groups.items()},
            epsilon=targets.epsilon,
            exempt_labels=targets.exempt_labels,
        )
        policies.append(policy)
        details[name] = {group: asdict(f) for group, f in groups.items()}
    policies = [replace(p, threshold=_fallback(p, policies)) for p in policies]
    return [replace(p, tier_shares=tier_shares(chosen_by(p, probabilities, rows), shift)) for p in policies], details


def _guarantee(fit: ThresholdFit, alpha: float, rows: CalibrationSet, targets: Targets) -> Guarantee:
    """What is promised of a fit, exploration included."""
    return Guarantee(
        alpha=alpha,
        delta=targets.delta,
        method=fit.method,
        label=rows.label,
        n=fit.n,
        empirical_risk=fit.empirical_risk,
        bound=min(1.0, fit.bound + targets.epsilon),
        feasible=fit.feasible,
        calibration_set_sha256=rows.sha256,
    )


def _fallback(policy: Policy, policies: Sequence[Policy]) -> float:
    """A policy's own threshold, or that of a policy that promises less, where it is stricter.

    That can only be where a group is infeasible: it has none that an unseen group could take, and had one for more α.
    """
    milder = (p.threshold for p in policies if p.guarantee.alpha > policy.guarantee.alpha and p.guarantee.feasible)
    return max([policy.threshold, *milder])


def _other_fit(
    calibration: Calibration, also: CalibrationSet | None, targets: Targets, alpha: float
) -> ThresholdFit | None:
    if also is None:
        return None
    losses = routing_losses(calibration.apply(also.logits), also.labels, severity=targets.severity)
    return fit_threshold(losses, unexplored(alpha, targets.epsilon), delta=targets.delta)


def _group_fits(
    rows: CalibrationSet, group_by: str, fit: Callable[[NDArray[np.bool_]], tuple[ThresholdFit, ThresholdFit]]
) -> dict[str, tuple[ThresholdFit, ThresholdFit]]:
    if not group_by:
        return {}
    values = rows.facets.get(group_by)
    if values is None or not (values != "").any():
        raise InputError(f"--group-by {group_by}: no row carries it; send it as a label, or group by 'script'")
    return {str(v): fit(values == v) for v in np.unique(values) if v}


def _note_infeasible(
    name: str, alpha: float, whole: ThresholdFit, groups: Mapping[str, ThresholdFit], notes: list[str]
) -> None:
    for group, found in (groups or {"": whole}).items():
        if not found.feasible:
            where = f" for {group}" if group else ""
            notes.append(
                f"{name} ({alpha:g}){where} is infeasible on {found.n} rows: only always choosing frontier keeps it; "
                f"{_needed(found)}."
            )


def _needed(fit: ThresholdFit) -> str:
    """What an infeasible fit would take."""
    if fit.rows_needed:
        return f"about {fit.rows_needed} rows could do"
    return "more rows alone would not help: the model does not tell these requests apart well enough"


def _top_tier(
    calibration: Calibration, rows: CalibrationSet, targets: Targets, also: CalibrationSet | None, notes: list[str]
) -> tuple[float, Guarantee | None]:
    """τ, or 0, and what is promised of it.

    Whether it costs too much is asked of one half of the rows, and τ is fitted on the other: of τ that one set of rows
    gave, those that send few requests to frontier are those that miss many, so that what is promised of the ones that
    pass would be broken (a winner's curse; data splitting, Fithian, Sun and Taylor, arXiv:1410.2597). With a confidence
    one set does, because δ bounds the chance that something is promised and broken.
    """
    if not targets.top_tier_miss:
        return 0.0, None
    beta, delta = targets.top_tier_miss, targets.delta
    most = unexplored(beta, targets.epsilon)
    probabilities = calibration.apply(rows.logits)
    asked = fitting = np.ones(len(rows), dtype=bool)
    if not delta:
        asked, fitting = rows.halves(0)
    highest = 1.0  # what further rows allow; where none of them is frontier, anything
    if also is not None and also.labels[:, -1].any():
        shares = calibration.apply(also.logits)
        highest = fit_top_tier(shares, also.labels, most, delta=delta).threshold
        notes.append(f"The further rows allow a top-tier threshold of at most {highest:.4f}; the lower one is served.")
    pilot, fit = (
        fit_top_tier(probabilities[half], rows.labels[half], most, delta=delta, highest=highest)
        for half in (asked, fitting)
    )
    share = float((probabilities[asked, -1] >= pilot.threshold).mean()) if asked.any() else 1.0
    frontier = float(rows.labels[:, -1].sum())
    why, feasible = f"A top-tier miss of {beta:g} is infeasible", False
    if frontier < FEWEST_FRONTIER:
        notes.append(f"{why}: {frontier:.0f} frontier rows are held out, it takes {FEWEST_FRONTIER}.")
    elif not (asked.any() and fitting.any()):
        notes.append(
            f"{why}: all rows are of one group, which is not halved into rows that fit it and rows that say what it "
            "costs; give rows of several groups, or --delta."
        )
    elif needed := max(pilot.rows_needed or 0, fit.rows_needed or 0):
        where = "are held out" if delta else "are in one of two halves"
        notes.append(f"{why}: {min(pilot.n, fit.n)} frontier rows {where}, it takes {needed}.")
    elif not highest:
        notes.append(f"{why} on the further rows: their frontier rows are too few, or not told apart.")
    elif not fit.feasible or share > MOST_TO_TOP_TIER:
        trade = "; ".join(f"{b:g} costs {s:.0%}" for b, s in top_tier_trade_off(probabilities, rows, targets))
        notes.append(
            f"{why} in practice: it would send {share:.0%} of traffic to frontier, and {MOST_TO_TOP_TIER:.0%} is the "
            f"most that is served. Missing at most {trade} of traffic."
        )
    else:
        feasible = True
    return fit.threshold if feasible else 0.0, _guarantee(replace(fit, feasible=feasible), beta, rows, targets)


def top_tier_trade_off(
    probabilities: NDArray[np.float32], rows: CalibrationSet, targets: Targets
) -> list[tuple[float, float]]:
    """What missing at most β of the frontier requests, exploration included, costs: (β, share sent to frontier)."""
    curve = []
    for beta in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7):
        if beta > targets.epsilon:
            fit = fit_top_tier(probabilities, rows.labels, unexplored(beta, targets.epsilon), delta=targets.delta)
            curve.append((beta, float((probabilities[:, -1] >= fit.threshold).mean())))
    return curve
