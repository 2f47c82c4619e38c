"""What the bodies of a chat-completions endpoint say: an answer, or why there is none.

Pure. Knows nothing of HTTP, or of what follows from an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from training.jury_journal import Usage

MOST_TOKENS = 10**9
"""Of one response; a count above it is no count."""
_UNWANTED = re.compile(r"moderat|content[ _-](?:policy|filter)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Response:
    """What an endpoint answered.

    Attributes:
        content: the text of the answer.
        usage: its tokens.
        cut_off: it ended at its longest length.
    """

    content: str
    usage: Usage
    cut_off: bool


def response_of(body: bytes) -> Response | None:
    """The answer in a body, None where it is no chat completion.

    A completion without text is an empty answer: it is no vote, and what it took is counted.
    """
    try:
        found = json.loads(body)
        usage, choice = found.get("usage"), found["choices"][0]
        content = _text_of((choice.get("message") or {}).get("content"))
        finish = choice.get("finish_reason")
    except (ValueError, AttributeError, TypeError, LookupError, RecursionError):
        return None
    counts = (usage.get(name) if isinstance(usage, dict) else None for name in Usage._fields)
    usage = Usage(*(n if type(n) is int and 0 <= n <= MOST_TOKENS else None for n in counts))
    return Response(content, usage, cut_off=finish == "length")


def code_of(body: bytes) -> str:
    """The short word by which an endpoint names an error; its sentences may quote the prompt.

    >>> code_of(b'{"error": {"code": 400, "type": "invalid_request_error"}}')
    'invalid_request_error'
    """
    words = (_error_of(body).get(name) for name in ("code", "type"))
    return next((w for w in words if isinstance(w, str) and 0 < len(w) <= 64 and w.replace("_", "").isalnum()), "")


def is_moderated(body: bytes) -> bool:
    """Whether an error is the endpoint's moderation of this one case, and not of who asks.

    >>> is_moderated(b'{"error": {"code": 403, "metadata": {"reasons": ["violence"]}}}')
    True
    """
    error = _error_of(body)
    metadata = error.get("metadata")
    if isinstance(metadata, dict) and not metadata.keys().isdisjoint(("reasons", "flagged_input")):
        return True
    return any(_UNWANTED.search(str(error.get(name) or "")) for name in ("code", "type", "message"))


def _error_of(body: bytes) -> Mapping[str, Any]:
    """The error in a body, empty where it holds none."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}
    return error if isinstance(error, dict) else {}


def _text_of(content: Any) -> str:
    """The text of an answer; of one in parts, as models that show their thinking give, the parts of text."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    return "".join(text for text in texts if isinstance(text, str))
