"""Does the promise hold? On your own labelled traffic, over random halves, and on sources that it was not fitted on.

- `check`: a bundle's policies as they stand, against labelled rows that it has not seen: a test that can refute them.
- `half_splits`: thresholds fitted on one random half and judged on the other, many times: the promise itself.
- `transfer`: thresholds fitted on all sources but one and judged on that one: what the promise does *not* cover, and
  what a hundred labelled rows of the new source bring.

Knows nothing of how a bundle is written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from classifier.calibration import IDENTITY, Calibration
from classifier.engine import Engine
from classifier.errors import GateNotMet, InputError
from classifier.policy import choose_many
from training.calibrate import parse_policies
from training.calibration_report import under
from training.calibration_set import CalibrationSet, read_predictions, read_set
from training.policy_fit import thresholds_of
from training.risk_control import fit_threshold
from training.step_losses import routing_losses

FEWEST_IN_SOURCE = 50
OWN_ROWS = (100, 300)
SIGNIFICANCE = 0.05
REPEATS = 20


def check(engine: Engine, rows: CalibrationSet, *, seed: int = 0) -> dict[str, Any]:
    """Each feasible policy's risk on the rows beside its promise, with an exact test.

    A promise is *refuted* where so many misses would be seen with probability below 5 %, shared out over the policies,
    if it held. Where it is not refuted, the interval says how much the rows could have shown.

    Args:
        engine: of the bundle to check.
        rows: labelled, of the kind of label that the promises are about, not seen by the bundle. Soft labels are drawn.
        seed: of those draws.

    Raises:
        InputError: no policy is feasible, or the labels are of the other kind.
    """
    promised = {name: p for name, p in engine.policies.items() if p.guarantee.feasible and not p.guarantee.severity}
    if not promised:
        raise InputError("the bundle promises nothing that can be checked; run 'python -m training calibrate' first")
    labels = {p.guarantee.label for p in promised.values()}
    if labels != {rows.label}:
        raise InputError(f"the bundle promises about {sorted(labels)} labels, the rows carry {rows.label} labels")
    probabilities, hard = engine.bundle.calibration.apply(rows.logits), rows.drawn(seed)
    entries = []
    for name, policy in promised.items():
        chosen = choose_many(probabilities, thresholds_of(policy, rows), policy.top_tier_threshold)
        missed = int(under(chosen, hard.labels).sum())
        # Exploration sends up to a share of epsilon lower on purpose: the thresholds left that room.
        alpha = policy.guarantee.alpha - policy.epsilon
        interval = stats.binomtest(missed, len(rows)).proportion_ci(0.95, "exact")
        p_value = float(stats.binomtest(missed, len(rows), alpha, alternative="greater").pvalue)
        entries.append(
            {
                "name": name,
                "alpha": policy.guarantee.alpha,
                "n": len(rows),
                "risk": missed / len(rows),
                "low": float(interval.low),
                "high": float(interval.high),
                "p_value": p_value,
                "refuted": p_value < SIGNIFICANCE / len(promised),
            }
        )
    return {"label": rows.label, "bundle_version": engine.bundle_version, "policies": entries}


def half_splits(
    rows: CalibrationSet,
    alphas: Mapping[str, float],
    *,
    calibration: Calibration = IDENTITY,
    delta: float = 0.0,
    splits: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Thresholds fitted on a random half and judged on the other, both ways: the mean risk, and how often it is above.

    Judging both ways takes most of the luck of the split out of the mean: what one half has too much the other lacks.

    Args:
        rows: one population. Groups are not split.
        alphas: policy → target.
        calibration: probability map, fitted on other rows.
        delta: as for `fit_threshold`.
        splits: random splits.
        seed: of the splits.
    """
    probabilities = calibration.apply(rows.logits)
    risks: dict[str, list[list[float]]] = {name: [] for name in alphas}
    for i in range(splits):
        sides = [routing_losses(probabilities[half], rows.labels[half]) for half in rows.halves(seed + i)]
        for name, alpha in alphas.items():
            fits = [(fit_threshold(side, alpha, delta=delta), other) for side, other in (sides, sides[::-1])]
            risks[name].append([other.risk(fit.threshold) for fit, other in fits if fit.feasible])
    table = {}
    for name, found in risks.items():
        single, means = np.concatenate(found), np.array([np.mean(pair) for pair in found if pair])
        table[name] = {
            "alpha": alphas[name],
            "n": len(rows),
            "splits": splits,
            "halves": 2 * splits,
            "feasible": len(single),
            "mean_risk": float(single.mean()) if single.size else None,
            "standard_error": float(means.std() / np.sqrt(means.size)) if single.size else None,
            "above_alpha": float((single > alphas[name]).mean()) if single.size else None,
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
        For each policy: `sources` (n, risk, cheap share; with own rows where enough are left to judge on), and the
        mean and worst risk over sources, all for sources with at least `FEWEST_IN_SOURCE` rows.

    Raises:
        InputError: no source is large enough, or there is only one.
    """
    names, counts = np.unique(rows.sources, return_counts=True)
    large = [str(name) for name, count in zip(names, counts, strict=True) if count >= FEWEST_IN_SOURCE]
    if not large or len(names) < 2:
        raise InputError(
            f"it takes two sources, one of them of {FEWEST_IN_SOURCE} rows; the largest of {len(names)} has "
            f"{counts.max()}"
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
                if own.sum() >= size + FEWEST_IN_SOURCE:
                    entry[f"risk_with_{size}"], entry[f"cheap_share_with_{size}"] = _own_rows(p, y, alpha, size, seed)
            sources[name] = entry
        summary: dict[str, Any] = {"alpha": alpha, "sources": sources}
        for key in ("risk", *(f"risk_with_{size}" for size in OWN_ROWS)):
            risks = [entry[key] for entry in sources.values() if key in entry]
            if risks:
                summary[key] = {"mean": float(np.mean(risks)), "worst": float(np.max(risks)), "sources": len(risks)}
                # The same sources before, so that the comparison is fair.
                fair = [entry["risk"] for entry in sources.values() if key in entry]
                summary[key] |= {"mean_without": float(np.mean(fair)), "worst_without": float(np.max(fair))}
        table[policy] = summary
    return table


def _own_rows(
    p: NDArray[np.float32], y: NDArray[np.float64], alpha: float, size: int, seed: int
) -> tuple[float, float]:
    rng, risks, cheap = np.random.default_rng(seed), [], []
    for _ in range(REPEATS):
        order = rng.permutation(len(p))
        fit, held = order[:size], order[size:]
        chosen = choose_many(p[held], fit_threshold(routing_losses(p[fit], y[fit]), alpha).threshold)
        risks.append(float(under(chosen, y[held]).mean()))
        cheap.append(float((chosen <= 1).mean()))
    return float(np.mean(risks)), float(np.mean(cheap))


def check_as_text(found: Mapping[str, Any]) -> str:
    """A Markdown table of `check`."""
    lines = ["| policy | promise | rows | risk seen | 95 % interval | verdict |", "|---|---:|---:|---:|---|---|"]
    lines += [
        f"| {e['name']} | <= {e['alpha']:g} | {e['n']} | {e['risk']:.3f} | {e['low']:.3f} to {e['high']:.3f} | "
        f"{'refuted' if e['refuted'] else 'not refuted'} (p = {e['p_value']:.3f}) |"
        for e in found["policies"]
    ]
    return "\n".join(lines)


def study_as_text(found: Mapping[str, Any]) -> str:
    """Markdown tables of `half_splits` and `transfer`."""
    lines = [
        "| policy | promise | mean risk on the other half | halves above | feasible |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, e in found["half_splits"].items():
        seen = (
            f"{e['mean_risk']:.4f} ± {e['standard_error']:.4f} | {e['above_alpha']:.0%}" if e["feasible"] else "- | -"
        )
        lines.append(f"| {name} | <= {e['alpha']:g} | {seen} | {e['feasible']} of {e['halves']} |")
    if found["transfer"]:
        lines += [
            "",
            "| policy | fitted on | sources | mean risk | worst risk | the same without own rows |",
            "|---|---|---:|---:|---:|---|",
        ]
    for name, e in found["transfer"].items():
        for key, what in (("risk", "other sources"), *((f"risk_with_{n}", f"{n} own rows") for n in OWN_ROWS)):
            if key in e:
                v = e[key]
                same = "" if key == "risk" else f"{v['mean_without']:.3f} mean, {v['worst_without']:.3f} worst"
                risks = f"{v['mean']:.3f} | {v['worst']:.3f} | {same}"
                lines.append(f"| {name} ({e['alpha']:g}) | {what} | {v['sources']} | {risks} |")
    return "\n".join(lines)


@click.command("guarantee")
@click.option("--bundle", type=click.Path(path_type=Path), help="Check this bundle's promises on --data.")
@click.option("--data", multiple=True, help="Labelled rows that the bundle has not seen. Repeatable.")
@click.option(
    "--predictions", type=click.Path(path_type=Path), help="A .npz: half-splits and transfer between sources."
)
@click.option("--policy", "policies", multiple=True, metavar="NAME=ALPHA", show_default=True,
              default=("economy=0.20", "balanced=0.10", "quality=0.05"), help="For --predictions.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def command(
    bundle: Path | None, data: tuple[str, ...], predictions: Path | None, policies: tuple[str, ...], seed: int,
    as_json: bool,
) -> None:  # fmt: skip
    """Check what a bundle promises on your own labelled traffic; exit with 3 where a promise is refuted.

    Example: python -m training guarantee --bundle runs/base/bundle --data mine.jsonl
    """
    if (bundle is None) == (predictions is None) or (bundle is not None) != bool(data):
        raise click.UsageError("give --bundle with --data, or --predictions alone")
    if predictions is not None:
        rows, alphas = read_predictions(predictions), parse_policies(policies)
        found = {"half_splits": half_splits(rows, alphas, seed=seed), "transfer": {}}
        try:
            found["transfer"] = transfer(rows, alphas, seed=seed)
        except InputError as error:
            click.echo(f"no transfer table: {error}", err=True)
        click.echo(json.dumps(found, indent=1) if as_json else study_as_text(found))
        return
    assert bundle is not None
    engine = Engine.from_pretrained(bundle)
    group_by = {p.group_by for p in engine.policies.values() if p.group_by}
    found = check(engine, read_set(list(data), engine, next(iter(group_by), "")), seed=seed)
    click.echo(json.dumps(found, indent=1) if as_json else check_as_text(found))
    refuted = [e["name"] for e in found["policies"] if e["refuted"]]
    if refuted:
        raise GateNotMet(
            f"{', '.join(refuted)}: the promise does not hold on these rows; recalibrate on rows like them with "
            "'python -m training calibrate'"
        )
