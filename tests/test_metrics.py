"""Numbers that say how good tiers and probabilities are."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from sklearn import metrics as reference

from classifier import metrics

RNG = np.random.default_rng(11)
LABELS = RNG.integers(0, 4, 500)
PREDICTED = np.clip(LABELS + RNG.integers(-1, 2, 500), 0, 3)


def calibrated(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels drawn from them."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet([1.0, 1.5, 1.0, 0.4], n)
    return probabilities, (rng.random(n)[:, None] > np.cumsum(probabilities, axis=1)[:, :-1]).sum(axis=1)


def macro_f1(predicted, labels) -> float:
    """Of the rows themselves, each of them once."""
    return float(metrics.macro_f1s(predicted, labels)(np.ones((1, len(labels))))[0])


def test_accuracy_and_f1_are_the_usual_ones():
    """Accuracy and macro F1 equal scikit-learn's."""
    assert metrics.accuracy(PREDICTED, LABELS) == pytest.approx(reference.accuracy_score(LABELS, PREDICTED))
    assert macro_f1(PREDICTED, LABELS) == pytest.approx(reference.f1_score(LABELS, PREDICTED, average="macro"))


def test_macro_f1_leaves_out_tiers_that_never_occur():
    """A tier in neither labels nor predictions does not count as a zero."""
    assert macro_f1([0, 1], [0, 1]) == 1.0
    assert macro_f1([0, 2], [0, 0]) == pytest.approx(1 / 3), "one that was only predicted does"


def test_kappa_is_the_usual_one():
    """Quadratic kappa equals scikit-learn's, also when a tier is absent, and is undefined for one constant tier."""
    for predicted, labels in ((PREDICTED, LABELS), (PREDICTED[LABELS > 1], LABELS[LABELS > 1])):
        expected = reference.cohen_kappa_score(labels, predicted, weights="quadratic", labels=[0, 1, 2, 3])
        assert metrics.quadratic_kappa(predicted, labels) == pytest.approx(expected)
    assert np.isnan(metrics.quadratic_kappa([1, 1], [1, 1]))


def test_confusion_has_labels_as_rows():
    """A label 3 that was predicted 1 is counted at [3, 1]."""
    counts = metrics.confusion([1, 0], [3, 0])
    assert counts[3, 1] == counts[0, 0] == 1
    assert counts.sum() == 2


def test_tier_shares_sum_to_one():
    """Shares are given for every tier, also one that nobody got."""
    assert metrics.tier_shares([0, 0, 2, 0]) == (0.75, 0.0, 0.25, 0.0)


@pytest.mark.parametrize(
    ("row", "label", "score"),
    [
        ([1, 0, 0, 0], 0, 0.0),
        ([1, 0, 0, 0], 3, 1.0),
        ([1, 0, 0, 0], 1, 1 / 3),
        ([0.25, 0.25, 0.25, 0.25], 0, (0.75**2 + 0.5**2 + 0.25**2) / 3),
    ],
)
def test_ranked_probability_score_counts_distance(row: list[float], label: int, score: float):
    """A certain answer costs a third for each tier that it is off; spread costs the squared cumulative gaps."""
    assert metrics.ranked_probability_scores([row], [label]) == pytest.approx([score])


def test_ranked_probability_score_is_proper():
    """The true probabilities score better than sharper or flatter ones."""
    p, y = calibrated(20_000, 1)
    for power in (0.5, 2.0):
        other = p**power / (p**power).sum(axis=1, keepdims=True)
        true, changed = (metrics.ranked_probability_scores(q, y).mean() for q in (p, other))
        assert true < changed


def test_a_calibrated_model_lies_in_the_null_band():
    """Labels drawn from the probabilities themselves give errors inside the band about as often as it says."""
    inside = [
        error.null_low <= error.error <= error.null_high
        for seed in range(60)
        for error in metrics.calibration_error(*calibrated(600, seed), draws=100, seed=seed)
    ]
    assert np.mean(inside) > 0.88


def test_many_rows_take_no_memory_for_every_draw_of_every_row():
    """The null band of 20,000 rows keeps a part of its 8 million drawn numbers at a time."""
    p = np.random.default_rng(0).dirichlet([2, 2, 1, 1], 20_000)
    tracemalloc.start()
    try:
        metrics.calibration_error(p, p.argmax(axis=1))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 48 * 2**20


def test_an_overconfident_model_leaves_the_null_band():
    """Probabilities sharpened beyond the truth lie above the band at every boundary."""
    p, y = calibrated(4000, 5)
    sharp = p**2 / (p**2).sum(axis=1, keepdims=True)
    errors = metrics.calibration_error(sharp, y)
    assert [e.tier for e in errors] == [0, 1, 2]
    assert not any(e.within_null for e in errors)


def test_debiasing_takes_the_noise_of_the_bins_out():
    """At 300 rows the mean squared error of calibrated models is zero within chance; the plain estimate is not."""
    signed = [
        np.sign(e.error) * e.error**2
        for seed in range(200)
        for e in metrics.calibration_error(*calibrated(300, seed), draws=1)
    ]
    assert abs(np.mean(signed)) < 3 * np.std(signed) / np.sqrt(200)
    assert abs(np.mean(signed)) < 1e-3


def test_calibration_error_of_bins_worked_by_hand():
    """Two bins of 10 rows: the squared distance of a bin less the variance of its share, with n - 1 as its divisor."""
    low, high = [0.2, 0.8, 0.0, 0.0], [0.7, 0.3, 0.0, 0.0]
    labels = [0] * 5 + [1] * 5 + [0] * 6 + [1] * 4
    error = metrics.calibration_error([low] * 10 + [high] * 10, labels, draws=1)[0].error
    assert error == pytest.approx(np.sqrt((0.3**2 - 0.25 / 9 + 0.1**2 - 0.24 / 9) / 2))


def test_calibration_error_has_fifteen_bins_at_most():
    """Labels that are right in each fifteenth as a whole, and wrong in its halves, are no error."""
    shares = (np.arange(1500) + 0.5) / 1500
    fifteenth, half = np.arange(1500) // 100, np.arange(1500) % 100 < 50
    probabilities = np.stack([shares, 1 - shares, 0 * shares, 0 * shares], axis=1)
    of_part = np.round(100 * (fifteenth + 0.5) / 15).astype(int)
    place = np.where(half, 99 - np.arange(1500) % 100, np.arange(1500) % 100 - 50)
    labels = np.where(place < of_part, 0, 1)
    assert abs(metrics.calibration_error(probabilities, labels, draws=1)[0].error) < 0.06


def test_equal_predictions_are_one_bin_whatever_the_order_of_the_rows():
    """Equal probabilities for all rows are one point: labels sorted in the file are no calibration error."""
    errors = metrics.calibration_error(np.full((1000, 4), 0.25), np.repeat([0, 1, 2, 3], 250))
    assert all(e.within_null for e in errors)


def test_too_few_rows_for_a_calibration_error_is_an_error():
    """Nineteen rows are refused."""
    with pytest.raises(ValueError, match="too few"):
        metrics.calibration_error(*calibrated(19, 0))


def test_auroc_is_the_usual_one_with_ties():
    """AUROC equals scikit-learn's on scores with many ties; all-equal scores give one half."""
    scores, positive = RNG.integers(0, 6, 400) / 5, RNG.random(400) < 0.3
    assert metrics.auroc(scores, positive) == pytest.approx(reference.roc_auc_score(positive, scores))
    assert metrics.auroc(np.ones(400), positive) == 0.5
    assert np.isnan(metrics.auroc(scores, np.ones(400, dtype=bool)))


def test_of_samples_each_measure_is_that_of_the_rows_drawn():
    """From how often each row was drawn, a measure of many samples is what it is of each sample's rows."""
    rng, scores = np.random.default_rng(3), RNG.integers(0, 6, 500) / 5
    drawn = rng.integers(0, 500, (20, 500))
    counts = np.array([np.bincount(rows, minlength=500) for rows in drawn], dtype=float)
    for one, many in ((macro_f1, metrics.macro_f1s), (metrics.quadratic_kappa, metrics.quadratic_kappas)):
        expected = [one(PREDICTED[rows], LABELS[rows]) for rows in drawn]
        assert many(PREDICTED, LABELS)(counts) == pytest.approx(expected)
    assert metrics.confusions(PREDICTED, LABELS)(counts)[0].tolist() == (
        metrics.confusion(PREDICTED[drawn[0]], LABELS[drawn[0]]).tolist()
    )
    areas = metrics.ranked_areas(scores, LABELS <= 2, LABELS > 2)(counts)
    assert areas == pytest.approx([metrics.auroc(scores[rows], LABELS[rows] > 2) for rows in drawn])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.accuracy([], []), "n above 0"),
        (lambda: metrics.accuracy([0.5], [0]), "not tier indices"),
        (lambda: metrics.accuracy([4], [0]), "not tier indices"),
        (lambda: metrics.accuracy([0, 1], [0]), "2 rows"),
        (lambda: metrics.ranked_probability_scores([[0.5, 0.5]], [0]), "shape"),
        (lambda: metrics.ranked_probability_scores([[np.nan, 0, 0, 0]], [0]), "not finite"),
        (lambda: metrics.ranked_probability_scores([[np.inf, 0, 0, 0]], [0]), "not finite"),
        (lambda: metrics.auroc([np.nan, 1], [True, False]), "NaN"),
        (lambda: metrics.auroc([1], [True, False]), "the same"),
    ],
)
def test_what_cannot_be_measured_is_an_error(call, message: str):
    """Empty, ragged, non-finite or non-tier input raises and says what was expected."""
    with pytest.raises(ValueError, match=message):
        call()
