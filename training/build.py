"""From corpus to bundle: teacher, student, export, calibration, evaluation, card. One folder, resumable at each stage.

runs/base/
teacher/ student/     checkpoints and histories; a finished stage is not run again
export/               model.onnx, model_fp32.onnx, tokeniser, config
checkpoint/           the student's weights, half precision: what retraining starts from
bundle/               the result
report.json           what `evaluate` found on the development rows
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer
from transformers import PreTrainedModel

from classifier.bundle import Bundle
from classifier.drift import reference_distributions
from classifier.errors import BundleError, InputError
from classifier.texts import finite
from training import processes
from training.answers import ask, load_engine
from training.build_data import Data, publishable, without_learnt
from training.calibrate import calibrate, with_policies
from training.calibration_set import TRAINING_ROWS, pack_rows, unpacked
from training.calibration_text import as_text as policies_text
from training.card import own_alone, render_card
from training.corpus import OUTCOME, RUBRIC, UNLABELLED, Row, data_sha256, write_corpus
from training.evaluate import as_text, baselines, evaluate
from training.export import Parity, assemble, choose_golden, export, revise
from training.marked_forms import DEMANDS_SHA256
from training.model import bundle_at, tokenizer_of
from training.predictions import read_predictions
from training.progress import Say
from training.recipe import STEERING_FORMS
from training.steering_head import kept_head
from training.steps import write_json
from training.train import TEXTS, taught_by, train


def build(
    recipe: Mapping[str, Any],
    out: Path,
    data: Data,
    *,
    teacher: Path | None = None,
    answers: Path | None = None,
    cross_validated: Path | None = None,
    say: Say = print,
) -> Bundle | None:
    """Runs every stage that `out` does not already have: train, export, calibrate, evaluate, card.

    Of several processes the first one goes on after training; the others return None.

    Args:
        recipe: from `training.recipe.load_recipe`.
        out: the run's folder.
        data: from `training.build_data.load_data`.
        teacher: see `train`.
        answers: see `train`.
        cross_validated: predictions across sources (`training.crossval`): thresholds keep their promise on them too.
        say: where progress goes.

    Raises:
        InputError: `out` holds a run of another recipe or of other data, there is nothing to calibrate on or to look
            at, or `data/` is not there to choose golden inputs from.
        BundleError: `out` already holds a finished bundle.
        GateNotMet: a parity check of the export failed.
    """
    if (out / "bundle").exists():
        raise BundleError(f"{out / 'bundle'}: already built; choose another --out, or remove it")
    if cross_validated:
        read_predictions(cross_validated)  # again in the end, which may be hours away
    names = dict.fromkeys((recipe["base"], recipe["student"].get("base") or recipe["base"]))
    bases = [bundle for bundle in map(bundle_at, names) if bundle is not None]
    learnt = [row for base in bases for row in unpacked(str(base.manifest.get(TRAINING_ROWS, "")))]
    data = without_learnt(data, learnt, say)
    if not data.dev:
        raise InputError(
            "no labelled row is left to look at, which the card's numbers are of: give --dev some that nothing was "
            "trained on, or leave the split of some rows out"
        )
    if not data.calibration:
        raise InputError(
            "no row is left to calibrate on: of --extra a tenth of the rubric rows that state no split does; leave the "
            "split of some out"
        )
    golden = choose_golden(publishable())
    student, fast = train(recipe, out, data, teacher=teacher, answers=answers, say=say)
    if not processes.is_first():
        return None
    recipe = {**recipe, "student": {**recipe["student"], "layers": student.config.num_hidden_layers}}
    parity, marks = _exported(recipe, out, data, student, fast, say=say)
    facts: dict[str, Any] = {
        "recipe": {**recipe, "of_base": bases[0].manifest.get("recipe")} if bases else dict(recipe),
        "seed": int(recipe["seed"]),
        "data": {
            "train_sha256": data_sha256(data.train),
            "train_rows": len(data.train),
            **TEXTS,
            "demands_sha256": DEMANDS_SHA256 if marks else None,
            "calibration_sha256": data_sha256(data.calibration),
            "calibration_rows": len(data.calibration),
        },
        "teachers": taught_by(teacher, answers) or taught_by(out / "teacher", None),
        TRAINING_ROWS: pack_rows([*learnt, *(r.sha256 for r in data.train)]),
        "parity": asdict(parity),
    }
    promises = _calibrated(recipe, out, data, golden, facts, cross_validated=cross_validated, say=say)
    notes, parent = _notes(parity, data, marks=marks), bases[0].version if bases else None
    bundle = _measured(recipe, out, data, promises, notes, base=_first_base(facts["recipe"]), parent=parent, say=say)
    for line in own_alone(data.train):
        say(line)
    say(f"bundle {bundle.version} in {out / 'bundle'}")
    return bundle


def _exported(
    recipe: Mapping[str, Any], out: Path, data: Data, student: PreTrainedModel, fast: FastTokenizer, *, say: Say
) -> tuple[Parity, bool]:
    """Leaves `out/export`; how far its graph is from the student, and whether it has a head that marks steering."""
    head, max_tokens = None, int(recipe["max_tokens"])
    if forms := int(recipe.get(STEERING_FORMS, 0)):
        tokenizer = tokenizer_of(fast, max_tokens)
        head = kept_head(out / "checkpoint", student, tokenizer, data.train, forms=forms, seed=int(recipe["seed"]))
        say("head that marks steering ready")
    parity = export(
        student,
        fast,
        out / "export",
        max_tokens=max_tokens,
        check=[*data.dev, *data.calibration],
        rounding=data.train,
        head=head,
        int8_agreement=float(recipe["int8_agreement"]),
    )
    say(
        f"exported: torch and ONNX differ by {parity.fp32_difference:.1e}, int8 chooses the fp32 tier on "
        f"{parity.int8_agreement:.4f} of {parity.rows} rows"
    )
    return parity, head is not None


def _calibrated(
    recipe: Mapping[str, Any],
    out: Path,
    data: Data,
    golden: Sequence[Row],
    facts: Mapping[str, Any],
    *,
    cross_validated: Path | None,
    say: Say,
) -> dict[str, Any]:
    """Leaves `out/calibrated`, a bundle of the export with a map and policies; what `calibrate` reports."""
    raw, calibrated = out / "uncalibrated", out / "calibrated"
    for stage in (raw, calibrated):
        shutil.rmtree(stage, ignore_errors=True)
    assemble(out / "export", raw, golden=golden, card="", facts=facts)
    write_corpus(out / "calibration.jsonl", data.calibration)
    promises = calibrate(
        raw, [out / "calibration.jsonl"], calibrated, policies=recipe["policies"], default="balanced",
        also_paths=[cross_validated] if cross_validated else None, seed=int(recipe["seed"]),
    )  # fmt: skip
    shutil.rmtree(raw)
    say("calibrated")
    return promises


def _measured(
    recipe: Mapping[str, Any],
    out: Path,
    data: Data,
    promises: Mapping[str, Any],
    notes: Sequence[str],
    *,
    base: str,
    parent: str | None,
    say: Say,
) -> Bundle:
    """Leaves `out/report.json` and makes `out/bundle` of `out/calibrated`: with metrics, card and a reference."""
    calibrated = out / "calibrated"
    engine = load_engine(calibrated)
    held_out = ask(engine, [row.request for row in data.calibration], name="calibration rows")
    learnt = [r for r in data.train if r.label == RUBRIC and r.closed]
    rivals = baselines(learnt, data.dev) if len({r.tier for r in learnt}) > 1 else {}
    answers = ask(engine, [row.request for row in data.dev])
    report = evaluate(engine.bundle_version, data.dev, answers.probabilities, rivals)
    write_json(out / "report.json", report)
    say(as_text(report))
    card = render_card(recipe={**recipe, "base": base}, rows=data.train, report=report, notes=notes)
    bundle = revise(
        calibrated,
        out / "bundle",
        card=with_policies(card, policies_text(promises)),
        reference=reference_distributions(held_out.probabilities, held_out.signals),
        facts={"metrics": finite(report["overall"]), "parent": parent},
    )
    shutil.rmtree(calibrated)
    return bundle


def _first_base(recipe: Mapping[str, Any]) -> str:
    """What the bundle that a recipe goes on from started from, and so on."""
    return _first_base(earlier) if (earlier := recipe.get("of_base")) else str(recipe["base"])


def _notes(parity: Parity, data: Data, *, marks: bool) -> list[str]:
    kinds = Counter(r.label for r in data.train)
    steering = (
        "A second output of the graph, `steering`, marks what speaks to the router; the engine leaves such sentences "
        "out and rates the rest. Who runs the graph without the engine gets the logits of the whole text."
    )
    return [
        *([steering] if marks else []),
        f"{kinds[RUBRIC]} rows carry a tier by the rubric; {kinds[OUTCOME]} carry the outcomes of real models, as soft "
        f"labels at a lower weight; {kinds[UNLABELLED]} unlabelled ones carried the teacher's answers.",
        f"int8 chooses the fp32 tier on {parity.int8_agreement:.3f} of {parity.rows} held-out rows; torch and ONNX "
        f"fp32 differ by {parity.fp32_difference:.1e}.",
        "What the policies below promise, and what breaks the promise: docs/guarantee.md.",
        *own_alone(data.train),
    ]
