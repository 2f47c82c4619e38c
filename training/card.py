"""The model card, rendered from the report and the recipe; what was measured once and for all is dated."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from classifier.texts import encodable
from classifier.types import TIERS
from training.corpus import Row

OWN_ALONE = (
    "Trained on data/ alone, without real traffic, which costs much. Measured on 300 real requests that "
    "neither had seen: such a build had accuracy .477 (.421 to .533), quadratic kappa .298 and AUROC > simple .693; "
    "the shipped bundle, whose training had real traffic of the same sources, .807, .813 and .928. Label some of yours "
    "('python -m training jury') and give it as --extra."
)
"""What leaving other corpora out costs; docs/LOG.md has more of it."""
_HEAD = """---
license: apache-2.0
library_name: onnx
pipeline_tag: text-classification
base_model: {base}
language:
{languages}
tags: [llm-routing, ordinal-classification, onnx, int8]
metrics: [accuracy, quadratic_kappa, ranked_probability_score]
---
# Request-complexity classifier

Predicts the cheapest tier of language model (`simple`, `standard`, `complex`, `frontier`) whose answer to a request a
demanding but fair user accepts nine times out of ten. Made with recipe `{recipe}`, seed {seed}: {layers} layers,
{max_tokens} tokens, int8.

## Intended use
An LLM gateway asks it on every request and routes on the tier. It rates the *work asked for* by the last user message,
seen in its conversation. It is no judge of people, of safety or of truth.

## Training data
{rows} rows, of which {own} were written for this project (CC-BY-4.0); the others come from the sources named
below and are not distributed with it. Tiers are by the project's rubric.

| source | rows | licence as stated |
|---|---:|---|
{sources}
"""

_LIMITS = """
## Limits
- Sources it never saw are harder: expect several points less accuracy than on the table above, and measure on your own
  traffic (`python -m training evaluate`).
- `frontier` is rare in training as in life. A policy's top-tier threshold can guard it (`python -m training calibrate
  --top-tier-miss`); a build fits none.
- The base model was pretrained on English text; other languages are read through their characters and work less well.
- Tiers are relative to the models of 2026; recalibrate as models move.
"""

BASES = {"minilm": "sentence-transformers/all-MiniLM-L6-v2"}
"""Names under which a card's readers know our short names of bases."""


def render_card(
    *, recipe: Mapping[str, Any], rows: Sequence[Row], report: Mapping[str, Any], notes: Sequence[str]
) -> str:
    """The card as Markdown with Hugging Face front matter.

    Args:
        recipe: the resolved recipe.
        rows: what the model was trained on.
        report: from `training.evaluate.evaluate`.
        notes: sentences to add under the metrics: parity, what was left out.
    """
    counts = Counter(row.source for row in rows)
    licences: dict[str, str] = {}
    for row in rows:
        licences[row.source] = licences.get(row.source) or row.licence
    languages = sorted({r.language for r in rows if r.language.isalpha() and len(r.language) == 2})
    card = _HEAD.format(
        base=BASES.get(recipe["base"], recipe["base"]),
        languages="\n".join(f"- '{code}'" for code in languages),
        recipe=recipe["name"],
        seed=recipe["seed"],
        layers=recipe["student"]["layers"],
        max_tokens=recipe["max_tokens"],
        rows=len(rows),
        own=sum(r.source.startswith("own-") for r in rows),
        sources="\n".join(f"| {s} | {n} | {licences[s] or 'not stated'} |" for s, n in sorted(counts.items())),
    )
    return encodable(card + _metrics(report) + "\n" + "\n".join(f"- {note}" for note in notes) + "\n" + _LIMITS)


def _metrics(report: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{n} {t.label}" for t, n in zip(TIERS, report["tier_counts"], strict=True))
    lines = [
        "",
        "## Metrics",
        f"The exported int8 graph through the serving engine on {report['rows']} held-out rows ({counts}); 95 %",
        "bootstrap intervals, of accuracy, under- and over-routing at least Wilson's.",
        "",
        "| metric | value | interval |",
        "|---|---:|---|",
        *(_metric(name, value) for name, value in report["overall"].items()),
        *(
            _metric(f"accuracy of the baseline {name}", numbers["accuracy"])
            for name, numbers in report.get("baselines", {}).items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _metric(name: str, value: Sequence[float]) -> str:
    """A line of the table; what rows of too few tiers do not tell is a dash, as on the page of an evaluation."""
    estimate, low, high = value
    return f"| {name} | – | – |" if math.isnan(estimate) else f"| {name} | {estimate:.3f} | {low:.3f} to {high:.3f} |"


def own_alone(rows: Sequence[Row]) -> list[str]:
    """`OWN_ALONE` where all that was trained on are prompts of data/, else nothing."""
    return [OWN_ALONE] * all(row.source.startswith("own-") for row in rows)
