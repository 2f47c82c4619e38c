"""Labelled traffic as arrays: tiers and probabilities, and what the log says of time, model, tokens and money.

The log's own columns are found by the names that gateways use (`columns.USUAL_NAMES`) or are named by the caller. Of
texts only answers are looked at, where their tokens were not counted, and none is kept: a few hundred bytes a row are
held in memory.

Knows nothing of prices or pages.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier import labels, sampling
from classifier.columns import (
    CHARS_PER_TOKEN,
    TEXTS,
    TOP,
    ColumnPath,
    amount,
    count_chars,
    find_columns,
    opened,
    places_of,
    seconds,
    value_at,
)
from classifier.errors import InputError
from classifier.labelled import COLUMNS, Labelled, open_labelled
from classifier.policy import Policy
from classifier.policy_file import policy_from_json
from classifier.texts import parsed
from classifier.types import TIERS, Tier

MAX_VALUE_CHARS = 512
"""Of a model's name and the like: a Bedrock inference profile's has over 100, and a file's path more."""
CACHED = ("cache_read_tokens", "cache_creation_tokens")
"""Input tokens that a log counts beside the others."""
_COUNTED_APART = frozenset({"input_tokens", "inputTokenCount"})
"""Names of Anthropic and Amazon Bedrock; what others call input holds the cached tokens, if the caller names none."""
_NUMBERS = frozenset({"time", "input_tokens", *CACHED, "output_tokens", "thinking_tokens", "cost", "response"})
OURS = ("classifier_tier", "classifier_probabilities", "classifier_truncated", "classifier_error",
        "classifier_characters", "classifier_file", "classifier_row")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Category:
    """A column of few values.

    Attributes:
        names: the values, "" for none.
        codes: (n,) int32, index into `names`.
    """

    names: tuple[str, ...]
    codes: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Labelled traffic. Rows that could not be labelled are only counted.

    Attributes:
        rows: (n,) int64, position of each row in the labelled file, from 0.
        tiers: (n,) int64, index of the tier that the policy chose.
        probabilities: (n, 4) float64, P(label = tier), rows sum to 1.
        times: (n,) float64, seconds since the epoch, NaN where unknown.
        input_tokens: (n,) float64, counted, or a quarter of the conversation's characters.
        output_tokens: (n,) float64, counted, estimated or assumed.
        input_counted: share of rows whose input tokens the log counts.
        output_counted: share of rows whose output tokens the log counts.
        output_estimated: share of rows whose output tokens are a quarter of the answer's characters, because the log
            holds it and does not count it; those of the rest are assumed.
        cost_today: (n,) float64 dollars as the log has them, NaN where it has none, and throughout where all are 0.
        at_least: (n,) int64, index of the lowest tier that the log's own label or outcome allows; -1 where it has none.
        at_most: (n,) int64, index of the highest.
        drawn_by_tier: requests with a label that `classifier sample` did not draw at random.
        categories: columns of few values by role: "model" and "tenant", where there are such.
        splits: the columns that the caller splits by, by name.
        ids: the log's id of each row, or empty.
        files: that the log was read from.
        origins: (n, 2) int64, index into `files`, and the line there, from 1.
        columns: what was found, by role: the column's name.
        errors: how often each error stands on a row that could not be labelled.
        truncated: rows of which the model read only a part.
        bundle_version: bundle that labelled, "" where the file does not say.
        policy_name: its policy, "" where the file does not say.
        policy: the policy with its guarantee; None where the file does not say.
    """

    rows: NDArray[np.int64]
    tiers: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    times: NDArray[np.float64]
    input_tokens: NDArray[np.float64]
    output_tokens: NDArray[np.float64]
    input_counted: float
    output_counted: float
    output_estimated: float
    cost_today: NDArray[np.float64]
    at_least: NDArray[np.int64]
    at_most: NDArray[np.int64]
    drawn_by_tier: int
    categories: Mapping[str, Category]
    splits: Mapping[str, Category]
    ids: Sequence[str]
    files: tuple[str, ...]
    origins: NDArray[np.int64]
    columns: Mapping[str, str]
    errors: Mapping[str, int] = field(default_factory=dict)
    truncated: int = 0
    bundle_version: str = ""
    policy_name: str = ""
    policy: Policy | None = None

    def __len__(self) -> int:
        return len(self.rows)


def read_traffic(
    path: str,
    *,
    by: Sequence[str] = (),
    named: Mapping[str, str] | None = None,
    assumed_output_tokens: float = 300.0,
    text_field: str = "prompt",
) -> Traffic:
    """The labelled traffic that `classifier label` wrote.

    Args:
        path: a .parquet, .jsonl or .csv file, or the folder of a cluster's run.
        by: further columns to split by.
        named: role → column, where the usual names do not find it; "" means that there is none.
        assumed_output_tokens: of each answer that the log neither counts nor holds.
        text_field: the column of prompts; no fact is looked for in it.

    Raises:
        InputError: it cannot be read, was not labelled, holds no labelled row, or lacks a named column.
        MissingExtra: pyarrow is not installed.
    """
    labelled = open_labelled(path)
    left_out = COLUMNS.keys() - set(by)
    peek = ({n: row[n] for n in row.keys() - left_out} for row in labelled.rows(thinned=True))
    places = places_of([name for name in labelled.names if name not in left_out], peek, texts=TEXTS | {text_field})
    columns = find_columns(places, named=named or {}, by=by, where=path)
    if "label" in columns and "label" not in (named or {}):
        said = (row.get(columns["label"]) for row in labelled.rows([columns["label"]]))
        if "verdict" in columns or not labels.are_tiers(said):  # a customer's tier, or the tier of a decision
            del columns["label"]
    if columns.get("input_tokens", "").rpartition(".")[2] not in _COUNTED_APART or "gen_ai." in columns["input_tokens"]:
        for role in set(CACHED).difference(named or {}):
            columns.pop(role, None)
    return _read(path, labelled, {r: places[c].path for r, c in columns.items()}, columns, assumed_output_tokens)


def read_decisions(path: str) -> Traffic:
    """As `read_traffic`, but of the log's own columns nothing is read.

    Raises:
        InputError: see `read_traffic`.
    """
    return _read(path, open_labelled(path), {}, {}, 0.0)


def read_rows(path: str, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Whole rows of a labelled file, in the order asked for; `rows` are positions as in `Traffic.rows`."""
    wanted = set(rows)
    read = enumerate(itertools.islice(open_labelled(path).rows(), max(wanted, default=-1) + 1))
    found = {position: row for position, row in read if position in wanted}
    return [found[row] for row in rows]


def _read(
    path: str, labelled: Labelled, places: Mapping[str, ColumnPath], columns: Mapping[str, str], assumed: float
) -> Traffic:
    collected = _Collected(places)
    for row in labelled.rows([*OURS, *{place[0] for place in places.values()}]):
        collected.add(row)
    return collected.finish(path, labelled.facts, columns, assumed)


def _policy(definition: str) -> Policy | None:
    """The policy whose definition a file holds; None where it holds none that this version understands."""
    try:
        return policy_from_json(parsed(definition))
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


class _Collected:
    """The arrays, row by row."""

    def __init__(self, places: Mapping[str, ColumnPath]) -> None:
        self.labelling = {role: place for role, place in places.items() if role in TOP}
        self.places = {role: place for role, place in places.items() if role not in TOP}
        codes = {"rows": "q", "tiers": "q", "shares": "f", "chars": "d", "files": "q", "lines": "q"}
        codes |= {role: "d" if role in _NUMBERS else "q" for role in self.places if role != "id"}
        codes |= {"at_least": "q", "at_most": "q"}
        self.kept: dict[str, array[Any]] = {name: array(code) for name, code in codes.items()}
        self.ids: list[str] = []
        self.seen: dict[str, dict[str, int]] = {}
        self.errors: Counter[str] = Counter()
        self.read = self.truncated = self.drawn_by_tier = 0

    def add(self, row: Mapping[str, Any]) -> None:
        position, self.read = self.read, self.read + 1
        if row.get("classifier_error") is not None:
            self.errors[str(row["classifier_error"])] += 1
        if row.get("classifier_tier") is None:
            return
        self.truncated += bool(row.get("classifier_truncated"))
        kept = self.kept
        kept["rows"].append(position)
        kept["tiers"].append(Tier.parse(row["classifier_tier"]).index)
        kept["shares"].extend(row["classifier_probabilities"])
        kept["chars"].append(row.get("classifier_characters") or 0)
        kept["files"].append(self._code("files", row.get("classifier_file")))
        kept["lines"].append(row.get("classifier_row") or 0)
        self._add_label(row)
        for role, place in self.places.items():
            value = value_at(row.get(place[0]), place[1:])
            if role == "id":
                self.ids.append("" if value is None else str(value)[:64])
            elif role == "time":
                kept[role].append(seconds(value))
            elif role == "response":  # after the tokens, as in `columns.USUAL_NAMES`; to open an answer takes time
                counted = "output_tokens" in kept and not math.isnan(kept["output_tokens"][-1])
                kept[role].append(0.0 if counted else count_chars(opened(value)) / CHARS_PER_TOKEN)
            else:
                kept[role].append(amount(value) if role in _NUMBERS else self._code(role, value))

    def _add_label(self, row: Mapping[str, Any]) -> None:
        said = {role: value_at(row.get(place[0]), place[1:]) for role, place in self.labelling.items()}
        found = labels.interval_of(said)
        self.kept["at_least"].append(-1 if found is None else found[0].index)
        self.kept["at_most"].append(-1 if found is None else found[1].index)
        self.drawn_by_tier += found is not None and said.get("drawn_as") not in (None, "", sampling.RANDOM)

    def _code(self, role: str, value: Any) -> int:
        """A number for a value of a column of few values."""
        seen = self.seen.setdefault(role, {})
        return seen.setdefault("" if value is None else str(value)[:MAX_VALUE_CHARS], len(seen))

    def _numbers(self, role: str) -> NDArray[np.float64]:
        if role in self.kept:
            return np.array(self.kept[role], dtype=np.float64)
        return np.full(len(self.kept["rows"]), np.nan)

    def finish(self, path: str, facts: Mapping[str, str], columns: Mapping[str, str], assumed: float) -> Traffic:
        n = len(self.kept["rows"])
        if not n:
            why = f"; the commonest error is: {self.errors.most_common(1)[0][0]}" if self.errors else ""
            raise InputError(f"{path}: none of its {self.read} rows has a tier{why}")
        counted_in, counted_out = self._numbers("input_tokens"), self._numbers("output_tokens")
        for role in CACHED:
            counted_in = counted_in + np.nan_to_num(self._numbers(role))
        counted_out = counted_out + np.nan_to_num(self._numbers("thinking_tokens"))  # Gemini counts them apart
        costs = self._numbers("cost")  # gateways that know no prices write 0 for every request
        answers = self._numbers("response")
        held = answers > 0
        estimated_out = np.where(held, answers, assumed)
        categories = {
            role: Category(tuple(seen), np.array(self.kept[role], dtype=np.int32))
            for role, seen in self.seen.items()
            if role != "files"
        }
        return Traffic(
            rows=np.array(self.kept["rows"], dtype=np.int64),
            tiers=np.array(self.kept["tiers"], dtype=np.int64),
            probabilities=np.array(self.kept["shares"], dtype=np.float32).astype(np.float64).reshape(n, len(TIERS)),
            times=self._numbers("time"),
            input_tokens=np.where(np.isnan(counted_in), self._numbers("chars") / CHARS_PER_TOKEN, counted_in),
            output_tokens=np.where(np.isnan(counted_out), estimated_out, counted_out),
            input_counted=float(np.mean(~np.isnan(counted_in))),
            output_counted=float(np.mean(~np.isnan(counted_out))),
            output_estimated=float(np.mean(np.isnan(counted_out) & held)),
            cost_today=costs if (costs > 0).any() else np.full(n, np.nan),
            at_least=np.array(self.kept["at_least"], dtype=np.int64),
            at_most=np.array(self.kept["at_most"], dtype=np.int64),
            drawn_by_tier=self.drawn_by_tier,
            categories={role: found for role, found in categories.items() if not role.startswith("by:")},
            splits={r.removeprefix("by:"): found for r, found in categories.items() if r.startswith("by:")},
            ids=self.ids,
            files=tuple(self.seen["files"]),
            origins=np.stack([np.array(self.kept["files"]), np.array(self.kept["lines"])], axis=1),
            columns={role: name for role, name in columns.items() if not role.startswith("by:")},
            errors=dict(self.errors.most_common()),
            truncated=self.truncated,
            bundle_version=facts.get("bundle_version", ""),
            policy_name=facts.get("policy", ""),
            policy=_policy(facts.get("policy_definition", "")),
        )


def categories_of(traffic: Traffic, most: int) -> Iterator[tuple[str, list[tuple[str, NDArray[np.int64]]]]]:
    """Each category's largest values with their rows, and the rest as "(others)"; those of one value are left out.

    A role's category has its column behind it where a column that is split by has the role's name.
    """
    named = {f"{r} ({traffic.columns[r]})" if r in traffic.splits else r: c for r, c in traffic.categories.items()}
    for name, category in (named | dict(traffic.splits)).items():
        counts = np.bincount(category.codes, minlength=len(category.names))
        if np.count_nonzero(counts) < 2:
            continue
        largest = [int(c) for c in np.argsort(-counts, kind="stable")[:most] if counts[c]]
        parts = [(category.names[c] or "(none)", np.flatnonzero(category.codes == c)) for c in largest]
        rest = np.flatnonzero(~np.isin(category.codes, largest))
        yield name, [*parts, ("(others)", rest)] if len(rest) else parts
