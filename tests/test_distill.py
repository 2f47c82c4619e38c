"""What follows the student's teaching: it holds on to its answers, whatever stands beside a prompt."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from classifier.errors import InputError
from tests.fit_support import MAX_TOKENS, OPTIONS, tiny_rows
from training import distill
from training.build import load_data, train
from training.corpus import OUTCOME, write_corpus
from training.distill import hold
from training.fit import fit, predict
from training.model import load_base, load_checkpoint, tokenizer_of
from training.recipe import load_recipe
from training.robustness import CHANGES, with_text
from training.teacher import log_softmax

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(300)]
HOLDING = replace(OPTIONS, epochs=6, learning_rate=3e-3, augment=0.85, worst_of=3, distill_weight=1.0)


@pytest.fixture(scope="module")
def student():
    """A tiny model that has learnt its rows, and its tokeniser."""
    torch.manual_seed(0)
    model, fast = load_base("tiny", MAX_TOKENS)
    fit(model, tokenizer_of(fast, MAX_TOKENS), tiny_rows(), replace(OPTIONS, epochs=4), name="test")
    return model, fast


def asked(model, fast, rows):
    """What a model says of rows: (n, 4) log-probabilities."""
    return log_softmax(predict(model, tokenizer_of(fast, MAX_TOKENS), rows, name="test"))


def moved(model, fast, rows) -> float:
    """How far texts put before rows move the answers: mean KL of the answers with them from those without."""
    rng = random.Random(0)
    beside = [replace(r, request=with_text(r.request, lambda text: CHANGES["raising prefix"](text, rng))) for r in rows]
    plain, changed = asked(model, fast, rows), asked(model, fast, beside)
    return float((np.exp(plain) * (plain - changed)).sum(axis=1).mean())


def test_answers_hold_and_stay(student, tmp_path):
    """Texts beside a prompt, none of which was learnt, move the answers less than before; the answers stay."""
    model, fast = student
    rows = tiny_rows()
    before, apart = asked(model, fast, rows), moved(model, fast, rows)
    held = hold(copy.deepcopy(model), fast, rows, HOLDING, max_tokens=MAX_TOKENS, out=tmp_path)
    assert moved(held, fast, rows) < 0.7 * apart
    assert (asked(held, fast, rows).argmax(1) == before.argmax(1)).mean() > 0.9


def test_labels_are_not_read(student, tmp_path):
    """The same prompts with other labels lead to the same weights, bit by bit."""
    model, fast = student
    rows = tiny_rows(30)
    labels = [replace(r, request=o.request, sha256=o.sha256) for r, o in zip(rows[1:] + rows[:1], rows, strict=True)]
    options = replace(HOLDING, epochs=1)
    held = [
        hold(copy.deepcopy(model), fast, some, options, max_tokens=MAX_TOKENS, out=tmp_path / name).state_dict()
        for name, some in (("as they are", rows), ("permuted", labels))
    ]
    assert same(*held)
    assert not torch.equal(held[0]["classifier.weight"], model.state_dict()["classifier.weight"])


def test_long_rows_and_outcomes_take_no_part(student, tmp_path, monkeypatch):
    """What is learnt from are short prompts that are no exam questions; without any there is an error, and no stage."""
    model, fast = student
    monkeypatch.setattr(distill, "SHORT_TOKENS", 40)
    rows = tiny_rows(20)
    long = replace(rows[0], request=with_text(rows[0].request, lambda _: "a b " * 200))
    outcome = replace(rows[1], label=OUTCOME)
    learnt = []
    monkeypatch.setattr(distill, "fit", lambda m, t, used, *_, **__: learnt.extend(r.id for r in used) or [])
    hold(copy.deepcopy(model), fast, [long, outcome, *rows[2:]], HOLDING, max_tokens=MAX_TOKENS, out=tmp_path)
    assert learnt == [r.id for r in rows[2:]]
    with pytest.raises(InputError, match="there is none; leave the table out"):
        hold(model, fast, [long, outcome], HOLDING, max_tokens=MAX_TOKENS, out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_it_is_a_stage_of_a_run(tmp_path):
    """A recipe with the table goes through the stage once, and what it trained is the run's checkpoint."""
    write_corpus(tmp_path / "rows.jsonl", tiny_rows(120))
    data = load_data([], [], own=tmp_path / "rows.jsonl")
    recipe = load_recipe("tiny", consistency={"epochs": 1, "batch_size": 16, "learning_rate": 1e-3, "worst_of": 2})
    out = tmp_path / "run"
    student, _ = train(recipe, out, data, say=lambda _: None)
    before, after, kept = (
        load_checkpoint(out / name)[0].state_dict()
        for name in ("student/checkpoint", "consistency/checkpoint", "checkpoint")
    )
    assert same(after, kept)
    assert same(after, student.state_dict())
    assert not same(before, after)
    stamp = (out / "consistency" / "done").stat().st_mtime_ns
    train(recipe, out, data, say=lambda _: None)
    assert (out / "consistency" / "done").stat().st_mtime_ns == stamp


def same(one, other) -> bool:
    """Whether two models have the same weights, bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("table", "named"),
    [({"epoch": 1}, "epoch"), ({"distill_weight": 0.5}, "distill_weight")],
    ids=["misspelt", "fixed"],
)
def test_a_key_that_is_none_is_refused_before_anything_is_trained(tmp_path, table, named):
    """A misspelt key of the table, or one that is not the recipe's to say, is named at once."""
    write_corpus(tmp_path / "rows.jsonl", tiny_rows(120))
    data = load_data([], [], own=tmp_path / "rows.jsonl")
    with pytest.raises(InputError, match=rf"\[consistency\] has the unknown key '{named}'"):
        train(load_recipe("tiny", consistency=table), tmp_path / "run", data)
    assert not (tmp_path / "run").exists()
