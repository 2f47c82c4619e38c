"""Rows of logs whose request is elsewhere: answers, steps around a request, parts of one; and what to label instead.

Such a row often holds words enough to be rated, and its tier would be one of a request that nobody made.

Pure. Knows nothing of formats or of what a request is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from classifier.errors import InvalidRequest

SPLIT = "RequestMessages"
"""Where Azure's API Management logs messages, those of more than 32 KB in parts."""
_WHOLE_BYTES = 30_000
_STEPS = {
    "run_type": (("chain", "tool", "retriever", "embedding", "prompt", "parser"), "llm", ("inputs",)),
    "type": (
        ("SPAN", "EVENT", "AGENT", "TOOL", "CHAIN", "RETRIEVER", "EVALUATOR", "EMBEDDING", "GUARDRAIL"),
        "GENERATION",
        ("traceId", "trace_id"),
    ),
}
"""What says the kind of a row in traces of LangSmith and Langfuse: its steps, its requests, and what is beside it."""
_NO_CHAT = ("embed", "moderation")


def check_step(row: Mapping[str, Any]) -> None:
    """Refuses steps of a trace around a request to a model: that is in the trace, too, and would count twice."""
    for name, (steps, request, beside) in _STEPS.items():
        if row.get(name) in steps and any(row.get(other) for other in beside):
            raise InvalidRequest(
                name,
                f"is {row[name]!r}, a step around requests to a model; label the rows where it is {request!r}, or "
                "these with --format openai",
            )


def check_whole(row: Mapping[str, Any]) -> None:
    """Refuses a part of a request that was logged in several; where rows have no numbers somebody has joined them."""
    if (number := row.get("SequenceNumber")) in (None, "") or not row.get(SPLIT):
        return
    size = len(json.dumps(row[SPLIT], ensure_ascii=False, default=str).encode("utf-8", "replace"))
    if str(number) not in ("0", "1") or size > _WHOLE_BYTES:
        raise InvalidRequest(SPLIT, "may be a part of a request; join the parts by CorrelationId, then label")


def check_chat(body: Mapping[str, Any]) -> None:
    """Refuses what is sent to models that do not chat, as an `input` like any other."""
    if any(word in str(body.get("model")).lower() for word in _NO_CHAT):
        raise InvalidRequest("model", "is one of embeddings or moderation; this is no request to a chat model")


def nothing_in(row: Mapping[str, Any]) -> InvalidRequest | None:
    """What to say of a row that holds no messages and no prompt, where it is known what it is."""
    if row.get("custom_id"):
        return InvalidRequest(
            "custom_id", "has no messages or body, as in a batch's answers; label the batch's input file"
        )
    if row.get("SequenceNumber") is not None:
        return InvalidRequest(SPLIT, "is empty, as in rows of answers and of counts; label the others")
    if isinstance(kong := row.get("ai"), Mapping | str) and "proxy" in kong:
        return InvalidRequest("ai", "has no payload.request; let Kong's plugin log it (config.logging.log_payloads)")
    return None
