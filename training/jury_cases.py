"""Rows of logs and corpora → cases for a jury, and cases with their votes → corpus lines.

Reads whatever `classifier label` reads. What a row says of itself as a corpus line does (source, language, group …) is
kept; its tier, where it has one, is not shown to jurors and is what they are compared with.

Knows nothing of jurors, endpoints or journals.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from classifier.arrow import plain_rows
from classifier.errors import InvalidRequest
from classifier.labels import tier_of
from classifier.lines import RawRow, parse_line
from classifier.payloads import reads, request_of_row
from classifier.progress import Tally
from classifier.readers import ALL, Chunk, Selection, read_chunks
from classifier.sources import STDIN, find_sources
from classifier.types import Request, Tier
from training.corpus import conversation_sha256
from training.jury import Vote, settle
from training.steering_signs import wording_steers

KEPT = ("source", "language", "kind", "group", "family", "licence")
"""Texts of a corpus line that a row may bring along."""
_WANTED = frozenset({"id", "tier", "weight", *KEPT})


@dataclass(frozen=True, slots=True)
class Case:
    """A request that jurors rate.

    Attributes:
        row: sha256 of the conversation.
        request: what is rated.
        facts: what its corpus line says beside request and label.
        stated: the tier that the file gives it, or None.
    """

    row: str
    request: Request
    facts: Mapping[str, Any]
    stated: Tier | None


def read_cases(
    inputs: Iterable[str],
    *,
    row_format: str = "auto",
    text_field: str = "prompt",
    selection: Selection = ALL,
    source: str = "",
    written: str = "",
) -> tuple[list[Case], Tally]:
    """The cases in the inputs, in their order, later duplicates of a conversation left out.

    Args:
        inputs: files, folders, globs and URLs, or `-`.
        row_format: one of `payloads.FORMATS`.
        text_field: the column of texts.
        selection: which rows.
        source: of rows that name none; by default the file's name.
        written: the output, which is no input where a folder or a pattern names it.

    Returns:
        The cases, and how many rows there were, how many of them repeat an earlier one, and what is wrong with others.

    Raises:
        InputError: an input cannot be read.
        MissingExtra: reading it needs what is not installed.
    """
    cases: dict[str, Case] = {}
    taken: set[str] = set()
    tally = Tally()
    for chunk in read_chunks(find_sources(inputs, written=written), row_format=row_format, selection=selection):
        for where, values, problem in _rows(chunk, text_field):
            tally.rows += 1
            if problem:
                tally.failed(where, problem)
                continue
            try:
                request = request_of_row(values, row_format, text_field=text_field)
            except InvalidRequest as error:
                tally.failed(where, str(error))
                continue
            except RecursionError:
                tally.failed(where, "is nested too deeply")
                continue
            row = conversation_sha256(request)
            if row in cases:
                tally.repeats += 1
                continue
            facts = _facts(values, source or _name_of(where[0]))
            identity = str(values.get("id") or "")
            identity = identity if identity and identity not in taken else row[:16]
            taken.add(identity)
            cases[row] = Case(row, request, {"id": identity, **facts}, tier_of(values.get("tier")))
    return list(cases.values()), tally


def corpus_line(case: Case, votes: Mapping[str, Sequence[Vote]]) -> dict[str, Any]:
    """A case as a corpus line (data/GUIDELINES.md).

    Args:
        case: what was rated.
        votes: model → what it said; at least one vote in all.

    Returns:
        The line: `tier` is the median of the votes, `probabilities` the share of each tier, `votes` what was said and
        `readers` who said it; `steering` where the wording, or at least half of the votes, say that the text steers.
    """
    readers = [model for model, said in votes.items() for _ in said]
    said = [vote for model in votes for vote in votes[model]]
    tier, shares = settle([vote.tier for vote in said])
    request = case.request
    line: dict[str, Any] = {"id": case.facts["id"], **request.to_json()}
    line |= {"tools": [{"name": name} for name in request.tools]} if request.tools else {}
    return line | {
        "tier": tier.label,
        "votes": [vote.tier.label for vote in said],
        "readers": readers,
        "probabilities": shares,
        "steering": wording_steers(request) or 2 * sum(vote.steering for vote in said) >= len(said),
        **case.facts,
    }


def _rows(chunk: Chunk, text_field: str) -> Iterable[tuple[tuple[str, int], Mapping[str, Any], str]]:
    """(file and row, columns, what is wrong) of each row of a chunk."""
    if chunk.batch is None:
        for raw in chunk.rows:
            yield (raw.source, raw.number), *_parsed(raw)
        return
    names = [name for name in chunk.batch.schema.names if name in _WANTED or name == text_field or reads(name)]
    rows = plain_rows(chunk.batch.select(names)) if names else [{}] * len(chunk)
    for number, values in zip(chunk.numbers, rows, strict=True):
        yield (chunk.source, number), values, ""


def _parsed(raw: RawRow) -> tuple[Mapping[str, Any], str]:
    if raw.error or raw.payload is None:
        return {}, raw.error or "is empty"
    return (raw.payload, "") if isinstance(raw.payload, dict) else parse_line(raw.payload)


def _facts(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"source": source}
    facts |= {name: values[name] for name in KEPT if isinstance(values.get(name), str) and values[name]}
    weight = values.get("weight")
    if isinstance(weight, int | float) and 0 < weight < float("inf") and weight != 1:
        facts["weight"] = weight
    return facts


def _name_of(file: str) -> str:
    return "stdin" if file == STDIN else PurePosixPath(file).name.split(".")[0] or "log"
