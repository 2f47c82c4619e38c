"""Logits and fitted parameters to probabilities. Apply only: the fitting lives in training, with its libraries.

Knows nothing of text, files or policies. The arithmetic is float64 inside and the same operation by operation for one
row and for many, so that a row gets the same probabilities online, in bulk and when a threshold is fitted.

Five methods, one formula each; `z` are the logits, `C_t` = P(label <= t) under softmax(z),
`x_t` = log(C_t / (1 - C_t)):

    identity              p = softmax(z)
    temperature           p = softmax(z / T)                         Guo et al. 2017, arXiv:1706.04599
    vector                p = softmax(scale * z + offset)            the same paper, section 4.2
    cumulative_platt      C'_t = sigmoid(slope_t * x_t + intercept_t), slope_t >= 0
    cumulative_isotonic   C'_t = non-decreasing piecewise linear in x_t

The last two calibrate each boundary by itself; where the results cross they are made monotone in t by the mean of the
running maximum from the left and the running minimum from the right.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from classifier.errors import BundleCorrupt
from classifier.types import LABEL_KINDS, TIERS

SCHEMA_VERSION = 1
_TIERS = len(TIERS)
_BOUNDARIES = _TIERS - 1
# exp() underflows beyond a gap of 745 between logits; the log-odds of a boundary stay finite with this floor.
_SMALLEST = 1e-300

Array = NDArray[np.float64]


def _softmax(z: Array) -> Array:
    # accumulate() is sequential by definition, so a row's sum does not depend on the shape that it came in.
    e = np.exp(z - np.maximum.reduce(z, axis=-1, keepdims=True))
    probabilities: Array = e / np.add.accumulate(e, axis=-1)[..., -1:]
    return probabilities


def log_odds(logits: ArrayLike) -> Array:
    """Log-odds of each boundary, log(P(label <= t) / P(label > t)) under softmax.

    Args:
        logits: (n, 4) or (4,), any float type.

    Returns:
        (n, 3) or (3,) float64, non-decreasing along the last axis, finite wherever the logits are.
    """
    z = np.array(logits, dtype=np.float64, order="C")
    e = np.maximum(np.exp(z - np.maximum.reduce(z, axis=-1, keepdims=True)), _SMALLEST)
    left = np.add.accumulate(e, axis=-1)[..., :-1]
    right = np.add.accumulate(e[..., ::-1], axis=-1)[..., -2::-1]
    odds: Array = np.log(left) - np.log(right)
    return odds


def _from_cumulative(cumulative: Array) -> Array:
    monotone = np.maximum.accumulate(cumulative, axis=-1)
    monotone += np.minimum.accumulate(cumulative[..., ::-1], axis=-1)[..., ::-1]
    probabilities = np.empty((*cumulative.shape[:-1], _TIERS))
    probabilities[..., :-1] = monotone
    probabilities[..., :-1] *= 0.5
    probabilities[..., -1] = 1.0
    probabilities[..., 1:] -= probabilities[..., :-1].copy()
    return probabilities


def _identity(logits: Array, _: Mapping[str, Any]) -> Array:
    return _softmax(logits)


def _temperature(logits: Array, parameters: Mapping[str, Any]) -> Array:
    return _softmax(logits / parameters["temperature"])


def _vector(logits: Array, parameters: Mapping[str, Any]) -> Array:
    return _softmax(logits * parameters["scale"] + parameters["offset"])


def _cumulative_platt(logits: Array, parameters: Mapping[str, Any]) -> Array:
    u = log_odds(logits) * parameters["slope"] + parameters["intercept"]
    # sigmoid(u) without overflow for any u.
    return _from_cumulative(0.5 + 0.5 * np.tanh(0.5 * u))


def _cumulative_isotonic(logits: Array, parameters: Mapping[str, Any]) -> Array:
    odds = log_odds(logits)
    for t in range(_BOUNDARIES):
        odds[..., t] = np.interp(odds[..., t], parameters["x"][t], parameters["y"][t])
    return _from_cumulative(odds)


_APPLY: Mapping[str, Callable[[Array, Mapping[str, Any]], Array]] = {
    "identity": _identity,
    "temperature": _temperature,
    "vector": _vector,
    "cumulative_platt": _cumulative_platt,
    "cumulative_isotonic": _cumulative_isotonic,
}
METHODS = tuple(_APPLY)


def _number(parameters: Mapping[str, Any], name: str) -> Array:
    try:
        value = np.asarray(parameters[name], dtype=np.float64)
    except KeyError:
        raise ValueError(f"parameter {name!r} is missing") from None
    except (TypeError, ValueError):
        raise ValueError(f"parameter {name!r} is not made of numbers") from None
    if not np.isfinite(value).all():
        raise ValueError(f"parameter {name!r} has values that are not finite")
    return value


def _vector_of(parameters: Mapping[str, Any], name: str, length: int) -> Array:
    value = _number(parameters, name)
    if value.shape != (length,):
        raise ValueError(f"parameter {name!r} has shape {value.shape}, expected ({length},)")
    return value


def _curve(parameters: Mapping[str, Any], t: int) -> tuple[Array, Array]:
    curves = []
    for name in ("x", "y"):
        rows = parameters.get(name)
        if not isinstance(rows, list | tuple) or len(rows) != _BOUNDARIES:
            raise ValueError(f"parameter {name!r} is not a list of {_BOUNDARIES} curves, one a boundary")
        curves.append(_number({f"{name}[{t}]": rows[t]}, f"{name}[{t}]"))
    x, y = curves
    if x.ndim != 1 or x.shape != y.shape or not x.size:
        raise ValueError(f"the curve of boundary {t} has shapes {x.shape} and {y.shape}, expected two equal lengths")
    if (np.diff(x) <= 0).any() or (np.diff(y) < 0).any() or y[0] < 0 or y[-1] > 1:
        raise ValueError(f"the curve of boundary {t} is not increasing from 0 to 1")
    return x, y


def _checked(method: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """`parameters` as arrays, ready to apply. Raises ValueError naming what is wrong."""
    if method == "identity":
        return {}
    if method == "temperature":
        temperature = float(_vector_of({"temperature": [parameters.get("temperature")]}, "temperature", 1)[0])
        if temperature <= 0:
            raise ValueError(f"temperature is {temperature}, expected above 0")
        return {"temperature": temperature}
    if method == "vector":
        return {name: _vector_of(parameters, name, _TIERS) for name in ("scale", "offset")}
    if method == "cumulative_platt":
        slope, intercept = (_vector_of(parameters, name, _BOUNDARIES) for name in ("slope", "intercept"))
        if (slope < 0).any():
            raise ValueError("a slope is negative: a larger cumulative score would mean a smaller probability")
        return {"slope": slope, "intercept": intercept}
    if method == "cumulative_isotonic":
        curves = [_curve(parameters, t) for t in range(_BOUNDARIES)]
        return {"x": tuple(x for x, _ in curves), "y": tuple(y for _, y in curves)}
    raise ValueError(f"unknown method {method!r}, expected one of {', '.join(METHODS)}")


@dataclass(frozen=True, slots=True)
class Calibration:
    """A fitted map from logits to probabilities.

    Attributes:
        method: one of `METHODS`.
        label: what the fitted probabilities are about, "RUBRIC" or "OUTCOME".
        n: rows that it was fitted on; 0 for a map that was not fitted.
        parameters: the method's parameters, plain numbers and lists, as in calibration.json.
        revision: content hash, 12 hexadecimal characters: the same parameters have the same revision anywhere.

    Raises:
        ValueError: the parameters do not fit the method.

    >>> hot = Calibration("temperature", parameters={"temperature": 2.0})
    >>> [round(float(p), 2) for p in hot.apply([0.0, 2.0, 0.0, -2.0])]
    [0.2, 0.53, 0.2, 0.07]
    """

    method: str = "identity"
    label: str = "RUBRIC"
    n: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)
    revision: str = field(init=False, compare=False)
    _arrays: Mapping[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.label not in LABEL_KINDS:
            raise ValueError(f"label is {self.label!r}, expected one of {', '.join(LABEL_KINDS)}")
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 0:
            raise ValueError(f"n is {self.n!r}, expected a count of rows")
        object.__setattr__(self, "_arrays", _checked(self.method, self.parameters))
        text = json.dumps(self._content(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        object.__setattr__(self, "revision", hashlib.sha256(text.encode()).hexdigest()[:12])

    def apply(self, logits: ArrayLike) -> NDArray[np.float32]:
        """Calibrated probabilities.

        Args:
            logits: (n, 4) or (4,) float32. NaN goes in and comes out.

        Returns:
            The same shape, float32, in [0, 1], rows sum to 1 within 2e-7, column 0 is the cheapest tier. A row's
            values do not depend on the rows beside it.
        """
        z = np.array(logits, dtype=np.float64, order="C")
        return _APPLY[self.method](z, self._arrays).astype(np.float32)

    def _content(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "method": self.method,
            "label": self.label,
            "n": self.n,
            "parameters": dict(self.parameters),
        }

    def to_json(self) -> dict[str, Any]:
        """What calibration.json holds."""
        return {**self._content(), "revision": self.revision}

    @classmethod
    def from_json(cls, data: Any) -> Calibration:
        """The calibration that `data` (calibration.json, parsed) describes.

        Raises:
            BundleCorrupt: another schema, parameters that do not fit the method, or a revision that is not the
                content's.
        """
        if not isinstance(data, dict):
            raise BundleCorrupt(f"calibration.json holds a {type(data).__name__}, expected an object; re-export")
        if data.get("schema_version") != SCHEMA_VERSION:
            raise BundleCorrupt(
                f"calibration.json has schema version {data.get('schema_version')!r}, this package reads "
                f"{SCHEMA_VERSION}; use the package version that wrote the bundle, or re-export"
            )
        try:
            calibration = cls(data["method"], data["label"], data["n"], data["parameters"])
        except KeyError as error:
            raise BundleCorrupt(f"calibration.json has no {error.args[0]!r}; re-export") from error
        except (TypeError, ValueError, AttributeError) as error:
            raise BundleCorrupt(f"calibration.json: {error}; re-export or recalibrate") from error
        if data.get("revision") != calibration.revision:
            raise BundleCorrupt(
                f"calibration.json says revision {data.get('revision')!r}, its content is "
                f"{calibration.revision!r}; it was edited by hand: run 'python -m training calibrate' instead"
            )
        return calibration


IDENTITY = Calibration()
