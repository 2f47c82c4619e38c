"""The numbers of a calibration report: curves, drawn labels, intervals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from classifier.calibration import IDENTITY
from classifier.policy import ALWAYS_FRONTIER, Policy
from tests.calibration_support import population
from training.calibration_report import (
    measure_policy,
    reliability,
)
from training.step_losses import soft


def test_equal_predictions_are_one_point_of_the_reliability_curve():
    """Rows of one prediction are one point, whatever the order of their labels in the file."""
    rows, labels = np.tile(np.float32([0.5, 0.5, 0, 0]), (100, 1)), soft(np.repeat([0, 1], 50))
    assert reliability(rows, labels, 0) == [[0.5, 0.5, 100]]
    ranked = np.linspace(0, 1, 100, dtype=np.float32)[:, None] * np.float32([[1, 0, 0, 0]])
    assert [n for _, _, n in reliability(ranked, labels, 0)] == [10] * 10


def test_rows_that_a_bootstrap_cannot_draw_in_groups_are_drawn_one_by_one():
    """Where all rows are of one group and source, an interval is that of its rows, and no point."""
    rows = population(300, 0, sources=1)
    alone, single = replace(rows, groups=np.full(300, "g")), replace(rows, groups=np.arange(300).astype(str))
    found = [
        measure_policy(Policy("p", 0.8), one, IDENTITY.apply(one.logits), np.empty((0, 4), np.float32))["risk"]
        for one in (alone, single)
    ]
    widths = [risk["high"] - risk["low"] for risk in found]
    assert widths[0] == pytest.approx(widths[1], rel=0.2)
    assert widths[1] > 0.03


def test_no_miss_of_a_few_rows_is_no_proof_of_none():
    """Where nothing is missed a risk has Wilson's interval, and so have frontier misses, instead of 0 to 0."""
    rows = population(60, 0)
    found = measure_policy(
        Policy("p", ALWAYS_FRONTIER), rows, IDENTITY.apply(rows.logits), np.empty((0, 4), np.float32)
    )
    assert (found["risk"]["low"], found["risk"]["high"]) == (0.0, pytest.approx(0.0602, abs=1e-3))
    assert found["frontier_misses"]["high"] > 0.2


def test_labels_are_drawn_from_rates_whatever_the_order_of_the_rows():
    """A file sorted otherwise has the same thresholds where a confidence is asked for."""
    rng = np.random.default_rng(0)
    rows = replace(population(200, 0), labels=rng.dirichlet((1, 1, 1, 1), 200))
    order = rng.permutation(200)
    assert np.array_equal(rows.take(order).drawn(3).labels, rows.drawn(3).labels[order])
