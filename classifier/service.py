"""The five calls of the contract: bytes in, decisions out, errors as statuses.

The handlers take bytes, so that parsing is measured, a message over the limit is refused with its field, and bytes that
are no message are INVALID_ARGUMENT and not an internal error. A look at the line comes before any work on the request.

Knows nothing of starting, stopping, ports, certificates or files.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import grpc
from google.rpc import code_pb2, status_pb2

from classifier import wire
from classifier.admission import Admission, Places, RateLimit
from classifier.credentials import Authenticator, Caller
from classifier.errors import ClassifierError, InvalidRequest, NotConfigured, NotReady
from classifier.items import answer_all, answer_in_order
from classifier.policy import exploration
from classifier.routing import RoutingTable
from classifier.seams import Classifies, Feedback, Ids, Observer
from classifier.settings import ServerSettings
from classifier.statuses import code_name, refuse, status_of
from classifier.types import Decision, Scores, Tier, Timings
from classifier.v1 import classifier_pb2 as pb

log = logging.getLogger(__name__)
_INTERNAL = code_pb2.INTERNAL
_CLASSIFYING = frozenset({"Classify", "item"})  # where an error means a request without a decision
_AHEAD = 1  # requests of a batch or stream in line beyond the cores, so that no core waits for the next one


@dataclass(slots=True)
class Service:
    """The servicer. `engine` may be replaced at any time: a request uses the one it began with.

    Attributes:
        admission: who may run now.
        ids: makes and checks decision ids.
        engine: None until it is loaded; calls are UNAVAILABLE then.
        feedback: None where outcomes are not taken.
        authenticator: names callers.
        limits: the settings that say what one call may ask for.
        rate_limit: how often one caller may ask.
        observer: is told what happened.
        routes: the routing table; None where answers name no route.
        after: called with every decision made and what it was made from, off the caller's path (shadow scoring).
    """

    admission: Admission
    ids: Ids
    engine: Classifies | None = None
    feedback: Feedback | None = None
    authenticator: Authenticator = field(default_factory=Authenticator)
    limits: ServerSettings = field(default_factory=ServerSettings)
    rate_limit: RateLimit = field(default_factory=lambda: RateLimit(0, 1))
    observer: Observer = field(default_factory=Observer)
    routes: RoutingTable | None = None
    after: Callable[[Any, Decision], None] | None = None
    _streams: Places = field(default_factory=Places)

    def handlers(self) -> grpc.GenericRpcHandler:
        """The calls by name, for `grpc.aio.Server.add_generic_rpc_handlers`."""
        unary = {
            "Classify": self._classify_call,
            "ClassifyBatch": self._batch_call,
            "ReportOutcome": self._report_call,
            "GetInfo": self._info_call,
        }
        methods = {
            name: grpc.unary_unary_rpc_method_handler(partial(self._unary, name, handle))
            for name, handle in unary.items()
        }
        methods["ClassifyStream"] = grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.method_handlers_generic_handler(wire.SERVICE, methods)

    async def classify(
        self,
        message: pb.ClassifyRequest,
        caller: Caller,
        deadline: float,
        parse_seconds: float,
        *,
        single: bool = False,
    ) -> pb.ClassifyResponse:
        """One request: its answer.

        Args:
            message: the request.
            caller: whose it is.
            deadline: on `time.monotonic()`.
            parse_seconds: what parsing took.
            single: it is a call of its own, and not an item of one.

        Raises:
            ClassifierError: as the errors' tree says.
        """
        started = time.perf_counter()
        self.rate_limit.take(caller.turn, time.monotonic())
        engine = self._ready()
        self.admission.check(caller.turn, deadline)
        request = wire.request_from_proto(message, max_messages=self.limits.max_messages)
        prepared = engine.prepare(request)
        # What need not wait for the model comes before it: a run sweeps the caches, and all after it is slow.
        decision_id = self.ids.mint(caller.principal, request.request_id, time.time())
        recorded = self.feedback is not None and request.record is not False
        draw = self.ids.draw(decision_id) if recorded else None
        before_line = time.perf_counter()
        (scores, model_seconds), queue_seconds = await self.admission.run(
            partial(_timed_score, engine, prepared), caller.turn, deadline, single=single
        )
        decision = engine.decide(prepared, scores, draw)
        if self.routes is not None:
            decision = _routed(self.routes, decision, prepared)
        scored = time.perf_counter()
        times = Timings(queue_seconds, before_line - started, model_seconds, scored - started + parse_seconds)
        answer = wire.decision_to_proto(decision, decision_id, times)
        stages = {"parse": parse_seconds, "encode": time.perf_counter() - scored}
        # The caller has its answer before anybody else is told: the loop comes to this when the answer is sent.
        told = partial(replace, decision, decision_id=decision_id, timings=times)
        kept_for = caller.principal if recorded else None
        asyncio.get_running_loop().call_soon(self._tell, told, prepared, scores, stages, kept_for)
        return answer

    def _tell(
        self,
        told: Callable[[], Decision],
        prepared: Any,
        scores: Scores,
        stages: Mapping[str, float],
        kept_for: str | None,
    ) -> None:
        """Keeps a decision where it is to be kept, and says that it was made."""
        try:
            decision = told()
            if kept_for is not None and self.feedback is not None:
                self.feedback.record(
                    decision, prepared.request, kept_for, signals=prepared.input.signals, logits=scores.logits
                )
            if self.after is not None:
                self.after(prepared, decision)
            self.observer.decided(decision, prepared, stages)
        except Exception:  # the answer is given; and asyncio would log the arguments, which hold the prompt
            log.exception("a decision was made that could not be told")

    async def _classify_call(self, data: bytes, caller: Caller, deadline: float) -> bytes:
        message, seconds = self._parse(pb.ClassifyRequest, data)
        return (await self.classify(message, caller, deadline, seconds, single=True)).SerializeToString()

    async def _batch_call(self, data: bytes, caller: Caller, deadline: float) -> bytes:
        message, seconds = self._parse(pb.ClassifyBatchRequest, data)
        items, answered = message.requests, 0

        async def answer(item: pb.ClassifyRequest) -> pb.ClassifyResult:
            nonlocal answered
            result = await self._item(item, caller, deadline, seconds / len(items))
            answered += 1
            return result

        code = "CANCELLED"
        try:
            if not 0 < len(items) <= self.limits.max_batch_items:
                raise InvalidRequest(
                    "requests", f"has {len(items)} items; send 1 to {self.limits.max_batch_items} at a time"
                )
            self._ready()
            results = await answer_all(items, answer, width=self.admission.cores + _AHEAD)
        except ClassifierError as error:
            code = error.status
            raise
        finally:  # the items that got no answer, begun or not, count as well
            if unanswered := len(items) - answered:
                self.observer.refused(code, unanswered)
        return pb.ClassifyBatchResponse(results=results).SerializeToString()

    async def _item(
        self, message: pb.ClassifyRequest, caller: Caller, deadline: float, parse: float
    ) -> pb.ClassifyResult:
        try:
            return pb.ClassifyResult(response=await self.classify(message, caller, deadline, parse))
        except Exception as error:
            return self._item_error(error)

    def _item_error(self, error: Exception) -> pb.ClassifyResult:
        status = self._status("item", error)
        return pb.ClassifyResult(error=pb.ItemError(code=status.code, message=status.message))

    async def _report_call(self, data: bytes, caller: Caller, deadline: float) -> bytes:  # noqa: ARG002
        message, _ = self._parse(pb.ReportOutcomeRequest, data)
        if self.feedback is None:
            self._ready()  # while the server starts nobody knows yet
            raise NotConfigured("this server keeps no feedback; start it without --store off to report outcomes")
        outcome = wire.outcome_from_proto(message, max_messages=self.limits.max_messages)
        self.ids.verify(outcome.decision_id, caller.principal)
        state = await self.feedback.report(outcome, caller.principal)
        return wire.outcome_state_to_proto(state).SerializeToString()

    async def _info_call(self, data: bytes, caller: Caller, deadline: float) -> bytes:  # noqa: ARG002
        from classifier import __version__

        engine = self._ready()
        return pb.GetInfoResponse(
            package_version=__version__,
            bundle_version=engine.bundle_version,
            calibration_revision=engine.calibration_revision,
            tiers=wire.tiers_to_proto(),
            default_policy=engine.default_policy,
            policies=[wire.policy_to_proto(engine.policies[name]) for name in sorted(engine.policies)],
            limits=pb.Limits(
                max_request_bytes=self.limits.max_request_bytes,
                max_messages=self.limits.max_messages,
                max_batch_items=self.limits.max_batch_items,
            ),
            store="off" if self.feedback is None else self.feedback.keep,
        ).SerializeToString()

    async def _unary(
        self,
        method: str,
        handle: Callable[[bytes, Caller, float], Awaitable[bytes]],
        data: bytes,
        context: grpc.aio.ServicerContext[bytes, bytes],
    ) -> bytes:
        """A unary call: who asks, by when, and what became of it."""
        started, code = time.perf_counter(), "CANCELLED"
        observed = self.observer.call_started(method, context.invocation_metadata() or ())
        try:
            answer = await handle(data, self.authenticator.caller(context), _deadline(context))
        except Exception as error:
            status = self._status(method, error)
            code = code_name(status.code)
            return refuse(context, status)
        else:
            code = "OK"
            return answer
        finally:
            if code == "CANCELLED" and method in _CLASSIFYING:
                self.observer.refused(code)
            self._ended(observed, method, code, started)

    def _ended(self, observed: object, method: str, code: str, started: float) -> None:
        """Says that a call is over, after its decisions were told."""
        seconds = time.perf_counter() - started
        asyncio.get_running_loop().call_soon(self.observer.call_ended, observed, method, code, seconds)

    async def _stream(self, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        """ClassifyStream: as `_unary`, for a stream."""
        method, started, code = "ClassifyStream", time.perf_counter(), "CANCELLED"
        observed = self.observer.call_started(method, context.invocation_metadata() or ())
        try:
            caller = self.authenticator.caller(context)
            with self._streams.one(caller.turn, self.limits.max_streams):
                self._ready()
                deadline, limits = _deadline(context), self.limits
                await answer_in_order(
                    requests,
                    # Who it is is asked again: a token that is taken back ends the streams that it opened.
                    lambda data: self._stream_item(data, self.authenticator.caller(context), deadline),
                    context.write,
                    width=self.admission.cores + _AHEAD,
                    most=limits.max_stream_items,
                    idle_seconds=limits.stream_idle_seconds,
                )
            code = "OK"
        except Exception as error:
            status = self._status(method, error)
            code = code_name(status.code)
            refuse(context, status)
        finally:
            self._ended(observed, method, code, started)

    async def _stream_item(self, data: bytes, caller: Caller, deadline: float) -> bytes:
        try:
            message, seconds = self._parse(pb.ClassifyStreamRequest, data)
        except InvalidRequest as error:
            result = self._item_error(error)
        else:
            try:
                result = await self._item(message.request, caller, deadline, seconds)
            except asyncio.CancelledError:
                self.observer.refused("CANCELLED")
                raise
        return pb.ClassifyStreamResponse(result=result).SerializeToString()

    def _ready(self) -> Classifies:
        if self.engine is None:
            raise NotReady("the model is still being loaded; try again in a moment")
        return self.engine

    def _parse(self, kind: type[wire.P], data: bytes) -> tuple[wire.P, float]:
        if len(data) > self.limits.max_request_bytes:
            raise InvalidRequest(
                "(message)",
                f"has {len(data)} bytes, the limit is {self.limits.max_request_bytes}; cut long contents in the middle",
            )
        started = time.perf_counter()
        message = wire.parse(kind, data)
        return message, time.perf_counter() - started

    def _status(self, method: str, error: Exception) -> status_pb2.Status:
        """The status of an error. One that is not ours is logged without its text, which could quote a prompt."""
        if isinstance(error, ClassifierError):
            if method in _CLASSIFYING:
                self.observer.refused(error.status)
            return status_of(error)
        if method in _CLASSIFYING:
            self.observer.refused("INTERNAL")
        incident = uuid.uuid4().hex[:12]
        frames = traceback.extract_tb(error.__traceback__)
        where = " < ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(frames))
        log.error("internal error %s in %s: %s at %s", incident, method, type(error).__name__, where)
        return status_pb2.Status(code=_INTERNAL, message=f"internal error {incident}; the server's log says where")


def _timed_score(engine: Classifies, prepared: Any) -> tuple[Scores, float]:
    started = time.perf_counter()
    return engine.score(prepared), time.perf_counter() - started


def _routed(table: RoutingTable, decision: Decision, prepared: Any) -> Decision:
    """The decision with its route. Where exploration was on, the propensity is that of the tier it ends at."""
    request, reach = prepared.request, None
    if decision.propensity < 1:
        unexplored = min(decision.model_tier, request.ceiling or Tier.FRONTIER)  # a floor turns exploration off
        reach = exploration(unexplored, prepared.policy.epsilon, ceiling=request.ceiling)
    return table.apply(decision, request, reach)


def _deadline(context: grpc.aio.ServicerContext[bytes, bytes]) -> float:
    left = context.time_remaining()
    return math.inf if left is None else time.monotonic() + left
