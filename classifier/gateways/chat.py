"""What gateways read of a chat request beside its conversation, and what they say of the answer.

Labels, opting out, the tool loop that a request belongs to, the headers of an answer, and what an exception or a status
of a provider means as a cause. Pure. Knows nothing of LiteLLM, Envoy, channels or servers.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from classifier.fallback import Answer
from classifier.routing import DATA_LABEL, RESTRICTED, RoutingTable, is_restricted
from classifier.types import MAX_LABEL_CHARS, Cause, Tier

T = TypeVar("T")
TIER_HEADER = "x-classifier-tier"
ID_HEADER = "x-classifier-decision-id"
FALLBACK_HEADER = "x-classifier-fallback"
SERVED_HEADER = "x-classifier-served-tier"
"""The tier that answered, where it is another than the one in `TIER_HEADER`."""
SWITCH_HEADER = "x-classifier"
"""A caller sends `x-classifier: off` to have its request left alone."""
DATA_HEADER = "x-classifier-data"
"""A caller sends `x-classifier-data: restricted` to keep its request on premises; beside other values it holds too."""


def headers_of(answer: Answer) -> dict[str, str]:
    """The headers that tell of an answer.

    >>> headers_of(Answer(Tier.COMPLEX, None, "UNAVAILABLE"))
    {'x-classifier-tier': 'complex', 'x-classifier-fallback': 'UNAVAILABLE'}
    """
    headers = {TIER_HEADER: answer.tier.label}
    if answer.decision is not None and answer.decision.decision_id:
        headers[ID_HEADER] = answer.decision.decision_id
    if answer.fallback:
        headers[FALLBACK_HEADER] = answer.fallback
    return headers


def is_off(value: Any) -> bool:
    """Whether a switch says that a request is left alone.

    >>> is_off("Off"), is_off(False), is_off(None), is_off("on")
    (True, True, False, False)
    """
    return value is False or (isinstance(value, str) and value.strip().casefold() in {"off", "false", "0", "no"})


def labels_of(*sources: Any, sent: Iterable[Any] = ()) -> dict[str, str]:
    """The labels of a request: what was said later holds, but `data=restricted` cannot be taken back.

    Args:
        sources: labels from several places, each a mapping or None; the operator's own last. What has another shape
            says nothing, but `is_restricted` of it holds.
        sent: every value of the caller's `DATA_HEADER`, which holds less than all of them. A header that is sent
            twice is the same as one with a comma (RFC 9110, 5.3), which proxies make of it.

    >>> labels_of({"data": "public", "team": "a"}, {"data": "restricted"})
    {'data': 'restricted', 'team': 'a'}
    >>> labels_of({"data": "public"}, sent=["restricted"]), labels_of(sent=["restricted, eu", "public"])
    ({'data': 'restricted'}, {'data': 'restricted'})
    """
    words = [word for value in sent if value for part in str(value).split(",") if (word := part.strip())]
    held = any(is_restricted({DATA_LABEL: word}) for word in set(words))
    said = {DATA_LABEL: RESTRICTED if held else words[-1]} if words else None
    labels: dict[str, str] = {}
    for source in (said, *sources):
        restricted = is_restricted(labels) or is_restricted(source)
        if isinstance(source, Mapping):
            labels |= {str(name): str(value)[:MAX_LABEL_CHARS] for name, value in source.items()}
        if restricted:
            labels[DATA_LABEL] = RESTRICTED
    return labels


def tool_loop(messages: Any, caller: str = "") -> str:
    """Name of the tool loop that a conversation is inside of; empty where it is in none.

    Inside a loop the last message is a tool's result; all its requests share what came up to the user's last words.
    Behind a `previous_response_id` of OpenAI's responses a result stands alone: its call is the name.

    >>> asked = [{"role": "user", "content": "fix it"}]
    >>> tool_loop(asked), bool(tool_loop([*asked, {"role": "tool", "content": "done"}]))
    ('', True)
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        return ""
    last = messages[-1]
    if not _is_result(last):
        return ""
    return _name(messages, caller) or (call_name(last["call_id"], caller) if last.get("call_id") else "")


def call_name(call_id: Any, caller: str = "") -> str:
    """Name of the tool loop that a call of OpenAI's responses is of: what `tool_loop` will say of its result alone."""
    return _hash([caller, str(call_id)])


def loop_start(messages: Any, caller: str = "") -> str:
    """Name of the loop that would begin with this request: what `tool_loop` will say while it runs."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]  # as OpenAI's responses take it
    return _name(messages, caller) if isinstance(messages, Sequence) else ""


def has_words(messages: Any) -> bool:
    """Whether the user says anything in a list of messages."""
    return any(map(_is_words, messages))


def _name(messages: Sequence[Any], caller: str) -> str:
    last = max((i for i, m in enumerate(messages) if _is_words(m)), default=-1)
    if last < 0:
        return ""
    try:
        return _hash([caller, [_plain(message) for message in messages[: last + 1]]])
    except RecursionError:  # nested as deep as no agent nests
        return ""


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _plain(item: Any) -> Any:
    """A message or a part of one without a cache's breakpoint, which agents move, and with a text as its one part."""
    if not isinstance(item, Mapping):
        return item
    plain = {name: value for name, value in item.items() if name != "cache_control"}
    if plain.get("type") == "input_text":
        plain["type"] = "text"
    content = plain.get("content")
    if isinstance(content, str):
        plain["content"] = [{"type": "text", "text": content}]
    elif isinstance(content, Sequence):
        plain["content"] = [_plain(part) for part in content]
    return plain


def _parts(message: Any) -> Sequence[Any]:
    content = message.get("content") if isinstance(message, Mapping) else None
    return content if isinstance(content, Sequence) and not isinstance(content, str) else ()


def _is_result(message: Any) -> bool:
    if not isinstance(message, Mapping):
        return False
    if message.get("role") in ("tool", "function"):  # a tuple: a caller may send a list, which no set can hold
        return True
    if message.get("role") is None and str(message.get("type", "")).endswith(("_output", "_result")):
        return True  # an item of OpenAI's responses
    return any(isinstance(p, Mapping) and str(p.get("type", "")).endswith("tool_result") for p in _parts(message))


def _is_words(message: Any) -> bool:
    return isinstance(message, Mapping) and message.get("role") == "user" and not _is_result(message)


class Remembered(Generic[T]):
    """The last `size` values by name; the oldest is forgotten."""

    def __init__(self, size: int) -> None:
        self._values: OrderedDict[str, T] = OrderedDict()
        self._size = size

    def put(self, name: str, value: T) -> None:
        """Keeps the value."""
        self._values.pop(name, None)  # and not moved to the end: another thread may just have forgotten it
        self._values[name] = value
        while len(self._values) > self._size:
            self._values.popitem(last=False)

    def get(self, name: str) -> T | None:
        """The value, or None where it was never there or is forgotten."""
        return self._values.get(name)


class Loops:
    """The tier of each of the last `size` tool loops."""

    def __init__(self, size: int) -> None:
        self._tiers: Remembered[Tier] = Remembered(size)

    def tier(self, messages: Any, caller: str) -> Tier | None:
        """Of the loop that a conversation is inside of; None where it is in none, or in one that was never kept."""
        return self._tiers.get(tool_loop(messages, caller))

    def put(self, messages: Any, caller: str, tier: Tier) -> None:
        """Keeps the tier of the loop that a conversation is inside of, or begins."""
        if name := tool_loop(messages, caller) or loop_start(messages, caller):
            self._tiers.put(name, tier)

    def put_call(self, call_id: str, caller: str, tier: Tier) -> None:
        """Keeps the tier that made a call: behind a `previous_response_id` the next step names nothing else."""
        self._tiers.put(call_name(call_id, caller), tier)


_BLOCKED = frozenset({400, 403, 422})
"""Statuses that are a guardrail's word where a hook raises them; others tell of a guardrail that failed."""
_GUARDRAILS = frozenset({"GuardrailRaisedException", "BlockedPiiEntityError", "ModifyResponseException"})
_REFUSALS = frozenset({"ContentPolicyViolationError", "RejectedRequestError"})
_GONE = 499


def cause_of_exception(error: BaseException, *, answered: bool = False) -> Cause | None:
    """What an exception that ended a call, or an attempt of one, says; by the names of its classes.

    A guardrail's word is a judgement: of the answer where there is one, else of the request. Everything else follows
    from the provider.

    Args:
        error: the exception.
        answered: whether a model had answered, so that only a hook can have raised it.

    Returns:
        QUALITY, POLICY, CONTEXT_WINDOW or AVAILABILITY; None where the caller left, which says nothing.

    >>> class GuardrailRaisedException(Exception): pass
    >>> cause_of_exception(GuardrailRaisedException()), cause_of_exception(GuardrailRaisedException(), answered=True)
    (<Cause.POLICY: 4>, <Cause.QUALITY: 1>)
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    # Subclasses are the proxy's own: a model that it does not have, a limit of its own.
    status = getattr(error, "status_code", None) if type(error).__name__ == "HTTPException" else None
    if status == _GONE:
        return None
    # Guardrails also raise a plain ValueError: LiteLLM's own example does.
    if names & _GUARDRAILS or status in _BLOCKED or type(error) is ValueError:
        return Cause.QUALITY if answered else Cause.POLICY
    if "ContextWindowExceededError" in names:
        return Cause.CONTEXT_WINDOW
    return Cause.POLICY if names & _REFUSALS else Cause.AVAILABILITY


def is_outage(status: str) -> bool:
    """Whether an upstream's HTTP status says that it could not serve: 408, 429, 5xx.

    >>> is_outage("503"), is_outage("429"), is_outage("200"), is_outage("400")
    (True, True, False, False)
    """
    return status in {"408", "429"} or (len(status) == 3 and status.startswith("5"))


def tier_of_model(table: RoutingTable, model: str) -> Tier | None:
    """The cheapest tier that the model serves, or None where the table does not name it."""
    return next((route.tier for route in table if route.model == model), None)
