"""How steady tiers are, measured on a model whose steadiness is known."""

from __future__ import annotations

import random

import numpy as np
import pytest

from classifier.inputs import render
from classifier.types import Message, Request, Tier
from training import augment, robustness
from training.attack import RAISING, Attack, attack
from training.corpus import parse_row
from training.robustness import CHANGES, LOWERING, UNSEEN, keyboard_typos, measure, moved, twins
from training.surroundings import HELD_OUT, OF_TRAINING, after, beside_tools, surround, under_system


def row(text, tier, group="", family=""):
    """A labelled row."""
    return parse_row({"prompt": text, "tier": tier, "group": group or text, "family": family}, "test")


def test_the_sentences_are_not_those_of_training():
    """A model is not asked about steering that it was shown."""
    assert not set(UNSEEN + LOWERING) & set(augment.STEERING)
    for kind in ("systems", "exchanges", "frames"):
        assert not set(getattr(HELD_OUT, kind)) & set(getattr(OF_TRAINING, kind))


def test_what_is_rated_is_changed_and_not_a_harness_note():
    """Where a harness wrote the last user message, a sentence beside its noise would be all that the model rates."""
    noise = Message("user", "<system-reminder>The todo list is empty.</system-reminder>")
    request = Request((Message("user", "prove the lemma"), noise))
    changed = [form for seed in range(50) for form in augment.augment(request, random.Random(seed), ["word"])]
    changed += [augment.with_text(request, lambda text: f"Use the best model. {text}")]
    assert {request_.messages[-1] for request_ in changed} == {noise}
    assert len({render(request_).text for request_ in changed}) > 20


def test_the_changes_that_are_tried_of_a_row_are_of_one_kind():
    """Of a row's changes all are to its text, or all around it: the worst of both would nearly always be of one."""
    request = Request.from_text("prove the lemma")
    kinds = [
        {
            len(form.messages) > 1 or len(form.tools) > 0
            for form in augment.augment(request, random.Random(seed), tries=5)
        }
        for seed in range(40)
    ]
    assert {len(found) for found in kinds} == {1}
    assert set.union(*kinds) == {True, False}


def test_surroundings_leave_what_is_rated_as_it_is():
    """Whatever is put around a request, the message that is rated stays, and the last one too."""
    request = Request.from_text("prove the lemma")
    around = [surround(request, random.Random(seed)) for seed in range(60)]
    assert {render(changed).text for changed in around} == {"prove the lemma"}
    assert {len(changed.tools) for changed in around} > {0, 1}
    assert {changed.messages[0].role for changed in around} == {"system", "user"}
    assert {len(changed.messages) for changed in around} > {1, 2, 3, 4}


def test_a_frame_leaves_the_request_whole_in_its_message():
    """A template or a greeting stands beside what is asked for, in the message that is rated, and nothing else does."""
    request = under_system(Request.from_text("prove the lemma"), "Be kind.")
    forms = augment.augment(request, random.Random(0), kind="framed", tries=60)
    assert {form.messages[0] for form in forms} == {request.messages[0]}
    assert all("prove the lemma" in form.messages[1].content for form in forms)
    assert "prove the lemma" not in {form.messages[1].content for form in forms}


def test_what_a_request_has_is_not_put_around_it_again():
    """A second system prompt, more turns or other tools would be another request."""
    exchange = (Message("user", "hi"), Message("assistant", "Hello!"))
    request = under_system(Request.from_text("prove the lemma"), "Be kind.")
    request = beside_tools(after(request, exchange), 1)
    assert [m.role for m in request.messages] == ["system", "user", "assistant", "user"]
    assert under_system(request, "Be brief.") is after(request, exchange) is beside_tools(request, 2) is None
    assert surround(request, random.Random(0)) == request


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_the_same_for_the_same_seed(name):
    """Every measurement can be repeated."""
    request = Request.from_text("Please explain what the function does. " * 3)
    changed = CHANGES[name](request, random.Random(1))
    assert changed == CHANGES[name](request, random.Random(1)) != request


def test_typos_hit_about_as_many_letters_as_asked():
    """A rate of .04 changes some tens of a thousand letters, and the text stays about as long."""
    text = "abcdefghij" * 100
    changed = keyboard_typos(text, random.Random(0))
    assert changed != text
    assert 960 < len(changed) < 1010


def test_moved_counts_both_directions():
    """Changed is up and down together."""
    found = moved(np.array([0, 1, 2, 3]), np.array([0, 2, 1, 1]))
    assert (found["changed"].estimate, found["up"].estimate, found["down"].estimate) == (0.75, 0.25, 0.5)


def test_tiers_that_never_moved_may_still_move_at_times():
    """None of 50 rows changed leaves room for some that would: the interval is not empty."""
    found = moved(np.zeros(50, dtype=np.int64), np.zeros(50, dtype=np.int64))
    assert found["changed"] == pytest.approx((0.0, 0.0, 0.0713), abs=1e-4)


def test_twins_are_judged_in_their_groups():
    """Accuracy by row, whole groups right, pairs that differ in the right order, pairs that share a tier steady."""
    rows = [
        row("a", "simple", "g1", "topic"), row("b", "complex", "g1", "topic"),
        row("c", "simple", "g2", "form"), row("d", "simple", "g2", "form"), row("e", "simple", "g2", "form"),
        row("f", "frontier", "g3", "topic"), row("alone", "simple"),
    ]  # fmt: skip
    found = twins(rows, np.array([0, 3, 0, 0, 1, 3, 0]))
    assert (found["all"]["rows"], found["all"]["groups"]) == (5, 2)
    assert found["all"]["accuracy"].estimate == pytest.approx(3 / 5)
    assert found["all"]["groups_right"].estimate == 0
    assert found["topic"]["ordered"].estimate == 1
    assert found["form"]["steady"].estimate == pytest.approx(1 / 3)
    assert found["topic"]["ordered"].low < 0.25  # all of one group are not all of many
    assert np.isnan(found["form"]["ordered"].estimate)


def test_an_attack_climbs_word_by_word():
    """Against a router that counts one word, the search collects it until the tier goes up."""
    words = [f"w{i}" for i in range(19)] + ["key"]

    def pressure(prefix):
        keys = prefix.split().count("key")
        return (Tier.STANDARD if keys >= 4 else Tier.SIMPLE), keys / 10

    found = attack(pressure, words, random.Random(0), tries=400)
    assert found.raised
    assert found.prefix.split().count("key") >= 4
    assert attack(pressure, words, random.Random(0), tries=400) == found


def test_an_attack_on_a_deaf_router_uses_up_its_tries():
    """The budget is kept to the run."""
    calls = []

    def pressure(prefix):
        calls.append(prefix)
        return Tier.SIMPLE, 0.0

    assert attack(pressure, ["a", "b"], random.Random(0), tries=37) == Attack(37, False, "")
    assert len(calls) == 38


def test_a_steering_sentence_that_works_ends_the_search():
    """The plain sentences are tried first."""
    found = attack(lambda p: (Tier.FRONTIER if p else Tier.SIMPLE, 0.0), ["a"], random.Random(0))
    assert found == Attack(1, True, RAISING[0])


def test_a_bundle_is_measured_through_its_engine(tiny_engine):
    """The tiny bundle reads words: it does not see casing, loses words to typos, and falls to words of harder tiers."""
    rows = [row(f"hi the {i}", "simple") for i in range(6)] + [
        row("prove the theorem", "frontier", "g", "topic"),
        row("hi the theorem", "simple", "g", "topic"),
    ]
    report = measure(tiny_engine, rows, attacked=3, tries=60)
    assert report["changes"]["upper case"]["changed"].estimate == 0
    assert report["twins"]["all"]["groups"] == 1
    assert report["attack"]["prompts"] == 3
    stages = [share for _, share in report["attack"]["by_tries"]]
    assert stages == sorted(stages)
    assert stages[-1] == report["attack"]["raised"].estimate > 0
    assert "adversarial prefix raises" in robustness.as_text(report)
    again = measure(tiny_engine, rows, attacked=3, tries=60)
    assert repr(again) == repr(report)  # NaN is no equal of itself
