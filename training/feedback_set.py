"""Decisions and their outcomes → what may be learnt from them: noisy interval rows, closed labels, an evaluation log.

An outcome says something about an interval of tiers, and only where it judges *quality*: accepted at t means
label <= t, rejected at t label > t, escalated from t and accepted at u both. Each row carries its own eta
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

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from classifier.errors import InvalidRequest
from classifier.types import TIERS, Tier
from training.corpus import OUTCOME, Row, parse_row
from training.decision_log import ExportRow, Log, interval, is_quality, is_unserved, make_log
from training.label_fields import one_hot
from training.outcome_noise import error_rates, eta_of
from training.principals import held_to_share, principal_of

SOURCE = "feedback"
_DAY = 86_400.0
_FEWEST_OUTCOMES = 30
"""Of a caller; with fewer it is never called one-sided."""
_MOST_WORDS = 5
"""Verdicts of one principal on one request at one tier that count in estimating errors."""
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
        fewest_accepted: share of acceptances among a caller's outcomes below which it is one-sided.
    """

    principal_share: float = 0.2
    principal_label: str = ""
    half_life_days: float = 30.0
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
        principal: who reported.
    """

    row: Row
    principal: str


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


def build(rows: Iterable[ExportRow], *, options: SetOptions | None = None) -> FeedbackSet:
    """The feedback set of an export.

    Args:
        rows: as `classifier.exports.export_row` makes them, with or without `--history`. With it, repeated verdicts
            tell how often sources are wrong; of each decision only the effective outcome becomes evidence.
        options: caps and weights; an outcome's age is that of its decision beside the latest one.

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
        if is_quality(row):
            judged.append(row)
        key = (row["caller"], row["decision_id"])
        if row["effective"] or key not in decisions:
            decisions[key] = row
    kept = sorted(decisions.values(), key=lambda r: (r["decided_at"], r["decision_id"]))
    now = max((r["decided_at"] for r in kept), default=0.0)
    principals = [principal_of(row, options.principal_label) for row in kept]
    one_sided = _one_sided(kept, principals, options)
    counts["decisions"] = len(kept)
    counts["outcomes"] = sum(row["outcome_id"] is not None for row in kept)
    rates = error_rates(
        *_verdicts([r for r in judged if principal_of(r, options.principal_label) not in one_sided], options)
    )
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
    counts["unserved"] = sum(is_unserved(e.source) for e in evidence.values())
    used, counts["capped"] = _capped(list(evidence.values()), options)
    trained, closed = [], []
    for e in used:
        made = _row(e, rates)
        if made is None:
            counts["unusable"] += 1
            continue
        trained.append((e, made))
        if not is_unserved(e.source) and (e.source["accepted_tier"] is not None or e.low is e.high):
            sure = replace(
                made, probabilities=one_hot(e.high), at_least=e.high, at_most=e.high, eta=None, stated_tier=e.high
            )
            closed.append(Closed(sure, e.principal))
    log, table = make_log(kept)
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


def _one_sided(rows: Sequence[ExportRow], principals: Sequence[str], options: SetOptions) -> set[str]:
    told: dict[str, list[bool]] = defaultdict(list)
    for row, principal in zip(rows, principals, strict=True):
        if is_quality(row) and row["served_tier"] != TIERS[-1].label:
            told[principal].append(row["verdict"] == "accepted")
    return {
        name
        for name, said in told.items()
        if len(said) >= _FEWEST_OUTCOMES and sum(said) < options.fewest_accepted * len(said)
    }


def _verdicts(rows: Sequence[ExportRow], options: SetOptions) -> tuple[list[str], list[int], list[str], list[bool]]:
    """Items, tiers, sources and verdicts for `error_rates`; of a principal and a source, one word on an item."""
    found: dict[tuple[str, str, str, str], ExportRow] = {}
    for row in sorted(rows, key=lambda r: (r["occurred_at"], r["outcome_id"])):
        item = f"{row['request_hash'] or row['decision_id']}/{row['served_tier']}"
        # Two tries at one request are two words, though of one source; two reports of one try are one.
        found[
            item, principal_of(row, options.principal_label), row["source"], f"{row['decision_id']}/{row['outcome_id']}"
        ] = row
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


def _evidence(row: ExportRow, principal: str, one_sided: set[str], now: float, options: SetOptions) -> _Evidence | str:
    if row["outcome_id"] is None:
        return "silent"
    if not is_quality(row):
        return "not_quality"
    if principal in one_sided:
        return "one_sided"
    if row["request"] is None:
        return "no_text"
    low, high = interval(row)
    if (low, high) == (TIERS[0], TIERS[-1]):
        return "says_nothing"
    age = max(0.0, now - float(row["decided_at"])) / _DAY
    return _Evidence(row, principal, low, high, 0.5 ** (age / options.half_life_days))


def _capped(evidence: list[_Evidence], options: SetOptions) -> tuple[list[_Evidence], int]:
    """What is left once each principal is held to its share, and how many were left out."""
    used, left_out = held_to_share(
        evidence,
        options.principal_share,
        principal=lambda e: e.principal,
        name=lambda e: str(e.source["decision_id"]),
        weight=lambda e: e.weight,
        reweighted=lambda e, weight: replace(e, weight=weight),
    )
    return sorted(used, key=lambda e: (e.source["decided_at"], e.source["decision_id"])), left_out


def _row(e: _Evidence, rates: Mapping[str, tuple[float, float]]) -> Row | None:
    row = e.source
    data = {
        **row["request"],
        "id": row["decision_id"],
        "labels": row["labels"] or {},
        "at_least": e.low.label,
        # Up to frontier because it satisfied is another thing than because nothing more is known.
        "at_most": None if e.high is TIERS[-1] and row["accepted_tier"] is None else e.high.label,
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
