"""Whether a candidate may replace what serves."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from tests.off_policy_support import draw_log, truths
from training.gate import LabelledSet, judge
from training.off_policy import estimate
from training.step_losses import soft

N = 2000
LABELS = np.random.default_rng(0).choice(4, N, p=[0.4, 0.35, 0.15, 0.1])


def chooser(too_low: float, too_high: float, seed: int) -> np.ndarray:
    """Choices that are a tier too low, or too high, at these rates."""
    u = np.random.default_rng(seed).random(N)
    moved = np.where(u < too_low, -1, np.where(u > 1 - too_high, 1, 0))
    return np.clip(LABELS + moved, 0, 3).astype(np.int64)


def labelled(current: np.ndarray, candidate: np.ndarray, n: int = N, **fields) -> LabelledSet:
    return LabelledSet("recent", soft(LABELS[:n]), current[:n], candidate[:n], **fields)


CURRENT = chooser(0.15, 0.2, 1)


@pytest.mark.parametrize(
    ("candidate", "accepted", "says"),
    [
        (chooser(0.08, 0.1, 2), True, "better"),
        (chooser(0.30, 0.2, 2), False, "risk 0.* worse"),
        (chooser(0.15, 0.6, 2), False, "cost .* worse"),
        (CURRENT, False, "nothing is better"),
    ],
    ids=["better", "riskier", "dearer", "the same"],
)
def test_no_worse_and_somewhere_better(candidate: np.ndarray, accepted: bool, says: str):
    """A candidate is accepted where neither risk nor cost is worse by the margin and one of them is better."""
    verdict = judge([labelled(CURRENT, candidate)], draws=300)
    assert verdict.accepted is accepted
    assert any(re.search(says, reason) for reason in verdict.reasons)
    json.dumps(verdict.as_json())


def test_too_few_rows_are_no_ground_for_a_promotion():
    """With fewer rows than it takes the gate refuses, however good they look."""
    verdict = judge([labelled(CURRENT, chooser(0, 0, 3), n=60)], draws=200)
    assert (verdict.accepted, verdict.refused) == (False, True)
    assert "too few" in verdict.why


def test_what_a_small_set_cannot_show_is_not_assumed():
    """A candidate that is no worse in truth is not accepted on a set too noisy to show it."""
    noisy = labelled(CURRENT, chooser(0.14, 0.2, 9), n=120)
    assert not judge([noisy], draws=300).accepted


def test_every_set_must_be_no_worse():
    """Better on recent labels and worse on the golden set is not good enough."""
    good, bad = chooser(0.05, 0.1, 4), chooser(0.3, 0.2, 4)
    golden = LabelledSet("golden", soft(LABELS), CURRENT, bad)
    assert judge([labelled(CURRENT, good)], draws=200).accepted
    assert not judge([labelled(CURRENT, good), golden], draws=200).accepted


def test_a_broken_promise_that_the_candidate_keeps_is_a_repair():
    """Where what serves exceeds its alpha and the candidate does not, the verdict says so, also at a higher cost."""
    dearer = chooser(0.02, 0.7, 5)
    verdict = judge([labelled(CURRENT, dearer, alpha=0.06)], draws=200)
    assert (verdict.accepted, verdict.repairs) == (False, True)
    assert not judge([labelled(chooser(0.04, 0.2, 6), dearer, alpha=0.06)], draws=200).repairs


def test_without_exploration_it_says_what_it_went_by():
    """At epsilon 0 labelled sets alone decide, and the verdict says so."""
    assert "labelled sets alone" in judge([labelled(CURRENT, chooser(0, 0, 1))], draws=200).why


def test_the_log_can_contradict_the_labels():
    """A candidate that looks better on labels and is worse in the log of what really happened is not accepted."""
    drawn = draw_log(truths(20_000, np.random.default_rng(1)), 1)
    now, lower = estimate(drawn.log, drawn.log.base), estimate(drawn.log, np.maximum(drawn.log.base - 1, 0))
    sets = [labelled(CURRENT, chooser(0.02, 0.1, 7))]
    assert judge(sets, off_policy=(now, now), draws=200).accepted
    verdict = judge(sets, off_policy=(now, lower), draws=200)
    assert not verdict.accepted
    assert "no support" in verdict.why
    json.dumps(verdict.as_json())


def test_the_gate_wants_a_set():
    """Without a labelled set nothing is judged."""
    with pytest.raises(ValueError, match="no labelled set"):
        judge([])


def test_rows_and_choices_must_fit():
    """A set whose choices are of another number than its labels names itself."""
    with pytest.raises(ValueError, match="'recent'"):
        LabelledSet("recent", soft(LABELS), CURRENT[:5], CURRENT)
