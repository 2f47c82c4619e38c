"""A real LiteLLM proxy process with the hook, fake upstreams on loopback, and a real server that can be killed."""

from __future__ import annotations

import importlib.util
import json
import secrets
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

if importlib.util.find_spec("litellm") is None:  # importing it takes seconds and asks the network for prices
    pytest.skip("run by `make test-litellm`", allow_module_level=True)

from classifier.types import Cause, Tier, Verdict
from tests.gateways.support import BAD, GOOD, Classifier, Upstream, chat, free_port, listens, post, process, until

MODELS = {"small": "simple", "medium": "standard", "large": "complex", "huge": "frontier"}
AVAILABILITY = Cause.AVAILABILITY
ESCALATED_QUALITY = (Verdict.ESCALATED, Cause.QUALITY, Tier.SIMPLE, Tier.STANDARD)
HOOK = """
import collections, json, pathlib
from classifier.gateways.litellm import ClassifierHook, ComplexityClassifier
from classifier.types import Tier

def good_enough(data, response):
    text = response.choices[0].message.content
    return None if "unjudged" in str(data["messages"]) else "not sure" not in text

hook = ClassifierHook("{address}", routes="{folder}/routing.toml", sticky=True, validators=[good_enough],
                      timeout_seconds={timeout})
plugin = ComplexityClassifier("{address}", timeout_seconds=5)

class Written(collections.Counter):
    def __setitem__(self, name, value):
        super().__setitem__(name, value)
        pathlib.Path("{folder}/counts.json").write_text(json.dumps(self))

hook.counts = Written()
"""


class Proxy:
    """Everything of one test run."""

    def __init__(self, folder: Path, timeout: float) -> None:
        self.folder, self.upstream, self.port = folder, Upstream(), free_port()
        self.key = f"sk-{secrets.token_hex(32)}"
        self.classifier = Classifier(folder)
        deployments = [
            {
                "model_name": name,
                "litellm_params": {
                    "model": f"openai/{name}",
                    "api_base": f"http://127.0.0.1:{self.upstream.port}/v1",
                    "api_key": "none",
                },
            }
            for name in (*MODELS, "spare", "auto")
        ]
        tiers = dict(zip(("SIMPLE", "MEDIUM", "COMPLEX", "REASONING"), MODELS, strict=True))
        deployments.append(
            {
                "model_name": "by-plugin",
                "litellm_params": {
                    "model": "auto_router/complexity_router",
                    "complexity_router_config": {
                        "tiers": tiers,
                        "classifier_type": "custom",
                        "classifier_plugin": "classifier_hook.plugin",
                    },
                },
            }
        )
        config = {
            "model_list": deployments,
            "litellm_settings": {"callbacks": "classifier_hook.hook", "num_retries": 0, "request_timeout": 30},
            "router_settings": {"fallbacks": [{"medium": ["large"]}], "disable_cooldowns": True, "num_retries": 0},
        }
        (folder / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
        table = [
            f'[routes.{tier}]\nmodel = "{model}"\non_premises = {str(model == "large").lower()}\n'
            for model, tier in MODELS.items()
        ]
        (folder / "routing.toml").write_text("\n".join(table))
        (folder / "classifier_hook.py").write_text(
            HOOK.format(address=self.classifier.address, folder=folder, timeout=timeout)
        )
        self._process = process(
            [
                str(Path(sys.executable).parent / "litellm"),
                *("--config", str(folder / "config.yaml")),
                *("--host", "127.0.0.1", "--port", str(self.port)),
            ],
            folder / "litellm.log",
            LITELLM_LOCAL_MODEL_COST_MAP="True",
            NO_PROXY="*",
            LITELLM_MASTER_KEY=self.key,
        )
        running = self._process.__enter__()
        until(lambda: listens(self.port) or running.poll() is not None, 400)
        assert running.poll() is None, (folder / "litellm.log").read_text()[-4000:]

    def ask(self, prompt: str, **more: object):
        """(status, headers, body) of a chat request to `auto`."""
        headers = more.pop("headers", {})
        return self.send(chat(prompt, **more), **headers)

    def send(self, body: dict[str, object], **headers: str):
        """(status, headers, body) of a chat completion."""
        url = f"http://127.0.0.1:{self.port}/v1/chat/completions"
        return post(url, body, authorization=f"Bearer {self.key}", **headers)

    def outcomes(self, decision_id: str) -> list[tuple[str, ...]]:
        """(verdict, cause, served tier, accepted tier) of the decision's outcomes."""
        return self.classifier.rows(
            f"SELECT verdict, cause, served_tier, accepted_tier FROM outcomes WHERE decision_id = '{decision_id}'"
        )

    def stop(self) -> dict[str, int]:
        """Ends the proxy; what its hook counted."""
        self._process.__exit__(None, None, None)
        self.classifier.close()
        self.upstream.close()
        path = self.folder / "counts.json"
        return json.loads(path.read_text()) if path.exists() else {}


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """One proxy for the tests that break nothing for good."""
    made = Proxy(tmp_path_factory.mktemp("proxy"), timeout=10)
    yield made
    made.stop()


@pytest.mark.parametrize(
    ("prompt", "model"), [("hi", "small"), ("an email", "medium"), ("refactor it", "large"), ("prove it", "huge")]
)
def test_a_request_goes_to_the_model_of_its_tier(proxy: Proxy, prompt: str, model: str) -> None:
    """A request for `auto` is served by its tier's model, and the answer says tier and decision."""
    status, headers, body = proxy.ask(prompt)
    assert (status, proxy.upstream.models()[-1], headers["x-classifier-tier"]) == (200, model, MODELS[model])
    assert headers["x-classifier-decision-id"]
    assert body["choices"][0]["message"]["content"] == GOOD


def test_a_validator_escalates(proxy: Proxy) -> None:
    """A bad answer is asked again a tier higher: the caller gets the good one, the store a QUALITY escalation."""
    status, headers, body = proxy.ask("a hard one")
    assert (status, body["choices"][0]["message"]["content"]) == (200, GOOD)
    assert proxy.upstream.models()[-2:] == ["small", "medium"]
    until(lambda: proxy.outcomes(headers["x-classifier-decision-id"]))
    [(verdict, cause, served, accepted)] = proxy.outcomes(headers["x-classifier-decision-id"])
    assert (verdict, cause, served, accepted) == ESCALATED_QUALITY


def test_a_plain_success_is_no_verdict(proxy: Proxy) -> None:
    """Where no judge has an opinion, nothing is reported; a bad answer then stays as it is."""
    _, headers, body = proxy.ask("an unjudged hard one")
    assert body["choices"][0]["message"]["content"] == BAD
    proxy.ask("another hard one")
    until(lambda: proxy.classifier.rows("SELECT 1 FROM outcomes"))
    assert proxy.outcomes(headers["x-classifier-decision-id"]) == []


def test_an_outage_that_the_proxy_mends_is_availability(proxy: Proxy) -> None:
    """The provider fails, LiteLLM falls back, the caller is served; the store has AVAILABILITY and no QUALITY."""
    proxy.upstream.down = {"medium"}
    try:
        status, headers, _ = proxy.ask("an unjudged email")
    finally:
        proxy.upstream.down = set()
    assert (status, proxy.upstream.models()[-1]) == (200, "large")
    until(lambda: proxy.outcomes(headers["x-classifier-decision-id"]))
    assert [cause for _, cause, _, _ in proxy.outcomes(headers["x-classifier-decision-id"])] == [AVAILABILITY]


def test_an_outage_that_nobody_mends_is_availability(proxy: Proxy) -> None:
    """The provider fails and there is no fallback: the caller sees it, the store has AVAILABILITY."""
    before = proxy.classifier.rows("SELECT count(*) FROM outcomes")[0][0]
    proxy.upstream.down = {"huge"}
    try:
        status, _, _ = proxy.ask("prove it, unjudged")
    finally:
        proxy.upstream.down = set()
    assert status >= 500
    until(lambda: proxy.classifier.rows("SELECT count(*) FROM outcomes")[0][0] > before)
    assert proxy.classifier.rows("SELECT cause FROM outcomes ORDER BY rowid DESC LIMIT 1") == [(AVAILABILITY,)]


def test_a_request_may_opt_out(proxy: Proxy) -> None:
    """With `x-classifier: off`, or under another model's name, a request is left alone."""
    status, headers, _ = proxy.ask("prove it", headers={"x-classifier": "off"})
    assert (status, proxy.upstream.models()[-1], "x-classifier-tier" in headers) == (200, "auto", False)
    status, headers, _ = proxy.ask("prove it", model="spare")
    assert (status, proxy.upstream.models()[-1], "x-classifier-tier" in headers) == (200, "spare", False)


def test_a_restricted_request_stays_on_premises(proxy: Proxy) -> None:
    """`data=restricted` goes to the one route on premises, also when that is down and the body asks for another."""
    restricted = {"x-classifier-data": "restricted"}
    proxy.ask("hi", headers=restricted)
    assert proxy.upstream.models()[-1] == "large"
    seen = len(proxy.upstream.seen)
    proxy.upstream.down = {"large"}
    try:
        status, _, _ = proxy.ask("hi, unjudged", headers=restricted, fallbacks=["spare"])
    finally:
        proxy.upstream.down = set()
    assert status >= 500
    assert set(proxy.upstream.models()[seen:]) == {"large"}


def test_a_tool_loop_never_gets_cheaper(proxy: Proxy) -> None:
    """Inside a running tool loop the tier of its start is kept, whatever the classifier says now."""
    tools = [{"type": "function", "function": {"name": "run", "parameters": {"type": "object", "properties": {}}}}]
    call = {"id": "1", "type": "function", "function": {"name": "run", "arguments": "{}"}}
    loop = [
        {"role": "user", "content": "refactor this"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "ok"},
    ]
    proxy.send({"model": "auto", "messages": loop[:1], "tools": tools})
    _, headers, _ = proxy.send({"model": "auto", "messages": loop, "tools": tools})
    assert headers["x-classifier-tier"] == "complex"


def test_the_complexity_router_asks_the_plugin(proxy: Proxy) -> None:
    """LiteLLM's own complexity router with `classifier_type: custom` routes by our tier."""
    for prompt, model in (("hi", "small"), ("prove that it halts", "huge")):
        status, _, _ = proxy.ask(prompt, model="by-plugin")
        assert (status, proxy.upstream.models()[-1]) == (200, model)


@pytest.mark.parametrize(
    ("requests", "kills"), [(60, 1), pytest.param(1000, 10, marks=[pytest.mark.faults, pytest.mark.timeout(900)])]
)
def test_killing_the_classifier_loses_no_request(tmp_path: Path, requests: int, kills: int) -> None:
    """The classifier is killed and restarted under load: no request fails, and each says whether it was classified."""
    made = Proxy(tmp_path, timeout=0.25)
    done = threading.Semaphore(0)

    def one(number: int) -> tuple[int, dict[str, str]]:
        status, headers, _ = made.ask(f"email number {number}, unjudged")
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
            made.classifier.kill()
            wait_for(step)
            made.classifier.start()
        answers = [future.result() for future in futures]
    counts = made.stop()
    fallbacks = [h["x-classifier-fallback"] for _, h in answers if "x-classifier-fallback" in h]
    classified = [h["x-classifier-decision-id"] for _, h in answers if "x-classifier-decision-id" in h]
    print(f"{requests} requests, {kills} kills: {len(classified)} classified, {len(fallbacks)} fell back; {counts}")
    assert [status for status, _ in answers] == [200] * requests
    assert len(classified) + len(fallbacks) == requests
    assert counts.get("classified", 0) == len(classified) == len(set(classified))
    assert sum(counts.values()) == requests
    assert fallbacks
    assert classified
