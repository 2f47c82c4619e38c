"""How far readers agree: raw agreement and quadratic kappa, of pairs of votes on the same row.

Votes of one model are compared with one another (does it agree with itself?), those of two models across. Where both
are of one model, and over all pairs, the order within a pair says nothing, so each counts both ways.

Pure.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from classifier.metrics import accuracy, quadratic_kappa
from classifier.types import Tier

Votes = Mapping[str, Sequence[Tier]]
"""Of one row: reader → its votes."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far two sides agree.

    Attributes:
        pairs: pairs of votes compared.
        raw: share of them that are alike; NaN without a pair.
        kappa: quadratic kappa; NaN where there is none.
    """

    pairs: int
    raw: float
    kappa: float

    def as_text(self) -> str:
        """Both numbers, for a terminal."""
        kappa = "no kappa, all are one tier" if math.isnan(self.kappa) else f"quadratic kappa {self.kappa:.3f}"
        return f"{self.raw:.3f} alike, {kappa}"


def between(first: Sequence[Tier], second: Sequence[Tier]) -> Agreement:
    """The agreement of paired votes.

    >>> between([Tier.SIMPLE, Tier.COMPLEX], [Tier.SIMPLE, Tier.FRONTIER]).raw
    0.5
    """
    if not first:
        return Agreement(0, math.nan, math.nan)
    one, other = [tier.index for tier in first], [tier.index for tier in second]
    return Agreement(len(one), accuracy(one, other), quadratic_kappa(one, other))


def pairwise(rows: Sequence[Votes]) -> dict[tuple[str, str], Agreement]:
    """The agreement of every two readers, and of each that votes several times with itself."""
    readers = sorted({reader for row in rows for reader in row})
    found = {}
    for a, b in itertools.combinations_with_replacement(readers, 2):
        if a == b:
            agreed = _among([row.get(a, ()) for row in rows])
        else:
            pairs = [pair for row in rows for pair in itertools.product(row.get(a, ()), row.get(b, ()))]
            agreed = between([p[0] for p in pairs], [p[1] for p in pairs])
        if agreed.pairs:
            found[a, b] = agreed
    return found


def overall(rows: Sequence[Votes]) -> Agreement:
    """The agreement of all pairs of votes, whoever gave them."""
    return _among([[vote for votes in row.values() for vote in votes] for row in rows])


def _among(rows: Sequence[Sequence[Tier]]) -> Agreement:
    """The agreement of all pairs of votes within each row, each pair both ways."""
    pairs = [pair for votes in rows for pair in itertools.permutations(votes, 2)]
    found = between([p[0] for p in pairs], [p[1] for p in pairs])
    return Agreement(found.pairs // 2, found.raw, found.kappa)
