"""How far a promise carries: over random halves, to new sources, and whether probabilities do."""

from __future__ import annotations

import numpy as np
import pytest

from classifier.calibration import IDENTITY
from classifier.errors import InputError
from tests.calibration_support import mixed_sources, population
from training.calibration_set import CalibrationSet
from training.risk_control import fit_threshold
from training.step_losses import routing_losses
from training.transfer import calibration_across, half_splits, transfer, transfer_as_text

ALPHAS = {"economy": 0.2, "balanced": 0.1, "quality": 0.05}


@pytest.mark.parametrize("sharpness", [0.4, 1.0, 3.0])
def test_random_halves_keep_the_promise_on_average(sharpness: float):
    """Over 200 random halves the mean risk on the other half is at most alpha, however confident the model."""
    found = half_splits(population(600, 4, sharpness=sharpness), ALPHAS)
    for entry in found.values():
        assert entry["splits"] == 200
        assert entry["mean_risk"] <= entry["alpha"] + 3 * entry["standard_error"]
        assert entry["standard_error"] < 0.002
    assert found["balanced"]["feasible"] == 400


def test_a_source_that_differs_breaks_the_promise_until_it_is_labelled():
    """Fitted on other sources the odd one exceeds alpha; a hundred of its own rows bring it back."""
    found = transfer(mixed_sources(["a", "b", "c", "odd"], "odd"), ALPHAS)["economy"]
    assert set(found["sources"]) == {"a", "b", "c", "odd"}
    odd = found["sources"]["odd"]
    assert odd["risk"] > 0.3
    assert odd["risk_with_100"] <= 0.21
    assert odd["cheap_share_with_100"] < odd["cheap_share"]
    assert found["risk"]["worst"] == odd["risk"]
    assert found["risk_with_300"]["worst"] < found["risk_with_300"]["worst_without"]


def test_rows_that_are_alike_are_not_fitted_on_and_judged_on():
    """Where each row comes three times in a group, its own rows bring what 33 of them bring on new ones, not 100."""
    alpha, truth, risks = 0.1, population(20_000, 1), []
    p, y = IDENTITY.apply(truth.logits), truth.labels
    for i in range(400):
        copied = np.repeat(np.arange(33 * i, 33 * (i + 1)), 3)
        fitted = fit_threshold(routing_losses(p[copied], y[copied]), alpha).threshold
        risks.append(routing_losses(p[13_200:], y[13_200:]).risk(fitted))
    rows = population(40 * 50, 2, sources=40)
    found = transfer(rows.take(np.repeat(np.arange(len(rows)), 3)), {"p": alpha})["p"]
    assert np.mean(risks) > alpha + 0.01
    assert found["risk_with_100"]["mean"] == pytest.approx(np.mean(risks), abs=0.015)


def test_a_source_of_one_group_has_no_rows_of_its_own_to_fit_on():
    """Its rows are alike: what fitted on some of them would be judged on the same."""
    rows = population(400, 2, sources=2)
    one = CalibrationSet(rows.logits, rows.labels, "RUBRIC", rows.ids, rows.sources, {"source": rows.sources})
    assert "risk_with_100" in transfer(rows, {"p": 0.2})["p"]
    assert "risk_with_100" not in transfer(one, {"p": 0.2})["p"]


def test_small_sources_are_left_out_of_the_table():
    """Sources with fewer than 50 rows are fitted on and not judged; 100 own rows take 150."""
    rows = population(260, 6, sources=1)
    source = np.array(["small"] * 40 + ["middle"] * 100 + ["large"] * 120)
    rows.facets["source"] = source
    found = transfer(rows, {"p": 0.2})["p"]
    assert set(found["sources"]) == {"middle", "large"}
    assert "risk_with_100" not in found


def test_transfer_takes_more_than_one_source():
    """With a single source there is nothing to transfer from."""
    with pytest.raises(InputError, match="two sources"):
        transfer(population(200, 7, sources=1), ALPHAS)


def test_one_group_or_a_handful_of_rows_cannot_be_halved():
    """Too few rows, and rows that are all of one group, are a clear error."""
    rows = population(200, 8)
    one = CalibrationSet(rows.logits, rows.labels, "RUBRIC", rows.ids, np.full(200, "g"), rows.facets)
    for bad in (population(10, 8), one):
        with pytest.raises(InputError, match="cannot be halved"):
            half_splits(bad, ALPHAS)


def test_sources_above_alpha_are_told_from_chance():
    """Of the sources above alpha only those count as beyond chance that an exact test finds; the table says both."""
    found = transfer(mixed_sources(["a", "b", "c", "odd"], "odd"), {"balanced": 0.1})
    alike = transfer(population(2000, 9, sources=20), {"balanced": 0.1})["balanced"]
    assert found["balanced"]["surely_above"] == 1
    assert alike["surely_above"] == 0 < alike["above"]
    lines = transfer_as_text(found).splitlines()
    assert any(f"| {found['balanced']['above']}, 1 |" in line for line in lines)
    by_source = lines[lines.index("|---|---:|---:|") + 1 :]
    assert len(by_source) == 4
    assert by_source[0].startswith("| odd | 500 | 0.")
    assert by_source[0].count(" / ") == 2


def test_a_map_that_never_saw_the_source_mends_an_overconfident_model():
    """Fitted on other sources it predicts better, surely, and brings the calibration error into the null band."""
    found = calibration_across(population(1500, 10, sharpness=2.5, sources=10))
    assert found["gain"]["low"] > 0
    assert found["gain"]["estimate"] == pytest.approx(
        found["before"]["ranked_probability_score"] - found["after"]["ranked_probability_score"]
    )
    assert not any(e["within_null"] for e in found["before"]["calibration_error"])
    assert all(e["within_null"] and e["beyond"] == 0 for e in found["after"]["calibration_error"])
    assert sum(found["methods"].values()) == 5


def test_what_only_the_source_tells_is_not_calibrated_away():
    """A source on which the model is wrong in its own way leaves a distance to the null band, which is stated."""
    found = calibration_across(mixed_sources(["a", "b", "c", "d", "odd"], "odd"))
    assert max(e["beyond"] for e in found["after"]["calibration_error"]) > 0.02


def test_few_sources_cannot_be_left_out():
    """With fewer than five sources, or 200 rows, no map can be judged without its source."""
    for rows in (population(500, 11, sources=4), population(150, 11)):
        with pytest.raises(InputError, match="without a row's source"):
            calibration_across(rows)
