"""Several server processes on one port, and the one process that keeps them: for machines with many cores.

The parent holds the port without listening, starts the workers, passes signals on, starts a worker again that died, and
serves the metrics of all. The kernel spreads connections over the workers (SO_REUSEPORT), so this helps where there are
several connections. Workers end when the parent does, however it ends.

Knows nothing of calls, engines or bundles.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import multiprocessing.resource_tracker
import os
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from classifier.cores import available_cores
from classifier.errors import ClassifierError, SettingsError
from classifier.listening import bound_socket, check_free
from classifier.logs import set_level
from classifier.recorder import CLOSE_SECONDS
from classifier.settings import ServerSettings

log = logging.getLogger(__name__)
START_SECONDS = 60.0
END_SECONDS = 5.0  # for the rest of a worker's end, when it has drained and its decisions are written
MIN_LIFE_SECONDS = 1.0  # one that serves shorter came to nothing, and the next is put off for as long at least
LONGEST_PAUSE_SECONDS = 60.0  # while all come to nothing: each takes a core a second from those that serve


def supervise(
    settings: ServerSettings,
    *,
    key: bytes,
    reread: Callable[[], ServerSettings],
    ready: Callable[[tuple[str, ...]], None],
) -> signal.Signals:
    """Serves with `settings.workers` processes until SIGTERM or SIGINT.

    Args:
        settings: what each worker is told.
        key: secret of decision ids, the same in all.
        reread: reads the settings again, for SIGHUP; must pickle.
        ready: called with the addresses when all workers are SERVING.

    Returns:
        The signal that ended it.

    Raises:
        ClassifierError: a worker could not start; its error.
    """
    for address in settings.listen:
        if not address.endswith(":0"):
            check_free(address, shared=False)
    with contextlib.ExitStack() as held:
        addresses = tuple([_hold(held, address) for address in settings.listen])
        cores = max(1, (settings.cores or available_cores()) // settings.workers)
        told = replace(settings, listen=addresses, cores=cores, metrics_listen="")
        folder = ""
        if settings.metrics_listen:
            from classifier.metrics_page import collected, serve_metrics

            folder = held.enter_context(tempfile.TemporaryDirectory(prefix="classifier-metrics-"))
            held.callback(serve_metrics(settings.metrics_listen, collected(folder)))
        again = partial(_told_again, reread, settings, told)
        return _Keeper(told, key, again, folder, lambda: ready(addresses)).run()


def _told_again(reread: Callable[[], ServerSettings], settings: ServerSettings, told: ServerSettings) -> ServerSettings:
    """The settings of now, with what a worker is told otherwise as it was told, unless that is what changed."""
    fresh = reread()
    own = [name for name in ("listen", "cores", "metrics_listen") if getattr(fresh, name) == getattr(settings, name)]
    return replace(fresh, **{name: getattr(told, name) for name in own})


def _hold(held: contextlib.ExitStack, address: str) -> str:
    try:
        taken = held.enter_context(bound_socket(address, shared=True))
    except OSError as error:
        raise SettingsError(f"listen: {address} cannot be had ({error.strerror or error})") from None
    return f"{address.rpartition(':')[0]}:{taken.getsockname()[1]}"


class _Keeper:
    """Starts the workers, waits for signals and deaths."""

    def __init__(
        self,
        settings: ServerSettings,
        key: bytes,
        reread: Callable[[], ServerSettings],
        folder: str,
        ready: Callable[[], None],
    ) -> None:
        self._settings, self._key, self._reread = settings, key, reread
        self._folder, self._ready = folder, ready
        self._spawn = multiprocessing.get_context("spawn")
        self._workers: dict[SpawnProcess, Connection] = {}
        self._served_from: dict[SpawnProcess, float] = {}
        self._pause, self._next_start = 0.0, 0.0
        self._stopping: signal.Signals | None = None
        self._hung_up = False

    def run(self) -> signal.Signals:
        """Until a signal, which it returns."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, self._hang_up)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP, signal.SIGTERM})
        # By itself it would start along with the first worker, and let through the SIGINT that is held back there.
        multiprocessing.resource_tracker.ensure_running()
        try:
            waiting = [self._start() for _ in range(self._settings.workers) if not self._stopping]
            for worker in waiting:
                self._wait_ready(worker)
            if not self._stopping:
                self._ready()
            while not self._stopping:
                if self._hung_up:
                    self._reload()
                self._tend()
            return self._stopping
        finally:
            self._end()

    def _start(self) -> SpawnProcess:
        # The worker inherits the mask, until `serve` listens: before, SIGHUP would end it, and so would the SIGINT
        # that a terminal sends to all, with a traceback.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGINT})
        try:
            ours, theirs = self._spawn.Pipe()
            told = (theirs, self._settings, self._key, self._reread, self._folder)
            worker = self._spawn.Process(target=_work, args=told, name="worker")
            worker.start()
        except OSError as error:
            raise ClassifierError(
                f"a worker cannot be started ({error.strerror}); look at the limits of processes, open files and memory"
            ) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()
        self._workers[worker] = ours
        return worker

    def _wait_ready(self, worker: SpawnProcess) -> None:
        pipe = self._workers[worker]
        end = time.monotonic() + START_SECONDS
        while not self._stopping:
            if not pipe.poll(0.2):
                if time.monotonic() > end:
                    raise ClassifierError(f"a worker was not ready after {START_SECONDS:g} s; look at its log above")
                continue
            try:
                problem = pipe.recv()
            except EOFError:
                raise ClassifierError("a worker ended while it started; look at its log above") from None
            if problem is not None:
                raise problem
            self._served_from[worker] = time.monotonic()
            return

    def _tend(self) -> None:
        """Waits a moment for a worker to say something or to end, and starts others in the place of those that did."""
        pipes = {pipe: worker for worker, pipe in self._workers.items()}
        sentinels = [worker.sentinel for worker in self._workers]
        for told in multiprocessing.connection.wait([*pipes, *sentinels], timeout=0.5):
            if isinstance(told, Connection):
                with contextlib.suppress(EOFError, OSError):
                    problem, worker = told.recv(), pipes[told]
                    if problem is None:
                        log.info("worker %s serves", worker.pid)
                        self._served_from[worker] = time.monotonic()
                    else:
                        log.warning("worker %s cannot start: %s", worker.pid, problem)
        for worker in [w for w in self._workers if not w.is_alive()]:
            self._replace(worker)
        while len(self._workers) < self._settings.workers and time.monotonic() >= self._next_start:
            if self._stopping:
                return
            try:
                self._start()
            except ClassifierError as error:  # those that are there serve on
                self._wait_longer()
                log.warning("%s; it is tried again", error)

    def _replace(self, worker: SpawnProcess) -> None:
        """Lets go of a worker that ended; says when another is to take its place."""
        self._workers.pop(worker).close()
        since = self._served_from.pop(worker, None)
        if self._folder and worker.pid:
            from classifier.metrics_page import forget_process

            forget_process(worker.pid, self._folder, served=since is not None)
        if self._stopping:
            return
        log.warning("worker %s ended with %s; another takes its place", worker.pid, worker.exitcode)
        if since is not None and time.monotonic() - since >= MIN_LIFE_SECONDS:
            self._pause = self._next_start = 0.0
        else:
            self._wait_longer()

    def _wait_longer(self) -> None:
        """Puts the next start off, each time that one came to nothing for twice as long."""
        self._pause = min(LONGEST_PAUSE_SECONDS, max(MIN_LIFE_SECONDS, 2 * self._pause))
        self._next_start = time.monotonic() + self._pause

    def _stop(self, number: int, _: Any) -> None:
        self._stopping = self._stopping or signal.Signals(number)

    def _hang_up(self, *_: Any) -> None:
        self._hung_up = True

    def _reload(self) -> None:
        """Has every worker read its settings again; a worker that is started later begins with them."""
        from classifier.server import reloaded

        self._hung_up = False  # a signal that comes from here on is for the next round
        with contextlib.suppress(Exception):  # the workers tell of it, and must be kept whatever a file holds
            self._settings = reloaded(self._settings, self._reread())
        set_level(self._settings.log_level)
        self._pass_on(signal.SIGHUP)

    def _pass_on(self, number: int) -> None:
        for worker in self._workers:
            if worker.pid and worker.is_alive():
                os.kill(worker.pid, number)

    def _end(self) -> None:
        self._pass_on(signal.SIGTERM)
        settings = self._settings
        patience = settings.shutdown_delay_seconds + settings.drain_seconds + CLOSE_SECONDS + END_SECONDS
        end = time.monotonic() + patience
        for worker, pipe in self._workers.items():
            worker.join(max(0.0, end - time.monotonic()))
            if worker.is_alive():
                worker.kill()
                worker.join()
            pipe.close()


def _work(
    pipe: Connection,
    settings: ServerSettings,
    key: bytes,
    reread: Callable[[], ServerSettings],
    folder: str,
) -> None:
    """A worker process: a server that tells the parent when it is ready, and ends when the parent does."""
    if folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder  # read once, when prometheus_client is imported
    from classifier.lifetime import leave, run, serve
    from classifier.logs import configure_logging
    from classifier.server import Server
    from classifier.telemetry import observing

    configure_logging(settings.log_format, settings.log_level)

    async def work() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def orphaned() -> None:  # the parent never writes: it ended
            loop.remove_reader(pipe.fileno())
            stop.set()

        loop.add_reader(pipe.fileno(), orphaned)
        server = Server(settings, key=key, metrics=metrics, observer=observer, reread=reread)
        await serve(server, ready=lambda _: pipe.send(None), stop=stop)

    try:
        if folder:
            from classifier.metrics_page import reserve

            reserve(os.getpid(), folder)
        with observing(traces=settings.traces) as (metrics, observer):
            run(work())
    except ClassifierError as error:
        with contextlib.suppress(OSError):
            pipe.send(error)
    leave(None)
