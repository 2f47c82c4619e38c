"""The standard health service: one word for the whole server, told to whoever watches, also to many.

Not the one of `grpcio-health-checking`: there the first watcher that leaves takes along what wakes all others, which
then never hear that a server begins or ceases to serve; and its watchers hold up the end of a server for all its drain.

Knows nothing of why a server serves or does not.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from classifier import wire

SERVICE = "grpc.health.v1.Health"
_NAMES = frozenset({"", wire.SERVICE})
_Response = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """NOT_SERVING until it is told otherwise. For the event loop alone."""

    def __init__(self) -> None:
        self._status = _Response.NOT_SERVING
        self._over = False
        self._changed = asyncio.Event()

    def set(self, *, serving: bool) -> None:
        """From now on the server serves, or does not."""
        self._status = _Response.SERVING if serving else _Response.NOT_SERVING
        self._wake()

    def close(self) -> None:
        """Ends the watching, each watcher with the last word."""
        self._over = True
        self._wake()

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 - the contract's name
        """The status now; NOT_FOUND for a service that is not here."""
        if request.service not in _NAMES:
            context.set_code(grpc.StatusCode.NOT_FOUND)
        return _Response(status=self._status)

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802 - the contract's name
        """The status now and whenever it changes; SERVICE_UNKNOWN for a service that is not here."""
        told = None
        while True:
            changed = self._changed  # before the look: a change while it is told must not be missed
            status = self._status if request.service in _NAMES else _Response.SERVICE_UNKNOWN
            if status != told:
                await context.write(_Response(status=status))
                told = status
                continue  # to look again: both the last word and the end may have come while this one was told
            if self._over:
                return
            await changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
