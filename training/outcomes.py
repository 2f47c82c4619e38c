"""Files of outcomes: requests whose success on every tier is known, so that any router can be replayed on them.

A line has `prompt` or `messages`, `source`, `success_by_tier` (tier → share of tries that satisfied, 0 to 1) and
optionally `split` and a gateway's `labels`.

Knows nothing of models or measures.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from classifier.errors import InputError, InvalidRequest
from classifier.types import TIERS, Request
from training.corpus import request_of_line
from training.corpus_files import expand, read_lines
from training.label_fields import success_rates

SPLIT = "dev"
"""What is read of files whose rows state a split: the others are to learn from, or to look at once."""
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Requests with their success on every tier.

    Attributes:
        requests: what was asked.
        success: (n, 4) float64 in [0, 1], cheapest tier first; NaN where nobody tried.
        sources: (n,) str.
    """

    requests: list[Request]
    success: Array
    sources: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.requests)

    def take(self, rows: NDArray[np.bool_]) -> Outcomes:
        """The rows where `rows`, (n,) bool, is true."""
        kept = np.flatnonzero(rows)
        return Outcomes([self.requests[i] for i in kept], self.success[kept], self.sources[kept])

    @property
    def characters(self) -> Array:
        """(n,) length of each conversation."""
        return np.array([r.characters for r in self.requests], dtype=np.float64)


def read_outcomes(paths: Sequence[str | Path]) -> Outcomes:
    """The outcomes in files, folders and globs (`.jsonl`, `.jsonl.gz`): of rows of `SPLIT`, and those that state none.

    Args:
        paths: what to read.

    Raises:
        InputError: a path matches nothing, a line has no outcomes, or no row is left.
    """
    requests, success, sources = [], [], []
    for path in expand(paths):
        for number, line in read_lines(path):
            try:
                row = json.loads(line)
                if row.get("split", SPLIT) != SPLIT:
                    continue
                known = success_rates(row["success_by_tier"])
                success.append([known.get(tier, np.nan) for tier in TIERS])
                requests.append(request_of_line(row))
                sources.append(str(row.get("source") or path.name.split(".")[0]))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidRequest) as error:
                raise InputError(
                    f"{path}:{number}: not an outcome row ({type(error).__name__}: {error}); it takes prompt and "
                    "success_by_tier, tier to share of tries that satisfied"
                ) from error
    if not requests:
        raise InputError(
            f"{', '.join(map(str, paths))}: no row of the split {SPLIT!r}; rows that state no split are of every one"
        )
    return Outcomes(requests, np.array(success, dtype=np.float64).reshape(-1, len(TIERS)), np.array(sources))
