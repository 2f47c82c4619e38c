"""A real LiteLLM proxy process with the hook, keys and guardrails, between fake upstreams and a real server."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.gateways.support import Classifier, Upstream, chat, free_port, listens, post, post_each, process, until

MODELS = {"small": "simple", "medium": "standard", "large": "complex", "huge": "frontier"}
"""The model of each tier; `large` is on premises."""
KEYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "other": {},
    "opted-out": {"metadata": {"classifier": "off"}},
    "restricted": {"metadata": {"classifier_labels": {"data": "restricted"}}},
    "restricted-team": {"team_metadata": {"classifier_labels": {"data": "restricted"}}},
}
"""What the proxy knows of each key."""

HOOK = """
import collections, json, pathlib
from classifier.gateways.litellm import ClassifierHook, ComplexityClassifier
from classifier.types import Tier

def good_enough(data, response):
    return None if "unjudged" in str(data["messages"]) else "not sure" not in str(response)

routes = "{folder}/routing.toml"
# Nothing is late where tests run, but what is asked to be: it takes 5 s, longer than `quick` and `plugin` wait.
hook = ClassifierHook("{address}", routes=routes, sticky=True, validators=[good_enough], timeout_seconds=10)
quick = ClassifierHook("{address}", routes=routes, models=["quick"], timeout_seconds=3)
usual = ClassifierHook("{address}", routes=routes, models=["usual"])
forgetful = ClassifierHook("{address}", routes=routes, models=["forgetful"], timeout_seconds=10)
floored = ClassifierHook("{address}", routes=routes, models=["floored"], floor=Tier.COMPLEX, policy="default",
                         timeout_seconds=10)
plugin = ComplexityClassifier("{address}", timeout_seconds=3)

class Written(collections.Counter):
    def __setitem__(self, name, value):
        super().__setitem__(name, value)
        pathlib.Path("{folder}/counts.json").write_text(json.dumps(self))

quick.counts = Written()
"""
AUTH = """
from litellm.proxy._types import UserAPIKeyAuth

KEYS = {keys}

async def by_key(request, api_key):
    if api_key not in KEYS:
        raise ValueError("unknown key")
    return UserAPIKeyAuth(api_key=api_key, **KEYS[api_key])
"""
GUARDRAILS = """
from fastapi import HTTPException
from litellm.exceptions import GuardrailRaisedException
from litellm.integrations.custom_guardrail import CustomGuardrail

ERRORS = {
    "by-status": lambda: HTTPException(400, "no"),
    "by-name": lambda: GuardrailRaisedException("answers", "no"),
    "by-value": lambda: ValueError("no"),
}

def judge(data, what):
    for word, error in ERRORS.items():
        if f"{what} {word}" in str(data.get("messages")):
            raise error()

class Requests(CustomGuardrail):
    async def async_pre_call_hook(self, user_api_key_dict, cache, data, call_type):
        judge(data, "bad request")

class Answers(CustomGuardrail):
    async def async_post_call_success_hook(self, data, user_api_key_dict, response):
        judge(data, "bad answer")
        if "only the cheap answer passes" in str(data.get("messages")) and "not sure" not in str(response):
            raise HTTPException(400, "no")

    async def async_post_call_streaming_iterator_hook(self, user_api_key_dict, response, request_data):
        async for chunk in response:
            yield chunk
        judge(request_data, "bad answer")
"""


class Proxy:
    """Everything of one test run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.upstream, self.port = folder, Upstream(), free_port()
        self.classifier = Classifier(folder)
        self._keys = {name: f"sk-{secrets.token_hex(16)}" for name in KEYS}
        (folder / "config.yaml").write_text(json.dumps(self._config()))  # JSON is YAML
        table = [
            f'[routes.{tier}]\nmodel = "{model}"\non_premises = {str(model == "large").lower()}\n'
            for model, tier in MODELS.items()
        ]
        (folder / "routing.toml").write_text("\n".join(table))
        (folder / "classifier_hook.py").write_text(HOOK.format(address=self.classifier.address, folder=folder))
        keys = {self._keys[name]: known for name, known in KEYS.items()}
        (folder / "classifier_auth.py").write_text(AUTH.format(keys=keys))
        (folder / "classifier_guardrails.py").write_text(GUARDRAILS)
        environment = LITELLM_ENVIRONMENT | {"LITELLM_MASTER_KEY": f"sk-{secrets.token_hex(32)}"}
        environment |= {"ANTHROPIC_API_BASE": f"http://127.0.0.1:{self.upstream.port}", "ANTHROPIC_API_KEY": "none"}
        self._process = process(
            litellm_command(folder / "config.yaml", self.port), folder / "litellm.log", **environment
        )
        running = self._process.__enter__()
        until(lambda: listens(self.port) or running.poll() is not None, 400)
        assert running.poll() is None, (folder / "litellm.log").read_text()[-4000:]

    def _config(self) -> dict[str, Any]:
        base = {"api_base": f"http://127.0.0.1:{self.upstream.port}/v1", "api_key": "none"}
        names = [*MODELS, "spare", "auto", "quick", "usual", "forgetful", "floored"]
        models: list[dict[str, Any]] = [
            {"model_name": name, "litellm_params": {"model": f"openai/{name}", **base}} for name in names
        ]
        tiers = dict(zip(("SIMPLE", "MEDIUM", "COMPLEX", "REASONING"), MODELS, strict=True))
        plugin = {"tiers": tiers, "classifier_type": "custom", "classifier_plugin": "classifier_hook.plugin"}
        plugin |= {"classifier_fallback": "default_model", "default_model": "large"}
        params = {"model": "auto_router/complexity_router", "complexity_router_config": plugin}
        models.append({"model_name": "by-plugin", "litellm_params": params})
        guardrails = [
            {
                "guardrail_name": kind.lower(),
                "litellm_params": {
                    "guardrail": f"classifier_guardrails.{kind}",
                    "mode": mode,
                    "default_on": True,
                },
            }
            for kind, mode in (("Requests", "pre_call"), ("Answers", "post_call"))
        ]
        hooks = [f"classifier_hook.{name}" for name in ("hook", "quick", "usual", "forgetful", "floored")]
        return {
            "model_list": models,
            "guardrails": guardrails,
            "litellm_settings": {"callbacks": hooks, "num_retries": 0, "request_timeout": 30},
            "general_settings": {"custom_auth": "classifier_auth.by_key"},
            "router_settings": {
                "fallbacks": [{"medium": ["large"]}, {"small": ["spare"]}, {"large": ["huge"]}],
                "context_window_fallbacks": [{"small": ["large"]}, {"large": ["huge"]}],
                "disable_cooldowns": True,
                "num_retries": 0,
            },
        }

    def ask(self, prompt: str, **more: Any) -> tuple[int, dict[str, str], Any]:
        """(status, headers, body) of a chat request to `auto`, or another `model`; `key` and `headers` are not sent."""
        headers, key = more.pop("headers", {}), more.pop("key", "plain")
        return self.send(chat(prompt, **more), key=key, **headers)

    def send(
        self, body: dict[str, Any], path: str = "/v1/chat/completions", key: str = "plain", **headers: str
    ) -> tuple[int, dict[str, str], Any]:
        """(status, headers, body) of a request."""
        url = f"http://127.0.0.1:{self.port}{path}"
        return post(url, body, authorization=f"Bearer {self._keys[key]}", **headers)

    def send_each(
        self, body: dict[str, Any], headers: Iterable[tuple[str, str]] = (), path: str = "/v1/chat/completions"
    ) -> tuple[int, dict[str, str]]:
        """(status, headers) of a request that sends each header as often as it is listed, and leaves then."""
        authorization = ("authorization", f"Bearer {self._keys['plain']}")
        return post_each(f"http://127.0.0.1:{self.port}{path}", body, [authorization, *headers])

    def outcomes(self, decision_id: str) -> list[tuple[Any, ...]]:
        """(verdict, cause, served tier, accepted tier) of the decision's outcomes, once there are any."""
        where = f"WHERE decision_id = '{decision_id}'"
        until(lambda: self.classifier.rows(f"SELECT 1 FROM outcomes {where}"))
        return self.reported(decision_id)

    def reported(self, decision_id: str) -> list[tuple[Any, ...]]:
        """(verdict, cause, served tier, accepted tier) of the outcomes that the decision has now."""
        return self.classifier.rows(
            f"SELECT verdict, cause, served_tier, accepted_tier FROM outcomes WHERE decision_id = '{decision_id}'"
        )

    def counts(self) -> dict[str, int]:
        """What the hook `quick` counted."""
        path = self.folder / "counts.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def stop(self) -> None:
        """Ends everything."""
        self._process.__exit__(None, None, None)
        self.classifier.close()
        self.upstream.close()


LITELLM_ENVIRONMENT = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "*"}
"""So that the proxy asks the network for nothing."""


def litellm_command(config: Path, port: int) -> list[str]:
    """The proxy's command."""
    program = str(Path(sys.executable).parent / "litellm")
    return [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
