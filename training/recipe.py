"""Recipes, from TOML: how a bundle is built (`base`, `shipped`, `tiny`), and how a round retrains it (`retrain`).

A recipe that cannot be followed is refused before anything is trained. Knows nothing of rows or of models.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from classifier.errors import InputError

RECIPES = Path(__file__).parent / "recipes"
RETRAINING = RECIPES / "retrain.toml"
STEERING_FORMS = "steering_forms"
"""Key: how many forms the head that marks steering learns from (`training.steering_head`); none where it is missing."""
_OF_A_ROUND = ("base_rows_share", "int8_agreement")
"""Keys of a round that are no options of training."""
_OF_A_BUILD = ("max_tokens", "seed", "int8_agreement", "teacher.seeds", "student.layers", "policies.balanced")
"""Keys that a build cannot do without, those of tables with the table's name; and those that it can:"""
_OF_SOME_BUILDS = ("base", STEERING_FORMS, "most_rows")
_TAKEN: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "max_tokens": (lambda n: n >= 16, "16 or more, which hold the signals and some text"),
    "seed": (lambda n: 0 <= n < 2**32, "0 or more, and below 2^32"),
    "int8_agreement": (lambda x: 0 <= x <= 1, "a share of rows, 0 to 1"),
    STEERING_FORMS: (lambda n: n >= 0, "0 (no head) or more"),
    "base_rows_share": (lambda x: 0 <= x < math.inf, "a finite number from 0"),
    "epochs": (lambda n: n >= 1, "1 or more"),
    "batch_size": (lambda n: n >= 1, "1 or more"),
    "learning_rate": (lambda x: 0 < x < math.inf, "a finite number above 0"),
    "layer_decay": (lambda x: 0 < x <= 1, "a number above 0, and at most 1 (all layers alike)"),
    "weight_decay": (lambda x: 0 <= x < math.inf, "a finite number from 0"),
    "warmup": (lambda x: 0 <= x <= 1, "a share of the steps, 0 to 1"),
    "rps_weight": (lambda x: 0 <= x < math.inf, "a finite number from 0"),
    "augment": (lambda x: 0 <= x <= 1, "a share of the rows, 0 to 1"),
    "worst_of": (lambda n: n >= 1, "1 (no search) or more"),
    "source_power": (lambda x: 0 <= x < math.inf, "a finite number from 0"),
    "mixing_coefficient": (lambda x: 0 < x <= 1, "a number above 0, and at most 1 (all of what was trained)"),
    "eta": (lambda x: 0 <= x < 0.5, "a number from 0 to below 0.5"),
    "distill_weight": (lambda x: 0 <= x <= 1, "a number from 0 (labels alone) to 1 (the teacher alone)"),
    "temperature": (lambda x: 0 < x < math.inf, "a finite number above 0"),
    "outcome_weight": (lambda x: x > 0, "a number above 0; to learn nothing from outcomes, leave their rows out"),
}
"""What a number of a recipe may be, by its key: whether a value fits, and how an error says it."""


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How to train.

    Attributes:
        epochs: passes over the data, 1 or more.
        batch_size: rows of one step, on each process, 1 or more.
        learning_rate: peak of the schedule, above 0.
        layer_decay: the rate of each layer is this times the rate of the layer above it, in (0, 1]; what lies deep in
            a pretrained model moves less.
        weight_decay: of AdamW, 0 or more.
        warmup: share of the steps over which the rate rises, in [0, 1].
        rps_weight: weight of the ranked-probability term, 0 or more.
        augment: share of rows changed in a label-preserving way, each epoch anew, in [0, 1].
        worst_of: changed forms that are tried of a short row, 1 or more; the one with the highest loss is learnt from
            (`training.worst_form`).
        each_kind: a step learns from every row three times, as it is, with more around it, and reworded; else once,
            as it is or changed in one way that `augment` draws, frames among them.
        source_power: a source of n rows weighs n^-power a row, within 0.3 to 3 of the mean; 0 leaves all alike.
        frozen_layers: the embeddings and so many of the lowest layers stay as they are; 0 trains all of them.
        mixing_coefficient: share of the weights that training ends with in the result, in (0, 1]; the rest are those
            that it began with, which keep what it forgets (WiSE-FT, arXiv:2109.01903, section 3).
        eta: chance that interval evidence is wrong, in [0, 0.5), where a row does not carry its own.
        distill_weight: share of the loss that follows the teacher, in [0, 1].
        temperature: of distillation, above 0.
        outcome_weight: factor on the weight of OUTCOME rows, above 0: a step of rows without weight has no mean.
        seed: of everything random.

    Raises:
        InputError: a value is not among those that its key takes.
    """

    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 5e-5
    layer_decay: float = 1.0
    weight_decay: float = 0.01
    warmup: float = 0.06
    rps_weight: float = 0.5
    augment: float = 0.3
    worst_of: int = 1
    each_kind: bool = False
    source_power: float = 0.3
    frozen_layers: int = 0
    mixing_coefficient: float = 1.0
    eta: float = 0.1
    distill_weight: float = 0.0
    temperature: float = 1.0
    outcome_weight: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        _check_numbers({option.name: getattr(self, option.name) for option in fields(self)}, "recipe")


_KINDS: Mapping[str, type] = {
    **{option.name: type(option.default) for option in fields(FitOptions)},
    **dict.fromkeys(("max_tokens", STEERING_FORMS, "layers", "lora_r", "lora_alpha"), int),
    **dict.fromkeys(("int8_agreement", "base_rows_share"), float),
    **dict.fromkeys(("teacher", "student", "policies", "most_rows"), dict),
    "base": str,
    "seeds": list,
}
_OF_ALL = {"policies": float, "most_rows": int}
"""Tables whose keys are the user's own: the kind of every value."""
_EXPECTED = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a name",
    list: "a list of whole numbers",
    dict: "a table",
}


def load_recipe(name: str, **overrides: Any) -> dict[str, Any]:
    """A recipe of a build by name or path, with overrides that are not None, also within its tables.

    Raises:
        InputError: there is no such recipe, it is not TOML, neither it nor the overrides name a base, it lacks a key or
            has one that is none, or a value is of another kind or not among those that its key takes.
    """
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml") if p != RETRAINING))
        raise InputError(f"--recipe {name}: no such recipe; there are {names}, or give a .toml file")
    recipe = _read(path)
    known = [*dict.fromkeys(key.partition(".")[0] for key in _OF_A_BUILD), *_OF_SOME_BUILDS]
    if unknown := sorted(set(recipe) - set(known)):
        raise InputError(f"--recipe {name} has the unknown key {unknown[0]!r}; there are {', '.join(known)}")
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            recipe[key] = {**recipe.get(key, {}), **{k: v for k, v in value.items() if v is not None}}
        elif value is not None:
            recipe[key] = value
    if "base" not in recipe:
        raise InputError(f"recipe {path.stem} names no base to start from: give --base, the folder of a bundle")
    for key in _OF_A_BUILD:
        table, _, inner = key.rpartition(".")
        if inner not in (recipe.get(table, {}) if table else recipe):
            raise InputError(f"--recipe {name} lacks the key {key}; begin with a copy of training/recipes/base.toml")
    _check_numbers(recipe, f"--recipe {name}")
    for offset in recipe["teacher"]["seeds"]:
        _check_numbers({"seed": recipe["seed"] + offset}, f"--recipe {name}: teacher {offset}")
    for policy, alpha in recipe["policies"].items():
        if not 0 < alpha < 1:
            raise InputError(f"--recipe {name}: policy {policy} is {alpha:g}, expected a share of requests, as in 0.10")
    return {"name": path.stem, **recipe}


def load_retraining(path: Path) -> dict[str, Any]:
    """How a round trains: `base_rows_share`, `int8_agreement`, `steering_forms`, and options of `training.fit`.

    Raises:
        InputError: it cannot be read, lacks a key, has one that is none, or a value is of another kind or not among
            those that its key takes.
    """
    recipe = _read(path)
    training_of_a_round(recipe, seed=0, where=f"--recipe {path}")
    if missing := [name for name in _OF_A_ROUND if name not in recipe]:
        raise InputError(f"--recipe {path} lacks the key {missing[0]!r}; see training/recipes/retrain.toml")
    _check_numbers(recipe, f"--recipe {path}")
    return recipe


def training_of_a_round(recipe: Mapping[str, Any], *, seed: int, where: str = "recipe") -> FitOptions:
    """The options of training in a recipe of a round; the seed is the bundle's.

    Raises:
        InputError: a key is no option.
    """
    return fit_options(recipe, where, beside=(*_OF_A_ROUND, STEERING_FORMS), seed=seed)


def fit_options(values: Mapping[str, Any], where: str, *, beside: Sequence[str] = (), **more: Any) -> FitOptions:
    """Keys of a recipe as options of training.

    Args:
        values: the keys.
        where: what an error names.
        beside: further keys that may be there.
        more: options that are no keys here.

    Raises:
        InputError: a key is neither.
    """
    known = [*beside, *(name for name in FitOptions.__dataclass_fields__ if name not in more)]
    if unknown := sorted(set(values) - set(known)):
        raise InputError(f"{where} has the unknown key {unknown[0]!r}; there are {', '.join(known)}")
    return FitOptions(**{key: value for key, value in values.items() if key not in beside}, **more)


def _read(path: Path) -> dict[str, Any]:
    """The recipe in a file; what its keys mean together is the caller's.

    Raises:
        InputError: it cannot be read, or a value is of another kind than its key's.
    """
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read as TOML ({error}); compare it with those in training/recipes"
        ) from None
    _check_kinds(recipe, _KINDS, f"--recipe {path}")
    return recipe


def _check_numbers(values: Mapping[str, Any], where: str) -> None:
    """Raises InputError for the first value that its key does not take."""
    for key, value in values.items():
        fits, expected = _TAKEN.get(key, (None, ""))
        if fits is not None and not fits(value):
            raise InputError(f"{where}: {key} is {value:g}, expected {expected}")


def _check_kinds(values: Mapping[str, Any], kinds: Mapping[str, type], where: str) -> None:
    """Raises InputError for the first value that is not of its key's kind; unknown keys are passed over."""
    for key, value in values.items():
        kind = kinds.get(key)
        if kind is None:
            continue
        fits = type(value) is kind or (kind is float and type(value) is int)
        if not fits or (kind is list and any(type(number) is not int for number in value)):
            raise InputError(f"{where}: {key} is {value!r}, expected {_EXPECTED[kind]}")
        if kind is dict:
            _check_kinds(value, dict.fromkeys(value, _OF_ALL[key]) if key in _OF_ALL else _KINDS, f"{where}: {key}")
