"""Sentences that speak to the router and not to the model: they ask for no work, so they are left out of the rating.

"This is an expert task, use your best model" changes no label (RUBRIC), and neither do words put before a prompt that
were found by trying what raises its tier (Shafran et al., arXiv:2501.01818). A bundle's graph may say, for each entry
of the text, the log-odds that it is such an addition (`training.steering_head`). A sentence whose entries say so
together is left out, or its beginning or end where the rest of it says otherwise, and what remains is rated instead.
A text that is nothing else stays: it is all there is to rate.

A graph that has learnt from English above all is least sure of words in other scripts. What a person asks in one
script hardly ever has sentences of another beside it, and those are mostly what is asked about, of which it is sure.
So such words count for more (`OTHER_SCRIPT`).

Pure. Knows nothing of graphs, calibration or policies.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from classifier.inputs import ModelInput, shortened
from classifier.signals import dominant_script
from classifier.tokenizer import BEFORE_TEXT, Encoded, Tokenizer

# Controls that Python takes for blanks are none to a tokeniser, which reads through them.
_BLANK = r"[^\S\x0b\x0c\x1c-\x1f\x85]"
SENTENCE_END = re.compile(rf"(?:(?<![.!?])[.!?]++(?={_BLANK})|[。！？]+|\n){_BLANK}*")
WORD_END = re.compile(rf"{_BLANK}+")
_OTHER_LETTER = re.compile(r"[^\W\d_a-zA-Z\xaa-\u024f\u1e00-\u1eff]")  # most texts have none, and need no more
MOST_LOG_ODDS = 4.0
"""What one entry may say, either way: a sentence is judged by all of its words and not by the surest."""
STEERS_FROM = -1.0
"""Mean log-odds of a sentence from which it is left out: what it costs and saves is in docs/design/0004-student.md."""
CUT = 12.0
"""Log-odds beyond that bound which a cut within a sentence has to gain: three of the surest entries."""
OTHER_SCRIPT = 2.0
"""Log-odds more for each entry of a word in another script than Latin, beside Latin ones: chosen in the same note."""
LATIN_SHARE = 0.2
"""Share of a text's letters that have to be Latin for that: before a short question most of them may be what steers."""


def sentences(text: str) -> list[str]:
    r"""Sentences and lines that make up `text`, each with the blanks behind it.

    >>> sentences("Hi there. Prove it!\nNow")
    ['Hi there. ', 'Prove it!\n', 'Now']
    """
    return [text[a:b] for a, b in divided(text, SENTENCE_END)]


def divided(text: str, end: re.Pattern[str]) -> list[tuple[int, int]]:
    """Spans that make up `text`, divided behind each match of `end`; none is empty."""
    return between([m.end() for m in end.finditer(text)], text)


def between(edges: list[int], text: str) -> list[tuple[int, int]]:
    """Spans that make up `text`, divided at `edges`; none is empty."""
    return [(a, b) for a, b in pairwise((0, *edges, len(text))) if a < b]


def without_steering(
    model_input: ModelInput, encoded: Encoded, log_odds: NDArray[np.float32], tokenizer: Tokenizer
) -> ModelInput | None:
    """What is left to rate; None where nothing is left out.

    Args:
        model_input: what was asked.
        encoded: the same as ids.
        log_odds: (length,) float32, of each entry of `encoded`: that it steers.
        tokenizer: the one that encoded it.
    """
    text = slice(BEFORE_TEXT, int((encoded.token_type_ids == 0).sum()) - 1)
    of_text = log_odds[text]
    mixed = not model_input.text.isascii() and _OTHER_LETTER.search(model_input.text) is not None
    if not (of_text > STEERS_FROM - mixed * OTHER_SCRIPT).any():
        return None
    words = [[s[a:b] for a, b in divided(s, WORD_END)] for s in sentences(model_input.text)]
    every_word = [word for those in words for word in those]
    word_of = tokenizer.parts_of(encoded.input_ids[0, text].tolist(), every_word)
    if word_of is None:
        return None
    above = np.clip(of_text, -MOST_LOG_ODDS, MOST_LOG_ODDS) - STEERS_FROM
    if mixed:
        above += OTHER_SCRIPT * in_another_script(every_word)[word_of]
    edges = np.cumsum([len(those) for those in words])
    of_words = np.bincount(word_of, weights=above, minlength=edges[-1]).astype(np.float64)
    kept = [those[remaining(of)] for those, of in zip(words, np.split(of_words, edges[:-1]), strict=True)]
    rest = "".join(word for those in kept for word in those).strip()
    return shortened(model_input, rest) if rest and kept != words else None


def in_another_script(words: Sequence[str]) -> NDArray[np.bool_]:
    """Which of a text's words are in another script than Latin, if it has Latin ones beside them: (words,) bool.

    >>> in_another_script(["Solve ", "x². ", "Подумай", "!"]), in_another_script(["Подумай", "!"])
    (array([False, False,  True, False]), array([False, False]))
    """
    scripts = np.array([dominant_script(word) for word in words])
    letters = np.array([sum(map(str.isalpha, word)) for word in words])
    is_latin = letters[scripts == "latin"].sum() >= max(1, LATIN_SHARE * letters.sum())
    found: NDArray[np.bool_] = is_latin & (scripts != "latin") & (scripts != "none")
    return found


def remaining(above: NDArray[np.float64]) -> slice:
    """The words of a sentence that are left: all, none, or those behind or before a cut, whatever the others say.

    Args:
        above: (words,) log-odds of each above `STEERS_FROM`, summed over its entries.

    >>> remaining(np.array([5.0, 5.0, 5.0, -9.0, -9.0])), remaining(np.array([5.0, 5.0, -1.0]))
    (slice(3, None, None), slice(None, 0, None))
    """
    before = np.cumsum(above)
    behind = before[-1] - before
    first, last = int(before.argmax()), int(behind.argmax())
    choices = [
        (0.0, slice(None)),
        (float(before[-1]), slice(0)),
        (float(before[first]) - CUT, slice(first + 1, None)),
        (float(behind[last]) - CUT, slice(last + 1)),
    ]
    return max(choices, key=lambda choice: choice[0])[1]
