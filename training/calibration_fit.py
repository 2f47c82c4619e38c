"""Fits the maps that `classifier.calibration` applies, and keeps the one that predicts best across sources.

Each method is scored by its ranked probability score on folds that it was not fitted on, and the folds are whole
sources (or whole groups where there are few sources): a map must hold for traffic of kinds it has not seen. Labels may
be soft, (n, 4); every fit then minimises the expected loss.

Knows nothing of bundles, files or thresholds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from classifier.calibration import METHODS, Calibration, log_odds
from classifier.errors import InputError
from classifier.types import TIERS
from training.calibration_set import CalibrationSet

FEWEST_FOR_MAP = 100
"""Below it no map is fitted: the bundle's own is kept."""
FEWEST_FOR_ISOTONIC = 1000
"""Below it no isotonic map is fitted: its steps follow the noise of fewer rows, and tie scores that thresholds are to
tell apart (Niculescu-Mizil and Caruana, "Predicting good probabilities with supervised learning", ICML 2005)."""
FEWEST_TO_SPLIT = 2 * FEWEST_FOR_MAP
MOST_FOR_MAP = 2000
"""The map has few parameters; what is beyond goes to the thresholds."""
FOLDS = 5

_BOUNDARIES = len(TIERS) - 1
_PULL = 0.01
"""Of a Platt slope towards 0: without it, scores that tell both sides apart would have no steepest slope."""
Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the methods did on rows that they were not fitted on.

    Attributes:
        calibration: the best method, fitted on all rows.
        scores: mean ranked probability score out of fold, by method; lower is better.
        skipped: why a method was left out, by method.
    """

    calibration: Calibration
    scores: dict[str, float]
    skipped: dict[str, str]


def expected_scores(probabilities: NDArray[np.floating[Any]], labels: Array) -> Array:
    """Expected ranked probability score of each row under its soft label: (n,) float64, 0 to 1.

    Args:
        probabilities: (n, 4).
        labels: (n, 4), rows sum to 1.
    """
    predicted = np.cumsum(np.asarray(probabilities, dtype=np.float64), axis=1)[:, :-1]
    truth = np.cumsum(labels, axis=1)[:, :-1]
    scores: Array = ((predicted - truth) ** 2 + truth * (1 - truth)).mean(axis=1)
    return scores


def fit_map(method: str, logits: NDArray[np.float32], labels: Array, label: str = "RUBRIC") -> Calibration:
    """The calibration of one method, fitted on all rows.

    Args:
        method: one of `classifier.calibration.METHODS`.
        logits: (n, 4) finite.
        labels: (n, 4), rows sum to 1.
        label: "RUBRIC" or "OUTCOME".

    Raises:
        ValueError: the rows cannot determine the map, e.g. nothing lies on one side of a boundary.
    """
    fits: dict[str, Callable[[NDArray[np.float32], Array], dict[str, Any]]] = {
        "identity": lambda *_: {},
        "temperature": _fit_temperature,
        "vector": _fit_vector,
        "cumulative_platt": _fit_platt,
        "cumulative_isotonic": _fit_isotonic,
    }
    return Calibration(method, label, len(logits), fits[method](logits, labels))


def compare(
    logits: NDArray[np.float32],
    labels: Array,
    *,
    sources: NDArray[np.str_],
    groups: NDArray[np.str_],
    label: str = "RUBRIC",
    methods: tuple[str, ...] = METHODS,
) -> Comparison:
    """The method with the best out-of-fold score, fitted on all rows; of equals the simpler one.

    Below `FEWEST_FOR_ISOTONIC` rows the isotonic one is left out.

    Args:
        logits: (n, 4) finite.
        labels: (n, 4), rows sum to 1.
        sources: (n,) where each row came from; folds never split one. With fewer than `FOLDS` sources, groups do it.
        groups: (n,) rows of one group are alike.
        label: "RUBRIC" or "OUTCOME".
        methods: those to compare, simplest first.

    Raises:
        ValueError: fewer than `FEWEST_FOR_MAP` rows, or fewer than `FOLDS` groups.
    """
    from sklearn.model_selection import GroupKFold

    if len(logits) < FEWEST_FOR_MAP:
        raise ValueError(f"{len(logits)} rows are too few to fit a calibration; it takes {FEWEST_FOR_MAP}")
    units = sources if len(np.unique(sources)) >= FOLDS else groups
    if len(np.unique(units)) < FOLDS:
        raise ValueError(f"the rows form {len(np.unique(units))} groups; cross-validation takes at least {FOLDS}")
    folds = list(GroupKFold(FOLDS).split(logits, groups=units))
    scores: dict[str, float] = {}
    skipped: dict[str, str] = {}
    for method in methods:
        if method == "cumulative_isotonic" and len(logits) < FEWEST_FOR_ISOTONIC:
            skipped[method] = f"{len(logits)} rows are too few for its steps; it takes {FEWEST_FOR_ISOTONIC}"
            continue
        rows = np.empty(len(logits))
        try:
            for fit, held in folds:
                fitted = fit_map(method, logits[fit], labels[fit], label)
                rows[held] = expected_scores(fitted.apply(logits[held]), labels[held])
        except ValueError as error:
            skipped[method] = str(error)
            continue
        scores[method] = float(rows.mean())
    best = min(scores, key=lambda method: scores[method])
    return Comparison(fit_map(best, logits, labels, label), scores, skipped)


def choose_map(
    current: Calibration,
    rows: CalibrationSet,
    fit_rows: CalibrationSet | None,
    *,
    methods: tuple[str, ...] = METHODS,
    seed: int = 0,
    notes: list[str],
) -> tuple[Calibration, CalibrationSet, Comparison | None]:
    """The map to use, the rows left for the thresholds, and how the methods compared.

    Args:
        current: the map at hand; it is kept where no other predicts better.
        rows: labelled rows. From `FEWEST_TO_SPLIT` on one half fits the map, at most about `MOST_FOR_MAP`, unless it
            has rows of its own.
        fit_rows: rows for the map, or None.
        methods: maps that are compared; none of them keeps the one at hand, and every row goes to the thresholds.
        seed: of the halving.
        notes: sentences for the reader are appended here.

    Raises:
        InputError: `fit_rows` carries the other kind of label.
    """
    if fit_rows is not None:
        if fit_rows.label != rows.label:
            raise InputError(
                f"the map's rows carry {fit_rows.label} labels, the thresholds' {rows.label}; use one kind"
            )
        rest = rows
    elif not methods:
        notes.append(f"The bundle's {current.method} map was kept, as no other was asked for.")
        return current, rows, None
    elif len(rows) < FEWEST_TO_SPLIT:
        notes.append(
            f"{len(rows)} rows are too few to fit probabilities and thresholds on different ones; it takes "
            f"{FEWEST_TO_SPLIT}. The bundle's {current.method} map was kept and only the thresholds were fitted."
        )
        return current, rows, None
    else:
        if len(np.unique(rows.groups)) < 2:
            notes.append(f"The bundle's {current.method} map was kept: all rows are of one group, which is not split.")
            return current, rows, None
        first = rows.drawn_groups(min((len(rows) + 1) // 2, MOST_FOR_MAP), seed)
        fit_rows, rest = rows.take(first), rows.take(~first)
    try:
        comparison = compare(
            fit_rows.logits,
            fit_rows.labels,
            sources=fit_rows.sources,
            groups=fit_rows.groups,
            label=rows.label,
            methods=methods,
        )
    except ValueError as error:
        # Nothing was looked at of the rows that it would have been fitted on, so they may fit thresholds.
        notes.append(f"The bundle's {current.method} map was kept: {error}.")
        return current, rows, None
    notes += [f"{method} was left out: {why}." for method, why in comparison.skipped.items()]
    score_now = float(expected_scores(current.apply(fit_rows.logits), fit_rows.labels).mean())
    best = comparison.scores[comparison.calibration.method]
    if current.label == rows.label and current.n and score_now <= best:
        notes.append(f"The bundle's {current.method} map was kept: it predicts these rows as well as a new one.")
        return current, rest, comparison
    return comparison.calibration, rest, comparison


def _log_loss(z: Array, labels: Array) -> float:
    z = z - z.max(axis=1, keepdims=True)
    return float((np.log(np.exp(z).sum(axis=1)) - (labels * z).sum(axis=1)).mean())


def _fit_temperature(logits: NDArray[np.float32], labels: Array) -> dict[str, float]:
    z = logits.astype(np.float64)
    found = scipy.optimize.minimize_scalar(
        lambda log_t: _log_loss(z / np.exp(log_t), labels), bounds=(np.log(0.05), np.log(20)), method="bounded"
    )
    return {"temperature": float(np.exp(found.x))}


def _fit_vector(logits: NDArray[np.float32], labels: Array) -> dict[str, list[float]]:
    z = logits.astype(np.float64)
    start = np.array([1.0] * len(TIERS) + [0.0] * len(TIERS))
    # A weak pull towards changing nothing: a tier with a handful of rows may not run away.
    pull = 1.0 / len(z)

    def loss(parameters: Array) -> tuple[float, Array]:
        moved = z * parameters[: len(TIERS)] + parameters[len(TIERS) :]
        e = np.exp(moved - moved.max(axis=1, keepdims=True))
        error = (e / e.sum(axis=1, keepdims=True) - labels) / len(z)
        gradient = np.concatenate([(error * z).sum(axis=0), error.sum(axis=0)]) + 2 * pull * (parameters - start)
        return _log_loss(moved, labels) + pull * float(((parameters - start) ** 2).sum()), gradient

    found = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B").x
    return {"scale": found[: len(TIERS)].tolist(), "offset": found[len(TIERS) :].tolist()}


def _below(labels: Array, t: int) -> Array:
    """P(label <= t) of each row; raises where all rows lie on one side."""
    below: Array = np.clip(labels[:, : t + 1].sum(axis=1), 0.0, 1.0)
    if not 1.0 <= below.sum() <= len(below) - 1.0:
        side = "above" if below.sum() < 1.0 else "at or below"
        raise ValueError(f"no label lies on both sides of boundary {t}: all are {side} {TIERS[t].label}")
    return below


def _fit_platt(logits: NDArray[np.float32], labels: Array) -> dict[str, list[float]]:
    odds = log_odds(logits).astype(np.float64)
    slopes, intercepts = [], []
    for t in range(_BOUNDARIES):
        below = _below(labels, t)
        slope, intercept = _fit_logistic(odds[:, t], below)
        if slope <= 0:  # the scores say nothing here: the base rate is the best that can be said
            share = float(np.clip(below.mean(), 1e-6, 1 - 1e-6))
            slope, intercept = 0.0, float(np.log(share / (1 - share)))
        slopes.append(slope)
        intercepts.append(intercept)
    return {"slope": slopes, "intercept": intercepts}


def _fit_logistic(x: Array, shares: Array) -> tuple[float, float]:
    """Slope and intercept of log-odds linear in (n,) `x` that explain (n,) `shares` best, the slope pulled to 0 weakly.

    For two numbers scikit-learn's checks of its input take five times as long as the fit, of which a comparison of maps
    has dozens.
    """

    def loss(parameters: Array) -> tuple[float, Array]:
        slope, intercept = parameters
        z = slope * x + intercept
        error = scipy.special.expit(z) - shares
        lost = np.logaddexp(0.0, z).sum() - shares @ z + _PULL * slope**2 / 2
        return lost / len(x), np.array([error @ x + _PULL * slope, error.sum()]) / len(x)

    slope, intercept = scipy.optimize.minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B").x
    return float(slope), float(intercept)


def _fit_isotonic(logits: NDArray[np.float32], labels: Array) -> dict[str, list[list[float]]]:
    from sklearn.isotonic import IsotonicRegression

    odds = log_odds(logits)
    xs, ys = [], []
    for t in range(_BOUNDARIES):
        model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(odds[:, t], _below(labels, t))
        x = np.asarray(model.X_thresholds_, dtype=np.float64)
        # Steps closer than floats tell apart would be one x with two y; the last of them stands.
        kept = np.append(np.diff(x) > 0, [True])
        xs.append(x[kept].tolist())
        ys.append(np.maximum.accumulate(np.clip(model.y_thresholds_, 0.0, 1.0))[kept].tolist())
    return {"x": xs, "y": ys}
