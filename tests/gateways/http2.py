"""A caller of HTTP/2 that sends each frame by itself, as late as it likes, and reads no answer."""

from __future__ import annotations

import socket
from collections.abc import Mapping

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_END_STREAM, _END_HEADERS = 1, 4
CHAT = {":method": "POST", ":scheme": "http", ":authority": "here", ":path": "/v1/chat/completions"}


class Http2Caller:
    """One connection; streams have odd numbers that grow."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.sendall(_PREFACE)
        self._send(_SETTINGS, 0, 0, b"")

    def headers(self, stream: int, fields: Mapping[str, str], *, last: bool = False) -> None:
        """A request's headers, or behind its data its trailers, which are last."""
        block = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields.items())
        self._send(_HEADERS, _END_HEADERS | last * _END_STREAM, stream, block)

    def data(self, stream: int, piece: bytes, *, last: bool = False) -> None:
        """A piece of a body."""
        self._send(_DATA, last * _END_STREAM, stream, piece)

    def close(self) -> None:
        """Leaves."""
        self._socket.close()

    def _send(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        head = len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")
        self._socket.sendall(head + payload)


def _text(value: str) -> bytes:
    """Of at most 126 bytes, as HPACK writes what it does not compress."""
    return bytes([len(value)]) + value.encode()
