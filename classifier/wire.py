"""Proto ↔ types, both ways: the only file that knows both.

Knows nothing of channels, servers, admission or engines. Messages of errors never quote prompt text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar, cast

from google.protobuf import duration_pb2, json_format
from google.protobuf.message import DecodeError, Message

from classifier.errors import ClassifierError, InvalidRequest
from classifier.texts import encodable
from classifier.types import (
    MAX_LABELS,
    MAX_TOOLS,
    TIERS,
    Cause,
    Decision,
    Outcome,
    OutcomeState,
    Reason,
    Request,
    Source,
    Tier,
    Timings,
    Verdict,
)
from classifier.types import Message as ChatMessage
from classifier.v1 import classifier_pb2 as pb

if TYPE_CHECKING:  # numpy, which a client does not need
    from classifier.policy import Guarantee, Policy

SERVICE = "classifier.v1.ClassifierService"
P = TypeVar("P", bound=Message)

_TIERS: Mapping[int, Tier] = {int(tier): tier for tier in TIERS}
_REASONS: Mapping[int, Reason] = {int(reason): reason for reason in Reason}


def parse(kind: type[P], data: bytes) -> P:
    """The message of that kind in `data`.

    Raises:
        InvalidRequest: the bytes are no such message, or hold text that is not UTF-8.
    """
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError:
        name = kind.DESCRIPTOR.full_name
        raise InvalidRequest(
            "(message)", f"is not a {name}, or its text is not UTF-8; generate from the proto"
        ) from None
    return message


def as_json(message: Message) -> dict[str, Any]:
    """The message by protobuf's JSON mapping, in the contract's spelling, fields at their defaults among the others."""
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def request_from_proto(message: pb.ClassifyRequest, *, max_messages: int | None = None) -> Request:
    """The request that a message holds.

    Raises:
        InvalidRequest: every field at fault is named, or `messages` alone where there are too many.
    """
    if max_messages is not None and len(message.messages) > max_messages:
        raise InvalidRequest(
            "messages", f"has {len(message.messages)} entries, the limit is {max_messages}; send the last ones"
        )
    floor, ceiling = message.floor, message.ceiling
    violations = [*_no_tier("floor", floor), *_no_tier("ceiling", ceiling)] if floor or ceiling else []
    try:
        request = Request(
            messages=tuple([ChatMessage(m.role, m.content) for m in message.messages]),
            # Of too many tools or labels one more than are taken is looked at: a message has room for millions.
            tools=tuple([tool.name for tool in message.tools[: MAX_TOOLS + 1]]) if message.tools else (),
            attachments=message.attachments,
            policy=message.policy,
            floor=_TIERS.get(floor),
            ceiling=_TIERS.get(ceiling),
            record=message.record if message.HasField("record") else None,
            labels=dict(islice(message.labels.items(), MAX_LABELS + 1)) if message.labels else {},
            request_id=message.request_id,
        )
    except InvalidRequest as error:
        raise InvalidRequest([*violations, *error.violations]) from None
    if violations:
        raise InvalidRequest(violations)
    return request


def request_to_proto(request: Request) -> pb.ClassifyRequest:
    """The message that holds a request. Lone surrogates, which UTF-8 cannot hold, become question marks."""
    try:
        return _request_to_proto(request)
    except (UnicodeEncodeError, ValueError):
        return _request_to_proto(
            replace(
                request,
                messages=tuple(ChatMessage(m.role, encodable(m.content)) for m in request.messages),
                tools=tuple(map(encodable, request.tools)),
                policy=encodable(request.policy or ""),
                labels={encodable(key): encodable(value) for key, value in request.labels.items()},
                request_id=encodable(request.request_id),
            )
        )


def _request_to_proto(request: Request) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(
        messages=[pb.Message(role=m.role, content=m.content) for m in request.messages],
        tools=[pb.Tool(name=name) for name in request.tools],
        attachments=request.attachments,
        policy=request.policy,
        floor=_number(request.floor),
        ceiling=_number(request.ceiling),
        record=cast("bool", request.record),  # None leaves it absent
        labels=request.labels,
        request_id=request.request_id,
    )


def decision_to_proto(
    decision: Decision, decision_id: str | None = None, timings: Timings | None = None
) -> pb.ClassifyResponse:
    """The message that holds a decision, with an id and timings instead of its own where they are given."""
    message = pb.ClassifyResponse(
        tier=_number(decision.tier),
        probabilities=decision.probabilities,
        model_tier=_number(decision.model_tier),
        reason=_number(decision.reason),
        decision_id=decision.decision_id if decision_id is None else decision_id,
        policy=decision.policy,
        threshold=decision.threshold,
        guaranteed=decision.guaranteed,
        propensity=decision.propensity,
        bundle_version=decision.bundle_version,
        calibration_revision=decision.calibration_revision,
        truncated=decision.truncated,
        input_tokens=decision.input_tokens,
        route=decision.route,
    )
    # Set in place: four messages of their own, copied into this one, took as long as all the rest.
    times, to = timings or decision.timings, message.timings
    _set_duration(to.queue, times.queue)
    _set_duration(to.prepare, times.prepare)
    _set_duration(to.model, times.model)
    _set_duration(to.total, times.total)
    return message


def decision_from_proto(message: pb.ClassifyResponse) -> Decision:
    """The decision that a server answered with.

    Raises:
        ClassifierError: the server speaks of tiers that this package does not know. A reason that it does not know
            makes no tier a worse one: servers may be updated before their clients.
    """
    try:
        times = message.timings
        return Decision(
            tier=Tier(message.tier),
            probabilities=tuple(message.probabilities),
            model_tier=Tier(message.model_tier),
            reason=_REASONS.get(message.reason, Reason.UNSPECIFIED),
            decision_id=message.decision_id,
            policy=message.policy,
            threshold=message.threshold,
            guaranteed=message.guaranteed,
            propensity=message.propensity,
            bundle_version=message.bundle_version,
            calibration_revision=message.calibration_revision,
            truncated=message.truncated,
            input_tokens=message.input_tokens,
            timings=Timings(
                *(d.seconds + d.nanos * 1e-9 for d in (times.queue, times.prepare, times.model, times.total))
            ),
            route=message.route,
        )
    except ValueError as error:
        raise ClassifierError(
            f"the server's answer holds what this package does not know ({error}); update it"
        ) from error


def outcome_from_proto(message: pb.ReportOutcomeRequest, *, max_messages: int | None = None) -> Outcome:
    """The outcome that a message reports.

    Raises:
        InvalidRequest: the fields at fault are named; those whose values are not known before all others.
    """
    violations: list[tuple[str, str]] = []
    values: dict[str, Any] = {}
    for name, kind in (("verdict", Verdict), ("cause", Cause), ("source", Source), ("served_tier", Tier)):
        try:
            values[name] = kind(getattr(message, name))
        except ValueError:
            choices = ", ".join(f"{kind.__name__.upper()}_{member.name}" for member in kind)
            violations.append((name, f"is not set or not known; one of {choices}"))
    if violations := [*violations, *_no_tier("accepted_tier", message.accepted_tier)]:
        raise InvalidRequest(violations)
    occurred = message.occurred_at
    return Outcome(
        decision_id=message.decision_id,
        outcome_id=message.outcome_id,
        accepted_tier=_TIERS.get(message.accepted_tier),
        occurred_at=occurred.seconds + occurred.nanos * 1e-9 if message.HasField("occurred_at") else None,
        request=_nested_request(message, max_messages) if message.HasField("request") else None,
        **values,
    )


def _nested_request(message: pb.ReportOutcomeRequest, max_messages: int | None) -> Request:
    try:
        return request_from_proto(message.request, max_messages=max_messages)
    except InvalidRequest as error:
        raise InvalidRequest([(f"request.{field}", text) for field, text in error.violations]) from None


def outcome_to_proto(outcome: Outcome) -> pb.ReportOutcomeRequest:
    """The message that reports an outcome."""
    message = pb.ReportOutcomeRequest(
        decision_id=encodable(outcome.decision_id),
        outcome_id=encodable(outcome.outcome_id),
        verdict=_number(outcome.verdict),
        cause=_number(outcome.cause),
        source=_number(outcome.source),
        served_tier=_number(outcome.served_tier),
        accepted_tier=_number(outcome.accepted_tier),
        request=None if outcome.request is None else request_to_proto(outcome.request),
    )
    if outcome.occurred_at is not None:
        seconds = math.floor(outcome.occurred_at)
        message.occurred_at.seconds = seconds
        message.occurred_at.nanos = int((outcome.occurred_at - seconds) * 1e9)
    return message


def outcome_state_to_proto(state: OutcomeState) -> pb.ReportOutcomeResponse:
    """The message that says what became of a report."""
    return pb.ReportOutcomeResponse(state=_number(state))


def policy_to_proto(policy: Policy) -> pb.Policy:
    """The message that states a policy and its promise."""
    top = policy.top_tier_guarantee
    return pb.Policy(
        name=policy.name,
        threshold=policy.threshold,
        top_tier_threshold=policy.top_tier_threshold,
        guarantee=_guarantee(policy.guarantee),
        top_tier_guarantee=None if top is None else _guarantee(top),
        tier_shares=policy.tier_shares,
        group_by=policy.group_by,
        group_thresholds=dict(policy.group_thresholds),
    )


_GUARANTEE_FIELDS = tuple(pb.Guarantee.DESCRIPTOR.fields_by_name)


def _guarantee(guarantee: Guarantee) -> pb.Guarantee:
    return pb.Guarantee(**{name: getattr(guarantee, name) for name in _GUARANTEE_FIELDS})


def _number(value: int | None) -> Any:
    """An enum's number as the generated types want it; 0 is UNSPECIFIED."""
    return int(value or 0)


def _set_duration(message: duration_pb2.Duration, seconds: float) -> None:
    whole = int(seconds)
    message.seconds, message.nanos = whole, int((seconds - whole) * 1e9)


def _no_tier(field: str, number: int) -> list[tuple[str, str]]:
    """What is wrong with a field that holds a tier's number, or 0 for none; nothing where it does."""
    if not number or number in _TIERS:
        return []
    return [(field, f"is not a tier; one of {', '.join(f'TIER_{t.name}' for t in TIERS)}")]


def tiers_to_proto() -> list[Any]:
    """Every tier's number, cheapest first."""
    return [_number(tier) for tier in TIERS]


def outcome_state(message: pb.ReportOutcomeResponse) -> OutcomeState:
    """What became of a report.

    Raises:
        ClassifierError: the server speaks of a state that this package does not know.
    """
    try:
        return OutcomeState(message.state)
    except ValueError:
        raise ClassifierError(f"the server answered with outcome state {message.state}; update this package") from None
