"""The rows of one build by their use: what teaches, what calibrates, what is looked at.

Knows nothing of models or recipes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from classifier.errors import InputError
from training.calibration_set import outside, pack_rows
from training.corpus import OWN_DATA, RUBRIC, Row, read_corpus


@dataclass(frozen=True, slots=True)
class Data:
    """The rows of one build, by use.

    Attributes:
        train: what teacher and student learn from.
        calibration: held out of training, to fit calibration and thresholds.
        dev: held out of both, to look at; rows whose tier, or the chance of each, is known.
        traffic: every row of the extra corpora (our own where there are none) whose tier by the rubric is known: what
            is cross-validated.
    """

    train: list[Row]
    calibration: list[Row]
    dev: list[Row]
    traffic: list[Row]


def load_data(
    extra: Sequence[str], dev: Sequence[str], *, own: Path = OWN_DATA, most_rows: Mapping[str, int] | None = None
) -> Data:
    """Own prompts by their fixed splits; extra corpora give nine tenths to training, the rest to calibration.

    Extra rows that state their split train where that is train, and are for measuring where it is dev or test. Rows of
    `dev` are taken out of everything else; without it extra rows of a group of which own ones are looked at are left
    out. `most_rows` caps sources by name: templated ones teach little.
    """
    own_rows = read_corpus([own])
    given = read_corpus(extra) if extra else []
    extra_rows = _capped([r for r in given if r.stated_split in ("", "train")], most_rows or {})
    dev_rows = read_corpus(dev) if dev else []
    seen = {r.sha256 for r in dev_rows}
    own_rows = [r for r in own_rows if r.sha256 not in seen]
    seen |= {r.sha256 for r in own_rows}
    extra_rows = [r for r in extra_rows if r.sha256 not in seen]
    if not dev:
        # A group may hold rows of both files; its hash puts them on the same side, but for ours that are looked at.
        dev_rows = [r for r in own_rows if r.split == "test"]
        looked_at = {r.group for r in dev_rows}
        extra_rows = [r for r in extra_rows if r.group not in looked_at]
    # Ours has far more hard requests than traffic has, so it calibrates only where there is nothing else.
    traffic = [r for r in extra_rows if r.label == RUBRIC] or [r for r in own_rows if r.label == RUBRIC]
    calibration = [r for r in traffic if r.split == "dev"]
    return Data(
        train=[r for r in own_rows if r.split == "train"] + [r for r in extra_rows if r.split != "dev"],
        calibration=calibration,
        dev=[r for r in dev_rows if r.judges],
        traffic=[r for r in traffic if r.judges],
    )


def publishable() -> list[Row]:
    """Rows of this project's own `data/` that train: a manifest may hold their text, whatever a bundle is made of.

    Raises:
        InputError: they are not there.
    """
    try:
        return [row for row in read_corpus([OWN_DATA]) if row.split == "train"]
    except InputError as error:
        raise InputError(
            "golden inputs are requests of this project's data/ and never of users, whatever --data says, and it is "
            f"not there; build in a checkout of the project that has it ({error})"
        ) from error


def _capped(rows: Sequence[Row], most_rows: Mapping[str, int]) -> list[Row]:
    """At most as many rows of a source train as `most_rows` says, chosen by their hash; rows that calibrate stay."""
    kept: Counter[str] = Counter()
    chosen = {r.sha256 for r in rows if r.split == "dev"}
    for row in sorted((r for r in rows if r.split != "dev"), key=lambda r: r.sha256):
        kept[row.source] += 1
        if kept[row.source] <= most_rows.get(row.source, len(rows)):
            chosen.add(row.sha256)
    return [r for r in rows if r.sha256 in chosen]


def without_learnt(data: Data, learnt: Sequence[str], say: Callable[[str], object]) -> Data:
    """The data without those rows to calibrate on and to look at that a base has learnt from."""
    packed, parts = pack_rows(learnt), {}
    for name in ("calibration", "dev"):
        rows = getattr(data, name)
        parts[name] = outside(rows, packed)
        if known := len(rows) - len(parts[name]):
            say(f"{known} {name} rows are left out: the base was trained on them")
    return replace(data, **parts)
