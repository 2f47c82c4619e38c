"""What of a round is held out of training: audits that calibrate and judge, golden rows, and the traffic of now.

Recent audits are never trained on. Of the earlier ones a half teaches, as no other label says as much, and a half fits
the probability map of what was taught; for weights that were not, all of them do. What was taught needs a map: noisy
intervals teach the network to be surer than outcomes bear out (docs/design/0008-feedback.md).

Closed labels are taken from audits alone: requests that the gateway drew at random, tried from the cheapest tier up
whatever it was told, and marked with a label. Their label is known whatever the classifier thought; all other closed
labels are known *because* of what it chose, and would teach the thresholds to rise for ever.

Knows nothing of models' scores.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier.bundle import Bundle
from classifier.types import TIERS, Request
from training.calibration_fit import FEWEST_FOR_MAP
from training.calibration_set import outside, pack_rows, unseen
from training.corpus import RUBRIC, Row
from training.decision_log import ExportRow, Log, is_quality, request_of
from training.feedback_set import SetOptions, build
from training.frozen import Frozen, conversations
from training.gate import FEWEST_ROWS

TAUGHT = 0.5
"""Share of the earlier audits that teaches."""
_LEFT_OUT = {
    "open": "open",
    "higher": f"judged above {TIERS[0].label}",
    "no_text": "without a text, which --store text keeps",
    "capped": "over the --principal-share of their callers",
}


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Labelled rows of one round by their use; none was trained on by the bundle that serves.

    Attributes:
        recent: recent audits: thresholds are fitted on them, and candidates are judged on them out of fold, on those
            that fitted nothing of the serving bundle. Their `source` is the principal.
        earlier: audits from before.
        taught: audits from before that retraining learns from; they may be in the serving bundle's training set.
        golden: held-out rows of the base corpus, to judge on.
        traffic: recent requests, whatever became of them. Where the store has no text of some, the audits among them:
            the other texts came with outcomes, and who is content reports seldom.
        counts: of recent audits, as `audits` has them.
    """

    recent: list[Row]
    earlier: list[Row]
    taught: list[Row]
    golden: list[Row]
    traffic: list[Request]
    counts: dict[str, int]

    def told(self) -> str:
        """How many recent audits are closed, and what became of the others."""
        left_out = [f"{count} {what}" for name, what in _LEFT_OUT.items() if (count := self.counts[name])]
        return f"{len(self.recent)} recent audits are closed" + (f" (and {', '.join(left_out)})" if left_out else "")

    def lack(self, new: Sequence[Row], *, of: str, alpha: float, label: str) -> str:
        """Why thresholds are neither fitted nor judged on the recent audits; "" where they are.

        Args:
            new: those that fitted nothing of what they would judge.
            of: what that is.
            alpha: the risk that is promised. Were all that were judged above simple hard ones, more than a share α of
                the audits would break it, and the others show no miss.
            label: the one that marks audits.
        """
        audits, higher = self.counts["audits"], self.counts["higher"]
        if higher > alpha * audits:
            first = TIERS[0].label
            return (
                f"{higher} of {audits} recent audits were judged above {first}, so the others are the easy ones; try "
                f"audits from {first} up and report each once: accepted there, or escalated from there with the tier "
                "that satisfied"
            )
        if len(new) >= FEWEST_ROWS:
            return ""
        none = "" if audits else f"; no recent request is labelled {label} (--audit-label)"
        return f"{self.told()}, {len(new)} of which fitted nothing of {of}{none}; {FEWEST_ROWS} such are wanted"

    def to_fit(self, *, retrained: bool) -> tuple[list[Row], list[Row]]:
        """Audits for the probability map, and others for the thresholds and to judge on.

        Args:
            retrained: for weights that learnt from `taught`. Where the earlier audits that are left are too few for
                their map, a half of the recent ones fits it, if the halves are enough for both.
        """
        if not retrained:
            return self.earlier, self.recent
        known = {row.sha256 for row in self.taught}
        left = [row for row in self.earlier if row.sha256 not in known]
        if len(left) >= FEWEST_FOR_MAP or not self.recent:
            return left, self.recent
        middle = np.median([_position(row.group) for row in self.recent])
        judged = [row for row in self.recent if _position(row.group) >= middle]
        # A request that came again stays among those that thresholds promise about, as often as it is there.
        again = {row.sha256 for row in judged}
        other = [row for row in self.recent if _position(row.group) < middle and row.sha256 not in again]
        mapped = [*left, *other]
        return (mapped, judged) if min(len(mapped), len(judged)) >= FEWEST_FOR_MAP else (left, self.recent)


def hold_out(frozen: Frozen, base: Sequence[Row], serving: Bundle, *, options: SetOptions, most: int) -> HeldOut:
    """What is held out of a round.

    Args:
        frozen: its rows.
        base: the base corpus.
        serving: what serves: rows that it was trained on are left out.
        options: caps of principals.
        most: golden rows and requests of traffic are at most so many each, chosen by their hash and drawn.
    """
    recent, counts = audits(filter(frozen.audited, frozen.recent), options)
    known = {row.sha256 for row in recent}
    earlier, _ = audits(filter(frozen.audited, frozen.earlier), options)
    earlier = [row for row in earlier if row.sha256 not in known]
    fresh = unseen(earlier, serving)
    kept = {row.sha256 for row in fresh if _position(row.group) >= TAUGHT}
    golden = [row for row in base if row.label == RUBRIC and row.probabilities is not None and row.split == "test"]
    fair = frozen.recent
    if any(row["request"] is None for row in fair):
        fair = [row for row in fair if frozen.audited(row)]
    requests = [request for row in fair if (request := request_of(row)) is not None]
    return HeldOut(
        unseen(recent, serving),
        fresh,
        list({row.sha256: row for row in earlier if row.sha256 not in kept}.values()),
        sorted(unseen(golden, serving), key=lambda row: row.sha256)[:most],
        [requests[i] for i in _drawn(len(requests), most)],
        counts,
    )


def feedback_rows(frozen: Frozen, held: HeldOut, kept: str, options: SetOptions) -> tuple[list[Row], dict[str, Any]]:
    """Rows to train on and their counts: earlier ones, none that is `kept_for_judging`."""
    found = build((row for row in frozen.earlier if not frozen.audited(row)), options=options)
    rows = [*held.taught, *found.rows]
    fresh = outside(rows, kept)
    counts = {"used": len(fresh), "audits": len(held.taught), "kept_for_judging": len(rows) - len(fresh)}
    return fresh, found.as_json() | counts


def kept_for_judging(frozen: Frozen, held: HeldOut) -> str:
    """The conversations that calibrate, judge or came again, packed: nothing trains on them, whoever brings them.

    Packed as a manifest has its training rows: of those that only look like one of these (32 bits are alike) a single
    one would void the calibration of what was trained.
    """
    kept = {row.sha256 for row in held.earlier} - {row.sha256 for row in held.taught}
    return pack_rows(kept | {row.sha256 for row in [*held.recent, *held.golden]} | conversations(frozen.recent))


def recent_log(frozen: Frozen, options: SetOptions, most: int) -> Log:
    """Decisions with a text, at most so many; no audits, which were served another tier than it says."""
    log = build((row for row in frozen.recent if not frozen.audited(row)), options=options).log
    with_text = np.flatnonzero([request is not None for request in log.requests])
    return log.take(with_text[_drawn(len(with_text), most)])


def audits(rows: Iterable[ExportRow], options: SetOptions) -> tuple[list[Row], dict[str, int]]:
    """Audited requests with their labels, as corpus rows of the kind OUTCOME.

    One a decision: a request that came again was drawn again, and what is promised is about traffic that repeats it.

    Args:
        rows: of audited requests, as exports spell them.
        options: caps of principals. Audits of one window weigh alike, and a caller whose requests all fail at simple is
            believed, because acceptances would have been reported.

    Returns:
        The rows, their source the principal; and counts: audits, closed, open (nothing satisfied, or no outcome),
        higher (not tried from the cheapest tier up, by what was reported), no_text, capped.
    """
    given = list(rows)
    # Without the conversation's hash each decision is evidence by itself.
    begun = [{**row, "request_hash": None} for row in given if row["served_tier"] in (None, TIERS[0].label)]
    above = [row for row in given if is_quality(row) and row["served_tier"] != TIERS[0].label]
    higher = sum(row["floor"] in (None, TIERS[0].label) for row in above)
    found = build(begun, options=replace(options, fewest_accepted=0.0, half_life_days=math.inf))
    labelled = [replace(c.row, source=c.principal) for c in found.closed]
    counts = {"higher": higher} | {name: found.counts[name] for name in ("closed", "no_text", "capped")}
    return labelled, {"audits": len(given), "open": len(given) - sum(counts.values())} | counts


def _drawn(count: int, most: int) -> NDArray[np.int64]:
    """The places of at most `most` of `count` rows, in order and each time the same.

    Not the latest: of 100,000 a day 600 are nine minutes of one night, and few outcomes have come in.
    """
    return np.sort(np.random.default_rng(0).permutation(count)[:most])


def _position(group: str) -> float:
    return int.from_bytes(hashlib.sha256(f"taught/{group}".encode()).digest()[:8], "big") / 2**64
