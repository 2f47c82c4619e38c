"""Which labels are fair: audits, and nothing that is known because of what was chosen."""

from __future__ import annotations

import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

from tests.feedback_set_support import export_row, silent
from training.calibration_set import TRAINING_ROWS, pack_rows
from training.corpus import parse_row
from training.feedback_set import SetOptions, build
from training.frozen import Frozen, conversations
from training.held_out import audits, feedback_rows, hold_out, kept_for_judging, recent_log

ALL = SetOptions(principal_share=1.0)
SAMPLE = ("sample", "audit")
AUDIT = dict([SAMPLE])


def test_only_what_was_tried_from_simple_up_is_closed():
    """An audit is closed where a tier satisfied it; others are open, or began higher without a floor that asks it."""
    rows = [
        export_row(0, served_tier="simple"),
        export_row(1, served_tier="simple", verdict="escalated", accepted_tier="frontier"),
        export_row(2, served_tier="simple", verdict="escalated"),
        export_row(3, served_tier="standard", verdict="escalated", accepted_tier="complex"),
        silent(4),
        export_row(5, served_tier="simple", request=None),
        export_row(6, served_tier="complex", floor="complex"),
    ]
    found, counts = audits(rows, ALL)
    assert {row.id: row.tier.name for row in found} == {"d0": "SIMPLE", "d1": "FRONTIER"}
    assert counts == {"audits": 7, "closed": 2, "open": 3, "higher": 1, "no_text": 1, "capped": 0}


def test_a_request_that_was_audited_again_counts_again():
    """What is promised is about traffic, which repeats requests; each time is a label of its own."""
    rows = [
        export_row(0, text="a", served_tier="simple"),
        export_row(1, text="a", served_tier="simple", verdict="escalated", accepted_tier="complex", decided_at=2e6),
    ]
    found, counts = audits(rows, ALL)
    assert [(row.id, row.tier.name) for row in found] == [("d0", "SIMPLE"), ("d1", "COMPLEX")]
    assert (counts["closed"], counts["open"]) == (2, 0)


def test_requests_keep_the_labels_that_group_them():
    """What a policy goes by is known of audits, of traffic and of the log, though the text came without it."""
    rows = [export_row(i, served_tier="simple", labels={**AUDIT, "tenant": "acme"}) for i in range(3)]
    found = hold_out(Frozen([], rows, SAMPLE), [], SimpleNamespace(manifest={}), options=ALL, most=10)
    log = build([export_row(0, labels={"tenant": "acme"})]).log
    requests = [row.request for row in found.recent] + found.traffic + list(log.requests)
    assert [request.labels["tenant"] for request in requests] == ["acme"] * 7


def test_a_caller_whose_requests_all_fail_is_believed():
    """Audits report acceptances too, so a caller without any is not one-sided: its requests are hard."""
    hard = {"served_tier": "simple", "verdict": "escalated", "accepted_tier": "complex"}
    assert len(audits([export_row(i, **hard) for i in range(50)], ALL)[0]) == 50


def test_a_stored_text_that_is_no_request_stops_no_round():
    """A row whose text is not valid is left out of traffic and of what is kept for judging, as it is of the log."""
    frozen = Frozen([], [export_row(0), export_row(1, request={"messages": []})], SAMPLE)
    assert len(hold_out(frozen, [], SimpleNamespace(manifest={}), options=ALL, most=10).traffic) == 1
    assert len(conversations(frozen.recent)) == 1


def test_a_flood_of_audits_has_no_more_than_its_share():
    """10,000 audits of one caller are cut to a fifth of all, and say whose they are."""
    rows = [export_row(f"{c}.{i}", caller=f"c{c}", served_tier="simple") for c in range(9) for i in range(20)]
    rows += [export_row(f"l{i}", caller="liar", served_tier="simple", text=f"l{i}") for i in range(10_000)]
    found, counts = audits(rows, SetOptions(principal_share=0.2))
    mine = sum(row.source == "liar" for row in found)
    assert mine <= 0.2 * len(found) + 1
    assert len(found) - mine == 180
    assert counts["capped"] == 10_000 - mine


def test_earlier_audits_teach_or_map_and_never_both():
    """A half of the earlier audits teaches, the others fit maps; none came again lately, and recent ones do neither."""
    early = [export_row(i, served_tier="simple", labels=AUDIT) for i in range(300)]
    late = [export_row(f"n{i}", text=f"prompt {i}", served_tier="simple", labels=AUDIT) for i in range(250, 350)]
    serving = SimpleNamespace(manifest={TRAINING_ROWS: ""})
    found = hold_out(Frozen(early, late, SAMPLE), [], serving, options=ALL, most=10)
    left, judged = found.to_fit(retrained=True)
    taught, mapped, recent = ({row.sha256 for row in rows} for rows in (found.taught, left, judged))
    assert not taught & mapped | (taught | mapped) & recent
    assert len(taught) + len(mapped) == 250
    assert 90 < len(taught) < 160
    assert (len(found.earlier), len(found.recent), len(found.traffic)) == (250, 100, 10)
    assert found.to_fit(retrained=False) == (found.earlier, found.recent)


def test_what_the_bundle_was_trained_on_teaches_and_fits_no_map():
    """Audits of prompts from the training set fit no map, whose probabilities would be too sure; they may teach."""
    rows = [export_row(i, served_tier="simple", labels=AUDIT) for i in range(50)]
    packed = pack_rows(row.sha256 for row in audits(rows, ALL)[0])
    serving = SimpleNamespace(manifest={TRAINING_ROWS: packed})
    found = hold_out(Frozen(rows, [], SAMPLE), [], serving, options=ALL, most=10)
    assert (len(found.earlier), len(found.taught)) == (0, 50)


def test_recent_audits_fit_the_map_of_what_was_taught_where_no_others_are_left():
    """Without earlier audits a half of the recent ones fits the map, and the others the thresholds; of few, none."""
    for count, halves in ((199, (0, 199)), (200, (100, 100)), (301, (150, 151))):
        rows = [export_row(f"n{i}", served_tier="simple", labels=AUDIT) for i in range(count)]
        held = hold_out(Frozen([], rows, SAMPLE), [], SimpleNamespace(manifest={}), options=ALL, most=10)
        mapped, judged = held.to_fit(retrained=True)
        assert not {row.sha256 for row in mapped} & {row.sha256 for row in judged}
        assert (len(mapped), len(judged)) == halves


def test_recent_audits_all_judge_where_others_fit_the_map():
    """With earlier audits enough for the map of what was taught, no recent one is taken for it."""
    early = [export_row(i, served_tier="simple", labels=AUDIT) for i in range(300)]
    late = [export_row(f"n{i}", served_tier="simple", labels=AUDIT) for i in range(300)]
    held = hold_out(Frozen(early, late, SAMPLE), [], SimpleNamespace(manifest={}), options=ALL, most=10)
    mapped, judged = held.to_fit(retrained=True)
    assert (judged, {row.sha256 for row in mapped} <= {row.sha256 for row in held.earlier}) == (held.recent, True)
    none = replace(held, recent=[])
    assert none.to_fit(retrained=True) == (mapped, [])
    with warnings.catch_warnings(action="error"):
        assert replace(none, earlier=[], taught=[]).to_fit(retrained=True) == ([], [])


def test_golden_rows_are_labelled_ones_and_so_many_at_most():
    """A test row of which only an interval is known judges nobody; of more than are wanted a hash tells which."""
    base = [parse_row({"prompt": f"p {i}", "tier": "simple", "split": "test"}, "base") for i in range(12)]
    wide = parse_row({"prompt": "wide", "at_least": "standard", "split": "test"}, "base")
    few, all_ = (
        hold_out(Frozen([], [], SAMPLE), [wide, *base], SimpleNamespace(manifest={}), options=ALL, most=most).golden
        for most in (5, 100)
    )
    assert (few, len(all_)) == (all_[:5], 12)


def test_the_serving_bundle_is_judged_by_nothing_that_it_was_trained_on():
    """Golden rows are unseen test rows with a juror's tier, and an audit of a prompt that was trained on is none."""
    base = [
        parse_row({"prompt": f"{split} {i}", "tier": "simple", "split": split}, "base")
        for split in ("test", "train")
        for i in range(2)
    ]
    base.append(parse_row({"prompt": "an outcome", "tier": "simple", "label": "OUTCOME", "split": "test"}, "base"))
    rows = [export_row(i, served_tier="simple", labels=AUDIT) for i in range(2)]
    learnt = pack_rows([base[0].sha256, audits(rows[:1], ALL)[0][0].sha256])
    found = hold_out(Frozen([], rows, SAMPLE), base, SimpleNamespace(manifest={TRAINING_ROWS: learnt}),
                     options=ALL, most=10)  # fmt: skip
    assert ([row.sha256 for row in found.golden], [row.id for row in found.recent]) == ([base[1].sha256], ["d1"])


def test_recent_traffic_teaches_nothing():
    """A request of the recent window is trained on by no round that is judged on such, whoever asked it before."""
    early = [export_row(f"e{i}", text=f"prompt {i}") for i in range(4)]
    frozen = Frozen(early, [silent(i, text=f"prompt {i}") for i in range(3)], SAMPLE)
    held = hold_out(frozen, [], SimpleNamespace(manifest={}), options=ALL, most=10)
    rows, _ = feedback_rows(frozen, held, kept_for_judging(frozen, held), ALL)
    assert [row.id for row in rows] == ["de3"]


def test_audits_weigh_alike_and_are_no_part_of_the_log():
    """An audit of a month ago is as good a label as one of today; its tier was not the one that the log has."""
    rows = [export_row(i, tier="simple", decided_at=1e6 + i * 86_400 * 30, labels=AUDIT) for i in range(2)]
    assert [row.weight for row in audits(rows, ALL)[0]] == [1.0, 1.0]
    assert len(recent_log(Frozen([], [*rows, export_row("n")], SAMPLE), ALL, 10)) == 1


def test_where_audits_went_is_told():
    """Who has too few closed audits is told what became of the others, and what may be done about it."""
    rows = [export_row(i, served_tier="simple", labels=AUDIT) for i in range(3)]
    rows += [export_row("n", served_tier="simple", request=None, labels=AUDIT), silent("s", labels=AUDIT)]
    rows += [export_row("o", caller="a test", served_tier="simple", labels=AUDIT)]
    given = SetOptions(principal_share=0.2)
    held = hold_out(Frozen([], rows, SAMPLE), [], SimpleNamespace(manifest={}), options=given, most=10)
    assert held.told() == (
        "2 recent audits are closed (and 1 open, 1 without a text, which --store text keeps, 2 over the "
        "--principal-share of their callers)"
    )


@pytest.mark.parametrize(("higher", "told"), [(11, ""), (12, "12 of 112 recent audits were judged above simple")])
def test_audits_reported_try_by_try_fit_nothing(higher, told):
    """Where each try is a report of its own the hard ones end above simple: more than α of all, and none is fitted."""
    rows = [export_row(i, served_tier="simple", labels=AUDIT) for i in range(100)]
    rows += [export_row(f"h{i}", served_tier="standard", outcome_count=2, labels=AUDIT) for i in range(higher)]
    held = hold_out(Frozen([], rows, SAMPLE), [], SimpleNamespace(manifest={}), options=ALL, most=10)
    why = held.lack(held.recent, of="the serving bundle", alpha=0.1, label="sample=audit")
    assert why[: len(told) or None] == told


def test_what_looks_like_a_row_that_judges_is_not_trained_on():
    """A manifest tells rows by 32 bits, so one that has those of a recent audit would void it."""
    late = [export_row(i, served_tier="simple", labels=AUDIT) for i in range(3)]
    early = [export_row(f"e{i}", served_tier="simple", labels=AUDIT) for i in range(9)]
    frozen = Frozen(early, late, SAMPLE)
    held = hold_out(frozen, [], SimpleNamespace(manifest={}), options=ALL, most=10)
    twin = replace(held.taught[0], sha256=held.recent[0].sha256[:8] + 56 * "0")
    rows, counts = feedback_rows(
        frozen, replace(held, taught=[twin, *held.taught]), kept_for_judging(frozen, held), ALL
    )
    assert (rows, counts["kept_for_judging"]) == (held.taught, 1)


def test_nothing_that_fits_a_map_or_judges_is_trained_on():
    """Earlier audits that do not teach, recent ones and golden rows are kept, whoever else asked the same."""
    late = [export_row(i, served_tier="simple", labels=AUDIT) for i in range(3)]
    early = [export_row(f"e{i}", served_tier="simple", labels=AUDIT) for i in range(9)]
    golden = parse_row({"prompt": "golden", "tier": "simple", "split": "test"}, "base")
    again = [export_row(f"a{i}", text=f"prompt e{i}", caller="another") for i in range(9)]
    again += [export_row(f"b{i}", text=f"prompt {i}", caller="another") for i in range(3)]
    frozen = Frozen([*early, *again, export_row("g", text="golden")], late, SAMPLE)
    held = hold_out(frozen, [golden], SimpleNamespace(manifest={}), options=ALL, most=10)
    rows, _ = feedback_rows(frozen, held, kept_for_judging(frozen, held), ALL)
    assert {row.sha256 for row in rows} == {row.sha256 for row in held.taught}
    assert 0 < len(held.taught) < len(early)


def test_traffic_is_drawn_from_all_that_is_recent():
    """The latest tenth of the recent requests is of another kind: it is about a tenth of traffic and log."""
    rows = [export_row(i, text="night" if i >= 900 else f"day {i}") for i in range(1000)]
    frozen = Frozen([], rows, SAMPLE)
    traffic = hold_out(frozen, [], SimpleNamespace(manifest={}), options=ALL, most=200).traffic
    for requests in (traffic, recent_log(frozen, ALL, 200).requests):
        assert len(requests) == 200
        assert 8 <= sum(request.messages[0].content == "night" for request in requests) <= 35


def test_texts_that_came_with_outcomes_are_no_traffic():
    """Where the store keeps no text, those of audits were drawn at random, and those of who complained were not."""
    easy = [silent(i, request=None) for i in range(90)]
    hard = [export_row(f"h{i}", text="hard", verdict="escalated") for i in range(20)]
    drawn = [export_row(f"a{i}", text="drawn", served_tier="simple", labels=AUDIT) for i in range(10)]
    frozen = Frozen([], [*easy, *hard, *drawn], SAMPLE)
    traffic = hold_out(frozen, [], SimpleNamespace(manifest={}), options=ALL, most=200).traffic
    assert [request.messages[0].content for request in traffic] == ["drawn"] * 10


def test_a_request_that_came_again_fits_thresholds_as_often_as_it_came():
    """A quarter of the recent audits is one prompt: it is a quarter of what thresholds stand on, and fits no map."""
    rows = [export_row(i, served_tier="simple", labels=AUDIT) for i in range(300)]
    rows += [export_row(f"a{i}", text="hello", served_tier="simple", labels=AUDIT) for i in range(100)]
    found = hold_out(Frozen([], rows, SAMPLE), [], SimpleNamespace(manifest={}), options=ALL, most=10)
    mapped, judged = found.to_fit(retrained=True)
    repeated = sum(row.request.messages[0].content == "hello" for row in judged)
    assert 0.15 < repeated / len(judged) < 0.35
    assert len(mapped) > 100
    assert not {row.sha256 for row in mapped} & {row.sha256 for row in judged}
