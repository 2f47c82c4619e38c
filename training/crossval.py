"""Cross-validation by source: how good is the student on traffic of kinds that it has never seen?

Sources are dealt to folds; for each fold the whole recipe (teachers, student) runs without the fold's sources, and the
student answers them. One folder a fold, resumable as any run is. The answers together are a file of predictions that
`calibrate` reads: a probability map fitted on them is honest for new traffic (Vovk 2015 on cross-conformal prediction),
which one fitted on held-out rows of the same sources is not.

Where hours are too long, `probe_across` learns only a regression over the frozen base for each fold: minutes.

out/
fold-0/ ... fold-4/   runs of `training.train.train`
predictions.npz       logits (n, 4) float32, labels (n,) int64, ids (the sha256 of each row, by which it is known
                      again), sources, groups, kinds, languages, scripts, folds, model, and what baselines
                      learnt on the same folds: baseline_NAME (n, 4) float32
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from classifier.calibration import IDENTITY
from classifier.durable import explained
from classifier.errors import InputError
from classifier.inputs import render
from classifier.intervals import bootstrap_each, ranged
from training import processes
from training.calibration_report import FEWEST_IN_SOURCE
from training.corpus import RUBRIC, Row, tiers
from training.evaluate import baselines, statistics
from training.fit import predict
from training.model import tokenizer_of
from training.predictions import BASELINE, model_of, read_predictions
from training.probe import embed, probe

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer
    from transformers import PreTrainedModel

    from training.build_data import Data

FOLDS = 5
HEADLINE = ("accuracy", "quadratic_kappa", "under_routing", "auroc_above_simple", "auroc_above_standard")
"""The statistics of `training.evaluate` that are reported across sources."""
WORST = 5
"""How many sources the summary names: as many as a reader looks into."""


def fold_data(data: Data, folds: int = FOLDS) -> list[tuple[Data, list[Row]]]:
    """For each fold what is trained on, and the traffic rows of the sources that are held out of it.

    Nothing is trained on that has the source, or is of the group, of a held-out row.

    Raises:
        InputError: there are fewer sources than folds, or nothing can be learnt without those of one.
    """
    sources = len({r.source for r in data.traffic})
    if sources < folds:
        raise InputError(
            f"the labelled traffic has {sources} sources, and {folds} folds by source take at least as many; "
            "give --extra more sources, or fewer --folds"
        )
    fold_of = source_folds(data.traffic, folds)
    found = []
    for fold in range(folds):
        held = [r for r, f in zip(data.traffic, fold_of, strict=True) if f == fold]
        # A group may have rows of several sources, as where two logs hold one template: they would tell the answer.
        names, groups = {r.source for r in held}, {r.group for r in held}
        rest = [r for r in data.train if r.source not in names and r.group not in groups]
        learnt = [r.tier for r in rest if r.label == RUBRIC and r.closed]
        if len(set(learnt)) < 2:
            raise InputError(
                f"without the sources of fold {fold + 1}, {len(learnt)} rows of {len(set(learnt))} tiers are left to "
                "learn from, and it takes two; give --extra more rows, or more --folds"
            )
        found.append((replace(data, train=rest), held))
    return found


def source_folds(rows: Sequence[Row], folds: int) -> NDArray[np.int64]:
    """A fold for each row such that no source is in two, sizes balanced: (rows,) int64 in [0, folds)."""
    sizes = Counter(row.source for row in rows)
    order = np.random.default_rng(0).permutation(sorted(sizes))
    load = [0] * folds
    fold_of: dict[str, int] = {}
    for source in sorted(order, key=lambda s: -sizes[s]):
        fold = load.index(min(load))
        fold_of[source] = fold
        load[fold] += sizes[source]
    return np.array([fold_of[row.source] for row in rows], dtype=np.int64)


def cross_validate(
    recipe: Mapping[str, Any],
    out: Path,
    data: Data,
    train: Callable[..., tuple[PreTrainedModel, FastTokenizer]],
    *,
    folds: int = FOLDS,
    say: Callable[[str], object] = print,
) -> Path:
    """Trains a student a fold, as far as `out` does not already have them, and stores what each says of its fold.

    Args:
        recipe: from `training.recipe.load_recipe`.
        out: folder of the runs and of the predictions.
        data: from `training.build_data.load_data`.
        train: `training.train.train`.
        folds: number of folds.
        say: where progress goes.

    Returns:
        The file of predictions.

    Raises:
        InputError: there are fewer sources than folds, or a fold's folder holds a run of another recipe or other data.
    """
    parts = fold_data(data, folds)
    logits = []
    for fold, (part, held) in enumerate(parts):
        folder = out / f"fold-{fold}"
        say(f"fold {fold + 1} of {folds}: {len({r.source for r in held})} sources with {len(held)} rows held out")
        student, fast = train(recipe, folder, part, say=say)
        logits.append(predict(student, tokenizer_of(fast, int(recipe["max_tokens"])), held, name=f"fold {fold}"))
    return _store(out, parts, logits, f"students of recipe {recipe['name']}")


def probe_across(
    out: Path, data: Data, *, base: str = "minilm", folds: int = FOLDS, say: Callable[[str], object] = print
) -> Path:
    """As `cross_validate`, with a linear probe of the frozen base instead of a student.

    Args:
        out: folder of the predictions.
        data: from `training.build_data.load_data`.
        base: as `training.model.load_base` takes it.
        folds: number of folds.
        say: where progress goes.

    Returns:
        The file of predictions.

    Raises:
        InputError: see `fold_data`; or nothing can be written in the folder.
    """
    parts = fold_data(data, folds)
    with explained(out):  # before the work, of which nothing is kept until its end
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    rows = {r.sha256: r for r in [*data.traffic, *data.train] if r.label == RUBRIC and r.closed}
    at = {digest: i for i, digest in enumerate(rows)}
    say(f"embedding {len(rows)} rows")
    features = embed(list(rows.values()), base)
    logits = []
    for fold, (part, held) in enumerate(parts):
        say(f"fold {fold + 1} of {folds}: {len({r.source for r in held})} sources with {len(held)} rows held out")
        learnt = np.array([at[r.sha256] for r in part.train if r.sha256 in at])
        logits.append(probe(features, learnt, np.array([at[r.sha256] for r in held]), list(rows.values())))
    return _store(out, parts, logits, f"linear probe of {base}")


def _store(
    out: Path, parts: Sequence[tuple[Data, list[Row]]], logits: Sequence[NDArray[np.float32]], model: str
) -> Path:
    """Writes `out/predictions.npz`: what a model, and baselines fitted on the same rows, say of each fold's rows."""
    rows = [r for _, held in parts for r in held]
    path = out / "predictions.npz"
    if processes.is_first():
        out.mkdir(parents=True, exist_ok=True)
        rivals = [baselines([r for r in part.train if r.label == RUBRIC], held) for part, held in parts]
        given: dict[str, Any] = {
            f"{BASELINE}{name}": np.concatenate([fold[name] for fold in rivals])
            for name in rivals[0]
            if name != "majority"
        }
        np.savez_compressed(
            path,
            logits=np.concatenate(logits),
            labels=tiers(rows),
            ids=np.array([r.sha256 for r in rows]),
            sources=np.array([r.source for r in rows]),
            groups=np.array([r.group for r in rows]),
            kinds=np.array([r.kind for r in rows]),
            languages=np.array([r.language for r in rows]),
            scripts=np.array([render(r.request).script for r in rows]),
            folds=np.repeat(np.arange(len(parts)), [len(held) for _, held in parts]),
            label=np.array(RUBRIC),
            model=np.array(model),
            **given,
        )
    processes.wait_for_all()
    return path


def summary(path: Path) -> dict[str, Any]:
    """The headline of a file of predictions: overall with intervals that resample whole sources, and by source.

    Returns:
        `model`, `rows`, `sources`; `accuracy`, `quadratic_kappa`, `under_routing`, `auroc_above_simple`,
        `auroc_above_standard`, each (estimate, low, high); `by_source`: (name, rows, accuracy), worst first, of
        sources with at least `FEWEST_IN_SOURCE` rows.
    """
    rows = read_predictions(path)
    probabilities, labels, sources = IDENTITY.apply(rows.logits), rows.labels.argmax(axis=1), rows.sources
    by_source = [
        (str(name), int(here.sum()), float((probabilities[here].argmax(1) == labels[here]).mean()))
        for name in np.unique(sources)
        if (here := sources == name).sum() >= FEWEST_IN_SOURCE
    ]
    numbers = statistics()
    headline = {name: numbers[name](probabilities, labels) for name in HEADLINE}
    return {
        "model": model_of(path),
        "rows": len(labels),
        "sources": len(np.unique(sources)),
        **bootstrap_each(headline, len(labels), groups=sources, draws=200),
        "by_source": sorted(by_source, key=lambda entry: entry[2]),
    }


def as_text(found: Mapping[str, Any]) -> str:
    """The summary for a terminal."""
    lines = [f"{found['rows']} rows of {found['sources']} sources, each answered without its source ({found['model']})"]
    lines += [f"  {name:<22} {ranged(found[name])}" for name in HEADLINE]
    lines += [f"  worst sources with at least {FEWEST_IN_SOURCE} rows"]
    lines += [
        f"    {name:<28} {rows:5d} rows   accuracy {accuracy:.3f}"
        for name, rows, accuracy in found["by_source"][:WORST]
    ]
    return "\n".join(lines)
