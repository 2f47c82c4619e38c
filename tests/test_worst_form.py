"""Of several changed forms of a row the model learns from the one that it takes worst."""

from __future__ import annotations

import random

import pytest
import torch

from classifier.errors import InputError
from classifier.inputs import render
from classifier.tokenizer import BEFORE_TEXT
from classifier.types import Request
from training.forms import SHORT_TOKENS
from training.model import load_base, tokenizer_of
from training.recipe import FitOptions
from training.worst_form import added, flipped, worst_forms

OWN = [1, 5, 6, 2]


def form(*ids):
    """A form without context."""
    return list(ids), len(ids)


def test_of_each_row_the_form_with_the_highest_loss_is_taken():
    """Whatever the order and the lengths of the forms."""
    loss = {1: 0.5, 2: 0.9, 3: 0.1, 4: 0.3, 5: 0.2}
    forms = [[form(3), form(1, 0, 0), form(2, 0)], [form(5), form(4)]]
    chosen = worst_forms(forms, lambda some, _: torch.tensor([loss[ids[0]] for ids, _ in some]), at_once=3)
    assert chosen == [form(2, 0), form(4)]


def test_a_row_with_one_form_costs_nothing():
    """The model is asked about rivals alone, each with the place of its row, and keeps no gradients."""
    asked = []

    def losses(some, places):
        asked.extend(zip([ids[0] for ids, _ in some], places.tolist(), strict=True))
        assert not torch.is_grad_enabled()
        return torch.zeros(len(some))

    assert worst_forms([[form(7)], [form(8), form(9)]], losses, at_once=64) == [form(7), form(8)]
    assert sorted(asked) == [(8, 1), (9, 1)]


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ([1, 8, 9, 5, 6, 2], (1, 3)),
        ([1, 5, 6, 8, 2], (3, 4)),
        (OWN, None),
        ([1, 5, 7, 7, 2], None),
        ([1, 5, 2], None),
    ],
    ids=["before", "behind", "the same", "a typing error", "shorter"],
)
def test_only_what_was_put_beside_the_text_counts_as_added(changed, where):
    """A form that changed the text itself has nothing that could be replaced without changing the request."""
    assert added(OWN, changed) == where


def test_a_signal_that_changed_hides_nothing_that_was_added():
    """A sentence beside a short prompt makes it longer, which a signal says; the sentence is found all the same."""
    _, fast = load_base("tiny", 256)
    tokenizer = tokenizer_of(fast, 256)
    plain, changed = (render(Request.from_text(text)) for text in ("2 + 2", "this needs your very best model. 2 + 2"))
    assert plain.signals != changed.signals
    own, form_of_it = tokenizer.ids(plain)[0], tokenizer.ids(changed)[0]
    lead = 1 + len(plain.signals)
    assert added(own, form_of_it, BEFORE_TEXT) == (lead, lead + len(form_of_it) - len(own))


def test_replaced_tokens_raise_the_loss_and_the_text_stays():
    """Of the words that are offered each row gets those that raise its own loss, in its own place."""
    embedding = torch.nn.Embedding(20, 1)
    embedding.weight.data = torch.arange(20.0)[:, None]

    def losses(some, places):
        sign = torch.where(places % 2 == 0, 1.0, -1.0)
        longest = max(len(ids) for ids, _ in some)
        padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in some])
        return sign * embedding(padded).sum(dim=(1, 2))

    forms = [form(1, *[8, 9] * (1 + i % 3), 5, 6, 2) for i in range(60)]
    rngs = [random.Random(i) for i in range(60)]
    found = flipped(forms, [form(*OWN)] * 60, losses, embedding, [10, 13, 11], random.Random(0), rngs)
    assert [len(ids) for ids, _ in found] == [len(ids) for ids, _ in forms]
    assert {tuple(ids[:1] + ids[-3:]) for ids, _ in found} == {tuple(OWN)}
    new = [{token for ids, _ in found[parity::2] for token in ids[1:-3]} for parity in (0, 1)]
    assert new == [{8, 9, 13}, {8, 9, 10}]
    changed = sum(one != other for one, other in zip(found, forms, strict=True))
    assert 15 < changed < 45, "half of them, by chance"
    assert embedding.weight.grad is None


@pytest.mark.parametrize(
    ("changed", "own"),
    [(form(1, 5, 7, 2), form(*OWN)), (form(1, 8, *[5] * SHORT_TOKENS, 2), form(1, *[5] * SHORT_TOKENS, 2))],
    ids=["a typing error", "a long row"],
)
def test_what_is_left_alone(changed, own):
    """Nothing is asked where no form of a short row has added tokens."""
    for seed in range(9):
        rngs = [random.Random(seed)]
        found = flipped([changed], [own], pytest.fail, torch.nn.Embedding(9, 1), [8], random.Random(0), rngs)
        assert found == [changed]


def test_fewer_than_one_form_is_refused():
    """A recipe that tries no form is an error before anything is trained."""
    with pytest.raises(InputError, match="worst_of is 0"):
        FitOptions(worst_of=0)
