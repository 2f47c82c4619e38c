"""A classifier for LiteLLM's complexity router (`classifier_type: custom`). Knows nothing of the proxy's hooks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from classifier.client import CLASSIFY_SECONDS, AsyncClient
from classifier.conversations import request_of_body
from classifier.errors import ClassifierError
from classifier.types import Tier

_log = logging.getLogger(__name__)


class ComplexityClassifier:
    """A `ClassifierPlugin`: the complexity router asks it for its tier.

    Args:
        target: the classifier, as `AsyncClient` takes it.
        names: the router's tier for each of ours.
        timeout_seconds: deadline; later the router's own `classifier_fallback` decides.
        options: more arguments of `AsyncClient`.
    """

    NAMES: Mapping[Tier, str] = {
        Tier.SIMPLE: "SIMPLE",
        Tier.STANDARD: "MEDIUM",
        Tier.COMPLEX: "COMPLEX",
        Tier.FRONTIER: "REASONING",
    }

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        names: Mapping[Tier, str] = NAMES,
        timeout_seconds: float = CLASSIFY_SECONDS,
        **options: Any,
    ) -> None:
        self._names = names
        self._arguments = {"target": target, "timeout_seconds": timeout_seconds, **options}
        AsyncClient(**self._arguments)  # what is wrong with these is told while the proxy starts
        self._client: AsyncClient | None = None

    async def classify(self, context: Any) -> str | None:
        """The router's tier of a request; None lets its fallback decide."""
        if self._client is None:  # not before: LiteLLM copies what is in its configuration, and no client can be copied
            self._client = AsyncClient(**self._arguments)
        try:
            body = {"messages": [dict(m) for m in context.structured_messages or context.raw_messages]}
            answer = await self._client.classify(request_of_body(body))
        except ClassifierError as error:
            _log.info("left to the router's own fallback: %s", error.status)
            return None
        return self._names.get(answer.tier)
