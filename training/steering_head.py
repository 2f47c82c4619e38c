"""The head that marks steering: log-odds, for each entry of a text, that it wants to move the tier.

It reads the states below the student's last layer and changes none of its weights, so the logits stay what they are;
what it marks is left out of the rating by `classifier.steering`. Four convolutions over three entries each, ever
farther apart, see fifteen entries to either side: a sentence, about. They are written as products with shifted copies,
so that int8 rounds them like every other layer.

Beside the states it has embeddings of its own: of each entry and of the two and three that end with it, in one table
by their hash, as fastText has its n-grams (Joulin et al. 2017, arXiv:1607.01759, section 2.2). An English base reads
other scripts by their characters, and two layers make no words of those; three in a row are close to one.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import PreTrainedModel

from classifier.durable import write_whole
from classifier.tokenizer import Tokenizer
from training.corpus import Row
from training.fit import bfloat16, inputs_of
from training.marked_forms import MarkedForm, MarkedForms
from training.model import lowest_layers
from training.progress import progress_bar

FILE = "steering.safetensors"
"""Of a checkpoint's folder that has such a head."""
MOST_STATES = 3
WIDTH, LAYERS = 128, 4
NGRAMS, NGRAM_WIDTH, SLOTS = 3, 16, 32_749
"""Longest n-gram, the width of its embedding, and slots of each length, a prime."""
_FACTORS = (1_640_531_527, 2_024_237_689, 1_350_490_027)
"""By how far back an entry is."""
_BATCH = 32
_CHUNK = 64
"""Batches whose forms are drawn together and sorted by length."""
_OF_NGRAMS = {"ngrams.weight", "of_ngrams.weight"}
_RATE = 2e-3
_MOST_TOKENS = 192


class SteeringHead(nn.Module):
    """Log-odds from hidden states.

    Args:
        hidden: width of the student.
        states: how many of its hidden states are read, from the embeddings on.
    """

    def __init__(self, hidden: int, states: int) -> None:
        super().__init__()
        # One product a state: in int8 the student's next layer has rounded it already.
        self.first = nn.ModuleList(nn.Linear(hidden, WIDTH, bias=i == 0) for i in range(states))
        self.ngrams = nn.Embedding(NGRAMS * SLOTS, NGRAM_WIDTH)
        nn.init.normal_(self.ngrams.weight, std=0.02)
        self.of_ngrams = nn.Linear(NGRAMS * NGRAM_WIDTH, WIDTH, bias=False)
        self.ngram_dropout = nn.Dropout(0.3)
        self.beside = nn.ModuleList(nn.Linear(3 * WIDTH, WIDTH) for _ in range(LAYERS))
        self.last = nn.Linear(WIDTH, 1)
        self.dropout = nn.Dropout(0.1)

    @property
    def states(self) -> int:
        """How many hidden states are read."""
        return len(self.first)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, hidden_states: Sequence[Tensor]) -> Tensor:
        """(batch, length) int64, the same of 1 and 0, and (batch, length, hidden) each → (batch, length)."""
        there = attention_mask[..., None].to(hidden_states[0].dtype)
        known = self.of_ngrams(self.ngram_dropout(self.ngrams(slots(input_ids)).flatten(-2)))
        x = sum((layer(state) for layer, state in zip(self.first, hidden_states, strict=False)), start=known)
        x = self.dropout(torch.relu(x)) * there
        for i, layer in enumerate(self.beside):
            x = (x + torch.relu(layer(_with_neighbours(x, 2**i)))) * there
        log_odds: Tensor = self.last(self.dropout(x))[..., 0]
        return log_odds


def slots(input_ids: Tensor) -> Tensor:
    """(batch, length) → (batch, length, NGRAMS): the slot of each n-gram that ends with an entry, by its length."""
    length, padded = input_ids.shape[1], nn.functional.pad(input_ids, (NGRAMS - 1, 0))
    hashed, found = torch.zeros_like(input_ids), []
    for back, factor in enumerate(_FACTORS):
        hashed = hashed + padded[:, NGRAMS - 1 - back : NGRAMS - 1 - back + length] * factor
        found.append(hashed % SLOTS + back * SLOTS)
    return torch.stack(found, dim=-1)


def _with_neighbours(x: Tensor, step: int) -> Tensor:
    """(batch, length, width) → (batch, length, 3 · width): each entry between those `step` before and behind it."""
    length, padded = x.shape[1], nn.functional.pad(x, (0, 0, step, step))
    return torch.cat([padded[:, i * step : i * step + length] for i in range(3)], dim=-1)


def new_head(model: PreTrainedModel) -> SteeringHead:
    """An untrained head for a student; the last layer is left out, of which the exported graph has one row only."""
    return SteeringHead(model.config.hidden_size, min(MOST_STATES, model.config.num_hidden_layers))


def head_of(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> SteeringHead:
    """The head that has `weights`. Those of one made before there were n-grams get some that say nothing yet.

    Raises:
        RuntimeError: they are no such head's.
    """
    head = new_head(model)
    if not weights.keys() & _OF_NGRAMS:
        nn.init.zeros_(head.of_ngrams.weight)
        weights = {**weights, **{name: head.state_dict()[name] for name in _OF_NGRAMS}}
    head.load_state_dict(weights)
    head.eval()
    return head


def kept_head(
    checkpoint: Path, model: PreTrainedModel, tokenizer: Tokenizer, rows: Sequence[Row], *, forms: int, seed: int
) -> SteeringHead:
    """The head of a finished student, trained (`fit_head`) and kept in its `checkpoint` unless it is there already."""
    head = load_head(checkpoint, model)
    if head is None:
        torch.manual_seed(seed)  # a build that goes on here begins with the weights of one that never stopped
        head = new_head(model)
        fit_head(head, model, tokenizer, rows, forms=forms, seed=seed)
        save_head(head, checkpoint)
    return head


def fit_head(
    head: SteeringHead, model: PreTrainedModel, tokenizer: Tokenizer, rows: Sequence[Row], *, forms: int, seed: int
) -> list[float]:
    """Trains `head` in place, beside a student that stays as it is.

    Args:
        head: new, or trained beside an earlier student.
        model: the student.
        tokenizer: the serving tokeniser.
        rows: prompts that forms are made of; their labels do not matter.
        forms: how many are learnt from, each drawn once; fewer than a batch of 32 change nothing.
        seed: of everything random.

    Returns:
        The mean loss of each tenth of the training.
    """
    steps = forms // _BATCH
    if not steps:
        return []
    rng = random.Random(f"{seed}/steering")
    torch.manual_seed(seed)
    source = MarkedForms(rows, tokenizer, _MOST_TOKENS)
    device = next(model.parameters()).device
    optimizer = torch.optim.AdamW(head.to(device).train().parameters(), lr=_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps + 1)
    losses, batches = [], list[list[MarkedForm]]()
    lowest = lowest_layers(model, head.states - 1).eval()
    for step in progress_bar(range(steps), desc="steering head", unit="step"):
        if not batches:
            count = _BATCH * min(_CHUNK, steps - step)
            drawn = sorted((source.draw(rng) for _ in range(count)), key=lambda form: len(form.ids))
            batches = [drawn[i : i + _BATCH] for i in range(0, len(drawn), _BATCH)]
            rng.shuffle(batches)
        loss = _loss(head, lowest, tokenizer, batches.pop())
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    head.eval()
    return [float(part.mean()) for part in np.array_split(np.array(losses), min(10, steps))]


def _loss(head: SteeringHead, lowest: PreTrainedModel, tokenizer: Tokenizer, forms: Sequence[MarkedForm]) -> Tensor:
    device = next(lowest.parameters()).device
    inputs = inputs_of(lowest, tokenizer, [(form.ids, form.first) for form in forms], device)
    marks = torch.full(inputs["input_ids"].shape, -1.0)
    for i, form in enumerate(forms):
        marks[i, : len(form.ids)] = torch.from_numpy(form.marks)
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16(device)):
        states = lowest(**inputs, output_hidden_states=True).hidden_states
    log_odds = head(inputs["input_ids"], inputs["attention_mask"], [state.float() for state in states])
    marks = marks.to(device)
    asked = marks >= 0
    return nn.functional.binary_cross_entropy_with_logits(log_odds[asked], marks[asked])


def save_head(head: SteeringHead, checkpoint: Path) -> None:
    """Writes the head beside the weights of its student."""
    write_whole(checkpoint / FILE, save({name: tensor.contiguous() for name, tensor in head.state_dict().items()}))


def load_head(checkpoint: Path, model: PreTrainedModel) -> SteeringHead | None:
    """The head of a checkpoint; None where it has none."""
    if not (checkpoint / FILE).is_file():
        return None
    return head_of(model, load_file(str(checkpoint / FILE)))
