"""The routing table: which route a request gets, and that a restricted one never leaves the premises."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from classifier.errors import NoAllowedRoute, SettingsError
from classifier.policy import Guarantee, Policy, decide, exploration
from classifier.routing import PRICES, Route, RoutingTable, is_restricted, read_table
from classifier.types import TIERS, Decision, Reason, Request, Tier

EXAMPLE = Path(__file__).parent.parent / "docs" / "examples" / "routing.toml"
PROVEN = Guarantee(alpha=0.1, method="CONFORMAL_RISK_CONTROL", bound=0.1, feasible=True)
SECRET = {"data": "restricted"}


def table_of(**places):
    """A table from tier names to a string of places: each letter a route, c in the cloud, p on premises."""
    return RoutingTable(
        {
            Tier.parse(name): tuple(
                Route(Tier.parse(name), f"{name}-{i}-{place}", 1.0, on_premises=place == "p")
                for i, place in enumerate(text)
            )
            for name, text in places.items()
        }
    )


MIXED = table_of(simple="p", standard="cp", complex="cp", frontier="c")
WIDENING = RoutingTable({Tier.COMPLEX: (Route(Tier.COMPLEX, "narrow", 1.0, 8000), Route(Tier.COMPLEX, "wide", 1.0))})


def decision_at(tier, **fields):
    values = {"model_tier": tier, "reason": Reason.MODEL, "policy": "p", "threshold": 0.5, "guaranteed": True}
    return Decision(tier=tier, probabilities=(0.25,) * 4, **(values | fields))


@pytest.mark.parametrize(
    ("places", "tier", "bounds", "model"),
    [
        ({"simple": "c", "standard": "c"}, "simple", {}, "simple-0-c"),
        ({"standard": "c", "frontier": "c"}, "complex", {}, "frontier-0-c"),
        ({"simple": "c", "standard": "c"}, "complex", {}, "standard-0-c"),
        ({"simple": "p", "complex": "cp"}, "standard", {"restricted": True}, "complex-1-p"),
        ({"simple": "p", "complex": "c"}, "standard", {"restricted": True}, "simple-0-p"),
        ({"simple": "p", "complex": "p"}, "standard", {"restricted": True, "ceiling": "standard"}, "simple-0-p"),
        ({"simple": "c", "standard": "c", "complex": "c"}, "simple", {"floor": "standard"}, "standard-0-c"),
    ],
    ids=["own", "next-above", "next-below", "restricted-above", "restricted-below", "ceiling", "floor"],
)
def test_a_request_gets_its_tier_else_the_next_above_else_the_next_below(places, tier, bounds, model):
    """The tier's own route comes first, then the cheapest above it, then the highest below it, within the bounds."""
    limits = {name: Tier.parse(value) if isinstance(value, str) else value for name, value in bounds.items()}
    assert table_of(**places).choose(Tier.parse(tier), **limits).model == model


def test_no_allowed_route_is_an_error_that_names_the_bounds():
    """Where nothing is left the error says what was looked for and where."""
    with pytest.raises(NoAllowedRoute, match=r"^data=restricted: the routing table has no on-premises route; add one$"):
        table_of(simple="c", frontier="c").choose(Tier.COMPLEX, restricted=True)
    with pytest.raises(NoAllowedRoute, match="has no route from complex to complex; add one, or widen floor"):
        table_of(simple="c").choose(Tier.COMPLEX, floor=Tier.COMPLEX, ceiling=Tier.COMPLEX)


def test_of_several_routes_the_first_that_is_wide_enough_is_taken():
    """A route whose context window is too small is passed over for another of its tier; where all are, the widest."""
    routes = tuple(Route(Tier.SIMPLE, str(window), 1.0, window) for window in (1000, 8000, 4000))
    table = RoutingTable({Tier.SIMPLE: routes})
    found = [table.choose(Tier.SIMPLE, chars=chars).model for chars in (10, 3000, 3003, 90_000)]
    assert found == ["1000", "1000", "8000", "8000"]
    unknown = RoutingTable({Tier.SIMPLE: (*routes, Route(Tier.SIMPLE, "unknown", 1.0))})
    assert unknown.choose(Tier.SIMPLE, chars=90_000).model == "unknown"


@pytest.mark.parametrize(
    ("tier", "labels", "expected"),
    [
        (Tier.STANDARD, {}, (Tier.STANDARD, "standard-0-c", Reason.MODEL, True)),
        (Tier.STANDARD, SECRET, (Tier.STANDARD, "standard-1-p", Reason.MODEL, True)),
        (Tier.FRONTIER, SECRET, (Tier.COMPLEX, "complex-1-p", Reason.ROUTE, False)),
    ],
    ids=["free", "restricted", "restricted-lowered"],
)
def test_a_decision_gets_its_route_and_keeps_its_promise_unless_it_is_lowered(tier, labels, expected):
    """A decision that is moved says so; one that is moved down is no longer guaranteed."""
    found = MIXED.apply(decision_at(tier), Request.from_text("x", labels=labels))
    assert (found.tier, found.route, found.reason, found.guaranteed) == expected
    assert found.model_tier is tier


def test_a_decision_that_is_moved_up_keeps_its_promise():
    """A higher tier than the chosen one cannot be too small more often."""
    table = table_of(simple="c", complex="p")
    found = table.apply(decision_at(Tier.SIMPLE), Request.from_text("x", labels=SECRET))
    assert (found.tier, found.reason, found.guaranteed) == (Tier.COMPLEX, Reason.ROUTE, True)
    unproven = table.apply(decision_at(Tier.SIMPLE, guaranteed=False), Request.from_text("x", labels=SECRET))
    assert not unproven.guaranteed


def test_the_label_is_read_whatever_its_case():
    """A label that somebody typed with a capital or a blank restricts as well."""
    values = ("restricted", "Restricted", " RESTRICTED\n", "public", "")
    assert [is_restricted({"data": value}) for value in values] == [True, True, True, False, False]
    assert is_restricted({" DATA": "restricted"})


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("data=restricted", True),
        (["data=Restricted"], True),
        ([{"data": "restricted"}], True),
        ({"data": ["eu", "restricted"]}, True),
        ({"data": {"class": "restricted"}}, True),
        ({"data": ["unrestricted"]}, False),
        ({"team": ["restricted"]}, False),
        ("public", False),
        (None, False),
        (5, False),
    ],
    ids=str,
)
def test_labels_of_another_shape_restrict_where_they_say_so(labels, expected):
    """A slip of whoever wrote them opens no door."""
    assert is_restricted(labels) is expected


places = st.lists(st.booleans(), max_size=3)
tables = st.fixed_dictionaries(dict.fromkeys(TIERS, places)).map(
    lambda found: RoutingTable(
        {
            tier: tuple(
                Route(tier, f"{tier.label}-{i}{'-home' if home else ''}", 1.0, on_premises=home)
                for i, home in enumerate(homes)
            )
            for tier, homes in found.items()
        }
    )
)
bounds = st.tuples(st.none() | st.sampled_from(TIERS), st.none() | st.sampled_from(TIERS)).filter(
    lambda pair: None in pair or pair[0] <= pair[1]
)
probabilities = st.lists(st.integers(0, 100), min_size=4, max_size=4).map(lambda n: [x / (sum(n) or 1) for x in n])


@given(
    table=tables,
    p=probabilities,
    limits=bounds,
    threshold=st.floats(0, 1),
    epsilon=st.sampled_from((0.0, 0.1, 0.5)),
    draw=st.none() | st.floats(0, 1, exclude_max=True),
    restricted=st.booleans(),
)
def test_whatever_happens_a_restricted_request_stays_on_premises(
    table, p, limits, threshold, epsilon, draw, restricted
):
    """Whatever the probabilities, bounds, thresholds and exploration: an allowed route within the bounds, or an error.

    The tier is the cheapest allowed one at or above the policy's, else the highest allowed below it, unguaranteed.
    """
    floor, ceiling = limits
    policy = Policy(name="p", threshold=threshold, guarantee=PROVEN, epsilon=epsilon)
    before = decide(p, policy, floor=floor, ceiling=ceiling, draw=draw)
    request = Request.from_text("x", floor=floor, ceiling=ceiling, labels=SECRET if restricted else {})
    allowed = [r for r in table if (r.on_premises or not restricted)]
    allowed = [r for r in allowed if (floor or Tier.SIMPLE) <= r.tier <= (ceiling or Tier.FRONTIER)]
    if not allowed:
        with pytest.raises(NoAllowedRoute):
            table.apply(before, request)
        return
    after = table.apply(before, request)
    assert after.route in {r.model for r in allowed if r.tier is after.tier}
    tiers = {r.tier for r in allowed}
    above = [tier for tier in tiers if tier >= before.tier]
    assert after.tier is (min(above) if above else max(tiers))
    assert after.guaranteed == (before.guaranteed and bool(above))
    assert (after.reason is Reason.ROUTE) == (after.tier is not before.tier)
    assert table.apply(after, request) == after


@given(
    table=tables,
    p=probabilities,
    ceiling=st.none() | st.sampled_from(TIERS),
    epsilon=st.sampled_from((0.1, 0.5)),
    restricted=st.booleans(),
)
def test_the_propensity_is_the_share_of_draws_that_lead_to_the_tier(table, p, ceiling, epsilon, restricted):
    """Where routes move explored tiers together, the propensities of the tiers that are reached still sum to 1."""
    policy = Policy(name="p", threshold=0.5, epsilon=epsilon)
    request = Request.from_text("x", ceiling=ceiling, labels=SECRET if restricted else {})
    reached = {}
    for draw in (0.999, *(epsilon * i / 200 for i in range(200))):
        before = decide(p, policy, ceiling=ceiling, draw=draw)
        base = min(before.model_tier, ceiling or Tier.FRONTIER)
        try:
            after = table.apply(before, request, exploration(base, epsilon, ceiling=ceiling))
        except NoAllowedRoute:
            return
        assert reached.setdefault(after.tier, after.propensity) == after.propensity
    assert sum(reached.values()) == pytest.approx(1)


def test_the_example_reads_and_its_prices_are_the_defaults(tmp_path):
    """The example in the documentation is a table; a price that it leaves out is the tier's default."""
    table = read_table(EXAMPLE)
    assert all(table.routes[tier] for tier in TIERS)
    path = tmp_path / "bare.toml"
    path.write_text("\n".join(f'[routes.{tier.label}]\nmodel = "m-{tier.label}"' for tier in TIERS))
    bare = read_table(path)
    assert {route.tier: route.price_per_million_tokens for route in bare} == dict(PRICES)
    assert not any(route.on_premises for route in bare)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[routes", "is not TOML"),
        ("", "has no routes"),
        ("[routes]\nsimple = []\nfrontier = []", "has no routes; write a table such as"),
        ("[route.simple]\nmodel='m'", "unknown key 'route'"),
        ("[routes.tiny]\nmodel='m'", r"\[routes.tiny\]: unknown tier 'tiny'; the tiers are simple"),
        ("[routes]\nsimple = 'm'", r"routes.simple\[0\]: expected a table with model"),
        ("[routes.simple]\nprice_per_million_tokens=1", r"routes.simple\[0\]: model: expected a name"),
        ("[routes.simple]\nmodel='m'\nprice=1", "unknown key 'price'; the keys are model, price_per_million_tokens"),
        ("[routes.simple]\nmodel='m'\nprice_per_million_tokens=-1", "expected dollars, 0 or more, found -1"),
        ("[routes.simple]\nmodel='m'\nprice_per_million_tokens=1" + "0" * 400, "expected dollars, 0 or more"),
        ("[routes.simple]\nmodel='m'\nprice_per_million_tokens=nan", "expected dollars, 0 or more, found nan"),
        ("[routes.simple]\nmodel='m'\nprice_per_million_tokens='1'", "expected dollars, 0 or more, found '1'"),
        ("[routes.simple]\nmodel='m'\ncontext_window=-1", "context_window: expected a whole number of tokens"),
        ("[routes.simple]\nmodel='m'\ncontext_window='8k'", "context_window: expected a whole number of tokens"),
        ("[routes.simple]\nmodel='m'\non_premises='no'", "on_premises: expected true or false, found 'no'"),
        ("[routes.simple]\nmodel='m'\n[routes.Simple]\nmodel='n'", "the tier simple stands there twice"),
        (
            "[routes.simple]\nmodel='m'\non_premises=true\n[routes.complex]\nmodel='m'",
            "model 'm' is on premises in one route and not in another",
        ),
    ],
)
def test_a_bad_table_is_refused_with_the_entry_at_fault(text, message, tmp_path):
    """What is wrong is named with what was found and what was expected."""
    path = tmp_path / "routing.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=message) as refused:
        read_table(path)
    assert str(refused.value).startswith(f"{path}: ")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    """A missing file and one that is not UTF-8 are settings errors with the path."""
    with pytest.raises(SettingsError, match=r"nowhere.toml: cannot be read"):
        read_table(tmp_path / "nowhere.toml")
    (tmp_path / "latin.toml").write_bytes(b'[routes.simple]\nmodel = "\xe9"')
    with pytest.raises(SettingsError, match="holds what is not UTF-8"):
        read_table(tmp_path / "latin.toml")


def test_a_table_pickles():
    """Bulk labelling hands tables to other processes."""
    assert pickle.loads(pickle.dumps(MIXED)) == MIXED
