"""A bundle's int8 graph → the student that it was exported from, but for int8's rounding.

So a bundle that came without its checkpoint, as the shipped one does, can be trained on. Each weight is its whole steps
times their scale, and what `training.graph` fused comes apart again. Layers are found by the names that the exporter
gives their nodes, and every weight of the model has to be found. docs/design/0003-graph.md says what is lost.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import numpy_helper
from tokenizers import Tokenizer as FastTokenizer
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from classifier.errors import InputError
from classifier.session import STEERING
from training.model import ATTENTION
from training.steering_head import SteeringHead, head_of

_PRODUCT = re.compile(r"/(.+)/(?:Gemm_)?MatMul_quant")
_ROUNDED = "_quantized"
_HEAD = f"{STEERING}."
_FUSED = ".attention.projection."


def recover(bundle: Path) -> tuple[PreTrainedModel, FastTokenizer, SteeringHead | None]:
    """The student of a bundle in single precision, its tokeniser, and its head that marks steering where it has one.

    Args:
        bundle: folder of a bundle whose `model.onnx` was written by `training.export`.

    Raises:
        InputError: its weights are not those of the model that its `config.json` names.
    """
    try:
        config = AutoConfig.from_pretrained(bundle)
        model = AutoModelForSequenceClassification.from_config(config, attn_implementation=ATTENTION)
        found = _apart(_weights(bundle / "model.onnx"), config)
        of_head = {name.removeprefix(_HEAD): found.pop(name) for name in list(found) if name.startswith(_HEAD)}
        model.load_state_dict(found)
        head = head_of(model, of_head) if of_head else None
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, DecodeError) as error:
        raise InputError(
            f"{bundle}: no weights to train on can be read from its graph ({' '.join(str(error).split())[:200]}); put "
            "the checkpoint that it was made of beside it: classifier bundle promote BUNDLE --checkpoint CHECKPOINT"
        ) from error
    return model.eval(), FastTokenizer.from_file(str(bundle / "tokenizer.json")), head


def standing_head(bundle: Path, student: PreTrainedModel, frozen_layers: int) -> SteeringHead | None:
    """The head of a bundle, where all that it reads is as it was in a student that went on from that bundle.

    Args:
        bundle: folder of the bundle.
        student: has the bundle's layers, or some of them.
        frozen_layers: so many of its lowest layers were not trained.

    Raises:
        InputError: see `recover`.
    """
    if not frozen_layers:
        return None
    base, _, head = recover(bundle)
    if head is None or base.config.num_hidden_layers != student.config.num_hidden_layers:
        return None
    return head if head.states <= frozen_layers + 1 else None  # the embeddings are a state, too


def _weights(path: Path) -> dict[str, Tensor]:
    """Every weight of a quantised graph by its name in the model that was exported, in single precision."""
    graph = onnx.load(str(path)).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in arrays:  # the exporter keeps one of two that are alike
            arrays[node.output[0]] = arrays[node.input[0]]
    found = {name: array for name, array in arrays.items() if name.endswith((".weight", ".bias"))}
    for node in graph.node:
        product = _PRODUCT.fullmatch(node.name) if node.op_type == "MatMulInteger" else None
        if product is not None:
            found[f"{product[1].replace('/', '.')}.weight"] = _unrounded(arrays, node.input[1]).T
        elif node.op_type == "Gather" and node.input[0].endswith(_ROUNDED):
            found[node.input[0].removesuffix(_ROUNDED)] = _unrounded(arrays, node.input[0])
    return {name: torch.from_numpy(np.array(array, dtype=np.float32)) for name, array in found.items()}


def _unrounded(arrays: dict[str, NDArray[np.generic]], name: str) -> NDArray[np.float32]:
    """The whole steps of that name, less the zero point and times the scale that lie beside them."""
    beside = name.removesuffix(_ROUNDED)
    steps, scale, zero = arrays[name], arrays[f"{beside}_scale"], arrays.get(f"{beside}_zero_point", np.zeros(()))
    return (np.asarray(steps, dtype=np.float32) - np.asarray(zero, dtype=np.float32)) * np.asarray(scale, np.float32)


def _apart(weights: dict[str, Tensor], config: PretrainedConfig) -> dict[str, Tensor]:
    """Weights as they were before `training.graph`: query, key and value by themselves, the query without 1/√d."""
    apart = {}
    for name, value in weights.items():
        layer, fused, kind = name.partition(_FUSED)
        if not fused:
            apart[name] = value
            continue
        # The last layer's query is a product of its own.
        parts = [*value.split(config.hidden_size)]
        query = weights[f"{layer}.attention.query.{kind}"] if len(parts) == 2 else parts.pop(0)
        query = query * math.sqrt(config.hidden_size // config.num_attention_heads)
        for part, of_part in zip(("query", "key", "value"), (query, *parts), strict=True):
            apart[f"{layer}.attention.self.{part}.{kind}"] = of_part
    own = {f"{name.partition(_FUSED)[0]}.attention.query." for name in weights if _FUSED in name}
    return {name: value for name, value in apart.items() if not name.startswith(tuple(own))}
