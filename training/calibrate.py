"""Recalibration: labelled rows in, the same weights with new probabilities and thresholds out, in seconds.

The probability map and the thresholds are fitted on different rows, because a threshold's proof takes the scores as
given: with `fit_paths` on those; else, from `FEWEST_TO_SPLIT` rows on, on one half each; else the bundle's map is kept
and every row goes to the thresholds. A new map is taken only where it predicts better than the bundle's own.

Knows nothing of training: no torch, no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier.bundle import Bundle, check_new, write_bundle
from classifier.calibration import METHODS, Calibration
from classifier.checksums import sha256
from classifier.drift import reference_distributions
from classifier.engine import Engine
from classifier.errors import InputError, SettingsError
from classifier.inputs import INPUT_VERSION
from classifier.policy import Policy
from classifier.policy_file import policies_to_json
from classifier.types import Request
from training.audit_set import read_rows, read_traffic
from training.calibration_fit import Comparison, choose_map
from training.calibration_report import PRICES, curves, measure_calibration, measure_policy
from training.calibration_set import MAP_ROWS, THRESHOLD_ROWS, CalibrationSet, pack_rows
from training.calibration_text import as_text
from training.decision_log import AUDIT
from training.label_shift import shift_weights
from training.policy_fit import Targets, fit_policies, shown
from training.step_losses import EVERY_MISS

LARGE_GROUP = 0.05
"""A group that holds more than this share of the rows is told to the reader."""
CARD_START, CARD_END = "<!-- policies -->", "<!-- /policies -->"


def calibrate(
    bundle_path: str | Path,
    data_paths: Sequence[str | Path],
    out_path: str | Path,
    *,
    policies: Mapping[str, float],
    delta: float | None = None,
    top_tier_miss: float | None = None,
    group_by: str | None = None,
    severity: Sequence[float] | None = None,
    epsilon: float = 0.0,
    exempt_labels: Sequence[str] = (),
    prior_shift: Sequence[str | Path] | None = None,
    fit_paths: Sequence[str | Path] | None = None,
    also_paths: Sequence[str | Path] | None = None,
    default: str | None = None,
    prices: Sequence[float] = PRICES,
    methods: tuple[str, ...] = METHODS,
    audit: tuple[str, str] = AUDIT,
    seed: int = 0,
) -> dict[str, Any]:
    """Writes a bundle with the same weights, recalibrated, and says what changed.

    Args:
        bundle_path: the bundle to start from.
        data_paths: labelled rows that it was not trained on, of one kind of label, or an export of the feedback store.
        out_path: folder of the new bundle; must not exist.
        policies: name → alpha.
        delta: None for promises on the expectation.
        top_tier_miss: None for no top-tier threshold.
        group_by: None, "script", or a label that the gateway sends.
        severity: None for 1, 1, 1.
        epsilon: share of requests that will be explored; the thresholds leave room for it.
        exempt_labels: `name=value` or `name`: requests with such a label are never explored.
        prior_shift: unlabelled traffic, or an export of the feedback store, whose tier shares the thresholds are moved
            to, under an assumption.
        fit_paths: other rows to fit the probability map on, e.g. predictions across sources (`.npz`).
        also_paths: rows of other kinds, e.g. predictions across sources (`.npz`), on which the thresholds must keep
            the promise as well: the stricter threshold of the two is taken.
        default: policy for requests that name none; by default the bundle's, where it still exists, else the first.
        prices: dollars a million tokens, cheapest tier first; only for the report.
        methods: maps that are compared; none of them keeps the bundle's, and every row goes to the thresholds.
        audit: name and value of the label that marks audits in an export.
        seed: of the split, of drawn labels and of intervals.

    Returns:
        The report, plain JSON values.

    Raises:
        InputError: rows that cannot be used.
        SettingsError: targets that contradict one another.
        BundleError: the bundle cannot be read, or `out_path` exists or cannot be made.
    """
    targets = Targets(
        dict(policies),
        delta or 0.0,
        top_tier_miss or 0.0,
        group_by or "",
        tuple(severity or EVERY_MISS),
        epsilon,
        tuple(exempt_labels),
    )
    if prior_shift and (targets.delta or targets.group_by or targets.top_tier_miss):
        raise SettingsError(
            "--prior-shift estimates and proves nothing, so it goes without --delta, --top-tier-miss and --group-by"
        )
    check_new(Path(out_path))  # write_bundle does so, too, but only when every row was scored
    engine = Engine.from_pretrained(bundle_path, other_inputs=True)
    if default is None:
        default = engine.default_policy if engine.default_policy in targets.alphas else next(iter(targets.alphas))
    if default not in targets.alphas:
        raise SettingsError(f"default policy {default!r} is none of {sorted(targets.alphas)}")
    traffic = read_traffic(prior_shift, engine) if prior_shift else None
    notes: list[str] = []
    if (version := engine.bundle.manifest.get("input_version")) != INPUT_VERSION:
        notes.append(
            f"The bundle was made for input version {version}, this one for {INPUT_VERSION}: weights read requests "
            "otherwise than they were trained to. Evaluate it (python -m training evaluate) before it is promoted."
        )
    rows = read_rows(data_paths, engine, targets.group_by, audit=audit, notes=notes)
    if rows.repeats:
        notes.append(
            f"{rows.repeats} of {len(rows)} rows repeat a request of another row. Each counts, as it does in traffic; "
            "where only the file does (copies, a row for each juror), leave them out, or it promises too much."
        )
    if rows.largest_group > max(1, LARGE_GROUP * len(rows)):
        notes.append(
            f"{rows.largest_group} of {len(rows)} rows are of one group. The bound counts rows as if each had come by "
            "itself; for the requests of other groups the risk may be another."
        )
    if targets.delta or prior_shift:
        rows = rows.drawn(seed)  # a binomial bound, and a weight by label, take labels and not rates
    fit_rows = read_rows(fit_paths, engine, audit=audit, any_model=True) if fit_paths else None
    calibration, threshold_rows, comparison = choose_map(
        engine.bundle.calibration, rows, fit_rows, methods=methods, seed=seed, notes=notes
    )
    kept_map = calibration is engine.bundle.calibration
    if kept_map:
        map_rows = str(engine.bundle.manifest.get(MAP_ROWS, ""))
    else:  # rows of its own, or those not left for the thresholds
        map_rows = pack_rows(set(rows.hashes) - set(threshold_rows.hashes) if fit_rows is None else fit_rows.hashes)
    if kept_map or fit_rows is not None:
        threshold_rows = _without(threshold_rows, map_rows, fit_rows, notes)
    shift = None
    if traffic is not None:
        shift, note = shift_weights(
            calibration.apply(traffic), calibration.apply(threshold_rows.logits), threshold_rows.labels
        )
        notes.append(note)
    also = read_rows(also_paths, engine, audit=audit, any_model=True) if also_paths else None
    if also is not None and also.label != rows.label:
        raise InputError(f"--also carries {also.label} labels, --data {rows.label}; one promise takes one kind")
    if also is not None and (targets.delta or prior_shift):
        also = also.drawn(seed)
    fitted, details = fit_policies(calibration, threshold_rows, targets, shift=shift, also=also, notes=notes)
    if threshold_rows.repeats:
        notes.append(_counted_once(calibration, threshold_rows, targets, shift, also, fitted))
    report = _report(engine.bundle, calibration, threshold_rows, fitted, details, comparison, prices, seed, notes)
    report["rows"]["map"] = calibration.n
    report["curves"] = curves(threshold_rows, calibration.apply(threshold_rows.logits), prices, targets, shift)
    if targets.group_by:
        report["rows"]["groups"] = {group: fit["n"] for group, fit in next(iter(details.values())).items()}
    known = {MAP_ROWS: map_rows, THRESHOLD_ROWS: pack_rows(threshold_rows.hashes)}
    reference = _reference(engine.bundle, calibration, rows)
    bundle = _write(engine, Path(out_path), calibration, fitted, default, reference, report, known)
    return report | {"bundle": {"path": str(bundle.path), "version": bundle.version, "parent": engine.bundle_version}}


def _without(rows: CalibrationSet, map_rows: str, fit_rows: CalibrationSet | None, notes: list[str]) -> CalibrationSet:
    """The rows that the map was not fitted on: thresholds take its probabilities as given."""
    seen = rows.among(map_rows)
    if fit_rows is not None:
        seen |= np.isin(rows.ids, fit_rows.ids)
    if not seen.any():
        return rows
    notes.append(
        f"{seen.sum()} rows were left out: the probability map was fitted on their requests. The promise is about the "
        "others."
    )
    if seen.all():
        raise InputError("every row fitted the probability map; give the thresholds rows that did not")
    return rows.take(~seen)


def _counted_once(
    calibration: Calibration,
    rows: CalibrationSet,
    targets: Targets,
    shift: NDArray[np.float64] | None,
    also: CalibrationSet | None,
    served: Sequence[Policy],
) -> str:
    """What the thresholds would be if each request counted once: how far the promise rests on the repeats."""
    first = np.sort(np.unique(rows.ids, return_index=True)[1])
    once, _ = fit_policies(
        calibration, rows.take(first), targets, shift=None if shift is None else shift[first], also=also
    )
    pairs = zip(once, served, strict=True)
    thresholds = ", ".join(f"{a.name} {shown(a.threshold)} for {shown(b.threshold)}" for a, b in pairs)
    return (
        f"On the {len(first)} different requests of {len(rows)}, each counted once, thresholds would be {thresholds}."
    )


def _report(
    old: Bundle,
    calibration: Calibration,
    rows: CalibrationSet,
    policies: Sequence[Policy],
    details: Mapping[str, Any],
    comparison: Comparison | None,
    prices: Sequence[float],
    seed: int,
    notes: Sequence[str],
) -> dict[str, Any]:
    probabilities, before = calibration.apply(rows.logits), old.calibration.apply(rows.logits)
    empty = rows.open_rows.logits
    entries = []
    for policy in policies:
        previous = old.policies.get(policy.name)
        if previous is not None and previous.group_by not in ("", *rows.facets):
            previous = None
        measured = {"prices": list(prices)} | measure_policy(
            policy, rows, probabilities, calibration.apply(empty), prices=prices, seed=seed
        )
        entries.append(
            {
                "name": policy.name,
                "threshold": policy.threshold,
                "top_tier_threshold": policy.top_tier_threshold,
                "guarantee": asdict(policy.guarantee),
                "top_tier_guarantee": asdict(policy.top_tier_guarantee) if policy.top_tier_guarantee else None,
                "groups": details[policy.name],
                "measured": measured,
                "before": previous
                and {"threshold": previous.threshold, "feasible": previous.guarantee.feasible}
                | measure_policy(previous, rows, before, old.calibration.apply(empty), prices=prices, seed=seed),
            }
        )
    return {
        "label": rows.label,
        "rows": {"thresholds": len(rows), "open": len(empty), "unserved": rows.unserved, "set_sha256": rows.sha256},
        "calibration": {
            "before": measure_calibration(old.calibration, rows, seed=seed),
            "after": measure_calibration(calibration, rows, seed=seed),
            "out_of_fold": comparison.scores if comparison else {},
        },
        "policies": entries,
        "notes": list(notes),
    }


def _reference(old: Bundle, calibration: Calibration, rows: CalibrationSet) -> dict[str, Any]:
    """What drift is measured against: with a new map the scores of the rows, as those before are another map's.

    So with other inputs. Signals stay as they were: no map changes them. The smaller number of rows stands for both.
    """
    reference = dict(old.reference)
    same = calibration is old.calibration and old.manifest.get("input_version") == INPUT_VERSION
    if same or not reference.get("n"):
        return reference
    found = reference_distributions(calibration.apply(rows.logits), ())
    return {**reference, "n": min(reference["n"], found["n"]), "scores": found["scores"]}


def _write(
    engine: Engine,
    out: Path,
    calibration: Calibration,
    policies: Sequence[Policy],
    default: str,
    reference: Mapping[str, Any],
    report: Mapping[str, Any],
    known: Mapping[str, str],
) -> Bundle:
    """The new bundle: same weights and tokeniser, golden inputs answered again by this machine."""
    old = engine.bundle
    golden = [
        {
            **case,
            "probabilities": [round(float(p), 6) for p in calibration.apply(engine.logits(Request.from_json(case)))],
        }
        for case in old.manifest["golden"]
    ]
    changed: dict[str, str | Mapping[str, Any]] = {
        "calibration.json": calibration.to_json(),
        "policy.json": policies_to_json(
            policies, default, model_sha256=sha256(old.path / "model.onnx"), calibration_revision=calibration.revision
        ),
        "reference.json": reference,
        "README.md": with_policies((old.path / "README.md").read_text(encoding="utf-8"), as_text(report)),
    }
    facts = {
        "parent": old.version,
        "input_version": INPUT_VERSION,
        "golden": golden,
        "calibration": dict(report["rows"]),
        **known,
    }
    return write_bundle(out, old.path, {**old.manifest, **facts}, changed)


def with_policies(card: str, text: str) -> str:
    """The card with its section on policies replaced, or added at the end."""
    section = f"{CARD_START}\n## Calibration and policies\n{text}{CARD_END}\n"
    head, found, rest = card.partition(CARD_START)
    if not found:
        return f"{card.rstrip()}\n\n{section}"
    return head + section + rest.partition(CARD_END)[2].lstrip("\n")
