"""The fakes that our tests use, for yours: an engine without a model, and a server with it.

    with fake_server(tier_of=lambda request: Tier.COMPLEX) as address:
        assert Client(address).classify("any text").tier is Tier.COMPLEX

A gateway's tests can so be run against the real wire, the real limits and the real errors, without a bundle.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from classifier.errors import InvalidRequest
from classifier.inputs import ModelInput, render
from classifier.policy import Policy, decide
from classifier.types import TIERS, Decision, Request, Scores, Tier

FAKE_POLICY = Policy(name="default", threshold=0.5)


@dataclass(frozen=True, slots=True)
class FakePrepared:
    """What `FakeEngine.prepare` returns; the fields of `classifier.engine.Prepared` that others read."""

    request: Request
    policy: Policy
    input: ModelInput


@dataclass(slots=True)
class FakeEngine:
    """An engine whose model is a function.

    Attributes:
        tier_of: the tier that gets most of the probability.
        delay_seconds: how long a run takes; the thread sleeps, as a model run releases the GIL.
        runs: how many runs were begun.
        on_score: called at the start of each run, on its thread; may raise or wait.
    """

    tier_of: Callable[[Request], Tier] = lambda request: Tier.STANDARD  # noqa: ARG005
    delay_seconds: float = 0.0
    bundle_version: str = "fake000000000000"
    calibration_revision: str = "fake"
    policies: Mapping[str, Policy] = field(default_factory=lambda: {"default": FAKE_POLICY})
    default_policy: str = "default"
    golden_ok: bool = True
    golden_message: str = ""
    on_score: Callable[[], None] | None = None
    runs: int = 0

    def prepare(self, request: Request) -> FakePrepared:
        """As `Engine.prepare`."""
        policy = self.policies.get(request.policy or self.default_policy)
        if policy is None:
            raise InvalidRequest("policy", f"is not one of this bundle's: {', '.join(sorted(self.policies))}")
        return FakePrepared(request, policy, render(request))

    def score(self, prepared: FakePrepared) -> Scores:
        """As `Engine.score`: .85 for the tier that `tier_of` names, .05 for each other."""
        self.runs += 1
        if self.on_score is not None:
            self.on_score()
        if self.delay_seconds:
            time.sleep(self.delay_seconds)
        tier = Tier(self.tier_of(prepared.request))  # no other value stands for a tier in silence
        likely = tuple(0.85 if other is tier else 0.05 for other in TIERS)
        return Scores((0.0,) * len(TIERS), likely, len(prepared.input.text), prepared.input.truncated)

    def decide(self, prepared: FakePrepared, scores: Scores, draw: float | None = None) -> Decision:
        """As `Engine.decide`."""
        request, policy = prepared.request, prepared.policy
        return decide(
            scores.probabilities,
            policy,
            floor=request.floor,
            ceiling=request.ceiling,
            group=policy.group_of(request.labels, prepared.input.script),
            draw=draw if policy.may_explore(request.labels) else None,
            golden_ok=self.golden_ok,
            bundle_version=self.bundle_version,
            calibration_revision=self.calibration_revision,
            truncated=scores.truncated,
            input_tokens=scores.input_tokens,
        )

    def classify(self, request: Request, draw: float | None = None) -> Decision:
        """As `Engine.classify`, without timings."""
        prepared = self.prepare(request)
        return self.decide(prepared, self.score(prepared), draw)


@contextlib.contextmanager
def fake_server(
    *,
    tier_of: Callable[[Request], Tier] | None = None,
    engine: Any = None,
    metrics: Any = None,
    observer: Any = None,
    **settings: Any,
) -> Iterator[str]:
    """A server on a free port of this machine, in a thread of this process; yields its address.

    Args:
        tier_of: what the fake model answers; STANDARD for everything where it is left out.
        engine: an engine to serve instead of a fake one.
        metrics: a `classifier.telemetry.Metrics` that counts.
        observer: a `classifier.seams.Observer` that is told instead.
        settings: fields of `classifier.settings.ServerSettings`; by default a port is picked, two requests run at once,
            one may wait for 30 seconds, and the end comes at once, whatever is in flight. With a `feedback_url`
            outcomes are taken; ids hold as long as the server, unless a key is given.
    """
    from classifier.reload import Fixed
    from classifier.server import Server
    from classifier.settings import ServerSettings

    engine = engine or (FakeEngine(tier_of=tier_of) if tier_of else FakeEngine())
    # A machine that runs tests may stand still for a moment: nothing is refused for that.
    values = {
        "listen": ("127.0.0.1:0",),
        "cores": 2,
        "max_wait_seconds": 30.0,
        "shutdown_delay_seconds": 0.0,
        "drain_seconds": 0.0,
        **settings,
    }
    started = threading.Event()
    addresses: list[str] = []
    problems: list[BaseException] = []
    stop: list[Callable[[], object]] = []

    async def serve() -> None:
        told = ServerSettings(**values)
        # A key of its own: the user's stays where a server of theirs has it.
        key = b"" if told.key or told.key_file else secrets.token_bytes(32)
        server = Server(told, source=Fixed(engine), key=key, metrics=metrics, observer=observer)
        await server.start()
        done = asyncio.Event()
        loop = asyncio.get_running_loop()
        stop.append(lambda: loop.call_soon_threadsafe(done.set))
        addresses.extend(server.addresses)
        started.set()
        await done.wait()
        await server.stop()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:  # the thread that waits raises it
            problems.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run, name="fake-server", daemon=True)
    thread.start()
    started.wait()
    if problems:
        raise problems[0]
    try:
        yield addresses[0]
    finally:
        stop[0]()
        thread.join()
    if problems:
        raise problems[0]
