"""Judges of answers, and the way up."""

from __future__ import annotations

import numpy as np
import pytest

from classifier import routing
from classifier.gateways.judging import Escalated, escalate, judged
from classifier.types import Tier, Verdict
from tests.test_routing import MIXED, WIDENING, table_of

FOUR = table_of(simple="c", standard="c", complex="c", frontier="c")


async def later(value):
    return value


def fails(data, answer):
    raise RuntimeError


@pytest.mark.parametrize(
    ("said", "verdict"),
    [([], None), ([None], None), ([True, None], True), ([True, False], False), ([None, False, True], False)],
    ids=str,
)
@pytest.mark.parametrize("awaited", [False, True], ids=["plain", "awaited"])
async def test_one_no_is_a_no_and_silence_is_no_verdict(said, verdict, awaited):
    """False wins over True, True over no opinion; validators may be coroutines."""
    validators = [lambda data, answer, v=v: later(v) if awaited else v for v in said]
    assert await judged(validators, {}, "an answer") is verdict


async def test_a_comparison_of_numpys_scores_is_a_verdict():
    """A score of numpy's above or below a limit is a yes or a no like Python's own."""
    assert await judged([lambda *_: np.float64(0.2) > 0.5], {}, "x") is False
    assert await judged([lambda *_: np.float64(0.7) > 0.5], {}, "x") is True


async def test_a_validator_that_fails_has_no_opinion():
    """Its fault is no verdict, and does not keep the others from judging."""
    assert await judged([fails], {}, "x") is None
    assert await judged([fails, lambda *_: True], {}, "x") is True


async def going_up(table, tier, good, *, broken=(), model="", restricted=False, chars=0):
    """(how it went, the models that were asked) where `good` says what is judged of each."""
    asked = []

    async def ask(route):
        asked.append(route.model)
        if route.model in broken:
            raise RuntimeError
        return route.model

    async def good_enough(answer):
        return good.get(answer, False)

    return await escalate(table, tier, ask, good_enough, model=model, restricted=restricted, chars=chars), asked


async def test_it_goes_up_until_an_answer_is_good_enough():
    """Tier after tier is asked; the one that was accepted is named."""
    found, asked = await going_up(FOUR, Tier.SIMPLE, {"complex-0-c": True})
    assert (found, asked) == (Escalated("complex-0-c", Tier.COMPLEX, True), ["standard-0-c", "complex-0-c"])
    assert (found.verdict, found.accepted_tier) == (Verdict.ESCALATED, Tier.COMPLEX)


@pytest.mark.parametrize(("model", "expected"), [("same", ["dear"]), ("", ["same", "dear"])], ids=["known", "other"])
async def test_a_model_is_not_asked_twice(model, expected):
    """A tier that the model which answered serves, too, is passed over: it would answer the same, and be paid again."""
    routes = {"simple": {"model": "same"}, "standard": {"model": "same"}, "complex": {"model": "same"}}
    table = routing.table_of({"routes": routes | {"frontier": {"model": "dear"}}}, "x")
    assert await going_up(table, Tier.SIMPLE, {}, model=model) == (Escalated("dear", Tier.FRONTIER), expected)
    only = routing.table_of({"routes": routes}, "x")
    assert await going_up(only, Tier.SIMPLE, {}, model="same") == (Escalated(), [])


async def test_a_long_conversation_is_asked_again_where_it_fits():
    """A route whose context window is too small is passed over for a wider one of its tier."""
    _, asked = await going_up(WIDENING, Tier.STANDARD, {"wide": True}, chars=300_000)
    assert asked == ["wide"]


async def test_an_answer_without_an_opinion_ends_it_and_is_not_accepted():
    """Nobody turned it down, nobody accepted it: which tier was good enough stays open."""
    found, _ = await going_up(FOUR, Tier.SIMPLE, {"standard-0-c": None})
    assert (found, found.accepted_tier) == (Escalated("standard-0-c", Tier.STANDARD), None)


async def test_at_the_top_the_last_answer_stands():
    """Where no tier is good enough the highest answer is given and none is called accepted."""
    found, asked = await going_up(FOUR, Tier.COMPLEX, {})
    assert (found, asked) == (Escalated("frontier-0-c", Tier.FRONTIER), ["frontier-0-c"])
    assert await going_up(FOUR, Tier.FRONTIER, {}) == (Escalated(), [])
    assert Escalated().verdict is Verdict.REJECTED


async def test_where_asking_fails_the_answer_before_stands():
    """An outage higher up ends it; what came before it is kept."""
    found, asked = await going_up(FOUR, Tier.SIMPLE, {}, broken={"complex-0-c"})
    assert (found, asked) == (Escalated("standard-0-c", Tier.STANDARD), ["standard-0-c", "complex-0-c"])


async def test_a_restricted_request_is_only_asked_again_on_premises():
    """Tiers in the cloud are passed over, and above the last on premises it ends."""
    found, asked = await going_up(MIXED, Tier.SIMPLE, {}, restricted=True)
    assert (found, asked) == (Escalated("complex-1-p", Tier.COMPLEX), ["standard-1-p", "complex-1-p"])
