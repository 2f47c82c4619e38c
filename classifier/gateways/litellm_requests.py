"""What LiteLLM says of a request, what its hook remembers of it, and the outcome of its decision. Pure.

Knows nothing of the proxy's hooks: these are the shapes that they pass around.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from classifier.fallback import Answer
from classifier.gateways.chat import DATA_HEADER, SWITCH_HEADER, is_off, labels_of
from classifier.types import Cause, Outcome, Source, Tier, Verdict

BY_MODEL = frozenset({"_arealtime", "anthropic_messages"}) | {
    prefix + call
    for prefix in ("", "a")
    for call in (
        *(
            "completion",
            "text_completion",
            "responses",
            "compact_responses",
            "embedding",
            "rerank",
            "moderation",
            "ocr",
        ),
        *("generate_content", "generate_content_stream", "image_generation", "image_edit", "speech", "transcription"),
    )
}
"""Calls that go where the router's model is. All others, such as those that are passed through to a provider, may name
any model and go elsewhere."""
_WAYS_OUT = ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks", "user_config", "api_base", "base_url")
"""What a caller may send to be served by another model or place than the table's."""


@dataclass(slots=True)
class Routed:
    """What the hook remembers of a request.

    Attributes:
        answer: what was answered.
        restricted: whether it may not leave the premises.
        chat: whether it is a chat completion, whose answer may be one of another model, asked for again.
        answered: whether a model answered or began to, so that a guardrail's no is about the answer.
        escalating: whether a higher tier's answer is on its way through the proxy's guardrails.
    """

    answer: Answer
    restricted: bool = False
    chat: bool = True
    answered: bool = False
    escalating: bool = False


def outcome_of(
    routed: Routed,
    data: Mapping[str, Any],
    verdict: Verdict,
    cause: Cause,
    *,
    source: Source = Source.AUTOMATIC,
    accepted_tier: Tier | None = None,
) -> Outcome | None:
    """What became of a request's decision; None where there is none.

    One outcome a request and cause: every attempt of an outage tells of it, and it counts once.
    """
    decision = routed.answer.decision
    if decision is None or not decision.decision_id:
        return None
    name = f"{(call_id(data) or decision.decision_id)[:128]}:{cause.name.lower()}"
    return Outcome(decision.decision_id, name, verdict, cause, source, routed.answer.tier, accepted_tier)


def call_id(data: Mapping[str, Any]) -> str:
    """LiteLLM's id of a request, the same for all its attempts; empty where there is none."""
    params = data.get("litellm_params")
    nested = params.get("litellm_call_id") if isinstance(params, Mapping) else None
    return str(data.get("litellm_call_id") or nested or "")


def asked(key: Mapping[str, Any], data: Mapping[str, Any]) -> tuple[dict[str, str], bool]:
    """(labels, whether the request opts out), by its key's metadata, its own and its headers."""
    own = [data[name] for name in ("metadata", "litellm_metadata") if isinstance(data.get(name), Mapping)]
    headers = _headers(data, "proxy_server_request", "headers")
    # Of a header that came several times LiteLLM keeps the last value there, and the first here.
    sent = [_headers(data, "secret_fields", "raw_headers").get(DATA_HEADER), headers.get(DATA_HEADER)]
    labels = labels_of(*(source.get("classifier_labels") for source in (*own, key)), sent=sent)
    switches = [headers.get(SWITCH_HEADER), *(source.get("classifier") for source in (*own, key))]
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
