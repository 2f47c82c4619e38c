"""The forms of each row that a step of training tries: the row as it is, or changed ones (`training.augment`).

They are made as they are wanted, from the seed, the epoch and the row alone, whoever makes them: the process that
trains where every core does, others where a GPU trains and would wait.
"""

from __future__ import annotations

import multiprocessing
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.context import BaseContext

import torch
from torch.utils.data import DataLoader, Dataset

from classifier.inputs import render
from classifier.tokenizer import Tokenizer
from training.augment import augment
from training.corpus import Row
from training.recipe import FitOptions

Ids = tuple[list[int], int]
"""Token ids of one form, and how many of them are not context."""
Tried = list[list[Ids]]
"""Of each row of a step one form, or several of which the worst is learnt from."""
SHORT_TOKENS = 96
"""Up to this length a row is worth several forms: what stands beside a longer text moves its tier less."""
_MOST_WORKERS = 4
"""Two were busy a third of their time for three layers in batches of 64 with five forms a row, beside an H200 that five
trainings shared."""


@dataclass(frozen=True, slots=True)
class Forms(Dataset[list[Tried]]):
    """What is tried in each step of an epoch, by step: once, or once of each kind.

    Attributes:
        rows: all rows.
        plain: all rows as they are.
        steps: the rows of each step, by their places in `rows`.
        tokenizer: the serving tokeniser.
        words: to make gadgets of.
        options: of training.
        epoch: which.
    """

    rows: Sequence[Row]
    plain: Sequence[Ids]
    steps: Sequence[Sequence[int]]
    tokenizer: Tokenizer
    words: Sequence[str]
    options: FitOptions
    epoch: int

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, step: int) -> list[Tried]:
        """What the step learns from: all of its rows, once or three times."""
        kinds = ("plain", "around", "reworded") if self.options.each_kind else ("drawn",)
        return [[self._of(place, kind) for place in self.steps[step]] for kind in kinds]

    def _of(self, place: int, kind: str) -> list[Ids]:
        rng = random.Random(f"{self.options.seed}/{self.epoch}/row {place}")
        if kind == "plain" or (kind == "drawn" and rng.random() >= self.options.augment):
            return [self.plain[place]]
        tries = self.options.worst_of if kind != "around" and len(self.plain[place][0]) <= SHORT_TOKENS else 1
        changed = augment(self.rows[place].request, rng, self.words, kind=kind, tries=tries)
        return [self.tokenizer.ids(render(form))[:2] for form in changed]


def made(forms: Forms, workers: int) -> Iterable[list[Tried]]:
    """The forms, step by step, made by so many other processes; by this one where there are none."""
    # Not forked from a process with threads (torch's, gRPC's), where a child may hang or crash.
    context = _others() if workers else None
    # Without a collate function of its own the loader would look at every token for something to make a tensor of.
    steps: Iterable[list[Tried]] = DataLoader(
        forms, batch_size=None, num_workers=workers, collate_fn=list, multiprocessing_context=context
    )
    return steps


def _others() -> BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def workers_beside(device: torch.device) -> int:
    """How many processes may make forms while this one trains on `device`."""
    if device.type != "cuda":
        return 0
    trainers = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(_MOST_WORKERS, max(0, len(os.sched_getaffinity(0)) // trainers - 1))
