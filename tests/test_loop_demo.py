"""The loop demo's world: small files, and rounds that had nothing to gain."""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path

import pytest

from classifier.errors import InputError
from classifier.types import Request

pytestmark = pytest.mark.training
FOLDER = Path(__file__).parents[1] / "docs" / "examples" / "loop"


@pytest.fixture
def loaded(monkeypatch):
    """Imports a module of the demo, which finds its neighbours as a script does."""
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


def traffic(environment, *, fresh: int, known: int):
    """The traffic of 60 requests over so many prompts, of two topics."""
    tasks = [
        environment.Task(
            Request.from_text(f"prompt {i}"),
            (0.2, 0.5, 0.9, 1.0),
            "ab"[i % 2],
            str(i),
            hashlib.sha256(f"prompt {i}".encode()).hexdigest(),
        )
        for i in range(fresh + known)
    ]
    old = {task.sha256 for task in tasks[fresh:]}
    return environment.make_traffic(
        environment.World(tuple(tasks), "made up"), 60, 20,
        seen=lambda task: task.sha256 in old, scores=lambda _: [0.25] * 4, first=10, later=10, seed=0,
    )  # fmt: skip


@pytest.mark.parametrize("known", [0, 3])
def test_fewer_prompts_than_requests_come_again(loaded, known):
    """A file whose prompts are all asked before the shift is asked again after it."""
    assert len(traffic(loaded("environment"), fresh=40, known=known).stream) == 60


@pytest.mark.parametrize("fresh", [0, 1])
def test_a_file_that_is_too_small_is_refused(loaded, fresh):
    """Where nothing is left to calibrate, judge or measure on, one line says what to give."""
    with pytest.raises(InputError, match=f"{fresh} of {fresh + 5} prompts are new to the bundle, too few .* give more"):
        traffic(loaded("environment"), fresh=fresh, known=5)


def test_where_no_excess_was_none_fell(loaded):
    """A round that began at the oracle's cost is told like any other."""
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    demo, measure = loaded("demo"), loaded("measure")
    at_best, above = (measure.Measured(0.1, cost, 2.0, (0.25,) * 4, 0.0) for cost in (2.0, 3.0))
    assert demo.Went({demo.SHIFTED: at_best, demo.AFTER: above}, at_best, "promote").less == 0
    assert demo.Went({demo.SHIFTED: above, demo.AFTER: at_best}, above, "promote").less == 1
