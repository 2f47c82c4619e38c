"""Two bundles compared on labels, and which labels are fair."""

from __future__ import annotations

import pytest

pytest.importorskip("scipy")

from training.frozen import Frozen, audit_rows
from training.judge import _verdict

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


def export_row(i, **fields):
    row = {
        "decision_id": f"d{i}", "caller": "a", "labels": {}, "request_hash": f"h{i}", "outcome_id": "o",
        "request": {"messages": [{"role": "user", "content": f"q{i}"}]},
        "verdict": "accepted", "cause": "quality", "served_tier": "standard", "accepted_tier": None,
    }  # fmt: skip
    return {**row, **fields}


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
