"""Asks for the tier of a chat body. There is always an answer, but for a restricted request without a route.

    body, labels ─▶ request ─▶ client ─▶ Answer            the server's decision, or the client's fallback
                       └── what cannot be read ─▶ Answer   the fallback tier, with the reason

Knows nothing of LiteLLM or Envoy.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from classifier.client import AsyncClient
from classifier.columns import count_chars
from classifier.conversations import request_of_body
from classifier.errors import ClassifierError, NoAllowedRoute
from classifier.fallback import Answer
from classifier.routing import RoutingTable, is_restricted
from classifier.shapes import list_of
from classifier.types import Tier

T = TypeVar("T")
MOST_VALUES = 2000
"""Of a body that is read on the event loop: some milliseconds. A megabyte has room for 300,000."""
_READ = ("system", "instructions", "messages", "input", "tools", "functions", "attachments")
_log = logging.getLogger(__name__)


class Asker:
    """Asks one server.

    Args:
        client: with the same fallback tier; its routing table counts here, too.
        fallback_tier: where nothing comes back in time, or a body cannot be read.
        routes: the routing table of the moment, which becomes the client's; None leaves the client its own.
    """

    def __init__(
        self, client: AsyncClient, fallback_tier: Tier, routes: Callable[[], RoutingTable] | None = None
    ) -> None:
        self._client, self._fallback_tier, self._routes = client, fallback_tier, routes

    async def ask(
        self, body: Mapping[str, Any], labels: Mapping[str, str], *, floor: Tier | None = None, **fields: Any
    ) -> Answer:
        """The answer to a chat body.

        Args:
            body: as `request_of_body` takes it.
            labels: of the request; with `data=restricted` among them only routes on premises are allowed.
            floor: no tier below it, unless a restricted request would have no route then.
            fields: more fields of `Request`.

        Raises:
            NoAllowedRoute: the request is restricted, and no route is known to be on premises.
        """
        restricted = is_restricted(labels)
        try:
            read = partial(request_of_body, floor=floor, labels=labels, **fields)
            request = await beside(body, read, body)
            self._follow()
            answer = await self._client.classify(request)
        except NoAllowedRoute:
            if floor is None:
                raise
            return await self.ask(body, labels, **fields)
        except ClassifierError as error:
            code = error.status
        except Exception:
            _log.exception("the request is routed to the fallback tier")
            code = "INTERNAL"
        else:
            if restricted and not answer.route:
                raise NoAllowedRoute("data=restricted: without a routing table no route is known to be on premises")
            return answer
        chars = await beside(body, chars_of, body)
        return self.fall_back(code, restricted=restricted, floor=floor, chars=chars)

    def fall_back(self, code: str, *, restricted: bool, floor: Tier | None = None, chars: int = 0) -> Answer:
        """The fallback tier and its route.

        Args:
            code: why.
            restricted: only routes on premises are allowed.
            floor: no tier below it.
            chars: of the conversation: routes whose context window is too small are passed over.

        Raises:
            NoAllowedRoute: the request is restricted, and no route is known to be on premises.
        """
        tier = max(self._fallback_tier, floor or self._fallback_tier)
        return self.stay(tier, code, restricted=restricted, chars=chars)

    def stay(self, tier: Tier, code: str, *, restricted: bool, chars: int = 0) -> Answer:
        """That tier and its route, without asking; else as `fall_back`."""
        self._follow()
        try:
            route = (self._client.routes or RoutingTable()).choose(tier, restricted=restricted, chars=chars)
        except NoAllowedRoute:
            if restricted:
                raise
            return Answer(tier, None, code)
        return Answer(route.tier, None, code, route.model)

    def _follow(self) -> None:
        """Gives the client the table of the moment."""
        if self._routes is not None:
            self._client.routes = self._routes()


async def beside(body: Mapping[str, Any], work: Callable[..., T], *args: Any) -> T:
    """What `work` returns; beside the event loop where a body is of so many values that others would wait for it."""
    return await asyncio.to_thread(work, *args) if _is_large(body) else work(*args)


def _is_large(body: Mapping[str, Any]) -> bool:
    """Whether lists and objects of a body's conversation hold more than `MOST_VALUES`, however long their texts are."""
    seen, left = 0, [body.get(name) for name in _READ]
    while left:
        value = left.pop()
        held = list(value.values()) if isinstance(value, Mapping) else list_of(value)
        seen += len(held)
        if seen > MOST_VALUES:
            return True
        left.extend(held)
    return False


def chars_of(body: Mapping[str, Any]) -> int:
    """Characters of all that the model is told by a chat body, its system prompt among them.

    >>> chars_of({"system": "Be brief.", "messages": [{"role": "user", "content": "hi"}]})
    11
    """
    return count_chars([body.get(name) for name in ("system", "instructions", "messages", "input")])
