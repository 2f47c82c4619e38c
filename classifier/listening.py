"""Ports and certificates of a gRPC server: what to listen on, and why it cannot be had.

Knows nothing of engines, calls or how long a server lives.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from pathlib import Path

import grpc

from classifier.errors import SettingsError
from classifier.settings import ServerSettings, is_unix, split_address

log = logging.getLogger(__name__)
# Above max_request_bytes our own check answers with the field; above this many times it gRPC cuts the transfer short.
_TRANSPORT_LIMIT = 4


def options(settings: ServerSettings) -> list[tuple[str, int]]:
    """Channel arguments of the server."""
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


def bind(server: grpc.aio.Server, address: str, settings: ServerSettings) -> str:
    """Listens on one address; returns it with the port that it got.

    Raises:
        SettingsError: it cannot be had; says why.
    """
    check_free(address, shared=settings.workers > 1)
    try:
        if settings.tls_cert and not is_unix(address):
            port = server.add_secure_port(address, _credentials(settings))
        else:
            port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise SettingsError(f"listen: {address} cannot be listened on; is it an address of this machine?") from error
    return address if is_unix(address) else f"{address.rpartition(':')[0]}:{port}"


def check_free(address: str, *, shared: bool) -> None:
    """Says why an address cannot be had, which gRPC does not; and that a live Unix socket is not to be taken over.

    Args:
        address: TCP or Unix socket.
        shared: whether several processes are to share the port.

    Raises:
        SettingsError: it is in use, or not of this machine.
    """
    if is_unix(address):
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(address.removeprefix("unix:"))
            raise SettingsError(f"listen: {address} is served already; stop that server or choose another path")
        return
    try:
        with bound_socket(address, shared=shared):
            pass
    except OSError as error:
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror or error})"
        raise SettingsError(
            f"listen: {address} {reason}; stop what listens there, or choose another --listen"
        ) from None


def bound_socket(address: str, *, shared: bool) -> socket.socket:
    """A socket that has the address and does not listen: nobody connects to it, nobody else can take it unshared.

    Raises:
        OSError: it cannot be had.
    """
    host, port = split_address(address)
    family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    # asyncio sets TCP_NODELAY only where the socket says TCP; without it each answer waits 40 ms for an ACK.
    probe = socket.socket(family, kind, protocol)
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        probe.bind(where)
    except OSError:
        probe.close()
        raise
    return probe


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
