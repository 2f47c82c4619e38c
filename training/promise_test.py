"""Do fresh labelled rows refute what a bundle's policies promise? An exact test, and an interval for the risk itself.

A promise on the expectation is about the calibration set and the next request *together*: the λ that was drawn with one
calibration set may have a risk above α without breaking it. So a promise is tested as what it says: that fresh rows and
calibration rows are alike. If c of n calibration rows may be lost, the risk of the λ that loses no more is at most
Beta(c + 1, n - c) distributed, with ties less, so that the misses among m fresh rows are at most
BetaBinomial(m, c + 1, n - c) distributed. With δ the same c follows from the binomial bound, and the same test holds.

Knows nothing of files or commands.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from classifier.bundle import Bundle
from classifier.engine import Engine
from classifier.errors import InputError
from classifier.policy import ALWAYS_FRONTIER, Guarantee, Policy
from classifier.types import TIERS
from training.calibration_set import CalibrationSet
from training.policy_fit import chosen_by
from training.risk_control import SHIFTED, SIGNIFICANCE, allowed_loss, binomial_p_value, unexplored

TOP_TIER = "frontier misses"
ESTIMATED = "estimated risk"
"""What is tested of a policy that promises nothing, but has a threshold by an estimate of the new tier shares."""


def known_rows(rows: CalibrationSet, bundle: Bundle) -> NDArray[np.bool_]:
    """Which rows' requests fitted the bundle's map or thresholds, so that it looks better on them: (n,) bool.

    Raises:
        InputError: all of them, or there is none.
    """
    if not len(rows):
        raise InputError("no row has a closed label, so nothing can be judged; label some rows of your traffic")
    known = rows.calibrated(bundle.manifest)
    if known.all():
        raise InputError(
            f"{known.sum()} of {len(rows)} rows fitted the bundle's probabilities or thresholds; it can only be judged "
            "on rows that it has not seen"
        )
    return known


def check(engine: Engine, rows: CalibrationSet, *, seed: int = 0) -> dict[str, Any]:
    """Each promise of a bundle, and each estimate that promises nothing, beside the misses on fresh rows.

    One is *refuted* where so many misses would be seen with probability below 5 %, shared out over all of them, if the
    rows were like the calibration set. Else the interval says how much they could have shown.

    Args:
        engine: of the bundle to check.
        rows: labelled, of the kind of label that the promises are about, not seen by the bundle. Soft labels are drawn.
        seed: of those draws.

    Returns:
        `policies`: for each, and each group that it promises something: name, group or "", `what` ("risk", `TOP_TIER`
        or `ESTIMATED`), alpha, n, not_covered (rows of groups for which nothing is promised), risk with its exact 95 %
        interval, p_value and refuted; `left_out`: names of policies whose alpha bounds a weighted loss, which counting
        misses cannot test; `known`: rows whose request fitted the bundle's map or thresholds. They show nothing new, so
        that risk and interval are without them; but where traffic repeats itself the others are not all of it, so a
        promise is refuted only where it is with them as well; `repeats`: rows whose request is that of another row.
        Each counts as drawn by itself: where only the file repeats itself, too much is refuted.

    Raises:
        InputError: no policy is feasible, the labels are of the other kind, no row is covered, or the bundle's map or
            thresholds were fitted on every row.
    """
    feasible = {name: p for name, p in engine.policies.items() if p.guarantee.feasible}
    counted = {name: p for name, p in feasible.items() if not p.guarantee.severity}
    if not counted:
        raise InputError("the bundle promises nothing that can be checked; run 'python -m training calibrate' first")
    labels = {p.guarantee.label for p in counted.values()}
    if labels != {rows.label}:
        raise InputError(f"the bundle promises about {sorted(labels)} labels, the rows carry {rows.label} labels")
    known = known_rows(rows, engine.bundle)
    probabilities, truth = engine.bundle.calibration.apply(rows.logits), rows.drawn(seed).labels.argmax(axis=1)
    entries = []
    fitted = dict(engine.bundle.manifest.get("calibration") or {}).get("groups", {})
    for name, policy in counted.items():
        missed = chosen_by(policy, probabilities, rows) < truth
        what = "risk" if policy.guarantee.proved else ESTIMATED
        about = promised(policy, rows, fitted)
        outside = int((~np.any([part for _, part in about.values()], axis=0) & ~known).sum())
        some = {group: found for group, found in about.items() if (found[1] & ~known).any()}
        for group, (promise, part) in (some or {"": (policy.guarantee, np.zeros(len(rows), dtype=bool))}).items():
            entry = _entry(name, what, promise, policy.epsilon, missed, part, known)
            entries.append(entry | {"group": group, "not_covered": outside})
        top, frontier = policy.top_tier_guarantee, truth == len(TIERS) - 1
        if top is not None and top.proved and policy.top_tier_threshold and (frontier & ~known).any():
            entries.append(_entry(name, TOP_TIER, top, policy.epsilon, missed, frontier, known) | {"group": ""})
    if not any(entry["n"] for entry in entries):
        raise InputError("no row is of a group that the bundle's policies promise something for; label rows that are")
    for entry in entries:
        entry["refuted"] = entry["p_value"] < SIGNIFICANCE / len(entries)
    return {
        "label": rows.label,
        "bundle_version": engine.bundle_version,
        "policies": entries,
        "left_out": sorted(set(feasible) - set(counted)),
        "known": int(known.sum()),
        "repeats": rows.repeats,
    }


def promised(
    policy: Policy, rows: CalibrationSet, fitted: Mapping[str, int]
) -> dict[str, tuple[Guarantee, NDArray[np.bool_]]]:
    """By group what is promised, and of which rows, (n,) bool; under "" where nothing goes by groups.

    A promise by group is about each one that has a feasible threshold, and rests on that group's calibration rows.

    Args:
        policy: what promises.
        rows: those to be told apart.
        fitted: calibration rows of each group; of one that is not in it those of all count.
    """
    if not policy.group_by:
        return {"": (policy.guarantee, np.ones(len(rows), dtype=bool))}
    return {
        group: (
            replace(policy.guarantee, n=fitted.get(group, policy.guarantee.n)),
            rows.facets[policy.group_by] == group,
        )
        for group, threshold in policy.group_thresholds.items()
        if threshold < ALWAYS_FRONTIER
    }


def _entry(
    name: str,
    what: str,
    promise: Guarantee,
    epsilon: float,
    missed: NDArray[np.bool_],
    about: NDArray[np.bool_],
    known: NDArray[np.bool_],
) -> dict[str, Any]:
    """A line of `check`: misses (n,) bool of all rows, those that the promise is about, and those it was fitted on."""
    fresh = about & ~known
    n, count = int(fresh.sum()), int(missed[fresh].sum())
    alpha = unexplored(promise.alpha, epsilon)
    if n:
        interval = scipy.stats.binomtest(count, n).proportion_ci(0.95, "exact")
        p_value = max(
            promise_p_value(promise, alpha, int(some.sum()), int(missed[some].sum())) for some in (fresh, about)
        )
    return {
        "name": name,
        "what": what,
        "alpha": promise.alpha,
        "n": n,
        "not_covered": 0,
        "risk": count / n if n else None,
        "low": float(interval.low) if n else None,
        "high": float(interval.high) if n else None,
        "p_value": p_value if n else 1.0,
    }


def promise_p_value(promise: Guarantee, alpha: float, n: int, missed: int) -> float:
    """Chance of at least `missed` misses among `n` fresh rows that are like the calibration set.

    Label-weighted thresholds prove nothing, so they are tested as what they estimate: a risk of alpha.

    >>> fit = Guarantee(0.1, 0.0, "CONFORMAL_RISK_CONTROL", "RUBRIC", 99, 0.09, 0.1, feasible=True)
    >>> round(promise_p_value(fit, 0.1, 300, 45), 2), round(binomial_p_value(45, 300, 0.1), 3)
    (0.09, 0.004)
    """
    if promise.method == SHIFTED:
        return binomial_p_value(missed, n, alpha)
    lost = max(0, math.floor(allowed_loss(promise.n, alpha, promise.delta, promise.method) + 1e-9))
    return float(scipy.stats.betabinom.sf(missed - 1, n, lost + 1, max(promise.n - lost, 1)))


def as_text(found: Mapping[str, Any]) -> str:
    """A Markdown table of `check`."""
    lines = ["| policy | promise | rows | seen | 95 % interval | verdict |", "|---|---:|---:|---:|---|---|"]
    for e in found["policies"]:
        promise = f"{'none; estimated ' if e['what'] == ESTIMATED else ''}<= {e['alpha']:g}"
        if not e["n"]:
            lines.append(f"| {e['name']} | {promise} | 0 | - | - | no row is of a group that it covers |")
            continue
        what = f", {e['group']}" if e["group"] else f", {e['what']}" if e["what"] == TOP_TIER else ""
        lines.append(
            f"| {e['name']}{what} | {promise} | {e['n']} | {e['risk']:.3f} | {e['low']:.3f} to {e['high']:.3f} "
            f"| {'refuted' if e['refuted'] else 'not refuted'} (p = {e['p_value']:.3f}) |"
        )
    outside = max(e["not_covered"] for e in found["policies"])
    notes = [f"{outside} rows are of groups for which nothing is promised."] if outside else []
    if found["known"]:
        notes.append(
            f"{found['known']} rows are left out: the bundle's probabilities or thresholds were fitted on their "
            "requests. Where these come again in traffic its risk is another, so a promise is called refuted only "
            "where it is with them as well."
        )
    if found["repeats"]:
        notes.append(
            f"{found['repeats']} rows repeat a request of another row. Each counts, as it does in traffic; where only "
            "the file repeats itself, leave them out: verdicts and intervals take each for a new one."
        )
    if found["left_out"]:
        names = ", ".join(found["left_out"])
        notes.append(f"{names}: what is bounded is a weighted loss, which counting misses cannot test.")
    if estimated := [e["name"] for e in found["policies"] if e["what"] == ESTIMATED]:
        notes.append(f"{', '.join(estimated)}: an estimate that assumes that only the tier shares changed, no promise.")
    return "\n".join([*lines, *([""] if notes else []), *notes])
