"""Labelled rows as arrays: what calibration and thresholds are fitted on, checked for what would void the promise.

Rows are scored through `Engine` one by one, as the service does it; `training.predictions` reads files of answers.

Refused: rows of both kinds of label, rows without one, rows that the bundle was trained on, logits that are not finite.
Rows of which only an interval is known are kept apart: they bound the risk and never fit a threshold.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier.bundle import Bundle
from classifier.engine import Engine
from classifier.errors import InputError
from classifier.types import TIERS
from training.answers import ask
from training.corpus import OUTCOME, RUBRIC, UNLABELLED, Row
from training.step_losses import soft

FACETS = ("source", "kind", "language", "script")
"""Facts that risk is reported by. Only the script is known of every request at run time."""
TRAINING_ROWS, MAP_ROWS, THRESHOLD_ROWS = "training_rows", "map_rows", "threshold_rows"
"""The manifest's entries for `pack_rows`: what the weights, the probability map and the thresholds were fitted on."""
CALIBRATED_ON = (MAP_ROWS, THRESHOLD_ROWS)
"""Those of them that a bundle's choices were fitted on, beside its weights."""
_HASH = 64
"""Length of a sha256 in hexadecimal."""


@dataclass(frozen=True, slots=True)
class OpenRows:
    """Rows of which only an interval is known.

    Attributes:
        logits: (m, 4) float32.
        at_least: (m,) int64, index of the lowest tier that the label may be.
        at_most: (m,) int64, index of the highest.
        facets: as a `CalibrationSet` has them.
    """

    logits: NDArray[np.float32]
    at_least: NDArray[np.int64]
    at_most: NDArray[np.int64]
    facets: dict[str, NDArray[np.str_]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.logits)


def _no_open_rows() -> OpenRows:
    return OpenRows(np.empty((0, len(TIERS)), np.float32), np.empty(0, np.int64), np.empty(0, np.int64))


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Closed labels with the model's logits.

    Attributes:
        logits: (n, 4) float32, before calibration.
        labels: (n, 4) float64, P(label = tier): one-hot for a tier, a distribution for an outcome known as a rate.
        label: "RUBRIC" or "OUTCOME".
        ids: (n,) str: names the rows in the set's hash. The sha256 of its conversation where a row came with its text,
            so that a request that came again has the same.
        groups: (n,) str; rows of one group are alike and never split.
        facets: name of a fact → (n,) str, its value in each row; "" where unknown. `FACETS`, and a gateway's label.
        open_rows: the rows that are not closed.
        unserved: rows that no tier satisfied; they are left out.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.float64]
    label: str
    ids: NDArray[np.str_]
    groups: NDArray[np.str_]
    facets: dict[str, NDArray[np.str_]]
    open_rows: OpenRows = field(default_factory=_no_open_rows)
    unserved: int = 0

    def __post_init__(self) -> None:
        bad = int((~np.isfinite(self.logits).all(axis=1)).sum())
        if bad:
            raise InputError(
                f"the model answered {bad} of {len(self.logits)} rows with logits that are not finite; a threshold on "
                "them would promise nothing: check the bundle with 'classifier bundle verify'"
            )

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def sources(self) -> NDArray[np.str_]:
        """(n,) where each row came from."""
        return self.facets["source"]

    @property
    def sha256(self) -> str:
        """Hash of which rows with which labels, whatever their order."""
        lines = sorted(f"{i}:{y.round(6).tolist()}" for i, y in zip(self.ids.tolist(), self.labels, strict=True))
        return hashlib.sha256("\n".join([self.label, *lines]).encode()).hexdigest()

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> CalibrationSet:
        """The given rows, with all of the open ones."""
        taken = {name: getattr(self, name)[rows] for name in ("logits", "labels", "ids", "groups")}
        return replace(self, **taken, facets={name: values[rows] for name, values in self.facets.items()})

    def drawn(self, seed: int) -> CalibrationSet:
        """The set with one label drawn from each distribution, in any order of rows: what a binomial bound needs."""
        drawn = np.empty(len(self))
        order = np.lexsort((*self.labels.T, *self.logits.T, self.ids))
        drawn[order] = np.random.default_rng(seed).random(len(self))
        labels = (drawn[:, None] > np.cumsum(self.labels, axis=1)[:, :-1]).sum(axis=1)
        return replace(self, labels=soft(labels))

    @property
    def repeats(self) -> int:
        """Rows whose request is that of another row before."""
        return len(self) - len(np.unique(self.ids))

    @property
    def hashes(self) -> list[str]:
        """The ids that are hashes of conversations: those of rows that came with their text."""
        return [str(i) for i in self.ids[self._with_text]]

    def among(self, packed: str) -> NDArray[np.bool_]:
        """Which rows are among the packed ones, (n,) bool; a row without a text never is."""
        found = np.zeros(len(self), dtype=bool)
        found[self._with_text] = rows_among(self.hashes, packed)
        return found

    def calibrated(self, manifest: Mapping[str, Any]) -> NDArray[np.bool_]:
        """Which rows a bundle's map or thresholds were fitted on, as far as its manifest tells: (n,) bool."""
        found = np.zeros(len(self), dtype=bool)
        for entry in CALIBRATED_ON:
            found |= self.among(str(manifest.get(entry, "")))
        return found

    @property
    def _with_text(self) -> NDArray[np.bool_]:
        return np.array([len(i) == _HASH for i in self.ids.tolist()], dtype=bool)

    def drawn_groups(self, count: int, seed: int) -> NDArray[np.bool_]:
        """About `count` of the rows, (n,) bool, as whole groups; from two groups on, neither none nor all.

        The groups lie on a circle in random order, each as long as it has rows, and those that begin in an arc of
        `count` rows with a random beginning are taken: each has the same chance, however large. Of groups taken until
        `count` is reached the large ones would stay out.
        """
        names, inverse, sizes = np.unique(self.groups, return_inverse=True, return_counts=True)
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(names))
        begins = np.empty(len(names), dtype=np.int64)
        begins[order] = np.cumsum(sizes[order]) - sizes[order]
        place = (begins - rng.integers(len(self))) % len(self)
        taken = place < count
        # Where the arc, or what it leaves, lies within one group, the group that begins next stands for it.
        following = place.argmin()
        if not taken.any() or taken.all():
            taken[following] = not taken[following] or len(names) < 2
        return taken[inverse]

    def halves(self, seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Two random halves of the rows, (n,) bool each, that no group is split between; see `drawn_groups`."""
        first = self.drawn_groups((len(self) + 1) // 2, seed)
        return first, ~first

    @property
    def largest_group(self) -> int:
        """Rows of the group that has most."""
        return int(np.unique(self.groups, return_counts=True)[1].max(initial=0))


def score_rows(rows: Sequence[Row], engine: Engine, group_by: str = "") -> CalibrationSet:
    """The calibration set of labelled rows, scored through `engine`.

    A RUBRIC row's label is its tier. An OUTCOME row's is its distribution; an escalation of which both ends are known
    and which is not closed counts with its upper end: the tier that satisfied. A row that no tier satisfied is left out
    and counted.

    Raises:
        InputError: mixed or missing labels, no row that a tier satisfied, or rows that the bundle was trained on.
    """
    label, given = _one_kind(rows), len(rows)
    rows = [row for row in rows if not row.unserved]
    if given and not rows:
        raise InputError(f"no tier satisfied any of the {given} rows, so they say nothing of which one to choose")
    seen = rows_among((row.sha256 for row in rows), str(engine.bundle.manifest.get(TRAINING_ROWS, "")))
    if seen.any():
        raise InputError(
            f"{seen.sum()} of {len(rows)} rows were in the bundle's training set, where the model is better than it "
            f"will be on your traffic, the first with the id {rows[int(seen.argmax())].id}; take rows that it has "
            "not seen"
        )
    answers = ask(engine, [row.request for row in rows])
    logits = answers.logits
    labels = np.array([closed_label(row) for row in rows], dtype=np.float64).reshape(-1, len(TIERS))
    closed = ~np.isnan(labels).any(axis=1)
    facets = {
        "source": [row.source for row in rows],
        "kind": [row.kind for row in rows],
        "language": [row.language for row in rows],
        "script": [model_input.script for model_input in answers.inputs],
    }
    if group_by and group_by not in facets:
        facets[group_by] = [row.request.labels.get(group_by, "") for row in rows]
    return CalibrationSet(
        logits[closed],
        labels[closed],
        label,
        np.array([row.sha256 for row in rows])[closed],
        np.array([row.group for row in rows])[closed],
        {name: np.array(values)[closed] for name, values in facets.items()},
        OpenRows(
            logits[~closed],
            np.array([row.at_least.index for row in rows], dtype=np.int64)[~closed],
            np.array([row.at_most.index for row in rows], dtype=np.int64)[~closed],
            {name: np.array(values)[~closed] for name, values in facets.items()},
        ),
        given - len(rows),
    )


def pack_rows(hashes: Iterable[str]) -> str:
    """Hashes of rows, packed for the manifest: base64 of the sorted first 32 bits of each sha256.

    32 bits make a false alarm once in 200,000 rows checked against 20,000, and take 5 bytes a row.
    """
    first = np.array(sorted({int(h[:8], 16) for h in hashes}), dtype=">u4")
    return base64.b64encode(first.tobytes()).decode()


def unpacked(packed: str) -> list[str]:
    """The beginnings of the hashes of packed rows, 8 hexadecimal digits each."""
    return [f"{first:08x}" for first in np.frombuffer(base64.b64decode(packed), dtype=">u4").tolist()]


def rows_among(hashes: Iterable[str], packed: str) -> NDArray[np.bool_]:
    """Which of the rows are among the packed ones: (n,) bool."""
    known = np.frombuffer(base64.b64decode(packed), dtype=">u4")
    return np.isin(np.array([int(h[:8], 16) for h in hashes], dtype=np.uint32), known)


def outside(rows: Sequence[Row], packed: str) -> list[Row]:
    """The rows that are not among the packed ones."""
    known = rows_among((row.sha256 for row in rows), packed)
    return [row for row, seen in zip(rows, known.tolist(), strict=True) if not seen]


def unseen(rows: Sequence[Row], bundle: Bundle, entries: Sequence[str] = (TRAINING_ROWS,)) -> list[Row]:
    """The rows that the bundle was not trained on, or not fitted on, as far as these entries of its manifest tell."""
    for entry in entries:
        rows = outside(rows, str(bundle.manifest.get(entry, "")))
    return list(rows)


def _one_kind(rows: Sequence[Row]) -> str:
    kinds = sorted({row.label for row in rows})
    if UNLABELLED in kinds:
        bare = [row for row in rows if row.label == UNLABELLED]
        raise InputError(
            f"{len(bare)} of {len(rows)} rows have no label, the first of the source {bare[0].source} with the id "
            f"{bare[0].id}; write what is known of each as its `tier` (data/GUIDELINES.md), or leave them out"
        )
    if len(kinds) != 1 or kinds[0] not in (RUBRIC, OUTCOME):
        raise InputError(
            f"the rows carry labels of the kinds {kinds}, and one calibration set holds one: {RUBRIC} is a juror's "
            f"tier, {OUTCOME} the first tier that satisfied, and they promise different things; calibrate on one"
        )
    return kinds[0]


def closed_label(row: Row) -> NDArray[np.float64]:
    """What a promise is about: the tier of a row, of an outcome known as rates the chance of each; NaN of an open row.

    (4,) float64.
    """
    if row.probabilities is not None:
        return np.array(row.probabilities if row.label == OUTCOME else soft([row.tier.index])[0])
    escalated = row.at_least > TIERS[0] and (row.at_most < TIERS[-1] or row.frontier_satisfied)
    if row.at_least == row.at_most or escalated:
        return np.array(soft([row.at_most.index])[0])
    return np.full(len(TIERS), np.nan)
