"""LiteLLM's proxy: a hook that routes every chat request, and a classifier for its complexity router.

    # classifier_hook.py, beside the proxy's config.yaml (litellm_settings: callbacks: classifier_hook.hook)
    hook = ClassifierHook("127.0.0.1:50051", routes="routing.toml")

Before a call the hook asks for the tier and writes the table's model into the request. After it, validators may judge
the answer: one that is not good enough is asked again a tier higher. What judges say is QUALITY; what follows an
exception is AVAILABILITY, CONTEXT_WINDOW or POLICY; a plain success is no verdict. Outcomes are sent behind the
request's back.

The hook never fails a request, but one: a restricted request that has no route on premises. Needs `litellm`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from litellm.integrations.custom_logger import CustomLogger

from classifier.client import AsyncClient
from classifier.conversations import request_of_body
from classifier.errors import ClassifierError, InvalidRequest, NoAllowedRoute
from classifier.fallback import Answer
from classifier.gateways.chat import (
    DATA_HEADER,
    SWITCH_HEADER,
    Remembered,
    cause_of_exception,
    headers_of,
    is_off,
    labels_of,
    loop_start,
    tier_of_model,
    tool_loop,
)
from classifier.routing import RoutingTable, is_restricted, read_table
from classifier.types import Cause, Outcome, Source, Tier, Verdict

HOOK_SECONDS = 0.025
CALLS = frozenset({"completion", "acompletion", "anthropic_messages", "aresponses", "responses"})
REMEMBERED = 10_000
WAITING_OUTCOMES = 10_000
REPORT_ATTEMPTS = 8
Validator = Callable[[Mapping[str, Any], Any], "bool | Awaitable[bool | None] | None"]
"""Judges (the request's data, the answer): True is good enough, False is not, None is no opinion."""

_log = logging.getLogger("classifier.gateways.litellm")


class Refused(NoAllowedRoute):
    """A restricted request without a route on premises: the proxy answers 403."""

    status_code = 403


@dataclass(slots=True)
class Routed:
    """What the hook remembers of a request.

    Attributes:
        answer: what was answered.
        answered: whether a model answered, so that a guardrail's no is about the answer.
        restricted: whether it may not leave the premises.
    """

    answer: Answer
    answered: bool = False
    restricted: bool = False


class ClassifierHook(CustomLogger):  # type: ignore[misc]
    """Routes by tier. Keep one for the life of the proxy's process.

    Args:
        target: the classifier, as `AsyncClient` takes it.
        routes: the routing table or its file; its models are the proxy's model names.
        models: the names that are routed, such as `auto`; None routes every chat request.
        fallback_tier: where nothing comes back in time.
        timeout_seconds: deadline of one classification.
        sticky: inside a running tool loop a request is never routed cheaper than its loop was before.
        validators: judges of answers that are not streamed. One False escalates to the next tier, and so on.
        judge: who the validators are.
        options: more arguments of `AsyncClient`: `token`, `tls_ca`, ...
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        routes: RoutingTable | str | Path,
        models: Collection[str] | None = ("auto",),
        fallback_tier: Tier = Tier.COMPLEX,
        timeout_seconds: float = HOOK_SECONDS,
        sticky: bool = False,
        validators: Sequence[Validator] = (),
        judge: Source = Source.AUTOMATIC,
        **options: Any,
    ) -> None:
        super().__init__()
        self.table = routes if isinstance(routes, RoutingTable) else read_table(routes)
        self.counts: Counter[str] = Counter()
        self._models = None if models is None else frozenset(models)
        self._fallback_tier, self._sticky = fallback_tier, sticky
        self._validators, self._judge = tuple(validators), judge
        self._make_client: Callable[[], AsyncClient] = partial(
            AsyncClient,
            target,
            fallback_tier=fallback_tier,
            timeout_seconds=timeout_seconds,
            routes=self.table,
            **options,
        )
        self._client: AsyncClient | None = None
        self._routed: Remembered[Routed] = Remembered(REMEMBERED)
        self._loops: Remembered[Tier] = Remembered(REMEMBERED)
        self._outcomes: asyncio.Queue[Outcome] = asyncio.Queue(WAITING_OUTCOMES)
        self._sender: asyncio.Task[None] | None = None

    @property
    def client(self) -> AsyncClient:
        """The client, made on the proxy's event loop at the first request."""
        if self._client is None:
            self._client = self._make_client()
        return self._client

    async def async_pre_call_hook(
        self,
        user_api_key_dict: Any,
        cache: Any,  # noqa: ARG002
        data: dict[str, Any],
        call_type: str,
    ) -> dict[str, Any]:
        """Writes the tier's model into the request.

        Raises:
            Refused: a restricted request has no route on premises.
        """
        if call_type not in CALLS or (self._models is not None and data.get("model") not in self._models):
            return data
        key = getattr(user_api_key_dict, "metadata", None) or {}
        asked: dict[str, Any] = {}
        for name in ("metadata", "litellm_metadata"):
            if isinstance(data.get(name), dict):
                asked |= data[name]
        headers = {
            str(k).lower(): v for k, v in ((data.get("proxy_server_request") or {}).get("headers") or {}).items()
        }
        labels = labels_of(key.get("classifier_labels"), asked.get("classifier_labels"), headers.get(DATA_HEADER))
        restricted = is_restricted(labels)
        off = is_off(key.get("classifier")) or is_off(asked.get("classifier")) or is_off(headers.get(SWITCH_HEADER))
        if off and not restricted:
            self.counts["opted_out"] += 1
            return data
        messages = data.get("messages") or data.get("input")
        caller = str(getattr(user_api_key_dict, "token", "") or "")
        running = tool_loop(messages, caller) if self._sticky else ""
        answer = await self._ask(data, labels, self._loops.get(running) if running else None)
        if self._sticky and (name := loop_start(messages, caller)):
            self._loops.put(name, answer.tier)
        data["model"] = answer.route or data.get("model")
        if restricted:  # the proxy's own fallbacks know nothing of places
            data["disable_fallbacks"] = True
            data.pop("fallbacks", None)
        call_id = str(data.get("litellm_call_id") or "")
        if call_id:
            self._routed.put(call_id, Routed(answer, restricted=restricted))
        self.counts["classified" if answer.classified else answer.fallback] += 1
        return data

    async def _ask(self, data: Mapping[str, Any], labels: Mapping[str, str], floor: Tier | None) -> Answer:
        try:
            fields = {"floor": floor, "labels": labels, "request_id": str(data.get("litellm_call_id") or "")}
            return await self.client.classify(request_of_body(data, **fields))
        except NoAllowedRoute as error:
            self.counts["refused"] += 1
            raise Refused(str(error)) from error
        except Exception as error:
            code = error.status if isinstance(error, ClassifierError) else "INTERNAL"
            if not isinstance(error, InvalidRequest):
                _log.exception("the request is routed to the fallback tier")
            try:
                tier = max(self._fallback_tier, floor or self._fallback_tier)
                route = self.table.choose(tier, restricted=is_restricted(labels))
            except NoAllowedRoute as refused:
                if is_restricted(labels):
                    raise Refused(str(refused)) from error
                return Answer(self._fallback_tier, None, code)
            return Answer(route.tier, None, code, route.model)

    async def async_post_call_response_headers_hook(
        self,
        data: dict[str, Any],
        user_api_key_dict: Any,  # noqa: ARG002
        response: Any,  # noqa: ARG002
        request_headers: dict[str, str] | None = None,  # noqa: ARG002
    ) -> dict[str, str] | None:
        """Tier and decision id in the response's headers."""
        routed = self._of(data)
        return headers_of(routed.answer) if routed else None

    async def async_post_call_success_deployment_hook(
        self,
        request_data: dict[str, Any],
        response: Any,  # noqa: ARG002
        call_type: Any,  # noqa: ARG002
    ) -> None:
        """Remembers that a model answered; not a verdict."""
        if routed := self._of(request_data):
            routed.answered = True

    async def async_post_call_success_hook(
        self,
        data: dict[str, Any],
        user_api_key_dict: Any,  # noqa: ARG002
        response: Any,
    ) -> Any:
        """Has the answer judged; where it is not good enough, asks again higher up and gives that answer."""
        routed = self._of(data)
        if routed is None or not self._validators:
            return response
        routed.answered = True
        verdict = await self._judged(data, response)
        if verdict is None:
            return response
        if verdict:
            self._report(routed, data, Verdict.ACCEPTED, Cause.QUALITY, source=self._judge)
            return response
        better, accepted, escalated = await self._escalate(routed, data)
        self._report(
            routed,
            data,
            Verdict.ESCALATED if escalated else Verdict.REJECTED,
            Cause.QUALITY,
            source=self._judge,
            accepted_tier=accepted,
        )
        return response if better is None else better

    async def _judged(self, data: Mapping[str, Any], response: Any) -> bool | None:
        """False where one validator says so, True where one says so and none against, None without opinions."""
        verdict: bool | None = None
        for validator in self._validators:
            try:
                said = validator(data, response)
                said = await said if inspect.isawaitable(said) else said
            except Exception:
                _log.exception("a validator failed; it has no opinion")
                continue
            if said is False:
                return False
            verdict = True if said else verdict
        return verdict

    async def _escalate(self, routed: Routed, data: Mapping[str, Any]) -> tuple[Any, Tier | None, bool]:
        """(the last answer that came, the tier whose answer was accepted, whether a higher tier was asked)."""
        from litellm.proxy.proxy_server import llm_router

        better, tier, escalated = None, routed.answer.tier, False
        names = ["messages", "tools", "tool_choice", "temperature", "top_p", "max_tokens", "max_completion_tokens"]
        names += ["response_format", "stop", "seed", "user", "n"]
        body = {name: data[name] for name in names if name in data}
        while llm_router is not None and "messages" in body and tier < Tier.FRONTIER:
            try:
                route = self.table.choose(Tier(tier + 1), restricted=routed.restricted, floor=Tier(tier + 1))
                response = await llm_router.acompletion(model=route.model, disable_fallbacks=routed.restricted, **body)
            except Exception as error:
                if not isinstance(error, NoAllowedRoute):
                    _log.warning("escalating failed (%s); the first answer stands", type(error).__name__)
                break
            better, tier, escalated = response, route.tier, True
            if await self._judged(data, response) is not False:
                return better, tier, True
        return better, None, escalated

    async def async_post_call_failure_hook(
        self,
        request_data: dict[str, Any],
        original_exception: Exception,
        user_api_key_dict: Any,  # noqa: ARG002
        traceback_str: str | None = None,  # noqa: ARG002
    ) -> None:
        """A guardrail's no to an answer is QUALITY, to a request POLICY; an outage is AVAILABILITY."""
        routed = self._of(request_data)
        if routed is None or isinstance(original_exception, Refused):
            return
        cause = cause_of_exception(original_exception)
        if cause is Cause.POLICY and routed.answered:
            cause = Cause.QUALITY
        self._report(routed, request_data, Verdict.REJECTED, cause)

    async def async_log_failure_event(
        self,
        kwargs: dict[str, Any],
        response_obj: Any,  # noqa: ARG002
        start_time: Any,  # noqa: ARG002
        end_time: Any,  # noqa: ARG002
    ) -> None:
        """An attempt followed an exception, also one that a retry mends."""
        routed, error = self._of(kwargs), kwargs.get("exception")
        if routed is not None and isinstance(error, Exception) and not routed.answered:
            self._report(routed, kwargs, Verdict.REJECTED, cause_of_exception(error))

    async def log_success_fallback_event(
        self, original_model_group: str, kwargs: dict[str, Any], original_exception: Exception
    ) -> None:
        """The proxy fell back after an exception, and the other model answered."""
        routed = self._of(kwargs)
        if routed is None or original_model_group != routed.answer.route:
            return
        other = tier_of_model(self.table, str(kwargs.get("model")))
        higher = other if other is not None and other > routed.answer.tier else None
        verdict = Verdict.ESCALATED if higher else Verdict.REJECTED
        self._report(routed, kwargs, verdict, cause_of_exception(original_exception), accepted_tier=higher)

    async def log_failure_fallback_event(
        self,
        original_model_group: str,
        kwargs: dict[str, Any],
        original_exception: Exception,
    ) -> None:
        """The proxy fell back after an exception, and the other model failed too."""
        routed = self._of(kwargs)
        if routed is not None and original_model_group == routed.answer.route:
            self._report(routed, kwargs, Verdict.REJECTED, cause_of_exception(original_exception))

    def feedback(
        self, decision_id: str, tier: Tier, *, accepted: bool, source: Source = Source.USER, outcome_id: str = ""
    ) -> None:
        """Reports what a person, a test or a judge said of an answer, by the id in its headers."""
        verdict = Verdict.ACCEPTED if accepted else Verdict.REJECTED
        self._enqueue(
            Outcome(decision_id, outcome_id or f"{decision_id}:{source.name}", verdict, Cause.QUALITY, source, tier)
        )

    def _of(self, data: Mapping[str, Any]) -> Routed | None:
        params = data.get("litellm_params")
        nested = params.get("litellm_call_id") if isinstance(params, Mapping) else None
        return self._routed.get(str(data.get("litellm_call_id") or nested or ""))

    def _report(
        self,
        routed: Routed,
        data: Mapping[str, Any],
        verdict: Verdict,
        cause: Cause,
        *,
        source: Source = Source.AUTOMATIC,
        accepted_tier: Tier | None = None,
    ) -> None:
        """One outcome a request and cause: every attempt of an outage tells of it, and it counts once."""
        decision = routed.answer.decision
        if decision is None or not decision.decision_id:
            return
        call_id = str(data.get("litellm_call_id") or decision.decision_id)[:128]
        self._enqueue(
            Outcome(
                decision.decision_id,
                f"{call_id}:{cause.name.lower()}",
                verdict,
                cause,
                source,
                routed.answer.tier,
                accepted_tier,
            )
        )

    def _enqueue(self, outcome: Outcome) -> None:
        try:
            self._outcomes.put_nowait(outcome)
        except asyncio.QueueFull:
            self.counts["outcomes_dropped"] += 1
            return
        if self._sender is None or self._sender.done():
            self._sender = asyncio.get_running_loop().create_task(self._send())

    async def _send(self) -> None:
        """Sends what waits; an outcome that cannot be delivered for a while is counted and given up."""
        while not self._outcomes.empty():
            outcome = self._outcomes.get_nowait()
            for attempt in range(REPORT_ATTEMPTS):
                try:
                    await self.client.report_outcome(outcome)
                    self.counts["outcomes_sent"] += 1
                    break
                except ClassifierError as error:
                    if error.status not in {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}:
                        _log.warning("an outcome was not taken: %s", error)
                        self.counts["outcomes_refused"] += 1
                        break
                    await asyncio.sleep(min(10.0, 0.25 * 2**attempt))
            else:
                self.counts["outcomes_lost"] += 1

    async def close(self) -> None:
        """Sends what waits and closes the connections."""
        if self._sender is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._sender
        if self._client is not None:
            await self._client.close()


class ComplexityClassifier:
    """A `ClassifierPlugin` for LiteLLM's complexity router (`classifier_type: custom`).

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
        timeout_seconds: float = HOOK_SECONDS,
        **options: Any,
    ) -> None:
        self._names = names
        self._make_client: Callable[[], AsyncClient] = partial(
            AsyncClient, target, timeout_seconds=timeout_seconds, **options
        )
        self._client: AsyncClient | None = None

    async def classify(self, context: Any) -> str | None:
        """The router's tier of a request; None lets its fallback decide."""
        if self._client is None:
            self._client = self._make_client()
        try:
            body = {"messages": [dict(m) for m in context.structured_messages or context.raw_messages]}
            answer = await self._client.classify(request_of_body(body))
        except ClassifierError as error:
            _log.info("left to the router's own fallback: %s", error.status)
            return None
        return self._names.get(answer.tier)
