"""Two bundles compared, what outcomes say of labels, and a test that may be looked at after every decision."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("scipy")

from training.frozen import Frozen, audit_rows, interval_rows
from training.judge import SequentialTest, _verdict

ROWS = {"risk": 100, "cost": 500, "golden": 300}


def verdict(current, candidate, *, risk=(-0.05, 0.05), cost=(-5.0, 5.0), golden=0.0, rows=ROWS):
    names = ("risk", "cost")
    before, after = dict(zip(names, current, strict=True)), dict(zip(names, candidate, strict=True))
    differences = {
        "risk": [after["risk"] - before["risk"], *risk],
        "cost": [after["cost"] - before["cost"], *cost],
        "golden": [golden, golden, golden],
    }
    return _verdict(0.1, before, after, differences, rows)


@pytest.mark.parametrize(
    ("found", "accepted", "repairs"),
    [
        (verdict((0.05, 50), (0.09, 40), cost=(-12, -8)), True, False),
        (verdict((0.05, 50), (0.09, 49)), False, False),
        (verdict((0.05, 50), (0.14, 30), cost=(-22, -18)), False, False),
        (verdict((0.15, 50), (0.09, 50), risk=(-0.1, -0.02)), True, False),
        (verdict((0.25, 50), (0.09, 70), risk=(-0.2, -0.1), cost=(15, 25)), False, True),
        (verdict((0.11, 50), (0.09, 70), cost=(15, 25)), False, False),
        (verdict((0.05, 50), (0.05, 40), cost=(-12, -8), golden=-0.1), False, False),
        (verdict((0.25, 50), (0.12, 70), risk=(-0.2, -0.1), cost=(15, 25)), False, True),
        (verdict((0.40, 50), (0.20, 70), risk=(-0.3, -0.1), cost=(15, 25)), False, False),
        (verdict((0.25, 50), (0.09, 70), risk=(-0.2, -0.1), golden=-0.1), False, False),
    ],
    ids=[
        "cheaper within the promise", "cheaper by chance", "cheaper and over the promise", "safer at the same cost",
        "dearer, and mends a broken promise", "dearer, and the promise may be whole", "forgets",
        "mends, over the promise by chance", "mends too little", "mends and forgets",
    ],
)  # fmt: skip
def test_verdicts(found, accepted, repairs):
    """What is better within the promise is accepted, what mends a broken promise repairs, what forgets is refused."""
    assert (found.accepted, found.repairs) == (accepted, repairs)


def test_too_few_rows_are_refused():
    """Without enough closed labels there is no verdict, and the reason says so."""
    found = _verdict(0.1, {"cost": 50}, {"cost": 10}, {}, {"risk": 3, "cost": 500, "golden": 0})
    assert not found.accepted
    assert "3 recent closed labels" in found.why


@pytest.mark.parametrize("draws", [200, pytest.param(2000, marks=pytest.mark.faults)])
def test_sequential_test_keeps_its_error_rate(draws):
    """Looked at after each of 500 decisions that fail as often as promised, it fires in at most 5 % of histories."""
    rng = np.random.default_rng(0)
    fired = 0
    for _ in range(draws):
        test = SequentialTest(0.1, error_rate=0.05)
        for failed in rng.random(500) < 0.1:
            test.add(failed=bool(failed))
        fired += test.fired
    assert fired / draws <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / draws)


def test_sequential_test_fires_where_the_promise_is_broken():
    """Twice the promised rate is found within a few hundred decisions, and stays found."""
    test, rng = SequentialTest(0.1), np.random.default_rng(0)
    for failed in rng.random(600) < 0.2:
        test.add(failed=bool(failed))
    assert test.fired
    for _ in range(5000):
        test.add(failed=False)
    assert test.fired


def export_row(i, **fields):
    row = {
        "decision_id": f"d{i}", "caller": "a", "labels": {}, "request_hash": f"h{i}", "outcome_id": "o",
        "request": {"messages": [{"role": "user", "content": f"q{i}"}]},
        "verdict": "accepted", "cause": "quality", "served_tier": "standard", "accepted_tier": None,
    }  # fmt: skip
    return {**row, **fields}


@pytest.mark.parametrize(
    ("fields", "bounds"),
    [
        ({}, ("SIMPLE", "STANDARD")),
        ({"verdict": "rejected"}, ("COMPLEX", "FRONTIER")),
        ({"verdict": "escalated", "accepted_tier": "complex"}, ("COMPLEX", "COMPLEX")),
        ({"verdict": "escalated", "served_tier": "simple", "accepted_tier": "complex"}, ("STANDARD", "COMPLEX")),
    ],
    ids=["accepted", "rejected", "escalated one up", "escalated two up"],
)
def test_outcome_is_an_interval(fields, bounds):
    """Accepted bounds the label from above, failed from below, and an accepted escalation from both sides."""
    [row], _ = interval_rows([export_row(0, **fields)])
    assert (row.at_least.name, row.at_most.name) == bounds


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"outcome_id": None}, "silent"),
        ({"verdict": "escalated", "cause": "availability"}, "not_quality"),
        ({"verdict": "rejected", "served_tier": "frontier"}, "unserved"),
        ({"served_tier": "frontier"}, "nothing_said"),
        ({"request": None}, "without_text"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_says_nothing_is_counted(fields, count):
    """Silence, outages, what satisfied nowhere and what has no text train nothing, and are counted."""
    rows, counts = interval_rows([export_row(0, **fields)])
    assert (rows, counts[count]) == ([], 1)


def test_one_of_many_callers_is_capped():
    """A caller that reports ten thousand failures adds a quarter of the rows."""
    many = [export_row(i, caller=f"c{i % 9}") for i in range(900)]
    flood = [export_row(i, caller="liar", verdict="rejected") for i in range(1000, 11_000)]
    rows, counts = interval_rows([*many, *flood])
    assert counts["over_cap"] == 10_000 - 2725
    assert sum(row.at_least.name == "COMPLEX" for row in rows) == 2725


def test_only_audits_are_closed_labels():
    """An escalation closes a label only where the request was drawn at random: else labels would drift upwards."""
    audit = {"labels": {"sample": "audit"}, "served_tier": "simple"}
    rows = [
        export_row(0, **audit),
        export_row(1, verdict="escalated", accepted_tier="frontier", **audit),
        export_row(2, verdict="escalated", **audit),
        export_row(3, verdict="escalated", accepted_tier="complex"),
    ]
    found, counts = audit_rows(Frozen([], rows, ("sample", "audit")), rows)
    assert [row.tier.name for row in found] == ["SIMPLE", "FRONTIER"]
    assert counts == {"audits": 3, "closed": 2, "open": 1, "without_text": 0}
