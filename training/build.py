"""From corpus to bundle: teacher, student, export, calibration, evaluation, card. One folder, resumable at each stage.

runs/base/
teacher/ student/     checkpoints and histories; a finished stage is not run again
export/               model.onnx, model_fp32.onnx, tokeniser, config
checkpoint/           the student's weights, half precision: what retraining starts from
bundle/               the result
report.json           what `evaluate` found on the development rows
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed

from classifier.bundle import Bundle
from classifier.drift import reference_distributions
from classifier.errors import BundleError, InputError
from classifier.inputs import render
from training.calibrate import calibrate
from training.card import render_card
from training.corpus import RUBRIC, UNLABELLED, Row, data_sha256, expand, read_corpus, write_corpus
from training.distill import distill
from training.evaluate import as_text, evaluate, load_engine, score
from training.export import Parity, assemble, choose_golden, export, revise
from training.fit import FitOptions
from training.teacher import train_teachers

RECIPES = Path(__file__).parent / "recipes"
OWN_DATA = Path(__file__).parent.parent / "data"


@dataclass(frozen=True, slots=True)
class Data:
    """The rows of one build, by use.

    Attributes:
        train: what teacher and student learn from.
        calibration: held out of training, to fit calibration and thresholds.
        dev: held out of both, to look at.
        golden: rows of `data/` that the manifest may hold.
    """

    train: list[Row]
    calibration: list[Row]
    dev: list[Row]
    golden: list[Row]


def load_recipe(name: str, **overrides: Any) -> dict[str, Any]:
    """A recipe by name or path, with overrides that are not None.

    Raises:
        InputError: there is no such recipe, or it is not TOML.
    """
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        names = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise InputError(f"--recipe {name}: no such recipe; there are {names}, or give a .toml file") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not TOML ({error})") from error
    return {"name": path.stem, **recipe, **{k: v for k, v in overrides.items() if v is not None}}


def load_data(extra: Sequence[str], dev: Sequence[str], *, own: Path = OWN_DATA) -> Data:
    """Own prompts by their fixed splits; extra corpora give nine tenths to training, the rest to calibration.

    Rows of `dev` are taken out of everything else.
    """
    own_rows = read_corpus([own])
    extra_rows = read_corpus(extra) if extra else []
    dev_rows = read_corpus(dev) if dev else []
    seen = {r.sha256 for r in dev_rows}
    own_rows = [r for r in own_rows if r.sha256 not in seen]
    seen |= {r.sha256 for r in own_rows}
    extra_rows = [r for r in extra_rows if r.sha256 not in seen]
    # A group may hold rows of both files; its hash puts them on the same side.
    calibration = [r for r in (*own_rows, *extra_rows) if r.split == "dev" and r.label == RUBRIC]
    train = [r for r in own_rows if r.split == "train"]
    train += [r for r in extra_rows if r.split != "dev" or r.label != RUBRIC]
    return Data(
        train=train,
        calibration=calibration,
        dev=dev_rows or [r for r in own_rows if r.split == "test"],
        golden=[r for r in own_rows if r.split == "train"],
    )


def build(
    recipe: Mapping[str, Any], out: Path, data: Data, *, licences: Mapping[str, str], log: Any = sys.stderr
) -> Bundle:
    """Runs every stage that `out` does not already have.

    Args:
        recipe: from `load_recipe`.
        out: the run's folder.
        data: from `load_data`.
        licences: of each source, for the card.
        log: where progress goes.

    Raises:
        InputError: `out` holds a run of another recipe or of other data.
        BundleError: `out` already holds a finished bundle.
        GateNotMet: a parity check of the export failed.
    """
    if (out / "bundle").exists():
        raise BundleError(f"{out / 'bundle'}: already built; choose another --out, or remove it")
    set_seed(int(recipe["seed"]))
    _check_same_run(out, recipe, data)
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:7.0f} s] {text}", file=log, flush=True)

    labelled = [r for r in data.train if r.label != UNLABELLED]
    say(
        f"recipe {recipe['name']}: {len(labelled)} labelled and {len(data.train) - len(labelled)} unlabelled rows, "
        f"{len(data.calibration)} for calibration, {len(data.dev)} to look at"
    )
    max_tokens = int(recipe["max_tokens"])
    options = {k: v for k, v in recipe["teacher"].items() if k != "seeds"}
    seeds = [int(recipe["seed"]) + int(s) for s in recipe["teacher"]["seeds"]]
    teacher, fast, answers = train_teachers(
        data.train, recipe["base"], seeds, FitOptions(**options), max_tokens=max_tokens, out=out / "teacher"
    )
    say("teacher trained")
    options = {k: v for k, v in recipe["student"].items() if k != "layers"}
    student = distill(
        teacher,
        fast,
        data.train,
        answers,
        int(recipe["student"]["layers"]),
        FitOptions(seed=int(recipe["seed"]), **options),
        max_tokens=max_tokens,
        out=out / "student",
    )
    shutil.copytree(out / "student" / "checkpoint", out / "checkpoint", dirs_exist_ok=True)
    say("student trained")
    parity = export(
        student,
        fast,
        out / "export",
        max_tokens=max_tokens,
        check=[*data.dev, *data.calibration][:400],
        int8_agreement=float(recipe["int8_agreement"]),
    )
    say(
        f"exported: torch and ONNX differ by {parity.fp32_difference:.1e}, int8 chooses the fp32 tier on "
        f"{parity.int8_agreement:.4f} of {parity.rows} rows"
    )
    facts = {
        "recipe": dict(recipe),
        "seed": int(recipe["seed"]),
        "data": {
            "train_sha256": data_sha256(data.train),
            "calibration_sha256": data_sha256(data.calibration),
            "train_rows": len(data.train),
            "calibration_rows": len(data.calibration),
        },
        "parity": asdict(parity),
    }
    raw, calibrated = out / "uncalibrated", out / "calibrated"
    for stage in (raw, calibrated):
        shutil.rmtree(stage, ignore_errors=True)
    assemble(
        out / "export", raw, golden=choose_golden(data.golden), reference={"schema_version": 1, "n": 0},
        card="# Uncalibrated\n", facts=facts,
    )  # fmt: skip
    write_corpus(out / "calibration.jsonl", data.calibration)
    calibrate(raw, [out / "calibration.jsonl"], calibrated, policies=recipe["policies"], seed=int(recipe["seed"]))
    say("calibrated")
    engine = load_engine(calibrated)
    held_out = score(engine, data.calibration, name="calibration rows")
    reference = reference_distributions(held_out.probabilities, [render(r.request).signals for r in data.calibration])
    report = evaluate(engine, data.dev, train=labelled)
    (out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(as_text(report), file=log)
    card = render_card(
        recipe=recipe, rows=labelled, own_rows=sum(r.source.startswith("own-") for r in labelled), licences=licences,
        report=report, notes=_notes(parity, len(labelled), len(data.train) - len(labelled)),
    )  # fmt: skip
    bundle = revise(
        calibrated, out / "bundle", card=card, reference=reference, facts={"metrics": report["overall"], "parent": None}
    )
    for stage in (raw, calibrated):
        shutil.rmtree(stage)
    say(f"bundle {bundle.version} in {out / 'bundle'}")
    return bundle


def licences_of(paths: Sequence[str]) -> dict[str, str]:
    """The licence that corpus files state for each source."""
    found: dict[str, str] = {}
    for path in expand(paths):
        opener = gzip.open if path.name.endswith(".gz") else open
        with opener(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                if row.get("licence"):
                    found.setdefault(str(row.get("source")), str(row["licence"]))
    return found


def _notes(parity: Parity, labelled: int, unlabelled: int) -> list[str]:
    return [
        f"Trained on {labelled} labelled rows; {unlabelled} unlabelled ones carried the teacher's answers.",
        f"int8 chooses the fp32 tier on {parity.int8_agreement:.3f} of {parity.rows} held-out rows; torch and ONNX "
        f"fp32 differ by {parity.fp32_difference:.1e}.",
        "Calibration and thresholds: `calibration.json` and `policy.json`; what they promise: docs/guarantee.md.",
    ]


def _check_same_run(out: Path, recipe: Mapping[str, Any], data: Data) -> None:
    """A folder resumes the run that it holds, and no other."""
    out.mkdir(parents=True, exist_ok=True)
    this = {"recipe": dict(recipe), "train_sha256": data_sha256(data.train)}
    stamp = out / "run.json"
    if stamp.is_file():
        if json.loads(stamp.read_text(encoding="utf-8")) != json.loads(json.dumps(this)):
            raise InputError(
                f"{out}: holds a run of another recipe or of other data; choose another --out, or remove it"
            )
    else:
        stamp.write_text(json.dumps(this, indent=1), encoding="utf-8")
