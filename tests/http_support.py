"""A gateway of HTTP in front of a gRPC server, and how it is asked."""

from __future__ import annotations

import http.client
import json
from urllib.parse import urlsplit

from tests.serving_support import server_process

HI = {"messages": [{"role": "user", "content": "hi"}]}


def gateway(address, *arguments):
    """`classifier gateway http` in front of a gRPC server, with more time than a machine stands still for."""
    told = ("--listen", "127.0.0.1:0", "--address", address, "--timeout-seconds", "60")
    return server_process("gateway", "http", *told, *arguments, module="classifier")


def ask(base, path, body=None, *, method=None, headers=None, context=None):
    """Status, headers and parsed JSON of one request."""
    at = urlsplit(base)
    kind = http.client.HTTPSConnection if at.scheme == "https" else http.client.HTTPConnection
    extra = {"context": context} if context else {}
    connection = kind(at.hostname, at.port, timeout=60, **extra)
    try:
        data = json.dumps(body).encode() if isinstance(body, (dict, list)) else body
        sent = {"Content-Type": "application/json"} if data is not None else {}
        connection.request(method or ("GET" if data is None else "POST"), path, data, sent | (headers or {}))
        response = connection.getresponse()
        text = response.read()
        is_json = response.headers.get_content_type() == "application/json"
        return response.status, response.headers, json.loads(text) if is_json else text.decode()
    finally:
        connection.close()
