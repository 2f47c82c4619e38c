"""What a client decides: what to send, when not to ask at all, and what to answer when nothing comes back.

The sync and the async client share all of this; they add only the waiting. Knows nothing of channels.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import grpc
from google.rpc import status_pb2

from classifier import wire
from classifier.breaker import Breaker
from classifier.errors import (
    ClassifierError,
    DeadlinePassed,
    InvalidRequest,
    NoAllowedRoute,
    ServerUnreachable,
    Unauthenticated,
)
from classifier.routing import RoutingTable, is_restricted
from classifier.statuses import code_name, error_of, status_of_call
from classifier.types import TIERS, Decision, Request, Tier
from classifier.v1 import classifier_pb2 as pb

CIRCUIT_OPEN = "CIRCUIT_OPEN"
LONGEST_SECONDS = 366 * 86_400.0
"""A deadline that is later, or never, is this one: gRPC takes what its clock cannot hold for the past."""
Conversation = Request | str | Sequence[Mapping[str, str]]
"""What can be classified: a request, a prompt, or messages as `{"role": ..., "content": ...}`."""

_BREAKING = frozenset({"UNAVAILABLE", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN"})


@dataclass(frozen=True, slots=True)
class Answer:
    """What a gateway routes on.

    Attributes:
        tier: the tier to route to, always there.
        decision: the server's decision; None where the client fell back.
        fallback: empty, or why the client fell back: a status code's name such as "UNAVAILABLE", or "CIRCUIT_OPEN".
        route: model that the routing table names for the tier; empty without a table.
    """

    tier: Tier
    decision: Decision | None = None
    fallback: str = ""
    route: str = ""

    @property
    def classified(self) -> bool:
        """Whether the tier is a server's decision and not the fallback."""
        return self.decision is not None


@dataclass(frozen=True, slots=True)
class Plan:
    """One request on its way: what is sent, and what is answered if nothing comes back.

    Attributes:
        message: what is sent; None where the request is not valid.
        fallback_tier: the caller's, within the request's bounds; None raises instead.
        request: the request; None where it is not valid.
        restricted: whether it may only go to routes on premises, which also a request that is not valid may say.
        problem: why it is not valid.
        began: when it was planned, seconds of `time.monotonic`.
    """

    message: pb.ClassifyRequest | None
    fallback_tier: Tier | None
    request: Request | None = None
    restricted: bool = False
    problem: ClassifierError | None = None
    began: float = field(default_factory=time.monotonic)


class Logic:
    """Everything that the sync and the async client share: all but the waiting."""

    def __init__(
        self,
        fallback_tier: Tier | None,
        timeout_seconds: float,
        token: str | Callable[[], str],
        breaker: Breaker,
        routes: RoutingTable | None = None,
    ) -> None:
        check_seconds(timeout_seconds)
        if not 0 < timeout_seconds < math.inf:
            raise ValueError(f"timeout_seconds is {timeout_seconds!r}; give a positive number of seconds")
        if fallback_tier is not None and fallback_tier not in TIERS:
            raise ValueError(f"fallback_tier is {fallback_tier!r}; give a tier such as Tier.COMPLEX, or None")
        if not (isinstance(token, str) or callable(token)):  # such as a variable that is not set: nothing would pass
            raise TypeError(f"token is of type {type(token).__name__}; give a text, a function, or nothing")
        self.fallback_tier = fallback_tier
        self.timeout_seconds = timeout_seconds
        self.token = token
        self.breaker = breaker
        self.routes = routes
        self.closed = False
        self.counts: Counter[str] = Counter()
        self.lock = threading.Lock()

    def plan(self, conversation: Conversation, fields: Mapping[str, Any]) -> Plan:
        """The message of a conversation. One that is not valid is a problem to fall back from, not to raise here.

        Raises:
            TypeError: fields beside a `Request`, which has its own.
        """
        try:
            if isinstance(conversation, Request):
                if fields:
                    raise TypeError(f"{', '.join(fields)}: a Request has its own fields; use dataclasses.replace")
                request = conversation
            elif isinstance(conversation, str):
                request = Request.from_text(conversation, **fields)
            else:
                request = Request.from_messages(conversation, **fields)
        except InvalidRequest as error:
            tier = _bounded(self.fallback_tier, fields.get("floor"), fields.get("ceiling"))
            return Plan(None, tier, None, is_restricted(fields.get("labels")), error)
        tier = _bounded(self.fallback_tier, request.floor, request.ceiling)
        return Plan(wire.request_to_proto(request), tier, request, is_restricted(request.labels))

    def admit(self, timeout_seconds: float, plan: Plan | None = None) -> None:
        """Raises where nothing should be sent."""
        if plan is not None and plan.problem is not None:
            raise plan.problem
        check_seconds(timeout_seconds)
        if not timeout_seconds > 0:  # nothing is known of the server by that
            raise DeadlinePassed(f"no time is left to ask (timeout_seconds is {timeout_seconds:g}); allow more")
        if self.closed:
            raise ClientClosed
        if not self.breaker.allow(time.monotonic()):
            raise CircuitOpen("the server failed several times in a row and is not asked for a moment")

    def metadata(self) -> tuple[tuple[str, str], ...] | None:
        """What proves who we are.

        Raises:
            Unauthenticated: the token's function failed, or what it gave cannot be sent.
        """
        try:
            token = (self.token if isinstance(self.token, str) else self.token() or "").strip()
        except Exception as error:  # where a token comes from may be away as the server may
            raise Unauthenticated(f"the function that gives the token raised {type(error).__name__}") from error
        if not (isinstance(token, str) and token.isascii() and token.isprintable()):
            raise Unauthenticated("the token holds characters that gRPC does not send; give it as printable ASCII")
        return (("authorization", f"Bearer {token}"),) if token else None

    def answered(self, plan: Plan, response: pb.ClassifyResponse) -> Answer:
        """The answer that came back, with a route by the client's own table where the server has none.

        A restricted request is routed by the client's table in any case: it knows what is on premises here.

        Raises:
            NoAllowedRoute: the client's table has no route that the request may take.
        """
        self.breaker.succeeded(time.monotonic())
        decision = wire.decision_from_proto(response)
        if self.routes is not None and plan.request is not None and (plan.restricted or not decision.route):
            try:
                decision = self.routes.apply(decision, plan.request)
            except NoAllowedRoute:
                if plan.restricted:
                    raise
        self.count("classified")
        return Answer(decision.tier, decision, "", decision.route)

    def result(self, plan: Plan, result: pb.ClassifyResult) -> Answer:
        """The answer to an item of a batch or stream."""
        if plan.problem is not None:  # the server was sent an empty request in its place
            return self.failed(plan, plan.problem)
        if result.HasField("response"):
            try:
                return self.answered(plan, result.response)
            except ClassifierError as error:
                return self.fall_back(plan, error, error.status)
        self.breaker.succeeded(time.monotonic())
        if not result.error.code:
            unknown = ClassifierError("the server's answer holds what this package does not know; update it")
            return self.fall_back(plan, unknown, unknown.status)
        status = status_pb2.Status(code=result.error.code, message=result.error.message)
        return self.fall_back(plan, error_of(status), code_name(status.code))

    def failed(self, plan: Plan, error: Exception) -> Answer:
        """The fallback after a call that failed, or the error where there is none."""
        return self.fall_back(plan, *self.understood(error, plan.began))

    def fall_back(self, plan: Plan, error: ClassifierError, code: str) -> Answer:
        """The caller's tier, or the nearest with an allowed route, with the reason.

        Raises:
            ClassifierError: the error, where the caller gave no tier.
            NoAllowedRoute: a restricted request for which the client knows no route on premises.
        """
        self.count(code)
        if plan.fallback_tier is None:
            raise error
        if self.routes is None:
            if plan.restricted:
                raise NoAllowedRoute(
                    f"{code}: a request with data=restricted falls back to a route on premises only, and this client "
                    "has no routing table; give it one (routes=)"
                ) from error
            return Answer(plan.fallback_tier, None, code)
        request = plan.request
        bounds = {"floor": request.floor, "ceiling": request.ceiling} if request else {}
        chars = request.characters if request else 0
        try:
            found = self.routes.choose(plan.fallback_tier, restricted=plan.restricted, chars=chars, **bounds)
        except NoAllowedRoute:
            if plan.restricted:
                raise
            return Answer(plan.fallback_tier, None, code)
        return Answer(found.tier, None, code, found.model)

    def understood(self, error: Exception, began: float) -> tuple[ClassifierError, str]:
        """Our error of a call that began then, and its code's name; tells the breaker."""
        if not isinstance(error, grpc.RpcError):
            known = self.error_of_call(error)
            return known, CIRCUIT_OPEN if isinstance(known, CircuitOpen) else known.status
        status = status_of_call(error)
        code = code_name(status.code)
        if code in _BREAKING:
            self.breaker.failed(time.monotonic(), began)
        else:
            self.breaker.succeeded(time.monotonic())
        return error_of(status), code

    def lost(self, error: Exception, requests: int, began: float) -> tuple[ClassifierError, str]:
        """As `understood`, of a call with so many requests that have no answer. Raised where there is no fallback."""
        known, code = self.understood(error, began)
        if self.fallback_tier is None:
            self.count(code, requests)
            raise known from None
        return known, code

    def error_of_call(self, error: Exception) -> ClassifierError:
        """Our error for what a call raised; the breaker is not told. What is a fault of ours is raised as it is."""
        if isinstance(error, ClassifierError):
            return error
        if isinstance(error, grpc.RpcError):
            return error_of(status_of_call(error))
        if self.closed:  # each kind of channel has an error of its own for that
            return ClientClosed()
        raise error

    def count(self, what: str, requests: int = 1) -> None:
        """So many more requests ended so."""
        with self.lock:
            self.counts[what] += requests


class CircuitOpen(ServerUnreachable):
    """The breaker is open."""


class ClientClosed(ServerUnreachable):
    """The client was closed before the call, or during it."""

    status = "CANCELLED"

    def __init__(self) -> None:
        super().__init__("the client is closed; make another, and close it when nothing is asked any more")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


def check_seconds(timeout_seconds: Any) -> None:
    """Raises TypeError for what is no number, as a variable of the environment is none."""
    if not isinstance(timeout_seconds, Real):
        raise TypeError(f"timeout_seconds is of type {type(timeout_seconds).__name__}; give a number of seconds")


def check_several(conversations: Any) -> None:
    """Raises TypeError for a single text, whose characters would be taken for the conversations."""
    if isinstance(conversations, str):
        raise TypeError("conversations is one text; give a list of them, or ask `classify`")


class Batch:
    """The plans of a batch; those that are not valid are not sent."""

    def __init__(self, logic: Logic, conversations: Iterable[Conversation]) -> None:
        check_several(conversations)
        self._logic = logic
        self._plans = [logic.plan(conversation, {}) for conversation in conversations]
        self.plans_sent = [plan for plan in self._plans if plan.message is not None]

    @property
    def message(self) -> pb.ClassifyBatchRequest:
        """What is sent."""
        return pb.ClassifyBatchRequest(requests=[plan.message for plan in self.plans_sent if plan.message is not None])

    def answers(self, results: Sequence[pb.ClassifyResult]) -> list[Answer]:
        """The answers to all plans, in their order.

        Raises:
            ClassifierError: the server answered more or fewer than it was asked.
        """
        if len(results) != len(self.plans_sent):
            answered = f"the server answered {len(results)} of {len(self.plans_sent)} requests of a batch"
            return self.failed(ClassifierError(answered))
        found, failed, result = iter(results), self._logic.failed, self._logic.result
        return [failed(plan, plan.problem) if plan.problem else result(plan, next(found)) for plan in self._plans]

    def failed(self, error: Exception) -> list[Answer]:
        """The fallback for all, or the error where there is none."""
        known, code = self._logic.lost(error, len(self._plans), self._plans[0].began)
        return [self._logic.fall_back(plan, known, code) for plan in self._plans]


def _bounded(tier: Tier | None, floor: Any, ceiling: Any) -> Tier | None:
    """The fallback within the request's own bounds, as far as those are tiers."""
    if tier is None:
        return None
    low, high = floor if floor in TIERS else Tier.SIMPLE, ceiling if ceiling in TIERS else Tier.FRONTIER
    return tier if low > high else Tier(min(max(tier, low), high))
