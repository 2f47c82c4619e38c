"""What happened, for machines that watch: Prometheus metrics and OpenTelemetry spans. Logs are in `classifier.logs`.

It receives timings, tiers and status names as data and never sees a prompt.

Knows nothing of requests' contents, engines or how the server runs. Only this file imports opentelemetry, and only this
one and `metrics_page` prometheus_client.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from classifier import wire
from classifier.errors import MissingExtra, SettingsError
from classifier.seams import Observer
from classifier.settings import otlp_protocol
from classifier.types import Decision, Tier

# Seconds: a run takes a few milliseconds, a wait at most max_wait_seconds.
_BUCKETS = (0.00025, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
DRIFT_WINDOW = 2000
"""Requests that drift is measured on."""
DRIFT_MIN = 200


class Metrics(Observer):
    """Prometheus metrics of one process.

    Attributes:
        registry: where they are registered.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"registry": self.registry}
        self._requests = Counter("classifier_requests_total", "Calls answered, by status.", ["method", "code"], **made)
        self._seconds = Histogram(
            "classifier_request_duration_seconds", "Time in a call.", ["method"], buckets=_BUCKETS, **made
        )
        self._items = Counter(
            "classifier_items_total",
            "Requests, those of batches and streams each: 'classified', or the error. Coverage is the first's share.",
            ["result"],
            **made,
        )
        self._decisions = Counter("classifier_decisions_total", "Decisions.", ["tier", "reason"], **made)
        self._stages = Histogram(
            "classifier_stage_duration_seconds", "Time of a request's stages.", ["stage"], buckets=_BUCKETS, **made
        )
        self._truncations = Counter("classifier_truncations_total", "Requests of which text was left out.", **made)
        self._unguaranteed = Counter(
            "classifier_unguaranteed_total", "Decisions that no policy's promise covers.", **made
        )
        self._in_flight = Gauge("classifier_in_flight", "Calls being answered.", multiprocess_mode="livesum", **made)
        self._queue = Gauge(
            "classifier_queue_depth", "Requests that wait for a core.", multiprocess_mode="livesum", **made
        )
        self._bundle = Gauge(
            "classifier_bundle_info",
            "1 for the bundle that answers.",
            ["version", "calibration"],
            multiprocess_mode="livemax",
            **made,
        )
        self._golden = Gauge(
            "classifier_golden_ok",
            "0 where the bundle's golden inputs are answered differently on this processor.",
            multiprocess_mode="livemin",
            **made,
        )
        self._reloads = Counter(
            "classifier_reloads_total",
            "Bundles, tokens, routes, certificates and settings taken over.",
            ["what"],
            **made,
        )
        self._reload_failures = Counter(
            "classifier_reload_failures_total", "Those that could not be; the ones there were stayed.", ["what"], **made
        )
        self._shadowed = Counter(
            "classifier_shadow_total", "Requests that a shadow bundle scored too.", ["tier", "shadow_tier"], **made
        )
        self._shadow_dropped = Counter("classifier_shadow_dropped_total", "Those it had no time for.", **made)
        self._feedback_dropped = Counter("classifier_feedback_dropped_total", "Decisions that were not kept.", **made)
        self._drift = Gauge(
            "classifier_drift_index",
            "Population stability index of live traffic against the bundle's reference.",
            ["of"],
            multiprocess_mode="livemax",
            **made,
        )
        self._drift_of: set[str] = set()
        self._dropped_before = 0
        self._recent: deque[tuple[tuple[float, ...], tuple[str, ...]]] = deque(maxlen=DRIFT_WINDOW)
        self._bundle_before: tuple[str, str] | None = None
        # What the hot path touches, looked up once.
        self._stage = {s: self._stages.labels(s) for s in ("parse", "prepare", "queue", "model", "encode")}
        self._classified = self._items.labels("classified")
        self._decision_of: dict[tuple[int, int], Any] = {}
        self._request_of: dict[tuple[str, str], Any] = {}
        self._seconds_of: dict[str, Any] = {}
        self.waiting: Callable[[], int] = lambda: 0

    def call_started(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """See `Observer`."""
        del method, metadata
        self._in_flight.inc()
        self._queue.set(self.waiting())

    def call_ended(self, started: object, method: str, code: str, seconds: float) -> None:
        """See `Observer`."""
        del started
        self._in_flight.dec()
        self._queue.set(self.waiting())  # here, too: after a burst nobody may come for a long time
        counter = self._request_of.get((method, code))
        if counter is None:
            counter = self._request_of[method, code] = self._requests.labels(method, code)
            self._seconds_of.setdefault(method, self._seconds.labels(method))
        counter.inc()
        self._seconds_of[method].observe(seconds)

    def decided(self, decision: Decision, prepared: Any, stages: Mapping[str, float]) -> None:
        """See `Observer`."""
        self._recent.append((decision.probabilities, prepared.input.signals))
        key = (decision.tier, decision.reason)
        counter = self._decision_of.get(key)
        if counter is None:
            counter = self._decisions.labels(decision.tier.label, decision.reason.label)
            self._decision_of[key] = counter
        counter.inc()
        self._classified.inc()
        if decision.truncated:
            self._truncations.inc()
        if not decision.guaranteed:
            self._unguaranteed.inc()
        times, stage = decision.timings, self._stage
        stage["queue"].observe(times.queue)
        stage["prepare"].observe(times.prepare)
        stage["model"].observe(times.model)
        for name, seconds in stages.items():
            stage[name].observe(seconds)

    def refused(self, code: str, requests: int = 1) -> None:
        """See `Observer`."""
        self._items.labels(code).inc(requests)

    def bundle(self, version: str, calibration: str, *, golden_ok: bool) -> None:
        """The bundle that answers from now on."""
        if self._bundle_before:
            self._bundle.labels(*self._bundle_before).set(0)
            # What another model said tells nothing of drift from this one's reference.
            self._recent.clear()
            for of in tuple(self._drift_of):
                self._drift.labels(of).set(math.nan)
        self._bundle_before = (version, calibration)
        self._bundle.labels(version, calibration).set(1)
        self._golden.set(int(golden_ok))

    def reloaded(self, what: str, *, ok: bool) -> None:
        """A bundle, the tokens or the settings were taken over, or could not be."""
        (self._reloads if ok else self._reload_failures).labels(what).inc()

    def shadowed(self, tier: Tier, shadow_tier: Tier) -> None:
        """A shadow bundle scored a request too: the tiers of both models."""
        self._shadowed.labels(tier.label, shadow_tier.label).inc()

    def shadow_dropped(self) -> None:
        """A shadow bundle had no time for a request."""
        self._shadow_dropped.inc()

    def feedback_dropped(self, total: int) -> None:
        """How many decisions were not kept since the start."""
        self._feedback_dropped.inc(max(0, total - self._dropped_before))
        self._dropped_before = total

    def drift(self, reference: Mapping[str, Any]) -> None:
        """Measures how far the last requests are from the bundle's reference; too few of either say nothing."""
        recent = list(self._recent)
        if len(recent) < DRIFT_MIN or not reference.get("n"):
            return
        from classifier.drift import shifts

        probabilities, signals = zip(*recent, strict=True)
        for of, shift in shifts(probabilities, signals, reference).items():
            self._drift_of.add(of)
            self._drift.labels(of).set(shift["index"])


class Traces(Observer):
    """OpenTelemetry spans of calls, children of the caller's span where it sent one.

    Args:
        provider: where spans go; by default what the OTEL_* variables say, over OTLP.

    Raises:
        MissingExtra: opentelemetry is not installed.
        SettingsError: the variables ask for another protocol than gRPC, or hold what OpenTelemetry cannot use.
    """

    def __init__(self, provider: Any = None) -> None:
        # gRPC's exporter would send to an HTTP port all the same, and only its log could tell.
        if provider is None and (protocol := otlp_protocol()) not in ("", "grpc"):
            raise SettingsError(
                f"traces: spans are sent over gRPC, and OTEL_EXPORTER_OTLP_(TRACES_)PROTOCOL is {protocol}; set it to "
                "grpc, and the endpoint to the collector's gRPC port (4317)"
            )
        try:
            from opentelemetry import context, propagate, trace

            if provider is None:
                from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
                from opentelemetry.sdk.trace import TracerProvider
                from opentelemetry.sdk.trace.export import BatchSpanProcessor

                provider = TracerProvider()
                provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        except ImportError as error:
            raise MissingExtra(
                "--traces needs OpenTelemetry; pip install 'request-complexity-classifier[otel]'"
            ) from error
        except Exception as error:  # what OpenTelemetry raises of its variables, mostly a ValueError
            told = str(error).partition("\n")[0]
            raise SettingsError(f"traces: OpenTelemetry cannot start ({told}); correct the OTEL_* variables") from error
        self._provider, self._trace, self._context, self._propagate = provider, trace, context, propagate
        self._tracer = provider.get_tracer("classifier")

    def call_started(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> object:
        """See `Observer`."""
        parent = self._propagate.extract({k: v for k, v in metadata if isinstance(v, str)})
        name = f"{wire.SERVICE}/{method}"
        span = self._tracer.start_span(
            name,
            context=parent,
            kind=self._trace.SpanKind.SERVER,
            # The RPC conventions are a release candidate: their names stand here alone.
            attributes={"rpc.system.name": "grpc", "rpc.method": name},
        )
        # Each call is a task with a context of its own, which ends with it: nothing is detached.
        self._context.attach(self._trace.set_span_in_context(span))
        return span

    def call_ended(self, started: Any, method: str, code: str, seconds: float) -> None:
        """See `Observer`."""
        del method, seconds
        started.set_attribute("rpc.response.status_code", code)
        if code in {"INTERNAL", "UNKNOWN", "DATA_LOSS", "UNAVAILABLE", "UNIMPLEMENTED", "DEADLINE_EXCEEDED"}:
            started.set_status(self._trace.StatusCode.ERROR)
        started.end()

    def decided(self, decision: Decision, prepared: Any, stages: Mapping[str, float]) -> None:
        """See `Observer`."""
        del prepared, stages
        times = decision.timings
        self._trace.get_current_span().add_event(
            "decision",
            {
                "classifier.tier": decision.tier.label,
                "classifier.reason": decision.reason.label,
                "classifier.policy": decision.policy,
                "classifier.decision_id": decision.decision_id,
                "classifier.bundle.version": decision.bundle_version,
                "classifier.queue_seconds": times.queue,
                "classifier.prepare_seconds": times.prepare,
                "classifier.model_seconds": times.model,
            },
        )

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()


class Observers(Observer):
    """Several observers as one."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self._observers = tuple(observers)

    def call_started(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> object:
        """See `Observer`."""
        metadata = tuple(metadata)
        return [observer.call_started(method, metadata) for observer in self._observers]

    def call_ended(self, started: Any, method: str, code: str, seconds: float) -> None:
        """See `Observer`."""
        for observer, mine in zip(self._observers, started, strict=True):
            observer.call_ended(mine, method, code, seconds)

    def decided(self, decision: Decision, prepared: Any, stages: Mapping[str, float]) -> None:
        """See `Observer`."""
        for observer in self._observers:
            observer.decided(decision, prepared, stages)

    def refused(self, code: str, requests: int = 1) -> None:
        """See `Observer`."""
        for observer in self._observers:
            observer.refused(code, requests)


@contextlib.contextmanager
def observing(*, traces: bool) -> Iterator[tuple[Metrics, Observer]]:
    """The metrics of this process, and whom it tells what happens: them, and where `traces` are wanted the spans too.

    Raises:
        MissingExtra, SettingsError: as `Traces`.
    """
    metrics = Metrics()
    if not traces:
        yield metrics, metrics
        return
    spans = Traces()
    try:
        yield metrics, Observers([metrics, spans])
    finally:
        spans.close()
