"""The promise itself, on synthetic populations of which the truth is known.

Each population is so large that its risk at every threshold is known to about 0.001; calibration sets are drawn from it
with replacement, thresholds fitted, and the true risk looked up. The short version draws 150 sets, the long one 1,000.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from classifier.calibration import IDENTITY
from classifier.policy import choose_many
from tests.calibration_support import population
from training.calibration_fit import choose_map
from training.calibration_set import CalibrationSet
from training.label_shift import shift_weights
from training.policy_fit import Targets, fit_policies
from training.risk_control import fit_threshold, fit_top_tier
from training.step_losses import StepLosses, routing_losses, soft

TRUTH = 100_000
SEVERE = (0.4, 0.8, 1.0)
POPULATIONS = {
    "calibrated": {},
    "over-confident": {"sharpness": 3.0},
    "under-confident": {"sharpness": 0.3},
    "skewed to simple": {"prior": (4.0, 0.5, 0.2, 0.05)},
    "skewed to frontier": {"prior": (0.2, 0.2, 0.5, 2.0)},
    "ties": {"decimals": 0},
}
SIZES = (50, 200, 2000)
SHORT, LONG = 150, 1000
ALPHA = 0.1
FOR_PIPELINES = 20_000
"""Rows of a population where every draw has a probability map of its own, which is applied to all of them."""
MAPS = ("identity", "temperature", "cumulative_platt")


@cache
def truth(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (TRUTH, 4) and labels (TRUTH,) of a population."""
    rows = population(TRUTH, 7, **POPULATIONS[name])
    return IDENTITY.apply(rows.logits), rows.labels.argmax(axis=1)


def realised(
    name: str, n: int, draws: int, *, delta: float = 0.0, severity: tuple[float, ...] = (1.0, 1.0, 1.0), seed: int = 0
) -> np.ndarray:
    """True risk of the threshold fitted on each of `draws` calibration sets of `n` rows: (draws,) float64."""
    p, y = truth(name)
    everything = routing_losses(p, y, severity=severity)
    rng = np.random.default_rng(seed)
    thresholds = np.empty(draws)
    for i in range(draws):
        rows = rng.integers(0, TRUTH, n)
        losses = StepLosses(everything.scores[rows], everything.steps[rows])
        thresholds[i] = fit_threshold(losses, ALPHA, delta=delta).threshold
    return everything.total(thresholds) / TRUTH


def assert_mean_keeps(risks: np.ndarray, alpha: float = ALPHA) -> None:
    """The mean is at most alpha, give or take three standard errors of these draws."""
    assert risks.mean() <= alpha + 3 * risks.std() / np.sqrt(len(risks))


def assert_exceedance_keeps(risks: np.ndarray, delta: float, alpha: float = ALPHA) -> None:
    """Alpha is exceeded in at most delta of the draws, give or take three standard errors."""
    assert (risks > alpha).mean() <= delta + 3 * np.sqrt(delta * (1 - delta) / len(risks))


CASES = [(name, n) for name in POPULATIONS for n in SIZES]
FEW = [("calibrated", 200), ("over-confident", 50), ("skewed to frontier", 200), ("ties", 50)]


@pytest.mark.parametrize(("name", "n"), FEW)
def test_mean_risk_keeps_alpha(name: str, n: int):
    """Conformal thresholds have a mean true risk of at most alpha, however wrong the model."""
    assert_mean_keeps(realised(name, n, SHORT))


@pytest.mark.parametrize(("name", "n"), FEW)
def test_exceedance_keeps_delta(name: str, n: int):
    """Thresholds with confidence exceed alpha in at most delta of the calibration sets."""
    assert_exceedance_keeps(realised(name, n, SHORT, delta=0.1), 0.1)


def test_the_promise_is_used_up():
    """The promise is not kept by being timid: at 2,000 rows the mean risk is just below alpha."""
    assert realised("calibrated", 2000, 60).mean() > 0.9 * ALPHA


def test_a_threshold_without_the_correction_breaks_the_promise():
    """Taking the empirical risk for the true one exceeds alpha at 50 rows, and this suite would see it."""
    p, y = truth("calibrated")
    everything, rng = routing_losses(p, y), np.random.default_rng(0)
    naive = []
    for _ in range(400):
        rows = rng.integers(0, TRUTH, 50)
        losses = StepLosses(everything.scores[rows], everything.steps[rows])
        naive.append(losses.smallest_threshold(ALPHA * 50))
    risks = everything.total(np.array(naive)) / TRUTH
    assert risks.mean() > ALPHA + 3 * risks.std() / np.sqrt(len(risks))


def test_the_promise_does_not_survive_other_traffic():
    """Thresholds of traffic on which the model is too modest break alpha where it is too sure of itself."""
    p, y = truth("under-confident")
    threshold = fit_threshold(routing_losses(p[:2000], y[:2000]), ALPHA).threshold
    assert routing_losses(*truth("over-confident")).risk(threshold) > 1.5 * ALPHA


GROUPS = ("over-confident", "under-confident")


def grouped(draws: int, n: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """True risk in each group of thresholds fitted on `n` of its rows, and of one fitted on all groups together."""
    rng = np.random.default_rng(5)
    everything = {g: routing_losses(*truth(g)) for g in GROUPS}
    own: dict[str, list[float]] = {g: [] for g in everything}
    shared: list[float] = []
    for _ in range(draws):
        parts = {g: rng.integers(0, TRUTH, n) for g in everything}
        sets = {g: StepLosses(everything[g].scores[r], everything[g].steps[r]) for g, r in parts.items()}
        mixed = StepLosses(*(np.concatenate([getattr(s, f) for s in sets.values()]) for f in ("scores", "steps")))
        shared.append(fit_threshold(mixed, ALPHA).threshold)
        for g in everything:
            own[g].append(fit_threshold(sets[g], ALPHA).threshold)
    return (
        {g: losses.total(np.array(own[g])) / TRUTH for g, losses in everything.items()},
        {g: losses.total(np.array(shared)) / TRUTH for g, losses in everything.items()},
    )


def test_each_group_keeps_alpha():
    """With thresholds by group every group's mean risk keeps alpha; with one for all, the harder one's does not."""
    own, shared = grouped(SHORT, 200)
    for risks in own.values():
        assert_mean_keeps(risks)
    assert max(risks.mean() for risks in shared.values()) > 1.2 * ALPHA


def shifted(draws: int, n: int) -> np.ndarray:
    """True risk, under new tier shares, of thresholds fitted on rows of the old ones with the right weights."""
    p, y = truth("calibrated")
    ratio = np.array([0.3, 0.6, 2.0, 3.0])
    weights = ratio[y]
    everything, rng = routing_losses(p, y, weights=weights), np.random.default_rng(6)
    thresholds = []
    for _ in range(draws):
        rows = rng.integers(0, TRUTH, n)
        losses = StepLosses(everything.scores[rows], everything.steps[rows], weights[rows])
        thresholds.append(fit_threshold(losses, ALPHA).threshold)
    return everything.total(np.array(thresholds)) / weights.sum()


def estimated_shift(draws: int, n: int, ratio: tuple[float, ...]) -> np.ndarray:
    """As `shifted`, of a model that is too modest about high tiers, with the weights estimated from the traffic."""
    p, y = truth("calibrated")
    p = p * np.float32([1.0, 1.0, 0.7, 0.7])
    p /= p.sum(axis=1, keepdims=True)
    true = np.array(ratio)[y]
    everything, rng = routing_losses(p, y, weights=true), np.random.default_rng(3)
    thresholds = []
    for _ in range(draws):
        rows, traffic = rng.integers(0, TRUTH, n), rng.choice(TRUTH, n, p=true / true.sum())
        weights, _ = shift_weights(p[traffic], p[rows], np.eye(4)[y[rows]])
        losses = StepLosses(everything.scores[rows], everything.steps[rows], weights)
        thresholds.append(fit_threshold(losses, ALPHA).threshold)
    return everything.total(np.array(thresholds)) / true.sum()


@pytest.mark.parametrize("ratio", [(1.0, 1.0, 1.0, 1.0), (2.0, 1.0, 0.5, 0.2)], ids=["no shift", "easier"])
def test_estimated_shares_come_close_to_alpha(ratio: tuple[float, ...]):
    """Weights estimated from traffic, which prove nothing, keep alpha to within a tenth, for a biased model as well."""
    assert estimated_shift(10, 2000, ratio).mean() == pytest.approx(ALPHA, rel=0.1)


def top_tier(draws: int, n: int, delta: float) -> np.ndarray:
    """True share of frontier requests missed with the top-tier threshold fitted on `n` rows."""
    p, y = truth("skewed to frontier")
    top, rng = np.sort(p[y == 3, -1]), np.random.default_rng(8)
    found = []
    for _ in range(draws):
        rows = rng.integers(0, TRUTH, n)
        found.append(fit_top_tier(p[rows], y[rows], ALPHA, delta=delta).threshold)
    return np.searchsorted(top, np.array(found, dtype=np.float32), side="left") / len(top)


@pytest.mark.faults
def test_a_top_tier_that_passes_as_cheap_enough_keeps_its_promise():
    """Of calibration sets whose top-tier threshold would cost about the most that is served, those that serve one miss
    no more frontier requests than they promise.
    """
    rows = population(TRUTH, 7, prior=(1.0, 1.5, 0.7, 0.3))
    top, rng, missed = np.sort(IDENTITY.apply(rows.logits)[rows.labels[:, 3] == 1, 3]), np.random.default_rng(8), []
    for _ in range(LONG // 4):
        drawn = rows.take(rng.integers(0, TRUTH, 1200))
        (policy,), _ = fit_policies(IDENTITY, drawn, Targets({"balanced": ALPHA}, top_tier_miss=0.35))
        if policy.top_tier_threshold:
            missed.append(np.searchsorted(top, np.float32(policy.top_tier_threshold)) / len(top))
    assert len(missed) > 30
    assert_mean_keeps(np.array(missed), 0.35)


def soft_labels(draws: int, n: int, delta: float) -> np.ndarray:
    """True risk of thresholds fitted on soft labels that are themselves noisy draws."""
    p, _ = truth("over-confident")
    rng = np.random.default_rng(9)
    shares = population(TRUTH, 7).logits.astype(float)
    shares = soft(rng.multinomial(4, np.exp(shares) / np.exp(shares).sum(axis=1, keepdims=True)) / 4)
    everything = routing_losses(p, shares)
    thresholds = []
    for _ in range(draws):
        rows = rng.integers(0, TRUTH, n)
        thresholds.append(
            fit_threshold(StepLosses(everything.scores[rows], everything.steps[rows]), ALPHA, delta=delta).threshold
        )
    return everything.total(np.array(thresholds)) / TRUTH


def test_severity_weights_shifts_soft_labels_and_the_top_tier_keep_their_targets():
    """The expected weighted loss, shifted traffic, soft labels and the top tier's misses keep alpha as well."""
    assert_mean_keeps(realised("over-confident", 200, SHORT, severity=SEVERE))
    assert_mean_keeps(shifted(SHORT, 300))
    assert_mean_keeps(soft_labels(SHORT, 200, 0.0))
    assert_mean_keeps(top_tier(SHORT, 200, 0.0))


def pipeline(name: str, n: int, draws: int, *, group: int = 1, again: float = 0.0) -> np.ndarray:
    """True risk of what `calibrate` fits on `n` rows: split, map, and policy, for each of `draws` sets.

    Args:
        name: of the population.
        n: rows of a set.
        draws: sets.
        group: rows of one group, which are neighbours in the file; the file is in the order of labels.
        again: share of the traffic that is one and the same request, which the model takes for simple and is complex.
    """
    p, y = (array[:FOR_PIPELINES] for array in truth(name))
    logits = np.log(np.maximum(p, 1e-9))
    rng, risks = np.random.default_rng(10), []
    often = np.log(np.float32([0.85, 0.1, 0.03, 0.02]))
    for draw in range(draws):
        rows = rng.integers(0, FOR_PIPELINES, n)
        rows = rows[np.argsort(-y[rows], kind="stable")]
        repeated = rng.random(n) < again
        names = np.arange(n).astype(str)
        drawn = CalibrationSet(
            np.where(repeated[:, None], often, logits[rows]),
            soft(np.where(repeated, 2, y[rows])),
            "RUBRIC",
            np.where(repeated, "again", names),
            (np.arange(n) // group).astype(str),
            {"source": names},
        )
        fitted, rest, _ = choose_map(IDENTITY, drawn, None, methods=MAPS, seed=draw, notes=[])
        (policy,), _ = fit_policies(fitted, rest, Targets({"balanced": ALPHA}))
        everything = routing_losses(fitted.apply(logits), y)
        at_often = choose_many(fitted.apply(often[None]), policy.threshold)[0] < 2
        risks.append((1 - again) * everything.risk(policy.threshold) + again * at_often)
    return np.array(risks)


PIPELINES = {
    "over-confident, 300": ("over-confident", 300, {}),
    "groups of three": ("under-confident", 300, {"group": 3}),
    "a request that comes again": ("calibrated", 400, {"again": 0.25}),
}


@pytest.mark.parametrize("case", PIPELINES)
def test_what_calibrate_fits_keeps_alpha(case: str):
    """Split, map and thresholds together have a mean true risk of at most alpha, whatever the order of the file."""
    name, n, more = PIPELINES[case]
    assert_mean_keeps(pipeline(name, n, 20, **more))


@pytest.mark.faults
@pytest.mark.parametrize("case", PIPELINES)
def test_what_calibrate_fits_keeps_alpha_over_1000_draws(case: str):
    """Split, map and thresholds together keep alpha over 1,000 calibration sets."""
    name, n, more = PIPELINES[case]
    assert_mean_keeps(pipeline(name, n, LONG, **more))


@pytest.mark.faults
@pytest.mark.parametrize("severity", [(1.0, 1.0, 1.0), SEVERE], ids=["every miss", "severity"])
@pytest.mark.parametrize(("name", "n"), CASES)
def test_mean_risk_keeps_alpha_over_1000_draws(name: str, n: int, severity: tuple[float, ...]):
    """Conformal thresholds have a mean true risk of at most alpha over 1,000 calibration sets."""
    assert_mean_keeps(realised(name, n, LONG, severity=severity, seed=1))


@pytest.mark.faults
@pytest.mark.parametrize("delta", [0.05, 0.2])
@pytest.mark.parametrize("severity", [(1.0, 1.0, 1.0), SEVERE], ids=["Clopper-Pearson", "Hoeffding-Bentkus"])
@pytest.mark.parametrize(("name", "n"), CASES)
def test_exceedance_keeps_delta_over_1000_draws(name: str, n: int, severity: tuple[float, ...], delta: float):
    """Thresholds with confidence exceed alpha in at most delta of 1,000 calibration sets."""
    assert_exceedance_keeps(realised(name, n, LONG, delta=delta, severity=severity, seed=2), delta)


@pytest.mark.faults
@pytest.mark.parametrize("n", SIZES)
def test_groups_shift_soft_labels_and_the_top_tier_over_1000_draws(n: int):
    """Groups, shifted traffic, soft labels and the top tier keep their targets over 1,000 calibration sets."""
    for risks in grouped(LONG, n)[0].values():
        assert_mean_keeps(risks)
    assert_mean_keeps(shifted(LONG, n))
    assert_mean_keeps(soft_labels(LONG, n, 0.0))
    assert_exceedance_keeps(soft_labels(LONG, n, 0.1), 0.1)
    assert_mean_keeps(top_tier(LONG, n, 0.0))
    assert_exceedance_keeps(top_tier(LONG, n, 0.1), 0.1)
