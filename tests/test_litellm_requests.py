"""What LiteLLM's data say of a request, and the outcome of its decision, without LiteLLM."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from classifier.fallback import Answer
from classifier.gateways.litellm_requests import (
    Routed,
    asked,
    calls_of,
    confine,
    mark,
    marks,
    names_repeated,
    outcome_of,
    said_of,
    told,
)
from classifier.types import Cause, Decision, Reason, Tier, Verdict

DECIDED = Decision(Tier.SIMPLE, (0.25,) * 4, Tier.SIMPLE, Reason.MODEL, "p", 0.5, True, decision_id="id-1")


@pytest.mark.parametrize(
    "data", [{}, {"metadata": None}, {"metadata": {"a": 1}}, {"litellm_metadata": {}, "metadata": {"user_id": "u"}}]
)
def test_every_event_has_the_mark_of_its_request(data):
    """The mark stands in a request, and in an event's parameters; what a provider is sent is left alone."""
    sent = data.get("metadata") if "litellm_metadata" in data else None
    mark(data, "a")
    assert (marks(data), marks({"litellm_params": data}), marks({})) == (["a"], ["a"], [])
    assert sent is None or data["metadata"] == sent == {"user_id": "u"}


@pytest.mark.parametrize(
    ("key", "data", "labels", "off"),
    [
        ({}, {}, {}, False),
        ({"classifier": "off"}, {}, {}, True),
        ({}, {"metadata": {"classifier": False}}, {}, True),
        ({}, {"proxy_server_request": {"headers": {"X-Classifier": "off"}}}, {}, True),
        ({"classifier_labels": {"team": "a"}}, {"litellm_metadata": {"classifier_labels": {"team": "b", "app": "c"}}},
         {"team": "a", "app": "c"}, False),
        ({}, {"proxy_server_request": {"headers": {"X-Classifier-Data": "restricted"}}}, {"data": "restricted"}, False),
        ({}, {"secret_fields": {"raw_headers": {"x-classifier-data": "restricted"}},
              "proxy_server_request": {"headers": {"x-classifier-data": "public"}}}, {"data": "restricted"}, False),
        ({}, {"secret_fields": {"raw_headers": {"x-classifier-data": "public"}},
              "proxy_server_request": {"headers": {"x-classifier-data": "restricted"}}}, {"data": "restricted"}, False),
        ({"classifier_labels": "data=restricted"}, {}, {"data": "restricted"}, False),
        ({"classifier_labels": {"data": ["restricted"]}}, {}, {"data": "restricted"}, False),
        ({}, {"metadata": "text", "proxy_server_request": None, "secret_fields": "text"}, {}, False),
    ],
    ids=["nothing", "key", "metadata", "header", "labels", "restricted", "first of two", "last of two", "text", "list",
         "odd"],
)  # fmt: skip
def test_key_metadata_and_headers_are_read(key, data, labels, off):
    """A key, its team, the request's metadata and its headers opt out and label; the key's word holds."""
    of_key, of_team = (SimpleNamespace(metadata=key, team_metadata=team) for key, team in ((key, None), (None, key)))
    assert asked(of_key, data) == asked(of_team, data) == (labels, off)


def test_a_confined_request_has_no_way_out():
    """Fallbacks, other servers, providers and own configurations of a caller are taken out; the rest stays."""
    data = {"model": "m", "fallbacks": ["x"], "context_window_fallbacks": [], "user_config": {}, "api_base": "http://x"}
    data |= {"custom_llm_provider": "openai", "azure": True, "deployment_id": "x"}
    confine(data)
    assert data == {"model": "m", "disable_fallbacks": True}


def test_the_same_request_is_asked_again():
    """All that its caller sent, known or not, but for where it was to go; nothing that LiteLLM added."""
    body = {
        "model": "m",
        "messages": [],
        "logprobs": True,
        "new": 1,
        "fallbacks": ["x"],
        "api_base": "x",
        "stream": False,
    }
    data = body | {"litellm_logging_obj": object(), "proxy_server_request": {"body": body, "headers": {}}}
    assert names_repeated(data) == {"messages", "metadata", "logprobs", "new"}


@pytest.mark.parametrize(
    "response",
    [
        SimpleNamespace(output=[SimpleNamespace(type="message"), SimpleNamespace(call_id="a")]),
        SimpleNamespace(response=SimpleNamespace(output=[{"type": "reasoning"}, {"call_id": "a"}])),
    ],
    ids=["whole", "end of a stream"],
)
def test_the_calls_of_an_answer_are_found(response):
    """OpenAI's responses hold them among other items; what has no items has none."""
    assert (calls_of(response), calls_of(SimpleNamespace(choices=[])), calls_of({})) == (["a"], [], [])


@pytest.mark.parametrize(
    ("served", "more"),
    [(Tier.SIMPLE, {}), (Tier.COMPLEX, {"x-classifier-served-tier": "complex"}),
     (None, {"x-classifier-served-tier": "none"})],
    ids=["decided", "other", "none"],
)  # fmt: skip
def test_headers_tell_the_tier_that_answered_where_it_is_another(served, more):
    """What a person says is of that tier; of a model that the table does not name it is of none."""
    decided = {"x-classifier-tier": "simple", "x-classifier-decision-id": "id-1"}
    assert told(Routed(Answer(Tier.SIMPLE, DECIDED), served)) == decided | more


def test_an_outcome_counts_once_a_request_and_cause():
    """Attempts of one request share the outcome's id; without a decision there is no outcome."""
    routed = Routed(Answer(Tier.SIMPLE, DECIDED), Tier.SIMPLE)
    first, again = (outcome_of(routed, Verdict.REJECTED, Cause.AVAILABILITY) for _ in range(2))
    assert first == again
    assert (first.decision_id, first.outcome_id, first.served_tier) == ("id-1", "id-1:availability", Tier.SIMPLE)
    undecided = Routed(Answer(Tier.COMPLEX, None, "UNAVAILABLE"), Tier.COMPLEX)
    assert outcome_of(undecided, Verdict.REJECTED, Cause.QUALITY) is None


def test_a_second_word_of_a_person_is_another_outcome():
    """The same word again is the outcome that was, the other word one of its own; an id that is given holds."""
    no, again, yes = (said_of("id-1", Tier.SIMPLE, accepted=word) for word in (False, False, True))
    assert no == again
    assert (no.verdict, yes.verdict, no.cause) == (Verdict.REJECTED, Verdict.ACCEPTED, Cause.QUALITY)
    assert no.outcome_id != yes.outcome_id
    assert said_of("id-1", Tier.SIMPLE, accepted=True, outcome_id="click-3").outcome_id == "click-3"


@pytest.mark.parametrize("served", [None, Tier.COMPLEX], ids=str)
def test_a_judge_speaks_of_the_tier_that_answered(served):
    """After a fallback QUALITY is of the fallback's tier, or nothing where it is of none; an outage is of its own."""
    routed = Routed(Answer(Tier.SIMPLE, DECIDED), served)
    judged = outcome_of(routed, Verdict.ACCEPTED, Cause.QUALITY)
    assert (judged and judged.served_tier) == served
    assert outcome_of(routed, Verdict.REJECTED, Cause.AVAILABILITY).served_tier is Tier.SIMPLE
