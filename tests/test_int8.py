"""Training under the rounding that a student will be served with."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from classifier.session import Session
from tests.tiny import WORDS
from training.corpus import read_corpus
from training.export import export
from training.int8 import simulated_int8
from training.model import load_base

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def model_and_tokenizer():
    """A random small BERT whose activations have outliers, as trained ones do."""
    model, fast = load_base("tiny", 64)
    with torch.no_grad():
        for layer in model.base_model.encoder.layer:
            layer.output.LayerNorm.weight[3] = 12.0
    return model.eval(), fast


def _inputs(fast):
    for words in WORDS.values():
        ids = torch.tensor([fast.encode(" ".join(words)).ids[:60]])
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


def test_it_rounds_as_the_exported_graph_does(model_and_tokenizer, tmp_path):
    """Logits under simulated int8 lie nearer to the int8 graph's than those in single precision do."""
    model, fast = model_and_tokenizer
    labelled = tmp_path / "rows.jsonl"
    labelled.write_text('{"id": "a", "prompt": "hello", "tier": "simple"}\n')
    rows = read_corpus([labelled])
    export(model, fast, tmp_path, max_tokens=64, check=rows, int8_agreement=0.0)
    graph = Session(tmp_path / "model.onnx")
    plain, simulated = [], []
    for inputs in _inputs(fast):
        served = graph.run(*(inputs[k].numpy() for k in ("input_ids", "attention_mask", "token_type_ids")))
        with torch.inference_mode():
            plain.append(np.abs(model(**inputs).logits.numpy() - served).max())
            with simulated_int8(model):
                simulated.append(np.abs(model(**inputs).logits.numpy() - served).max())
    assert max(simulated) < 0.5 * max(plain)


def test_gradients_reach_the_weights_and_the_model_comes_back_as_it_was(model_and_tokenizer):
    """Every weight learns under the rounding; outside it the model computes as before, under the same names."""
    model, fast = model_and_tokenizer
    inputs = next(iter(_inputs(fast)))
    names = list(model.state_dict())
    with torch.inference_mode():
        before = model(**inputs).logits
    with simulated_int8(model):
        assert list(model.state_dict()) == names
        model(**inputs).logits.logsumexp(-1).sum().backward()
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    assert all(layer.weight.grad is not None and layer.weight.grad.isfinite().all() for layer in linear)
    with torch.inference_mode():
        assert torch.equal(model(**inputs).logits, before)
