"""Text → token ids: the home of `tokenizers`.

A request becomes `[CLS] signals text [SEP]` or `[CLS] signals text [SEP] context [SEP]`, assembled from ids here and
nowhere else, in training as in serving. User text is encoded with special-token matching off: no text can forge a
signal or a separator.

Knows nothing of requests, models or files beyond `tokenizer.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, normalizers, pre_tokenizers

from classifier.errors import BundleCorrupt
from classifier.inputs import HEAD_SHARE, ModelInput
from classifier.signals import SIGNALS
from classifier.wordpiece import AsciiWordPiece

CONTEXT_SHARE = 0.35
"""Share of the token budget that the context may take from a long text; either may use what the other leaves."""
BEFORE_TEXT = 1 + len({name.partition("=")[0] for name in SIGNALS})
"""Entries before a text: `[CLS]` and one signal of each kind."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Model inputs of one request.

    Attributes:
        input_ids: (1, length) int64.
        attention_mask: (1, length) int64, all ones: one request is one run, nothing is padded.
        token_type_ids: (1, length) int64; 1 on the context and its separator.
        truncated: tokens were left out to keep the budget.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    token_type_ids: NDArray[np.int64]
    truncated: bool


class Tokenizer:
    """Encodes model inputs within a budget of tokens.

    Args:
        fast: a WordPiece, BPE or unigram tokenizer whose vocabulary has `[CLS]`, `[SEP]` and every name in `SIGNALS`.
        max_tokens: the longest sequence it makes, specials included.

    Raises:
        BundleCorrupt: a reserved vocabulary entry is missing.
    """

    def __init__(self, fast: FastTokenizer, max_tokens: int) -> None:
        fast.no_padding()
        fast.no_truncation()
        fast.encode_special_tokens = True
        ids = {name: fast.token_to_id(name) for name in ("[CLS]", "[SEP]", "[PAD]", *SIGNALS)}
        missing = [name for name, id_ in ids.items() if id_ is None]
        if missing:
            raise BundleCorrupt(f"tokenizer.json lacks the reserved entries {missing[:4]}; export the bundle again")
        self._fast = fast
        self._ascii = _ascii_word_piece(fast)
        self._ids = ids
        self.max_tokens = max_tokens
        self.pad_id = ids["[PAD]"]
        self.reserved_ids = frozenset(ids.values())

    @classmethod
    def from_file(cls, path: Path, max_tokens: int) -> Tokenizer:
        """A tokenizer from a `tokenizer.json`.

        Raises:
            BundleCorrupt: the file is not a tokenizer, or lacks a reserved entry.
        """
        try:
            fast = FastTokenizer.from_file(str(path))
        except Exception as error:
            raise BundleCorrupt(f"{path}: not a tokenizer file ({error}); export the bundle again") from error
        return cls(fast, max_tokens)

    def ids(self, model_input: ModelInput) -> tuple[list[int], int, bool]:
        """(token ids, how many of them are not context, whether tokens were left out)."""
        text = self._encode(model_input.text)
        context = self._encode(model_input.context) if model_input.context else []
        room = self.max_tokens - 2 - len(model_input.signals) - (1 if context else 0)
        context_room = max(int(room * CONTEXT_SHARE), room - len(text)) if context else 0
        kept_context = _cut_middle(context, context_room)
        kept_text = _cut_middle(text, room - len(kept_context))
        first = [self._ids["[CLS]"], *(self._ids[s] for s in model_input.signals), *kept_text, self._ids["[SEP]"]]
        second = [*kept_context, self._ids["[SEP]"]] if kept_context else []
        return first + second, len(first), len(kept_text) < len(text) or len(kept_context) < len(context)

    def encode(self, model_input: ModelInput) -> Encoded:
        """Model inputs of one request, at most `max_tokens` long."""
        ids, first, truncated = self.ids(model_input)
        input_ids = np.array([ids], dtype=np.int64)
        token_type_ids = np.zeros(input_ids.shape, dtype=np.int64)
        token_type_ids[0, first:] = 1
        return Encoded(input_ids, np.ones(input_ids.shape, dtype=np.int64), token_type_ids, truncated)

    def parts_of(self, kept: Sequence[int], parts: Sequence[str]) -> NDArray[np.intp] | None:
        """The part that each entry of a text comes from, by number: (kept,) intp.

        Args:
            kept: ids that the budget left of the text.
            parts: strings that make it up.

        Returns:
            None where the parts encode otherwise alone than within the text.
        """
        pieces = [self._encode(part) for part in parts]
        if _cut_middle([id_ for piece in pieces for id_ in piece], len(kept)) != list(kept):
            return None
        numbers = [number for number, piece in enumerate(pieces) for _ in piece]
        return np.array(_cut_middle(numbers, len(kept)), dtype=np.intp)

    def words(self) -> dict[str, int]:
        """Whole words of the vocabulary, of three letters and more, sorted, with their ids."""
        vocabulary = self._fast.get_vocab(with_added_tokens=False)
        words = {name.lstrip("Ġ▁"): id_ for name, id_ in sorted(vocabulary.items()) if not name.startswith("##")}
        return {word: id_ for word, id_ in sorted(words.items()) if len(word) > 2 and word.isalpha()}

    def _encode(self, text: str) -> list[int]:
        if self._ascii is not None and text.isascii():
            return self._ascii.ids(text)
        try:
            ids: list[int] = self._fast.encode(text, add_special_tokens=False).ids
        except (Exception, KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # a panic: whoever catches errors would let it pass, and its words may quote the text
            raise RuntimeError("the tokenizer panicked") from None
        return ids


def pad(sequences: Sequence[tuple[Sequence[int], int]], pad_id: int = 0) -> dict[str, NDArray[np.int64]]:
    """A batch for training: each sequence is (ids, how many of them are not context).

    Returns:
        `input_ids`, `attention_mask`, `token_type_ids`: (batch, longest) int64.
    """
    longest = max(len(ids) for ids, _ in sequences)
    input_ids = np.full((len(sequences), longest), pad_id, dtype=np.int64)
    mask = np.zeros_like(input_ids)
    types = np.zeros_like(input_ids)
    for row, (ids, first) in enumerate(sequences):
        input_ids[row, : len(ids)] = ids
        mask[row, : len(ids)] = 1
        types[row, first : len(ids)] = 1
    return {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": types}


# Every ASCII character, words whole, in pieces and too long: both ways must agree on it before ours is used.
_TRIAL = f"{''.join(map(chr, range(128)))} the Unbelievably's qzx3.14 e_mail@host::call() {'ab' * 50} {'ab' * 51}"


def _ascii_word_piece(fast: FastTokenizer) -> AsciiWordPiece | None:
    """The short way for ASCII text, where `fast` is BERT's lower-casing tokeniser and has no words of its own."""
    model, normal = fast.model, fast.normalizer
    if (
        not isinstance(model, models.WordPiece)
        or not isinstance(normal, normalizers.BertNormalizer)
        or not (normal.lowercase and normal.clean_text)
        or not isinstance(fast.pre_tokenizer, pre_tokenizers.BertPreTokenizer)
        or not all(token.special for token in fast.get_added_tokens_decoder().values())
    ):
        return None
    vocabulary = fast.get_vocab(with_added_tokens=False)
    unknown = vocabulary.get(model.unk_token)
    if unknown is None:
        return None
    prefix, longest = model.continuing_subword_prefix, model.max_input_chars_per_word
    found = AsciiWordPiece(vocabulary, unknown, prefix=prefix, longest=longest)
    return found if found.ids(_TRIAL) == fast.encode(_TRIAL, add_special_tokens=False).ids else None


def _cut_middle(ids: list[int], limit: int) -> list[int]:
    if len(ids) <= limit:
        return ids
    head = int(limit * HEAD_SHARE)
    return ids[:head] + ids[len(ids) - (limit - head) :] if limit > 0 else []
