"""The process of the HTTP gateway: its settings, its socket, its signals.

Knows nothing of calls or messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from classifier.addresses import is_local, is_unix
from classifier.channels import aio_channel
from classifier.credentials import Authenticator
from classifier.errors import MissingExtra, SettingsError
from classifier.gateways.settings import GatewaySettings, follow
from classifier.kept import Kept
from classifier.lifetime import first_signal, print_ready
from classifier.listening import bound_socket, check_free
from classifier.pem import read_pem
from classifier.settings import check_pair

log = logging.getLogger(__name__)
DRAIN_SECONDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings(GatewaySettings):
    """What the HTTP gateway is told, beside what every gateway is. Checked when made.

    Attributes:
        tokens: file of bearer tokens, a line each: NAME TOKEN; the server's own. Empty leaves the check to the server.
        tls_cert: PEM file of the certificate chain shown to callers.
        tls_key: PEM file of its key.
        insecure: serve other machines without TLS or without tokens.

    Raises:
        SettingsError: values contradict one another; both sides are named.
    """

    listen: str = "127.0.0.1:8080"
    timeout_seconds: float = 10.0
    tokens: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    insecure: bool = False

    def __post_init__(self) -> None:
        GatewaySettings.__post_init__(self)
        check_pair(self, "tls_cert", "tls_key")
        if not is_local(self.listen) and not self.insecure:
            missing = [] if self.tls_cert else ["TLS (--tls-cert, --tls-key)"]
            missing += [] if self.tokens else ["authentication (--tokens, the server's own file)"]
            if missing:
                raise SettingsError(
                    f"listen: {self.listen} can be reached by other machines and has no {' and no '.join(missing)}; "
                    "add it, listen on 127.0.0.1, or say --insecure"
                )


def run(settings: HttpSettings) -> signal.Signals:
    """Serves until SIGTERM or SIGINT, then finishes what is in flight, and returns the signal.

    Raises:
        MissingExtra: starlette or uvicorn is not installed.
        SettingsError: the address cannot be had, or a file cannot be read.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"the HTTP gateway needs {error.name}: pip install 'request-complexity-classifier[http]'"
        ) from None
    with _socket(settings.listen) as listening:
        return asyncio.run(_serve(settings, listening))


async def _serve(settings: HttpSettings, listening: socket.socket) -> signal.Signals:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    from classifier.gateways.http import Gateway

    class _Quiet(uvicorn.Server):
        """Says when it is ready, and leaves signals to us: uvicorn would raise them again at its end."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print_ready([_shown(settings, listening)])

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    class _Timely(H11Protocol):
        """Closes a connection on which no request begins in time: uvicorn waits for the rest of a head for ever.

        With the faster parser, which uvicorn would take where it is installed, a head has no limit.
        """

        awaited: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.await_head()

        def on_response_complete(self) -> None:
            self.await_head()
            super().on_response_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self.await_nothing()

        def shutdown(self) -> None:
            super().shutdown()
            if self.cycle is not None:  # its answer says that it is the last: else callers send the next one in vain
                self.cycle.default_headers = [*self.cycle.default_headers, (b"connection", b"close")]

        def await_head(self) -> None:
            self.await_nothing()
            self.awaited = self.loop.call_later(settings.timeout_seconds, self.close_after, self.cycle)

        def await_nothing(self) -> None:
            if self.awaited is not None:
                self.awaited.cancel()

        def close_after(self, request: Any) -> None:
            if self.cycle is request:  # the last one, or none
                self.transport.close()

    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # it logs each start and stop
    authenticator = Authenticator(settings.tokens)
    # The channel of the calls knows no server that does not serve, and so cannot tell one from none.
    ungated = ("grpc.service_config", "{}")
    async with _channel(settings) as channel, _channel(settings, ungated) as probe:
        app = Gateway(channel, probe, authenticator, settings.max_request_bytes, settings.timeout_seconds).app()
        try:
            config = uvicorn.Config(
                app,
                http=_Timely,
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                ssl_certfile=settings.tls_cert or None,
                ssl_keyfile=settings.tls_key or None,
                timeout_graceful_shutdown=DRAIN_SECONDS,
            )
            config.load()
        except OSError as error:
            raise SettingsError(f"tls_cert or tls_key cannot be used ({error.strerror or error})") from None
        server = _Quiet(config)
        told = first_signal()
        told.add_done_callback(lambda _: setattr(server, "should_exit", True))
        following = [asyncio.create_task(follow("tokens", authenticator.reload))]
        if config.ssl is not None:
            following.append(asyncio.create_task(follow("certificates", _shown_by(config.ssl, settings).reload)))
        try:
            await server.serve(sockets=[listening])
        finally:
            for task in following:
                task.cancel()
        return told.result()


def _shown_by(served: ssl.SSLContext, settings: HttpSettings) -> Kept[ssl.SSLContext]:
    """The certificate of the moment, shown to whoever connects; uvicorn itself knows one for all its life."""
    key, cert = Path(settings.tls_key), Path(settings.tls_cert)

    def read() -> ssl.SSLContext:
        read_pem(key=key, cert=cert)  # says what they are not
        # A context of its own: one that holds an older certificate of another kind of key goes on showing that.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        return context

    kept = Kept(read, key, cert)
    # Called at every handshake, also where the caller names no host.
    served.sni_callback = lambda connection, *_: setattr(connection, "context", kept.value)
    return kept


def _channel(settings: HttpSettings, *more: tuple[str, Any]) -> grpc.aio.Channel:
    return aio_channel(settings.address, settings.credentials(), [("grpc.max_receive_message_length", -1), *more])


@contextlib.contextmanager
def _socket(address: str) -> Iterator[socket.socket]:
    check_free(address, shared=False)
    if not is_unix(address):
        with bound_socket(address, shared=False) as bound:
            yield bound
        return
    path = Path(address.removeprefix("unix:"))
    path.unlink(missing_ok=True)  # check_free made sure that nobody listens there
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as bound:
        try:
            bound.bind(str(path))
        except OSError as error:
            raise SettingsError(f"listen: {address} cannot be had ({error.strerror or error})") from None
        try:
            yield bound
        finally:
            path.unlink(missing_ok=True)


def _shown(settings: HttpSettings, listening: socket.socket) -> str:
    if is_unix(settings.listen):
        return settings.listen
    scheme = "https" if settings.tls_cert else "http"
    return f"{scheme}://{settings.listen.rpartition(':')[0]}:{listening.getsockname()[1]}"
