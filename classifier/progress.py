"""What became of rows, counted, and how far a run is.

Pure. Knows nothing of how rows are labelled.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_EXAMPLES = 3
_MAX_REASONS = 100


@dataclass(slots=True)
class Tally:
    """What became of rows. Tallies add up.

    Attributes:
        rows: all of them.
        tiers: rows by tier.
        formats: rows by format.
        errors: bad rows by reason.
        examples: the first few bad rows of each reason, as file:row.
        moved: values by column that did not fit and went to `classifier_extra`.
        repeats: rows whose input had just been answered.
        golden_ok: whether the golden inputs replayed on this processor.
    """

    rows: int = 0
    tiers: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    moved: Counter[str] = field(default_factory=Counter)
    repeats: int = 0
    golden_ok: bool = True

    @property
    def bad(self) -> int:
        """Rows with an error."""
        return sum(self.errors.values())

    def failed(self, row: tuple[str, int], error: str) -> None:
        """One more bad row (file, number). Its reason goes without numbers, so that like rows are counted together."""
        reason = re.sub(r"(?<!UTF-)(?<!limit is )\b\d+", "N", error)
        reason = reason if reason in self.errors or len(self.errors) < _MAX_REASONS else "other reasons"
        self.errors[reason] += 1
        examples = self.examples.setdefault(reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(f"{row[0]}:{row[1]}")

    def add(self, other: Tally) -> None:
        """Adds a later tally to this one."""
        self.rows += other.rows
        for name in ("tiers", "formats", "errors", "moved"):
            getattr(self, name).update(getattr(other, name))
        for reason, examples in other.examples.items():
            mine = self.examples.setdefault(reason, [])
            mine.extend(examples[: _EXAMPLES - len(mine)])
        self.repeats += other.repeats
        self.golden_ok = self.golden_ok and other.golden_ok

    def to_json(self) -> dict[str, Any]:
        """As plain JSON."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Tally:
        """What `to_json` made."""
        counters = {name: Counter(data[name]) for name in ("tiers", "formats", "errors", "moved")}
        return cls(**{**data, **counters})


@dataclass(slots=True)
class Position:
    """How far the reading of an input is.

    Attributes:
        done: bytes of the sources that were read to their end, before decompression.
        current: bytes of the one that is read now.
        rows: rows that were handed on.
    """

    done: int = 0
    current: int = 0
    rows: int = 0

    @property
    def bytes(self) -> int:
        """Bytes read of all sources."""
        return self.done + self.current


@dataclass(slots=True)
class Progress:
    """How far a run is.

    Attributes:
        tally: of everything that is done, earlier runs included.
        resumed_rows: rows of it that an earlier run had done.
        position: how far the reading is.
        total_bytes: of the input; 0 where nobody says.
        limit: the most rows that are wanted; None means all.
    """

    tally: Tally = field(default_factory=Tally)
    resumed_rows: int = 0
    position: Position = field(default_factory=Position)
    total_bytes: int = 0
    limit: int | None = None

    @property
    def share(self) -> float:
        """Share of the rows that is done, 0 to 1, rows to come taken to be as long as those read; 0 where unknown."""
        read = self.position
        if not self.total_bytes or not read.bytes:
            return 0.0
        rows = read.rows * max(1.0, self.total_bytes / read.bytes)
        rows = rows if self.limit is None else min(rows, self.limit)
        return min(1.0, self.tally.rows / max(rows, 1.0))
