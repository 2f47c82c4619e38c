"""Typing errors are read as the words that were meant; what is no English prose stays as it is."""

from __future__ import annotations

import random
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import classifier
from classifier.inputs import rated_text, render
from classifier.spelling import LONGEST, SHORTEST, corrected
from classifier.types import Request

ROOT = Path(classifier.__file__).parent
SENTENCE = "Please {} the meeting notes and send them to everyone who was there."


@pytest.mark.parametrize(
    "slip",
    ["sumarize", "summmarize", "summatize", "summraize"],
    ids=["left out", "one too many", "another letter", "swapped"],
)
def test_one_slip_in_a_word_is_read_as_the_word_that_was_meant(slip: str) -> None:
    """Each of Damerau's four kinds of error."""
    assert corrected(SENTENCE.format(slip)) == SENTENCE.format("summarize")


@pytest.mark.parametrize("slip", ["importan", "importantt", "importand", "importatn"])
def test_a_slip_in_the_last_letter_is_one_too(slip: str) -> None:
    """Each kind of error is read at a word's end as anywhere else in it."""
    assert corrected(f"It is {slip} to send them the meeting notes.").split()[2] == "important"


@pytest.mark.parametrize("behind", [":", ",", "?", "!", ".", ")", "'s", " \u2013", "\n"])
def test_what_stands_behind_a_word_in_prose_does_not_keep_it_from_correction(behind: str) -> None:
    """Marks, a possessive, a blank."""
    text = "This is what they have to say of the {}{} it is here."
    assert corrected(text.format("companny", behind)) == text.format("company", behind)


def test_the_most_common_of_the_words_that_may_be_meant_is_taken() -> None:
    """`thier` is one swap from `their` and one letter from rarer words."""
    assert corrected("The students have to bring thier own books to this class.").split()[5] == "their"


@pytest.mark.parametrize(
    "text",
    [
        "Why does kubectl say that the server is not there?",
        "Is the colour of the centre important to people?",
        "My friend Jonson and the people of Cpital are here.",
        "What does the SAML in my jQuery do to the page?",
        "What is the value of cpital_city in this list of names?",
        "Where do I find the file cpital.txt on my computer?",
        "Send the message to cpital@example.org before the meeting.",
        "Why does cpital() return nothing when I call it twice?",
        "What does `cpital` mean in this line, and 'cpital' in the other one?",
        "Is there a re\u0301sume\u0301 or a protege\u0301 that you would show to people?",
        "What does infor\u00admation or infor\u200bmation mean in this text?",
        "He dosen't know what the others have done with it.",
        "I dont know what they said, and im not sure they havent left.",
        "Can you say wat this one is for, or hwo to do it?",
        f"What is the meaning of the word {'x' * (LONGEST + 1)} in this text?",
    ],
)
def test_what_may_be_right_is_left_alone(text: str) -> None:
    """Terms, British spelling, names, acronyms, identifiers, files, addresses, chat words; the too short or long."""
    assert corrected(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "Escribe una funcion que ordene los elementos de una lista por el segundo elemento de cada tupla.",
        "Scrivi una lettera formale al mio padrone di casa per chiedere la riparazione della caldaia.",
        "Skriv en kort sammanfattning av boken och nämn huvudpersonerna och deras problem.",
        "Erklaere mir bitte den Unterschied zwischen einer Aktie und einer Anleihe.",
        "请总结一下这篇文章的主要内容",
        "for (let i = 0; i < arr.length; i++) { sum += arr[i]; }",
        "",
    ],
)
def test_other_languages_and_code_are_left_alone(text: str) -> None:
    """A text whose words are not mostly common English is not corrected, whatever is near its words."""
    assert corrected(text) == text


def test_what_the_model_reads_is_corrected_and_what_people_see_is_not() -> None:
    """The rated text alone: neither the conversation before it, nor what is shown of a request."""
    text = "What is the cpital of that country and how many people live there?"
    request = Request.from_messages(
        [
            {"role": "user", "content": "Tell me about the cpital of this country, please."},
            {"role": "assistant", "content": "Which country do you mean?"},
            {"role": "user", "content": text},
        ]
    )
    read = render(request)
    assert read.text == text.replace("cpital", "capital")
    assert "cpital" in read.context
    assert rated_text(request) == text


@given(st.text(alphabet=string.ascii_letters + string.digits + " .,_-()\n\té你😀", max_size=300))
def test_nothing_but_words_is_changed_and_twice_is_as_once(noise: str) -> None:
    """Blanks, signs and numbers stay in their places; a corrected text has nothing left to correct."""
    text = f"{SENTENCE.format('sumarize')} {noise}"
    found = corrected(text)

    def signs(of: str) -> str:
        return "".join("a" if c.isalpha() and c.isascii() else c for c in of)

    assert [part for part in signs(found).split("a") if part] == [part for part in signs(text).split("a") if part]
    assert corrected(found) == found


def test_a_text_of_nothing_but_strange_words_takes_bounded_work() -> None:
    """The words are few and short, for a text has at most 1,600 characters and a word at most so many letters."""
    rng = random.Random(0)
    strange = ["".join(rng.choices("qxzjkv", k=LONGEST)) for _ in range(32)]
    text = " ".join(word for other in strange for word in ("the", other))
    assert corrected(text) == text


def test_the_list_is_what_the_module_says() -> None:
    """Lower-case ASCII words, each once; those that are only known, sorted, are of a length that is looked up."""
    common, _, others = (ROOT / "words.txt").read_text(encoding="ascii").partition("\n\n")
    words = [*common.split("\n"), *others.splitlines()]
    assert len(words) == len(set(words))
    assert all(word.isalpha() and word.islower() for word in words)
    assert others.splitlines() == sorted(others.splitlines())
    assert all(SHORTEST <= len(word) <= LONGEST for word in others.splitlines())
    assert "Permission is hereby granted" in (ROOT / "words.LICENSE").read_text(encoding="ascii")
