"""What is known of each row's label and how much it counts, and the loss of a step's rows against it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from classifier.types import TIERS
from training.corpus import OUTCOME, UNLABELLED, Row, soft_labels
from training.losses import distillation_loss, label_loss
from training.recipe import FitOptions


def row_weights(rows: Sequence[Row], options: FitOptions) -> NDArray[np.float32]:
    """Weight of each row in the loss: (rows,) float32, mean 1."""
    counts = Counter(row.source for row in rows)
    by_source = np.array([counts[r.source] ** -options.source_power for r in rows])
    by_source = np.clip(by_source / by_source.mean(), 0.3, 3.0)
    kind = np.array([options.outcome_weight if r.label == OUTCOME else 1.0 for r in rows])
    weight = by_source * kind * np.array([r.weight for r in rows])
    mean_one: NDArray[np.float32] = (weight / weight.mean()).astype(np.float32)
    return mean_one


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of each row's label, n rows.

    Attributes:
        target: (n, 4) float32, P(label = tier); NaN where it is not known.
        inside: (n, 4) float32, 1 for the tiers that the label may be.
        eta: (n,) float32, chance that `inside` is wrong.
        labelled: (n,) bool.
        followed: (n, 4) float32, the teacher's logits, NaN where it was not asked; None without a teacher.
    """

    target: Tensor
    inside: Tensor
    eta: Tensor
    labelled: Tensor
    followed: Tensor | None

    @classmethod
    def of(cls, rows: Sequence[Row], teacher_logits: NDArray[np.float32] | None, eta: float) -> Evidence:
        """The evidence of `rows`, with `eta` for those that carry none of their own."""
        return cls(
            target=torch.from_numpy(soft_labels(rows)),
            inside=torch.tensor([[float(r.at_least <= t <= r.at_most) for t in TIERS] for r in rows]),
            eta=torch.tensor([eta if r.eta is None else r.eta for r in rows]),
            labelled=torch.tensor([r.label != UNLABELLED for r in rows]),
            followed=None
            if teacher_logits is None
            else torch.from_numpy(np.ascontiguousarray(teacher_logits, np.float32)),
        )


def losses_of(logits: Tensor, index: Tensor, evidence: Evidence, options: FitOptions) -> Tensor:
    """Loss of each row of a step: (batch,) float32.

    Args:
        logits: (batch, 4) float32.
        index: (batch,) int64, which rows they are of.
        evidence: of all rows.
        options: how labels and teacher weigh.
    """
    device = logits.device
    known = (tensor[index].to(device) for tensor in (evidence.target, evidence.inside, evidence.eta))
    by_label = label_loss(logits, *known, rps_weight=options.rps_weight)
    if evidence.followed is None:
        return by_label
    answers = evidence.followed[index].to(device)
    answered = ~torch.isnan(answers).any(dim=-1)
    by_teacher = distillation_loss(logits, torch.nan_to_num(answers), temperature=options.temperature)
    # What has no label follows the teacher alone; what the teacher was not asked about follows its label alone.
    share = torch.where(evidence.labelled[index].to(device), options.distill_weight, 1.0) * answered
    return (1 - share) * by_label + share * by_teacher
