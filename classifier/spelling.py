"""Typing errors of English text → the words that were meant, so that a slip does not change what a request is. Pure.

A word that no list knows falls into fragments, and a few slips are enough to change a tier. Damerau (1964) found four
kinds in most misspelt words: a letter left out, one too many, another one, or two neighbours swapped. So a word that is
not known and is one such edit from common words is read as the most common of them (Norvig 2007, "How to Write a
Spelling Corrector", with every edit as likely as another).

Most words that no list knows are right: names, identifiers, other languages. So a text is left as it is unless half of
its words are common English, and so are short words, those with a capital or a digit, those behind a quotation mark or
before an `n't`, those joined to others by a sign (`e-mail@host`, `snake_case`, `call(`), and those with an accent that
is a character of its own.

`words.txt` holds the common words, most common first, an empty line, and the others that are known.

Knows nothing of requests, tokens or models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

SHORTEST = 4
"""Letters of the shortest word that is corrected; shorter ones are a slip away from too many."""
LONGEST = 24
"""Letters of the longest; none that is common has more."""
ENGLISH = 0.5
"""Share of a text's words that have to be common English words before any of it is corrected."""

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_WORD = re.compile(r"[^\W\d_]+")
_MARKS = "\u00ad\u0300-\u036f\u200b-\u200d\u2060\ufeff"  # combining marks and what nobody sees: parts of a word, too
_FREE = re.compile(
    rf"(?<![\w{_MARKS}.@#$/\\:<`'\u2019-])[a-z]{{{SHORTEST},{LONGEST}}}(?![\w{_MARKS}@/\\(=>`-]|[.:]\w|['\u2019]t\b)"
)


def corrected(text: str) -> str:
    """`text` with the words of one typing error each replaced; all else is as it was.

    >>> corrected("What is the cpital of Australia?"), corrected("Wo liegt Cpital?")
    ('What is the capital of Australia?', 'Wo liegt Cpital?')
    """
    common, known = _lists()
    strange = {word for word in _FREE.findall(text) if word not in known}
    if not strange:
        return text
    words = _WORD.findall(text.lower())
    if sum(word in common for word in words) < ENGLISH * len(words):
        return text
    meant = {word: _most_common(_one_edit(word), common) or word for word in strange}
    return _FREE.sub(lambda found: meant.get(found[0], found[0]), text)


def _most_common(candidates: Iterable[str], common: Mapping[str, int]) -> str | None:
    """The one with the lowest place among the common words; None where none is common."""
    return min((word for word in candidates if word in common), key=common.__getitem__, default=None)


def _one_edit(word: str) -> Iterator[str]:
    """Every text that one edit makes of `word`."""
    for i in range(len(word) + 1):
        head, tail = word[:i], word[i:]
        for letter in _LETTERS:
            yield head + letter + tail
            if tail:
                yield head + letter + tail[1:]
        if tail:
            yield head + tail[1:]
        if len(tail) > 1:
            yield head + tail[1] + tail[0] + tail[2:]


@cache
def _lists() -> tuple[dict[str, int], frozenset[str]]:
    """(common words with their places, all known words)."""
    common, _, others = (Path(__file__).parent / "words.txt").read_text(encoding="ascii").partition("\n\n")
    places = {word: place for place, word in enumerate(common.split())}
    return places, frozenset((*places, *others.split()))
