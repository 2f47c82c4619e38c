"""Telling our prompts from traffic."""

from __future__ import annotations

import random

import pytest

from training.corpus import parse_row
from training.realism import realism


def _rows(source, sentences):
    return [parse_row({"id": f"{source}{i}", "prompt": s, "tier": "simple"}, source) for i, s in enumerate(sentences)]


def test_two_voices_are_told_apart_and_one_is_not():
    """Rows of another voice are recognised, by words that are its own; rows of the same voice are not."""
    pytest.importorskip("sklearn")
    things = [f"{noun} number {i}" for i in range(30) for noun in ("invoice", "garden", "train", "letter")]
    polite = _rows("a", [f"could you please describe the {thing} for me" for thing in things])
    terse = _rows("b", [f"{thing} pls asap no fluff" for thing in things])
    found = realism(terse, polite)
    assert found["auroc"] > 0.99
    assert "pls" in found["tells_ours"]
    assert "please" in found["tells_theirs"]
    assert set(found["auroc_by_source"]) == {"b"}
    random.Random(0).shuffle(polite)
    same = realism(polite[:60], polite[60:])
    assert 0.2 < same["auroc"] < 0.8
