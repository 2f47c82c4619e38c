"""Proto and types are the same thing said twice."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
from google.rpc import status_pb2
from hypothesis import given
from hypothesis import strategies as st

from classifier import errors, wire
from classifier.policy import Guarantee, Policy
from classifier.statuses import error_of, status_of
from classifier.types import (
    MAX_TOOLS,
    ROLES,
    TIERS,
    Cause,
    Decision,
    Message,
    Outcome,
    Reason,
    Request,
    Source,
    Tier,
    Timings,
    Verdict,
)
from classifier.v1 import classifier_pb2 as pb

text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
requests = st.builds(
    Request,
    messages=st.lists(st.builds(Message, st.sampled_from(ROLES), text), max_size=4).map(
        lambda ms: (*ms, Message("user", "last"))
    ),
    tools=st.lists(text, max_size=3).map(tuple),
    attachments=st.integers(0, 2**31 - 1),
    policy=text,
    floor=st.sampled_from([None, Tier.SIMPLE, Tier.STANDARD]),
    ceiling=st.sampled_from([None, Tier.STANDARD, Tier.FRONTIER]),
    record=st.sampled_from([None, True, False]),
    labels=st.dictionaries(text, text, max_size=3),
    request_id=text,
)


@given(requests)
def test_a_request_survives_the_wire(request):
    """What is sent is what arrives, for every field."""
    data = wire.request_to_proto(request).SerializeToString()
    assert wire.request_from_proto(wire.parse(pb.ClassifyRequest, data)) == request


def test_lone_surrogates_become_question_marks():
    """Text that UTF-8 cannot hold is sent as the model would read it in process."""
    sent = wire.request_to_proto(Request.from_text("a\ud800b", labels={"k": "\udfff"}, policy=None))
    assert (sent.messages[0].content, sent.labels["k"]) == ("a?b", "?")


def test_an_outcomes_ids_may_hold_what_no_message_holds():
    """An id made of a text that was cut within a character is sent, and the same each time; the server judges it."""
    outcome = Outcome("id \udfff", "cut \ud83d", Verdict.ACCEPTED, Cause.QUALITY, Source.USER, Tier.SIMPLE)
    assert wire.outcome_to_proto(outcome).outcome_id == "cut ?"
    assert wire.outcome_to_proto(outcome).decision_id == "id ?"


def test_a_reason_of_a_newer_server_makes_no_tier_a_worse_one():
    """A server may be updated before its clients: what it decided holds, whatever its reason is called."""
    decision = Decision(Tier.COMPLEX, (0.25,) * 4, Tier.STANDARD, Reason.MODEL, "p", 0.5, guaranteed=True)
    message = wire.decision_to_proto(decision)
    message.reason = 99
    found = wire.decision_from_proto(message)
    assert (found.tier, found.reason) == (Tier.COMPLEX, Reason.UNSPECIFIED)
    message.tier = 99
    with pytest.raises(errors.ClassifierError, match="update it"):
        wire.decision_from_proto(message)


def test_a_decision_survives_the_wire():
    """A decision comes back equal, but for the float32 of its numbers."""
    decision = Decision(
        tier=Tier.COMPLEX,
        probabilities=(0.125, 0.25, 0.5, 0.125),
        model_tier=Tier.STANDARD,
        reason=Reason.FLOOR,
        policy="balanced",
        threshold=0.75,
        guaranteed=True,
        propensity=0.5,
        bundle_version="b",
        calibration_revision="c",
        truncated=True,
        input_tokens=7,
        timings=Timings(0.25, 0.5, 1.5, 2.25),
        decision_id="id",
        route="large",
    )
    assert wire.decision_from_proto(wire.decision_to_proto(decision)) == decision


def test_an_outcome_survives_the_wire():
    """An outcome comes back equal, with its time and its request."""
    outcome = Outcome(
        decision_id="d",
        outcome_id="o",
        verdict=Verdict.ESCALATED,
        cause=Cause.QUALITY,
        source=Source.USER,
        served_tier=Tier.SIMPLE,
        accepted_tier=Tier.COMPLEX,
        occurred_at=1_700_000_000.5,
        request=Request.from_text("what was asked"),
    )
    assert wire.outcome_from_proto(wire.outcome_to_proto(outcome)) == outcome


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (pb.ClassifyRequest(), ["messages"]),
        (pb.ClassifyRequest(messages=[pb.Message(role="bot", content="x")]), ["messages[0].role"]),
        (pb.ClassifyRequest(messages=[pb.Message(role="system", content="x")]), ["messages"]),
        (pb.ClassifyRequest(messages=[pb.Message(role="user", content="a\0b")]), ["messages[0].content"]),
        (pb.ClassifyRequest(messages=[pb.Message(role="user")], floor=4, ceiling=1), ["floor"]),
        (pb.ClassifyRequest(messages=[pb.Message(role="user")], attachments=-1), ["attachments"]),
        (pb.ClassifyRequest(messages=[pb.Message(role="user")], floor=99), ["floor"]),
        (pb.ClassifyRequest(messages=[pb.Message(role="user")], ceiling=99), ["ceiling"]),
        (pb.ClassifyRequest(messages=[pb.Message(role="user")] * 9), ["messages"]),
        (pb.ClassifyRequest(messages=[pb.Message(role="user")], request_id="x" * 999), ["request_id"]),
        (pb.ClassifyRequest(messages=[pb.Message(role="user")], tools=[pb.Tool()] * (MAX_TOOLS + 1)), ["tools"]),
        (pb.ClassifyRequest(messages=[pb.Message(role="user")], labels={str(i): "" for i in range(99)}), ["labels"]),
        (pb.ClassifyRequest(floor=9, ceiling=8, attachments=-1), ["floor", "ceiling", "messages", "attachments"]),
    ],
    ids=["empty", "role", "no-user", "nul", "floor-ceiling", "attachments", "floor", "ceiling", "too-many",
         "request-id", "tools", "labels", "all"],
)  # fmt: skip
def test_a_bad_request_names_its_field(message, fields):
    """Every field at fault is named, by its path in the contract."""
    with pytest.raises(errors.InvalidRequest) as found:
        wire.request_from_proto(message, max_messages=8)
    assert [field for field, _ in found.value.violations] == fields


class Endless:
    """Tools and labels without an end."""

    def __getitem__(self, part):
        return [pb.Tool(name="t")] * part.stop

    def items(self):
        return ((str(n), "") for n in itertools.count())


def test_of_too_many_tools_and_labels_no_more_than_needed_are_looked_at():
    """A message has room for millions; to refuse it costs what the largest that is taken costs."""
    message = pb.ClassifyRequest(messages=[pb.Message(role="user")])
    fields = {field.name: getattr(message, field.name) for field in pb.ClassifyRequest.DESCRIPTOR.fields}
    endless = {"tools": Endless(), "labels": Endless(), "HasField": lambda _: False}
    with pytest.raises(errors.InvalidRequest) as found:
        wire.request_from_proto(SimpleNamespace(**fields | endless))
    assert [field for field, _ in found.value.violations] == ["tools", "labels"]


def test_unset_enums_of_an_outcome_are_named():
    """An outcome without verdict, cause, source and tier names all four, and a tier that is none beside them."""
    with pytest.raises(errors.InvalidRequest) as found:
        wire.outcome_from_proto(pb.ReportOutcomeRequest(decision_id="d", outcome_id="o", accepted_tier=9))
    fields = [field for field, _ in found.value.violations]
    assert fields == ["verdict", "cause", "source", "served_tier", "accepted_tier"]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_invalid_request(data):
    """No bytes do anything but parse or be refused as invalid."""
    for kind in (pb.ClassifyRequest, pb.ClassifyBatchRequest, pb.ReportOutcomeRequest, pb.ClassifyStreamRequest):
        try:
            message = wire.parse(kind, data)
            if isinstance(message, pb.ClassifyRequest):
                wire.request_from_proto(message)
            if isinstance(message, pb.ReportOutcomeRequest):
                wire.outcome_from_proto(message)
        except errors.InvalidRequest:
            pass


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidRequest([("floor", "is above the ceiling"), ("messages", "is empty")]),
        errors.Overloaded("busy", 0.25),
        errors.StoreUnavailable("full", 2.5),
        errors.DeadlinePassed("late"),
        errors.Unauthenticated("who"),
        errors.NotPermitted("no"),
        errors.NoAllowedRoute("none"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_survives_the_wire(error):
    """An error's class, text, fields and waiting time come back from its status."""
    data = status_of(error).SerializeToString()
    found = error_of(status_pb2.Status.FromString(data))
    assert (type(found), str(found)) == (type(error), str(error))
    assert getattr(found, "violations", None) == getattr(error, "violations", None)
    assert getattr(found, "retry_after_seconds", None) == getattr(error, "retry_after_seconds", None)


def test_a_policy_is_told_with_all_that_it_promises():
    """Thresholds of groups and both guarantees reach the wire, each in its own field."""
    fit = Guarantee(0.1, 0.0, "CONFORMAL_RISK_CONTROL", "RUBRIC", 500, 0.0625, 0.09375, feasible=True)
    top = Guarantee(0.25, 0.05, "CLOPPER_PEARSON", "RUBRIC", 80, 0.125, 0.1875, True, "cd" * 32)
    shares = (0.5, 0.25, 0.125, 0.125)
    told = wire.policy_to_proto(Policy("p", 0.75, 0.5, fit, top, shares, "tenant", {"acme": 0.625}))
    assert told == pb.Policy(
        name="p",
        threshold=0.75,
        top_tier_threshold=0.5,
        guarantee=pb.Guarantee(
            alpha=0.1, method=fit.method, label="RUBRIC", n=500, empirical_risk=0.0625, bound=0.09375, feasible=True
        ),
        top_tier_guarantee=pb.Guarantee(
            alpha=0.25, delta=0.05, method=top.method, label="RUBRIC", n=80, empirical_risk=0.125, bound=0.1875,
            feasible=True, calibration_set_sha256="cd" * 32,
        ),
        tier_shares=shares,
        group_by="tenant",
        group_thresholds={"acme": 0.625},
    )  # fmt: skip
    assert not wire.policy_to_proto(Policy("p", 0.75)).HasField("top_tier_guarantee")


@given(st.floats(0, 2**40))
def test_the_time_of_an_outcome_survives_the_wire(seconds):
    """To within a billionth of a second, whatever it is, and never as a fraction that is a whole one."""
    outcome = Outcome("d", "o", Verdict.ACCEPTED, Cause.QUALITY, Source.USER, Tier.SIMPLE, occurred_at=seconds)
    sent = wire.outcome_to_proto(outcome)
    assert sent.occurred_at.nanos < 10**9
    assert wire.outcome_from_proto(sent).occurred_at == pytest.approx(seconds, abs=2e-9)


def test_every_enum_of_the_types_is_the_contracts():
    """The numbers and names of our enums are those of the proto."""
    for kind, prefix in (
        (Tier, "TIER"),
        (Reason, "REASON"),
        (Verdict, "VERDICT"),
        (Cause, "CAUSE"),
        (Source, "SOURCE"),
    ):
        contract = pb.DESCRIPTOR.enum_types_by_name[kind.__name__].values_by_name
        assert {f"{prefix}_{m.name}": int(m) for m in kind} == {
            name: value.number for name, value in contract.items() if value.number or kind is Reason
        }
    assert wire.tiers_to_proto() == [int(tier) for tier in TIERS]
