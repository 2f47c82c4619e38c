"""Rounds of learning on one simulated stream: what a naive loop does, and what ours does instead."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.feedback_rounds import TRUE, draw, evidence_of, export_rows, fit, probabilities, run
from training.feedback_set import build

SILENT = ("outcome_id", "verdict", "cause", "source", "served_tier", "accepted_tier")


def test_a_naive_loop_sends_ever_more_to_the_top():
    """Where every escalation is a label, the cheap share falls in each round, and ours stays near full knowledge."""
    naive, ours, full = ([s[:2].sum() for s in run(loop, rounds=3, n=1000)] for loop in ("naive", "ours", "full"))
    assert np.all(np.diff(naive) < 0)
    assert naive[-1] < 0.2
    assert abs(ours[-1] - full[-1]) < 0.15


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(3))
def test_five_rounds_end_within_a_twentieth_of_full_knowledge(seed: int):
    """After 5 rounds of 3,000 our share of simple and standard is within .05 of the policy that knows every label."""
    naive, ours, full = ([s[:2].sum() for s in run(loop, seed=seed)] for loop in ("naive", "ours", "full"))
    assert np.all(np.diff(naive) < 0)
    assert abs(ours[-1] - full[-1]) <= 0.05


def test_outages_teach_nothing():
    """A stream with 20 % outages leaves exactly the evidence of the same stream with silence in their place."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 2))
    p = probabilities(TRUE, x)
    none = np.zeros(1000, dtype=bool)
    rows = export_rows(x, draw(p, rng), draw(p, rng), p, rng, outages=0.2, audited=none, name="r", when=1e6)
    quiet = [row | dict.fromkeys(SILENT) if row["cause"] == "availability" else row for row in rows]
    one, other = build(rows), build(quiet)
    assert one.counts["not_quality"] > 150
    assert one.rows == other.rows
    assert one.closed == other.closed
    assert np.array_equal(evidence_of(one.rows).eta, evidence_of(other.rows).eta)


def test_outages_move_what_is_learnt_no_more_than_chance():
    """With 20 % outages the fitted model differs by sampling noise from one without; read as failures they bias it."""
    grid = np.random.default_rng(9).normal(size=(500, 2))
    start = np.array([1.0, 1.0, 0.0, 0.0, 0.0])

    def learnt(seed: int, outages: float, *, believed: bool = False) -> float:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(1000, 2))
        p, none = probabilities(TRUE, x), np.zeros(1000, dtype=bool)
        rows = export_rows(x, draw(p, rng), draw(p, rng), p, rng, outages=outages, audited=none, name="r", when=1e6)
        if believed:
            rows = [row | {"cause": "quality"} if row["cause"] == "availability" else row for row in rows]
        return float(probabilities(fit(evidence_of(build(rows).rows), start), grid)[:, :2].sum(axis=1).mean())

    seeds = range(6)
    without = np.array([learnt(seed, 0.0) for seed in seeds])
    outages = np.array([learnt(seed, 0.2) for seed in seeds])
    believed = np.array([learnt(seed, 0.2, believed=True) for seed in seeds])
    noise = without.std(ddof=1)
    assert abs((outages - without).mean()) < 2 * noise * np.sqrt(2 / len(seeds))
    assert (without - believed).mean() > 2 * noise
