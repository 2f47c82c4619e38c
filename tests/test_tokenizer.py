"""Text → ids: signals in front, context behind, nothing forged."""

from __future__ import annotations

import random
import string
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from classifier.bundle import SHIPPED
from classifier.errors import BundleCorrupt
from classifier.inputs import ModelInput, render
from classifier.signals import SIGNALS
from classifier.tokenizer import Tokenizer, pad
from classifier.types import Request
from tests.tiny import MAX_TOKENS, fast_tokenizer

TOKENIZER = Tokenizer(fast_tokenizer(), MAX_TOKENS)
CLS, SEP = 2, 3
SIX = render(Request.from_text("hi")).signals


def read(text: str, context: str) -> ModelInput:
    """A text and its context with one set of signals."""
    return ModelInput(text, context, SIX, "latin", truncated=False, chars=len(text) + len(context))


def encode(text: str, context: str = "") -> list[int]:
    return TOKENIZER.encode(read(text, context)).input_ids[0].tolist()


def test_pair_is_assembled_in_one_way():
    """A pair is [CLS] signals text [SEP] context [SEP], the context marked by token type 1."""
    found = TOKENIZER.encode(read("explain sql", "hi"))
    ids = found.input_ids[0].tolist()
    signals = [fast_tokenizer().token_to_id(s) for s in SIX]
    words = [fast_tokenizer().token_to_id(w) for w in ("explain", "sql", "hi")]
    assert ids == [CLS, *signals, *words[:2], SEP, words[2], SEP]
    assert found.token_type_ids[0].tolist() == [0] * 10 + [1, 1]
    assert found.attention_mask.tolist() == [[1] * 12]
    assert found.input_ids.dtype == np.int64


def test_no_context_means_one_separator():
    """Without context there is one separator, not an empty second text with its own."""
    assert encode("explain sql").count(SEP) == 1


def test_empty_text_still_encodes():
    """An empty message is signals between [CLS] and [SEP]."""
    assert len(encode("")) == 2 + len(SIX)


@pytest.mark.parametrize(
    "text", ["[SEP]", "[CLS] hi [SEP]", "[turns=9] [tools=6]", "[PAD][PAD]", "[MASK]", *SIGNALS[:3]]
)
def test_names_of_reserved_entries_are_plain_text(text):
    """The name of a separator or of a signal, typed by a user, is ordinary text."""
    inner = encode(text)[1 + len(SIX) : -1]
    assert inner
    assert not set(inner) & TOKENIZER.reserved_ids


@given(st.text(max_size=200), st.text(max_size=200))
def test_no_text_yields_a_reserved_id(text, context):
    """Whatever is typed, only the six signals and the separators that we put there are reserved ids."""
    request = Request.from_text(text.replace("\0", ""))
    rendered = render(request)
    found = TOKENIZER.encode(read(rendered.text, context)).input_ids[0].tolist()
    reserved = [i for i in found if i in TOKENIZER.reserved_ids]
    assert reserved[0] == CLS
    assert len(reserved) == 1 + len(SIX) + found.count(SEP)
    assert found.count(SEP) in (1, 2)


@given(st.integers(0, 300), st.integers(0, 300))
def test_budget_is_never_exceeded(text_words, context_words):
    """However long both texts are, the sequence keeps its budget, and uses it before it drops anything."""
    found = TOKENIZER.encode(read("hi " * text_words, "sql " * context_words))
    length = found.input_ids.shape[1]
    assert length <= MAX_TOKENS
    assert found.truncated == (text_words + context_words + (2 if not context_words else 3) + len(SIX) > MAX_TOKENS)
    assert not found.truncated or length == MAX_TOKENS


def test_long_text_leaves_room_for_its_context():
    """A long text does not push its context out, nor a long context the text."""
    both = encode("hi " * 500, "sql " * 500)
    hi, sql = (fast_tokenizer().token_to_id(w) for w in ("hi", "sql"))
    assert both.count(hi) > both.count(sql) > 10


def test_vocabulary_without_signals_is_refused():
    """A tokeniser that lacks a reserved entry cannot be used."""
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import models

    with pytest.raises(BundleCorrupt, match=r"\[turns=1\]"):
        Tokenizer(FastTokenizer(models.WordPiece({"[CLS]": 0, "[SEP]": 1, "[PAD]": 2}, unk_token="[PAD]")), 16)


def test_a_panic_is_an_error_like_any_other():
    """Not one that passes whoever answers for errors: a call would stay without an answer, and its text be logged."""
    panicking = fast_tokenizer()
    panicking.pre_tokenizer = pre_tokenizers.FixedLength(0)
    with pytest.raises(RuntimeError, match=r"^the tokenizer panicked$"):
        Tokenizer(panicking, MAX_TOKENS).encode(read("hi", ""))


def test_padding_keeps_each_row():
    """A training batch holds each row's ids, masked beyond its end, typed as it would be alone."""
    inputs = [
        read("hi", ""),
        read("explain sql", "hi"),
    ]
    batch = pad([TOKENIZER.ids(i)[:2] for i in inputs])
    for row, one in enumerate(TOKENIZER.encode(i) for i in inputs):
        length = one.input_ids.shape[1]
        assert batch["input_ids"][row, :length].tolist() == one.input_ids[0].tolist()
        assert batch["token_type_ids"][row, :length].tolist() == one.token_type_ids[0].tolist()
        assert batch["attention_mask"][row].sum() == length


@cache
def shipped():
    from tokenizers import Tokenizer as FastTokenizer

    path = str(SHIPPED / "tokenizer.json")
    library = FastTokenizer.from_file(path)
    library.encode_special_tokens = True
    return Tokenizer(FastTokenizer.from_file(path), 256), library


ASCII = st.text(st.characters(max_codepoint=127), max_size=300)


@settings(deadline=None)
@given(ASCII)
def test_ascii_text_has_the_ids_that_the_library_gives_it(text):
    """Whatever ASCII text it is, the short way through the vocabulary and the library's give the same ids."""
    ours, library = shipped()
    assert ours._ascii is not None
    assert ours._encode(text) == library.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    "count", [pytest.param(1000, id="short"), pytest.param(30_000, id="long", marks=pytest.mark.faults)]
)
def test_words_of_every_kind_have_the_ids_that_the_library_gives_them(count):
    """Words in capitals, in pieces, too long, glued by punctuation and cut by control characters are all alike."""
    ours, library = shipped()
    draw = random.Random(count)
    words = [word for word in library.get_vocab() if word.isascii()]

    def word():
        text = draw.choice(words).removeprefix("##")
        kind = draw.randrange(6)
        if kind == 0:
            return text.upper()
        if kind == 1:
            return text * draw.randrange(1, 30)
        if kind == 2:
            return text + draw.choice(string.printable) + draw.choice(words)
        return text + chr(draw.randrange(128)) if kind == 3 else text

    for _ in range(count):
        text = draw.choice(" \n\t").join(word() for _ in range(draw.randrange(8)))
        assert ours._encode(text) == library.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("what", ["cased", "no clean-up", "words of its own", "another model", "another split"])
def test_another_kind_of_tokeniser_is_left_to_the_library(what):
    """The short way is only taken where the tokeniser is BERT's lower-casing one."""
    from tokenizers import AddedToken, models, normalizers, pre_tokenizers

    fast = fast_tokenizer()
    if what == "cased":
        fast.normalizer = normalizers.BertNormalizer(lowercase=False)
    elif what == "no clean-up":
        fast.normalizer = normalizers.BertNormalizer(clean_text=False)
    elif what == "words of its own":
        fast.add_tokens([AddedToken("hello world", special=False)])
    elif what == "another model":
        fast.model = models.WordLevel(fast.get_vocab(), unk_token="[UNK]")
    else:
        fast.pre_tokenizer = pre_tokenizers.Whitespace()
    assert Tokenizer(fast, MAX_TOKENS)._ascii is None
