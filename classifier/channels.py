"""Connections to servers: how they are kept, retried, balanced and secured, the same for every client here.

Retries and their budget are gRPC's own, by the service config below, which clients in other languages can use as it is.

Knows nothing of calls, answers or fallbacks.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import grpc

from classifier import wire
from classifier.errors import ServerUnreachable
from classifier.pem import read_pem

SERVICE_CONFIG: Mapping[str, Any] = {
    "loadBalancingConfig": [{"round_robin": {}}],
    # A server that loads its model or drains is not asked; one without a health service is taken to serve.
    "healthCheckConfig": {"serviceName": wire.SERVICE},
    "methodConfig": [
        {
            "name": [
                {"service": wire.SERVICE, "method": method}
                for method in ("Classify", "ClassifyBatch", "ReportOutcome", "GetInfo")
            ],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.01s",
                "maxBackoff": "0.1s",
                "backoffMultiplier": 2,
                # A server that ends says one or the other of what it does not answer any more.
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ],
    # The retry budget: when half of the tokens are gone, a failure costs one and a success gives back a tenth.
    "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.1},
}
# What is classified is prompts, and they go to the server that was named. By default gRPC asks the proxy that
# `http_proxy` or `https_proxy` names, also for addresses of this machine.
NO_PROXY = ("grpc.enable_http_proxy", 0)
_OPTIONS: Sequence[tuple[str, Any]] = (
    NO_PROXY,
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # A server that restarts is found again within a second, not after gRPC's two minutes, and under another address
    # not after half a minute, for as long as which gRPC does not look a name up again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    # A long conversation is sent again as a short one is: gRPC's default is to retry nothing above 256 KiB.
    ("grpc.per_rpc_retry_buffer_size", 2**31 - 1),
)
Options = Sequence[tuple[str, Any]]


def credentials(
    ca: str | Path | None = None, key: str | Path | None = None, cert: str | Path | None = None
) -> grpc.ChannelCredentials:
    """TLS with the authority in the PEM file `ca` (None: the machine's), and for mTLS a key and its certificate chain.

    Raises:
        SettingsError: a file cannot be read, or they are not what they should be.
    """
    return grpc.ssl_channel_credentials(*read_pem(ca, key, cert))


def channel(target: str, secure: grpc.ChannelCredentials | None = None, options: Options = ()) -> grpc.Channel:
    """A channel for threads; plain text without credentials. `options` replace ours of their names."""
    every = _merged(options)
    return grpc.secure_channel(target, secure, every) if secure else grpc.insecure_channel(target, every)


def aio_channel(target: str, secure: grpc.ChannelCredentials | None = None, options: Options = ()) -> grpc.aio.Channel:
    """A channel for an event loop; as `channel`."""
    every = _merged(options)
    return grpc.aio.secure_channel(target, secure, every) if secure else grpc.aio.insecure_channel(target, every)


def usable_loop(last: asyncio.AbstractEventLoop | None) -> asyncio.AbstractEventLoop:
    """The loop that runs, to be asked for before each call of an event loop's.

    gRPC serves all event loops of a process by one thread, which a fork does not take along: there a call would wait
    for ever, whatever its deadline.

    Args:
        last: the loop of the channel at hand.

    Raises:
        ServerUnreachable: this process was forked after the first such call, or `last` is another loop and still open.
    """
    if os.getpid() != _asking_process():
        raise ServerUnreachable(
            "this process was forked after the first call of an AsyncClient, and gRPC answers none here; fork before "
            "it, or start processes by spawn or forkserver"
        )
    here = asyncio.get_running_loop()
    if not (last is None or last is here or last.is_closed()):
        raise ServerUnreachable("this client is used on another event loop; make one for each, or use a Client")
    return here


@cache
def _asking_process() -> int:
    """The process of the first call."""
    return os.getpid()


def _merged(options: Options) -> list[tuple[str, Any]]:
    """Ours with `options` in their place: of two with one name gRPC takes the first."""
    return list(dict([*_OPTIONS, *options]).items())
