"""Who answers when logs are labelled: an engine in each process, or a server that all processes ask.

A maker travels to every process and makes what answers there. It also tells beforehand by which bundle and which
policy the answers will be, so that one output never holds two. A server's answers are asked for with `record=false`,
so nothing is kept there and nothing is explored; a server that is busy or away for a moment is asked again for
`PATIENCE_SECONDS`.

Knows nothing of rows, files or chunks.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from classifier.errors import (
    DeadlinePassed,
    Overloaded,
    ServerUnreachable,
    SettingsError,
    StoreUnavailable,
    Unauthenticated,
)
from classifier.labelled import LABEL_VERSION
from classifier.labelling import Answerer, EngineAnswerer
from classifier.types import Decision, Request

if TYPE_CHECKING:
    from classifier.policy import Policy

T = TypeVar("T")

PATIENCE_SECONDS = 60.0
CALL_SECONDS = 10.0
_FIRST_PAUSE_SECONDS = 0.05
_LAST_PAUSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Identity:
    """By what the answers of a run are.

    Attributes:
        bundle_version: content hash of the bundle.
        calibration_revision: hash of its calibration.
        definition: the policy with its guarantee, as policy.json has it.
    """

    bundle_version: str
    calibration_revision: str
    definition: Mapping[str, Any]

    @property
    def policy(self) -> str:
        """The policy's name."""
        return str(self.definition["name"])

    @property
    def group_by(self) -> str:
        """The column that the policy groups by; empty where it has no groups, or the text tells them."""
        fact = str(self.definition["group_by"])
        return "" if fact == "script" else fact

    def facts(self) -> dict[str, str]:
        """As the output's metadata: texts, by names with the prefix of our columns."""
        from classifier import __version__

        return {
            "classifier_label_version": LABEL_VERSION,
            "classifier_package_version": __version__,
            "classifier_bundle_version": self.bundle_version,
            "classifier_calibration_revision": self.calibration_revision,
            "classifier_policy": self.policy,
            "classifier_policy_definition": json.dumps(self.definition, sort_keys=True),
        }


class Maker(Protocol):
    """Makes what answers, in each process."""

    def identity(self, policy: str) -> Identity:
        """By what the answers will be; an empty name is the default policy.

        Raises:
            ClassifierError: there is no such policy, bundle or server.
        """

    def __call__(self) -> Answerer:
        """What answers in this process."""


@dataclass(frozen=True, slots=True)
class EngineMaker:
    """An engine in each process, one thread a run: the very code that serves.

    Attributes:
        path: the bundle's folder.
    """

    path: str | Path

    def identity(self, policy: str) -> Identity:
        """Of the bundle, every checksum verified.

        Raises:
            SettingsError: the bundle has no such policy.
        """
        from classifier.bundle import read_bundle

        bundle = read_bundle(self.path)
        name = policy or bundle.default_policy
        if name not in bundle.policies:
            raise SettingsError(f"policy: expected one of {', '.join(sorted(bundle.policies))}, found {name[:64]!r}")
        return identity_of(bundle.version, bundle.calibration.revision, bundle.policies[name])

    def __call__(self) -> Answerer:
        """The engine of the bundle."""
        from classifier.engine import Engine

        return EngineAnswerer(Engine.from_pretrained(self.path))


def identity_of(bundle_version: str, calibration_revision: str, policy: Policy) -> Identity:
    """The identity of a policy of a bundle."""
    from classifier.policy_file import policy_to_json

    return Identity(bundle_version, calibration_revision, policy_to_json(policy))


@dataclass(frozen=True, slots=True)
class ServerMaker:
    """A server that every process asks, one request after another.

    Attributes:
        address: `HOST:PORT`, `unix:/PATH` or another gRPC target.
        options: of `classifier.Client`, such as `token` or `tls_ca`.
    """

    address: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def identity(self, policy: str) -> Identity:
        """Of what the server serves now.

        Raises:
            SettingsError: its bundle has no such policy.
        """
        from classifier.client import Client
        from classifier.wire import as_json

        with Client(self.address, **self.options) as client:
            info = _patiently(lambda: client.info(timeout_seconds=CALL_SECONDS))
        name = policy or info.default_policy
        found = next((p for p in info.policies if p.name == name), None)
        if found is None:
            names = ", ".join(p.name for p in info.policies)
            raise SettingsError(f"policy: {self.address} expected one of {names}, found {name[:64]!r}")
        return Identity(info.bundle_version, info.calibration_revision, as_json(found))

    def __call__(self) -> Answerer:
        """A client of the server."""
        return ServerAnswerer(self)


class ServerAnswerer:
    """A server's answers, asked for one by one."""

    golden_ok = True  # nothing runs on this processor
    repeats = 0

    def __init__(self, maker: ServerMaker) -> None:
        from classifier.breaker import Breaker
        from classifier.client import Client

        # The waiting is done here, so nothing is to be gained from not asking.
        breaker = Breaker(failures=math.inf)
        self._client = Client(maker.address, timeout_seconds=CALL_SECONDS, breaker=breaker, **maker.options)

    def answer(self, request: Request) -> Decision:
        """The server's decision.

        Raises:
            InvalidRequest: the request cannot be classified.
            ServerUnreachable: the server stayed away or busy.
        """
        decision = _patiently(lambda: self._client.classify(request)).decision
        assert decision is not None  # without a fallback tier the client raises
        return decision


_PASSING = (Overloaded, ServerUnreachable, DeadlinePassed, StoreUnavailable)


def _patiently(ask: Callable[[], T]) -> T:
    """What `ask` returns; asked again while the server is busy or away, for `PATIENCE_SECONDS`.

    Raises:
        ServerUnreachable: it stayed so.
        Unauthenticated: it wants a token, or another one.
    """
    end, pause = time.monotonic() + PATIENCE_SECONDS, _FIRST_PAUSE_SECONDS
    while True:
        try:
            return ask()
        except Unauthenticated as error:
            raise Unauthenticated(f"{error}; this command has the token of CLASSIFIER_TOKEN") from error
        except _PASSING as error:
            if time.monotonic() + pause > end:
                raise ServerUnreachable(
                    f"no answer for {PATIENCE_SECONDS:g} s ({error}); start the server and run the same command again"
                ) from error
            time.sleep(max(pause, error.retry_after_seconds or 0.0))
            pause = min(2 * pause, _LAST_PAUSE_SECONDS)
