"""The student that a bundle's graph was exported from, read back from the graph."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from classifier.errors import BundleCorrupt, InputError
from classifier.inputs import render
from classifier.session import STEERING, Session
from tests.fit_support import tiny_rows
from tests.test_bases import checkpoint
from tests.tiny import tiny_bundle
from training.export import assemble, export
from training.graph import marking
from training.model import input_names, load_base, tokenizer_of
from training.recover import recover
from training.steering_head import new_head

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]
MAX_TOKENS = 48


def exported(model, fast, out, head=None):
    """The folder of an exported model, with what a bundle needs for it to be read."""
    rows = tiny_rows(20)
    export(model, fast, out, max_tokens=MAX_TOKENS, check=rows, rounding=rows, head=head, int8_agreement=0.0)
    return out


def answers(model, fast):
    """A model's answers to the tiny corpus: a list of arrays by output."""
    tokenizer, found = tokenizer_of(fast, MAX_TOKENS), []
    for row in tiny_rows(20):
        encoded = tokenizer.encode(render(row.request))
        with torch.inference_mode():
            found.append(model(**{n: torch.from_numpy(getattr(encoded, n)) for n in input_names(model)}))
    return {name: np.concatenate([one[name].numpy().ravel() for one in found]) for name in found[0]}


def weights_apart(one, other):
    """The largest difference of each weight, in units of its own spread."""
    mine, others = one.state_dict(), other.state_dict()
    assert mine.keys() == others.keys()
    return {name: float((mine[name] - others[name]).abs().max() / mine[name].std().clamp(min=1e-3)) for name in mine}


def test_every_weight_comes_back_but_for_its_rounding(tmp_path):
    """Student and head have the weights that they were exported with, fused attention included, to a step or two."""
    model, fast = load_base("tiny", MAX_TOKENS)
    for parameter in model.parameters():  # no two alike: the exporter would keep one of them
        torch.nn.init.normal_(parameter, std=0.1)
    head = new_head(model).eval()
    student, its_fast, its_head = recover(exported(model.eval(), fast, tmp_path, head))
    assert max(weights_apart(student, model).values()) < 0.1
    assert max(weights_apart(its_head, head).values()) < 0.1
    assert its_fast.get_vocab() == fast.get_vocab()


def test_recovered_student_answers_as_the_graph_does(tmp_path):
    """What is trained on is what served: logits and marks are those of the int8 graph, but for rounded activations."""
    model, fast = load_base("tiny", MAX_TOKENS)
    student, _, head = recover(exported(model.eval(), fast, tmp_path, new_head(model).eval()))
    session, tokenizer, served = Session(tmp_path / "model.onnx"), tokenizer_of(fast, MAX_TOKENS), []
    for row in tiny_rows(20):
        encoded = tokenizer.encode(render(row.request))
        served.append(session.run(encoded.input_ids, encoded.attention_mask, encoded.token_type_ids))
    found = answers(marking(student, head), fast)
    for i, name in enumerate(("logits", STEERING)):
        wanted = np.concatenate([np.asarray(one[i]).ravel() for one in served])
        assert np.abs(found[name] - wanted).max() < 0.1 * wanted.std()


@pytest.mark.parametrize("family", ["distilbert", "roberta"])
def test_students_of_other_families_come_back(family, tmp_path):
    """A graph that nothing was fused in is read by the same names; without a head there is none."""
    model, fast = load_base(str(checkpoint(tmp_path / "base", family)), MAX_TOKENS)
    student, _, head = recover(exported(model, fast, tmp_path / "bundle"))
    assert max(weights_apart(student, model).values()) < 0.1
    assert head is None


def test_a_bundle_is_a_base(tmp_path):
    """What serves is a base to go on from: its student and its tokeniser, as they were."""
    model, fast = load_base("tiny", MAX_TOKENS)
    files, folder = exported(model.eval(), fast, tmp_path / "files"), tmp_path / "bundle"
    assemble(files, folder, golden=tiny_rows(2), card="# tiny\n", facts={})
    again, its_fast = load_base(str(folder), MAX_TOKENS)
    assert max(weights_apart(again, model).values()) < 0.1
    assert its_fast.get_vocab() == fast.get_vocab()
    with (folder / "model.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"damaged")
    with pytest.raises(BundleCorrupt, match=r"model\.onnx"):
        load_base(str(folder), MAX_TOKENS)


def test_zero_points_are_taken_off(tmp_path):
    """A graph that another quantiser made has its weights around another number than 0."""
    model, fast = load_base("tiny", MAX_TOKENS)
    folder = exported(model.eval(), fast, tmp_path)
    quantize_dynamic(folder / "model_fp32.onnx", folder / "model.onnx", weight_type=QuantType.QUInt8)
    assert max(weights_apart(recover(folder)[0], model).values()) < 0.1


def test_graph_that_is_not_its_model_is_refused(tmp_path):
    """Where a weight is missing, that is said, and what to do: nothing is trained from half a student."""
    family = checkpoint(tmp_path / "base", "deberta-v2")
    model, fast = load_base(str(family), MAX_TOKENS)
    with pytest.raises(InputError, match=r"no weights to train on can be read.*Missing key.*--checkpoint"):
        recover(exported(model, fast, tmp_path / "bundle"))
    with pytest.raises(InputError, match="no weights to train on can be read"):
        recover(tiny_bundle(tmp_path / "other").path)
