"""One loss for points, soft labels and noisy intervals."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from training.losses import distillation_loss, label_loss, ranked_probability  # noqa: E402 - after the skip

pytestmark = pytest.mark.training
NOTHING = [math.nan] * 4


def loss(probabilities, target, inside=(1, 1, 1, 1), eta=0.1, rps_weight=0.0) -> float:
    logits = torch.log(torch.tensor([probabilities]))
    found = label_loss(
        logits, torch.tensor([list(target)]), torch.tensor([list(map(float, inside))]), torch.tensor([eta]),
        rps_weight=rps_weight,
    )  # fmt: skip
    return float(found[0])


def test_soft_label_costs_its_cross_entropy():
    """A soft label costs the cross-entropy, least where the prediction equals it."""
    assert loss([0.25] * 4, [0.5, 0.5, 0, 0]) == pytest.approx(math.log(4))
    assert loss([0.49, 0.49, 0.01, 0.01], [0.5, 0.5, 0, 0]) < loss([0.8, 0.18, 0.01, 0.01], [0.5, 0.5, 0, 0])


def test_interval_costs_by_the_mass_inside_it():
    """An interval costs −log[(1−η)·P(inside) + η·P(outside)] and asks nothing about where inside."""
    p = [0.1, 0.2, 0.3, 0.4]
    assert loss(p, NOTHING, inside=(0, 0, 1, 1)) == pytest.approx(-math.log(0.9 * 0.7 + 0.1 * 0.3), abs=1e-6)
    assert loss([0.1, 0.2, 0.4, 0.3], NOTHING, inside=(0, 0, 1, 1)) == pytest.approx(
        loss(p, NOTHING, inside=(0, 0, 1, 1)), abs=1e-6
    )


def test_noise_bounds_what_one_outcome_can_cost():
    """However wrong an outcome is, it costs at most −log η."""
    assert loss([1 - 3e-6, 1e-6, 1e-6, 1e-6], NOTHING, inside=(0, 0, 0, 1), eta=0.2) <= -math.log(0.2) + 1e-3


def test_row_that_says_nothing_costs_nothing():
    """A row that allows every tier has no loss and no gradient."""
    assert loss([0.7, 0.1, 0.1, 0.1], NOTHING) == 0.0


def test_ranked_probability_punishes_distance():
    """Mass two tiers off costs more than mass one tier off."""
    target = torch.tensor([[1.0, 0, 0, 0]])
    near, far = torch.tensor([[0.5, 0.5, 0, 0]]), torch.tensor([[0.5, 0, 0.5, 0]])
    assert float(ranked_probability(near, target)) == pytest.approx(0.25)
    assert float(ranked_probability(far, target)) == pytest.approx(0.5)
    simple = [1, 0, 0, 0]
    assert loss([0.5, 0.1, 0.3, 0.1], simple, rps_weight=1) > loss([0.5, 0.3, 0.1, 0.1], simple, rps_weight=1)


def test_gradient_is_finite_at_the_edges():
    """Certain predictions and impossible intervals give finite gradients."""
    logits = torch.tensor([[80.0, -80.0, 0.0, 0.0], [80.0, -80.0, 0.0, 0.0]], requires_grad=True)
    target = torch.tensor([[0.0, 1, 0, 0], NOTHING])
    inside = torch.tensor([[1.0, 1, 1, 1], [0, 1, 0, 0]])
    label_loss(logits, target, inside, torch.tensor([0.1, 0.1]), rps_weight=0.5).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_distillation_is_zero_at_the_teacher():
    """A student that answers as the teacher has no distillation loss."""
    teacher = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    assert float(distillation_loss(teacher + 3.0, teacher, temperature=2.0)) == pytest.approx(0.0, abs=1e-6)
    assert float(distillation_loss(-teacher, teacher, temperature=2.0)) > 0.5
