"""Losses: pure functions of tensors.

One loss for every kind of label: a soft label is matched by cross-entropy; an outcome is noisy evidence about an
interval, −log[(1−η)·P(inside) + η·P(outside)]. A ranked-probability term (Epstein 1969) punishes mass by how many
tiers it lies off. Distillation follows Hinton et al. 2015 (arXiv 1503.02531).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def label_loss(logits: Tensor, target: Tensor, inside: Tensor, eta: Tensor, *, rps_weight: float) -> Tensor:
    """Loss of each row.

    Args:
        logits: (batch, tiers) float.
        target: (batch, tiers) float, rows sum to 1; rows of NaN have only an interval.
        inside: (batch, tiers) float in {0, 1}: the tiers that the interval allows.
        eta: (batch,) float in [0, 0.5): chance that the evidence about the interval is wrong.
        rps_weight: weight of the ranked-probability term on soft labels, 0 or more.

    Returns:
        (batch,) float. A row that allows every tier says nothing and costs nothing.
    """
    log_p = functional.log_softmax(logits.float(), dim=-1)
    soft = ~torch.isnan(target).any(dim=-1)
    safe_target = torch.where(soft[:, None], target, torch.zeros_like(target))
    point = -(safe_target * log_p).sum(-1) + rps_weight * ranked_probability(log_p.exp(), safe_target)
    p_inside = (log_p.exp() * inside).sum(-1).clamp(0.0, 1.0)
    everything = inside.sum(-1) == inside.shape[-1]
    interval = -torch.log((1 - eta) * p_inside + eta * (1 - p_inside) + 1e-9)
    interval = torch.where(everything, torch.zeros_like(interval), interval)
    return torch.where(soft, point, interval)


def ranked_probability(probabilities: Tensor, target: Tensor) -> Tensor:
    """Ranked probability score of each row: (batch,) float in [0, tiers − 1]."""
    difference = (probabilities - target).cumsum(-1)[:, :-1]
    return (difference**2).sum(-1)


def distillation_loss(logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """KL(teacher ‖ student) of each row at a temperature, scaled by its square: (batch,) float."""
    teacher = functional.log_softmax(teacher_logits.float() / temperature, dim=-1)
    student = functional.log_softmax(logits.float() / temperature, dim=-1)
    return (teacher.exp() * (teacher - student)).sum(-1) * temperature**2
