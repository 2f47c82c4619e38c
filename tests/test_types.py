"""Requests and outcomes are validated when they are made."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest

from classifier.errors import InvalidRequest, Overloaded, StoreUnavailable
from classifier.types import Cause, Message, Outcome, Request, Source, Tier, Verdict

USER = (Message("user", "hi"),)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"messages": ()}, "messages"),
        ({"messages": (Message("bot", "hi"),)}, "messages[0].role"),
        ({"messages": (Message("system", "hi"),)}, "messages"),
        ({"messages": (Message("user", "a\0b"),)}, "messages[0].content"),
        ({"messages": USER, "attachments": -1}, "attachments"),
        ({"messages": USER, "attachments": 2**31}, "attachments"),
        ({"messages": USER, "floor": Tier.COMPLEX, "ceiling": Tier.SIMPLE}, "floor"),
        ({"messages": USER, "request_id": "x" * 300}, "request_id"),
        ({"messages": USER, "labels": {"tenant": "x" * 300}}, "labels"),
        ({"messages": USER, "labels": {str(i): "" for i in range(99)}}, "labels"),
        ({"messages": (Message("user", ["hi"]),)}, "messages[0].content"),
    ],
    ids=[
        "empty",
        "role",
        "no-user",
        "nul",
        "attachments",
        "too many attachments",
        "floor",
        "request-id",
        "label-size",
        "label-count",
        "parts",
    ],
)
def test_bad_request_names_its_field(fields, field):
    """A request that is not valid names the field at fault and what would be right."""
    with pytest.raises(InvalidRequest) as caught:
        Request(**fields)
    assert [name for name, _ in caught.value.violations] == [field]


def test_as_much_as_is_allowed_is_taken():
    """The largest numbers of tools, labels and attachments, and the longest texts of labels and ids, are valid."""
    labels = {f"{i:0256}": "x" * 256 for i in range(16)}
    most = Request(USER, tools=("t",) * 4096, attachments=2**31 - 1, labels=labels, request_id="x" * 256)
    assert (len(most.tools), len(most.labels)) == (4096, 16)


def test_every_violation_is_named():
    """A request with several faults names them all at once."""
    with pytest.raises(InvalidRequest) as caught:
        Request(messages=(Message("bot", "x"),), attachments=-2)
    assert len(caught.value.violations) == 2


def test_errors_never_quote_the_prompt():
    """The message of an invalid request holds no prompt text."""
    with pytest.raises(InvalidRequest) as caught:
        Request(messages=(Message("bot", "canary-7731"),))
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"prompt": 3},
        {"messages": "hi"},
        {"messages": [{"role": "user", "content": [1]}]},
        {"prompt": "x", "tools": "y"},
    ],
    ids=["nothing", "number", "text", "parts", "tools"],
)  # fmt: skip
def test_json_of_another_shape_is_refused(row):
    """A corpus line whose parts have another shape is an invalid request, not a crash."""
    with pytest.raises(InvalidRequest):
        Request.from_json(row)


def test_a_request_can_be_copied():
    """Requests go to other processes, and into logs as dictionaries, whether they have labels or not."""
    for request in (Request.from_text("x"), Request.from_text("x", labels={"tenant": "a"})):
        assert pickle.loads(pickle.dumps(request)) == copy.deepcopy(request) == request
        assert dataclasses.asdict(request)["labels"] == request.labels


def test_json_takes_tools_as_names_or_objects():
    """Tools are given as names or as objects with a name; a line that a request makes is read as that request."""
    row = {"prompt": "x", "tools": ["a", {"name": "b", "description": "…"}], "attachments": 2}
    request = Request(messages=(Message("user", "x"),), tools=("a", "b"), attachments=2)
    assert Request.from_json(row) == Request.from_json(request.to_json()) == request


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"decision_id": ""}, "decision_id"),
        ({"outcome_id": ""}, "outcome_id"),
        ({"verdict": Verdict.ACCEPTED, "accepted_tier": Tier.FRONTIER}, "accepted_tier"),
        ({"accepted_tier": Tier.SIMPLE}, "accepted_tier"),
        ({"decision_id": None}, "decision_id"),
        ({"outcome_id": 17}, "outcome_id"),
        ({"verdict": "REJECTED"}, "verdict"),
        ({"cause": None}, "cause"),
        ({"source": "SOURCE_USER"}, "source"),
        ({"served_tier": "simple"}, "served_tier"),
        ({"served_tier": None}, "served_tier"),
        ({"accepted_tier": "frontier"}, "accepted_tier"),
        ({"occurred_at": "2026-01-01"}, "occurred_at"),
        ({"occurred_at": 1e300}, "occurred_at"),
    ],
    ids=str,
)
def test_bad_outcome_names_its_field(fields, field):
    """An outcome that contradicts itself, or a field of another type, names the field at fault."""
    good = {
        "decision_id": "d", "outcome_id": "o", "verdict": Verdict.ESCALATED, "cause": Cause.QUALITY,
        "source": Source.USER, "served_tier": Tier.SIMPLE, "accepted_tier": Tier.COMPLEX,
    }  # fmt: skip
    Outcome(**good)
    with pytest.raises(InvalidRequest) as caught:
        Outcome(**{**good, **fields})
    assert field in [name for name, _ in caught.value.violations]


def test_tier_names_parse_in_any_case():
    """A tier's name parses in any case, and an unknown one lists the names there are."""
    assert Tier.parse(" Frontier ") is Tier.FRONTIER
    with pytest.raises(ValueError, match="simple, standard, complex, frontier"):
        Tier.parse("hard")


@pytest.mark.parametrize(
    "error",
    [InvalidRequest([("a", "b"), ("c", "d")]), Overloaded("full", 0.2), StoreUnavailable("gone", 3.0)],
    ids=lambda e: type(e).__name__,
)
def test_errors_with_attributes_pickle(error):
    """Errors cross process boundaries whole: bulk labelling uses processes."""
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), vars(again)) == (str(error), vars(error))
