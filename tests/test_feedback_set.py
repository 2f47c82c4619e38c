"""What becomes of decisions and outcomes before anything is learnt from them."""

from __future__ import annotations

import random

import numpy as np
import pytest

from classifier.policy import exploration
from classifier.routing import Route, RoutingTable
from classifier.types import Tier
from tests.feedback_set_support import export_row, silent
from training.corpus import OUTCOME, parse_row, read_corpus, write_corpus
from training.feedback_set import LEFT_OUT, SetOptions, build
from training.outcome_noise import error_rates, eta_of

SIMPLE, STANDARD, COMPLEX, FRONTIER = Tier


@pytest.mark.parametrize(
    ("changes", "low", "high"),
    [
        ({}, SIMPLE, STANDARD),
        ({"verdict": "rejected"}, COMPLEX, FRONTIER),
        ({"verdict": "escalated"}, COMPLEX, FRONTIER),
        ({"verdict": "escalated", "accepted_tier": "complex"}, COMPLEX, COMPLEX),
        ({"verdict": "escalated", "accepted_tier": "frontier"}, COMPLEX, FRONTIER),
        ({"verdict": "rejected", "tier": "frontier"}, FRONTIER, FRONTIER),
        ({"served_tier": "complex"}, SIMPLE, COMPLEX),
    ],
)
def test_an_outcome_is_evidence_about_an_interval(changes: dict, low: Tier, high: Tier):
    """What was judged at the served tier bounds the label, and the row says how far to believe it."""
    (row,) = build([export_row(1, **changes)]).rows
    assert (row.at_least, row.at_most, row.label, row.probabilities) == (low, high, OUTCOME, None)
    assert row.eta is not None
    assert 0 < row.eta < 0.5


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (silent(1), "silent"),
        (export_row(1, cause="availability", verdict="escalated"), "not_quality"),
        (export_row(1, cause="context_window", verdict="escalated"), "not_quality"),
        (export_row(1, cause="policy", verdict="rejected"), "not_quality"),
        (export_row(1, request=None), "no_text"),
        (export_row(1, request={"messages": [{"role": "nobody", "content": "x"}]}), "unusable"),
        (export_row(1, tier="frontier"), "says_nothing"),
        (export_row(1, decided_at=None), "no_decision"),
    ],
)
def test_what_says_nothing_is_left_out_and_counted(row: dict, why: str):
    """Silence, outages, missing text and the rest make no row, and each is counted under its own name."""
    found = build([row])
    assert found.rows == []
    assert {name: n for name, n in found.counts.items() if name in LEFT_OUT and n} == {why: 1}


def test_a_label_is_closed_where_the_tier_is_known():
    """An escalation whose end is known, and praise at simple, are closed; praise above and mere rejection stay open."""
    found = build(
        [
            export_row(1, tier="simple", verdict="escalated", accepted_tier="complex"),
            export_row(2, tier="simple"),
            export_row(3),
            export_row(4, verdict="rejected"),
        ]
    )
    assert {c.row.id: c.row.tier for c in found.closed} == {"d1": COMPLEX, "d2": SIMPLE}
    assert all(c.row.probabilities is not None for c in found.closed)


def test_what_nothing_satisfied_trains_as_frontier_and_closes_nothing():
    """A rejection at the top tier is a frontier row, counted as unserved, and never calibrates."""
    found = build([export_row(1, tier="frontier", verdict="rejected")])
    assert (len(found.rows), len(found.closed), found.counts["unserved"]) == (1, 0, 1)


def test_the_same_principal_says_a_thing_once():
    """The same request judged again at the same tier by the same principal counts once, the latest."""
    rows = [export_row(1, text="a"), export_row(2, text="a", decided_at=1_000_100.0, verdict="rejected")]
    found = build(rows)
    assert [row.at_least for row in found.rows] == [COMPLEX]
    assert found.counts["duplicate"] == 1
    assert len(build([rows[0], rows[1] | {"caller": "another"}]).rows) == 2


@pytest.mark.parametrize("verdicts", [("escalated",), ("accepted", *("escalated",) * 9)])
def test_a_flood_has_no_more_than_its_share(verdicts: tuple[str, ...]):
    """10,000 escalations from one principal among ten weigh what its share allows; the rest is counted."""
    rows = [export_row(f"{c}.{i}", caller=f"c{c}") for c in range(9) for i in range(50)]
    rows += [export_row(f"l{i}", caller="liar", verdict=verdicts[i % len(verdicts)]) for i in range(10_000)]
    found = build(rows)
    assert found.shares.get("liar", 0.0) <= 0.2 + 1e-9
    assert all(found.shares[f"c{c}"] > 0.08 for c in range(9))
    assert found.counts["capped"] + found.counts["one_sided"] > 9000


def test_two_principals_have_half_each():
    """Where the principals are too few for the cap, no one has more than an equal share."""
    rows = [export_row(i, caller="a") for i in range(10)] + [export_row(f"b{i}", caller="b") for i in range(90)]
    assert build(rows).shares == pytest.approx({"a": 0.5, "b": 0.5})


def test_a_label_may_tell_a_callers_clients_apart():
    """With a principal label the cap holds each client of one gateway."""
    rows = [export_row(i, labels={"tenant": f"t{i % 5}"}) for i in range(100)]
    rows += [export_row(f"x{i}", labels={"tenant": "loud"}) for i in range(900)]
    found = build(rows, options=SetOptions(principal_label="tenant"))
    assert found.shares["gateway/loud"] == pytest.approx(0.2, abs=0.01)


def test_who_never_praises_is_not_listened_to():
    """Failures of a caller that reports no acceptance are not representative: they are left out and counted."""
    rows = [export_row(i, verdict="rejected", caller="complains") for i in range(40)] + [export_row("x")]
    found = build(rows)
    assert (found.counts["one_sided"], len(found.rows)) == (40, 1)


@pytest.mark.parametrize(("failures", "one_sided"), [(29, 0), (30, 30)])
def test_few_failures_are_not_one_sided(failures, one_sided):
    """A caller is told to be so by thirty outcomes."""
    rows = [export_row(i, verdict="rejected", caller="complains") for i in range(failures)]
    assert build(rows).counts["one_sided"] == one_sided


@pytest.mark.parametrize(
    "beside",
    [
        [export_row(f"f{i}", tier="frontier", verdict="rejected") for i in range(40)],
        [export_row(f"f{i}", cause="availability", verdict="escalated") for i in range(40)],
    ],
    ids=["at the top", "outages"],
)
def test_what_no_praise_was_possible_of_makes_nobody_one_sided(beside):
    """Neither what nothing satisfied nor an outage says that a caller keeps its praise to itself."""
    assert build([*beside, export_row("x", verdict="rejected")]).counts["one_sided"] == 0


def test_who_never_praises_accuses_no_source():
    """Whether a source errs is told by its verdicts on requests judged twice, those of one-sided callers left out."""
    twice = [export_row(f"{i}.{j}", text=f"t{i}", caller=f"c{j}") for i in range(40) for j in range(2)]
    complaints = [export_row(f"x{i}", text=f"t{i}", caller="complains", verdict="rejected") for i in range(40)]
    alone, beside = build(twice), build(twice + complaints)
    assert beside.counts["one_sided"] == 40
    assert alone.error_rates["automatic"] != (0.15, 0.15)
    assert beside.error_rates == alone.error_rates


def test_a_principal_has_five_words_on_a_request():
    """That one repeats its verdict on a request proves something five times, and nothing more from then on."""

    def rates(words: int):
        return build([export_row(i, text="same", verdict="rejected") for i in range(words)]).error_rates["automatic"]

    assert rates(4) != rates(5) == rates(6) == rates(20)


def test_old_outcomes_weigh_less():
    """An outcome weighs half as much after a half-life."""
    rows = [export_row(1), export_row(2, decided_at=1_000_000.0 + 30 * 86_400)]
    assert [row.weight for row in build(rows).rows] == pytest.approx([0.5, 1.0])


def test_an_outcome_of_long_ago_is_evidence_still():
    """However old, it has a weight that is one: a corpus row of none would be refused."""
    rows = [export_row(1), export_row(2, decided_at=1_000_000.0 + 40_000 * 86_400)]
    assert [row.weight > 0 for row in build(rows).rows] == [True, True]


def test_requests_without_a_hash_are_one_each():
    """Where the store keeps no hash nobody knows that two requests are the same, and their rows are no group."""
    rows = [export_row(i, request_hash=None, labels=None, text="same") for i in range(2)]
    found = build(rows)
    assert (len(found.rows), found.counts["duplicate"]) == (2, 0)
    assert len({row.group for row in found.rows}) == 2
    (alone,) = {row.group for row in build([export_row(1, text="a"), export_row(2, text="a", caller="b")]).rows}
    assert alone == "ha"


def test_of_a_history_the_effective_outcome_is_evidence():
    """In whichever order the verdicts on a decision come, the one that stands is learnt from, beside all as words."""
    first = export_row(1, verdict="rejected", effective=False)
    last = export_row(1, outcome_id="o2", occurred_at=1_000_002.0)
    for rows in ([first, last], [last, first]):
        (row,) = build(rows).rows
        assert (row.at_least, row.at_most) == (SIMPLE, STANDARD)


def test_only_what_satisfied_at_the_top_is_at_most_frontier():
    """A label up to frontier because it satisfied is known; one that failed below and was tried no further is open."""
    known, open_ = build([
        export_row(1, verdict="escalated", accepted_tier="frontier"), export_row(2, verdict="rejected")
    ]).rows  # fmt: skip
    assert (known.at_most, open_.at_most) == (FRONTIER, FRONTIER)
    assert set(build([export_row(1)]).etas) >= {"automatic/accepted", "automatic/failed"}


@pytest.mark.parametrize("options", [{"principal_share": 0.0}, {"half_life_days": -1.0}])
def test_options_that_mean_nothing_are_refused(options):
    """A share of nothing, or an age that runs backwards, is named."""
    with pytest.raises(ValueError, match=next(iter(options))):
        SetOptions(**options)


def test_the_order_of_the_export_does_not_matter():
    """The same rows in another order make the same set."""
    rows = [export_row(i, caller=f"c{i % 4}", text=f"t{i % 50}", decided_at=1e6 + i % 7) for i in range(400)]
    one = build(rows)
    random.Random(0).shuffle(rows)
    other = build(rows)
    assert [r.id for r in one.rows] == [r.id for r in other.rows]
    assert one.as_json() == other.as_json()


def test_eta_travels_with_the_row(tmp_path):
    """A row's own eta is written to a corpus file and read back; one that is no evidence is refused."""
    rows = build([export_row(1)]).rows
    write_corpus(tmp_path / "rows.jsonl", rows)
    assert read_corpus([tmp_path / "rows.jsonl"])[0].eta == rows[0].eta
    with pytest.raises(ValueError, match="eta is"):
        parse_row({"prompt": "x", "at_most": "simple", "eta": 0.5}, "s")


def test_disagreement_tells_how_often_a_source_is_wrong():
    """Error rates of sources with many repeated verdicts come out near the truth; others keep their prior."""
    rng = np.random.default_rng(0)
    good = rng.random(3000) < 0.7
    items, sources, said = [], [], []
    for source, passes_bad, fails_good in (("reviewer", 0.04, 0.03), ("user", 0.35, 0.08)):
        for _ in range(2):
            items += list(range(3000))
            sources += [source] * 3000
            said += list(np.where(good, rng.random(3000) >= fails_good, rng.random(3000) < passes_bad))
    found = error_rates(items, [1] * len(items), sources, said)
    assert found["reviewer"] == pytest.approx((0.04, 0.03), abs=0.015)
    assert found["user"] == pytest.approx((0.35, 0.08), abs=0.03)
    assert found["judge"] == (0.12, 0.12)


def test_few_agreements_prove_nothing():
    """Three verdicts that agree leave a source near its prior."""
    found = error_rates(["a"] * 3, [0] * 3, ["user"] * 3, [True] * 3)
    assert found["user"] == pytest.approx((0.20, 0.15), abs=0.02)


def test_eta_is_the_likelihood_ratio_of_the_two_errors():
    """The odds of eta are those of the verdict on the wrong side to the verdict on the right side."""
    eta = eta_of((0.3, 0.1), accepted=True)
    assert eta / (1 - eta) == pytest.approx(0.3 / 0.9)
    assert eta_of((0.3, 0.1), accepted=False) == pytest.approx(0.1 / 0.8)


def test_the_log_knows_the_chance_of_every_tier():
    """An explored decision and one that stayed tell the same chances of every tier; else there is one."""
    stayed = export_row(1, propensity=0.8)
    moved = export_row(2, tier="simple", model_tier="standard", reason="explored", propensity=0.2 * 0.7 / 0.85)
    log = build([stayed, moved, export_row(3)]).log
    np.testing.assert_allclose(log.propensities[0], log.propensities[1], atol=1e-9)
    np.testing.assert_allclose(log.propensities.sum(axis=1), 1.0)
    assert log.base.tolist() == [1, 1, 1]
    assert log.propensities[2].tolist() == [0, 1, 0, 0]
    assert log.explored


@pytest.mark.parametrize("tiers", [(SIMPLE, FRONTIER), (SIMPLE, STANDARD), (STANDARD,), (SIMPLE, STANDARD, FRONTIER)])
@pytest.mark.parametrize("ceiling", [None, FRONTIER, COMPLEX])
def test_where_routes_lead_several_tiers_to_one_the_log_knows_the_chances_after_them(tiers, ceiling):
    """Decisions that were routed to another tier stay in the log, and no tier without a route has a chance there."""
    table = RoutingTable({tier: (Route(tier, tier.label, 1.0),) for tier in tiers})
    rng = random.Random(7)
    rows, expected = [], []
    for i in range(1000):
        base = min(rng.choice(list(Tier)), ceiling or FRONTIER)
        reach = exploration(base, 0.4, ceiling=ceiling)
        ends = {to: table.choose(to, ceiling=ceiling).tier for to in reach}
        chances = [sum(share for to, share in reach.items() if ends[to] is tier) for tier in Tier]
        (drawn,) = rng.choices(list(reach), list(reach.values()))
        reason = "route" if ends[drawn] is not drawn else "model" if drawn is base else "explored"
        rows.append(
            export_row(
                f"{i:04}", tier=ends[drawn].label, model_tier=base.label, reason=reason,
                ceiling=ceiling and ceiling.label, propensity=chances[ends[drawn].index], labels={"data": "restricted"},
            )
        )  # fmt: skip
        expected.append(chances)
    ordinary = export_row("9999", propensity=0.6, labels={})
    log = build([*rows, ordinary]).log
    expected.append([0.4 * 0.7 / 0.85, 0.6, 0.4 * 0.15 / 0.85, 0.0])
    np.testing.assert_allclose(log.propensities, expected, atol=1e-9)
    assert {Tier.from_index(t) for t in log.routed[:-1].ravel()} <= set(tiers)
    assert log.routed[-1].tolist() == [0, 1, 2, 3]


def test_the_chance_of_a_report_is_modelled_by_tier_and_caller():
    """A caller that reports half of its decisions is seen to, and a decision served elsewhere is not in the log."""
    rows = [(export_row if i % 2 else silent)(i, text=str(i)) for i in range(1000)]
    rows += [export_row(f"q{i}", caller="quick") for i in range(1000)] + [export_row("z", served_tier="complex")]
    found = build(rows)
    assert found.reporting["standard/gateway"] == (1000, 0.5)
    assert found.counts["log"] == 2000
    assert found.log.reporting.min() == pytest.approx(0.5, abs=0.01)
