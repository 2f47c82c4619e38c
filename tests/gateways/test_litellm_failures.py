"""LiteLLM's proxy while the classifier is slow, overloaded, broken or killed: no request is lost."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.gateways.support import until

if TYPE_CHECKING:
    from tests.gateways.litellm_proxy import Proxy


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        pytest.param("slow", "DEADLINE_EXCEEDED", marks=pytest.mark.failure("slow", "LiteLLM hook")),
        pytest.param("overloaded", "RESOURCE_EXHAUSTED", marks=pytest.mark.failure("overloaded", "LiteLLM hook")),
        pytest.param("broken", "INTERNAL", marks=pytest.mark.failure("a bug", "LiteLLM hook")),
        pytest.param("a\0b", "INVALID_ARGUMENT", marks=pytest.mark.failure("bad input", "LiteLLM hook")),
    ],
    ids=["slow", "overloaded", "broken", "bad-input"],
)
def test_a_request_that_is_not_classified_goes_to_the_fallback_tier(proxy: Proxy, prompt: str, code: str) -> None:
    """It is answered by the fallback tier's model, and its headers say why."""
    status, headers, _ = proxy.ask(prompt, model="quick")
    assert (status, proxy.upstream.models()[-1]) == (200, "large")
    assert (headers["x-classifier-tier"], headers["x-classifier-fallback"]) == ("complex", code)
    assert "x-classifier-decision-id" not in headers


def test_a_hook_that_is_told_no_deadline_has_one(proxy: Proxy) -> None:
    """With the hook's defaults a slow classifier costs a request its tier and not its answer."""
    status, headers, _ = proxy.ask("slow", model="usual")
    assert (status, proxy.upstream.models()[-1]) == (200, "large")
    assert headers["x-classifier-fallback"] == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize(
    "prompt",
    [
        pytest.param("slow", marks=pytest.mark.failure("slow", "LiteLLM plugin")),
        pytest.param("overloaded", marks=pytest.mark.failure("overloaded", "LiteLLM plugin")),
        pytest.param("broken", marks=pytest.mark.failure("a bug", "LiteLLM plugin")),
        pytest.param("a\0b", marks=pytest.mark.failure("bad input", "LiteLLM plugin")),
    ],
    ids=["slow", "overloaded", "broken", "bad-input"],
)
def test_without_the_plugins_word_the_routers_own_fallback_decides(proxy: Proxy, prompt: str) -> None:
    """The complexity router goes on as it is configured to; the request is answered."""
    status, _, _ = proxy.ask(prompt, model="by-plugin")
    assert (status, proxy.upstream.models()[-1]) == (200, "large")


@pytest.mark.failure("down", "LiteLLM hook", "LiteLLM plugin")
@pytest.mark.parametrize(
    ("requests", "kills"), [(60, 1), pytest.param(1000, 10, marks=[pytest.mark.faults, pytest.mark.timeout(900)])]
)
def test_killing_the_classifier_loses_no_request(proxy: Proxy, requests: int, kills: int) -> None:
    """The classifier is killed and restarted under load: no request fails, and each says whether it was classified."""
    before = proxy.counts()
    done = threading.Semaphore(0)

    def one(number: int) -> tuple[int, dict[str, str]]:
        status, headers, _ = proxy.ask(f"email number {number}, unjudged", model="quick")
        done.release()
        return status, headers

    def wait_for(count: int) -> None:
        for _ in range(count):
            assert done.acquire(timeout=120)

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(one, number) for number in range(requests)]
        step = requests // (2 * kills + 1)
        for _ in range(kills):
            wait_for(step)
            proxy.classifier.kill()
            assert proxy.ask("prove it", model="by-plugin")[0] == 200
            wait_for(step)
            proxy.classifier.start()
        answers = [future.result() for future in futures]
    counts = {name: count - before.get(name, 0) for name, count in proxy.counts().items()}
    until(lambda: "x-classifier-decision-id" in proxy.ask("hi, unjudged")[1])
    fallbacks = [h["x-classifier-fallback"] for _, h in answers if "x-classifier-fallback" in h]
    classified = [h["x-classifier-decision-id"] for _, h in answers if "x-classifier-decision-id" in h]
    print(f"{requests} requests, {kills} kills: {len(classified)} classified, {len(fallbacks)} fell back; {counts}")
    assert [status for status, _ in answers] == [200] * requests
    assert len(classified) + len(fallbacks) == requests
    assert counts.get("classified", 0) == len(classified) == len(set(classified))
    assert sum(counts.values()) == requests
    assert fallbacks
    assert classified
