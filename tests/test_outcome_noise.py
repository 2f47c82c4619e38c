"""How often outcomes are wrong and how often they come in, held against the likelihood that they are the mode of."""

from __future__ import annotations

import numpy as np
import pytest
import scipy
from numpy.typing import NDArray

from training.outcome_noise import LIMITS, PRIORS, REPORTING_STRENGTH, STRENGTH, error_rates, reporting_chances

SOURCES = ("automatic", "user", "reviewer")


def verdicts(rng: np.random.Generator) -> tuple[NDArray[np.int64], ...]:
    """Items of two tiers, a hard one and an easy one, and what three sources say of each: (m,) each."""
    tier_of = rng.integers(0, 2, 300)
    good = rng.random(300) < np.where(tier_of == 0, 0.35, 0.85)
    item, source = np.repeat(np.arange(300), 3), np.tile(np.arange(3), 300)
    passes_bad, fails_good = np.array([0.25, 0.1, 0.04]), np.array([0.1, 0.2, 0.06])
    said = np.where(good[item], rng.random(900) >= fails_good[source], rng.random(900) < passes_bad[source])
    return item, tier_of[item], source, said


def penalised_likelihood(rates: NDArray[np.float64], *told: NDArray[np.int64]) -> float:
    """Logarithm, with the priors of sources and each tier's rate at its best: what the rates are the mode of."""
    item, tier, source, said = told
    if_good, if_bad = (
        np.where(said, 1 - rates[source, 1], rates[source, 1]),
        np.where(said, rates[source, 0], 1 - rates[source, 0]),
    )
    good, bad = (np.exp(np.bincount(item, weights=np.log(one))) for one in (if_good, if_bad))
    _, first = np.unique(item, return_index=True)
    total = 0.0
    for t in (0, 1):
        mine = tier[first] == t

        def lost(share: float, mine: NDArray[np.bool_] = mine) -> float:
            return -float(
                np.log(share * good[mine] + (1 - share) * bad[mine]).sum() + np.log(share) + np.log(1 - share)
            )

        total -= scipy.optimize.minimize_scalar(
            lost, bounds=(1e-6, 1 - 1e-6), method="bounded", options={"xatol": 1e-10}
        ).fun
    prior = np.array([PRIORS[name] for name in SOURCES])
    return total + float(STRENGTH * (prior * np.log(rates) + (1 - prior) * np.log(1 - rates)).sum())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_error_rates_are_the_most_probable_ones(seed: int):
    """No source's rate can be moved and what was said become more probable, the priors counted."""
    told = verdicts(np.random.default_rng(seed))
    item, tier, source, said = told
    found = error_rates(item, tier, np.array(SOURCES)[source], said)
    rates = np.array([found[name] for name in SOURCES])
    best = penalised_likelihood(rates, *told)
    assert ((rates > LIMITS[0]) & (rates < LIMITS[1])).all()
    for place in np.ndindex(rates.shape):
        for step in (-0.003, 0.003):
            moved = rates.copy()
            moved[place] += step
            assert penalised_likelihood(moved, *told) < best


def test_what_was_judged_once_says_nothing_of_who_errs():
    """Verdicts that nobody repeats, however many and however they are spread over tiers, leave the rates alone."""
    item, tier, source, said = verdicts(np.random.default_rng(0))
    names = np.array(SOURCES)[source]
    alone = error_rates(item, tier, names, said)
    once = np.arange(1000, 1400)
    beside = error_rates(
        np.append(item, once), np.append(tier, once % 2), np.append(names, ["user"] * 400), np.append(said, once > 1100)
    )
    assert beside == alone
    assert error_rates(once, once % 2, ["user"] * 400, once > 1100) == dict(PRIORS)
    assert error_rates([], [], [], []) == dict(PRIORS)


def test_a_report_is_as_likely_as_in_its_cell_drawn_to_what_is_usual():
    """A cell of n decisions has its own share, and n counts beside the strength of the share overall."""
    cells, reported = ["a"] * 10 + ["b"] * 70, [True] * 8 + [False] * 2 + [True] * 12 + [False] * 58
    chances = reporting_chances(cells, reported)
    strength = REPORTING_STRENGTH * 0.25
    assert chances[:10] == pytest.approx((8 + strength) / (10 + REPORTING_STRENGTH))
    assert chances[10:] == pytest.approx((12 + strength) / (70 + REPORTING_STRENGTH))
    assert reporting_chances(["a", "b"], [False, False]).tolist() == [0, 0]
    assert len(reporting_chances([], [])) == 0
