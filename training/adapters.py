"""LoRA: big teachers trained through small matrices beside their frozen ones. The home of `peft`.

Hu et al. 2021 (arXiv 2106.09685). Adapters go to every linear layer of the encoder or decoder. What a checkpoint does
not bring along is trained whole: the head, and the rows of the embedding that the reserved entries have.

Knows nothing of data or of the training loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from classifier.errors import InputError


@dataclass(frozen=True, slots=True)
class Lora:
    """How big the adapters are.

    Attributes:
        r: rank of each update, at least 1.
        alpha: updates are multiplied by alpha / r.

    Raises:
        InputError: a number is out of its range.
    """

    r: int
    alpha: float

    def __post_init__(self) -> None:
        if self.r < 1 or self.alpha <= 0:
            raise InputError(
                f"--lora-r {self.r}, --lora-alpha {self.alpha}: a rank from 1 and an alpha above 0, please"
            )


def with_adapters(model: PreTrainedModel, lora: Lora, new_ids: Iterable[int]) -> Any:
    """The model with adapters and everything else frozen, but for the head and some rows of the embedding.

    Args:
        model: a sequence classifier; it is changed.
        lora: how big the adapters are.
        new_ids: token ids whose embeddings are trained.
    """
    from peft import LoraConfig, get_peft_model

    body = model.base_model
    head = {name for name, _ in model.named_children() if name != model.base_model_prefix}
    if getattr(body, "pooler", None) is not None:
        head.add(f"{model.base_model_prefix}.pooler")
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not any(name == h or name.startswith(f"{h}.") for h in head)
    ]
    whole = [name for name in sorted(head) if any(True for _ in model.get_submodule(name).parameters())]
    embedding = next(n for n, module in model.named_modules() if module is model.get_input_embeddings())
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules=linear,
        modules_to_save=whole,
        trainable_token_indices={embedding: sorted(new_ids)},
    )
    return get_peft_model(model, config)


def merged(model: Any) -> PreTrainedModel:
    """The plain model again, its weights with the adapters' updates in them."""
    plain: PreTrainedModel = model.merge_and_unload()
    return plain
