"""Decisions and their outcomes → what may be learnt from them: noisy interval rows, closed labels, an evaluation log.

An outcome says something about an interval of tiers (DESIGN 4.4), and only where it judges *quality*: accepted at t
means label <= t, rejected at t label > t, escalated from t and accepted at u both. Each row carries its own eta
(`training.outcome_noise`). What stays out is counted, never guessed.

Three traps, and what is done about them:
- *Silence is missing*, not praise. The likelihood may leave it out where the chance of reporting depends on the tier
  and the caller alone; that chance is modelled for evaluation. Where a caller reports failures and hardly ever an
  acceptance, its failures are not representative, and no arithmetic on the log tells by how much: the caller's rows
  are left out as `one_sided`. A gateway that cannot report acceptances must audit a random sample.
- *A flood or a liar* moves little: of the summed weight, no principal has more than `principal_share`, or an equal
  share where the principals are too few for that. What is over the cap is left out, chosen by a hash.
- *Exploration* needs no weights in training: the choice depended on the text and on chance alone. The propensities go
  into the log, for `training.off_policy`.

Closed rows are known *because* of what was chosen: a request that did well at standard might have done at simple and
stays open. Thresholds fitted on them alone drift upwards; prefer audits, tried from the cheapest tier up.

Knows nothing of models, stores or files.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier.errors import InvalidRequest
from classifier.labels import outcome_interval
from classifier.policy import exploration
from classifier.types import TIERS, Request, Tier
from training.corpus import OUTCOME, Row, parse_row
from training.outcome_noise import error_rates, eta_of, reporting_chances

ExportRow = Mapping[str, Any]
SOURCE = "feedback"
_DAY = 86_400.0


LEFT_OUT: Mapping[str, str] = {
    "no_decision": "an outcome whose decision is not there",
    "silent": "nothing was reported: missing, not praise",
    "not_quality": "a timeout, a rate limit, a full context or a rule: nothing about complexity",
    "no_text": "the request's text was not kept",
    "unusable": "the text is no valid request",
    "one_sided": "its caller reports failures and hardly an acceptance",
    "duplicate": "the same principal judged the same request at the same tier again: the latest counts",
    "capped": "its principal had its share already",
    "says_nothing": "accepted at the top tier: every label is possible",
    "unserved": "satisfied nowhere: trains as frontier, and is out of the closed labels",
}
"""Name in `FeedbackSet.counts` → what it counts."""


@dataclass(frozen=True, slots=True)
class SetOptions:
    """How a feedback set is made.

    Attributes:
        principal_share: highest share of the summed weight that one principal's rows have, in (0, 1].
        principal_label: a label that tells a caller's own clients apart, such as tenant; "" makes the caller the
            principal. Labels are the gateway's word: use one that it sets itself.
        half_life_days: age at which an outcome weighs half.
        fewest_outcomes: outcomes of a caller from which it is judged to be one-sided.
        fewest_accepted: share of acceptances among a caller's outcomes below which it is.
    """

    principal_share: float = 0.2
    principal_label: str = ""
    half_life_days: float = 30.0
    fewest_outcomes: int = 30
    fewest_accepted: float = 0.05

    def __post_init__(self) -> None:
        for name in ("principal_share", "half_life_days"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected more than 0")


@dataclass(frozen=True, slots=True)
class Closed:
    """A label that is known to the tier.

    Attributes:
        row: an OUTCOME row, its probabilities one-hot.
        decided_at: seconds since the epoch: hold out by it.
        principal: who reported.
    """

    row: Row
    decided_at: float
    principal: str


@dataclass(frozen=True, slots=True)
class Log:
    """What evaluation needs of every decision, reported or not, oldest first. n rows.

    Attributes:
        requests: (n,) the request, or None where its text is not there.
        probabilities: (n, 4) float32 of the bundle that decided.
        chosen: (n,) int64, index of the tier that was decided.
        base: (n,) int64, index of the tier before exploration.
        propensities: (n, 4) float64: P(the log would have had this tier), rows sum to 1; 0 is no support.
        reporting: (n,) float64, P(an outcome came in), by tier and caller.
        observed: (n,) bool, an outcome of quality at the decided tier came in.
        at_least: (n,) int64, index of the lowest tier that the label may be; 0 where not observed.
        at_most: (n,) int64, index of the highest; 3 where not observed.
        floors: (n,) int64, index of the request's floor; 0 without.
        ceilings: (n,) int64, index of the request's ceiling; 3 without.
        principals: (n,) str.
        decided_at: (n,) float64, seconds since the epoch.
    """

    requests: tuple[Request | None, ...]
    probabilities: NDArray[np.float32]
    chosen: NDArray[np.int64]
    base: NDArray[np.int64]
    propensities: NDArray[np.float64]
    reporting: NDArray[np.float64]
    observed: NDArray[np.bool_]
    at_least: NDArray[np.int64]
    at_most: NDArray[np.int64]
    floors: NDArray[np.int64]
    ceilings: NDArray[np.int64]
    principals: NDArray[np.str_]
    decided_at: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def explored(self) -> bool:
        """Whether any decision had a chance of another tier: else the log says nothing about other choices."""
        return bool((self.propensities.max(axis=1, initial=0.0) < 1.0).any()) if len(self) else False

    def take(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Log:
        """The given rows."""
        index = np.arange(len(self))[rows]
        values = {name: getattr(self, name)[index] for name in self.__slots__ if name != "requests"}
        return Log(requests=tuple(self.requests[i] for i in index), **values)


@dataclass(frozen=True, slots=True)
class FeedbackSet:
    """What `build` makes.

    Attributes:
        rows: noisy interval rows to train on: kind OUTCOME, with weight and eta.
        closed: labels known to the tier; see the module's text for what they are worth.
        log: for off-policy evaluation.
        counts: `decisions`, `outcomes`, `rows`, `closed`, `log`, and how many outcomes were left out, by why.
        error_rates: by source: P(accepts | bad), P(fails | good).
        etas: by "source/accepted" and "source/failed".
        reporting: by "tier/caller": decisions, and the share of them with an outcome of quality.
        shares: by principal, its share of the rows' summed weight.
    """

    rows: list[Row]
    closed: list[Closed]
    log: Log
    counts: dict[str, int]
    error_rates: dict[str, tuple[float, float]]
    etas: dict[str, float]
    reporting: dict[str, tuple[int, float]]
    shares: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        """What a receipt keeps: everything but rows, which hold text."""
        return {
            "counts": self.counts,
            "error_rates": {k: list(v) for k, v in self.error_rates.items()},
            "etas": self.etas,
            "reporting": {k: list(v) for k, v in self.reporting.items()},
            "shares": self.shares,
        }


@dataclass(slots=True)
class _Evidence:
    source: ExportRow
    principal: str
    low: Tier
    high: Tier
    weight: float


def build(rows: Iterable[ExportRow], *, now: float | None = None, options: SetOptions | None = None) -> FeedbackSet:
    """The feedback set of an export.

    Args:
        rows: as `classifier.exports.export_row` makes them, with or without `--history`. With it, repeated verdicts
            tell how often sources are wrong; of each decision only the effective outcome becomes evidence.
        now: seconds since the epoch, for ages; None means the latest decision.
        options: caps and weights.

    Returns:
        The set. The same rows in another order make the same set.
    """
    options = options or SetOptions()
    counts: Counter[str] = Counter(dict.fromkeys(LEFT_OUT, 0))
    decisions: dict[tuple[str, str], ExportRow] = {}
    judged: list[ExportRow] = []
    for row in rows:
        if row["decided_at"] is None:
            counts["no_decision"] += 1
            continue
        if _is_quality(row):
            judged.append(row)
        key = (row["caller"], row["decision_id"])
        if row["effective"] or key not in decisions:
            decisions[key] = row
    kept = sorted(decisions.values(), key=lambda r: (r["decided_at"], r["decision_id"]))
    now = now if now is not None else max((r["decided_at"] for r in kept), default=0.0)
    principals = [_principal(row, options) for row in kept]
    one_sided = _one_sided(kept, principals, options)
    counts["decisions"] = len(kept)
    counts["outcomes"] = sum(row["outcome_id"] is not None for row in kept)
    rates = error_rates(*_verdicts([r for r in judged if _principal(r, options) not in one_sided], options))
    evidence: dict[tuple[str, str, str], _Evidence] = {}
    for row, principal in zip(kept, principals, strict=True):
        found = _evidence(row, principal, one_sided, now, options)
        if isinstance(found, str):
            counts[found] += 1
            continue
        key3 = (principal, row["request_hash"] or row["decision_id"], row["served_tier"])
        earlier = evidence.pop(key3, None)
        counts["duplicate"] += earlier is not None
        evidence[key3] = found
    counts["unserved"] = sum(_unserved(e.source) for e in evidence.values())
    used, counts["capped"] = _capped(list(evidence.values()), options)
    trained, closed = [], []
    for e in used:
        made = _row(e, rates)
        if made is None:
            counts["unusable"] += 1
            continue
        trained.append((e, made))
        if not _unserved(e.source) and _closed_tier(e) is not None:
            closed.append(_closed(e, made))
    log, table = _log(kept, principals)
    counts.update({"rows": len(trained), "closed": len(closed), "log": len(log)})
    totals: dict[str, float] = defaultdict(float)
    for e, made in trained:
        totals[e.principal] += made.weight
    weight = sum(totals.values())
    return FeedbackSet(
        rows=[made for _, made in trained],
        closed=closed,
        log=log,
        counts=dict(counts),
        error_rates=rates,
        etas={
            f"{name}/{'accepted' if said else 'failed'}": eta_of(pair, accepted=said)
            for name, pair in rates.items()
            for said in (True, False)
        },
        reporting=table,
        shares={name: total / weight for name, total in sorted(totals.items())},
    )


def _is_quality(row: ExportRow) -> bool:
    return row["outcome_id"] is not None and row["cause"] == "quality"


def _principal(row: ExportRow, options: SetOptions) -> str:
    caller = str(row["caller"] or "")
    if not options.principal_label:
        return caller
    return f"{caller}/{(row['labels'] or {}).get(options.principal_label, '')}"


def _one_sided(rows: Sequence[ExportRow], principals: Sequence[str], options: SetOptions) -> set[str]:
    told: dict[str, list[bool]] = defaultdict(list)
    for row, principal in zip(rows, principals, strict=True):
        if _is_quality(row) and row["served_tier"] != TIERS[-1].label:
            told[principal].append(row["verdict"] == "accepted")
    return {
        name
        for name, said in told.items()
        if len(said) >= options.fewest_outcomes and sum(said) < options.fewest_accepted * len(said)
    }


def _verdicts(rows: Sequence[ExportRow], options: SetOptions) -> tuple[list[str], list[int], list[str], list[bool]]:
    """Items, tiers, sources and verdicts for `error_rates`; of a principal and a source, one word on an item."""
    found: dict[tuple[str, str, str, str], ExportRow] = {}
    for row in sorted(rows, key=lambda r: (r["occurred_at"], r["outcome_id"])):
        item = f"{row['request_hash'] or row['decision_id']}/{row['served_tier']}"
        # Two tries at one request are two words, though of one source; two reports of one try are one.
        found[item, _principal(row, options), row["source"], f"{row['decision_id']}/{row['outcome_id']}"] = row
    seen: Counter[tuple[str, str]] = Counter()
    items, tiers, sources, said = [], [], [], []
    for (item, principal, source, _), row in found.items():
        seen[item, principal] += 1
        if seen[item, principal] > _MOST_WORDS:
            continue
        items.append(item)
        tiers.append(Tier.parse(row["served_tier"]).index)
        sources.append(source)
        said.append(row["verdict"] == "accepted")
    return items, tiers, sources, said


_MOST_WORDS = 5
"""Verdicts of one principal on one request at one tier that count in estimating errors."""


def _evidence(row: ExportRow, principal: str, one_sided: set[str], now: float, options: SetOptions) -> _Evidence | str:
    if row["outcome_id"] is None:
        return "silent"
    if not _is_quality(row):
        return "not_quality"
    if principal in one_sided:
        return "one_sided"
    if row["request"] is None:
        return "no_text"
    low, high = _interval(row)
    if (low, high) == (TIERS[0], TIERS[-1]):
        return "says_nothing"
    age = max(0.0, now - float(row["decided_at"])) / _DAY
    return _Evidence(row, principal, low, high, 0.5 ** (age / options.half_life_days))


def _interval(row: ExportRow) -> tuple[Tier, Tier]:
    accepted = None if row["accepted_tier"] is None else Tier.parse(row["accepted_tier"])
    return outcome_interval(row["verdict"], Tier.parse(row["served_tier"]), accepted)


def _unserved(row: ExportRow) -> bool:
    return row["served_tier"] == TIERS[-1].label and row["verdict"] != "accepted"


def _capped(evidence: list[_Evidence], options: SetOptions) -> tuple[list[_Evidence], int]:
    """What is left once each principal is held to its share, and how many were left out."""
    by: dict[str, list[_Evidence]] = defaultdict(list)
    for e in evidence:
        by[e.principal].append(e)
    if len(by) < 2:
        return evidence, 0
    share = max(options.principal_share, 1 / len(by))
    cap = _cap([sum(e.weight for e in mine) for mine in by.values()], share)
    used: list[_Evidence] = []
    for mine in by.values():
        total = 0.0
        for e in sorted(mine, key=lambda e: _position(str(e.source["decision_id"]))):
            room = cap - total
            if room <= cap * 1e-9:
                break
            used.append(replace(e, weight=min(e.weight, room)))  # the last one fills what is left
            total += used[-1].weight
    used.sort(key=lambda e: (e.source["decided_at"], e.source["decision_id"]))
    return used, len(evidence) - len(used)


def _cap(totals: Sequence[float], share: float) -> float:
    """The largest c with c <= share * sum(min(total, c))."""
    ordered = sorted(totals, reverse=True)
    if ordered[0] <= share * sum(ordered):
        return ordered[0]
    for above in range(1, len(ordered) + 1):
        # With the `above` largest held to c: c = share * (above * c + the rest).
        rest, room = sum(ordered[above:]), 1 - share * above
        if room <= 1e-12:
            return ordered[above - 1]
        c = share * rest / room
        if above == len(ordered) or c >= ordered[above]:
            return c
    raise AssertionError("unreachable")


def _position(name: str) -> bytes:
    return hashlib.sha256(f"cap/{name}".encode()).digest()


def _row(e: _Evidence, rates: Mapping[str, tuple[float, float]]) -> Row | None:
    row = e.source
    data = {
        **row["request"],
        "id": row["decision_id"],
        "at_least": e.low.label,
        "at_most": e.high.label,
        "label": OUTCOME,
        "source": SOURCE,
        "group": row["request_hash"] or row["decision_id"],
        "weight": max(e.weight, 1e-6),
        "eta": eta_of(rates[row["source"]], accepted=row["verdict"] == "accepted"),
    }
    try:
        return parse_row(data, SOURCE)
    except (InvalidRequest, ValueError):
        return None


def _closed_tier(e: _Evidence) -> Tier | None:
    if e.source["accepted_tier"] is not None or e.low == e.high:
        return e.high
    return None


def _closed(e: _Evidence, row: Row) -> Closed:
    tier = _closed_tier(e)
    assert tier is not None
    one_hot = tuple(1.0 if t is tier else 0.0 for t in TIERS)
    made = replace(row, probabilities=one_hot, at_least=tier, at_most=tier, eta=None, stated_tier=tier)  # type: ignore[arg-type]
    return Closed(made, float(e.source["decided_at"]), e.principal)


def _log(rows: Sequence[ExportRow], principals: Sequence[str]) -> tuple[Log, dict[str, tuple[int, float]]]:
    """The log of the decisions that the tier was served as decided, and the reporting shares by tier and caller."""
    keep = [
        (row, who)
        for row, who in zip(rows, principals, strict=True)
        # A route that moved the tier, or a gateway that served another, broke the known propensity.
        if row["reason"] != "route" and row["served_tier"] in (None, row["tier"])
    ]
    kept, names = [row for row, _ in keep], [who for _, who in keep]
    n = len(kept)
    observed = np.array([_is_quality(row) for row in kept], dtype=bool)
    cells = [f"{row['tier']}/{row['caller'] or ''}" for row in kept]
    reporting = reporting_chances(cells, observed)
    intervals = [_interval(row) if seen else (TIERS[0], TIERS[-1]) for row, seen in zip(kept, observed, strict=True)]
    behaviour = [_behaviour(row) for row in kept]
    floors = [0 if row["floor"] is None else Tier.parse(row["floor"]).index for row in kept]
    ceilings = [len(TIERS) - 1 if row["ceiling"] is None else Tier.parse(row["ceiling"]).index for row in kept]
    table: dict[str, list[bool]] = defaultdict(list)
    for cell, seen in zip(cells, observed.tolist(), strict=True):
        table[cell].append(seen)
    return Log(
        requests=tuple(_request(row) for row in kept),
        probabilities=np.array([row["probabilities"] for row in kept], dtype=np.float32).reshape(n, len(TIERS)),
        chosen=np.array([Tier.parse(row["tier"]).index for row in kept], dtype=np.int64),
        base=np.array([base.index for base, _ in behaviour], dtype=np.int64),
        propensities=np.array([p for _, p in behaviour], dtype=np.float64).reshape(n, len(TIERS)),
        reporting=reporting,
        observed=observed,
        at_least=np.array([low.index for low, _ in intervals], dtype=np.int64),
        at_most=np.array([high.index for _, high in intervals], dtype=np.int64),
        floors=np.array(floors, dtype=np.int64),
        ceilings=np.array(ceilings, dtype=np.int64),
        principals=np.array(names, dtype=np.str_),
        decided_at=np.array([row["decided_at"] for row in kept], dtype=np.float64),
    ), {name: (len(seen), float(np.mean(seen))) for name, seen in sorted(table.items())}


def _behaviour(row: ExportRow) -> tuple[Tier, list[float]]:
    """The tier before exploration, and the chance of each tier, from the propensity of the one that was drawn."""
    tier, propensity = Tier.parse(row["tier"]), float(row["propensity"])
    ceiling = None if row["ceiling"] is None else Tier.parse(row["ceiling"])
    base, epsilon = tier, 1.0 - propensity
    if row["reason"] == "explored":
        base = Tier.parse(row["model_tier"])
        base = base if ceiling is None else min(base, ceiling)
        share = exploration(base, 0.5, ceiling=ceiling).get(tier, 0.0) / 0.5
        epsilon = propensity / share if share > 0 else 0.0
    chances = exploration(base, min(epsilon, 1.0), ceiling=ceiling)
    return base, [chances.get(t, 0.0) for t in TIERS]


def _request(row: ExportRow) -> Request | None:
    if row["request"] is None:
        return None
    try:
        return Request.from_json(row["request"])
    except InvalidRequest:
        return None
