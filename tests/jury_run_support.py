"""`python -m training jury` in this process, a log for it, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("httpx")

from click.testing import CliRunner

from training.__main__ import main

ROOT = Path(__file__).parent.parent
TEXTS = ["hello you", "write a letter", "debug this", "prove the conjecture", "hello again", "write a poem"]


def six_prompts(path: Path) -> Path:
    """Writes a log of six prompts, one of which comes twice, and a bad line."""
    lines = [*(json.dumps({"prompt": text}) for text in TEXTS), json.dumps({"prompt": "hello  you"}), "{"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def run(*arguments: object, url: str = "http://127.0.0.1:9/v1", model: str = "m"):
    """`python -m training jury`."""
    given = ["jury", *map(str, arguments), "--base-url", url]
    return CliRunner().invoke(main, given if "--model" in given else [*given, "--model", model])


def lines_of(path: Path) -> list[dict]:
    """The lines of a corpus file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
