"""Labelled rows from wherever a user has them: corpus files, stored predictions, or an export of the feedback store.

Of an export only *audits* have closed labels: requests that the gateway drew at random, tried from the cheapest tier up
whatever it was told, and marked with a label. Every other closed label is known *because* of what the classifier chose,
and would teach the thresholds to rise for ever (docs/feedback.md). A row needs no text where this very bundle answered
it: the export has its logits.

Knows nothing of thresholds.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier.engine import Engine
from classifier.errors import InputError
from classifier.exports import read_export
from classifier.types import TIERS, Request, Tier
from training.calibration_set import FACETS, CalibrationSet, OpenRows, score_rows
from training.corpus import EXPORTED, OUTCOME, Row, parse_row, read_corpus
from training.decision_log import AUDIT, ExportRow, interval, is_audit, is_unserved, satisfied_tier
from training.predictions import read_predictions
from training.step_losses import soft


def read_rows(
    paths: Sequence[str | Path],
    engine: Engine,
    group_by: str = "",
    *,
    split: str | None = None,
    audit: tuple[str, str] = AUDIT,
    notes: list[str] | None = None,
    any_model: bool = False,
) -> CalibrationSet:
    """The calibration set in one export of the feedback store, in one file of predictions, or in corpus files.

    Args:
        paths: one export (`.jsonl`, `.parquet`), one `.npz`, or any number of corpus files, folders and globs.
        engine: scores rows that have a text, and says what it was trained on.
        group_by: a gateway label whose value becomes a facet; "" or one of `FACETS` for none.
        split: only corpus rows that state this split; None for all.
        audit: name and value of the label that marks audits in an export.
        notes: sentences for the reader are appended here.
        any_model: whether stored predictions may be another model's than the engine's.

    Raises:
        InputError: a file or row that cannot be used, or an export without a closed audit.
    """
    if any(is_export(Path(path)) for path in paths):
        return _audits(_alone(paths), engine, group_by, audit, [] if notes is None else notes)
    if any(str(path).endswith(".npz") for path in paths):
        if len(paths) > 1:
            raise InputError("a file of predictions (.npz) is a calibration set by itself; give it alone")
        return read_predictions(Path(paths[0]), None if any_model else engine.bundle)
    rows = [row for row in read_corpus(paths, repeats=True) if split is None or row.stated_split == split]
    if not rows:
        where, what = ", ".join(map(str, paths)), f"no row{f' of the split {split!r}' if split else ''} is there"
        raise InputError(f"{where}: {what}; give a file of labelled rows (data/README.md says what one holds)")
    return score_rows(rows, engine, group_by)


def read_traffic(paths: Sequence[str | Path], engine: Engine) -> NDArray[np.float32]:
    """Logits of unlabelled requests, (m, 4): of corpus files, or of every decision in one export of the feedback store.

    A decision without a text counts where this very bundle made it; others of that kind are left out.

    Raises:
        InputError: a file or row that cannot be used, or none that can.
    """
    if any(is_export(Path(path)) for path in paths):
        decisions = {row["decision_id"]: row for row in read_export(_alone(paths))}
        found = [_logits(row, engine) for row in decisions.values()]
    else:
        found = [engine.logits(row.request) for row in read_corpus(paths, repeats=True)]
    logits = [one for one in found if one is not None]
    if not logits:
        raise InputError(f"{', '.join(map(str, paths))}: no request to estimate tier shares from")
    return np.array(logits, dtype=np.float32)


def is_export(path: Path) -> bool:
    """Whether the file is an export of the feedback store: Parquet, or lines with decisions and outcomes."""
    if path.suffix == ".parquet":
        return True
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        try:
            first = json.loads(file.readline() or "null")
        except ValueError:
            return False
    return isinstance(first, dict) and first.keys() >= EXPORTED


def _alone(paths: Sequence[str | Path]) -> Path:
    if len(paths) > 1:
        raise InputError("an export of the feedback store is a set of rows by itself; give it alone")
    return Path(paths[0])


def _logits(row: ExportRow, engine: Engine) -> Sequence[float] | NDArray[np.float32] | None:
    """What the engine's bundle says of a decision's request; None where neither is there to tell."""
    if row["logits"] is not None and row["bundle_version"] == engine.bundle_version:
        told: Sequence[float] = row["logits"]
        return told
    return None if row["request"] is None else engine.logits(Request.from_json(row["request"]))


def _audits(path: Path, engine: Engine, group_by: str, audit: tuple[str, str], notes: list[str]) -> CalibrationSet:
    # By decision: a request that came again was drawn again, and traffic is what is promised about.
    found = {row["decision_id"]: row for row in read_export(path) if row["effective"] and is_audit(row, audit)}
    counts: Counter[str] = Counter()
    texts: dict[str, list[Row]] = {"closed": [], "open": []}
    stored: list[dict[str, Any]] = []
    for row in found.values():
        use = _use(row, engine.bundle_version)
        counts[use] += 1
        if use in texts and row["request"] is not None:
            texts[use].append(parse_row(_as_corpus_row(row), "feedback"))
        elif use == "closed":
            stored.append(row)
    if not counts["closed"]:
        raise InputError(
            f"{path}: no audit with a closed label (label {audit[0]}={audit[1]}, tried from {TIERS[0].label} up, "
            "judged on quality); thresholds take nothing else of an export, see docs/feedback.md"
        )
    notes.append(
        f"Of {path.name}: {counts['closed']} closed audits, {counts['open']} open ones that only bound the risk, "
        f"{counts['unserved']} that no tier satisfied, {counts['not judged']} not judged on quality, "
        f"{counts['no text']} without a text that another bundle answered."
    )
    parts = [score_rows(texts["closed"], engine, group_by)] if texts["closed"] else []
    parts += [_stored(stored, group_by)] if stored else []
    parts += [_opened(score_rows(texts["open"], engine, group_by))] if texts["open"] else []
    return _joined(parts)


def _use(row: ExportRow, version: str) -> str:
    if row["cause"] != "quality" or row["served_tier"] is None:
        return "not judged"
    if is_unserved(row):
        return "unserved"
    closed = satisfied_tier(row) is not None
    if row["request"] is None and (row["bundle_version"] != version or row["logits"] is None or not closed):
        return "no text"
    return "closed" if closed else "open"


def _as_corpus_row(row: ExportRow) -> dict[str, Any]:
    data = {**row["request"], "id": row["decision_id"], "label": OUTCOME, "source": "feedback"}
    data |= {"labels": row["labels"] or {}, "group": row["decision_id"]}
    closed = satisfied_tier(row)
    if closed is not None:
        return data | {"tier": closed}
    low, high = interval(row)  # not tried from the cheapest tier up, so a lower one than was tried may have done
    # Frontier as a stated end would close the label there (`training.calibration_set.closed_label`).
    return data | {"at_least": low.label, "at_most": None if high is TIERS[-1] else high.label}


def _stored(rows: Sequence[ExportRow], group_by: str) -> CalibrationSet:
    """Closed audits without a text, by the logits that this bundle gave them when they were served."""
    n = len(rows)
    ids = np.array([str(row["request_hash"] or row["decision_id"]) for row in rows])
    facets = {name: np.full(n, "feedback" if name == "source" else "") for name in FACETS}
    facets["script"] = np.array([_script(row["signals"] or []) for row in rows])
    if group_by and group_by not in facets:
        facets[group_by] = np.array([str((row["labels"] or {}).get(group_by, "")) for row in rows])
    labels = soft([Tier.parse(str(satisfied_tier(row))).index for row in rows])
    groups = np.array([str(row["decision_id"]) for row in rows])
    return CalibrationSet(
        np.array([row["logits"] for row in rows], dtype=np.float32), labels, OUTCOME, ids, groups, facets
    )


def _script(signals: Sequence[str]) -> str:
    return next((s.strip("[]").partition("=")[2] for s in signals if s.startswith("[script=")), "")


def _opened(rows: CalibrationSet) -> CalibrationSet:
    """The rows as open ones, also where one tier is left: what failed at complex was sent there."""
    tiers = rows.labels.argmax(axis=1)
    closed = OpenRows(rows.logits, tiers, tiers, rows.facets)
    return replace(rows.take(np.zeros(len(rows), dtype=bool)), open_rows=_open([rows.open_rows, closed]))


def _joined(parts: Sequence[CalibrationSet]) -> CalibrationSet:
    return CalibrationSet(
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.labels for part in parts]),
        parts[0].label,
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.groups for part in parts]),
        {name: np.concatenate([part.facets[name] for part in parts]) for name in parts[0].facets},
        _open([part.open_rows for part in parts]),
    )


def _open(parts: Sequence[OpenRows]) -> OpenRows:
    some = [part for part in parts if len(part)]
    return OpenRows(
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.at_least for part in parts]),
        np.concatenate([part.at_most for part in parts]),
        {name: np.concatenate([part.facets[name] for part in some]) for part in some[:1] for name in part.facets},
    )
