"""The nouns: frozen, validated once, and shared by everything. Standard library only.

The enumerations are in `classifier.enums` and are imported from here. Knows nothing of the wire, of files, of models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from classifier.enums import TIERS, Cause, OutcomeState, Reason, Source, Tier, Verdict
from classifier.errors import InvalidRequest
from classifier.shapes import is_list, misfits, misfits_of_outcome

__all__ = [
    "LABEL_KINDS", "MAX_ATTACHMENTS", "MAX_ID_CHARS", "MAX_LABELS", "MAX_LABEL_CHARS", "MAX_TOOLS", "ROLES",
    "SYSTEM_ROLES", "TIERS", "Cause", "Decision", "Message", "Outcome", "OutcomeState", "Reason", "Request", "Scores",
    "Source", "Tier", "Timings", "Verdict",
]  # fmt: skip

SYSTEM_ROLES = ("system", "developer")
ROLES = (*SYSTEM_ROLES, "user", "assistant", "tool")
MAX_ATTACHMENTS = 2**31 - 1
MAX_TOOLS = 4096
MAX_LABELS = 16
MAX_LABEL_CHARS = 256
MAX_ID_CHARS = 256
LABEL_KINDS = ("RUBRIC", "OUTCOME")  # a juror's tier; the first tier that satisfied
_MAX_SECONDS = 2**63  # what the wire holds


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: one of `ROLES`.
        content: text; may be empty for a message that carried only attachments.
    """

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Request:
    """One request as a gateway sees it. Validated when made.

    Attributes:
        messages: the conversation, oldest first, at least one of them from the user.
        tools: names of the tools offered to the model, at most `MAX_TOOLS`.
        attachments: how many images, files or recordings came with the conversation.
        policy: a policy's name; empty means the bundle's default.
        floor: the answer is never below it.
        ceiling: the answer is never above it.
        record: whether the decision is kept for feedback; None means the server's setting.
        labels: small bounded facts such as tenant or route; never prompt text.
        request_id: the caller's id for this request, unique per caller; empty means none.

    Raises:
        InvalidRequest: a field is not valid; every violation is named.

    >>> Request.from_text("What is the capital of Australia?").last_user_index
    0
    """

    messages: tuple[Message, ...]
    tools: tuple[str, ...] = ()
    attachments: int = 0
    policy: str = ""
    floor: Tier | None = None
    ceiling: Tier | None = None
    record: bool | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""

    def __post_init__(self) -> None:
        if violations := misfits(self):
            raise InvalidRequest(violations)
        if not self.messages:
            violations.append(("messages", "is empty; send the conversation with at least one user message"))
        for i, message in enumerate(self.messages):
            if message.role not in ROLES:
                violations.append((f"messages[{i}].role", f"is not one of {', '.join(ROLES)}"))
            if "\0" in message.content:
                violations.append(
                    (f"messages[{i}].content", "has a NUL byte; send text, and count files as attachments")
                )
        if self.messages and not violations and all(m.role != "user" for m in self.messages):
            violations.append(("messages", "has no message with role 'user'; the last user message is what is rated"))
        if len(self.tools) > MAX_TOOLS:
            violations.append(("tools", f"has more than {MAX_TOOLS} entries; name those that the model may call"))
        if not 0 <= self.attachments <= MAX_ATTACHMENTS:
            violations.append(("attachments", "is negative or too large; count the images, files and recordings"))
        if self.floor is not None and self.ceiling is not None and self.floor > self.ceiling:
            low, high = Tier(self.ceiling).label, Tier(self.floor).label
            violations.append(("floor", f"is {high}, above the ceiling {low}; swap or drop one of them"))
        if len(self.request_id) > MAX_ID_CHARS or "\0" in self.request_id:
            violations.append(("request_id", f"is longer than {MAX_ID_CHARS} characters or has a NUL byte"))
        if len(self.labels) > MAX_LABELS:
            violations.append(("labels", f"has more than {MAX_LABELS} entries; labels are a few small facts"))
        elif any(len(t) > MAX_LABEL_CHARS or "\0" in t for pair in self.labels.items() for t in pair):
            violations.append(("labels", f"has a text longer than {MAX_LABEL_CHARS} characters or with a NUL byte"))
        if violations:
            raise InvalidRequest(violations)

    @property
    def characters(self) -> int:
        """Of all messages, whoever they are from."""
        return sum(len(m.content) for m in self.messages)

    @property
    def last_user_index(self) -> int:
        """Position in `messages` of the last user message."""
        return max(i for i, m in enumerate(self.messages) if m.role == "user")

    @classmethod
    def from_text(cls, prompt: str, **fields: Any) -> Request:
        """A request with `prompt` as its only message."""
        return cls(messages=(Message("user", prompt),), **fields)

    @classmethod
    def from_messages(cls, messages: Sequence[Mapping[str, str]], **fields: Any) -> Request:
        """A request from `[{"role": ..., "content": ...}, ...]`; a message without content has an empty one.

        Raises:
            InvalidRequest: they are something else, or the request is not valid.
        """
        return cls(messages=tuple(Message(m.role, m.content or "") for m in _parsed(messages)), **fields)

    @classmethod
    def from_json(cls, row: Mapping[str, Any], **fields: Any) -> Request:
        """A request from a corpus line: `messages` or `prompt`, and optional `tools` and `attachments`.

        Tools are names, or objects with a `name`.

        Raises:
            InvalidRequest: a part of the row has another shape, or the request is not valid.
        """
        messages = row.get("messages") or [{"role": "user", "content": row.get("prompt")}]
        if not is_list(messages):
            raise InvalidRequest("messages", "is not a list of objects with role and content")
        tools = row.get("tools") or ()
        if not is_list(tools):
            raise InvalidRequest("tools", "is not a list of names or of objects with a name")
        names = tuple(str(t.get("name", "")) if isinstance(t, Mapping) else str(t) for t in tools)
        return cls(messages=tuple(_parsed(messages)), tools=names, attachments=row.get("attachments") or 0, **fields)

    def to_json(self) -> dict[str, Any]:
        """A corpus line, as `from_json` reads it: the messages, and tools and attachments where there are any."""
        line: dict[str, Any] = {"messages": [{"role": m.role, "content": m.content} for m in self.messages]}
        line |= {"tools": list(self.tools)} if self.tools else {}
        return line | ({"attachments": self.attachments} if self.attachments else {})


def _parsed(messages: Iterable[Any]) -> list[Message]:
    """The messages as they are given: their contents are not looked at."""
    parsed: list[Message] = []
    try:
        for message in messages:
            parsed.append(Message(message["role"], message.get("content")))  # noqa: PERF401 - counted, too
    except (TypeError, LookupError, AttributeError):
        raise InvalidRequest(f"messages[{len(parsed)}]", "is not an object with role and content") from None
    return parsed


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one classification went, in seconds."""

    queue: float = 0.0
    prepare: float = 0.0
    model: float = 0.0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class Scores:
    """What the model says of one request.

    Attributes:
        logits: as many as there are tiers, float32 values, before calibration.
        probabilities: P(label = tier), calibrated, cheapest first, summing to 1.
        input_tokens: tokens that the model read.
        truncated: text was left out of what the model read.
    """

    logits: tuple[float, ...]
    probabilities: tuple[float, ...]
    input_tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to one request. Field by field the wire's `ClassifyResponse`.

    Attributes:
        tier: the tier to route to.
        probabilities: P(label = tier), calibrated, cheapest first, summing to 1.
        model_tier: the tier before floor, ceiling, routes and exploration.
        reason: why `tier` is what it is.
        policy: name of the policy that chose.
        threshold: the cheapest tier t with P(label <= t) >= threshold was chosen; float32.
        guaranteed: whether the policy's promise covers this answer.
        propensity: probability with which exploration would have led to this tier; 1 where nothing is explored.
        bundle_version: content hash of the bundle that answered.
        calibration_revision: hash of its calibration.
        truncated: text was left out of what the model read.
        input_tokens: tokens that the model read.
        timings: where the time went.
        decision_id: hand it to ReportOutcome; empty where no service minted one.
        route: model that the routing table names for the tier; empty without a table.
    """

    tier: Tier
    probabilities: tuple[float, ...]
    model_tier: Tier
    reason: Reason
    policy: str
    threshold: float
    guaranteed: bool
    propensity: float = 1.0
    bundle_version: str = ""
    calibration_revision: str = ""
    truncated: bool = False
    input_tokens: int = 0
    timings: Timings = field(default_factory=Timings)
    decision_id: str = ""
    route: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one decision.

    Attributes:
        decision_id: the id that Classify answered with.
        outcome_id: the reporter's id for this report; the same id again changes nothing.
        verdict: what was judged.
        cause: why; only QUALITY becomes a label.
        source: who judged.
        served_tier: the tier whose answer was judged.
        accepted_tier: where the request was finally satisfied, when escalated and known.
        occurred_at: seconds since the epoch, UTC; None means the time of receipt.
        request: the request itself, from a gateway that keeps the text when the server does not.
    """

    decision_id: str
    outcome_id: str
    verdict: Verdict
    cause: Cause
    source: Source
    served_tier: Tier
    accepted_tier: Tier | None = None
    occurred_at: float | None = None
    request: Request | None = None

    def __post_init__(self) -> None:
        if violations := misfits_of_outcome(self):
            raise InvalidRequest(violations)
        if not self.decision_id:
            violations.append(("decision_id", "is empty; send the id that Classify answered with"))
        if not self.outcome_id:
            violations.append(("outcome_id", "is empty; send an id of your own, so that a retry changes nothing"))
        elif len(self.outcome_id) > MAX_ID_CHARS or "\0" in self.outcome_id:
            violations.append(("outcome_id", f"is longer than {MAX_ID_CHARS} characters or has a NUL byte"))
        if self.occurred_at is not None and not 0 <= self.occurred_at < _MAX_SECONDS:
            violations.append(("occurred_at", "is before 1970 or not a time; leave it out to mean the time of receipt"))
        if self.accepted_tier is not None:
            if self.verdict is not Verdict.ESCALATED:
                violations.append(("accepted_tier", "is set, but only an ESCALATED outcome has one"))
            elif self.accepted_tier <= self.served_tier:
                violations.append(("accepted_tier", "is not above served_tier; an escalation goes up"))
        if violations:
            raise InvalidRequest(violations)
