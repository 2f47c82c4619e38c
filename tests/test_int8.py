"""Rounding a student's weights to int8 so that what they are multiplied with changes least."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest

pytest.importorskip("torch")

import torch
from onnx import numpy_helper
from torch import nn

from classifier.session import INPUTS, Session
from tests.tiny import WORDS
from training import int8
from training.export import export_fp32
from training.graph import fuse
from training.int8 import STEPS, quantise, round_weights
from training.model import load_base

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def model():
    """A random small BERT, fused, one of whose activations is large on every token, as in trained ones."""
    found, _ = load_base("tiny", 64)
    with torch.no_grad():
        for layer in found.base_model.encoder.layer:
            layer.output.LayerNorm.bias[3] = 6.0
    return fuse(found.eval())


@pytest.fixture(scope="module")
def inputs():
    """Requests of the tiny corpus's words."""
    _, fast = load_base("tiny", 64)
    found = []
    for words in WORDS.values():
        for first in range(len(words) - 2):
            ids = torch.tensor([fast.encode(" ".join(words[first:])).ids[:60]])
            found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": ids * 0})
    return found


def _products(model, inputs, weights):
    """What each linear layer multiplies, by the weights that it is given instead: the root mean square errors."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    seen = [[] for _ in layers]
    hooks = [
        layer.register_forward_pre_hook(
            lambda _, given, kept=kept: kept.append(given[0].reshape(-1, given[0].shape[-1]))
        )
        for layer, kept in zip(layers, seen, strict=True)
    ]
    with torch.inference_mode():
        for each in inputs:
            model(**each)
    for hook in hooks:
        hook.remove()
    return [
        float((torch.cat(kept) @ torch.from_numpy(rounded - layer.weight.detach().numpy()).T).square().mean().sqrt())
        for layer, kept, rounded in zip(layers, seen, weights, strict=True)
    ]


def test_products_change_less_than_by_rounding_to_the_nearest_step(model, inputs):
    """On requests that it has not seen, every layer's products are nearer to the model's than rounded one by one."""
    rounded = round_weights(model, inputs[::2])
    ours = _products(model, inputs[1::2], [r.steps * r.scale[:, None] for r in rounded])
    nearest = _products(
        model, inputs[1::2], [np.round(r.weight / r.scale[:, None]) * r.scale[:, None] for r in rounded]
    )
    assert all(a < b for a, b in zip(ours, nearest, strict=True))
    assert sum(ours) < 0.75 * sum(nearest)


def test_steps_are_int8_and_the_model_stays_as_it_was(model, inputs):
    """Steps lie within -127 to 127, and rounding changes nothing in the model that it looks at."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rounded = round_weights(model, inputs)
    assert all(r.steps.dtype == np.int8 and np.abs(r.steps.astype(int)).max() <= STEPS for r in rounded)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_weight_that_is_never_fed_rounds_to_the_nearest(model):
    """Without any request to look at, each weight goes to its nearest step."""
    for r in round_weights(model, []):
        np.testing.assert_array_equal(r.steps, np.round(r.weight / r.scale[:, None]))


def test_the_graph_holds_the_rounded_weights(model, inputs, tmp_path):
    """Every product of the int8 graph multiplies by the steps and scales that were found, the head's too."""
    rounded = round_weights(model, inputs)
    export_fp32(model, tmp_path)
    quantise(tmp_path, rounded)
    graph = onnx.load(str(tmp_path / "model_quantized.onnx")).graph
    held = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    names = [n.input[1] for n in graph.node if n.op_type == "MatMulInteger"]
    assert len(names) == len(rounded)
    found = [(held[name], held[name.replace("_quantized", "_scale")]) for name in names]
    for layer in rounded:
        assert any(
            steps.shape == layer.steps.T.shape and (steps == layer.steps.T).all() and (scale == layer.scale).all()
            for steps, scale in found
        )


def test_each_row_of_a_large_table_has_its_own_scale(model, inputs, tmp_path, monkeypatch):
    """One large embedding does not coarsen the others: a graph with it answers requests without it as before."""
    monkeypatch.setattr(int8, "LARGE_TABLE", 100)
    outlier = copy.deepcopy(model)
    unused = outlier.base_model.embeddings.word_embeddings.weight[1]
    with torch.no_grad():
        unused[0] = 500.0
    answers = []
    for name, each in (("plain", model), ("outlier", outlier)):
        (tmp_path / name).mkdir()
        export_fp32(each, tmp_path / name)
        quantise(tmp_path / name, round_weights(each, inputs))
        graph = Session(tmp_path / name / "model_quantized.onnx")
        answers.append([graph.run(*(i[k].numpy() for k in INPUTS))[0] for i in inputs])
        held = onnx.load(str(tmp_path / name / "model_quantized.onnx")).graph.initializer
        assert "bert.embeddings.word_embeddings.weight_quantized" in {t.name for t in held}
    np.testing.assert_array_equal(*answers)
