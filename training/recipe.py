"""Recipes, from TOML: how a bundle is built (`base`, `shipped`, `tiny`), and how a round retrains it (`retrain`).

A recipe that cannot be followed is refused before anything is trained. Knows nothing of rows or of models.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from classifier.errors import InputError

if TYPE_CHECKING:
    from training.fit import FitOptions

RECIPES = Path(__file__).parent / "recipes"
RETRAINING = RECIPES / "retrain.toml"
_OF_A_ROUND = ("base_rows_share", "int8_agreement")
"""Keys of a round that are no options of training."""


def load_recipe(name: str, **overrides: Any) -> dict[str, Any]:
    """A recipe of a build by name or path, with overrides that are not None, also within its tables.

    Raises:
        InputError: there is no such recipe, or it is not TOML.
    """
    path = Path(name) if name.endswith(".toml") else RECIPES / f"{name}.toml"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml") if p != RETRAINING))
        raise InputError(f"--recipe {name}: no such recipe; there are {names}, or give a .toml file")
    recipe = {"name": path.stem, **_read(path)}
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            recipe[key] = {**recipe.get(key, {}), **{k: v for k, v in value.items() if v is not None}}
        elif value is not None:
            recipe[key] = value
    return recipe


def load_retraining(path: Path) -> dict[str, Any]:
    """How a round trains: `base_rows_share`, `int8_agreement`, and options of `training.fit`.

    Raises:
        InputError: it cannot be read, lacks a key, or has one that is none.
    """
    recipe = _read(path)
    training_of_a_round(recipe, seed=0, where=f"--recipe {path}")
    if missing := [name for name in _OF_A_ROUND if name not in recipe]:
        raise InputError(f"--recipe {path} lacks the key {missing[0]!r}; see training/recipes/retrain.toml")
    return recipe


def training_of_a_round(recipe: Mapping[str, Any], *, seed: int, where: str = "recipe") -> FitOptions:
    """The options of training in a recipe of a round; the seed is the bundle's.

    Raises:
        InputError: a key is no option.
    """
    return fit_options(recipe, where, beside=_OF_A_ROUND, seed=seed)


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
    from training.fit import FitOptions

    known = [*beside, *(name for name in FitOptions.__dataclass_fields__ if name not in more)]
    if unknown := sorted(set(values) - set(known)):
        raise InputError(f"{where} has the unknown key {unknown[0]!r}; there are {', '.join(known)}")
    return FitOptions(**{key: value for key, value in values.items() if key not in beside}, **more)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read as TOML ({error}); compare it with those in training/recipes"
        ) from None
