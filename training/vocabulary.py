"""Tokenisers of foreign checkpoints → ones that the serving tokeniser can use, and back to files.

Serving asks a vocabulary for `[CLS]`, `[SEP]`, `[PAD]` and every signal by name (`classifier.tokenizer`). Names that a
vocabulary lacks take the place of `[unusedN]` entries, or are added. Where a family calls the first three otherwise,
ours start from the embeddings of its own; what is new starts near the mean.

No text may forge an entry. A unigram model takes any text for a piece that reads like it, so there a piece with one of
the names makes room for an entry that only the name finds. That it holds is tried before a tokeniser is used.

Knows nothing of training or of what the model is for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, models
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedModel

from classifier.signals import SIGNALS

SPECIALS = ("[CLS]", "[SEP]", "[PAD]")
RESERVED = (*SPECIALS, *SIGNALS)
_BERT_CONFIG = {
    "tokenizer_class": "BertTokenizerFast",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "mask_token": "[MASK]",
}
_UNTYPED = "\0"
"""Requests hold no such character."""


def serving_tokenizer(path: str, model: PreTrainedModel) -> FastTokenizer:
    """The tokeniser of a checkpoint with each reserved name as one entry; `model`'s embeddings grow where none is free.

    Args:
        path: a local folder or a hub name.
        model: the checkpoint's model; it is changed.

    Raises:
        OSError: there is no tokeniser.
        ValueError: there is only a slow one, or a text could forge an entry of it.
    """
    local = Path(path) / "tokenizer.json"
    fast = FastTokenizer.from_file(str(local)) if local.is_file() else None
    start: dict[str, int] = {}
    if fast is None or not _has(fast, SPECIALS):
        fast, start = _with_names(path)
    if isinstance(fast.model, models.Unigram):
        fast, moved = _without_pieces(fast)
        start |= moved
    missing = [name for name in RESERVED if fast.token_to_id(name) is None]
    free = [name for i in range(1, 400) if fast.token_to_id(name := f"[unused{i}]") is not None]
    if len(free) >= len(missing):
        fast = _renamed(fast, dict(zip(free, missing, strict=False)))
    else:
        fast.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in missing])
        model.resize_token_embeddings(
            max(*fast.get_vocab().values(), model.get_input_embeddings().num_embeddings - 1) + 1, mean_resizing=False
        )
    _start_embeddings(model, {name: fast.token_to_id(name) for name in missing}, start)
    if start:
        fast.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(name, fast.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
        )
    _check_unforgeable(fast)
    return fast


def save_tokenizer(fast: FastTokenizer, path: Path, max_tokens: int) -> None:
    """`tokenizer.json` and `tokenizer_config.json`, as `transformers` reads them."""
    plain = FastTokenizer.from_str(fast.to_str())
    plain.no_padding()
    plain.no_truncation()
    plain.save(str(path / "tokenizer.json"))
    data = json.loads(plain.to_str())
    config: dict[str, Any] = {name: value for name, value in _BERT_CONFIG.items() if _has(fast, [value])}
    if data["model"]["type"] == "WordPiece":
        lowercase = bool((data.get("normalizer") or {}).get("lowercase", True))
        config |= {"tokenizer_class": _BERT_CONFIG["tokenizer_class"], "do_lower_case": lowercase}
    else:
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["model_max_length"] = max_tokens
    (path / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def _with_names(path: str) -> tuple[FastTokenizer, dict[str, int]]:
    """A family's own tokeniser, and the ids of what it has in the place of `SPECIALS`."""
    found = AutoTokenizer.from_pretrained(path)
    if not found.is_fast:
        raise ValueError("its tokeniser has no tokenizer.json; save a fast one beside it")
    own = {
        "[CLS]": found.cls_token_id if found.cls_token_id is not None else found.bos_token_id,
        "[SEP]": found.sep_token_id if found.sep_token_id is not None else found.eos_token_id,
        "[PAD]": found.pad_token_id,
    }
    return found.backend_tokenizer, {name: id_ for name, id_ in own.items() if id_ is not None}


def _without_pieces(fast: FastTokenizer) -> tuple[FastTokenizer, dict[str, int]]:
    """A unigram tokeniser whose pieces with reserved names no text can have; and the ids of those."""
    data = json.loads(fast.to_str())
    pieces = data["model"]["vocab"]
    found = {piece: id_ for id_, (piece, _) in enumerate(pieces) if piece in RESERVED}
    for name, id_ in found.items():
        pieces[id_][0] = name + _UNTYPED
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] not in found]
    data["post_processor"] = None
    return FastTokenizer.from_str(json.dumps(data)), found


def _renamed(fast: FastTokenizer, names: dict[str, str]) -> FastTokenizer:
    """A WordPiece tokeniser with entries under other names, their ids kept."""
    data = json.loads(fast.to_str())
    vocabulary = {names.get(entry, entry): id_ for entry, id_ in data["model"]["vocab"].items()}
    data["model"]["vocab"] = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    return FastTokenizer.from_str(json.dumps(data))


def _start_embeddings(model: PreTrainedModel, ids: dict[str, int], start: dict[str, int]) -> None:
    """Gives new entries (`ids`) the embeddings of others (`start`), or small ones of their own around the mean."""
    embeddings = model.get_input_embeddings().weight
    with torch.no_grad():
        mean, spread = embeddings.mean(0), embeddings.std(0)
        generator = torch.Generator().manual_seed(0)
        for name, id_ in ids.items():
            noise = torch.randn(mean.shape, generator=generator)
            embeddings[id_] = embeddings[start[name]] if name in start else mean + 0.5 * spread * noise


def _check_unforgeable(fast: FastTokenizer) -> None:
    plain = FastTokenizer.from_str(fast.to_str())
    plain.no_padding()
    plain.no_truncation()
    plain.encode_special_tokens = True
    reserved = {plain.token_to_id(name) for name in RESERVED}
    for name in RESERVED:
        if reserved & set(plain.encode(f"a {name} b{name}", add_special_tokens=False).ids):
            raise ValueError(f"its tokeniser takes the text {name} for the token")


def _has(fast: FastTokenizer, names: Iterable[str]) -> bool:
    return all(fast.token_to_id(name) is not None for name in names)
