"""Adversarial augmentation: of several changed forms of a row, the one that the model takes worst is learnt from.

Worst-of-k (Engstrom et al. 2019, "Exploring the landscape of spatial robustness", arXiv:1712.02779, section 3): forms
are drawn at random, and nothing but forward passes is spent. Half of what was put beside a row's own text is then made
worse by its gradient: tokens are replaced by words that raise the loss most to first order (HotFlip, Ebrahimi et al.
2018, arXiv:1712.06751), as those do who search for a prefix that moves a router (`training.attack`).

No change alters the work that is asked for, so all forms of a row have its label; see `training.augment`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from training.forms import SHORT_TOKENS, Ids

Losses = Callable[[Sequence[Ids], Tensor], Tensor]
"""(n forms, (n,) int64 the places of their rows in the step) -> (n,) float32."""
_WORDS = 400
_FLIPPED = 0.6
"""Share of the added tokens that are replaced."""


def forms_at_once(device: torch.device) -> int:
    """How many forms are worth asking about together: on a CPU more bring padding alone, on a GPU each call costs."""
    return 64 if device.type == "cpu" else 1024


def worst_forms(forms: Sequence[Sequence[Ids]], losses: Losses, *, at_once: int) -> list[Ids]:
    """Of each row the form with the highest loss; the only one of a row that has one.

    Args:
        forms: of each row at least one.
        losses: called without gradients.
        at_once: how many forms are asked about together.
    """
    chosen = [tried[0] for tried in forms]
    # Forms of like length are asked about together: padding would be most of the work.
    rivals = sorted(
        ((row, form) for row, tried in enumerate(forms) if len(tried) > 1 for form in tried),
        key=lambda rival: len(rival[1][0]),
    )
    highest = [float("-inf")] * len(forms)
    for start in range(0, len(rivals), at_once):
        some = rivals[start : start + at_once]
        with torch.no_grad():
            found = losses([form for _, form in some], torch.tensor([row for row, _ in some])).tolist()
        for (row, form), loss in zip(some, found, strict=True):
            if loss > highest[row]:
                highest[row], chosen[row] = loss, form
    return chosen


def flipped(
    forms: Sequence[Ids],
    plain: Sequence[Ids],
    losses: Losses,
    embedding: nn.Module,
    words: Sequence[int],
    rng: random.Random,
    rngs: Sequence[random.Random],
    *,
    lead: int = 1,
) -> list[Ids]:
    """`forms` with the tokens that were added to half of the short ones replaced by words that raise the loss.

    Args:
        forms: one of each row.
        plain: the rows as they are; a form that is not such a row with tokens put before or behind it stays as it is.
        losses: called with gradients.
        embedding: the model's, of token ids.
        words: token ids to choose from; without any, all forms stay as they are.
        rng: draws the words that are offered to all rows of a step.
        rngs: of each row, for what is its own.
        lead: entries before the text, [CLS] and the signals.
    """
    spans = {
        row: span
        for row, (form, own, its) in enumerate(zip(forms, plain, rngs, strict=True))
        if words
        and len(own[0]) <= SHORT_TOKENS
        and len(form[0]) - form[1] == len(own[0]) - own[1]  # its context is its own
        and (span := added(own[0], form[0], lead))
        and its.random() < 0.5
    }
    out = list(forms)
    if not spans:
        return out
    embedded: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    hook = embedding.register_forward_hook(keep)
    try:
        loss = losses([forms[row] for row in spans], torch.tensor(list(spans))).sum()
    finally:
        hook.remove()
    (gradient,) = torch.autograd.grad(loss, embedded)
    table = embedding.weight.detach()
    offered = torch.tensor(rng.sample(words, min(_WORDS, len(words))), device=table.device)
    steepest = torch.cat([gradient[i, start:end] for i, (start, end) in enumerate(spans.values())])
    best = offered[(steepest @ table[offered].T).argmax(dim=1)].split([end - start for start, end in spans.values()])
    for (row, (start, end)), new in zip(spans.items(), best, strict=True):
        ids, first = forms[row]
        replaced = [
            word if rngs[row].random() < _FLIPPED else old
            for old, word in zip(ids[start:end], new.tolist(), strict=True)
        ]
        out[row] = ([*ids[:start], *replaced, *ids[end:]], first)
    return out


def added(own: Sequence[int], form: Sequence[int], lead: int = 1) -> tuple[int, int] | None:
    """Where `form` has tokens that `own` lacks, if it is `own` with some put in at one place.

    Args:
        own: the row as it is.
        form: changed.
        lead: entries before the text, which are not compared: what is put beside a text may change a signal, too.

    >>> added([1, 5, 6, 2], [1, 8, 9, 5, 6, 2]), added([1, 5, 6, 2], [1, 5, 7, 7, 2])
    ((1, 3), None)
    >>> added([1, 30, 5, 6, 2], [1, 31, 8, 5, 6, 2], lead=2)
    (2, 3)
    """
    more = len(form) - len(own)
    if more <= 0:
        return None
    same = next((i for i in range(lead, len(own)) if own[i] != form[i]), len(own))
    return (same, same + more) if list(own[same:]) == list(form[same + more :]) else None
