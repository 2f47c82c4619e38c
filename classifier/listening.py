"""Ports and certificates of a gRPC server: what to listen on, and why it cannot be had.

Knows nothing of engines, calls or how long a server lives.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path

import grpc

from classifier.addresses import is_unix, split_address
from classifier.errors import SettingsError
from classifier.kept import Kept
from classifier.pem import read_pem
from classifier.settings import MOST, ServerSettings

log = logging.getLogger(__name__)
ALONE = ("grpc.so_reuseport", 0)
"""Without this option two servers would share a port by accident, each getting some of the requests."""
# Above max_request_bytes our own check answers with the field; above this many times it gRPC cuts the transfer short.
_TRANSPORT_LIMIT = 4
_MOST_SOCKET_BYTES = 107  # Linux; sun_path less its end


def transport_bytes(settings: ServerSettings) -> int:
    """The largest message that gRPC takes in, for as long as a server runs."""
    return min(settings.max_request_bytes * _TRANSPORT_LIMIT, MOST)


def options(settings: ServerSettings) -> list[tuple[str, int]]:
    """Channel arguments of the server."""
    return [
        ("grpc.so_reuseport", 1) if settings.workers > 1 else ALONE,
        ("grpc.max_receive_message_length", transport_bytes(settings)),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", settings.max_concurrent_calls),
        # Gateways keep idle connections alive; the default would send them away as too noisy.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def bind(
    server: grpc.aio.Server, address: str, tls: grpc.ServerCredentials | None = None, *, shared: bool = False
) -> str:
    """Listens on one address; returns it with the port that it got.

    Args:
        server: has not started; not `shared` it needs `ALONE` among its options.
        address: TCP or Unix socket.
        tls: from `server_credentials`.
        shared: whether several processes are to share the port.

    Raises:
        SettingsError: it cannot be had; says why.
    """
    check_free(address, shared=shared)
    try:
        port = server.add_insecure_port(address) if tls is None else server.add_secure_port(address, tls)
    except RuntimeError as error:
        raise SettingsError(f"listen: {address} cannot be listened on; is it an address of this machine?") from error
    return address if is_unix(address) else f"{address.rpartition(':')[0]}:{port}"


def check_free(address: str, *, shared: bool) -> None:
    """Says why an address cannot be had, which gRPC does not; and that a live Unix socket is not to be taken over.

    Args:
        address: TCP or Unix socket.
        shared: whether several processes are to share the port.

    Raises:
        SettingsError: it is in use, or not of this machine, or no place for a socket.
    """
    if is_unix(address):
        _check_path(Path(address.removeprefix("unix:")))
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            try:
                probe.connect(address.removeprefix("unix:"))
            except BlockingIOError:  # who listens there is behind with accepting
                pass
            except OSError:
                return
        raise SettingsError(f"listen: {address} is served already; stop that server or choose another path")
    try:
        with bound_socket(address, shared=shared):
            pass
    except OSError as error:
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be had ({error.strerror or error})"
        raise SettingsError(
            f"listen: {address} {reason}; stop what listens there, or choose another --listen"
        ) from None


def _check_path(path: Path) -> None:
    if path.exists() and not path.is_socket():
        raise SettingsError(f"listen: {path} is there and is no socket; remove it, or choose another path")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise SettingsError(
            f"listen: {path.parent} is no folder that can be written to; make it, or choose another path"
        )
    if len(os.fsencode(path)) > _MOST_SOCKET_BYTES:
        raise SettingsError(
            f"listen: {path} is longer than the {_MOST_SOCKET_BYTES} bytes that a socket's path may have"
        )


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


def server_credentials(
    settings: ServerSettings, address: str, told: Callable[[bool], None]
) -> grpc.ServerCredentials | None:
    """TLS, asked for at each handshake after a file changed; what cannot be used is said, and changes nothing.

    Args:
        settings: say whether, and from which files.
        address: that it is for; a Unix socket has none.
        told: called where changed certificates were read, with whether they could be used.

    Raises:
        SettingsError: a file cannot be read, or they are not what they should be.
    """
    if not settings.tls_cert or is_unix(address):
        return None
    key, cert, authority = (
        Path(p) if p else None for p in (settings.tls_key, settings.tls_cert, settings.tls_client_ca)
    )
    paths = [path for path in (key, cert, authority) if path]
    kept = Kept(lambda: _certificates(*paths), *paths)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        try:
            if not kept.reload():
                return None
        except SettingsError as error:
            log.warning("%s; the certificates there were stay", error)
            told(False)
            return None
        log.info("tls: certificates changed and were read again")
        told(True)
        return kept.value

    return grpc.dynamic_ssl_server_credentials(kept.value, fetch, require_client_authentication=authority is not None)


def _certificates(key: Path, cert: Path, authority: Path | None = None) -> grpc.ServerCertificateConfiguration:
    """What the files hold.

    Raises:
        SettingsError: a file cannot be read, or they are not what they should be.
    """
    held, key_bytes, chain = read_pem(authority, key, cert)
    return grpc.ssl_server_certificate_configuration([(key_bytes, chain)], held)
