"""Judges of answers, and the way up: an answer that is not good enough is asked again a tier higher.

Knows nothing of LiteLLM: how to ask a route is an argument.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from classifier.errors import NoAllowedRoute
from classifier.routing import Route, RoutingTable
from classifier.types import TIERS, Tier, Verdict

Validator = Callable[[Mapping[str, Any], Any], "bool | Awaitable[bool | None] | None"]
"""Judges (the request's data, the answer): True is good enough, False is not, None is no opinion."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Escalated:
    """How it went higher up.

    Attributes:
        answer: the last one that came; None where none did.
        tier: whose it is; None where none came.
        accepted: whether it was judged good enough.
    """

    answer: Any = None
    tier: Tier | None = None
    accepted: bool = False

    @property
    def accepted_tier(self) -> Tier | None:
        """The tier whose answer was judged good enough; None where there is none."""
        return self.tier if self.accepted else None

    @property
    def verdict(self) -> Verdict:
        """ESCALATED where a higher tier answered, else REJECTED."""
        return Verdict.REJECTED if self.answer is None else Verdict.ESCALATED


async def judged(validators: Sequence[Validator], data: Mapping[str, Any], answer: Any) -> bool | None:
    """False where one validator says so, True where one says so and none against, None without opinions.

    A validator that fails has no opinion.
    """
    verdict: bool | None = None
    for validator in validators:
        try:
            said = validator(data, answer)
            said = await said if inspect.isawaitable(said) else said
            opinion = None if said is None else bool(said)  # numpy's bool is what a comparison of its scores gives
        except Exception:
            _log.exception("a validator failed; it has no opinion")
            continue
        if opinion is False:
            return False
        verdict = True if opinion else verdict
    return verdict


async def escalate(
    table: RoutingTable,
    tier: Tier,
    ask: Callable[[Route], Awaitable[Any]],
    good_enough: Callable[[Any], Awaitable[bool | None]],
    *,
    model: str = "",
    restricted: bool = False,
    chars: int = 0,
) -> Escalated:
    """Asks tier after tier above one until an answer is not turned down, the top is reached, or asking fails.

    Args:
        table: the routing table.
        tier: whose answer was not good enough.
        ask: the answer of a route.
        good_enough: a verdict on an answer.
        model: whose answer was not good enough. A higher tier that it serves, too, is passed over.
        restricted: only routes on premises are asked.
        chars: of the conversation: routes whose context window is too small are passed over.
    """
    last = Escalated()
    while tier < TIERS[-1]:
        higher = Tier(tier + 1)
        try:
            route = table.choose(higher, restricted=restricted, floor=higher, chars=chars)
            tier = route.tier
            if route.model == model:
                continue
            answer = await ask(route)
        except NoAllowedRoute:
            break
        except Exception as error:
            _log.warning("escalating failed (%s); the answer before stands", type(error).__name__)
            break
        verdict = await good_enough(answer)
        last, model = Escalated(answer, tier, bool(verdict)), route.model
        if verdict is not False:
            break
    return last
