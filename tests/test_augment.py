"""Changes that leave the label alone: how often each is made, and that nothing else is changed."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from classifier.types import Message, Request
from training.augment import STEERING, augment, steer, typos

LETTERS = "the quick brown fox jumps"
ASKED = 'Well, can\'t we "just" go?'
WORDS = ("zurb", "flim", "knop")


def slip(text: str) -> str:
    """Which one slip of the hand made `text` of `LETTERS`; "" where none did, "more" where one is not enough."""
    for i, letter in enumerate(LETTERS):
        before, after = LETTERS[:i], LETTERS[i + 1 :]
        if letter == " ":
            continue
        if text == before + after:
            return "dropped"
        if text == before + letter + letter + after:
            return "doubled"
        if after[:1].strip() and text == before + after[0] + letter + after[1:]:
            return "swapped"
        if text != LETTERS and len(text) == len(LETTERS) and text[:i] == before and text[i + 1 :] == after:
            return "mistyped"
    return "" if text == LETTERS else "more"


def test_a_typo_is_a_letter_swapped_dropped_doubled_or_mistyped():
    """About so many letters as are asked for slip, one in four ways, and neither spaces nor what follows them."""
    found = Counter(slip(typos(LETTERS, random.Random(seed), 0.01)) for seed in range(6000))
    slips = 6000 - found[""]
    assert slips / 6000 == pytest.approx(1 - 0.99**21, abs=0.02)
    assert found["more"] / slips < 0.15
    shares = {kind: found[kind] / (slips - found["more"]) for kind in ("swapped", "dropped", "doubled", "mistyped")}
    # The last letter of a word has none to be swapped with: it is dropped.
    assert shares == pytest.approx(
        {"swapped": 0.3 * 16 / 21, "dropped": 0.25 + 0.3 * 5 / 21, "doubled": 0.2, "mistyped": 0.25}, abs=0.05
    )


@pytest.mark.parametrize("text", ["", "1 + 1 = 2?", "a" * 2000 + "b" * 50])
def test_typos_leave_what_is_no_letter_and_what_comes_late(text: str):
    """Digits and signs stay, and so does everything after the first 2,000 characters, however many slips there are."""
    slipped = typos(text, random.Random(0), 1.0)
    kept = re.sub("[^b]", "", text) if len(text) > 2000 else text
    assert slipped.endswith(kept[1:])
    assert typos(text, random.Random(0), 0.0) == text


def change(before: Request, after: Request) -> str:
    """What was done to the last message, of which the words of gadgets are known; the others must be as they were."""
    if len(after.messages) < len(before.messages):
        assert after.messages == before.messages[1:]
        return "no system prompt"
    assert after.messages[:-1] == before.messages[:-1]
    text = after.messages[-1].content
    if text == ASKED.rstrip("?"):
        return "no end"
    if text == re.sub("[,'\"]", "", ASKED):
        return "no signs"
    around = re.fullmatch(rf"(?:(.+?)\s+)?{re.escape(ASKED)}(?:\s+(.+))?", text, re.DOTALL)
    if around is None or text == ASKED:
        return "typos"
    addition = around[1] or around[2]
    if not set(addition.split()) <= set(WORDS):
        return "steered"
    assert 3 <= len(addition.split()) <= 16
    return "gadget"


@pytest.mark.parametrize(
    ("roles", "words", "shares"),
    [
        ("s", WORDS, {"gadget": 0.28, "no end": 0.07, "no signs": 0.11}),
        ("sua", WORDS, {"gadget": 0.28, "no end": 0.07, "no signs": 0.05, "no system prompt": 0.06}),
        ("ua", WORDS, {"gadget": 0.28, "no end": 0.07, "no signs": 0.11}),
        ("", (), {"no end": 0.35, "no signs": 0.11}),
    ],
    ids=["system prompt alone", "system prompt and turns", "turns alone", "no words for gadgets"],
)
def test_each_rewording_has_its_share_and_changes_nothing_else(roles: str, words, shares):
    """A slip, a steering text or words beside, an end, signs or a system prompt left out: one of them at a time."""
    names = {"s": "system", "u": "user", "a": "assistant"}
    told = tuple(Message(names[role], "So it is.") for role in roles)
    before = Request((*told, Message("user", ASKED)))
    found = Counter(
        change(before, augment(before, random.Random(seed), words, kind="reworded")[0]) for seed in range(2000)
    )
    expected = {"typos": 0.22, "steered": 0.32} | shares
    assert {kind: count / 2000 for kind, count in found.items()} == pytest.approx(expected, abs=0.04)


def test_what_steers_is_cased_as_people_do():
    """A text that is put together begins small, with a capital or is all capitals, and no letter comes twice."""
    texts = [text for seed in range(2000) if not (text := steer(random.Random(seed))).startswith(STEERING)]
    assert not [text for text in texts if re.match(r"([A-Z])(?!\1)(?i:\1)", text)]
    assert 0 < sum(text.isupper() for text in texts) < 0.1 * len(texts)
    assert sum(text[:1].isupper() and not text.isupper() for text in texts) > 0.1 * len(texts)
