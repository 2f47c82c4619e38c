"""Asks for the tier of a chat body. There is always an answer, but for a restricted request without a route.

    body, labels ─▶ request ─▶ client ─▶ Answer            the server's decision, or the client's fallback
                       └── what cannot be read ─▶ Answer   the fallback tier, with the reason

Knows nothing of LiteLLM or Envoy.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from classifier.client import AsyncClient
from classifier.columns import count_chars
from classifier.conversations import request_of_body
from classifier.errors import ClassifierError, NoAllowedRoute
from classifier.fallback import Answer
from classifier.routing import RoutingTable, is_restricted
from classifier.types import Tier

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
        restricted, chars = is_restricted(labels), chars_of(body)
        self._follow()
        try:
            answer = await self._client.classify(request_of_body(body, floor=floor, labels=labels, **fields))
        except NoAllowedRoute:
            if floor is None:
                raise
            return await self.ask(body, labels, **fields)
        except ClassifierError as error:
            return self.fall_back(error.status, restricted=restricted, floor=floor, chars=chars)
        except Exception:
            _log.exception("the request is routed to the fallback tier")
            return self.fall_back("INTERNAL", restricted=restricted, floor=floor, chars=chars)
        if restricted and not answer.route:
            raise NoAllowedRoute("data=restricted: without a routing table no route is known to be on premises")
        return answer

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


def chars_of(body: Mapping[str, Any]) -> int:
    """Characters of all that the model is told by a chat body, its system prompt among them.

    >>> chars_of({"system": "Be brief.", "messages": [{"role": "user", "content": "hi"}]})
    11
    """
    return count_chars([body.get(name) for name in ("system", "instructions", "messages", "input")])
