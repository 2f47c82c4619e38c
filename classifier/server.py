"""One server process: ports, certificates, health, reflection, warm-up, drain.

It listens first, so that a port in use is told at once, and is NOT_SERVING until the model has answered its golden
inputs. On SIGTERM it says NOT_SERVING, waits for balancers to notice, then finishes what is in flight.

Knows nothing of messages, policies or probabilities.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from classifier import wire
from classifier.admission import Admission, RateLimit
from classifier.credentials import Identity
from classifier.errors import SettingsError
from classifier.service import Classifies, Ids, Limits, Observer, Service
from classifier.settings import ServerSettings, available_cores, is_unix, split_address, state_folder

log = logging.getLogger(__name__)
# Above max_request_bytes our own check answers with the field; above this many times it gRPC cuts the transfer short.
_TRANSPORT_LIMIT = 4
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Server:
    """A gRPC server of one engine.

    Args:
        settings: what it was told.
        load: returns the engine, ready and warm; called on a thread.
        ids: makes and checks decision ids; by default from the settings' key.
        observer: is told what happened.
    """

    def __init__(
        self,
        settings: ServerSettings,
        load: Callable[[], Classifies],
        *,
        ids: Ids | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.settings = settings
        self.addresses: tuple[str, ...] = ()
        self._load = load
        self._ids = ids
        self._observer = observer or Observer()
        self._health = health.aio.HealthServicer()
        self.service: Service
        self._grpc: grpc.aio.Server

    async def start(self) -> None:
        """Listens, loads, and is SERVING when it returns.

        Raises:
            SettingsError: an address cannot be had, or a file cannot be used.
            BundleError: the bundle cannot be used.
        """
        settings = self.settings
        self._identity = Identity(settings.tokens, certificates=bool(settings.tls_client_ca))
        self._grpc = grpc.aio.server(options=_options(settings))
        await self._set_health(_NOT_SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        if settings.reflection:
            _add_reflection(self._grpc)
        self.service = Service(
            admission=Admission(settings.cores or available_cores(), settings.queue_size, settings.max_wait_seconds),
            ids=self._ids or _ids(settings),
            store=settings.store,
            identity=self._identity,
            limits=Limits(**{name: getattr(settings, name) for name in Limits.__slots__}),
            rate_limit=RateLimit(settings.rate_limit, settings.rate_limit_burst),
            observer=self._observer,
        )
        self._grpc.add_generic_rpc_handlers((self.service.handlers(),))
        try:
            self.addresses = tuple([self._bind(address) for address in settings.listen])
            await self._grpc.start()
            engine = await asyncio.to_thread(self._load)
        except BaseException:
            await self.service.admission.close()
            await self._grpc.stop(None)
            raise
        self.service.engine = engine
        await self._set_health(_SERVING)

    async def stop(self) -> None:
        """NOT_SERVING, the delay for balancers, then the end of what is in flight, at most `drain_seconds`."""
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(self.settings.shutdown_delay_seconds)
        await self._grpc.stop(self.settings.drain_seconds)
        await self.service.admission.close()

    async def _set_health(self, status: Any) -> None:
        for name in ("", wire.SERVICE):
            await self._health.set(name, status)

    def _bind(self, address: str) -> str:
        """Listens on one address; returns it with the port that it got."""
        credentials = _credentials(self.settings) if self.settings.tls_cert and not is_unix(address) else None
        _check_free(address, shared=self.settings.workers > 1)
        try:
            if credentials is None:
                port = self._grpc.add_insecure_port(address)
            else:
                port = self._grpc.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise SettingsError(
                f"listen: {address} cannot be listened on; is it an address of this machine?"
            ) from error
        return address if is_unix(address) else f"{address.rpartition(':')[0]}:{port}"


async def serve(server: Server, *, ready: Callable[[Sequence[str]], None] | None = None) -> None:
    """Starts the server and serves until SIGTERM or SIGINT, then drains.

    Args:
        server: not started yet.
        ready: called with the addresses when the server is SERVING; by default prints the line `serving on ADDRESS`.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    starting = asyncio.create_task(server.start())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        return
    try:
        starting.result()
    finally:
        if starting.exception() is not None:
            stopping.cancel()
    (ready or _print_ready)(server.addresses)
    await stopping
    log.info("draining")
    await server.stop()
    log.info("stopped")


def _print_ready(addresses: Sequence[str]) -> None:
    print(f"serving on {', '.join(addresses)}", file=sys.stderr, flush=True)


def _options(settings: ServerSettings) -> list[tuple[str, int]]:
    return [
        # Without this two servers would share a port by accident, each getting some of the requests.
        ("grpc.so_reuseport", int(settings.workers > 1)),
        ("grpc.max_receive_message_length", settings.max_request_bytes * _TRANSPORT_LIMIT),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", settings.max_concurrent_calls),
        # Gateways keep idle connections alive; the default would send them away as too noisy.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _add_reflection(server: grpc.aio.Server) -> None:
    from grpc_reflection.v1alpha import reflection

    reflection.enable_server_reflection((wire.SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)


def _check_free(address: str, *, shared: bool) -> None:
    """Says why an address cannot be had, which gRPC does not; and that a live Unix socket is not to be taken over."""
    if is_unix(address):
        path = address.removeprefix("unix:")
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(path)
            raise SettingsError(f"listen: {address} is served already; stop that server or choose another path")
        return
    host, port = split_address(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(found[0], found[1]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            probe.bind(found[4])
    except OSError as error:
        reason = "is in use" if error.errno == 98 else f"cannot be had ({error.strerror or error})"
        raise SettingsError(
            f"listen: {address} {reason}; stop what listens there, or choose another --listen"
        ) from None


def _credentials(settings: ServerSettings) -> grpc.ServerCredentials:
    """Credentials that are read again at the handshake after a file changed; unreadable ones change nothing."""
    paths = [Path(p) for p in (settings.tls_key, settings.tls_cert, settings.tls_client_ca) if p]

    def read() -> grpc.ServerCertificateConfiguration:
        key, chain, *authority = (path.read_bytes() for path in paths)
        return grpc.ssl_server_certificate_configuration([(key, chain)], authority[0] if authority else None)

    def stamp() -> tuple[tuple[int, int, int], ...]:
        return tuple((s.st_mtime_ns, s.st_size, s.st_ino) for s in map(os.stat, paths))

    try:
        known = [stamp()]
        first = read()
    except OSError as error:
        raise SettingsError(f"tls: {error.filename} cannot be read ({error.strerror})") from None

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        try:
            now = stamp()
            if now == known[0]:
                return None
            fresh = read()
        except OSError as error:
            log.warning("tls: certificates cannot be read again (%s); the ones there were stay", type(error).__name__)
            return None
        known[0] = now
        log.info("tls: certificates changed and were read again")
        return fresh

    return grpc.dynamic_ssl_server_credentials(first, fetch, require_client_authentication=bool(settings.tls_client_ca))


def load_engine(settings: ServerSettings) -> Classifies:
    """The engine that the settings name, warmed by its golden inputs."""
    from classifier.bundle import SHIPPED
    from classifier.engine import Engine

    return Engine.from_pretrained(settings.bundle or SHIPPED)


def _ids(settings: ServerSettings) -> Ids:
    """Ids by the key of the settings, or by one that ends with this process where no outcome can be reported."""
    from classifier.decision_id import DecisionIds, read_key

    if settings.key_file or settings.feedback_url:
        return DecisionIds(read_key(settings.key_file or state_folder() / "server.key"))
    return DecisionIds(os.urandom(32))
