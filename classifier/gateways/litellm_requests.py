"""What LiteLLM says of a request, what its hook remembers of it, and the outcome of its decision. Pure.

Knows nothing of the proxy's hooks: these are the shapes that they pass around.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from classifier.errors import NoAllowedRoute
from classifier.fallback import Answer
from classifier.gateways.chat import DATA_HEADER, SERVED_HEADER, SWITCH_HEADER, headers_of, is_off, labels_of
from classifier.types import Cause, Outcome, Source, Tier, Verdict

BY_MODEL = frozenset({"_arealtime", "anthropic_messages"}) | {
    prefix + call
    for prefix in ("", "a")
    for call in (
        "completion", "text_completion", "responses", "compact_responses", "embedding", "rerank", "moderation", "ocr",
        "generate_content", "generate_content_stream", "image_generation", "image_edit", "speech", "transcription",
    )
}  # fmt: skip
"""Calls that go where the router's model is. All others, such as those that are passed through to a provider, may name
any model and go elsewhere."""
_WAYS_OUT = (
    "fallbacks", "context_window_fallbacks", "content_policy_fallbacks", "user_config", "api_base", "base_url",
    "custom_llm_provider", "azure", "deployment_id",  # a model whose place its provider implies goes to another's
)  # fmt: skip
"""What a caller may send to be served by another model or place than the table's."""
_ONCE = frozenset({"model", "stream", "stream_options", "disable_fallbacks", "api_key", "litellm_call_id", *_WAYS_OUT})
"""What does not belong to the same request at another model."""


@dataclass(slots=True)
class Routed:
    """What the hook remembers of a request.

    Attributes:
        answer: what was answered.
        served: the tier whose model answered or is to; None where the table does not name the model that the proxy fell
            back to.
        model: that model.
        restricted: whether it may not leave the premises.
        repeated: what of a chat completion is asked again where its answer is not good enough; empty where answers have
            another shape.
        caller: its key.
        answered: whether a model answered or began to, so that a guardrail's no is about the answer.
        fell_back: whether the proxy fell back to another model.
        escalating: whether a higher tier's answer is on its way through the proxy's guardrails.
    """

    answer: Answer
    served: Tier | None
    model: str = ""
    restricted: bool = False
    repeated: frozenset[str] = frozenset()
    caller: str = ""
    answered: bool = False
    fell_back: bool = False
    escalating: bool = False

    @property
    def tier(self) -> Tier:
        """Of the model that answered; where the table does not name it, the one that was decided."""
        return self.answer.tier if self.served is None else self.served


class Refused(NoAllowedRoute):
    """A restricted request without a route on premises: the proxy answers 403."""

    status_code = 403


def told(routed: Routed) -> dict[str, str]:
    """The headers of an answer: what was decided, and the tier that answered where that is another, or `none`."""
    headers = headers_of(routed.answer)
    if routed.served is not routed.answer.tier:
        headers[SERVED_HEADER] = routed.served.label if routed.served else "none"
    return headers


def names_repeated(data: Mapping[str, Any]) -> frozenset[str]:
    """Names of what makes the same request at another model: all that its caller sent, and who pays.

    Before the call: later LiteLLM writes into its copy of the body what it has added itself.
    """
    sent = data.get("proxy_server_request")
    body = sent.get("body") if isinstance(sent, Mapping) else None
    return frozenset({"messages", "metadata", *(body if isinstance(body, Mapping) else ())}) - _ONCE


def calls_of(response: Any) -> list[str]:
    """Ids of the tool calls in an answer of OpenAI's responses, or in the event that ends its stream."""
    output = getattr(getattr(response, "response", response), "output", None)
    items = output if isinstance(output, list) else []
    found = [item.get("call_id") if isinstance(item, Mapping) else getattr(item, "call_id", None) for item in items]
    return [str(call) for call in found if call]


def outcome_of(
    routed: Routed,
    verdict: Verdict,
    cause: Cause,
    *,
    source: Source = Source.AUTOMATIC,
    accepted_tier: Tier | None = None,
) -> Outcome | None:
    """What became of a request's decision; None where there is none, or where an answer is judged that is of no tier.

    QUALITY is of the tier that answered; what kept a model from answering, of the tier that was decided. One outcome a
    request and cause: every attempt of an outage tells of it, and it counts once.
    """
    decision = routed.answer.decision
    tier = routed.served if cause is Cause.QUALITY else routed.answer.tier
    if decision is None or not decision.decision_id or tier is None:
        return None
    name = f"{decision.decision_id}:{cause.name.lower()}"
    return Outcome(decision.decision_id, name, verdict, cause, source, tier, accepted_tier)


def said_of(
    decision_id: str, tier: Tier, *, accepted: bool, source: Source = Source.USER, outcome_id: str = ""
) -> Outcome:
    """What somebody said of an answer. Without an id of its own the same word again is the same outcome."""
    verdict, cause = Verdict.ACCEPTED if accepted else Verdict.REJECTED, Cause.QUALITY
    name = outcome_id or f"{decision_id}:{source.name}:{cause.name}:{verdict.name}"
    return Outcome(decision_id, name, verdict, cause, source, tier)


_METADATA = ("litellm_metadata", "metadata")
"""Where LiteLLM keeps what it knows of a request; beside the first, the second is the caller's own."""
_MARK = "classifier_request"


def mark(data: MutableMapping[str, Any], name: str) -> None:
    """Names the request, so that every event of it, its retries' and fallbacks' too, tells which one it is of.

    LiteLLM's own `litellm_call_id` does not: a caller may choose it, and give it twice.
    """
    held = next((data[place] for place in _METADATA if isinstance(data.get(place), MutableMapping)), None)
    if held is None:
        held = data[_METADATA[-1]] = {}
    held[_MARK] = name


def marks(data: Mapping[str, Any]) -> list[str]:
    """The names that a request, or an event of it, may have by `mark`; a caller's own inventions among them."""
    return [str(held[_MARK]) for held in _metadata(data) if _MARK in held]


def left(data: Mapping[str, Any]) -> bool:
    """Whether an event is of a stream whose caller left before its end: LiteLLM bills the half as a success."""
    return any(held.get("client_disconnected") is True for held in _metadata(data))


def _metadata(data: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What LiteLLM knows of a request, or of an event of it."""
    sources = [source for source in (data.get("litellm_params"), data) if isinstance(source, Mapping)]
    places = [source.get(place) for source in sources for place in _METADATA]
    return [place for place in places if isinstance(place, Mapping)]


def asked(key: Any, data: Mapping[str, Any]) -> tuple[dict[str, str], bool]:
    """(labels, whether the request opts out), by its key's metadata, its team's, its own and its headers."""
    admins = [getattr(key, name, None) or {} for name in ("team_metadata", "metadata")]
    own = [data[name] for name in ("metadata", "litellm_metadata") if isinstance(data.get(name), Mapping)]
    headers = _headers(data, "proxy_server_request", "headers")
    # Of a header that came several times LiteLLM keeps the last value there, and the first here.
    sent = [_headers(data, "secret_fields", "raw_headers").get(DATA_HEADER), headers.get(DATA_HEADER)]
    labels = labels_of(*(source.get("classifier_labels") for source in (*own, *admins)), sent=sent)
    switches = [headers.get(SWITCH_HEADER), *(source.get("classifier") for source in (*own, *admins))]
    return labels, any(map(is_off, switches))


def _headers(data: Mapping[str, Any], place: str, name: str) -> dict[str, Any]:
    """The headers there, by name in lower case; empty where they are not."""
    found = data.get(place)
    found = found.get(name) if isinstance(found, Mapping) else None
    return {str(key).lower(): value for key, value in found.items()} if isinstance(found, Mapping) else {}


def confine(data: MutableMapping[str, Any]) -> None:
    """Closes a restricted request's ways out: the proxy's own fallbacks know nothing of places."""
    data["disable_fallbacks"] = True
    for name in _WAYS_OUT:
        data.pop(name, None)
