"""How far does a promise carry? Over random halves of one population, and to sources that it was not fitted on.

- `half_splits`: thresholds fitted on one random half and judged on the other, many times: the promise itself.
- `transfer`: thresholds fitted on all sources but one and judged on that one: what the promise does *not* cover, and
  what a hundred labelled rows of the new source bring.
- `calibration_across`: a probability map chosen and fitted without a row's source, beside no map.

Knows nothing of bundles or files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier.calibration import IDENTITY, Calibration
from classifier.errors import InputError
from classifier.intervals import Interval, bootstrap_interval, mean, ranged
from classifier.metrics import calibration_error
from classifier.policy import choose_many
from classifier.types import TIERS
from training.calibration_fit import FEWEST_FOR_MAP, FOLDS, compare, expected_scores
from training.calibration_report import BOOTSTRAPS, FEWEST_IN_SOURCE, under
from training.calibration_set import CalibrationSet
from training.risk_control import SIGNIFICANCE, binomial_p_value, fit_threshold
from training.step_losses import routing_losses

FEWEST_TO_HALVE = 20
OWN_ROWS = (100, 300)
SPLITS = 200
"""Random halvings: they leave a standard error of the mean risk far below the risk promised."""
REPEATS = 20
_FITTED_ON = {"risk": "other sources"} | {f"risk_with_{n}": f"{n} own rows" for n in OWN_ROWS}


def half_splits(
    rows: CalibrationSet,
    alphas: Mapping[str, float],
    *,
    calibration: Calibration = IDENTITY,
    seed: int = 0,
) -> dict[str, Any]:
    """Thresholds fitted on a random half and judged on the other, both ways: the mean risk, and how often it is above.

    Judging both ways takes most of the luck of the split out of the mean: what one half has too much the other lacks. A
    half on which the target is infeasible sends all to frontier and counts with that: the mean of the others alone is
    one of halves that look safer than they are.

    Args:
        rows: one population. Groups are not split.
        alphas: policy → target.
        calibration: probability map, fitted on other rows.
        seed: of the `SPLITS` random splits.

    Returns:
        For each policy alpha, n, splits, halves and how many of these were feasible; `mean_risk`, with the
        `standard_error` that the draw of splits leaves in it (not that of the rows); `above_alpha`, a share of halves.

    Raises:
        InputError: the rows are too few to halve, or all of one group.
    """
    if len(rows) < FEWEST_TO_HALVE or len(np.unique(rows.groups)) < 2:
        raise InputError(
            f"{len(rows)} rows of {len(np.unique(rows.groups))} groups cannot be halved into something to fit on and "
            f"something to judge on; it takes {FEWEST_TO_HALVE} rows of two groups"
        )
    probabilities = calibration.apply(rows.logits)
    risks: dict[str, list[list[float]]] = {name: [] for name in alphas}
    feasible = dict.fromkeys(alphas, 0)
    for i in range(SPLITS):
        sides = [routing_losses(probabilities[half], rows.labels[half]) for half in rows.halves(seed + i)]
        for name, alpha in alphas.items():
            fits = [(fit_threshold(side, alpha), other) for side, other in (sides, sides[::-1])]
            risks[name].append([other.risk(fit.threshold) for fit, other in fits])
            feasible[name] += sum(fit.feasible for fit, _ in fits)
    table = {}
    for name, found in risks.items():
        single, means = np.concatenate(found), np.mean(found, axis=1)
        table[name] = {
            "alpha": alphas[name],
            "n": len(rows),
            "splits": SPLITS,
            "halves": 2 * SPLITS,
            "feasible": feasible[name],
            "mean_risk": float(single.mean()),
            "standard_error": float(means.std() / np.sqrt(means.size)),
            "above_alpha": float((single > alphas[name]).mean()),
        }
    return table


def transfer(
    rows: CalibrationSet, alphas: Mapping[str, float], *, calibration: Calibration = IDENTITY, seed: int = 0
) -> dict[str, Any]:
    """Risk on each source when thresholds were fitted on the others, and when fitted on some of its own rows.

    Args:
        rows: of several sources; the logits had best be predictions of models that did not train on the row's source.
        alphas: policy → target.
        calibration: probability map.
        seed: of the draws of own rows; each number is a mean over `REPEATS` of them.

    Returns:
        For each policy: `sources` (n, risk, cheap share; with own rows where enough are left to judge on, and no group
        has so many that it would be one of the two sides), the mean and worst risk over sources, all for sources with
        at least `FEWEST_IN_SOURCE` rows, and how many sources are above alpha, and how many of them beyond chance
        (exact binomial test, 5 % shared out over the sources): the worst of many small sources is above alpha by chance
        alone.

    Raises:
        InputError: no source is large enough, or there is only one.
    """
    names, counts = np.unique(rows.sources, return_counts=True)
    large = [str(name) for name, count in zip(names, counts, strict=True) if count >= FEWEST_IN_SOURCE]
    if not large or len(names) < 2:
        raise InputError(
            f"it takes two sources, one of them of {FEWEST_IN_SOURCE} rows; the largest of {len(names)} has "
            f"{counts.max(initial=0)}"
        )
    probabilities = calibration.apply(rows.logits)
    table: dict[str, Any] = {}
    for policy, alpha in alphas.items():
        sources = {}
        for name in large:
            own = rows.sources == name
            threshold = fit_threshold(routing_losses(probabilities[~own], rows.labels[~own]), alpha).threshold
            p, y = probabilities[own], rows.labels[own]
            chosen = choose_many(p, threshold)
            entry = {
                "n": int(own.sum()),
                "risk": float(under(chosen, y).mean()),
                "cheap_share": float((chosen <= 1).mean()),
            }
            for size in OWN_ROWS:
                if own.sum() >= size + FEWEST_IN_SOURCE and rows.take(own).largest_group <= FEWEST_IN_SOURCE:
                    entry[f"risk_with_{size}"], entry[f"cheap_share_with_{size}"] = _own_rows(
                        rows.take(own), p, alpha, size, seed
                    )
            sources[name] = entry
        above = [entry for entry in sources.values() if entry["risk"] > alpha]
        summary: dict[str, Any] = {
            "alpha": alpha,
            "sources": sources,
            "above": len(above),
            "surely_above": sum(_surely_above(entry, alpha, len(sources)) for entry in above),
        }
        for key in _FITTED_ON:
            risks = [entry[key] for entry in sources.values() if key in entry]
            if risks:
                summary[key] = {"mean": float(np.mean(risks)), "worst": float(np.max(risks)), "sources": len(risks)}
                # The same sources before, so that the comparison is fair.
                fair = [entry["risk"] for entry in sources.values() if key in entry]
                summary[key] |= {"mean_without": float(np.mean(fair)), "worst_without": float(np.max(fair))}
        table[policy] = summary
    return table


def _own_rows(own: CalibrationSet, p: NDArray[np.float32], alpha: float, size: int, seed: int) -> tuple[float, float]:
    """Mean risk and cheap share on a source's other rows where about `size` of its own, in whole groups, fit."""
    y, risks, cheap = own.labels, [], []
    for i in range(REPEATS):
        fit = own.drawn_groups(size, seed + i)
        chosen = choose_many(p[~fit], fit_threshold(routing_losses(p[fit], y[fit]), alpha).threshold)
        risks.append(float(under(chosen, y[~fit]).mean()))
        cheap.append(float((chosen <= 1).mean()))
    return float(np.mean(risks)), float(np.mean(cheap))


def _surely_above(entry: Mapping[str, Any], alpha: float, tests: int) -> bool:
    return binomial_p_value(round(entry["n"] * entry["risk"]), entry["n"], alpha) < SIGNIFICANCE / tests


def calibration_across(rows: CalibrationSet, *, current: Calibration = IDENTITY, seed: int = 0) -> dict[str, Any]:
    """Is a probability map that never saw a row's source better than the map at hand, and is it calibrated?

    For each fold of whole sources the map is chosen among all methods by cross-validation over the *other* sources,
    fitted on them, and judged on the fold: choosing is part of what is judged.

    Args:
        rows: of several sources, with logits of models that did not train on the row's source.
        current: the map at hand.
        seed: of drawn labels, null bands and intervals.

    Returns:
        `n`, `sources`; `before` and `after`, each with its ranked probability score and, by boundary, the debiased
        calibration error with its null band and the distance above it (0 inside); `gain`: how much lower the score is
        after, with an interval that resamples whole sources; `methods`: how often each was chosen.

    Raises:
        InputError: too few rows or sources to leave some out.
    """
    from sklearn.model_selection import GroupKFold

    sources = len(np.unique(rows.sources))
    if sources < FOLDS or len(rows) < 2 * FEWEST_FOR_MAP:
        raise InputError(
            f"{len(rows)} rows of {sources} sources: fitting probabilities without a row's source takes "
            f"{2 * FEWEST_FOR_MAP} rows of {FOLDS} sources"
        )
    after, methods = np.empty((len(rows), rows.logits.shape[1]), dtype=np.float32), []
    for fit, held in GroupKFold(FOLDS).split(rows.logits, groups=rows.sources):
        part = rows.take(fit)
        found = compare(part.logits, part.labels, sources=part.sources, groups=part.groups, label=rows.label)
        after[held] = found.calibration.apply(rows.logits[held])
        methods.append(found.calibration.method)
    before, hard = current.apply(rows.logits), rows.drawn(seed).labels.argmax(axis=1)

    def judged(probabilities: NDArray[np.float32]) -> dict[str, Any]:
        errors = calibration_error(probabilities, hard, seed=seed)
        return {
            "ranked_probability_score": float(expected_scores(probabilities, rows.labels).mean()),
            "calibration_error": [
                asdict(e) | {"within_null": e.within_null, "beyond": max(0.0, e.error - e.null_high)} for e in errors
            ],
        }

    gained = expected_scores(before, rows.labels) - expected_scores(after, rows.labels)
    gain = bootstrap_interval(mean(gained), len(gained), groups=rows.sources, draws=BOOTSTRAPS, seed=seed)
    return {
        "n": len(rows),
        "sources": sources,
        "before": {"method": current.method} | judged(before),
        "after": judged(after),
        "gain": gain._asdict(),
        "methods": {name: methods.count(name) for name in sorted(set(methods))},
    }


def halves_as_text(found: Mapping[str, Any]) -> str:
    """A Markdown table of `half_splits`."""
    lines = [
        "| policy | target | rows | mean risk on the other half ± what more splits would change | halves above "
        "| feasible |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, e in found.items():
        seen = f"{e['mean_risk']:.4f} ± {e['standard_error']:.4f} | {e['above_alpha']:.0%}"
        lines.append(f"| {name} | <= {e['alpha']:g} | {e['n']} | {seen} | {e['feasible']} of {e['halves']} |")
    return "\n".join(lines)


def transfer_as_text(found: Mapping[str, Any]) -> str:
    """Markdown tables of `transfer`: the summary, then every source, worst first."""
    lines = [
        "| policy | fitted on | sources | mean risk | worst risk | the same without own rows | above, beyond chance |",
        "|---|---|---:|---:|---:|---|---|",
    ]
    for name, e in found.items():
        for key, what in _FITTED_ON.items():
            if key in e:
                v, bare = e[key], key == "risk"
                same = "" if bare else f"{v['mean_without']:.3f} mean, {v['worst_without']:.3f} worst"
                above = f"{e['above']}, {e['surely_above']}" if bare else ""
                risks = f"{v['mean']:.3f} | {v['worst']:.3f} | {same} | {above}"
                lines.append(f"| {name} ({e['alpha']:g}) | {what} | {v['sources']} | {risks} |")
    first = next(iter(found.values()))["sources"]
    worst_first = sorted(first, key=lambda source: -sum(e["sources"][source]["risk"] for e in found.values()))
    lines += [
        "",
        "Risk of each source: fitted on the others, on "
        + " and on ".join(f"{n} of its own rows" for n in OWN_ROWS)
        + " where it has as many and some to judge on.",
        "",
        "| source | rows | " + " | ".join(f"{name} ({e['alpha']:g})" for name, e in found.items()) + " |",
        "|---|---:|" + "---:|" * len(found),
    ]
    for source in worst_first:
        cells = [
            " / ".join(f"{e['sources'][source][key]:.3f}" for key in _FITTED_ON if key in e["sources"][source])
            for e in found.values()
        ]
        lines.append(f"| {source} | {first[source]['n']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def calibration_as_text(found: Mapping[str, Any]) -> str:
    """Markdown tables of `calibration_across`."""
    before, after, gain = found["before"], found["after"], found["gain"]
    lines = [
        f"{found['n']} rows of {found['sources']} sources, each judged with a map that saw none of its source",
        "",
        "| probabilities | map | ranked probability score |",
        "|---|---|---:|",
        f"| before | {before['method']} | {before['ranked_probability_score']:.4f} |",
        "| after | "
        + ", ".join(f"{name} ({n} of {FOLDS} folds)" for name, n in found["methods"].items())
        + f" | {after['ranked_probability_score']:.4f} |",
        f"| lower by | | {ranged(Interval(**gain), 4)} |",
        "",
        "| P(label <= t) | error before | error after | a perfect model's, 95 % | beyond it |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {TIERS[b['tier']].label} | {b['error']:+.3f} | {a['error']:+.3f} | "
        f"{a['null_low']:+.3f} to {a['null_high']:+.3f} | "
        + ("within |" if a["within_null"] else f"{a['beyond']:.3f} |")
        for b, a in zip(before["calibration_error"], after["calibration_error"], strict=True)
    ]
    return "\n".join(lines)
