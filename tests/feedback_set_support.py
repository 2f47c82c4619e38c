"""Export rows as a gateway's traffic would leave them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from classifier.exports import COLUMNS

EMPTY: Mapping[str, Any] = dict.fromkeys(COLUMNS)


def export_row(name: int | str, **changes: Any) -> dict[str, Any]:
    """A decision for standard, accepted there by an automatic judge, unless `changes` say otherwise."""
    text = changes.pop("text", f"prompt {name}")
    row: dict[str, Any] = {
        **EMPTY,
        "decision_id": f"d{name}",
        "caller": "gateway",
        "decided_at": 1_000_000.0,
        "tier": "standard",
        "model_tier": "standard",
        "reason": "model",
        "propensity": 1.0,
        "probabilities": [0.4, 0.4, 0.15, 0.05],
        "labels": {},
        "request": {"messages": [{"role": "user", "content": text}]},
        "request_hash": f"h{text}",
        "outcome_id": f"o{name}",
        "verdict": "accepted",
        "cause": "quality",
        "source": "automatic",
        "served_tier": changes.get("tier", "standard"),
        "occurred_at": 1_000_001.0,
        "received_at": 1_000_001.0,
        "outcome_count": 1,
        "effective": True,
    }
    return row | changes


def silent(name: int | str, **changes: Any) -> dict[str, Any]:
    """A decision that nothing was reported about."""
    missing = ("outcome_id", "verdict", "cause", "source", "served_tier", "accepted_tier", "occurred_at", "received_at")
    return export_row(name, **dict.fromkeys(missing), outcome_count=0, effective=False, **changes)
