"""int8: the graph's weights and products in eight bits, rounded so that their products change least.

The exported graph is quantised dynamically: signed int8 weights, a scale for each output channel, and activations in
unsigned int8 with one scale for each request. docs/design/0003-graph.md has the measurements.

Each weight rounded to its nearest step loses more than the activations do: activations share directions, and errors
along those add up. So a weight's error is made up for by the weights of the same output that are rounded after it, as
far as the inputs of a few hundred requests are alike (GPTQ: Frantar et al. 2023, arXiv 2210.17323, section 3 and
algorithm 1, in order of falling activation). What is stored and how it runs stays the same.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn
from transformers import PreTrainedModel

STEPS = 127
"""Largest step of a weight, either way."""
LARGE_TABLE = 1000
"""Rows from which on a table of embeddings is rounded; smaller ones, as of positions, stay in float."""
_DAMPING = 0.01
"""Of the mean second moment, added to each: what was seen of the inputs is a sample."""
_BLOCK = 128
"""Columns whose errors are handed on together: the same numbers in less time."""


@dataclass(frozen=True, slots=True)
class Rounded:
    """A linear layer's weight in int8.

    Attributes:
        weight: (out, in) float32, as it was.
        steps: (out, in) int8, -127 to 127.
        scale: (out,) float32; `steps` times it is the rounded weight.
    """

    weight: NDArray[np.float32]
    steps: NDArray[np.int8]
    scale: NDArray[np.float32]


def round_weights(model: PreTrainedModel, inputs: Iterable[Mapping[str, Tensor]]) -> list[Rounded]:
    """Every linear layer of `model` in int8.

    Args:
        model: what is exported; left as it is.
        inputs: of a few hundred requests, one by one, without padding: (1, tokens) each.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    rounded = []
    with torch.inference_mode():
        for layer, moments in zip(layers, _second_moments(model, layers, inputs), strict=True):
            weight = layer.weight.detach().float()
            scale = (weight.abs().amax(dim=1) / STEPS).clamp(min=1e-12)
            steps = _steps(weight.double(), scale.double(), moments)
            rounded.append(Rounded(weight.numpy(), steps.to(torch.int8).numpy(), scale.numpy()))
    return rounded


def quantise(folder: Path, rounded: Iterable[Rounded]) -> None:
    """`model.onnx` of `folder` → `model_quantized.onnx` beside it, with weights as `round_weights` rounded them."""
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    full = onnx.load(str(folder / "model.onnx")).graph
    weights = {tensor.name for tensor in full.initializer}
    # Attention's products of two activations have no weights to shrink; in int8 they only cost time and accuracy. And
    # one scale for all embeddings would be that of the largest.
    plain = [n.name for n in full.node if n.op_type == "MatMul" and not weights & set(n.input)]
    plain += [n.name for n in full.node if n.op_type == "Gather"]
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
    path = folder / "model_quantized.onnx"
    small = onnx.load(str(path))
    _replace_weights(full, small.graph, rounded)
    _round_tables(small.graph)
    onnx.save(small, str(path))


def _second_moments(
    model: PreTrainedModel, layers: list[nn.Linear], inputs: Iterable[Mapping[str, Tensor]]
) -> list[Tensor]:
    """Of what each layer multiplies: (in, in) float64, summed over tokens."""
    moments = [torch.zeros(layer.in_features, layer.in_features, dtype=torch.float64) for layer in layers]
    with ExitStack() as hooks:
        for layer, moment in zip(layers, moments, strict=True):
            hooks.enter_context(layer.register_forward_pre_hook(partial(_add, moment)))
        for each in _of_one_length(inputs):
            model(**each)
    return moments


def _of_one_length(inputs: Iterable[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The same rows in fewer passes: those that are equally long together, so that none is padded."""
    found: dict[int, list[Mapping[str, Tensor]]] = {}
    for each in inputs:
        found.setdefault(each["input_ids"].shape[1], []).append(each)
    return [{name: torch.cat([each[name] for each in alike]) for name in alike[0]} for alike in found.values()]


def _add(moment: Tensor, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    rows = inputs[0].reshape(-1, moment.shape[0]).float()
    moment.add_(rows.T @ rows)


def _steps(weight: Tensor, scale: Tensor, moments: Tensor) -> Tensor:
    """The whole steps of `scale` for (out, in) `weight`: float64, the same shape."""
    moments = moments.clone()
    diagonal = moments.diagonal()
    diagonal[diagonal == 0] = 1  # what is always 0 may be rounded as it likes
    order = diagonal.argsort(descending=True)
    diagonal += _DAMPING * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments[order][:, order]))
    handed = torch.linalg.cholesky(inverse, upper=True)
    left, steps = weight[:, order], torch.empty_like(weight)
    for start in range(0, weight.shape[1], _BLOCK):
        block = slice(start, min(start + _BLOCK, weight.shape[1]))
        now, inside = left[:, block].clone(), handed[block, block]
        errors = torch.empty_like(now)
        for i in range(now.shape[1]):
            column = (now[:, i] / scale).round().clamp(-STEPS, STEPS)
            steps[:, order[start + i]] = column
            errors[:, i] = (now[:, i] - column * scale) / inside[i, i]
            now[:, i:] -= errors[:, i, None] * inside[i, i:]
        left[:, block.stop :] -= errors @ handed[block, block.stop :]
    return steps


def _replace_weights(full: onnx.GraphProto, small: onnx.GraphProto, rounded: Iterable[Rounded]) -> None:
    """Puts rounded weights in the place of those that the quantiser rounded; the weight says which is which."""
    matrices = {t.name: numpy_helper.to_array(t) for t in full.initializer if len(t.dims) == 2}
    places = {t.name: t for t in small.initializer}
    for layer in rounded:
        found = (layer.weight, layer.weight.T)  # a product keeps it transposed, a Gemm as it is
        for name, matrix in matrices.items():
            if f"{name}_quantized" in places and any(np.array_equal(matrix, weight) for weight in found):
                for part, value in (("quantized", layer.steps.T), ("scale", layer.scale)):
                    place = places[f"{name}_{part}"]
                    place.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), place.name))


def _round_tables(graph: onnx.GraphProto) -> None:
    """Large tables of embeddings in int8, with a scale for each row that is looked up along with it."""
    looked_up = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    tables = [t for t in graph.initializer if t.name in looked_up and len(t.dims) == 2 and t.dims[0] >= LARGE_TABLE]
    for table in tables:
        rows = numpy_helper.to_array(table)
        scale = np.maximum(np.abs(rows).max(axis=1, keepdims=True) / STEPS, 1e-12)
        for part, value in (("quantized", np.round(rows / scale).astype(np.int8)), ("scale", scale)):
            graph.initializer.append(numpy_helper.from_array(value, f"{table.name}_{part}"))
        graph.initializer.remove(table)
    rounded = {table.name: table.data_type for table in tables}
    nodes = []
    for node in map(copy.deepcopy, graph.node):
        if node.op_type != "Gather" or node.input[0] not in rounded:
            nodes.append(node)
            continue
        table, ids, found = node.input[0], node.input[1], node.output[0]
        steps, cast, scale = (f"{found}_{part}" for part in ("quantized", "cast", "scale"))
        nodes += [
            onnx.helper.make_node("Gather", [f"{table}_quantized", ids], [steps], steps),
            onnx.helper.make_node("Cast", [steps], [cast], cast, to=rounded[table]),
            onnx.helper.make_node("Gather", [f"{table}_scale", ids], [scale], scale),
            onnx.helper.make_node("Mul", [cast, scale], [found], node.name),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
