"""What routing would save: pure."""

from __future__ import annotations

import numpy as np
import pytest

from classifier.errors import SettingsError
from classifier.intervals import Interval
from classifier.prices import Prices, read_prices
from classifier.resampling import units_of
from classifier.savings import (
    Comparison,
    compare,
    concentration,
    movers,
    recommend,
    strategies,
)
from classifier.types import TIERS, Tier

CERTAIN = np.eye(4)


def compared(tiers, costs, *, probabilities=None, **more):
    """Every strategy beside routing, by name."""
    tiers = np.asarray(tiers)
    likely = CERTAIN[tiers] if probabilities is None else probabilities
    found = strategies(tiers, likely, np.asarray(costs, dtype=float), **more)
    units, _ = units_of(len(tiers))
    return {c.name: c for c in compare(found, likely, units, draws=300)}


def test_costs_are_summed_over_requests_by_strategy():
    """Routing pays each request's own tier, one model for all pays one column, the random router the mean by share."""
    costs = [[1, 2, 3, 10]] * 4
    by = compared([0, 0, 0, 3], costs)
    assert by["routed"].cost.estimate == 13
    assert by["standard"].cost.estimate == 8
    assert by["random"].cost.estimate == 4 * (0.75 * 1 + 0.25 * 10)
    assert by["frontier"].saving.estimate == 40 - 13
    assert by["frontier"].saving_share.estimate == pytest.approx(27 / 40)


def test_the_random_router_has_the_same_shares_and_no_sight():
    """A certain classifier routes without risk; the router of equal shares meets every label by chance alone."""
    by = compared([0, 0, 1, 3], [[1, 2, 3, 10]] * 4)
    assert by["routed"].risk.estimate == 0
    # Labels: simple twice, standard, frontier. Draws below: standard is missed by half, frontier by three quarters.
    assert by["random"].risk.estimate == pytest.approx((0 + 0 + 0.5 + 0.75) / 4)
    assert by["random"].frontier_misses.estimate == pytest.approx(0.75)


def test_one_model_for_all_misses_what_needs_more():
    """Its risk is the share of labels above its tier; at the top there is none."""
    by = compared([0, 1, 2, 3], [[1, 2, 3, 10]] * 4)
    assert [by[t.label].risk.estimate for t in TIERS] == [0.75, 0.5, 0.25, 0.0]
    assert [by[t.label].frontier_misses.estimate for t in TIERS] == [1, 1, 1, 0]


def test_the_top_tier_is_never_too_small():
    """Probabilities whose float sum stays below 1 leave no risk to the model above which there is none."""
    by = compared([0, 0], [[1, 2, 3, 10]] * 2, probabilities=np.tile([0.5, 0.25, 0.125, 0.125 - 1e-7], (2, 1)))
    assert by["complex"].risk.estimate == by["complex"].frontier_misses.estimate * 0.125
    assert by["frontier"].risk == (0, 0, 0)


def test_today_counts_only_requests_of_known_cost():
    """Where the log has no cost, neither side of the comparison counts the request."""
    by = compared([0, 3], [[1, 2, 3, 10]] * 2, cost_today=np.array([5.0, np.nan]), tiers_today=np.array([2, -1]))
    assert (by["today"].requests, by["today"].cost.estimate, by["today"].saving.estimate) == (1, 5.0, 4.0)
    assert by["today"].risk.estimate == 0.0


def test_intervals_cover_the_true_mean_about_as_often_as_they_say():
    """On heavy-tailed costs, 95 % intervals of the total hold the expected total in most of 200 samples."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        costs = rng.lognormal(0, 1, size=(400, 1)) * np.array([1.0, 2.0, 3.0, 4.0])
        found = strategies(np.zeros(400, dtype=np.int64), np.tile(CERTAIN[0], (400, 1)), costs)
        low, high = compare(found, CERTAIN[np.zeros(400, int)], np.arange(400), draws=200)[0].cost[1:]
        held += low <= 400 * np.exp(0.5) <= high
    assert 175 <= held <= 199


def test_blocks_of_random_requests_give_the_width_of_single_ones():
    """Resampling 50 blocks of 20 gives about the interval that resampling 1,000 requests gives."""
    rng = np.random.default_rng(1)
    costs = rng.exponential(size=(1000, 1)) * np.ones(4)
    found = strategies(np.zeros(1000, dtype=np.int64), np.tile(CERTAIN[0], (1000, 1)), costs)
    widths = []
    for units in (np.arange(1000), rng.permutation(np.arange(1000) % 50)):
        cost = compare(found, CERTAIN[np.zeros(1000, int)], units, draws=2000)[0].cost
        widths.append(cost.high - cost.low)
    assert widths[0] == pytest.approx(widths[1], rel=0.35)


def test_days_are_resampled_where_there_are_enough():
    """Requests of one day are alike, so from 20 days on a day is the unit; before, or with gaps, a request is."""
    days = np.repeat(np.arange(25), 4) * 86_400.0
    units, what = units_of(100, days)
    assert (what, units.max() + 1, len(set(units[:4]))) == ("days", 25, 1)
    assert units_of(100, days % (10 * 86_400))[1] == "requests"
    assert units_of(100, np.where(days > 0, days, np.nan))[1] == "requests"


def fixed(name, cost, risk, *, saving=(1.0, 0.5, 1.5), above=(0.2, 0.1, 0.3)):
    """A comparison whose numbers are given."""
    return Comparison(
        name, 10, Interval(cost, cost, cost), Interval(*saving), Interval(0.5, 0.4, 0.6), Interval(risk, risk, risk),
        Interval(1.0 if risk else 0.0, 0, 1), Interval(*above),
    )  # fmt: skip


def table(**changes):
    """Routing at 3 dollars and a risk of .05, one model from 1 to 100 dollars."""
    rows = {
        "routed": fixed("routed", 3.0, 0.05),
        "random": fixed("random", 3.0, 0.30),
        "simple": fixed("simple", 1.0, 0.60, saving=(-2.0, -2.5, -1.5)),
        "standard": fixed("standard", 2.0, 0.30, saving=(-1.0, -1.5, -0.5)),
        "complex": fixed("complex", 10.0, 0.02, saving=(7.0, 6.0, 8.0)),
        "frontier": fixed("frontier", 100.0, 0.0, saving=(97.0, 96.0, 98.0)),
    }
    return list((rows | changes).values())


def test_routing_is_recommended_where_it_is_surely_cheaper_than_one_safe_model():
    """The comparison is with the cheapest single tier that is safe enough, not with the dearest."""
    advice = recommend(table(), promised=0.10)
    assert (advice.routing, advice.tier) == (True, "complex")
    assert advice.sentence.startswith("Route: it costs $3.00 instead of $10.00")


@pytest.mark.parametrize(
    ("changes", "promised", "tier", "why"),
    [
        ({"complex": fixed("complex", 3.2, 0.02, saving=(0.2, -0.1, 0.5))}, 0.10, "complex", "not surely cheaper"),
        ({}, 0.35, "standard", "not surely cheaper"),
        ({"random": fixed("random", 3.0, 0.05, above=(0.0, -0.01, 0.01))}, 0.10, "complex", "adds nothing"),
        ({"routed": fixed("routed", 3.0, 0.20)}, 0.10, "complex", "recalibrate"),
    ],
    ids=["saving not sure", "a cheap model is safe enough", "no better than chance", "promise not kept here"],
)
def test_one_model_is_recommended_where_routing_does_not_earn_its_keep(changes, promised, tier, why):
    """Each reason names itself, and the tier is the cheapest that is safe enough."""
    advice = recommend(table(**changes), promised)
    assert (advice.routing, advice.tier) == (False, tier)
    assert why in advice.reason


@pytest.mark.parametrize(
    ("risk", "price"),
    [(0.02, "The price of one model is that 2.0% (2.0% to 2.0%) of requests need more than it"), (0.0, "")],
    ids=["below some", "below none"],
)
def test_the_price_of_one_model_is_told_where_it_has_one(risk: float, price: str):
    """Who is advised to use one model reads how many requests need more than it, if any do."""
    cheap = fixed("complex", 2.0, risk, saving=(-1.0, -1.5, -0.5))
    reason = recommend(table(complex=cheap), promised=0.10).reason
    assert price in reason
    assert ("The price" in reason) is bool(price)


def test_one_model_may_be_as_unsafe_as_routing_is():
    """Where routing is expected to break its promise, one model is held to what routing has, and not to the promise."""
    advice = recommend(table(routed=fixed("routed", 3.0, 0.05), complex=fixed("complex", 10.0, 0.04)), promised=0.025)
    assert advice.tier == "complex"
    assert "is above the 2.5% that it promises" in advice.reason


def test_movers_are_the_largest_differences_either_way():
    """Dearest first; what moves nothing, and what is not known, is left out."""
    routed, reference = np.array([1.0, 1.0, 9.0, 1.0]), np.array([1.0, 4.0, 1.0, np.nan])
    assert movers(routed, reference, 10).tolist() == [2, 1]
    assert concentration(routed, reference, [0.25])[0.25] == pytest.approx(8 / 11)


def test_prices_replace_the_defaults_one_by_one(tmp_path):
    """A tier that the file leaves out keeps its default; a model may name its tier."""
    (tmp_path / "prices.toml").write_text(
        "[tiers]\nsimple = 1\ncomplex = {input = 2, output = 8}\n"
        "[models]\nbig = {input = 5, output = 20, tier = 'complex'}"
    )
    prices = read_prices(tmp_path / "prices.toml")
    assert prices.tiers[Tier.STANDARD] == Prices().tiers[Tier.STANDARD]
    assert (prices.tiers[Tier.COMPLEX].input, prices.tiers[Tier.COMPLEX].output) == (2.0, 8.0)
    assert prices.models["big"].tier is Tier.COMPLEX


def test_a_routing_table_has_prices(tmp_path):
    """A tier costs what the route of its free requests costs, a model what its cheapest tier's route says."""
    text = "[routes.simple]\nmodel='a'\nprice_per_million_tokens=1\non_premises=true\n"
    text += "[routes.complex]\nmodel='b'\n[routes.frontier]\nmodel='b'\nprice_per_million_tokens=9"
    (tmp_path / "routing.toml").write_text(text)
    prices = read_prices(tmp_path / "routing.toml")
    assert {tier.label: price.input for tier, price in prices.tiers.items()} == {
        "simple": 1, "standard": 2.4, "complex": 2.4, "frontier": 9,
    }  # fmt: skip
    found = {name: (price.output, price.tier) for name, price in prices.models.items()}
    assert found == {"a": (1, Tier.SIMPLE), "b": (2.4, Tier.COMPLEX)}
    (tmp_path / "routing.toml").write_text("[routes.huge]\nmodel='a'")
    with pytest.raises(SettingsError, match=r"\[routes.huge\]: unknown tier"):
        read_prices(tmp_path / "routing.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[tiers", "is not TOML"),
        ("[tier]\nsimple = 1", "unknown key 'tier'"),
        ("[tiers]\nhuge = 1", "unknown tier 'huge'"),
        ("[tiers]\nsimple = 1\nSimple = 2", "simple stands there twice"),
        (f"[models]\nx = 1{'0' * 400}", "models.'x': input is 1000"),
        ("[tiers]\nsimple = -1", "tiers.simple: input is -1"),
        ("[tiers]\nsimple = true", "input is True"),
        ("[tiers]\nsimple = {input = 1}", "output is None"),
        ("[tiers]\nsimple = {input = 1, output = 1, tier = 'simple'}", "unknown key 'tier'"),
        ("[models]\nbig = {input = 1, output = 1, tier = 'huge'}", "models.'big'"),
        ("models = 3", "expected a table"),
    ],
)
def test_a_price_that_is_none_is_named(text, message, tmp_path):
    """The message names the entry and what was expected."""
    (tmp_path / "prices.toml").write_text(text)
    with pytest.raises(SettingsError, match=message):
        read_prices(tmp_path / "prices.toml")


def test_a_missing_price_file_is_named(tmp_path):
    """It says which file and what it should be."""
    with pytest.raises(SettingsError, match=r"nowhere\.toml"):
        read_prices(tmp_path / "nowhere.toml")
