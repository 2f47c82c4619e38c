"""The hook by itself: a restricted request never leaves the premises, and a bad table is no table."""

from __future__ import annotations

import asyncio
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from litellm.proxy.types_utils.utils import get_instance_fn

from classifier import AsyncClient, wire
from classifier.errors import SettingsError
from classifier.gateways.litellm import ClassifierHook, Refused
from classifier.routing import Route, RoutingTable
from classifier.types import TIERS, Decision, Reason, Tier
from tests.gateways.restricted import comings, tables, tier_of

CALLS = ["acompletion", "aresponses", "anthropic_messages", "aembedding", "atext_completion"]
PASSED = ["pass_through_endpoint", "allm_passthrough_route", "_aresponses_websocket", "acreate_file"]
"""Calls that go to a provider, whatever model they name."""
HOME_IS_COMPLEX = RoutingTable(
    {tier: (Route(tier, tier.label, 1.0, on_premises=tier is Tier.COMPLEX),) for tier in TIERS}
)
RESTRICTED = {"classifier_labels": {"data": "restricted"}}
WAYS = ["key", "team", "metadata", "litellm_metadata", "header"]


def hook_of(table: RoutingTable, came: Any, **more: Any) -> ClassifierHook:
    """A hook whose server decides, fails or has a fault."""

    async def classify(message: Any, **_: Any) -> Any:
        await asyncio.sleep(0)
        tier = max(tier_of(came), Tier(message.floor or Tier.SIMPLE))
        decision = Decision(tier, (0.25,) * 4, tier, Reason.MODEL, "p", 0.5, True, route="elsewhere")
        return wire.decision_to_proto(decision)

    hook = ClassifierHook("unix:/nowhere", routes=table, sticky=True, on_premises=["embed-home"], **more)
    hook.client = AsyncClient("unix:/nowhere", fallback_tier=hook._fallback_tier, routes=table)
    hook.client._connect = lambda: SimpleNamespace(Classify=classify)
    return hook


def said(data: dict[str, Any], way: str, word: str) -> dict[str, Any]:
    """Says `data=WORD` in the request, or in the metadata of the key or its team, which is returned."""
    labels = {"classifier_labels": {"data": word}}
    if way in {"key", "team"}:
        return {"metadata" if way == "key" else "team_metadata": labels}
    if way == "header":
        data["proxy_server_request"] = {"headers": {"X-Classifier-Data": word}}
    else:
        data[way] = labels
    return {}


@settings(deadline=None, max_examples=300)
@given(
    table=tables,
    came=comings,
    fallback=st.sampled_from(Tier),
    way=st.sampled_from(WAYS),
    other=st.sampled_from(WAYS),
    off=st.booleans(),
    named=st.sampled_from(["auto", "simple-0", "simple-0-home", "embed-home", "elsewhere"]),
    models=st.sampled_from([None, ("auto",)]),
    call=st.sampled_from([*CALLS, *PASSED]),
    before=st.none() | st.sampled_from(Tier),
    alone=st.booleans(),
    body=st.sampled_from(["hi", "", "a\0b", None, 5]),
)
def test_a_restricted_request_gets_a_model_on_premises_or_is_refused(
    table: RoutingTable, came: Any, fallback: Tier, way: str, other: str, off: bool, named: str, models: Any, call: str,
    before: Tier | None, alone: bool, body: Any,
) -> None:  # fmt: skip
    """Any table, decision, failure, fallback, model, call, loop and way to say it, also beside a word against it."""
    data: dict[str, Any] = {"model": named, "messages": [{"role": "user", "content": body}], "fallbacks": ["elsewhere"]}
    key = {"metadata": {}} | said(data, other, "public") | said(data, way, "restricted")
    if off:
        key["metadata"]["classifier"] = "off"
    if before is not None:
        data["messages"].append({"role": "tool", "content": "ok", "call_id": "1"})
        if alone:
            del data["messages"][0]

    async def run() -> dict[str, Any]:
        hook = hook_of(table, came, models=models, fallback_tier=fallback)
        if before is not None:
            hook._loops.put(data["messages"], "t", before)
        try:
            return await hook.async_pre_call_hook(SimpleNamespace(token="t", **key), None, data, call)
        finally:
            await hook.client.close()

    homes = {route.model for route in table if route.on_premises} | {"embed-home"}
    try:
        found = asyncio.run(run())
    except Refused:
        assert named not in homes or named == "auto" or models is None or call in PASSED
        return
    assert call in CALLS
    assert found["model"] in homes
    assert found["disable_fallbacks"]
    assert "fallbacks" not in found


@pytest.mark.parametrize("restricted_first", [True, False])
def test_a_call_id_that_is_given_twice_frees_no_restricted_request(restricted_first: bool) -> None:
    """A caller chooses its call id: another's request with the same one does not let a restricted answer escalate."""
    asked: list[str] = []

    async def again(route: Route, *_: Any) -> None:
        asked.append(route.model)

    async def run() -> None:
        hook = hook_of(HOME_IS_COMPLEX, Tier.SIMPLE, validators=[lambda *_: False])
        hook._ask_again = again  # type: ignore[method-assign]
        key = SimpleNamespace(metadata={}, token="t")
        body = {"model": "auto", "messages": [{"role": "user", "content": "hi"}], "litellm_call_id": "same"}
        restricted = body | {"metadata": {"classifier_labels": {"data": "restricted"}}}
        sent = [restricted, body] if restricted_first else [body, restricted]
        for data in sent:
            await hook.async_pre_call_hook(key, None, data, "acompletion")
        await hook.async_post_call_success_hook(restricted, key, "bad")
        await hook.close()

    asyncio.run(run())
    assert asked == []


@pytest.mark.failure("a bad routing table", "LiteLLM hook")
def test_the_proxy_does_not_start_with_a_bad_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hook raises where the proxy makes it as it starts, and names the entry at fault."""
    (tmp_path / "routing.toml").write_text("[routes.huge]\nmodel = 'x'")
    (tmp_path / "bad_hook.py").write_text(
        "from classifier.gateways.litellm import ClassifierHook\nhook = ClassifierHook(routes='routing.toml')"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=r"\[routes.huge\]: unknown tier"):
        get_instance_fn("bad_hook.hook", config_file_path=str(tmp_path / "config.yaml"))


@pytest.mark.failure("a bad routing table", "LiteLLM hook")
def test_a_table_that_changes_is_taken_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A model that is no more on premises gets no restricted request, and a broken table changes nothing."""
    routes = tmp_path / "routing.toml"
    routes.write_text("[routes.complex]\nmodel = 'large'\non_premises = true\n")
    hook = deepcopy(ClassifierHook(f"unix:{tmp_path}/nobody", routes=routes))  # as LiteLLM copies its configuration

    async def goes_to(model: str, call: str) -> str | None:
        data = {"model": model, "messages": [{"role": "user", "content": "hi"}], "metadata": dict(RESTRICTED)}
        try:
            return str((await hook.async_pre_call_hook(SimpleNamespace(), None, data, call))["model"])
        except Refused:
            return None

    async def run() -> None:
        assert [await goes_to("auto", "acompletion"), await goes_to("large", "aembedding")] == ["large", "large"]
        routes.write_text("[routes.complex")
        assert [await goes_to("auto", "acompletion"), await goes_to("large", "aembedding")] == ["large", "large"]
        routes.write_text("[routes.complex]\nmodel = 'large'\n")
        assert [await goes_to("auto", "acompletion"), await goes_to("large", "aembedding")] == [None, None]
        await hook.close()

    asyncio.run(run())
    [said] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said.endswith("the routes there were stay")
