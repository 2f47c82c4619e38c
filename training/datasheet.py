"""The counts in `data/README.md`: `python -m training.datasheet` rewrites them, a test recomputes them.

Knows nothing of models.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier import metrics
from classifier.types import TIERS, Tier
from training.corpus import OWN_DATA, split_of

START, END = "<!-- counts -->", "<!-- /counts -->"
LONG_CHARS = 4000
BIGGEST_LANGUAGES = 6


def read_rows(folder: Path = OWN_DATA) -> list[dict[str, Any]]:
    """Every line of the corpus files as it stands, in file order."""
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("rb") as file:
            rows += map(json.loads, file)
    return rows


def counts(rows: Sequence[Mapping[str, Any]]) -> str:
    """The section of the datasheet, Markdown."""
    n = len(rows)

    def share(test: Callable[[Mapping[str, Any]], bool]) -> str:
        found = sum(map(test, rows))
        return f"{found} ({100 * found / n:.1f} %)"

    tiers = Counter(r["tier"] for r in rows)
    splits = Counter(split_of(r["group"]) for r in rows)
    languages = Counter(r["language"] for r in rows)
    lines = [
        START,
        f"{n} prompts in {len({r['group'] for r in rows})} groups.",
        "",
        "| | rows |",
        "|---|---:|",
        *(f"| `{t.label}` | {tiers[t.label]} ({100 * tiers[t.label] / n:.1f} %) |" for t in TIERS),
        f"| over {LONG_CHARS} characters | {share(lambda r: chars(r) > LONG_CHARS)} |",
        f"| more than one turn | {share(turns)} |",
        f"| tools on offer or an agent's turn | {share(agentic)} |",
        f"| not English | {share(lambda r: r['language'] != 'en')}, {len(languages)} languages in all |",
        f"| train / dev / test | {splits['train']} / {splits['dev']} / {splits['test']} |",
        "",
        "By tier and language, the biggest: "
        + "; ".join(
            f"{code} " + "/".join(str(sum(r["tier"] == t.label and r["language"] == code for r in rows)) for t in TIERS)
            for code, _ in languages.most_common(BIGGEST_LANGUAGES + 1)
        )
        + ".",
        "",
        "| contrast family | groups | rows |",
        "|---|---:|---:|",
        *(
            f"| {family} | {len({r['group'] for r in rows if r.get('family') == family})} | {size} |"
            for family, size in sorted(Counter(r["family"] for r in rows if r.get("family")).items())
        ),
        "",
        "| kind | rows | simple / standard / complex / frontier |",
        "|---|---:|---|",
        *(
            f"| {kind} | {size} | "
            + " / ".join(str(sum(r["kind"] == kind and r["tier"] == t.label for r in rows)) for t in TIERS)
            + " |"
            for kind, size in sorted(Counter(r["kind"] for r in rows).items())
        ),
        *agreement(rows),
        END,
    ]
    return "\n".join(lines)


def agreement(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Agreement of the writer with the blind second reader, over all and by tier and kind.

    Within one tier a reader's labels hardly vary, so a kappa there says nothing: a tier's kappa is that of its
    label against all others, over all rows.
    """
    read = [r for r in rows if len(r.get("votes", ())) >= 2]
    if not read:
        return []
    first, second = (np.array([Tier.parse(r["votes"][i]).index for r in read]) for i in (0, 1))
    differ = int((first != second).sum())
    third = [r for r in read if len(r["votes"]) > 2]
    lines = [
        "",
        f"Two blind labels exist for {len(read)} rows: raw agreement {metrics.accuracy(first, second):.3f}, quadratic "
        f"kappa {metrics.quadratic_kappa(first, second):.3f}. They differ on {differ} rows; {len(third)} went to a "
        f"third reader, who sided with the writer in {sum(r['votes'][2] == r['votes'][0] for r in third)} and with the "
        f"second reader in {sum(r['votes'][2] == r['votes'][1] for r in third)}.",
        "",
        "| of the settled tier, or kind | rows | raw agreement | quadratic kappa |",
        "|---|---:|---:|---:|",
    ]

    def line(name: str, index: NDArray[np.int64], kappa: float) -> str:
        return f"| {name} | {len(index)} | {metrics.accuracy(first[index], second[index]):.3f} | {kappa:.3f} |"

    for t in TIERS:
        index = np.array([i for i, r in enumerate(read) if r["tier"] == t.label], dtype=np.int64)
        if len(index):
            lines.append(
                line(
                    f"`{t.label}` (kappa: against the rest)",
                    index,
                    metrics.quadratic_kappa((first == t.index).astype(int), (second == t.index).astype(int)),
                )
            )
    for kind in sorted({r["kind"] for r in read}):
        index = np.array([i for i, r in enumerate(read) if r["kind"] == kind], dtype=np.int64)
        if len(index) >= 20:
            lines.append(line(kind, index, metrics.quadratic_kappa(first[index], second[index])))
    return lines


def chars(row: Mapping[str, Any]) -> int:
    """Characters of a row's conversation."""
    return sum(len(m["content"]) for m in row["messages"])


def turns(row: Mapping[str, Any]) -> bool:
    """Whether a row is a conversation of more than one turn."""
    return sum(m["role"] in ("user", "assistant", "tool") for m in row["messages"]) > 1


def agentic(row: Mapping[str, Any]) -> bool:
    """Whether a row offers tools or is an agent's turn."""
    return bool(row.get("tools")) or row["kind"] == "agentic" or any(m["role"] == "tool" for m in row["messages"])


def with_counts(datasheet: str, section: str) -> str:
    """The datasheet with its counts replaced."""
    head, _, rest = datasheet.partition(START)
    return head + section + rest.partition(END)[2]


if __name__ == "__main__":
    page = OWN_DATA / "README.md"
    page.write_text(with_counts(page.read_text(encoding="utf-8"), counts(read_rows())), encoding="utf-8")
