"""The head that marks what steers: the forms that it learns from, and what it may not change."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace

import pytest

pytest.importorskip("torch")

import torch

from classifier.errors import InputError
from classifier.types import Request
from tests.fit_support import tiny_rows
from training import marked_forms, steering_head
from training.marked_forms import DEMANDS, MarkedForms
from training.model import load_base, tokenizer_of
from training.robustness import UNSEEN
from training.steering_head import fit_head, head_of, kept_head, load_head, new_head, save_head

MAX_TOKENS = 256


@pytest.fixture(scope="module")
def student():
    """A random student and its tokeniser of single characters."""
    model, fast = load_base("tiny", MAX_TOKENS)
    return model, tokenizer_of(fast, MAX_TOKENS)


def test_marks_are_on_what_steers_and_on_nothing_else(student, monkeypatch):
    """Steering sentences and gadgets are marked, the prompt and demands are not; two thirds of the forms steer."""
    _, tokenizer = student
    monkeypatch.setattr(marked_forms, "steer", lambda _: "qqqq qqq.")
    monkeypatch.setattr(marked_forms, "DEMANDS", ("xxx x xxx xx.",))
    prompt = Request.from_text("zzz z zz. zzzz")
    source = MarkedForms([replace(row, request=prompt) for row in tiny_rows(1)], tokenizer, MAX_TOKENS)
    rng, marks, steered = random.Random(0), defaultdict(set), 0
    for _ in range(300):
        form = source.draw(rng)
        for id_, mark in zip(form.ids, form.marks.tolist(), strict=True):
            marks[tokenizer._fast.id_to_token(id_).removeprefix("##")].add(mark)
        steered += int((form.marks == 1).any())
    assert [marks[letter] for letter in "zxqa"] == [{0}, {0}, {1}, {1}]  # a gadget is made of "a" here
    assert marks["[CLS]"] == marks["[SEP]"] == marks["[turns=1]"] == {-1}
    assert 0.57 * 300 < steered < 0.77 * 300


def test_marks_stay_where_they_belong_when_a_typing_error_is_corrected(student, monkeypatch):
    """A corrected word of another length shifts no mark: a prompt has none, a steering sentence is all marked."""
    _, tokenizer = student
    monkeypatch.setattr(marked_forms, "steer", lambda _: "7777 777.")
    monkeypatch.setattr(marked_forms, "_ADDED", {("steer",): 1.0})
    monkeypatch.setattr(marked_forms, "_DEMANDED", 0.0)
    prompt = Request.from_text("what is the cpital of the country that they have been to? it is a mouuntain.")
    source = MarkedForms([replace(row, request=prompt) for row in tiny_rows(1)], tokenizer, MAX_TOKENS)
    rng, corrections = random.Random(0), 0
    for _ in range(100):
        form = source.draw(rng)
        letters = [tokenizer._fast.id_to_token(id_).removeprefix("##") for id_ in form.ids]
        marks = list(zip(letters, form.marks.tolist(), strict=True))
        assert {letter for letter, mark in marks if mark == 1} <= {"7", "."}
        assert {mark for letter, mark in marks if letter == "7"} == {1}
        corrections += "capital" in "".join(letters)
    assert corrections > 50


def test_forms_are_the_same_for_the_same_seed(student):
    """Two draws with one seed give one form."""
    source = MarkedForms(tiny_rows(20), student[1], MAX_TOKENS)
    first, second = (source.draw(random.Random(3)) for _ in range(2))
    assert (first.ids, first.marks.tolist()) == (second.ids, second.marks.tolist())


def test_rows_that_no_form_can_be_made_of_are_named(student, monkeypatch):
    """Where every row is too long, or no form reaches the model as it was made, one line says what to do."""
    with pytest.raises(InputError, match=r"none of 20 rows is a prompt of at most 1 tokens .* set steering_forms = 0"):
        MarkedForms(tiny_rows(20), student[1], 1)
    source = MarkedForms(tiny_rows(20), student[1], MAX_TOKENS)
    monkeypatch.setattr(type(student[1]), "parts_of", lambda *_: None)
    with pytest.raises(InputError, match="encodes text otherwise beside other text; set steering_forms = 0"):
        source.draw(random.Random(0))


def test_nothing_that_is_measured_with_is_learnt_from():
    """The sentences of the robustness measure are not among the demands; steering.txt has a test of its own."""
    assert not set(UNSEEN) & set(DEMANDS)


def test_training_a_head_changes_no_weight_of_the_student(student):
    """The head learns to tell steering from work, and the student stays as it was, bit by bit."""
    model, tokenizer = student
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses = fit_head(new_head(model), model, tokenizer, tiny_rows(40), forms=1280, seed=0)
    assert losses[-1] < losses[0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_head_lies_beside_the_weights_that_it_reads(student, tmp_path):
    """What was saved comes back; a checkpoint without a head has none."""
    model, _ = student
    head = new_head(model).eval()
    assert load_head(tmp_path, model) is None
    save_head(head, tmp_path)
    given = torch.arange(18).view(2, 9), torch.ones(2, 9), [torch.randn(2, 9, model.config.hidden_size)] * head.states
    torch.testing.assert_close(load_head(tmp_path, model)(*given), head(*given), rtol=0, atol=0)


def test_a_head_of_before_there_were_ngrams_says_what_it_said(student):
    """Its entries' own states are all that it goes by; weights that are no head's are refused."""
    model, _ = student
    head = new_head(model).eval()
    before = {name: tensor for name, tensor in head.state_dict().items() if "ngrams" not in name}
    again, ids = head_of(model, before), torch.arange(9)[None]
    states = [torch.randn(1, 9, model.config.hidden_size)] * head.states
    torch.nn.init.zeros_(head.of_ngrams.weight)
    torch.testing.assert_close(again(ids, torch.ones(1, 9), states), head(ids, torch.ones(1, 9), states))
    with pytest.raises(RuntimeError, match="Missing key"):
        head_of(model, {name: tensor for name, tensor in before.items() if name != "last.bias"})


def test_a_head_learns_words_that_its_student_reads_by_their_characters(student):
    """Of sentences in the same characters, whose states tell nothing, the head knows those that steered."""
    model, _ = student
    head, states = new_head(model).train(), [torch.zeros(2, 6, 32)] * min(3, model.config.num_hidden_layers)
    ids, there = torch.tensor([[5, 6, 7, 8, 9, 10], [10, 9, 8, 7, 6, 5]]), torch.ones(2, 6)
    marks = torch.tensor([[1.0] * 6, [0.0] * 6])
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(30):
        torch.nn.functional.binary_cross_entropy_with_logits(head(ids, there, states), marks).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert ((head.eval()(ids, there, states) > 0) == (marks > 0)).all()


def test_an_ngram_is_the_same_wherever_it_stands():
    """Three entries in a row have one slot in every text; another order, and shorter ones, have others."""
    first, second = (
        steering_head.slots(torch.tensor([[7, 11, 12, 13]])),
        steering_head.slots(torch.tensor([[11, 12, 13, 9]])),
    )
    assert first[0, 3].tolist() == second[0, 2].tolist()
    other = steering_head.slots(torch.tensor([[13, 12, 11]]))[0, 2]
    assert len({*first[0, 3].tolist(), int(other[1]), int(other[2])}) == 5


def test_a_head_that_is_there_is_not_trained_again(student, tmp_path):
    """A run that goes on keeps the head of its checkpoint."""
    model, tokenizer = student
    given = (tmp_path, model, tokenizer, tiny_rows(20))
    first = kept_head(*given, forms=64, seed=0)
    again = kept_head(*given, forms=64, seed=1)
    assert all(tensor.equal(again.state_dict()[name]) for name, tensor in first.state_dict().items())


def test_a_build_that_goes_on_ends_with_the_head_of_one_that_never_stopped(student, tmp_path):
    """The first weights follow from the seed, whatever was drawn before them."""
    heads = []
    for drawn in (0, 5):
        torch.manual_seed(drawn)
        (folder := tmp_path / str(drawn)).mkdir()
        heads.append(kept_head(folder, *student, tiny_rows(20), forms=64, seed=0).state_dict())
    assert all(tensor.equal(heads[1][name]) for name, tensor in heads[0].items())


def test_padding_changes_no_answer(student):
    """An entry is told the same alone as in a batch of longer ones."""
    head = new_head(student[0]).eval()
    ids, states = torch.arange(9)[None], [torch.randn(1, 9, 32) for _ in range(head.states)]
    padded = [torch.nn.functional.pad(state, (0, 0, 0, 20), value=7.0) for state in states]
    there = torch.tensor([[1] * 9 + [0] * 20])
    longer = torch.nn.functional.pad(ids, (0, 20))
    torch.testing.assert_close(head(longer, there, padded)[:, :9], head(ids, there[:, :9], states))
