"""Logits become probabilities, the same everywhere."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from classifier.calibration import IDENTITY, METHODS, Calibration, log_odds
from classifier.errors import BundleCorrupt

PARAMETERS = {
    "identity": {},
    "temperature": {"temperature": 1.7},
    "vector": {"scale": [1.0, 1.2, 0.8, 1.1], "offset": [0.0, 0.3, -0.2, -0.6]},
    "cumulative_platt": {"slope": [0.9, 1.3, 0.7], "intercept": [0.2, -0.1, -0.4]},
    "cumulative_isotonic": {
        "x": [[-4.0, -1.0, 0.5, 3.0], [-5.0, 0.0, 6.0], [-2.0, 7.0]],
        "y": [[0.02, 0.3, 0.55, 0.97], [0.0, 0.45, 1.0], [0.2, 0.999]],
    },
}
ROWS = np.random.default_rng(3).normal(0, 3, (257, 4)).astype(np.float32)
logits = hnp.arrays(np.float32, (4,), elements=st.floats(-200, 200, width=32))


def fitted(method: str) -> Calibration:
    return Calibration(method, "RUBRIC", 500, PARAMETERS[method])


def test_every_method_is_covered_here():
    """The table of this file holds every method there is."""
    assert tuple(PARAMETERS) == METHODS


@pytest.mark.parametrize("method", METHODS)
@given(row=logits)
def test_probabilities_are_a_distribution(method: str, row: np.ndarray):
    """Whatever the logits, probabilities lie in [0, 1] and sum to 1 within float32."""
    p = fitted(method).apply(row)
    assert p.dtype == np.float32
    assert p.shape == (4,)
    assert p.min() >= 0
    assert p.max() <= 1
    assert abs(float(p.astype(np.float64).sum()) - 1) < 2e-7


@pytest.mark.parametrize("method", METHODS)
def test_one_row_alone_equals_the_row_among_others(method: str):
    """A row has bit for bit the same probabilities alone, in a batch, and in a batch of another memory layout."""
    calibration = fitted(method)
    together = calibration.apply(ROWS)
    assert (together == np.stack([calibration.apply(row) for row in ROWS])).all()
    assert (together == calibration.apply(np.asfortranarray(ROWS))).all()
    assert (together[::-1][:100] == calibration.apply(ROWS[::-1][:100])).all()


@pytest.mark.parametrize("row", np.eye(4)[[0, 1, 3]].tolist() + (-np.eye(4)).tolist(), ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_logits_however_far_apart_are_probabilities(method: str, row: list[float]):
    """Where exp() underflows, or would overflow, the answer is a distribution all the same."""
    p = fitted(method).apply(np.multiply(row, 1e4))
    assert float(p.astype(np.float64).sum()) == pytest.approx(1)
    assert np.isfinite(log_odds(np.multiply(row, 1e4))).all()


def test_identity_is_softmax():
    """Without a fitted map the probabilities are the softmax of the logits."""
    expected = np.exp(ROWS.astype(float)) / np.exp(ROWS.astype(float)).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(IDENTITY.apply(ROWS), expected, atol=1e-7)


@pytest.mark.parametrize("temperature", [0.4, 1.7], ids=["sharper", "flatter"])
def test_temperature_divides_the_logits(temperature: float):
    """Temperature T, below 1 or above, gives the softmax of logits / T."""
    calibration = Calibration("temperature", parameters={"temperature": temperature})
    np.testing.assert_array_equal(calibration.apply(ROWS), IDENTITY.apply(ROWS.astype(float) / temperature))


def test_vector_scales_and_shifts_each_logit():
    """Vector scaling gives the softmax of scale * logits + offset."""
    scale, offset = (np.array(PARAMETERS["vector"][name]) for name in ("scale", "offset"))
    np.testing.assert_array_equal(fitted("vector").apply(ROWS), IDENTITY.apply(ROWS * scale + offset))


def test_a_platt_map_of_slope_one_changes_nothing():
    """Slope 1 and intercept 0 give the softmax back."""
    calibration = Calibration("cumulative_platt", parameters={"slope": [1.0] * 3, "intercept": [0.0] * 3})
    np.testing.assert_allclose(calibration.apply(ROWS), IDENTITY.apply(ROWS), atol=1e-7)


def test_a_slope_of_zero_is_a_boundary_of_one_probability():
    """Where scores say nothing of a boundary its probability is that of its intercept, whatever the logits."""
    level = Calibration("cumulative_platt", parameters={"slope": [0.0] * 3, "intercept": [-1.0, 0.0, 1.0]})
    low, middle, high = 1 / (1 + np.exp([1.0, 0.0, -1.0]))
    assert level.apply(ROWS[0]).tolist() == pytest.approx([low, middle - low, high - middle, 1 - high])


def test_isotonic_curves_map_each_boundary():
    """A boundary's probability is read off its own curve, in log-odds, and held at the ends."""
    curve = {"x": [[-1.0, 1.0]] * 3, "y": [[0.25, 0.75]] * 3}
    calibration = Calibration("cumulative_isotonic", parameters=curve)
    assert calibration.apply([50.0, 0.0, 0.0, 0.0]).tolist() == [0.75, 0.0, 0.0, 0.25]
    assert calibration.apply([0.0, 0.0, 0.0, 50.0]).tolist() == [0.25, 0.0, 0.0, 0.75]
    assert calibration.apply([0.0, -50.0, -50.0, 0.0]).tolist() == pytest.approx([0.5, 0, 0, 0.5])


def test_crossing_boundaries_are_made_monotone():
    """Boundaries that cross meet half-way, so no tier gets a negative probability."""
    crossing = {"slope": [1.0, 1.0, 1.0], "intercept": [2.0, -2.0, 3.0]}
    p = Calibration("cumulative_platt", parameters=crossing).apply([0.0, -30.0, 0.0, 0.0])
    odds = np.add(log_odds([0.0, -30.0, 0.0, 0.0]), crossing["intercept"])
    first, second, _ = 1 / (1 + np.exp(-odds))
    assert p[0] == pytest.approx((first + second) / 2)
    assert p[1] == 0


@given(row=logits)
def test_log_odds_never_fall_along_the_boundaries(row: np.ndarray):
    """Log-odds of the cumulative probabilities are finite and non-decreasing."""
    odds = log_odds(row)
    assert np.isfinite(odds).all()
    assert (np.diff(odds) >= 0).all()


def test_log_odds_keep_their_precision_at_the_ends():
    """Log-odds of a certain model do not saturate where a float32 probability would be 1."""
    assert log_odds([60.0, 0.0, 0.0, 0.0])[0] == pytest.approx(60 - np.log(3))


def test_nan_goes_in_and_comes_out():
    """A model that answers NaN is seen as NaN, not as a distribution."""
    assert np.isnan(IDENTITY.apply([np.nan, 0, 0, 0])).all()


@pytest.mark.parametrize("method", METHODS)
def test_json_round_trip_is_exact(method: str):
    """Written to JSON and read back, a calibration is equal, has the same revision, and answers the same."""
    calibration = fitted(method)
    again = Calibration.from_json(json.loads(json.dumps(calibration.to_json())))
    assert again == calibration
    assert again.revision == calibration.revision
    assert (again.apply(ROWS) == calibration.apply(ROWS)).all()
    assert (pickle.loads(pickle.dumps(calibration)).apply(ROWS) == calibration.apply(ROWS)).all()


def test_the_revision_follows_the_content():
    """Another parameter, method, label or n is another revision; the revision has 12 hexadecimal digits."""
    one = fitted("temperature")
    others = [
        Calibration("temperature", "RUBRIC", 500, {"temperature": 1.8}),
        Calibration("temperature", "OUTCOME", 500, {"temperature": 1.7}),
        Calibration("temperature", "RUBRIC", 501, {"temperature": 1.7}),
        Calibration("identity", "RUBRIC", 500),
    ]
    assert len({one.revision, *(c.revision for c in others)}) == 5
    assert len(one.revision) == 12
    assert int(one.revision, 16) >= 0


def edit(**changes: object) -> dict[str, object]:
    data = copy.deepcopy(fitted("temperature").to_json())
    return {k: v for k, v in (data | changes).items() if v is not ...}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "expected an object"),
        (edit(schema_version=2), "schema version 2"),
        (edit(revision="0" * 12), "edited by hand"),
        (edit(revision=...), "edited by hand"),
        (edit(method="beta"), "unknown method 'beta'"),
        (edit(label="VIBES"), "label is 'VIBES'"),
        (edit(n=-1), "n is -1"),
        (edit(n=True), "n is True"),
        (edit(n=...), "no 'n'"),
        (edit(parameters={}), "temperature"),
        (edit(parameters={"temperature": 0}), "expected above 0"),
        (edit(parameters={"temperature": float("nan")}), "not finite"),
        (edit(parameters=[1.0]), "calibration.json"),
        (edit(method="vector", parameters={"scale": [1, 1, 1], "offset": [0, 0, 0, 0]}), "shape"),
        (edit(method="cumulative_platt", parameters={"slope": [1, -1, 1], "intercept": [0, 0, 0]}), "negative"),
        (edit(method="cumulative_isotonic", parameters={"x": [[0, 1]] * 2, "y": [[0, 1]] * 2}), "3 curves"),
        (edit(method="cumulative_isotonic", parameters={"x": [[0, 1, 2]] * 3, "y": [[0, 1]] * 3}), "two equal lengths"),
        (edit(method="cumulative_isotonic", parameters={"x": [[]] * 3, "y": [[]] * 3}), "two equal lengths"),
        (
            edit(method="cumulative_isotonic", parameters={"x": [[[0, 1]]] * 3, "y": [[[0, 1]]] * 3}),
            "two equal lengths",
        ),
        (edit(method="cumulative_isotonic", parameters={"x": [[0, 1]] * 3, "y": [[-1, 1]] * 3}), "not increasing"),
        (edit(method="cumulative_isotonic", parameters={"x": [[0, 0]] * 3, "y": [[0, 1]] * 3}), "not increasing"),
        (edit(method="cumulative_isotonic", parameters={"x": [[0, 1]] * 3, "y": [[0, 2]] * 3}), "not increasing"),
        (edit(method="cumulative_isotonic", parameters={"x": [[0, 1]] * 3, "y": [[0.6, 0.4]] * 3}), "not increasing"),
    ],
)
def test_a_calibration_that_cannot_be_is_refused(data: object, message: str):
    """A malformed or edited calibration.json is refused with the thing at fault named."""
    with pytest.raises(BundleCorrupt, match=message):
        Calibration.from_json(data)
