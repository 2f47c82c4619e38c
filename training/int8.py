"""int8: the graph's weights and products in eight bits, and the same rounding while training.

The exported graph is quantised dynamically: signed int8 weights, a scale for each output channel, and activations in
unsigned int8 with one scale for each request. docs/design/0003-graph.md has the measurements. A student that trained in
single precision loses a little by it; one that trained under `simulated_int8` has learnt with the rounding that it will
be served with (Jacob et al. 2018, arXiv 1712.05877, section 3).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel


def quantise(folder: Path) -> None:
    """`model.onnx` of `folder` → `model_quantized.onnx` beside it."""
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    graph = onnx.load(str(folder / "model.onnx")).graph
    weights = {tensor.name for tensor in graph.initializer}
    # Attention's products of two activations have no weights to shrink; in int8 they only cost time and accuracy.
    plain = [n.name for n in graph.node if n.op_type == "MatMul" and not weights & set(n.input)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantizer = ORTQuantizer.from_pretrained(folder, file_name="model.onnx")
        config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True, nodes_to_exclude=plain)
        config.reduce_range = False
        logging.disable(logging.WARNING)  # onnxruntime logs a line for every constant
        try:
            quantizer.quantize(save_dir=folder, quantization_config=config)
        finally:
            logging.disable(logging.NOTSET)


@contextmanager
def simulated_int8(model: PreTrainedModel) -> Iterator[None]:
    """Within it every linear layer and embedding of `model` rounds as the int8 graph does.

    Gradients pass the rounding as if it were not there (straight-through, Bengio et al. 2013, arXiv 1308.3432). The
    parameters themselves stay in single precision, under their own names.
    """
    modules = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding)]
    alone = _cls_only(model)
    for module in modules:
        rule = _lookup if isinstance(module, nn.Embedding) else partial(_product, by_token=module in alone)
        module.forward = partial(rule, module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def _cls_only(model: PreTrainedModel) -> set[nn.Module]:
    """Layers that the fused graph computes for `[CLS]` alone: the scale of their input is that of one token."""
    if model.config.model_type != "bert":
        return set()
    last = model.base_model.encoder.layer[-1]
    return {last.attention.self.query, last.attention.output.dense, last.intermediate.dense, last.output.dense}


def _product(layer: nn.Linear, inputs: Tensor, *, by_token: bool) -> Tensor:
    kept = inputs.ndim - 1 if by_token else 1
    rounded = _Straight.apply(inputs, _unsigned(inputs, _range(inputs.flatten(kept), kept), kept))
    return functional.linear(rounded, _Straight.apply(layer.weight, _signed(layer.weight)), layer.bias)


def _lookup(layer: nn.Embedding, ids: Tensor) -> Tensor:
    found = functional.embedding(ids, layer.weight, layer.padding_idx)
    return _Straight.apply(found, _unsigned(found, _range(layer.weight.detach().flatten(), 0), 0))


def _range(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    low, high = torch.aminmax(values.float(), dim=dim)
    return low.clamp(max=0), high.clamp(min=0)


def _unsigned(values: Tensor, ends: tuple[Tensor, Tensor], kept: int) -> Tensor:
    """`values` on 256 steps between `ends`, each of the shape of the first `kept` dimensions; 0 is one of the steps."""
    low, high = (end.reshape(end.shape[:kept] + (1,) * (values.ndim - kept)) for end in ends)
    scale = ((high - low) / 255).clamp(min=1e-12)
    zero = (-low / scale).round()
    return ((values.float() / scale).round_() + zero).clamp_(0, 255).sub_(zero).mul_(scale)


def _signed(weight: Tensor) -> Tensor:
    """(out, in) on 255 steps around 0, a scale for each output."""
    scale = (weight.abs().amax(dim=1, keepdim=True) / 127).clamp(min=1e-12)
    return (weight / scale).round_().clamp_(-127, 127).mul_(scale)


class _Straight(torch.autograd.Function):
    """The second argument, with the gradient of the first."""

    @staticmethod
    def forward(_: object, values: Tensor, rounded: Tensor) -> Tensor:
        return rounded.to(values.dtype)

    @staticmethod
    def backward(_: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
