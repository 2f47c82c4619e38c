"""Corpus files → rows: read, validate, remove duplicates, split by group.

A line is `{"id", "messages" or "prompt"}` with a label: `tier`, or `probabilities` [4], or `at_least`/`at_most`, or
`success_by_tier` (share of tries that satisfied at each tier, an OUTCOME label), or none (a transfer set). Optional:
`label`, its kind; `source, language, kind, group, family, weight, licence, tools, attachments`, and `labels`, the small
facts that a gateway sends with a request. See data/GUIDELINES.md.

Knows nothing of models, tokens or weights.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier.conversations import asked
from classifier.errors import InputError, InvalidRequest
from classifier.texts import json_text
from classifier.turns import with_turns
from classifier.types import TIERS, Request, Tier
from training.corpus_files import expand, read_lines
from training.label_fields import KINDS, one_hot, stated_label

OWN_DATA = Path(__file__).parent.parent / "data"
"""The corpus written for this project."""
RUBRIC, OUTCOME, UNLABELLED = KINDS
EXPORTED = frozenset({"decision_id", "outcome_id"})
"""Names by which a row of an export of the feedback store is told from a corpus line."""
SPLITS = (("train", 0.8), ("dev", 0.1), ("test", 0.1))


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled (or unlabelled) request.

    Attributes:
        id: unique in its file.
        request: what is classified.
        probabilities: P(label = tier), cheapest first, summing to 1; None where only an interval, or nothing, is known.
        at_least: lowest tier that the label may be.
        at_most: highest tier that the label may be.
        label: `RUBRIC`, `OUTCOME` or `UNLABELLED`; the kinds are never mixed in one calibration set.
        source: where it came from; cross-validation splits by it.
        language: ISO 639-1 code, or "und".
        kind: the kind of work.
        group: rows of one group (twins, translations, one document) are never split.
        family: the contrast family, or "".
        weight: relative weight in training, above 0.
        sha256: of the conversation, for overlap checks.
        stated_split: the file's own split, or "".
        stated_tier: the file's own tier; beside `probabilities` it is what the readers settled on.
        eta: chance that the interval is wrong, in [0, 0.5); None where training's own setting holds.
        licence: as the file states it, or "".
        unserved: no tier that was tried satisfied. It trains as frontier, and calibrates nothing.
        frontier_satisfied: of an interval up to frontier, whether the line states that end: an escalation that ended
            there, and no rejection of which nothing more is known.
    """

    id: str
    request: Request
    probabilities: tuple[float, float, float, float] | None
    at_least: Tier
    at_most: Tier
    label: str
    source: str
    language: str
    kind: str
    group: str
    family: str
    weight: float
    sha256: str
    stated_split: str = ""
    stated_tier: Tier | None = None
    eta: float | None = None
    licence: str = ""
    unserved: bool = False
    frontier_satisfied: bool = False

    @property
    def tier(self) -> Tier:
        """The stated tier; else the most probable one; of an interval its upper end."""
        if self.stated_tier is not None:
            return self.stated_tier
        if self.probabilities is None:
            return self.at_most
        return Tier.from_index(int(np.argmax(self.probabilities)))

    @property
    def closed(self) -> bool:
        """Whether its tier is known, or the chance of each; of an open row an interval or nothing is."""
        return self.label != UNLABELLED and (self.probabilities is not None or self.at_least is self.at_most)

    @property
    def judges(self) -> bool:
        """Whether an answer can be held against its label: known, and of a request that some tier satisfied."""
        return self.closed and not self.unserved

    @property
    def split(self) -> str:
        """`train`, `dev` or `test`: what the file states, else fixed by a hash of the group."""
        return self.stated_split or split_of(self.group)


def read_corpus(paths: Iterable[str | Path], *, repeats: bool = False) -> list[Row]:
    """Every row of the files, folders and globs, in order, later duplicates of a conversation left out.

    Args:
        paths: what to read; a file that is named twice counts once.
        repeats: keep the duplicates, as a sample of traffic that repeats itself has them: each a row with an id, and
            where none is stated a group, of its own.

    Raises:
        InputError: a path matches nothing, or a line cannot be used; the message names file and line.
    """
    rows: list[Row] = []
    times: Counter[str] = Counter()
    for path in expand(paths):
        for row in _read_file(path):
            before = times[row.sha256]
            if repeats or not before:
                rows.append(_repeat(row, before) if before else row)
            times[row.sha256] += 1
    return rows


def write_corpus(path: Path, rows: Iterable[Row]) -> None:
    """Rows as a corpus file; what `read_corpus` reads back is equal."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            data: dict[str, Any] = {
                "id": row.id,
                **row.request.to_json(),
                "label": row.label,
                "source": row.source, "language": row.language, "kind": row.kind, "group": row.group,
                "family": row.family, "weight": row.weight,
            }  # fmt: skip
            if row.request.labels:
                data["labels"] = dict(row.request.labels)
            if row.stated_tier is not None:
                data["tier"] = row.stated_tier.label
            if row.eta is not None:
                data["eta"] = row.eta
            if row.stated_split:
                data["split"] = row.stated_split
            if row.licence:
                data["licence"] = row.licence
            if row.unserved:
                data["unserved"] = True
            if row.probabilities is not None:
                if not _is_plain(row):
                    data["probabilities"] = list(row.probabilities)
            elif row.label != UNLABELLED:
                data["at_least"] = row.at_least.label
                if row.at_most is not TIERS[-1] or row.frontier_satisfied:
                    data["at_most"] = row.at_most.label
            file.write(json_text(data) + "\n")


def parse_row(data: Mapping[str, Any], default_source: str) -> Row:
    """A row from one line's JSON object.

    Raises:
        InvalidRequest: the conversation is not valid.
        ValueError: the label or a field is not.
    """
    if data.keys() >= EXPORTED:
        raise ValueError(
            "it is of an export of the feedback store, as --data of calibrate and guarantee and --prior-shift take "
            "one: as it was written, alone"
        )
    request = request_of_line(data)
    known = stated_label(data)
    digest = conversation_sha256(request)
    weight = float(data.get("weight", 1.0))
    if not (weight > 0 and math.isfinite(weight)):
        raise ValueError(f"weight is {weight}, expected a number above 0")
    eta = None if data.get("eta") is None else float(data["eta"])
    if eta is not None and not 0 <= eta < 0.5:
        raise ValueError(f"eta is {eta}, expected 0 up to 0.5: evidence that is wrong more often than right is none")
    source = _text_of(data, "source", default_source)
    identity = _text_of(data, "id", digest[:16])
    return Row(
        id=identity,
        request=request,
        probabilities=known.probabilities,
        at_least=known.at_least,
        at_most=known.at_most,
        label=known.label,
        source=source,
        language=str(data.get("language") or "und"),
        kind=str(data.get("kind") or data.get("category") or "other"),
        group=_text_of(data, "group", f"{source}/{identity}"),
        family=str(data.get("family") or ""),
        weight=weight,
        sha256=digest,
        stated_split=_stated_split(data),
        stated_tier=Tier.parse(str(data["tier"])) if data.get("tier") is not None else None,
        eta=eta,
        licence=str(data.get("licence") or ""),
        unserved=known.unserved,
        frontier_satisfied=known.frontier_satisfied,
    )


def request_of_line(data: Mapping[str, Any]) -> Request:
    """The request that was made: the labels that a gateway sent with it, no answer behind it.

    Raises:
        InvalidRequest: the conversation is not valid.
        ValueError: `labels` is no object, or there is no conversation.
    """
    labels = data.get("labels") or {}
    if not isinstance(labels, Mapping):
        raise ValueError(f"labels is a {type(labels).__name__}, expected an object of texts")  # noqa: TRY004 - as its kin
    if not data.get("messages") and data.get("prompt") is None:
        raise ValueError("neither messages nor prompt is there")
    labelled = {str(name): str(value) for name, value in labels.items()}
    return asked(Request.from_json(with_turns(data), labels=labelled))


def conversation_sha256(request: Request) -> str:
    """Names a conversation, whatever its white space: rows that share it are one."""
    texts = [[m.role, " ".join(m.content.split())] for m in request.messages]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def split_of(group: str) -> str:
    """`train`, `dev` or `test` of a group: fixed by a hash of its name, so that no later row moves it.

    >>> split_of("a") == split_of("a")
    True
    """
    position = int.from_bytes(hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64
    for name, share in SPLITS:
        if position < share:
            return name
        position -= share
    return SPLITS[-1][0]


def soft_labels(rows: Sequence[Row]) -> NDArray[np.float32]:
    """P(label = tier) of rows that have it: (rows, 4) float32; NaN where only an interval is known."""
    missing = (math.nan,) * len(TIERS)
    return np.array([row.probabilities or missing for row in rows], dtype=np.float32).reshape(-1, len(TIERS))


def tiers(rows: Sequence[Row]) -> NDArray[np.int64]:
    """Index of each row's tier: (rows,) int64, 0 is the cheapest."""
    return np.array([row.tier.index for row in rows], dtype=np.int64)


def data_sha256(rows: Iterable[Row]) -> str:
    """One hash over conversations and labels, whatever their order: names the data a model was trained on."""
    parts = sorted(
        f"{r.sha256}:{r.probabilities}:{r.at_least}:{r.at_most}:{r.weight}" + ("" if r.eta is None else f":{r.eta}")
        for r in rows
    )
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _is_plain(row: Row) -> bool:
    """Whether a tier is all that is known of the label."""
    tier = row.stated_tier
    return tier is not None and row.at_least is row.at_most is tier and row.probabilities == one_hot(tier)


def _text_of(data: Mapping[str, Any], name: str, default: str) -> str:
    """A name as a line has it; 0 is one, as numbers of groups begin with it."""
    value = data.get(name)
    return default if value is None or value == "" else str(value)


def _repeat(row: Row, number: int) -> Row:
    group = f"{row.group}#{number}" if row.group == f"{row.source}/{row.id}" else row.group
    return replace(row, id=f"{row.id}#{number}", group=group)


def _stated_split(data: Mapping[str, Any]) -> str:
    split = str(data.get("split") or "")
    if split not in ("", *(name for name, _ in SPLITS)):
        raise ValueError(f"split is {split!r}, expected one of {', '.join(name for name, _ in SPLITS)}")
    return split


def _read_file(path: Path) -> Iterator[Row]:
    default_source = path.name.split(".")[0]
    for number, line in read_lines(path):
        try:
            row = parse_row(json.loads(line), default_source)
        except (ValueError, InvalidRequest, AttributeError, TypeError, RecursionError) as error:
            raise InputError(
                f"{path}:{number}: not a usable corpus line ({error}); see data/GUIDELINES.md for the format"
            ) from error
        yield row
