"""The page that Prometheus reads: of one process, or of all workers.

Knows nothing of what is counted.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from classifier.addresses import split_address
from classifier.durable import explained, write_whole
from classifier.errors import SettingsError

PAGE_SECONDS = 10.0
"""How long a caller may be silent: each holds a thread and an open file."""
log = logging.getLogger(__name__)
_KINDS = ("counter", "histogram", "gauge_livemax", "gauge_livemin", "gauge_livesum")
_RESERVED_BYTES = 2**16  # as many as prometheus_client takes for each kind of number; ours need half of it at most


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
    _Collector(registry, path=folder)  # type: ignore[no-untyped-call]
    return registry


class _Collector(MultiProcessCollector):
    """Looks again where the files of a process are removed while it reads."""

    def collect(self) -> Any:
        while True:
            with contextlib.suppress(FileNotFoundError):
                return super().collect()  # type: ignore[no-untyped-call]


def reserve(pid: int, folder: str) -> None:
    """Takes the space of a worker's numbers: a write into its files would end the worker (SIGBUS) where a disk is full.

    Raises:
        InputError: there is none.
    """
    with explained(folder, "make space, or name another folder in TMPDIR"):
        for kind in _KINDS:
            write_whole(Path(folder) / f"{kind}_{pid}.db", bytes(_RESERVED_BYTES))


def forget_process(pid: int, folder: str, *, served: bool) -> None:
    """Leaves what a worker that ended was doing just then out of `collected`; what it counted while it served stays."""
    mark_process_dead(pid, folder)  # type: ignore[no-untyped-call]
    if not served:  # it counted nothing, and would come again and again
        for left in Path(folder).glob(f"*_{pid}.db"):
            left.unlink(missing_ok=True)
