"""Thresholds for what is promised: how they are fitted, and what is infeasible."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from classifier.calibration import IDENTITY, Calibration
from classifier.errors import InputError, SettingsError
from classifier.policy import ALWAYS_FRONTIER, Policy, choose_many
from tests.calibration_support import ALPHAS, population
from training.calibration_report import (
    constant_cost,
    curves,
    open_band,
    random_risk,
)
from training.calibration_set import (
    CalibrationSet,
    OpenRows,
)
from training.policy_fit import Targets, fit_policies, thresholds_of, top_tier_trade_off
from training.risk_control import fit_threshold, fit_top_tier
from training.step_losses import routing_losses, soft


def fitted(rows: CalibrationSet, calibration: Calibration = IDENTITY, **targets: Any):
    notes: list[str] = []
    policies, details = fit_policies(calibration, rows, Targets(**({"alphas": ALPHAS} | targets)), notes=notes)
    return {p.name: p for p in policies}, details, notes


def test_a_smaller_alpha_has_a_larger_threshold_and_dearer_shares():
    """economy, balanced and quality differ as their promises do."""
    policies, _, _ = fitted(population(2000, 9))
    thresholds = [policies[name].threshold for name in ("economy", "balanced", "quality")]
    assert thresholds == sorted(thresholds)
    cheap = [sum(policies[name].tier_shares[:2]) for name in ("economy", "balanced", "quality")]
    assert cheap == sorted(cheap, reverse=True)


def test_confidence_names_its_method():
    """With delta the bound is exact; with severity as well it is Hoeffding-Bentkus, and the weights are kept."""
    rows = population(2000, 10)
    exact, weighted = (
        fitted(rows, delta=0.05, **more)[0]["balanced"].guarantee for more in ({}, {"severity": (0.5, 1.0, 1.0)})
    )
    assert (exact.method, exact.delta, exact.severity) == ("CLOPPER_PEARSON", 0.05, ())
    assert (weighted.method, weighted.severity) == ("HOEFFDING_BENTKUS", (0.5, 1.0, 1.0))
    assert exact.bound <= 0.1


def test_exploration_has_room_in_the_promise():
    """Thresholds for epsilon are those of alpha - epsilon, and the bound adds epsilon back."""
    rows = population(2000, 11)
    explored = fitted(rows, epsilon=0.02)[0]["balanced"]
    losses = routing_losses(IDENTITY.apply(rows.logits), rows.labels)
    assert explored.threshold == fit_threshold(losses, 0.1 - 0.02).threshold
    assert explored.epsilon == 0.02
    assert 0.09 < explored.guarantee.bound <= 0.1


def test_room_for_exploration_costs_no_row_by_rounding():
    """Nine rows without a miss keep .10, also where that is what exploring .05 leaves of .15."""
    rows = replace(population(9, 3), labels=soft(np.zeros(9, dtype=int)))
    (enough,), _ = fit_policies(IDENTITY, rows, Targets({"p": 0.15}, epsilon=0.05))
    (few,), _ = fit_policies(IDENTITY, rows.take(np.arange(8)), Targets({"p": 0.15}, epsilon=0.05))
    assert (enough.guarantee.feasible, few.guarantee.feasible) == (True, False)


def with_groups(n: int) -> CalibrationSet:
    """Half of the rows on one script, a few on another, one on a third."""
    rows = population(n, 12)
    scripts = np.array(["latin"] * (n - 31) + ["cyrillic"] * 30 + ["thai"])
    rows.facets["script"] = scripts
    return rows


def test_further_rows_make_a_threshold_stricter_and_never_milder():
    """With further rows of a harder kind the threshold keeps the target on them too; easier ones change nothing."""
    rows, targets = population(2000, 5), Targets({"balanced": 0.1})
    alone = fit_policies(IDENTITY, rows, targets)[0][0]
    harder, easier = population(2000, 6, sharpness=3.0), population(2000, 7, sharpness=0.4)
    notes: list[str] = []
    strict = fit_policies(IDENTITY, rows, targets, also=harder, notes=notes)[0][0]
    assert strict.threshold > alone.threshold
    assert strict.guarantee.bound < alone.guarantee.bound <= 0.1
    chosen = choose_many(IDENTITY.apply(harder.logits), np.full(len(harder), strict.threshold), 0.0)
    assert (chosen < harder.labels.argmax(1)).mean() <= 0.1
    assert "further rows" in notes[0]
    assert fit_policies(IDENTITY, rows, targets, also=easier)[0][0] == alone


def test_further_rows_that_are_too_few_are_named_as_those():
    """Where ten further rows alone make a target infeasible, it is not said of the thousand rows that would do."""
    notes: list[str] = []
    rows, few = population(1000, 1), population(10, 2)
    policy = fit_policies(IDENTITY, rows, Targets({"quality": 0.05}), also=few, notes=notes)[0][0]
    assert not policy.guarantee.feasible
    assert notes == [
        "quality: on the 10 further rows alone the threshold would be always frontier (risk 0.0000; about 19 rows "
        "could do); the stricter one is served."
    ]


def test_groups_have_thresholds_of_their_own():
    """Each group with enough rows keeps the promise; a group with too few goes to frontier and says what it takes."""
    rows = with_groups(1000)
    policies, details, notes = fitted(rows, group_by="script")
    policy = policies["balanced"]
    assert policy.group_thresholds["thai"] == ALWAYS_FRONTIER
    assert details["balanced"]["thai"]["rows_needed"] == 9
    assert any("for thai is infeasible on 1 rows" in note and "about 9 rows" in note for note in notes)
    assert policy.guarantee.feasible
    latin = rows.take(rows.facets["script"] == "latin")
    own = fit_threshold(routing_losses(IDENTITY.apply(latin.logits), latin.labels), 0.1).threshold
    assert policy.group_thresholds["latin"] == own


def test_an_unseen_group_gets_the_strictest_threshold():
    """The fallback is no laxer than any feasible group's threshold."""
    policy = fitted(with_groups(1000), group_by="script")[0]["balanced"]
    feasible = [t for t in policy.group_thresholds.values() if t <= 1]
    assert policy.threshold >= max(feasible)
    assert policy.threshold <= 1


def test_an_unseen_group_gets_no_milder_threshold_where_more_is_promised():
    """A rare group may be infeasible under the stricter policy alone; what it took before still counts there."""
    for seed in range(30):
        rows = population(400, seed)
        rare = np.where(np.random.default_rng(seed).random(400) < 0.03, "rare", "usual")
        rows = replace(rows, facets={**rows.facets, "tenant": rare})
        fitted, _ = fit_policies(IDENTITY, rows, Targets({"q": 0.05, "e": 0.2, "b": 0.1}, group_by="tenant"))
        thresholds = {policy.name: policy.threshold for policy in fitted}
        assert list(thresholds) == ["q", "e", "b"]
        assert thresholds["e"] <= thresholds["b"] <= thresholds["q"]


def test_where_no_group_is_promised_anything_an_unseen_one_goes_to_frontier():
    """Eighty rows would do for all together, but none of ten groups has the nine that it takes: nothing is promised."""
    rows = replace(population(80, 3), labels=soft(np.zeros(80, dtype=int)))
    rows = replace(rows, facets={**rows.facets, "tenant": (np.arange(80) % 10).astype(str)})
    policy = fitted(rows, group_by="tenant")[0]["balanced"]
    assert not policy.guarantee.feasible
    assert policy.threshold_of("another") == policy.threshold_of("3") == ALWAYS_FRONTIER


def test_rows_without_the_label_are_no_group():
    """Where some requests carry no label they are served like those of an unseen group, and count among all rows."""
    rows = population(400, 5)
    rows = replace(rows, facets={**rows.facets, "tenant": np.where(np.arange(400) % 2, "acme", "")})
    policy = fitted(rows, group_by="tenant")[0]["balanced"]
    assert set(policy.group_thresholds) == {"acme"}
    losses = routing_losses(IDENTITY.apply(rows.logits), rows.labels)
    assert policy.threshold_of("") >= max(policy.group_thresholds["acme"], fit_threshold(losses, 0.1).threshold)


def test_the_bound_is_of_the_groups_that_are_promised_something():
    """A group without a promise does not spoil the bound: where a policy is feasible it is at most alpha."""
    policies, details, _ = fitted(with_groups(1000), group_by="script")
    guarantee = policies["balanced"].guarantee
    assert guarantee.feasible
    assert guarantee.empirical_risk <= guarantee.bound <= 0.1
    kept = [group["bound"] for group in details["balanced"].values() if group["feasible"]]
    assert guarantee.bound == max(kept) > min(kept)


def test_thresholds_go_to_their_groups():
    """Offline, each row gets the threshold of its group."""
    rows = with_groups(1000)
    policy = fitted(rows, group_by="script")[0]["balanced"]
    found = thresholds_of(policy, rows)
    assert found[0] == policy.group_thresholds["latin"]
    assert found[-1] == ALWAYS_FRONTIER


def test_the_top_tier_threshold_is_served():
    """Given enough frontier rows that are told apart, the second threshold keeps the share of missed frontier rows."""
    rows = population(3000, 13, prior=(0.5, 0.3, 0.1, 0.03))
    policy = fitted(rows, top_tier_miss=0.4)[0]["economy"]
    guarantee = policy.top_tier_guarantee
    assert guarantee is not None
    assert guarantee.feasible
    assert policy.top_tier_threshold > 0
    rest = rows.take(rows.halves(0)[1])
    chosen = choose_many(IDENTITY.apply(rest.logits), policy.threshold, policy.top_tier_threshold)
    assert (chosen[rest.labels[:, 3] == 1] < 3).mean() <= guarantee.bound <= 0.4


@pytest.mark.parametrize("epsilon", [0.0, 0.05])
@pytest.mark.parametrize("delta", [0.0, 0.05], ids=["on the expectation", "with confidence"])
def test_other_rows_say_whether_a_top_tier_costs_too_much(delta: float, epsilon: float):
    """On the expectation the top tier's threshold is of the rows that were not asked whether it costs too much; with
    confidence it is of all. What is explored has its room.
    """
    rows = population(3000, 13, prior=(0.5, 0.3, 0.1, 0.05))
    part = rows if delta else rows.take(rows.halves(0)[1])
    expected = fit_top_tier(IDENTITY.apply(part.logits), part.labels, 0.5, delta=delta)
    targets = {"alphas": {"economy": 0.2}, "delta": delta, "epsilon": epsilon}
    policy = fitted(rows, top_tier_miss=0.5 + epsilon, **targets)[0]["economy"]
    assert (policy.top_tier_threshold, policy.top_tier_guarantee.n) == (expected.threshold, expected.n)


def test_few_frontier_rows_make_the_top_tier_infeasible():
    """Below 60 frontier rows there is no top-tier threshold, and the number is named."""
    policies, _, notes = fitted(population(300, 14, prior=(1, 1, 1, 0.05)), top_tier_miss=0.3)
    assert policies["balanced"].top_tier_threshold == 0
    assert not policies["balanced"].top_tier_guarantee.feasible
    assert any("it takes 60" in note for note in notes)


@pytest.mark.parametrize(
    ("one_group", "miss", "says"),
    [(True, 0.4, "all rows are of one group"), (False, 0.005, "frontier rows are in one of two halves, it takes 199")],
    ids=["one group", "a miss too rare"],
)
def test_what_a_top_tier_lacks_is_named(one_group: bool, miss: float, says: str):
    """Rows that cannot be halved, and halves with too few frontier rows for the target, are no question of its cost."""
    rows = population(3000, 13, prior=(0.5, 0.3, 0.1, 0.03))
    rows = replace(rows, groups=np.full(len(rows), "one")) if one_group else rows
    policies, _, notes = fitted(rows, top_tier_miss=miss)
    assert policies["balanced"].top_tier_threshold == 0
    assert [note for note in notes if says in note]
    assert not [note for note in notes if "in practice" in note]


def test_further_rows_lower_the_top_tiers_threshold_too():
    """Where the top tier of further rows is told less surely, they are missed no more often than was asked."""
    rows, further = (population(3000, seed, prior=(0.5, 0.3, 0.1, 0.03)) for seed in (13, 14))
    further = replace(further, logits=further.logits * np.float32(0.5))
    alone = fitted(rows, top_tier_miss=0.6)[0]["economy"]
    (policy, *_), _ = fit_policies(IDENTITY, rows, Targets(ALPHAS, top_tier_miss=0.6), also=further)
    assert 0 < policy.top_tier_threshold < alone.top_tier_threshold
    assert policy.top_tier_guarantee.empirical_risk < alone.top_tier_guarantee.empirical_risk
    top = IDENTITY.apply(further.logits)[further.labels[:, 3] == 1, 3]
    assert (top < policy.top_tier_threshold).mean() <= 0.6


@pytest.mark.parametrize("epsilon", [0.0, 0.06])
def test_what_a_top_tier_would_cost_is_told_with_the_room_for_exploration(epsilon: float):
    """What missing a tenth costs is the share that asking for it would send there; what exploring takes is untold."""
    rows, targets = population(3000, 15), {"alphas": {"economy": 0.2}, "delta": 0.05, "epsilon": epsilon}
    asked = {miss: fitted(rows, top_tier_miss=miss, **targets)[2][0] for miss in (0.12, 0.1)}
    share = re.search(r"it would send (\d+)% of traffic to frontier", asked[0.1])
    assert share is not None
    assert f"0.1 costs {share[1]}%;" in asked[0.12]
    assert ("0.05 costs" in asked[0.12]) is (epsilon < 0.05)


def test_a_top_tier_that_takes_too_much_traffic_is_infeasible_in_practice():
    """A top-tier threshold that would send more than 15 % of traffic there is not served, and the trade is shown."""
    policies, _, notes = fitted(population(3000, 15), top_tier_miss=0.05)
    assert policies["balanced"].top_tier_threshold == 0
    assert any("infeasible in practice" in note and "0.5 costs" in note for note in notes)


def test_open_rows_get_their_groups_threshold():
    """The band of the open rows is that of what is served: each has the threshold of its own group."""
    logits = np.log(np.float32([[0.7, 0.2, 0.05, 0.05]] * 2))
    known = {"script": np.array(["latin", "thai"])}
    rows = OpenRows(logits, np.array([1, 1]), np.array([3, 3]), known)
    policy = Policy("p", 0.99, group_by="script", group_thresholds={"latin": 0.5, "thai": 0.8})
    band = open_band(policy, rows, IDENTITY.apply(logits), 0.0, 2)
    assert band == {"n": 2, "risk_at_best": 0.25, "risk_at_worst": 0.5}


def test_all_equal_scores_are_infeasible_and_say_why():
    """Where the model says nothing and too many labels are high, the policy is always frontier, with a note."""
    rows = population(400, 17)
    flat = CalibrationSet(
        np.zeros((400, 4), np.float32), np.eye(4)[np.repeat([0, 3], 200)], "RUBRIC", rows.ids, rows.groups, rows.facets
    )
    policies, _, notes = fitted(flat)
    assert {p.threshold for p in policies.values()} == {ALWAYS_FRONTIER}
    assert not any(p.guarantee.feasible for p in policies.values())
    assert all("more rows alone would not help" in note for note in notes)
    assert {p.tier_shares for p in policies.values()} == {(0.0, 0.0, 0.0, 1.0)}


def test_too_few_rows_are_infeasible_with_the_number_that_it_takes():
    """Ten rows cannot promise 5 %; the note says that 19 could, and economy at 20 % is feasible."""
    policies, _, notes = fitted(population(10, 18, prior=(8, 0.05, 0.05, 0.05)))
    assert not policies["quality"].guarantee.feasible
    assert any("quality (0.05) is infeasible on 10 rows" in note and "about 19 rows" in note for note in notes)
    assert policies["economy"].guarantee.feasible


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ({"alphas": {}}, "no policy"),
        ({"alphas": {"a": 1.5}}, "no share"),
        ({"alphas": {"a": 0.1}, "epsilon": 0.1}, "leaves nothing"),
        ({"alphas": {"a": 0.1}, "top_tier_miss": 0.05, "epsilon": 0.06}, "leaves nothing"),
        ({"alphas": {"a": 0.1}, "top_tier_miss": 1.5}, "top-tier-miss: 1.5 is no share"),
        ({"alphas": {"a": 0.1}, "top_tier_miss": -0.1}, "top-tier-miss: -0.1 is no share"),
        ({"alphas": {"a": 0.1}, "exempt_labels": ("=eu",)}, "names no label"),
        ({"alphas": {"a": 0.1}, "group_by": "language"}, "not known of a request"),
        ({"alphas": {"a": 0.1}, "delta": 1.0}, "delta: 1.0"),
        ({"alphas": {"a": 0.1}, "delta": math.nan}, "delta: nan"),
        ({"alphas": {"a": 0.1}, "epsilon": -0.05}, "epsilon: -0.05"),
        ({"alphas": {"a": 0.1}, "epsilon": 1.0}, "epsilon: 1.0"),
        ({"alphas": {"a": 0.1}, "epsilon": math.nan}, "epsilon: nan"),
        ({"alphas": {"a": 0.1}, "severity": (1.0, 0.5, 1.0)}, "severity: 1, 0.5, 1"),
        ({"alphas": {"a": 0.1}, "severity": (math.nan, 1.0, 1.0)}, "severity: nan"),
    ],
)
def test_targets_that_contradict_one_another_are_refused(targets: dict, message: str):
    """Promises that cannot be, and groups that are not known when a request is served, are clear errors."""
    with pytest.raises(SettingsError, match=message):
        Targets(**targets)


def test_a_label_that_no_row_carries_cannot_group():
    """Grouping by a label that the rows do not have is a clear error."""
    with pytest.raises(InputError, match="no row carries it"):
        fitted(population(100, 19), group_by="tenant")


def test_a_random_router_of_equal_shares_is_no_cheaper_for_its_risk():
    """The random router's risk is what its shares and the labels give when drawn independently."""
    labels = np.eye(4)[[0, 0, 1, 1, 2, 3]].mean(axis=0)
    assert random_risk([1, 0, 0, 0], labels) == pytest.approx(4 / 6)
    assert random_risk([0.5, 0, 0, 0.5], labels) == pytest.approx(2 / 6)


def test_the_best_constant_router_mixes_two_tiers():
    """At a risk between two constant tiers the cheapest mixture of any two is taken."""
    labels = np.eye(4)[[0, 0, 1, 1, 2, 3]].mean(axis=0)
    assert constant_cost(4 / 6, labels, (1, 2, 3, 100)) == pytest.approx(1)
    assert constant_cost(0.0, labels, (1, 2, 3, 100)) == 100
    assert constant_cost(0.5, labels, (1, 2, 3, 100)) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("asked", "method", "loss"),
    [
        ({}, "CONFORMAL_RISK_CONTROL", "risk"),
        ({"delta": 0.05}, "CLOPPER_PEARSON", "risk"),
        ({"delta": 0.05, "severity": (0.5, 1.0, 1.0)}, "HOEFFDING_BENTKUS", "weighted loss"),
    ],
)
def test_curves_are_of_the_method_that_was_asked_for(asked: dict, method: str, loss: str):
    """The bound that is drawn against λ is the one that thresholds are fitted by: it meets α where λ is."""
    rows, targets = population(800, 23), Targets({"balanced": 0.1}, **asked)
    policy = fit_policies(IDENTITY, rows, targets)[0][0]
    found = curves(rows, IDENTITY.apply(rows.logits), (1, 2, 3, 4), targets)
    assert (found["method"], found["loss"]) == (method, loss)
    bounds = {p["threshold"]: p["bound"] for p in found["risk_by_threshold"]}
    assert all((bound <= 0.1) == (threshold >= policy.threshold) for threshold, bound in bounds.items())


@pytest.mark.parametrize("epsilon", [0.0, 0.05])
def test_what_a_promise_costs_is_told_with_the_room_for_exploration(epsilon: float):
    """At the α of a policy the curve of costs has the policy's own threshold."""
    rows, targets = population(800, 23), Targets({"balanced": 0.1}, epsilon=epsilon)
    policy = fit_policies(IDENTITY, rows, targets)[0][0]
    told = curves(rows, IDENTITY.apply(rows.logits), (1, 2, 3, 4), targets)["cost_by_alpha"]
    assert {point["alpha"]: point["threshold"] for point in told}[0.1] == policy.threshold
    assert all(point["alpha"] > epsilon for point in told)


def test_a_threshold_that_nothing_reaches_is_called_always_frontier():
    """To the digits shown it would be 1, which some requests do reach."""
    notes: list[str] = []
    rows = population(400, 3)
    fit_policies(IDENTITY, rows, Targets({"balanced": 0.1}), also=rows.take(np.arange(5)), notes=notes)
    assert [note for note in notes if "alone the threshold would be always frontier" in note]


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.15])
def test_what_a_top_tier_costs_is_told_of_shares_that_exploring_leaves(epsilon):
    """A share that is all explored has no price, and the more may be missed the less goes to frontier."""
    rows = population(600, 0)
    curve = top_tier_trade_off(IDENTITY.apply(rows.logits), rows, Targets({"quality": 0.5}, epsilon=epsilon))
    shares, costs = zip(*curve, strict=True)
    assert list(shares) == [beta for beta in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7) if beta > epsilon]
    assert list(costs) == sorted(costs, reverse=True)
