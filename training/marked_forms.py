"""Prompts with something put beside them, and marks that say which entries want to move the tier.

Three kinds of text stand beside a prompt. Steering sentences and gadgets of random words (`training.augment`) are
marked. Demands, which belong to the work ("Answer in French.", "The second one is urgent."), and sentences of other
prompts are not: without them whatever stands alone would look like steering.

Pure and seeded. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from classifier.errors import InputError
from classifier.inputs import rated_text, render
from classifier.spelling import corrected
from classifier.steering import sentences
from classifier.tokenizer import BEFORE_TEXT, Tokenizer
from training.augment import steer, typos, with_text
from training.corpus import Row

_FILE = Path(__file__).parent / "demands.txt"
DEMANDS = tuple(_FILE.read_text(encoding="utf-8").splitlines())
"""Sentences that stand beside a prompt and belong to its work, by six writers."""
DEMANDS_SHA256 = hashlib.sha256(_FILE.read_bytes()).hexdigest()
STEERING_FAMILIES = ("steering", "harness-noise")
"""Families of `data/` whose prompts hold such text already, unmarked."""
_DEMANDED, _TYPED = 0.3, 0.3
_ADDED = {("steer",): 0.45, ("steer", "steer"): 0.06, ("gadget",): 0.12, ("steer", "gadget"): 0.04, (): 0.33}
_BLANKS = (" ", "\n", "\n\n")
_SHORTEST, _LONGEST = 8, 300
_WORD_OR_SIGN = re.compile(r"[^\W\d_]+|[\W\d_]")
_TRIES = 1000


@dataclass(frozen=True, slots=True)
class MarkedForm:
    """One form of a row.

    Attributes:
        ids: of its entries.
        first: how many of them are not context.
        marks: (len(ids),) int8: 1 where the entry steers, 0 where it does not, -1 where nobody asks.
    """

    ids: list[int]
    first: int
    marks: NDArray[np.int8]


class MarkedForms:
    """Forms of rows, drawn anew as often as asked.

    Args:
        rows: prompts; those that steer already are left out.
        tokenizer: the serving tokeniser.
        most_tokens: of a prompt; longer ones are left out.

    Raises:
        InputError: no row is left.
    """

    def __init__(self, rows: Sequence[Row], tokenizer: Tokenizer, most_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._words = list(tokenizer.words()) or ["a"]
        self._rows = [
            row
            for row in rows
            if row.family not in STEERING_FAMILIES and len(tokenizer.ids(render(row.request))[0]) <= most_tokens
        ]
        if not self._rows:
            raise InputError(
                f"none of {len(rows)} rows is a prompt of at most {most_tokens} tokens that does not steer: "
                "train on more rows, or set steering_forms = 0"
            )

    def draw(self, rng: random.Random) -> MarkedForm:
        """A form of a random row.

        Raises:
            InputError: of a thousand forms none reached the model as it was made.
        """
        for _ in range(_TRIES):
            row = rng.choice(self._rows)
            found = self._marked(row, self._parts(rated_text(row.request).strip(), rng))
            if found is not None:
                return found
        raise InputError(
            f"of {_TRIES} forms none reaches the model as it was made: this tokenizer encodes text otherwise beside "
            "other text; set steering_forms = 0"
        )

    def _parts(self, text: str, rng: random.Random) -> list[tuple[str, int]]:
        """(text, mark) of each part, in their order."""
        parts = [(typos(text, rng, rate=rng.choice((0.01, 0.03, 0.06))) if rng.random() < _TYPED else text, 0)]
        if rng.random() < _DEMANDED:
            parts = _place(parts, self._demand(rng), 0, rng)
        [kinds] = rng.choices(list(_ADDED), list(_ADDED.values()))
        for kind in kinds:
            gadget = " ".join(rng.choices(self._words, k=rng.randint(3, 16)))
            parts = _place(parts, _varied(steer(rng), rng) if kind == "steer" else gadget, 1, rng)
        return parts

    def _demand(self, rng: random.Random) -> str:
        if rng.random() < 0.75:
            return _varied(rng.choice(DEMANDS), rng)
        others = [s.strip() for s in sentences(rated_text(rng.choice(self._rows).request))]
        return rng.choice([s for s in others if _SHORTEST < len(s) < _LONGEST] or list(DEMANDS))

    def _marked(self, row: Row, parts: list[tuple[str, int]]) -> MarkedForm | None:
        """None where the parts do not reach the model as they are: cut, cleaned, or encoded otherwise together."""
        parts = _as_read(parts)
        text = "".join(part for part, _ in parts)
        model_input = render(with_text(row.request, lambda _: text))
        ids, first, truncated = self._tokenizer.ids(model_input)
        if model_input.text != text or truncated:
            return None
        part_of = self._tokenizer.parts_of(ids[BEFORE_TEXT : first - 1], [part for part, _ in parts])
        if part_of is None:
            return None
        marks = np.full(len(ids), -1, np.int8)
        marks[BEFORE_TEXT : first - 1] = np.array([mark for _, mark in parts], np.int8)[part_of]
        return MarkedForm(ids, first, marks)


def _as_read(parts: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """`parts` with their typing errors corrected as they are in the whole, which exchanges words for words."""
    read = iter(_WORD_OR_SIGN.findall(corrected("".join(part for part, _ in parts))))
    return [("".join(islice(read, len(_WORD_OR_SIGN.findall(part)))), mark) for part, mark in parts]


def _place(parts: list[tuple[str, int]], added: str, mark: int, rng: random.Random) -> list[tuple[str, int]]:
    """`parts` with another one before them, behind them or between two sentences of the longest."""
    blank, where = rng.choice(_BLANKS), rng.random()
    longest = max(range(len(parts)), key=lambda i: len(parts[i][0]))
    text, its_mark = parts[longest]
    within = sentences(text)
    if 0.55 <= where < 0.9:
        return [*parts, (blank, 0), (added, mark)]
    if where < 0.55 or len(within) < 2:
        return [(added, mark), (blank, 0), *parts]
    cut = rng.randrange(1, len(within))
    around = ("".join(within[:cut]), its_mark), ("".join(within[cut:]), its_mark)
    return [*parts[:longest], around[0], (added, mark), (blank, 0), around[1], *parts[longest + 1 :]]


def _varied(text: str, rng: random.Random) -> str:
    """`text` as careless people write it, now and then."""
    change = rng.random()
    if change < 0.08:
        return text.upper()
    if change < 0.16:
        return text.lower()
    if change < 0.24:
        return typos(text, rng, rate=0.04)
    return text.rstrip(".!。") if change < 0.30 else text
