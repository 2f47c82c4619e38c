"""What a log says of the tier that a request needed: labels and outcomes as intervals."""

from __future__ import annotations

import pytest

from classifier.labels import COLUMN_ROLES, interval_of
from classifier.types import Tier


@pytest.mark.parametrize(
    ("said", "low", "high"),
    [
        ({"label": "complex"}, "complex", "complex"),
        ({"label": "complex", "verdict": "accepted", "served_tier": "simple"}, "complex", "complex"),
        ({"at_least": "standard"}, "standard", "frontier"),
        ({"at_most": "standard"}, "simple", "standard"),
        ({"verdict": "accepted", "served_tier": "standard", "cause": "quality"}, "simple", "standard"),
        ({"verdict": "rejected", "served_tier": "standard"}, "complex", "frontier"),
        ({"verdict": "escalated", "served_tier": "simple", "accepted_tier": "complex"}, "standard", "complex"),
    ],
    ids=["label", "label-over-outcome", "lowest", "highest", "accepted", "rejected", "escalated"],
)
def test_a_label_or_an_outcome_is_an_interval_of_tiers(said, low, high):
    """Accepted bounds the label above, rejected below, escalated on both sides; a label wins; empty is absent."""
    assert interval_of(said) == (Tier.parse(low), Tier.parse(high))
    blank, absent = dict.fromkeys(COLUMN_ROLES, ""), dict.fromkeys(COLUMN_ROLES)
    assert interval_of(blank | said) == interval_of(absent | said) == interval_of(said)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"label": "gold"},
        {"label": None, "verdict": None},
        {"verdict": "accepted", "served_tier": "frontier"},
        {"verdict": "rejected", "served_tier": "frontier"},
        {"verdict": "rejected", "served_tier": "simple", "cause": "availability"},
        {"verdict": "accepted"},
        {"at_least": "complex", "at_most": "simple"},
        {"label": 3},
    ],
    ids=[
        "nothing",
        "another-word",
        "empty",
        "says-nothing",
        "unserved",
        "not-quality",
        "no-tier",
        "contradiction",
        "a-number",
    ],
)
def test_what_says_nothing_of_complexity_is_no_label(said):
    """An outage, an outcome of the top tier, whichever, and words that are no tiers are left out."""
    assert interval_of(said) is None
