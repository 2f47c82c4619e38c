"""The option `--json` of the commands that answer with one object, and the answer, for machines or for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def answer(facts: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """Prints the facts where `--json` was given, else the text, which may be none."""
    if as_json or text:
        click.echo(json.dumps(facts) if as_json else text)
