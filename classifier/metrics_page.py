"""The page that Prometheus reads: of one process, or of all workers.

Knows nothing of what is counted.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from classifier.addresses import split_address
from classifier.errors import SettingsError

PAGE_SECONDS = 10.0
"""How long a caller may be silent: each holds a thread and an open file."""
log = logging.getLogger(__name__)


def serve_metrics(address: str, registry: CollectorRegistry) -> Callable[[], None]:
    """Serves the Prometheus page on a thread; returns what ends it.

    Raises:
        SettingsError: the address cannot be had.
    """
    host, port = split_address(address)
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise SettingsError(f"metrics_listen: {address} cannot be had ({error.strerror}); choose another") from None
    server.RequestHandlerClass = _quiet(server.RequestHandlerClass)
    log.info("metrics on %s:%d", address.rpartition(":")[0], server.server_port)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


def _quiet(handler: Any) -> Any:
    """The page's handler that waits for no caller for ever, and writes no traceback where one leaves or sends junk."""

    class Quiet(handler):  # type: ignore[misc]
        timeout = PAGE_SECONDS

        def handle(self) -> None:
            with contextlib.suppress(OSError):
                super().handle()

        def get_stderr(self) -> io.StringIO:
            return io.StringIO()

    return Quiet


def collected(folder: str) -> CollectorRegistry:
    """The metrics of all worker processes that write into `folder`, summed."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=folder)  # type: ignore[no-untyped-call]
    return registry


def forget_process(pid: int, folder: str) -> None:
    """Leaves what a worker that ended was doing just then out of `collected`; what it counted stays."""
    mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]
