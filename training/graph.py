"""Rewrites of a trained BERT for export: the same numbers in less time.

The head reads `[CLS]` alone, so the last layer need compute only that row: keys and values of every row, but query,
output and feed-forward of one. And query, key and value of the other layers are one matrix product instead of three.
Both are exact; `training.export` checks the exported graph against the untouched model.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from classifier.session import STEERING
from training.steering_head import SteeringHead


class _FusedAttention(nn.Module):
    """Self-attention of a layer with one product for query, key and value, or with the query of `[CLS]` alone.

    Args:
        attention: the layer's `BertAttention`.
        cls_only: compute the first row only.
    """

    def __init__(self, attention: Any, *, cls_only: bool) -> None:
        super().__init__()
        inner = attention.self
        self.heads, self.size, self.cls_only = inner.num_attention_heads, inner.attention_head_size, cls_only
        # Folding 1/√d into the query saves a pass over the scores.
        scale = 1 / math.sqrt(self.size)
        parts = [(inner.query.weight * scale, inner.query.bias * scale)] if not cls_only else []
        parts += [(inner.key.weight, inner.key.bias), (inner.value.weight, inner.value.bias)]
        self.projection = _linear(torch.cat([w for w, _ in parts]), torch.cat([b for _, b in parts]))
        self.query = _linear(inner.query.weight * scale, inner.query.bias * scale) if cls_only else None
        self.output = attention.output

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any) -> tuple[Tensor]:
        batch, length, width = hidden_states.shape
        rows = hidden_states[:, :1] if self.query is not None else hidden_states
        parts = 2 if self.query is not None else 3
        # One transposition for all; the key's other one becomes part of the product in onnxruntime.
        projected = self.projection(hidden_states).view(batch, length, parts, self.heads, self.size)
        projected = projected.permute(2, 0, 3, 1, 4)
        key, value = projected[parts - 2], projected[parts - 1]
        if self.query is not None:
            query = self.query(rows).view(batch, 1, self.heads, self.size).transpose(1, 2)
        else:
            query = projected[0]
        scores = torch.matmul(query, key.transpose(-1, -2))
        if attention_mask is not None:
            # The mask may come expanded to a row for each query; they are all alike, and one broadcasts.
            scores = scores + attention_mask[:, :, :1]
        mixed = torch.matmul(scores.softmax(dim=-1), value).transpose(1, 2).reshape(batch, -1, width)
        return (self.output(mixed, rows),)


def fuse(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a BERT for export, with fused attention and a last layer of one row; others come back as they are."""
    if model.config.model_type != "bert":
        return model
    fused = copy.deepcopy(model).eval()
    layers = fused.base_model.encoder.layer
    for i, layer in enumerate(layers):
        layer.attention = _FusedAttention(layer.attention, cls_only=i == len(layers) - 1)
    return fused


def marking(model: PreTrainedModel, head: SteeringHead) -> PreTrainedModel:
    """A copy of a student that answers with the head's log-odds, too: a dictionary of `logits` and `steering`."""
    marked = copy.deepcopy(model).eval()
    setattr(marked, STEERING, copy.deepcopy(head).cpu().eval())
    plain = marked.forward

    def forward(input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> dict[str, Tensor]:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        found = plain(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True, **types)
        marks = getattr(marked, STEERING)(input_ids, attention_mask, found.hidden_states)
        return {"logits": found.logits, STEERING: marks}

    marked.forward = forward
    return marked


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer
