"""One server process: ports, certificates, health, warm-up, reload, drain.

It listens first, so that a port in use is told at once, and is NOT_SERVING until the model has answered its golden
inputs. While it serves it looks for a new bundle and new tokens. When it stops it says NOT_SERVING, waits for balancers
to notice, then finishes what is in flight.

Knows nothing of messages, policies or probabilities.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2_grpc

from classifier import wire
from classifier.admission import Admission, RateLimit
from classifier.cores import available_cores
from classifier.credentials import Authenticator
from classifier.decision_id import DecisionIds, parse_key, read_key
from classifier.errors import ClassifierError
from classifier.health import SERVICE as HEALTH
from classifier.health import Health
from classifier.listening import bind, options, server_credentials, transport_bytes
from classifier.logs import set_level
from classifier.reload import BundleSource, Shadow, Watched, routes_of, source_of
from classifier.seams import Classifies, Observer
from classifier.service import Service
from classifier.settings import ServerSettings, state_folder
from classifier.telemetry import Metrics

if TYPE_CHECKING:
    from classifier.feedback import FeedbackStore
    from classifier.kept import Kept
    from classifier.routing import RoutingTable

log = logging.getLogger(__name__)
LOOK_SECONDS = 60.0
# What SIGHUP changes in a running server; the rest needs a restart, and the log says so.
RELOADABLE = frozenset({
    "max_request_bytes", "max_messages", "max_batch_items", "max_stream_items", "max_streams", "stream_idle_seconds",
    "rate_limit", "rate_limit_burst", "shadow_share", "log_level", "drain_seconds", "shutdown_delay_seconds",
    "watch_seconds",
})  # fmt: skip


class Server:
    """A gRPC server of one engine.

    Args:
        settings: what it was told.
        source: where the engine comes from; by default what the settings name.
        key: secret of decision ids; by default what the settings name.
        metrics: counts what happens; by default for nobody.
        observer: is told what happens; by default the metrics.
        reread: reads the settings again, for SIGHUP.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        source: BundleSource | None = None,
        key: bytes | None = None,
        metrics: Metrics | None = None,
        observer: Observer | None = None,
        reread: Callable[[], ServerSettings] | None = None,
    ) -> None:
        self.settings = settings
        self.addresses: tuple[str, ...] = ()
        self.service: Service
        self._source = source or source_of(settings.bundle, settings.registry)
        self._key = key or b""
        self._metrics = metrics or Metrics()
        self._observer = observer or self._metrics
        self._reread = reread
        self._health = Health()
        self._grpc: grpc.aio.Server
        self._transport_bytes = 0
        self._feedback: FeedbackStore | None = None
        self._shadow: Shadow | None = None
        self._routes: Kept[RoutingTable | None]
        self._watched: list[Watched] = []
        self._watching: asyncio.Task[None] | None = None
        self._looking, self._looks = asyncio.Lock(), set[asyncio.Task[None]]()

    async def start(self) -> None:
        """Listens, loads, and is SERVING when it returns.

        Raises:
            SettingsError: an address cannot be had, or a file cannot be used.
            BundleError: the bundle cannot be used.
        """
        settings = self.settings
        self._key = self._key or server_key(settings)
        ids, self._routes = DecisionIds(self._key), routes_of(settings.routes)
        authenticator = Authenticator(settings.tokens, certificates=bool(settings.tls_client_ca))
        # From here on there is something to close: what may be refused was read before.
        self._grpc = grpc.aio.server(options=options(settings))
        self._transport_bytes = transport_bytes(settings)
        self.service = Service(
            admission=Admission(settings.cores or available_cores(), settings.queue_size, settings.max_wait_seconds),
            ids=ids,
            authenticator=authenticator,
            observer=self._observer,
            routes=self._routes.value,
        )
        self._apply(settings)
        self._grpc.add_generic_rpc_handlers((self.service.handlers(),))  # first: each call is looked up in this order
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        if settings.reflection:
            _add_reflection(self._grpc)
        try:
            # Of several workers the parent holds the port, and one that is started again gets its share of the
            # connections as soon as it listens: it has its model by then.
            steps = (self._listen, self._load) if settings.workers == 1 else (self._load, self._listen)
            for step in steps:
                await step()
        except BaseException:
            await self._grpc.stop(None)
            await self._close()
            raise
        self._health.set(serving=True)
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """NOT_SERVING, the delay for balancers, then the end of what is in flight, at most `drain_seconds`."""
        self._health.set(serving=False)
        if self._watching is not None:  # a bundle that comes now comes too late
            ending = (self._watching, *self._looks)
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)
        await asyncio.sleep(self.settings.shutdown_delay_seconds)
        self._health.close()
        await self._grpc.stop(self.settings.drain_seconds)
        await self._close()

    async def reload(self) -> None:
        """Reads the settings again, and looks for a bundle, tokens and routes, also those refused before."""
        if self._reread is not None:
            try:
                fresh = self._reread()
            except ClassifierError as error:
                log.warning("settings: %s; the ones there were stay", error)
                self._metrics.reloaded("settings", ok=False)
            else:
                names = [n for n in ServerSettings.__slots__ if getattr(fresh, n) != getattr(self.settings, n)]
                if kept := sorted(set(names) - RELOADABLE):
                    log.warning("settings: %s need a restart to change", ", ".join(kept))
                if fresh.max_request_bytes > (most := self._transport_bytes):
                    log.warning("settings: max_request_bytes above %d needs a restart: gRPC takes in no more", most)
                self._apply(fresh)
                self._metrics.reloaded("settings", ok=True)
        await self._check(again=True)

    def _apply(self, settings: ServerSettings) -> None:
        """Puts those settings into force that a running server can change."""
        before, self.settings = self.settings, reloaded(self.settings, settings)
        if self._watching is not None and self.settings.watch_seconds != before.watch_seconds:
            self._watching.cancel()  # it may sleep for hours yet; a look at bundles that is under way goes on
            self._watching = asyncio.create_task(self._watch())
        service = self.service
        most = min(settings.max_request_bytes, self._transport_bytes)
        service.limits = replace(settings, max_request_bytes=most)  # what callers are told is what gRPC takes in
        if (settings.rate_limit, settings.rate_limit_burst) != service.rate_limit.setting:
            service.rate_limit = RateLimit(settings.rate_limit, settings.rate_limit_burst)
        if self.settings.log_level != before.log_level:  # at the start it is the process's own matter
            set_level(self.settings.log_level)
        if self._shadow is not None:
            self._shadow.share = settings.shadow_share

    async def _listen(self) -> None:
        settings, told = self.settings, lambda ok: self._metrics.reloaded("tls", ok=ok)
        self.addresses = tuple(
            [
                bind(self._grpc, address, server_credentials(settings, address, told), shared=settings.workers > 1)
                for address in settings.listen
            ]
        )
        await self._grpc.start()

    async def _load(self) -> None:
        settings, admission = self.settings, self.service.admission
        self._watched = [bundle := Watched("bundle", self._source, self._take, self._metrics)]
        # At the same time: most of what a bundle takes is not Python's, and most of what a store takes are imports.
        opening = asyncio.create_task(self._open())
        try:
            await bundle.start()
        finally:
            await opening
        if settings.shadow:
            shadow = self._shadow = Shadow(settings.shadow_share, lambda: admission.waiting > 0, self._metrics)
            self.service.after = shadow.offer
            source = source_of(settings.shadow, settings.registry)
            candidate = Watched("shadow", source, lambda engine: setattr(shadow, "engine", engine), self._metrics)
            self._watched.append(candidate)
            # Whoever is promoted is no candidate any more: a server that starts after that must start all the same.
            await _look_for(candidate, again=False)
        self._metrics.waiting = lambda: admission.waiting

    async def _open(self) -> None:
        """Opens the feedback store, where decisions are kept."""
        if not _remembers(self.settings):
            return
        store = self._feedback = await asyncio.to_thread(_open_store, self.settings, self._key)
        self.service.feedback = store
        log.info("decisions are kept in %s (store: %s)", store.name, store.keep)

    def _take(self, engine: Classifies) -> None:
        """From the next request on this engine answers."""
        self.service.engine = engine
        if not engine.golden_ok:
            log.warning("bundle %s: %s", engine.bundle_version, engine.golden_message)
        self._metrics.bundle(engine.bundle_version, engine.calibration_revision, golden_ok=engine.golden_ok)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.settings.watch_seconds)
            try:
                await self._check()
            except Exception as error:  # looking must go on, whatever was found
                log.warning("watching failed with %s; it goes on", type(error).__name__)

    async def _check(self, *, again: bool = False) -> None:
        """Reads the files, looks for bundles, measures drift; where storage hangs, the files are read all the same."""
        self._read_files(again=again)
        if again or not self._looks:
            look = asyncio.create_task(self._look(again=again))
            self._looks.add(look)
            look.add_done_callback(self._looks.discard)
            if not (await asyncio.wait({look}, timeout=LOOK_SECONDS))[0]:
                log.warning(
                    "looking for bundles takes longer than %g s; it goes on; is their storage there?", LOOK_SECONDS
                )
        bundle = getattr(self.service.engine, "bundle", None)
        if bundle is not None:
            await asyncio.to_thread(self._metrics.drift, bundle.reference)  # ten milliseconds that no request waits for

    async def _look(self, *, again: bool) -> None:
        async with self._looking:  # SIGHUP may come while the watcher looks
            for watched in self._watched:
                await _look_for(watched, again=again)

    def _read_files(self, *, again: bool) -> None:
        for what, read in (("tokens", self.service.authenticator.reload), ("routes", self._routes.reload)):
            try:
                if read(again=again):
                    self._metrics.reloaded(what, ok=True)
                    log.info("%s: read again", what)
            except ClassifierError as error:
                self._metrics.reloaded(what, ok=False)
                log.warning("%s; the %s there were stay", error, what)
        self.service.routes = self._routes.value
        if self._feedback is not None:
            self._metrics.feedback_dropped(self._feedback.dropped)

    async def _close(self) -> None:
        await self.service.admission.close()
        if self._shadow is not None:
            await asyncio.to_thread(self._shadow.close)
        if self._feedback is not None:
            await asyncio.to_thread(self._feedback.close)


def reloaded(settings: ServerSettings, fresh: ServerSettings) -> ServerSettings:
    """`settings`, with what SIGHUP changes in a running server as it is in `fresh`."""
    return replace(settings, **{name: getattr(fresh, name) for name in RELOADABLE})


def server_key(settings: ServerSettings) -> bytes:
    """The secret of decision ids: given, or a file's, which is made if need be; without feedback one for this process.

    Raises:
        SettingsError: it is no key, or its file can be neither read nor made.
    """
    if settings.key:
        return parse_key(settings.key)
    if settings.key_file or _remembers(settings):
        return read_key(settings.key_file or state_folder() / "server.key")
    return os.urandom(32)


def _remembers(settings: ServerSettings) -> bool:
    return bool(settings.feedback_url) and settings.store != "off"


def _open_store(settings: ServerSettings, key: bytes) -> FeedbackStore:
    from classifier.feedback import open_store

    return open_store(settings.feedback_url, key=key, keep=settings.store, retention_days=settings.retention_days)


async def _look_for(watched: Watched, *, again: bool) -> None:
    try:
        await watched.check(again=again)
    except Exception as error:  # looking must go on, whatever was found
        log.warning("looking for a bundle failed with %s; it goes on", type(error).__name__)


def _add_reflection(server: grpc.aio.Server) -> None:
    from grpc_reflection.v1alpha import reflection

    reflection.enable_server_reflection((wire.SERVICE, HEALTH, reflection.SERVICE_NAME), server)
