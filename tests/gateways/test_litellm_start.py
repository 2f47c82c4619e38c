"""The hook by itself: what is wrong with its settings, and the tier that answered."""

from __future__ import annotations

import asyncio
import re
from types import SimpleNamespace
from typing import Any

import pytest

from classifier.errors import SettingsError
from classifier.gateways.litellm import ClassifierHook
from classifier.routing import Route, RoutingTable
from classifier.testing import fake_server
from classifier.types import TIERS, Tier

TABLE = RoutingTable({tier: (Route(tier, tier.label, 1.0),) for tier in TIERS})
KEY = SimpleNamespace(metadata={}, token="t")
ASKED = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fallback_tier": "complex"}, "fallback_tier: expected a tier such as Tier.COMPLEX, found 'complex'"),
        ({"fallback_tier": None}, "fallback_tier: expected a tier"),
        ({"floor": "complex"}, "floor: expected a tier"),
        ({"timeout_seconds": 0}, "timeout_seconds is 0"),
        ({"token": None}, "token is of type NoneType"),
        ({"timeout": 1}, "unexpected keyword argument 'timeout'"),
        ({"tls_ca": "/nowhere/ca.pem"}, "/nowhere/ca.pem cannot be read"),
        ({"target": "http://127.0.0.1:1"}, "leave out what stands before //"),
    ],
    ids=str,
)
def test_what_is_wrong_with_its_settings_is_told_while_the_proxy_starts(settings: dict[str, Any], said: str) -> None:
    """And not by failing every request."""
    with pytest.raises((ValueError, TypeError, SettingsError), match=re.escape(said)):
        ClassifierHook(**{"target": "unix:/nowhere", "routes": TABLE} | settings)


def routed(hook: ClassifierHook, data: dict[str, Any], call: str = "acompletion") -> dict[str, Any]:
    """What the proxy goes on with."""
    return asyncio.run(hook.async_pre_call_hook(KEY, None, data, call))


def test_one_name_is_a_name() -> None:
    """`models="auto"` routes `auto`, and not the models `a`, `u`, `t` and `o`."""
    hook = ClassifierHook("unix:/nowhere", routes=TABLE, models="auto", on_premises="embed")
    assert routed(hook, {"model": "auto", "messages": [ASKED]})["model"] == "complex"
    labels = {"metadata": {"classifier_labels": {"data": "restricted"}}}
    assert routed(hook, {"model": "embed", "input": "x"} | labels, "aembedding")["model"] == "embed"


def test_headers_and_the_loop_know_the_tier_that_answered() -> None:
    """After an escalation a person's word is of the higher tier, and a sticky loop goes on there.

    A tier that the model which answered serves, too, is not asked.
    """
    asked: list[str] = []
    table = RoutingTable(dict(TABLE.routes) | {Tier.STANDARD: (Route(Tier.STANDARD, "simple", 1.0),)})

    async def again(route: Route, *_: Any) -> str:
        asked.append(route.model)
        return "good"

    async def run(address: str) -> None:
        judge = [lambda data, answer: answer == "good"]
        hook = ClassifierHook(address, routes=table, timeout_seconds=60, sticky=True, validators=judge)
        hook._ask_again = again  # type: ignore[method-assign, assignment]
        data = await hook.async_pre_call_hook(KEY, None, {"model": "auto", "messages": [ASKED]}, "acompletion")
        assert await hook.async_post_call_success_hook(data, KEY, "bad") == "good"
        headers = await hook.async_post_call_response_headers_hook(data, KEY, "good") or {}
        assert (headers["x-classifier-tier"], headers["x-classifier-served-tier"]) == ("simple", "complex")
        step = [ASKED, {"role": "assistant", "content": None}, {"role": "tool", "content": "ok"}]
        found = await hook.async_pre_call_hook(KEY, None, {"model": "auto", "messages": step}, "acompletion")
        assert (found["model"], asked) == ("complex", ["complex"])
        await hook.close()

    with fake_server(tier_of=lambda request: Tier.SIMPLE) as address:
        asyncio.run(run(address))
