"""Probabilities become a tier, a reason and a propensity."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifier.errors import BundleCorrupt
from classifier.policy import (
    ALWAYS_FRONTIER,
    UNPROVEN,
    Guarantee,
    Policy,
    choose,
    choose_many,
    decide,
    exploration,
    float32_up,
    promised_risks,
)
from classifier.policy_file import policies_from_json, policies_to_json
from classifier.types import TIERS, Reason, Tier

SIMPLE, STANDARD, COMPLEX, FRONTIER = TIERS
# Exact in float32 and in sums: ties are real ties.
ROW = [0.5, 0.25, 0.125, 0.125]
PROVED = Guarantee(0.1, 0.0, "CONFORMAL_RISK_CONTROL", "RUBRIC", 500, 0.09, 0.095, feasible=True)
PLAIN = Policy("balanced", 0.75, guarantee=PROVED)
BELONGS = {"model_sha256": "ab" * 32, "calibration_revision": "0123456789ab"}

tiers = st.sampled_from(TIERS)
bounds = st.tuples(st.none() | tiers, st.none() | tiers).filter(lambda b: None in b or b[0] <= b[1])


@st.composite
def rows(draw: st.DrawFn) -> list[float]:
    """Probabilities as the calibration gives them; coarse ones, so that ties happen, and fine ones."""
    parts = draw(st.lists(st.integers(0, 8) | st.floats(0, 1), min_size=4, max_size=4).filter(lambda p: sum(p) > 0))
    return (np.array(parts, dtype=np.float64) / sum(parts)).astype(np.float32).tolist()


thresholds = st.sampled_from([0.0, 0.125, 0.5, 0.75, 0.875, 1.0, ALWAYS_FRONTIER]) | st.floats(0, 1).map(float32_up)
policies = st.builds(
    Policy,
    name=st.just("p"),
    threshold=thresholds,
    top_tier_threshold=st.just(0.0) | st.floats(0, 1, width=32),
    guarantee=st.sampled_from([PROVED, UNPROVEN]),
    epsilon=st.sampled_from([0.0, 0.05, 0.9]),
)


@pytest.mark.parametrize(
    ("threshold", "tier"),
    [
        (0.0, SIMPLE),
        (0.5, SIMPLE),
        (0.5000001, STANDARD),
        (0.75, STANDARD),
        (0.875, COMPLEX),
        (0.9, FRONTIER),
        (1.0, FRONTIER),
        (ALWAYS_FRONTIER, FRONTIER),
    ],
)
def test_the_cheapest_tier_that_reaches_the_threshold_is_chosen(threshold: float, tier: Tier):
    """The tier is the cheapest t with P(label <= t) >= threshold, and an exact tie qualifies."""
    assert choose(ROW, float32_up(threshold)) is tier


def test_the_last_tier_always_qualifies():
    """Probabilities whose float sum stays below 1 still lead to a tier at threshold 1."""
    assert choose([0.1, 0.2, 0.3, 0.39], 1.0) is FRONTIER


def test_nan_leads_to_the_top_tier():
    """A model that answers NaN sends the request where it cannot be too small, online and offline."""
    nan = [float("nan")] * 4
    assert choose(nan, 0.5, 0.5) is FRONTIER
    assert choose_many([nan], 0.5, 0.5).tolist() == [3]


@given(row=rows(), threshold=thresholds, tau=st.just(0.0) | st.floats(0, 1, width=32))
def test_online_and_offline_choose_alike(row: list[float], threshold: float, tau: float):
    """One row and many rows get the same tier, ties included."""
    assert choose(row, threshold, tau).index == choose_many([row, row], threshold, tau)[1]


@given(row=rows())
def test_a_tie_with_any_cumulative_probability_is_decided_alike(row: list[float]):
    """A threshold that equals, or just passes, a cumulative probability is decided alike online and offline."""
    for value in np.cumsum(np.array(row, dtype=np.float64)):
        for threshold in (float32_up(min(value, 1.0)), float(np.nextafter(np.float32(min(value, 1.0)), np.float32(0)))):
            assert choose(row, threshold).index == choose_many([row], threshold)[0]


@given(row=rows(), one=thresholds, other=thresholds)
def test_a_stricter_threshold_never_chooses_a_lower_tier(row: list[float], one: float, other: float):
    """The tier never falls as the threshold rises."""
    assert choose(row, min(one, other)) <= choose(row, max(one, other))


@given(row=rows(), threshold=thresholds)
def test_always_frontier_is_always_frontier(row: list[float], threshold: float):
    """The threshold of an infeasible policy leads to the top tier whatever the probabilities."""
    assert choose(row, ALWAYS_FRONTIER) is FRONTIER
    assert choose(row, threshold) <= FRONTIER


def test_thresholds_may_differ_by_row():
    """Offline, each row may have its own thresholds, as groups have."""
    assert choose_many([ROW, ROW, ROW], [0.5, 0.75, 0.5], [0.0, 0.0, 0.125]).tolist() == [0, 1, 3]


@pytest.mark.parametrize("value", [0.9, 0.1, 0.95, 1 / 3, 0.5])
def test_thresholds_are_rounded_up_to_float32(value: float):
    """A stored threshold is the smallest float32 not below the fitted one: rounding never loosens a promise."""
    stored = Policy("p", value).threshold
    assert stored == float(np.float32(stored))
    assert stored >= value
    assert float(np.nextafter(np.float32(stored), np.float32(0))) < value


def test_the_top_tier_threshold_is_rounded_down():
    """A stored top-tier threshold never sends fewer requests to the top tier than the fitted one."""
    stored = Policy("p", 0.5, top_tier_threshold=0.1).top_tier_threshold
    assert stored <= 0.1 < float(np.nextafter(np.float32(stored), np.float32(1)))


def test_the_model_alone_decides_without_bounds():
    """Without floor, ceiling and exploration the reason is MODEL, guaranteed, with propensity 1."""
    choice = decide(ROW, PLAIN)
    assert (choice.tier, choice.model_tier, choice.reason) == (STANDARD, STANDARD, Reason.MODEL)
    assert (choice.threshold, choice.guaranteed, choice.propensity) == (0.75, True, 1.0)


def test_a_floor_raises_the_tier():
    """A floor raises the tier even when the model is certain, and the promise still holds."""
    choice = decide([1.0, 0.0, 0.0, 0.0], PLAIN, floor=COMPLEX)
    assert (choice.tier, choice.model_tier, choice.reason) == (COMPLEX, SIMPLE, Reason.FLOOR)
    assert choice.guaranteed


def test_a_ceiling_lowers_the_tier_and_voids_the_promise():
    """An answer that the ceiling lowered is not guaranteed."""
    choice = decide([0.0, 0.0, 0.0, 1.0], PLAIN, ceiling=STANDARD)
    assert (choice.tier, choice.model_tier, choice.reason) == (STANDARD, FRONTIER, Reason.CEILING)
    assert not choice.guaranteed


@pytest.mark.parametrize(("floor", "ceiling"), [(SIMPLE, COMPLEX), (STANDARD, STANDARD)], ids=["around it", "at it"])
def test_a_bound_that_does_not_bind_changes_nothing(floor: Tier, ceiling: Tier):
    """A floor and a ceiling that the model's tier keeps leave the answer as it was, reason and promise too."""
    assert decide(ROW, PLAIN, floor=floor, ceiling=ceiling) == decide(ROW, PLAIN)


def test_a_promise_may_need_a_threshold_of_one():
    """The strictest threshold that is not always-frontier keeps what the policy promises."""
    assert decide(ROW, replace(PLAIN, threshold=1.0)).guaranteed


def test_the_top_tier_threshold_raises_to_frontier():
    """P(frontier) at or above the top-tier threshold leads to frontier, and the reason says so."""
    choice = decide(ROW, Policy("p", 0.75, top_tier_threshold=0.125, guarantee=PROVED))
    assert (choice.tier, choice.model_tier, choice.reason) == (FRONTIER, FRONTIER, Reason.TOP_TIER)
    assert choice.guaranteed


def test_top_tier_is_the_reason_only_where_it_raised():
    """Where the first threshold already leads to frontier the reason stays MODEL."""
    assert decide(ROW, Policy("p", 0.9, top_tier_threshold=0.125)).reason is Reason.MODEL


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        (Policy("p", 0.75), {}),
        (Policy("p", ALWAYS_FRONTIER, guarantee=Guarantee(0.01, 0, "CLOPPER_PEARSON", n=20)), {}),
        (Policy("p", 0.75, guarantee=Guarantee(0.1, 0, "LABEL_SHIFT", n=500, bound=0.1, feasible=True)), {}),
        (PLAIN, {"golden_ok": False}),
        (Policy("p", 0.75, guarantee=PROVED, group_by="script", group_thresholds={"latin": 0.5}), {"group": "thai"}),
        (Policy("p", 0.75, guarantee=PROVED, group_by="script", group_thresholds={"latin": 0.5}), {"group": None}),
    ],
    ids=["unproven", "infeasible", "label shift", "golden inputs differ", "unseen group", "no group"],
)
def test_what_the_promise_does_not_cover_says_so(policy: Policy, options: dict):
    """What is unproved, infeasible, estimated, or of an unseen group, and a failed golden replay, is not guaranteed."""
    assert not decide(ROW, policy, **options).guaranteed


def test_a_group_has_its_own_threshold():
    """A known group uses its threshold; an unseen one the policy's own."""
    policy = Policy(
        "p", 0.9, guarantee=PROVED, group_by="script", group_thresholds={"latin": 0.5, "thai": ALWAYS_FRONTIER}
    )
    latin, thai, other = (decide(ROW, policy, group=group) for group in ("latin", "thai", "cyrillic"))
    assert (latin.tier, latin.threshold, latin.guaranteed) == (SIMPLE, 0.5, True)
    assert (thai.tier, thai.guaranteed) == (FRONTIER, False)
    assert (other.tier, other.threshold, other.guaranteed) == (FRONTIER, float32_up(0.9), False)


@given(row=rows(), policy=policies, bound=bounds, draw=st.none() | st.floats(0, 1, exclude_max=True))
def test_the_tier_stays_between_floor_and_ceiling(row: list[float], policy: Policy, bound: tuple, draw: float | None):
    """Whatever the probabilities, the policy and the draw: floor <= tier <= ceiling."""
    floor, ceiling = bound
    choice = decide(row, policy, floor=floor, ceiling=ceiling, draw=draw)
    assert (floor or SIMPLE) <= choice.tier <= (ceiling or FRONTIER)
    assert 0 < choice.propensity <= 1


@given(row=rows(), policy=policies, bound=bounds)
def test_without_a_draw_nothing_is_explored(row: list[float], policy: Policy, bound: tuple):
    """A request that may not be explored has propensity 1 and never the reason EXPLORED."""
    choice = decide(row, policy, floor=bound[0], ceiling=bound[1], draw=None)
    assert choice.propensity == 1
    assert choice.reason is not Reason.EXPLORED


def test_a_floor_exempts_from_exploration():
    """A request with a floor is never explored, whatever the draw."""
    choice = decide(ROW, Policy("p", 0.75, epsilon=0.5), floor=SIMPLE, draw=0.0)
    assert (choice.tier, choice.reason, choice.propensity) == (STANDARD, Reason.MODEL, 1.0)


@pytest.mark.parametrize(
    ("labels", "explored"),
    [({}, True), ({"tenant": "acme"}, False), ({"tenant": "other"}, True), ({"legal": "anything"}, False)],
)
def test_listed_labels_exempt_from_exploration(labels: dict[str, str], explored: bool):
    """A request with a listed label, or with a listed label's value, is never explored."""
    policy = Policy("p", 0.9, epsilon=0.5, exempt_labels=("tenant=acme", "legal"))
    assert policy.may_explore(labels) is explored


def test_a_policy_that_names_no_share_explores_nothing():
    """Exploration is asked for: without epsilon no request may be explored."""
    assert not Policy("p", 0.9).may_explore({})


def test_exploration_goes_one_lower_mostly():
    """From the middle, one lower takes 70 % of the exploration, two lower and one higher 15 % each."""
    assert exploration(COMPLEX, 0.1) == pytest.approx({COMPLEX: 0.9, STANDARD: 0.07, SIMPLE: 0.015, FRONTIER: 0.015})


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("ceiling", [None, *TIERS])
def test_exploration_spends_all_of_epsilon_where_it_can(tier: Tier, ceiling: Tier | None):
    """Propensities sum to 1 and the tiers other than the chosen one share epsilon, unless there is no other."""
    reach = exploration(tier, 0.2, ceiling=ceiling)
    assert sum(reach.values()) == pytest.approx(1)
    assert reach[tier] == (0.8 if len(reach) > 1 else 1.0)
    assert all(to <= (ceiling or FRONTIER) for to in reach if to is not tier)


def test_the_draw_decides_exploration_with_the_stated_propensities():
    """Over a fine grid of draws each tier is reached as often as its propensity says, and the reason follows."""
    policy = Policy("p", 0.875, epsilon=0.2, guarantee=PROVED)
    choices = [decide(ROW, policy, draw=(i + 0.5) / 10_000) for i in range(10_000)]
    for to, propensity in exploration(COMPLEX, 0.2).items():
        reached = [choice for choice in choices if choice.tier is to]
        assert len(reached) == pytest.approx(10_000 * propensity, abs=1)
        assert {choice.propensity for choice in reached} == {propensity}
        assert {choice.reason for choice in reached} == {Reason.MODEL if to is COMPLEX else Reason.EXPLORED}
    assert all(choice.guaranteed and choice.model_tier is COMPLEX for choice in choices)


@pytest.mark.parametrize("epsilon", [0.01, 0.05, 0.1, 0.2, 0.3, 0.7])
def test_all_of_epsilon_is_explored_and_no_more(epsilon: float):
    """The last draw below epsilon leads to another tier, whatever rounding left of it; epsilon itself to none."""
    policy = Policy("p", 0.875, epsilon=epsilon)
    for row in ([1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], ROW, [0.0, 0.0, 0.0, 1.0]):
        assert decide(row, policy, draw=float(np.nextafter(epsilon, 0))).reason is Reason.EXPLORED
        assert decide(row, policy, draw=epsilon).reason is Reason.MODEL


def test_a_request_without_the_label_is_of_the_group_without_a_name():
    """As an empty label is: neither was calibrated, unless rows said so."""
    policy = Policy("p", 0.9, group_by="tenant")
    assert policy.group_of({}, "latin") == policy.group_of({"tenant": ""}, "latin") == ""


def saved(*entries: Policy, default: str = "balanced") -> dict:
    return json.loads(json.dumps(policies_to_json(entries or (FULL,), default, **BELONGS)))


FULL = Policy(
    "balanced",
    0.7,
    0.2,
    PROVED,
    Guarantee(0.1, 0.05, "CLOPPER_PEARSON", "RUBRIC", 80, 0.05, 0.09, feasible=True, calibration_set_sha256="cd" * 32),
    (0.4, 0.4, 0.15, 0.05),
    "script",
    {"latin": 0.6, "thai": ALWAYS_FRONTIER},
    0.02,
    ("tenant=acme", "legal"),
)


def test_json_round_trip_is_exact():
    """Written to policy.json and read back, every field of every policy is equal; so it is through pickle."""
    other = Policy("economy", 0.6, guarantee=Guarantee(0.2, 0.0, "CONFORMAL_RISK_CONTROL", severity=(0.5, 1, 1)))
    assert policies_from_json(saved(FULL, other), **BELONGS) == ({"balanced": FULL, "economy": other}, "balanced")
    assert pickle.loads(pickle.dumps(FULL)) == FULL


@pytest.mark.parametrize("field", BELONGS)
def test_thresholds_of_another_bundle_are_refused(field: str):
    """A policy.json that was fitted on another model or calibration is refused."""
    with pytest.raises(BundleCorrupt, match=f"fitted for {field}"):
        policies_from_json(saved(), **(BELONGS | {field: "f" * 12}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 9}, "schema version 9"),
        ({"default": "quality"}, "none of"),
        ({"policies": []}, "none of"),
        ({"policies": saved()["policies"] * 2}, "stands twice"),
        ({"policies": [saved()["policies"][0] | {"threshold": 1.5}]}, "threshold is 1.5"),
        ({"policies": [saved()["policies"][0] | {"threshold": float("nan")}]}, "threshold is nan"),
        ({"policies": [saved()["policies"][0] | {"colour": "blue"}]}, "colour"),
        ({"policies": [{"name": "balanced", "threshold": 0.5}]}, "no 'guarantee'"),
    ],
)
def test_a_policy_file_that_cannot_be_is_refused(change: dict, message: str):
    """A malformed policy.json is refused with the thing at fault named."""
    with pytest.raises(BundleCorrupt, match=message):
        policies_from_json(saved() | change, **BELONGS)


@pytest.mark.parametrize(
    "fields",
    [
        {"threshold": -0.1},
        {"threshold": 0.5, "epsilon": 1.0},
        {"threshold": 0.5, "tier_shares": (0.5, 0.51, 0, 0)},
        {"threshold": 0.5, "group_thresholds": {"a": 0.5}},
        {"threshold": 0.5, "group_by": ["script"]},
        {"threshold": 0.5, "top_tier_threshold": ALWAYS_FRONTIER},
        {"threshold": 0.5, "name": ""},
        {"threshold": 0.5, "name": 3},
        {"threshold": 0.5, "tier_shares": (-1, 2, 0, 0)},
        {"threshold": 0.5, "exempt_labels": "tenant=acme"},
    ],
)
def test_a_policy_out_of_range_cannot_be_made(fields: dict):
    """A policy with a field out of its range raises when made."""
    with pytest.raises(ValueError, match="policy"):
        Policy(**({"name": "p"} | fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "TRUST_ME"},
        {"label": "MOOD"},
        {"alpha": 1.2},
        {"bound": float("nan")},
        {"feasible": True},
        {"feasible": True, "alpha": 0.1},
        {"feasible": True, "method": "CLOPPER_PEARSON"},
        {"feasible": True, "method": "CLOPPER_PEARSON", "alpha": 1.0},
        {"n": "many"},
        {"n": -1},
        {"severity": (0.5, 1, 2)},
        {"severity": (float("nan"), 1, 1)},
    ],
)
def test_a_guarantee_out_of_range_cannot_be_made(fields: dict):
    """A guarantee names a known method and numbers in range; a feasible one is proved and has an alpha."""
    with pytest.raises(ValueError, match=r"expected|feasible"):
        Guarantee(**fields)


def test_a_risk_is_promised_by_a_proof_about_shares_of_requests_only():
    """No risk is promised by an estimate, by what is infeasible or was never fitted, or where a loss is weighted."""
    others = {
        "estimated": Guarantee(0.1, 0, "LABEL_SHIFT", n=500, bound=0.1, feasible=True),
        "infeasible": Guarantee(0.01, 0, "CLOPPER_PEARSON", n=20),
        "never fitted": Guarantee(),
        "weighted": replace(PROVED, severity=(0.5, 1, 1)),
    }
    policies = {name: Policy(name, 0.7, guarantee=guarantee) for name, guarantee in others.items()}
    assert promised_risks(policies | {"balanced": Policy("balanced", 0.7, guarantee=PROVED)}) == {"balanced": 0.1}


def test_two_policies_of_one_name_cannot_be_written():
    """Names are unique in a policy.json, and the default is one of them."""
    with pytest.raises(ValueError, match="do not fit together"):
        policies_to_json([PLAIN, PLAIN], "balanced", **BELONGS)
