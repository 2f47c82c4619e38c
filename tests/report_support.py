"""`classifier report` in this process, and prices for it."""

from __future__ import annotations

import json

from click.testing import CliRunner

from classifier import cli

PRICES = """
[tiers]
simple = 1
standard = 2
complex = 10
frontier = 100
[models]
big = { input = 10, output = 10, tier = "complex" }
"""


def run(*arguments: str):
    """Runs the command in this process."""
    return CliRunner().invoke(cli.command, ["report", *map(str, arguments)], catch_exceptions=False)


def numbers(*arguments: str):
    """The report as a machine reads it."""
    return json.loads(run(*arguments, "--json").stdout)
