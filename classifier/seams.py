"""The seams of the service: what it needs of an engine, of ids and of a store, and whom it tells.

Knows nothing of who fills them: `classifier.engine`, `classifier.decision_id`, `classifier.feedback` and
`classifier.telemetry` do in a server, `classifier.testing` in tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from classifier.types import Decision, Outcome, OutcomeState, Request, Scores

if TYPE_CHECKING:
    from classifier.policy import Policy


class Classifies(Protocol):
    """What the service needs of an engine; `classifier.engine.Engine` and `classifier.testing.FakeEngine` have it."""

    @property
    def bundle_version(self) -> str: ...  # noqa: D102
    @property
    def calibration_revision(self) -> str: ...  # noqa: D102
    @property
    def policies(self) -> Mapping[str, Policy]: ...  # noqa: D102
    @property
    def golden_ok(self) -> bool: ...  # noqa: D102
    @property
    def golden_message(self) -> str: ...  # noqa: D102
    @property
    def default_policy(self) -> str: ...  # noqa: D102
    def prepare(self, request: Request) -> Any: ...  # noqa: D102
    def score(self, prepared: Any) -> Scores: ...  # noqa: D102
    def decide(self, prepared: Any, scores: Scores, draw: float | None = None) -> Decision: ...  # noqa: D102


class Ids(Protocol):
    """Makes and checks decision ids; `classifier.decision_id.DecisionIds`."""

    def mint(self, caller: str, request_id: str, now: float) -> str: ...  # noqa: D102
    def verify(self, decision_id: str, caller: str) -> None: ...  # noqa: D102
    def draw(self, decision_id: str) -> float: ...  # noqa: D102


class Feedback(Protocol):
    """Keeps decisions and outcomes; `classifier.feedback.FeedbackStore`."""

    @property
    def keep(self) -> str: ...  # noqa: D102
    def record(  # noqa: D102
        self, decision: Decision, request: Request, caller: str, *, signals: Sequence[str], logits: Sequence[float]
    ) -> None: ...
    async def report(self, outcome: Outcome, caller: str) -> OutcomeState: ...  # noqa: D102


class Observer:
    """Is told what happened, as data; `classifier.telemetry` makes metrics and spans of it. This one does nothing.

    Called on the event loop, `call_started` in the context of the call and the others in copies of it.
    """

    def call_started(self, method: str, metadata: Iterable[tuple[str, str | bytes]]) -> object:
        """A call came in; what is returned is handed to `call_ended`."""

    def call_ended(self, started: Any, method: str, code: str, seconds: float) -> None:
        """A call was answered with the status of that name."""

    def decided(self, decision: Decision, prepared: Any, stages: Mapping[str, float]) -> None:
        """A request was classified; `stages` maps parse and encode to their seconds."""

    def refused(self, code: str, requests: int = 1) -> None:
        """So many requests were not classified: of a batch or stream, or a whole call."""
