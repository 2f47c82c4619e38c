"""Who reports, and how much any one of them may move: shares, and who contradicts the others.

A principal is a caller, or one of its clients where a label that the gateway sets tells them apart. Two limits:

- *A share.* No principal has more than a share of the weight, or an even share where they are too few for that. What is
  over is left out, chosen by a hash.
- *A contradiction.* On audits, a principal that misses more at the threshold which the others' audits give than chance
  would explain, were one of the others a liar, is left out, and named. It lies, or its requests are of another kind;
  either way a threshold for all of them would be wrong for somebody. Where thresholds go by groups, the
  others are those of its group.

Together they bound what a liar among the audits does to everybody else (`others_alphas`), whatever it says. A flood is
cut to the share, and a lie that goes unnoticed must be told so seldom that it looks like chance.

Knows nothing of stores, text or models.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeVar

import numpy as np
import scipy
from numpy.typing import NDArray

from classifier.policy import choose_many
from training.decision_log import ExportRow
from training.risk_control import thresholds_of_others
from training.step_losses import routing_losses

T = TypeVar("T")

FEWEST_PRINCIPALS = 3
"""Of two that contradict each other nobody knows which one is right."""
ERROR = 0.001
"""Chance that any honest principal is said to contradict the others, in one round."""


def principal_of(row: ExportRow, label: str = "") -> str:
    """The caller of an export row, with the value of `label` where one tells a caller's clients apart."""
    caller = str(row["caller"] or "")
    return f"{caller}/{(row['labels'] or {}).get(label, '')}" if label else caller


def held_to_share(
    items: Sequence[T], share: float, *, principal: Callable[[T], str], name: Callable[[T], str],
    weight: Callable[[T], float], reweighted: Callable[[T, float], T],
) -> tuple[list[T], int]:  # fmt: skip
    """What is left once no principal has more than `share` of the weight, and how many were left out.

    Args:
        items: in any order.
        share: in (0, 1]; an even share takes its place where the principals are fewer than 1 / share.
        principal: whose an item is.
        name: what an item is called; its hash says which ones stay.
        weight: of an item, above 0.
        reweighted: the item with another weight: the last one that stays fills what is left.

    Returns:
        The items that stay, by principal.
    """
    by: dict[str, list[T]] = defaultdict(list)
    for item in items:
        by[principal(item)].append(item)
    if len(by) < 2:
        return list(items), 0
    cap = _cap([sum(map(weight, mine)) for mine in by.values()], max(share, 1 / len(by)))
    used: list[T] = []
    for mine in by.values():
        total = 0.0
        for item in sorted(mine, key=lambda item: _position(name(item))):
            room = cap - total
            if room <= cap * 1e-9:
                break
            kept = min(weight(item), room)
            used.append(reweighted(item, kept))
            total += kept
    return used, len(items) - len(used)


def contradicting(
    probabilities: NDArray[np.float32],
    labels: NDArray[np.float64],
    principals: NDArray[np.str_],
    *,
    alpha: float,
    target: float,
    delta: float = 0.0,
    groups: NDArray[np.str_] | None = None,
) -> dict[str, tuple[int, int]]:
    """Principals that miss more at the threshold of the others than a risk of α explains.

    Args:
        probabilities: (n, 4) of the audits.
        labels: (n, 4) one-hot.
        principals: (n,) whose audit it is.
        alpha: what is promised: the risk that is tested.
        target: what thresholds are fitted to; at most alpha.
        delta: as for `fit_threshold`.
        groups: (n,) the group that each audit's threshold is fitted for: others of the same one are what it may
            contradict. None where all have one threshold.

    Returns:
        Misses and audits by principal, in the groups in which it contradicts. None of a group with fewer than three.
    """
    of = np.zeros(len(principals), dtype=np.int64) if groups is None else np.unique(groups, return_inverse=True)[1]
    parts = [np.flatnonzero(of == group) for group in np.unique(of)]
    parts = [part for part in parts if len(np.unique(principals[part])) >= FEWEST_PRINCIPALS]
    tested = sum(len(np.unique(principals[part])) for part in parts)
    found: dict[str, tuple[int, int]] = {}
    for part in parts:
        names, owner, counts = np.unique(principals[part], return_inverse=True, return_counts=True)
        by_owner = np.split(np.argsort(owner, kind="stable"), np.cumsum(counts)[:-1])
        thresholds = thresholds_of_others(routing_losses(probabilities[part], labels[part]), by_owner, target, delta)
        most, second = np.sort(counts)[[-1, -2]]
        for name, own, threshold in zip(names.tolist(), by_owner, thresholds, strict=True):
            mine = part[own]
            chosen = choose_many(probabilities[mine], threshold)
            misses, largest = (
                int((labels[mine].argmax(axis=1) > chosen).sum()),
                int(second if len(own) == most else most),
            )
            limits = {"others": len(part) - len(own), "largest": largest, "alpha": alpha, "target": target}
            if misses > most_unnoticed(len(mine), tested, **limits):
                before = found.get(name, (0, 0))
                found[name] = (before[0] + misses, before[1] + len(mine))
    return found


@lru_cache(maxsize=256)
def most_unnoticed(count: int, principals: int, *, others: int, largest: int, alpha: float, target: float) -> int:
    """The most misses of an honest principal that chance or one liar explains: more has a chance below `ERROR` overall.

    A risk of α explains so many. So does the threshold, which is fitted on the others' audits and no law of nature. One
    of these may lie that simple was always enough: then the k misses that are left are all of the h others', and the
    risk behind the threshold is Beta(k + 1, h - k). The larger number counts; all, where h is too small to tell.

    Args:
        count: audits of the principal.
        principals: how many there are, in all groups together.
        others: audits of everybody else.
        largest: of these, those of the principal that has the most.
        alpha: as for `contradicting`.
        target: as for `contradicting`.
    """
    error = ERROR / principals
    left = max(math.floor(target * (others + 1)) - 1, 0)
    honest = others - largest
    if honest <= left:
        return count
    by_luck = scipy.stats.betabinom.isf(error, count, left + 1, honest - left)
    return int(max(scipy.stats.binom.isf(error, count, alpha), by_luck))


def others_alphas(n: int, mine: int, alpha: float, target: float, principals: int, largest: int) -> tuple[float, float]:
    """What one principal can make of the target that everybody else's audits are held to: lowest and highest.

    The threshold on n audits is the smallest λ with at most `target` (n + 1) - 1 misses. Whatever the principal says,
    between none and `most_unnoticed` of these are its own at any λ from the others' threshold upwards, so the others'
    audits are held to what is left.

    Args:
        n: audits.
        mine: of these, the principal's.
        alpha: as for `contradicting`.
        target: as for `contradicting`.
        principals: how many there are.
        largest: audits of the other principal that has the most.

    Returns:
        The targets with which `fit_threshold` on the others' audits alone gives the highest and the lowest threshold
        that the principal can bring about; below 0 where it can make the policy infeasible.
    """
    others = n - mine
    allowed = target * (n + 1)
    unnoticed = most_unnoticed(mine, principals, others=others, largest=largest, alpha=alpha, target=target)
    return (allowed - unnoticed) / (others + 1), allowed / (others + 1)


def _cap(totals: Sequence[float], share: float) -> float:
    """The largest c with c <= share * sum(min(total, c)), of a share that is at least an even one."""
    ordered = sorted(totals, reverse=True)
    if ordered[0] <= share * sum(ordered):
        return ordered[0]
    for above in range(1, len(ordered)):
        # With the `above` largest held to c: c = share * (above * c + the rest).
        c = share * sum(ordered[above:]) / (1 - share * above)
        if c >= ordered[above]:
            return c
    return ordered[-1]


def _position(name: str) -> bytes:
    return hashlib.sha256(f"cap/{name}".encode()).digest()
