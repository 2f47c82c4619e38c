"""Teachers and the student, as far as a run's folder does not already have them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as FastTokenizer
from transformers import PreTrainedModel, set_seed

from classifier.checksums import sha256
from classifier.durable import write_whole
from classifier.errors import InputError
from training import processes
from training.adapters import Lora
from training.augment import STEERING_SHA256
from training.build_data import Data
from training.corpus import UNLABELLED, Row, data_sha256
from training.distill import distill, read_answers
from training.fit import check_frozen
from training.model import bundle_at, check_student, load_base, load_checkpoint
from training.progress import Say
from training.recipe import fit_options
from training.recover import standing_head
from training.steering_head import save_head
from training.surroundings import SURROUNDINGS_SHA256
from training.teacher import train_teachers

STAMP = "run.json"
"""Of a run's folder: what the run was begun with."""
TEXTS = {"steering_sha256": STEERING_SHA256, "surroundings_sha256": SURROUNDINGS_SHA256}
"""What changes of training are made of, beside the rows."""


def train(
    recipe: Mapping[str, Any],
    out: Path,
    data: Data,
    *,
    teacher: Path | None = None,
    answers: Path | None = None,
    say: Say = print,
) -> tuple[PreTrainedModel, FastTokenizer]:
    """Teacher and student, as far as `out` does not already have them; leaves `out/checkpoint`.

    Args:
        recipe: from `training.recipe.load_recipe`.
        out: the run's folder.
        data: from `training.build_data.load_data`.
        teacher: folder of finished teachers (`teacher-0` and so on) to distil from, instead of training them.
        answers: what teachers elsewhere said of the rows (`training.distill.read_answers`), instead of `teacher`; the
            student then starts from the base itself, as it does where the recipe names a base of its own for it.
        say: where progress goes.

    Returns:
        The student and its tokeniser.

    Raises:
        InputError: `out` holds a run of another recipe or of other data; or the recipe cannot be followed; or there is
            no row to learn from, or none with a label where teachers are to be trained.
    """
    labelled = sum(r.label != UNLABELLED for r in data.train)
    trains_teachers = recipe["teacher"]["seeds"] and teacher is None and answers is None
    if not (labelled if trains_teachers else data.train):
        raise InputError(
            f"of {len(data.train)} rows to learn from none has a label; give --extra or --data some that are neither "
            "of the split dev nor of test"
        )
    set_seed(int(recipe["seed"]))
    run = _of_run(recipe, data, taught_by(teacher, answers))
    _check_same_run(out, run)
    say(
        f"recipe {recipe['name']}: {labelled} labelled and {len(data.train) - labelled} unlabelled rows, "
        f"{len(data.calibration)} for calibration, {len(data.dev)} to look at"
    )
    if (out / "student" / "done").is_file():
        student, fast = load_checkpoint(out / "student" / "checkpoint")
    else:
        student, fast = _teach(recipe, out, data.train, run, teacher=teacher, answers=answers, say=say)
    if processes.is_first():
        shutil.copytree(out / "student" / "checkpoint", out / "checkpoint", dirs_exist_ok=True)
        taught = recipe["teacher"]["seeds"] and answers is None  # then it may start from a teacher's layers
        base = recipe["student"].get("base") or (None if taught else recipe["base"])
        frozen = int(recipe["student"].get("frozen_layers", 0))
        if base and bundle_at(base) and (head := standing_head(Path(base), student, frozen)):
            save_head(head, out / "checkpoint")
    say("student ready")
    return student, fast


def _teach(
    recipe: Mapping[str, Any],
    out: Path,
    rows: Sequence[Row],
    run: Mapping[str, Any],
    *,
    teacher: Path | None,
    answers: Path | None,
    say: Say,
) -> tuple[PreTrainedModel, FastTokenizer]:
    """Teachers and the student; see `train`. The folder is the run's once the recipe was found to be one to follow."""
    max_tokens, seed = int(recipe["max_tokens"]), int(recipe["seed"])
    teaching, learning = dict(recipe["teacher"]), dict(recipe["student"])
    seeds = [seed + int(s) for s in teaching.pop("seeds")]
    lora = _lora(teaching.pop("lora_r", None), teaching.pop("lora_alpha", None))
    own_base, layers = learning.pop("base", None), int(learning.pop("layers"))
    if not seeds and answers is None and bundle_at(recipe["base"]) is None:
        raise InputError(f"--base {recipe['base']}: without [teacher] seeds it answers itself; give a bundle's folder")
    teacher_options = fit_options(teaching, "recipe: [teacher]")
    student_options = fit_options({"seed": seed, **learning}, "recipe: [student]")
    # Looked at first: after hours of teaching it would be late to learn that the student cannot start from this.
    start, fast = load_base(own_base or recipe["base"], max_tokens)
    most = start.config.num_hidden_layers
    if bundle_at(own_base or recipe["base"]) is not None and (layers > most or not (seeds or answers)):
        layers = most  # what answers itself stays whole: cut, it would be another model
        say(f"the student has {layers} layers, all that the bundle has")
    check_student(start, layers)
    check_frozen(student_options.frozen_layers, layers)
    for name in (f"teacher-{s}" for s in seeds):
        if teacher and not (teacher / name / "done").is_file():
            raise InputError(f"--teacher {teacher}: holds no finished {name}, which the recipe wants; give its folder")
    logits = None if answers is None else read_answers(answers, rows)
    if processes.is_first():
        write_whole(out / STAMP, json.dumps(run, indent=1).encode())
    if logits is None:
        best, its_fast, logits = train_teachers(
            rows,
            recipe["base"],
            seeds,
            teacher_options,
            max_tokens=max_tokens,
            out=teacher or out / "teacher",
            lora=lora,
        )
        start, fast = (start, fast) if own_base else (best, its_fast)
    else:
        known = [not np.isnan(a).any() or r.label != UNLABELLED for r, a in zip(rows, logits, strict=True)]
        rows, logits = [r for r, k in zip(rows, known, strict=True) if k], logits[known]
    say("teacher ready")
    student = distill(start, fast, rows, logits, layers, student_options, max_tokens=max_tokens, out=out / "student")
    return student, fast


def _lora(r: int | None, alpha: float | None) -> Lora | None:
    """The adapters that a recipe asks for; alpha is twice the rank where it is not said."""
    if r is None:
        if alpha is not None:
            raise InputError("lora_alpha without lora_r: give the rank, too, or neither")
        return None
    return Lora(int(r), float(2 * r if alpha is None else alpha))


def taught_by(teacher: Path | None, answers: Path | None) -> dict[str, str]:
    """The sha256 of each teacher in a folder, and of answers, by name."""
    weights = sorted(teacher.glob("*/model.safetensors")) if teacher else []
    return {path.parent.name: sha256(path) for path in weights} | ({"answers": sha256(answers)} if answers else {})


def _of_run(recipe: Mapping[str, Any], data: Data, taught: Mapping[str, str]) -> dict[str, Any]:
    """What a run is told from others by, plain JSON values. A bundle to start from is itself wherever it lies."""
    bundle = bundle_at(recipe["base"])
    run: dict[str, Any] = {"recipe": {**recipe, "base": bundle.version} if bundle else dict(recipe)}
    run |= {"train_sha256": data_sha256(data.train), **TEXTS}
    run |= {"taught_by": dict(taught)} if taught else {}
    return dict(json.loads(json.dumps(run)))


def _check_same_run(out: Path, run: Mapping[str, Any]) -> None:
    """A folder resumes the run that it holds, and no other."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"--out {out}: is a file; give a folder") from None
    stamp = out / STAMP
    if stamp.is_file() and (others := _differing(json.loads(stamp.read_text(encoding="utf-8")), run)):
        raise InputError(
            f"{out}: holds a run with another {', '.join(others)}; give what it began with, choose another "
            "--out, or remove the folder"
        )


def _differing(held: Any, wanted: Any, at: str = "") -> list[str]:
    """Which of all keys within two objects differ, each by the way to it."""
    if isinstance(held, dict) and isinstance(wanted, dict):
        keys = sorted({*held, *wanted})
        return [name for key in keys for name in _differing(held.get(key), wanted.get(key), f"{at}.{key}".strip("."))]
    return [] if held == wanted else [at]
