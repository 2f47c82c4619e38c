"""Files as `classifier label` writes them, made by hand."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from classifier.answering import identity_of
from classifier.columns import count_chars
from classifier.labelled import COLUMNS, PREFIX, our_fields, output_schema
from classifier.policy import Guarantee, Policy
from classifier.run_manifest import manifest_path
from classifier.types import TIERS

BALANCED = Policy(
    name="balanced",
    threshold=0.7,
    guarantee=Guarantee(0.1, 0.0, "CONFORMAL_RISK_CONTROL", "RUBRIC", 948, 0.098, 0.099, True),
)


def labelled_row(tier: str | None, confidence: float = 0.85, **columns: Any) -> dict[str, Any]:
    """A row of the log with our columns: `confidence` on the tier, the rest spread evenly; no tier means an error."""
    rest = (1 - confidence) / 3
    shares = None if tier is None else [confidence if t.label == tier else rest for t in TIERS]
    error = "messages: is empty; send the conversation" if tier is None else None
    return {
        **columns,
        "classifier_tier": tier,
        "classifier_probabilities": shares,
        "classifier_reason": None if tier is None else "model",
        "classifier_truncated": None if tier is None else False,
        "classifier_characters": None
        if tier is None
        else count_chars(columns.get("messages") or columns.get("prompt")),
        "classifier_error": error,
    }


def write_labelled(path: Path, rows: Sequence[dict[str, Any]], *, policy: Policy = BALANCED) -> Path:
    """The rows as `classifier label` writes them, by the extension."""
    facts = identity_of("0123456789abcdef", "fake", policy).facts()
    rows = [{"classifier_file": "log.jsonl", "classifier_row": i + 1, **row} for i, row in enumerate(rows)]
    own = pa.Table.from_pylist([{k: v for k, v in row.items() if not k.startswith(PREFIX)} for row in rows])
    schema = output_schema(own.schema, facts)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        text = base64.b64encode(schema.serialize().to_pybytes()).decode()
        manifest_path(path).write_text(json.dumps({"facts": facts, "schema": text}))
        return path
    ours = pa.Table.from_pylist(rows, schema=pa.schema(our_fields()))
    columns = [*own.columns, *(ours.column(name) for name in COLUMNS)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), path, row_group_size=64)
    return path


def traffic(n: int = 200) -> list[dict[str, Any]]:
    """A month of two tenants on two models: half of it simple, a third standard, the rest complex or frontier."""
    mix = ["simple", "standard", "simple", "complex", "simple", "standard", "simple", "standard", "simple", "frontier"]
    return [
        labelled_row(
            mix[i % 10],
            0.97,
            id=f"r{i}",
            prompt=f"question number {i}",
            model=("big", "small")[i % 2],
            tenant=("acme", "other")[i % 3 == 0],
            timestamp=1_767_225_600 + i * 30 * 86_400 // n,
            usage={"prompt_tokens": 100 + i % 7, "completion_tokens": 200 + i % 11},
        )
        for i in range(n)
    ]
