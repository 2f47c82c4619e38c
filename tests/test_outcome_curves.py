"""Replaying a router on requests whose outcomes on every tier are known."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from classifier.errors import InputError
from classifier.policy import choose_many
from classifier.types import Request, Tier
from training.outcome_curves import (
    apgr,
    cost_quality,
    cpt,
    gap_recovered,
    measure,
    oracle_tiers,
    served_tiers,
    success_and_cost,
)
from training.outcomes import Outcomes, read_outcomes

NAN = float("nan")


def synthetic(n=400, seed=0):
    """Requests of known difficulty: tier t satisfies where its strength is above; and a model that knows it roughly."""
    rng = np.random.default_rng(seed)
    difficulty = rng.random(n)
    success = (difficulty[:, None] < np.array([0.3, 0.6, 0.85, 0.97])).astype(float)
    requests = [Request.from_text("x" * int(1 + 50 * rng.random())) for _ in range(n)]
    noisy = np.clip(difficulty + 0.1 * rng.standard_normal(n), 0, 1)
    edges = np.array([0.3, 0.6, 0.85])
    below = 1 / (1 + np.exp((noisy[:, None] - edges) * 12))
    shares = np.diff(np.hstack([np.zeros((n, 1)), below, np.ones((n, 1))]), axis=1)
    return Outcomes(requests, success, np.array(["synthetic"] * n)), shares.astype(np.float32)


def test_a_random_order_recovers_half_the_gap():
    """The mean APGR of random scores is one half, and so is a score that tells nothing."""
    rng = np.random.default_rng(0)
    weak, strong = (rng.random(300) < 0.4).astype(float), (rng.random(300) < 0.8).astype(float)
    drawn = [apgr(rng.random(300), weak, strong) for _ in range(200)]
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.02)
    assert apgr(np.ones(300), weak, strong) == pytest.approx(0.5)


def test_apgr_and_cpt_of_a_curve_worked_by_hand():
    """Four requests, the strong tier gains on two; sent first they recover all of the gap at half the calls."""
    weak, strong = np.array([0.0, 0.0, 1.0, 1.0]), np.ones(4)
    best, worst = np.array([4.0, 3.0, 2.0, 1.0]), np.array([1.0, 2.0, 3.0, 4.0])
    assert gap_recovered(best, weak, strong)[1].tolist() == [0, 0.5, 1, 1, 1]
    assert apgr(best, weak, strong) == pytest.approx(0.75)
    assert apgr(worst, weak, strong) == pytest.approx(0.25)
    assert [cpt(best, weak, strong, level) for level in (0.5, 0.8, 1.0)] == pytest.approx([0.25, 0.4, 0.5])
    assert cpt(worst, weak, strong, 0.5) == pytest.approx(0.75)


def test_ties_are_sent_in_the_mean_of_their_orders():
    """The order of the file does not matter where scores are equal."""
    rng = np.random.default_rng(1)
    scores, weak = rng.integers(0, 3, 60).astype(float), (rng.random(60) < 0.5).astype(float)
    shuffled = rng.permutation(60)
    assert apgr(scores, weak, np.ones(60)) == pytest.approx(apgr(scores[shuffled], weak[shuffled], np.ones(60)))


def test_without_a_gap_nothing_is_recovered():
    """Where the strong tier is not better the measures are not numbers."""
    assert np.isnan(apgr(np.arange(3.0), np.ones(3), np.ones(3)))
    assert np.isnan(cpt(np.arange(3.0), np.ones(3), np.zeros(3), 0.5))


def test_a_tier_that_was_not_tried_is_served_by_the_next_above():
    """Above first, as a routing table does it; below where there is none."""
    success = np.array([[0.1, NAN, 0.9, NAN], [0.1, NAN, 0.9, NAN], [0.1, 0.2, NAN, NAN]])
    assert served_tiers(np.array([1, 3, 2]), success).tolist() == [2, 2, 1]
    assert success_and_cost(np.array([1, 3, 2]), success, (1, 2, 3, 4)) == (
        pytest.approx(2.0 / 3),
        pytest.approx(8 / 3),
    )


def test_the_oracle_takes_the_cheapest_of_the_best():
    """Equal success at less cost wins."""
    assert oracle_tiers(np.array([[0.5, 1.0, 1.0, NAN], [NAN, 0.2, 0.1, 0.2]])).tolist() == [1, 1]


def test_a_good_model_lies_between_the_random_router_and_the_oracle():
    """On outcomes of known difficulty the measures order routers as they must be."""
    outcomes, shares = synthetic()
    policies = {"p": choose_many(shares, 0.7)}
    found = measure(outcomes, shares, prices=(1, 2, 5, 20), policies=policies, draws=100)["sources"]["synthetic"]
    pair = found["pairs"]["standard against complex"]["scores"]
    assert 0.5 < pair["model_between"]["apgr"][0] < pair["oracle"]["apgr"][0]
    assert pair["length"]["apgr"][0] == pytest.approx(0.5, abs=0.08)
    fails = found["simple_fails"]
    assert fails["auroc"]["model"][0] > 0.9
    assert fails["above"]["length"][1] > 0.2
    points, drawn = found["cost_quality"]["points"], found["cost_quality"]["random"]
    assert points["p"]["cost"] == pytest.approx(drawn["p"]["cost"])
    assert drawn["p"]["quality"] < points["p"]["quality"] <= points["oracle"]["quality"]


def test_between_two_tiers_a_model_is_judged_by_what_the_dearer_of_them_adds():
    """Who knows which requests complex mends orders them like the oracle, though others are for frontier alone."""
    labels = np.tile([1, 2, 3], 40)
    success = (np.arange(4) >= labels[:, None]).astype(float)
    outcomes = Outcomes([Request.from_text("x")] * 120, success, np.array(["known"] * 120))
    found = measure(outcomes, np.eye(4, dtype=np.float32)[labels], prices=(1, 2, 5, 20), draws=20)["sources"]["known"]
    pair = found["pairs"]["standard against complex"]
    apgrs = {name: values["apgr"][0] for name, values in pair["scores"].items()}
    assert apgrs["model_between"] == apgrs["oracle"] == pytest.approx(5 / 6)
    assert apgrs["model"] == pytest.approx(2 / 3)
    assert set(pair["apgr_above"]) == {"length", "model_between"}
    assert pair["apgr_above"]["model_between"][0] == pytest.approx(-1 / 6)


def test_tiers_without_a_gap_are_not_compared():
    """Where the dearer tier satisfies no more often there is no gap to recover, and no number for one."""
    outcomes, shares = synthetic(60)
    outcomes.success[:, Tier.COMPLEX.index] = outcomes.success[:, Tier.STANDARD.index]
    found = measure(outcomes, shares, prices=(1, 2, 5, 20), draws=20)["sources"]["synthetic"]
    assert found["pairs"]["standard against complex"] is None


def test_sources_are_never_pooled():
    """A source's numbers are those of its rows alone, beside whatever other source."""
    outcomes, shares = synthetic(80)
    both = Outcomes(outcomes.requests, outcomes.success, np.array(["a"] * 40 + ["b"] * 40))
    found = measure(both, shares, prices=(1, 2, 5, 20), draws=20)["sources"]
    first = both.take(both.sources == "a")
    assert found["a"] == measure(first, shares[:40], prices=(1, 2, 5, 20), draws=20)["sources"]["a"]
    assert [found[name]["rows"] for name in "ab"] == [40, 40]


def test_a_tier_fails_where_less_than_half_of_its_tries_satisfied():
    """Half of them are enough."""
    outcomes, shares = synthetic(60)
    outcomes.success[:, 0] = np.repeat([0.5, 0.49, 1.0], 20)
    found = measure(outcomes, shares, prices=(1, 2, 5, 20), draws=20)["sources"]["synthetic"]
    assert found["simple_fails"]["fails"] == pytest.approx(1 / 3)


def test_the_curve_goes_from_the_cheapest_tier_to_the_dearest():
    """A rising threshold only ever costs more."""
    outcomes, shares = synthetic(100)
    curve = cost_quality(outcomes.success, shares, (1, 2, 5, 20), {})["curve"]
    costs = [p["cost"] for p in sorted(curve, key=lambda p: p["threshold"])]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]


def test_a_tier_that_few_requests_tried_is_not_compared():
    """No number is better than one from five rows."""
    outcomes, shares = synthetic(60)
    outcomes.success[5:, Tier.COMPLEX.index] = NAN
    found = measure(outcomes, shares, prices=(1, 2, 5, 20), draws=20)["sources"]["synthetic"]
    assert found["pairs"]["standard against complex"] is None
    assert found["pairs"]["simple against frontier"] is not None


def write(path, rows):
    """An outcome file."""
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def test_only_the_asked_split_is_read(tmp_path):
    """Rows of another split were trained on; rows that state none are taken."""
    known = {"success_by_tier": {"simple": 0.5, "complex": 1.0}}
    rows = [{"prompt": f"p{i}", "split": s, **known} for i, s in enumerate(("train", "dev"))]
    found = read_outcomes([write(tmp_path / "bench.jsonl.gz", [*rows, {"prompt": "p", **known}])])
    assert (len(found), found.sources.tolist()) == (2, ["bench", "bench"])
    np.testing.assert_array_equal(found.success, [[0.5, np.nan, 1.0, np.nan]] * 2)


def test_a_request_with_outcomes_is_the_one_that_was_made(tmp_path):
    """The answer behind it is none of its text, and the gateway's labels say which threshold it gets."""
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Hello!"}]
    row = {"messages": messages, "labels": {"tenant": "acme"}, "success_by_tier": {"simple": 1}}
    [request] = read_outcomes([write(tmp_path / "bench.jsonl", [row])]).requests
    assert request == Request.from_text("hi", labels={"tenant": "acme"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p"}, ":1: not an outcome row .*success_by_tier"),
        ({"success_by_tier": {"simple": 1}}, ":1: not an outcome row"),
        ({"prompt": "p", "success_by_tier": {}}, ":1: not an outcome row .*the share of no tier"),
        ({"prompt": "p", "success_by_tier": {"simple": 20}}, ":1: not an outcome row .*simple is 20"),
        ({"prompt": "p", "split": "train", "success_by_tier": {"simple": 1}}, "no row of the split 'dev'"),
    ],
)
def test_a_file_without_outcomes_is_named(tmp_path, row, message):
    """File, line and what was expected."""
    with pytest.raises(InputError, match=message):
        read_outcomes([write(tmp_path / "x.jsonl", [row])])
