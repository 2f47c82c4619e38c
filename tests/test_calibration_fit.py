"""The map from logits to probabilities: how it is fitted, compared and chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from classifier.bundle import read_bundle
from classifier.calibration import IDENTITY, METHODS, log_odds
from classifier.errors import InputError
from classifier.metrics import ranked_probability_scores
from tests.calibration_support import ALPHAS, population, write_rows
from training.calibrate import calibrate
from training.calibration_fit import compare, fit_map
from training.calibration_set import (
    CalibrationSet,
)


def test_every_method_mends_an_overconfident_model():
    """On over-confident logits each fitted map beats the identity on other rows of the population."""
    fit, held = population(2000, 1, sharpness=2.5), population(2000, 2, sharpness=2.5)
    labels = held.labels.argmax(axis=1)
    scores = {
        method: ranked_probability_scores(fit_map(method, fit.logits, fit.labels).apply(held.logits), labels).mean()
        for method in METHODS
    }
    assert min(scores, key=scores.get) != "identity"
    assert all(score < scores["identity"] for method, score in scores.items() if method != "identity")
    assert fit_map("temperature", fit.logits, fit.labels).parameters["temperature"] == pytest.approx(2.5, rel=0.1)


def test_a_calibrated_model_is_left_alone_or_nearly():
    """Where the logits are right already, the chosen map gains or loses next to nothing."""
    rows = population(2000, 3)
    found = compare(rows.logits, rows.labels, sources=rows.sources, groups=rows.groups)
    assert found.scores[found.calibration.method] == pytest.approx(found.scores["identity"], rel=0.01)


def test_methods_are_compared_on_sources_that_they_have_not_seen():
    """What can only be known of a source by having seen it does not count for a method."""
    rng, source = np.random.default_rng(4), np.repeat(np.arange(5), 200)
    # Every source has one score and a rate of its own: seen, the rate is known; unseen, it can only be guessed.
    logits = np.zeros((1000, 4), np.float32)
    logits[:, 0] = source
    labels = np.eye(4)[(rng.random(1000) > np.array([0.1, 0.1, 0.9, 0.9, 0.9])[source]) * (1 + np.arange(1000) % 3)]
    ids, names = np.arange(1000).astype(str), source.astype(str)
    across = compare(logits, labels, sources=names, groups=ids).scores["cumulative_isotonic"]
    within = compare(logits, labels, sources=np.full(1000, "all"), groups=ids).scores["cumulative_isotonic"]
    assert across > 1.2 * within


def test_a_few_hundred_rows_fit_no_steps():
    """Of fewer than a thousand rows an isotonic map follows the noise: it is left out, and the reason is said."""
    few, enough = population(999, 8), population(1000, 8)
    found = compare(few.logits, few.labels, sources=few.sources, groups=few.groups)
    assert set(found.scores) == {*METHODS} - {"cumulative_isotonic"}
    assert found.skipped == {"cumulative_isotonic": "999 rows are too few for its steps; it takes 1000"}
    assert set(compare(enough.logits, enough.labels, sources=enough.sources, groups=enough.groups).scores) == {*METHODS}


def test_soft_labels_fit_as_their_draws_do():
    """A map fitted on label distributions is close to one fitted on draws from them."""
    rows = population(4000, 5, sharpness=2.0)
    p = np.exp(rows.logits / 2.0, dtype=np.float64)
    soft = p / p.sum(axis=1, keepdims=True)
    for method in ("temperature", "cumulative_platt"):
        np.testing.assert_allclose(
            fit_map(method, rows.logits, soft).apply(rows.logits[:50]),
            fit_map(method, rows.logits, rows.labels).apply(rows.logits[:50]),
            atol=0.1,
        )


def test_an_absent_class_leaves_boundary_methods_out():
    """Without a frontier row the methods that fit each boundary are skipped, and the reason is said."""
    rows = population(1200, 6)
    labels = np.eye(4)[np.minimum(rows.labels.argmax(axis=1), 2)]
    found = compare(rows.logits, labels, sources=rows.sources, groups=rows.groups)
    assert set(found.skipped) == {"cumulative_platt", "cumulative_isotonic"}
    assert "at or below complex" in found.skipped["cumulative_platt"]


def test_all_equal_logits_give_the_base_rates():
    """A model that says nothing is calibrated to the shares of the labels."""
    labels = population(1000, 7).labels
    flat = np.zeros((1000, 4), np.float32)
    for method in ("vector", "cumulative_platt", "cumulative_isotonic"):
        np.testing.assert_allclose(fit_map(method, flat, labels).apply(flat[0]), labels.mean(axis=0), atol=0.02)


def test_too_few_rows_keep_the_bundles_map(tiny_bundle_path: Path, tmp_path: Path):
    """Below 200 rows only thresholds are fitted, on all rows, and the report says so."""
    path = write_rows(tmp_path / "few.jsonl", 120)
    report = calibrate(tiny_bundle_path, [path], tmp_path / "out", policies=ALPHAS)
    assert report["rows"]["thresholds"] == 120
    assert "it takes 200" in report["notes"][0]
    assert read_bundle(tmp_path / "out").calibration == IDENTITY


def test_two_hundred_rows_are_enough(tiny_bundle_path: Path, tmp_path: Path):
    """From 200 labels upward probabilities and thresholds are both fitted."""
    path = write_rows(tmp_path / "enough.jsonl", 202)
    report = calibrate(tiny_bundle_path, [path], tmp_path / "out", policies=ALPHAS)
    assert report["rows"]["map"] == report["rows"]["thresholds"] == 101


def test_logits_that_are_not_finite_are_refused():
    """A model that answered NaN cannot be calibrated; the number of such rows is named."""
    rows = population(10, 16)
    with pytest.raises(InputError, match="2 of 10 rows"):
        CalibrationSet(
            np.where(np.arange(10)[:, None] < 2, np.nan, rows.logits),
            rows.labels,
            "RUBRIC",
            rows.ids,
            rows.groups,
            rows.facets,
        )


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 3.0])
def test_a_platt_map_is_the_logistic_regression_of_its_boundaries(sharpness: float):
    """Slopes and intercepts are scikit-learn's, in whose words a soft label is two hard ones with weights."""
    from sklearn.linear_model import LogisticRegression

    rows = population(300, 3, sharpness=sharpness)
    labels = 0.8 * rows.labels + 0.05
    found = fit_map("cumulative_platt", rows.logits, labels).parameters
    for t, odds in enumerate(log_odds(rows.logits).T):
        below = labels[:, : t + 1].sum(axis=1)
        x, y = np.concatenate([odds, odds])[:, None], np.repeat([1, 0], len(below))
        model = LogisticRegression(C=100.0, tol=1e-8).fit(x, y, sample_weight=np.concatenate([below, 1 - below]))
        assert found["slope"][t] == pytest.approx(model.coef_[0, 0], abs=1e-3)
        assert found["intercept"][t] == pytest.approx(model.intercept_[0], abs=1e-3)
