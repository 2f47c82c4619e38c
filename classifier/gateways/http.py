"""HTTP and JSON in front of the gRPC server: a thin process of its own that decides nothing (extra `http`).

A body becomes the contract's message by protobuf's own JSON mapping, goes to the server with the caller's token, and
the answer comes back the same way; an error is the server's status in JSON. So the answers are those of gRPC, and so
are the checks, limits and promises. What is added is what the transport needs: a limit on bodies, a deadline, and that
nobody works for a caller who left.

Knows nothing of tiers, policies or bundles.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from classifier import wire
from classifier.credentials import Authenticator
from classifier.errors import ClassifierError, Overloaded
from classifier.gateways.json_messages import parse
from classifier.gateways.openapi import HTTP_STATUS, OPERATIONS, Operation, document
from classifier.statuses import code_name, error_of, status_of, status_of_call

log = logging.getLogger(__name__)
MAX_IN_FLIGHT = 1024  # as many calls as the server takes at once on one connection (max_concurrent_calls)
LARGE_BYTES = 65_536  # of a body: more is read beside the event loop
_FORWARDED = ("authorization", "traceparent", "tracestate")
_JSON = "application/json"


@dataclass(slots=True)
class Gateway:
    """Answers HTTP requests by calling a gRPC server.

    Attributes:
        channel: to the server, for the calls.
        probe: to the server, for its health, whatever that is.
        authenticator: checks tokens before a body is read; without tokens the server alone does.
        max_request_bytes: largest body.
        timeout_seconds: deadline of a request, reading its body included.
    """

    channel: grpc.aio.Channel
    probe: grpc.aio.Channel
    authenticator: Authenticator = field(default_factory=Authenticator)
    max_request_bytes: int = 4 * 2**20
    timeout_seconds: float = 10.0
    _in_flight: int = 0

    def app(self) -> Starlette:
        """The ASGI application."""
        from classifier.gateways.openapi_page import page

        routes = [
            Route(operation.path, partial(self._answer, operation), methods=[operation.method])
            for operation in OPERATIONS
        ]
        routes += [
            Route("/healthz", self._health),
            Route("/openapi.json", lambda _: JSONResponse(document())),
            Route("/", lambda _: HTMLResponse(page(document()))),
        ]
        app = Starlette(routes=routes, exception_handlers={HTTPException: _not_found})
        app.router.redirect_slashes = False  # a prompt would be sent again to wherever the Host header says
        return app

    async def _answer(self, operation: Operation, request: Request) -> Response:
        """One request: checked, read, passed on, answered. Whatever happens is a status."""
        deadline = time.monotonic() + self.timeout_seconds
        if self._in_flight >= MAX_IN_FLIGHT:
            busy = Overloaded(f"{MAX_IN_FLIGHT} requests are being answered already; try again later", 1.0)
            return error_response(status_of(busy))
        self._in_flight += 1
        try:
            metadata = _metadata(request)
            self.authenticator.caller(_Call(request, metadata))
            message = operation.request()
            if operation.method == "POST":
                body = await self._body(request, deadline)
                if isinstance(body, Response):
                    return body
                if len(body) > LARGE_BYTES:  # may take seconds to read, and others are served meanwhile
                    message = await asyncio.to_thread(parse, operation.request, body)
                else:
                    message = parse(operation.request, body)
            answer = await self._call(operation, message, metadata, deadline, request)
            return JSONResponse(wire.as_json(answer))
        except ClassifierError as error:
            return error_response(status_of(error))
        except grpc.RpcError as error:
            return error_response(status_of_call(error))
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as error:
            incident = uuid.uuid4().hex[:12]
            where = " < ".join(f"{f.filename}:{f.lineno}" for f in reversed(traceback.extract_tb(error.__traceback__)))
            log.error("internal error %s in %s: %s at %s", incident, operation.rpc, type(error).__name__, where)  # noqa: TRY400 - a traceback could quote a prompt
            told = f"internal error {incident}; the gateway's log says where"
            return error_response(status_pb2.Status(code=code_pb2.INTERNAL, message=told))
        finally:
            self._in_flight -= 1

    async def _body(self, request: Request, deadline: float) -> bytes | Response:
        """The body, or why it is not taken."""
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != _JSON:
            # Also keeps web pages of other origins from posting here: a browser asks first for this type.
            return _refusal(415, "INVALID_ARGUMENT", f"Content-Type: send {_JSON}")
        if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
            return _refusal(415, "INVALID_ARGUMENT", "Content-Encoding: send the body uncompressed")
        declared = request.headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self.max_request_bytes:
            return self._too_large()  # before a caller who waits for 100 Continue sends it
        chunks, size = [], 0
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > self.max_request_bytes:
                        return self._too_large()
                    chunks.append(chunk)
        except TimeoutError:
            return _refusal(408, "DEADLINE_EXCEEDED", f"the body did not come within {self.timeout_seconds:g} s")
        return b"".join(chunks)

    def _too_large(self) -> Response:
        told = f"the body is larger than {self.max_request_bytes} bytes; cut long contents in the middle"
        return _refusal(413, "INVALID_ARGUMENT", told)

    async def _call(
        self, operation: Operation, message: Message, metadata: Mapping[str, str], deadline: float, request: Request
    ) -> Message:
        """The server's answer. Where the caller leaves, the call is cancelled."""
        stub: Callable[..., Any] = self.channel.unary_unary(
            f"/{wire.SERVICE}/{operation.rpc}",
            request_serializer=operation.request.SerializeToString,
            response_deserializer=operation.response.FromString,
        )
        call = stub(message, timeout=max(0.0, deadline - time.monotonic()), metadata=tuple(metadata.items()))
        leaving = asyncio.create_task(_left(request))
        leaving.add_done_callback(lambda task: None if task.cancelled() else call.cancel())
        try:
            answer: Message = await call
        except asyncio.CancelledError:
            if leaving.done():
                raise ClientDisconnect from None
            raise
        finally:
            leaving.cancel()
        return answer

    async def _health(self, request: Request) -> Response:  # noqa: ARG002
        asked = health_pb2.HealthCheckRequest(service=wire.SERVICE)
        try:
            found = await health_pb2_grpc.HealthStub(self.probe).Check(asked, timeout=min(2.0, self.timeout_seconds))
        except grpc.RpcError:
            status = "UNREACHABLE"
        else:
            serving = found.status == health_pb2.HealthCheckResponse.SERVING
            status = "SERVING" if serving else "NOT_SERVING"
        return JSONResponse({"status": status}, 200 if status == "SERVING" else 503)


async def _left(request: Request) -> None:
    """Ends when the caller is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


@dataclass(frozen=True, slots=True)
class _Call:
    """What `Authenticator` reads of a call."""

    request: Request
    metadata: Mapping[str, str]

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return tuple(self.metadata.items())

    def auth_context(self) -> Mapping[str, Any]:
        return {}

    def peer(self) -> str:
        return str(self.request.client)


def _metadata(request: Request) -> dict[str, str]:
    """The headers that are passed on, where gRPC can carry them."""
    found = {name: request.headers[name] for name in _FORWARDED if name in request.headers}
    return {name: value for name, value in found.items() if value.isascii() and value.isprintable()}


def error_response(status: status_pb2.Status) -> Response:
    """A status as HTTP: its code, its text, those of its details that are known here."""
    name = code_name(status.code)
    response = _refusal(HTTP_STATUS.get(name, 500), name, status.message, _details(status))
    retry = error_of(status).retry_after_seconds
    if retry is not None:
        response.headers["Retry-After"] = str(max(1, round(retry)))
    if response.status_code == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _details(status: status_pb2.Status) -> list[Any]:
    """As JSON, without those of an unknown kind, as a proxy on the way may add, and damaged ones."""
    found = []
    for detail in status.details:
        with contextlib.suppress(TypeError, DecodeError):
            found.append(json_format.MessageToDict(detail, preserving_proto_field_name=True))
    return found


def _refusal(code: int, status: str, message: str, details: list[Any] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "status": status, "message": message, "details": details or []}}, code)


def _not_found(request: Request, error: Exception) -> Response:
    code = error.status_code if isinstance(error, HTTPException) else 500
    told = f"{request.method} {request.url.path[:200]}: there is no such call; / and /openapi.json list them"
    response = _refusal(code, "NOT_FOUND" if code == 404 else "INVALID_ARGUMENT", told)
    response.headers.update(getattr(error, "headers", None) or {})
    return response
