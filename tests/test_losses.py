"""One loss for points, soft labels and noisy intervals."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from training.corpus import parse_row  # noqa: E402 - after the skip
from training.evidence import Evidence, losses_of, row_weights  # noqa: E402
from training.losses import distillation_loss, label_loss, ranked_probability  # noqa: E402
from training.recipe import FitOptions  # noqa: E402

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


def test_row_that_allows_all_tiers_but_one_says_something():
    """Rejected at the cheapest tier: the mass that is left there costs."""
    expected = -math.log(0.9 * 0.3 + 0.1 * 0.7)
    assert loss([0.7, 0.1, 0.1, 0.1], NOTHING, inside=(0, 1, 1, 1)) == pytest.approx(expected, abs=1e-6)


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


def test_distillation_is_the_divergence_from_the_teacher_at_a_temperature():
    """KL(teacher, student) of both softened alike, times the temperature's square: Hinton et al. 2015, section 2."""
    teacher, student = torch.tensor([[3.0, 1.0, 0.0, -2.0]]), torch.tensor([[0.0, 2.0, 0.5, 0.0]])
    p, q = (torch.softmax(logits / 2, dim=-1) for logits in (teacher, student))
    expected = 4 * float((p * (p / q).log()).sum())
    assert float(distillation_loss(student, teacher, temperature=2.0)) == pytest.approx(expected, rel=1e-5)


def rows(*given):
    """Corpus lines as rows; each has a prompt of its own."""
    return [parse_row({"prompt": f"p{i}", "source": "s"} | line, "s") for i, line in enumerate(given)]


def test_rows_of_a_large_source_weigh_less_within_limits():
    """The n rows of a source weigh n^-power each, no more than ten times apart; a row's own weight multiplies it."""
    one, many = [{"tier": "simple", "source": "one"}], [{"tier": "simple", "source": "many"}] * 15
    of_one, *of_many = row_weights(rows(*one, *many), FitOptions(source_power=0.5)).tolist()
    assert of_one / of_many[0] == pytest.approx(3 / (15**-0.5 / ((1 + 15 * 15**-0.5) / 16)), rel=1e-5)
    heavy, light = row_weights(rows({"tier": "simple", "weight": 3.0}, {"tier": "simple"}), FitOptions()).tolist()
    assert (heavy, light) == pytest.approx((1.5, 0.5))


def test_outcomes_weigh_as_the_recipe_says():
    """Their factor is that of OUTCOME rows alone, and the mean of all weights is 1."""
    given = rows({"tier": "simple"}, {"success_by_tier": {"simple": 1.0}})
    tier, outcome = row_weights(given, FitOptions(outcome_weight=0.25)).tolist()
    assert (outcome / tier, outcome + tier) == pytest.approx((0.25, 2.0))


def test_evidence_is_what_the_rows_say():
    """A tier is a point; an interval its tiers, with its own chance of error or the recipe's."""
    interval = {"at_least": "standard", "at_most": "complex"}
    given = rows({"tier": "standard"}, interval | {"eta": 0.3}, {"at_least": "complex"}, {})
    found = Evidence.of(given, None, 0.1)
    assert found.target[0].tolist() == [0, 1, 0, 0]
    assert torch.isnan(found.target[1:]).all()
    assert found.inside[1:].tolist() == [[0, 1, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1]]
    assert found.eta.tolist() == pytest.approx([0.1, 0.3, 0.1, 0.1])
    assert found.labelled.tolist() == [True, True, True, False]


def test_labels_and_teacher_share_the_loss():
    """A labelled row follows both; one without a label the teacher alone, one that it was not asked about its label."""
    logits, teacher = torch.tensor([[0.0, 1.0, 0.0, -1.0]] * 3), torch.tensor([[2.0, 0.0, 0.0, 0.0]] * 3)
    teacher[2] = math.nan
    given, options = rows({"tier": "simple"}, {}, {"tier": "simple"}), FitOptions(distill_weight=0.25, temperature=2.0)
    index = torch.arange(3)
    found = losses_of(logits, index, Evidence.of(given, teacher.numpy(), 0.1), options)
    by_label = losses_of(logits, index, Evidence.of(given, None, 0.1), options)
    by_teacher = distillation_loss(logits, teacher, temperature=2.0)
    expected = [0.75 * by_label[0] + 0.25 * by_teacher[0], by_teacher[1], by_label[2]]
    assert found.tolist() == pytest.approx([float(value) for value in expected], rel=1e-5)
