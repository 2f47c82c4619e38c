"""The option `--bundle` of the commands that read a bundle themselves, without a server, and what a name means."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click


def bundle_option(function: Callable[..., None]) -> Callable[..., None]:
    """Gives a command `--bundle`, which means what it means to `classifier serve`; left out it is the shipped one."""
    return click.option(
        "--bundle",
        metavar="PATH|NAME",
        envvar="CLASSIFIER_BUNDLE",
        help="Bundle folder (./NAME), or a name in the registry. [CLASSIFIER_BUNDLE] Default: the shipped one.",
    )(function)


def bundle_folder(name: str | None, registry: str = "") -> Path:
    """The folder that a name means, which may hold no bundle; names are looked up there, or else where `serve` does.

    Raises:
        BundleError: it is a name, and the registry has none such or cannot be read.
        SettingsError: the registry's URL or the file of settings cannot be used.
    """
    from classifier.bundle import SHIPPED, is_folder

    if not name:
        return SHIPPED
    if is_folder(name):
        return Path(name)
    from classifier.registry import Registry
    from classifier.settings import registry_url

    return Registry(registry or registry_url()).fetch(name)
