"""Candidate bundles from what the feedback store holds: recalibrated (seconds), or retrained (minutes).

Both are children of the bundle that serves. A recalibrated one has its weights; a retrained one goes on from its
checkpoint, or else from its graph, on feedback rows with base rows mixed in so that nothing is forgotten. Either way
the probability map and the thresholds are fitted on closed labels that nothing was trained on, and the reference for
drift is the traffic of now.

Knows nothing of stores, gates or registries.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from classifier.bundle import Bundle, read_bundle
from classifier.calibration import METHODS, Calibration
from classifier.drift import reference_distributions
from classifier.engine import Engine
from classifier.errors import InputError
from classifier.types import Request
from training.answers import ask
from training.calibrate import calibrate
from training.calibration_fit import FEWEST_FOR_MAP
from training.calibration_set import TRAINING_ROWS, CalibrationSet, pack_rows, unpacked
from training.choices import targets_of
from training.corpus import Row, data_sha256, parse_row
from training.predictions import write_predictions
from training.principals import contradicting
from training.recipe import STEERING_FORMS, training_of_a_round


@dataclass(frozen=True, slots=True)
class Recalibrated:
    """A recalibrated bundle and what it stands on.

    Attributes:
        bundle: in `out/bundle`, a child of the one whose promises it keeps.
        report: of `calibrate`.
        map_rows: rows that the probability map was fitted on; 0 where it stayed as it was.
        left_out: principals whose audits contradict the others': misses and audits by name.
    """

    bundle: Bundle
    report: dict[str, Any]
    map_rows: int
    left_out: dict[str, tuple[int, int]]


def recalibrated(
    parent: Path,
    out: Path,
    *,
    map_rows: CalibrationSet | None,
    rows: CalibrationSet,
    promises: Bundle,
    traffic: Sequence[Request],
) -> Recalibrated:
    """A bundle's weights with probabilities and thresholds fitted to recent labels.

    Args:
        parent: the bundle whose weights are kept.
        out: folder that gets `bundle/` and what it was fitted on.
        map_rows: closed labels for the probability map; None or too few leave it as it is. Their sources, and those of
            `rows`, are principals: one that contradicts the others is left out.
        rows: closed labels for the thresholds; others than `map_rows`.
        promises: the bundle whose policies say what is promised, and how much is explored.
        traffic: recent requests, whatever became of them: what drift will be measured against. Empty keeps the
            parent's reference.

    Raises:
        InputError: there are no labels to fit on, or no policy promises anything.
    """
    from training.export import revise

    if not len(rows):
        raise InputError("no closed labels to recalibrate on; have a random sample of requests labelled")
    default, answering = promises.policies[promises.default_policy], read_bundle(parent)
    if not default.guarantee.alpha:
        raise InputError(
            f"{promises.path}: its default policy promises nothing, so there is nothing to keep; "
            "run 'python -m training calibrate' on it first"
        )
    asked = targets_of((default, *promises.policies.values()))

    def consistent(rows: CalibrationSet, calibration: Calibration) -> tuple[CalibrationSet, dict[str, tuple[int, int]]]:
        shares, alpha = calibration.apply(rows.logits), default.guarantee.alpha
        against = contradicting(
            shares, rows.labels, rows.sources, alpha=alpha, target=alpha - asked.epsilon, delta=asked.delta,
            groups=rows.facets[asked.group_by] if asked.group_by else None,
        )  # fmt: skip
        return rows.take(~np.isin(rows.sources, list(against))), against

    def fitted(weights: Path, rows: CalibrationSet, to: Path, map_path: Path | None) -> dict[str, Any]:
        write_predictions(out / "thresholds.npz", rows, answering)
        return calibrate(
            weights,
            [out / "thresholds.npz"],
            to,
            policies=asked.alphas,
            delta=asked.delta,
            severity=asked.severity,
            top_tier_miss=asked.top_tier_miss,
            group_by=asked.group_by,
            epsilon=asked.epsilon,
            exempt_labels=asked.exempt_labels,
            fit_paths=[map_path] if map_path else None,
            default=promises.default_policy,
            methods=METHODS if map_path else (),
        )

    map_path = None
    if map_rows is not None:
        map_rows, _ = consistent(map_rows, answering.calibration)
        if len(map_rows) >= FEWEST_FOR_MAP:
            map_path = out / "map.npz"
            write_predictions(map_path, map_rows, answering)
    done = out / "calibrated"
    report = fitted(parent, rows, done, map_path)
    calibration = read_bundle(done).calibration
    kept, left_out = consistent(rows, calibration)
    if left_out:
        done = out / "consistent"
        report = fitted(out / "calibrated", kept, done, None)
    reference = _reference(Engine.from_pretrained(done), traffic)
    bundle = revise(done, out / "bundle", reference=reference, facts={"parent": promises.version})
    for path in {done, out / "calibrated"}:
        shutil.rmtree(path)
    return Recalibrated(bundle, report, calibration.n if calibration != answering.calibration else 0, left_out)


def retrained(
    parent: Path,
    checkpoint: Path | None,
    out: Path,
    *,
    recipe: Mapping[str, Any],
    feedback: Sequence[Row],
    base: Sequence[Row],
    check: Sequence[Row],
    state: Path,
) -> tuple[Bundle, dict[str, Any]]:
    """The parent's student trained on, exported, not yet calibrated: `out/raw` and `out/checkpoint`.

    Args:
        parent: the bundle that the checkpoint belongs to.
        checkpoint: its weights; None reads them from the bundle's graph (`training.recover`).
        out: an empty folder.
        recipe: from `training.recipe.load_retraining`.
        feedback: rows from the feedback store.
        base: rows of the base corpus to draw from.
        check: rows on which the export's parity is measured.
        state: folder that a crash leaves, so that training goes on where it was; with other rows, or by another recipe,
            it begins again.

    Returns:
        The bundle, and facts: rows, hashes, training history, parity.

    Raises:
        GateNotMet: a parity check of the export failed.
        InputError: there is no checkpoint, and the bundle's graph does not tell its weights.
    """
    from transformers import set_seed

    from training.export import assemble, export
    from training.fit import fit
    from training.model import load_checkpoint, save_checkpoint, tokenizer_of
    from training.recover import recover
    from training.steering_head import fit_head, load_head, save_head

    old = read_bundle(parent)
    manifest = old.manifest
    seed, max_tokens = int(manifest.get("seed", 0)), int(manifest["max_tokens"])
    set_seed(seed)
    mixed = mix(feedback, base, float(recipe["base_rows_share"]), seed)
    if checkpoint is None:
        model, fast, head = recover(parent)
    else:
        model, fast = load_checkpoint(checkpoint)
        head = load_head(checkpoint, model)
    options = training_of_a_round(recipe, seed=seed)
    of_this = state / sha256(json.dumps([data_sha256(mixed), recipe], sort_keys=True).encode()).hexdigest()[:16]
    history = fit(model, tokenizer_of(fast, max_tokens), mixed, options, name="retrain", state=of_this)
    save_checkpoint(model, fast, out / "checkpoint", max_tokens)
    model, fast = load_checkpoint(out / "checkpoint")
    if head is not None:
        forms = int(recipe.get(STEERING_FORMS, 0))
        fit_head(head, model, tokenizer_of(fast, max_tokens), [*mixed, *base], forms=forms, seed=seed)
        save_head(head, out / "checkpoint")
    parity = export(
        model, fast, out / "export", max_tokens=max_tokens, check=check, rounding=mixed, head=head,
        int8_agreement=float(recipe["int8_agreement"]),
    )  # fmt: skip
    facts: dict[str, Any] = {
        "parent": old.version,
        "recipe": {**dict(manifest.get("recipe") or {}), "retrain": dict(recipe)},
        "seed": seed,
        "data": {
            "train_sha256": data_sha256(mixed),
            "train_rows": len(mixed),
            "feedback_rows": len(feedback),
            "parent": manifest.get("data"),
        },
        TRAINING_ROWS: pack_rows([*unpacked(str(manifest.get(TRAINING_ROWS, ""))), *(row.sha256 for row in mixed)]),
        "parity": asdict(parity),
    }
    golden = [parse_row(case, "golden") for case in manifest["golden"]]
    card = (parent / "README.md").read_text(encoding="utf-8")
    bundle = assemble(out / "export", out / "raw", golden=golden, card=card, facts=facts)
    return bundle, {
        "rows": len(mixed),
        "feedback_rows": len(feedback),
        "base_rows": len(mixed) - len(feedback),
        "train_sha256": facts["data"]["train_sha256"],
        "history": history,
        "parity": asdict(parity),
    }


def mix(feedback: Sequence[Row], base: Sequence[Row], share: float, seed: int) -> list[Row]:
    """The feedback rows and `share` times as many base rows, drawn once each, none that the feedback holds."""
    known = {row.sha256 for row in feedback}
    pool = sorted((row for row in base if row.sha256 not in known), key=lambda row: row.sha256)
    count = min(len(pool), round(share * len(feedback)))
    return [*feedback, *random.Random(seed).sample(pool, count)]


def _reference(engine: Engine, traffic: Sequence[Request]) -> dict[str, Any]:
    if not traffic:
        return dict(engine.bundle.reference)
    answers = ask(engine, traffic, name="reference")
    return reference_distributions(answers.probabilities, answers.signals)
