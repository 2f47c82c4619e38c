"""Routers that others ship, asked for the tier of the same requests, where they are installed.

LiteLLM's complexity router has our four tiers under other names. Two of its kinds need no model call: `rules` (weights
of keywords and lengths, its default) and `heuristic_v2` (success rates by kind of request, fitted on public data).

Knows nothing of models or labels.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier.types import SYSTEM_ROLES, Request, Tier

NAMES: Mapping[str, Tier] = {
    "NON_REASONING": Tier.SIMPLE,
    "SIMPLE": Tier.SIMPLE,
    "MEDIUM": Tier.STANDARD,
    "COMPLEX": Tier.COMPLEX,
    "REASONING": Tier.FRONTIER,
}
"""LiteLLM's tiers, as ours."""


class _Context:
    """Stands for the owning router, which classifying does not ask."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def litellm_tiers(requests: Sequence[Request]) -> dict[str, NDArray[np.int64]]:
    """What LiteLLM's routers choose: name → (n,) tier indices; none where LiteLLM, or that router, is not installed."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # importing it must not fetch a price list
    found = {}
    for name, make in (("litellm rules", _rules), ("litellm heuristic_v2", _heuristic_v2)):
        try:
            choose = make()
        except Exception:  # noqa: S112 - another version of LiteLLM, or none: then there is nothing to compare with
            continue
        found[name] = np.array([choose(request).index for request in requests], dtype=np.int64)
    return found


def _texts(request: Request) -> tuple[str, str | None]:
    """The last user message and the system prompt: what LiteLLM's router reads."""
    system = [m.content for m in request.messages if m.role in SYSTEM_ROLES]
    return request.messages[request.last_user_index].content, "\n".join(system) or None


def _rules() -> Callable[[Request], Tier]:
    from litellm.router_strategy.complexity_router.complexity_router import ComplexityRouter

    router = ComplexityRouter(model_name="rival", ctx=_Context())
    return lambda request: NAMES[router.classify(*_texts(request))[0].value]


def _heuristic_v2() -> Callable[[Request], Tier]:
    from litellm.router_strategy.complexity_router import complexity_router as module
    from litellm.router_strategy.complexity_router.tier_predictor import TierSuccessPredictor, resolve_tier_artifact

    predictor = TierSuccessPredictor(resolve_tier_artifact("ultrafeedback"))

    def choose(request: Request) -> Tier:
        text = _texts(request)[0]
        return Tier(predictor.predict(text, module.classify_prompt(text)).required_tier)

    return choose
