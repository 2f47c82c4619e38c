"""Clients, sync and async: always a deadline, retries of what another try may mend, and a tier to fall back to.

A router must never be the outage: with a `fallback_tier` a call never raises for what the conversation holds or
for what the server does; it answers with that tier, says so in the answer, and counts it. Without one it raises.

Knows nothing of engines, bundles, servers' settings, or how a connection is made and retried.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import grpc

from classifier import wire
from classifier.addresses import check_target
from classifier.breaker import Breaker
from classifier.channels import SERVICE_CONFIG, aio_channel, channel, credentials, usable_loop
from classifier.errors import NoAllowedRoute
from classifier.fallback import LONGEST_SECONDS, Answer, Batch, ClientClosed, Conversation, Logic
from classifier.routing import RoutingTable, read_table
from classifier.streams import AsyncStream, Stream
from classifier.types import Outcome, OutcomeState, Tier
from classifier.v1 import classifier_pb2 as pb
from classifier.v1 import classifier_pb2_grpc as pb_grpc

__all__ = ["SERVICE_CONFIG", "Answer", "AsyncClient", "Breaker", "Client", "Conversation"]

CLASSIFY_SECONDS = 0.25
BATCH_SECONDS = 10.0
STREAM_SECONDS = 3600.0
REPORT_SECONDS = 2.0


class _Base:
    """Settings and counters of both clients.

    Args:
        target: `HOST:PORT`, `unix:/PATH`, `dns:///NAME:PORT` or any other gRPC target; several servers behind one name
            are asked in turn.
        fallback_tier: what is answered when the server is not reachable, busy, late or refuses; None raises instead.
        timeout_seconds: deadline of one `classify`, retries included.
        token: bearer token, or a function that returns the one of the moment; where it raises nothing is sent, and the
            fallback's reason is `UNAUTHENTICATED`.
        tls: use TLS, with the machine's authorities; implied by `tls_ca` or `tls_cert`.
        tls_ca: PEM file of the authority that signed the server's certificate.
        tls_cert: PEM file of this client's certificate chain, for mTLS.
        tls_key: PEM file of its key.
        breaker: when to stop asking.
        routes: the routing table, or its file; use the server's. With it every answer has a route, also a fallback,
            and a restricted request (`labels={"data": "restricted"}`) only gets routes on premises or raises.
        options: more gRPC channel arguments.
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        fallback_tier: Tier | None = None,
        timeout_seconds: float = CLASSIFY_SECONDS,
        token: str | Callable[[], str] = "",
        tls: bool = False,
        tls_ca: str | Path | None = None,
        tls_cert: str | Path | None = None,
        tls_key: str | Path | None = None,
        breaker: Breaker | None = None,
        routes: RoutingTable | str | Path | None = None,
        options: Sequence[tuple[str, Any]] = (),
    ) -> None:
        check_target(target)
        self._target, self._options = target, options
        table = routes if routes is None or isinstance(routes, RoutingTable) else read_table(routes)
        self._logic = Logic(fallback_tier, timeout_seconds, token, breaker or Breaker(), table)
        self._credentials = credentials(tls_ca, tls_key, tls_cert) if tls or tls_ca or tls_cert or tls_key else None
        self._stub: Any = None
        self._made()

    def _made(self) -> None:
        """What a client does as soon as it is made."""

    @property
    def routes(self) -> RoutingTable | None:
        """The routing table; a new one may take its place at any time."""
        return self._logic.routes

    @routes.setter
    def routes(self, table: RoutingTable | None) -> None:
        self._logic.routes = table

    @property
    def coverage(self) -> float:
        """Share of requests that got a real classification since the client was made; 1 before the first."""
        counts = self.counts
        return counts.get("classified", 0) / sum(counts.values()) if counts else 1.0

    @property
    def counts(self) -> Mapping[str, int]:
        """How many requests ended how: `classified`, or the fallback's reason."""
        with self._logic.lock:
            return dict(self._logic.counts)

    def _call(self, method: str, message: Any, timeout_seconds: float) -> Any:
        """A call, begun."""
        seconds = min(timeout_seconds, LONGEST_SECONDS)
        return getattr(self._stub, method)(message, timeout=seconds, metadata=self._logic.metadata())


class Client(_Base):
    """A client for threads. Safe from any of them; keep one for the life of the process.

    with Client("127.0.0.1:50051", fallback_tier=Tier.COMPLEX) as client:
        answer = client.classify("What is the capital of Australia?")
        answer.tier, answer.classified
    """

    def _made(self) -> None:
        self._channel = channel(self._target, self._credentials, self._options)
        self._stub = pb_grpc.ClassifierServiceStub(self._channel)

    def classify(self, conversation: Conversation, *, timeout_seconds: float | None = None, **fields: Any) -> Answer:
        """The tier of one conversation.

        Args:
            conversation: a request, a prompt, or messages.
            timeout_seconds: instead of the client's.
            fields: of `Request`, where the conversation is not one.

        Raises:
            ClassifierError: only without a `fallback_tier`.
            NoAllowedRoute: a restricted request would have to leave the premises.
        """
        logic, plan = self._logic, self._logic.plan(conversation, fields)
        try:
            seconds = logic.timeout_seconds if timeout_seconds is None else timeout_seconds
            logic.admit(seconds, plan)
            response = self._call("Classify", plan.message, seconds)
            return logic.answered(plan, response)
        except Exception as error:
            return logic.failed(plan, error)

    def classify_batch(
        self, conversations: Iterable[Conversation], *, timeout_seconds: float = BATCH_SECONDS
    ) -> list[Answer]:
        """The tiers of many conversations, in their order; each succeeds or falls back alone.

        Send at most as many as `info().limits.max_batch_items`.

        Raises:
            ClassifierError: only without a `fallback_tier`: the first one's.
            NoAllowedRoute: a restricted request would have to leave the premises.
        """
        logic, batch = self._logic, Batch(self._logic, conversations)
        results: Sequence[pb.ClassifyResult] = ()
        try:
            if batch.plans_sent:
                logic.admit(timeout_seconds)
                results = self._call("ClassifyBatch", batch.message, timeout_seconds).results
        except Exception as error:
            return batch.failed(error)
        return batch.answers(results)

    def classify_stream(
        self, conversations: Iterable[Conversation], *, timeout_seconds: float = STREAM_SECONDS
    ) -> Iterator[Answer]:
        """The tiers of a stream of conversations, in their order, as they come. Not retried.

        What reading `conversations` raises is raised after the answers to what came before it.

        Raises:
            ClassifierError: only without a `fallback_tier`.
            NoAllowedRoute: a restricted request would have to leave the premises.
        """
        logic = self._logic
        stream, call = Stream(conversations, lambda conversation: logic.plan(conversation, {})), None
        try:
            logic.admit(timeout_seconds)
            call = self._call("ClassifyStream", stream.messages(), timeout_seconds)
            for response in call:
                yield logic.result(stream.answered(), response.result)
            stream.check()
        except NoAllowedRoute:
            raise
        except Exception as error:
            # An item's own error was counted with it, and says nothing of those that wait.
            lost = stream.waiting if isinstance(error, grpc.RpcError) else 0
            known, code = logic.lost(error, lost, stream.began)
            for plan in stream.unanswered():
                yield logic.fall_back(plan, known, code)
        finally:
            stream.over = True
            if call is not None:
                call.cancel()  # where the caller reads no further; it changes nothing at the end
        if stream.broken is not None:
            raise stream.broken

    def report_outcome(self, outcome: Outcome, *, timeout_seconds: float = REPORT_SECONDS) -> OutcomeState:
        """Reports what became of a decision; every state that it returns is durable.

        Raises:
            ClassifierError: it was not taken; the same outcome may be sent again.
        """
        return wire.outcome_state(self._asked("ReportOutcome", wire.outcome_to_proto(outcome), timeout_seconds))

    def info(self, *, timeout_seconds: float = REPORT_SECONDS) -> pb.GetInfoResponse:
        """Versions, tiers, limits and the promise of each policy, as the contract's message.

        Raises:
            ClassifierError: the server did not answer.
        """
        response: pb.GetInfoResponse = self._asked("GetInfo", pb.GetInfoRequest(), timeout_seconds)
        return response

    def _asked(self, method: str, message: Any, timeout_seconds: float) -> Any:
        """What a call that classifies nothing comes to: the breaker is told of classifications alone."""
        try:
            return self._call(method, message, timeout_seconds)
        except Exception as error:
            raise self._logic.error_of_call(error) from None

    def close(self) -> None:
        """Closes the connections. What is in flight or comes later falls back, or raises, as `CANCELLED`."""
        self._logic.closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class AsyncClient(_Base):
    """A client for one event loop at a time; keep one for its life. As `Client`, with `await`.

    It may be made before its loop runs, and used on another one once that is closed. A process that is forked after the
    first call of any such client can make none: fork before it, or start processes by spawn or forkserver.
    """

    _loop: asyncio.AbstractEventLoop | None = None
    _channel: grpc.aio.Channel | None = None

    def _call(self, method: str, message: Any, timeout_seconds: float) -> Any:
        """A call, begun on the loop that runs: gRPC ties a channel to the loop that it is made on."""
        here = usable_loop(self._loop)
        if self._logic.closed:
            raise ClientClosed
        if here is not self._loop:
            self._loop, self._stub = here, self._connect()
        return super()._call(method, message, timeout_seconds)

    def _connect(self) -> Any:
        self._channel = aio_channel(self._target, self._credentials, self._options)
        return pb_grpc.ClassifierServiceStub(self._channel)

    async def _answer_of(self, call: Any) -> Any:
        """What a call comes to. gRPC cancels who waits for it where the client is closed: as if the caller had left."""
        try:
            return await call
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._logic.closed and (task is None or not task.cancelling()):
                raise ClientClosed from None
            raise

    async def classify(
        self, conversation: Conversation, *, timeout_seconds: float | None = None, **fields: Any
    ) -> Answer:
        """As `Client.classify`."""
        logic, plan = self._logic, self._logic.plan(conversation, fields)
        try:
            seconds = logic.timeout_seconds if timeout_seconds is None else timeout_seconds
            logic.admit(seconds, plan)
            response = await self._answer_of(self._call("Classify", plan.message, seconds))
            return logic.answered(plan, response)
        except Exception as error:
            return logic.failed(plan, error)

    async def classify_batch(
        self, conversations: Iterable[Conversation], *, timeout_seconds: float = BATCH_SECONDS
    ) -> list[Answer]:
        """As `Client.classify_batch`."""
        logic, batch = self._logic, Batch(self._logic, conversations)
        results: Sequence[pb.ClassifyResult] = ()
        try:
            if batch.plans_sent:
                logic.admit(timeout_seconds)
                results = (await self._answer_of(self._call("ClassifyBatch", batch.message, timeout_seconds))).results
        except Exception as error:
            return batch.failed(error)
        return batch.answers(results)

    async def classify_stream(
        self,
        conversations: Iterable[Conversation] | AsyncIterable[Conversation],
        *,
        timeout_seconds: float = STREAM_SECONDS,
    ) -> AsyncIterator[Answer]:
        """As `Client.classify_stream`; the conversations may come from an async iterator."""
        logic = self._logic
        stream, call = AsyncStream(conversations, lambda conversation: logic.plan(conversation, {})), None
        try:
            logic.admit(timeout_seconds)
            call = self._call("ClassifyStream", stream.messages(), timeout_seconds)
            while (response := await self._answer_of(call.read())) is not grpc.aio.EOF:
                yield logic.result(stream.answered(), response.result)
            stream.check()
        except NoAllowedRoute:
            raise
        except Exception as error:
            lost = stream.waiting if isinstance(error, grpc.RpcError) else 0
            known, code = logic.lost(error, lost, stream.began)
            async for plan in stream.unanswered():
                yield logic.fall_back(plan, known, code)
        finally:
            if call is not None:
                call.cancel()
            await stream.close()
        if stream.broken is not None:
            raise stream.broken

    async def report_outcome(self, outcome: Outcome, *, timeout_seconds: float = REPORT_SECONDS) -> OutcomeState:
        """As `Client.report_outcome`."""
        return wire.outcome_state(await self._asked("ReportOutcome", wire.outcome_to_proto(outcome), timeout_seconds))

    async def info(self, *, timeout_seconds: float = REPORT_SECONDS) -> pb.GetInfoResponse:
        """As `Client.info`."""
        response: pb.GetInfoResponse = await self._asked("GetInfo", pb.GetInfoRequest(), timeout_seconds)
        return response

    async def _asked(self, method: str, message: Any, timeout_seconds: float) -> Any:
        """As `Client._asked`."""
        try:
            return await self._answer_of(self._call(method, message, timeout_seconds))
        except Exception as error:
            raise self._logic.error_of_call(error) from None

    async def close(self) -> None:
        """As `Client.close`."""
        self._logic.closed = True
        if self._channel is not None and self._loop is not None and not self._loop.is_closed():
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()
