"""LiteLLM's proxy: a hook that routes every chat request, and a classifier for its complexity router.

    # classifier_hook.py, beside the proxy's config.yaml (litellm_settings: callbacks: classifier_hook.hook)
    hook = ClassifierHook("127.0.0.1:50051", routes="routing.toml")

Before a call the hook asks for the tier and writes the table's model into the request. After it, validators may judge
the answer: a chat completion that is not good enough is asked again a tier higher, but for a stream, which its caller
has already. What judges say is QUALITY; what follows an exception is AVAILABILITY, CONTEXT_WINDOW or POLICY; a plain
success is no verdict. Outcomes are sent behind the request's back.

The hook never fails a request, but one: a restricted request that has no route on premises. Needs `litellm`.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Any

from litellm.integrations.custom_logger import CustomLogger

from classifier.client import CLASSIFY_SECONDS, AsyncClient
from classifier.errors import NoAllowedRoute
from classifier.fallback import Answer
from classifier.gateways.asking import Asker, beside, chars_of
from classifier.gateways.chat import Loops, Remembered, cause_of_exception, has_words, tier_of_model
from classifier.gateways.judging import Validator, escalate, judged
from classifier.gateways.litellm_plugin import ComplexityClassifier
from classifier.gateways.litellm_requests import (
    BY_MODEL,
    Refused,
    Routed,
    asked,
    calls_of,
    confine,
    left,
    mark,
    marks,
    names_repeated,
    outcome_of,
    said_of,
    told,
)
from classifier.gateways.outbox import Outbox
from classifier.gateways.settings import Latest, names_of, tier_of
from classifier.routing import Route, RoutingTable, is_restricted, read_table
from classifier.types import Cause, Outcome, Source, Tier, Verdict

__all__ = ["ClassifierHook", "ComplexityClassifier", "Refused"]

CALLS = frozenset({"completion", "acompletion", "anthropic_messages", "aresponses", "responses"})
_CHATS = frozenset({"completion", "acompletion"})
"""Calls whose answers are chat completions, the shape of what is asked for again."""
_CONTINUED = "CONTINUED"
"""Why nobody is asked: the step goes on where its loop is."""
REMEMBERED = 10_000
DRAIN_SECONDS = 60.0


class ClassifierHook(CustomLogger):  # type: ignore[misc]
    """Routes by tier. Keep one for the life of the proxy's process.

    Args:
        target: the classifier, as `AsyncClient` takes it.
        routes: the routing table, or its file, read again when it changes; its models are the proxy's model names.
        models: the names that are routed, such as `auto`; None routes every chat request.
        on_premises: more models that restricted requests may name, such as those for embeddings.
        policy: of the bundle; empty means its default.
        floor: no request is routed cheaper, unless it is restricted and would have no route then. None explores freely.
        fallback_tier: where nothing comes back in time.
        timeout_seconds: deadline of one classification.
        sticky: inside a running tool loop a request is never routed cheaper than its loop was before.
        validators: judges of answers. One False escalates to the next tier, and so on; a stream is only judged.
        judge: who the validators are.
        options: more arguments of `AsyncClient`: `token`, `tls_ca`, ...
    """

    def __init__(
        self,
        target: str = "127.0.0.1:50051",
        *,
        routes: RoutingTable | str | Path,
        models: Collection[str] | None = ("auto",),
        on_premises: Collection[str] = (),
        policy: str = "",
        floor: Tier | None = None,
        fallback_tier: Tier = Tier.COMPLEX,
        timeout_seconds: float = CLASSIFY_SECONDS,
        sticky: bool = False,
        validators: Sequence[Validator] = (),
        judge: Source = Source.AUTOMATIC,
        **options: Any,
    ) -> None:
        super().__init__()
        self._routes = routes if isinstance(routes, RoutingTable) else Latest("routes", read_table, routes)
        self.counts: Counter[str] = Counter()
        self._models = None if models is None else names_of(models)
        self._on_premises = names_of(on_premises)
        self._fallback_tier = tier_of("fallback_tier", fallback_tier)
        self._floor = None if floor is None else tier_of("floor", floor)
        self._policy, self._sticky, self._validators, self._judge = policy, sticky, tuple(validators), judge
        given = {"target": target, "timeout_seconds": timeout_seconds, "fallback_tier": fallback_tier}
        self._arguments = options | given
        AsyncClient(**self._arguments)  # what is wrong with these is told while the proxy starts
        self._routed: Remembered[Routed] = Remembered(REMEMBERED)
        self._loops = Loops(REMEMBERED)
        self.outbox = Outbox(self._send)

    @property
    def table(self) -> RoutingTable:
        """The routing table of the moment."""
        return self._routes if isinstance(self._routes, RoutingTable) else self._routes()

    @cached_property
    def client(self) -> AsyncClient:
        """The client, kept from the first request on: none can be copied, as LiteLLM copies its configuration."""
        return AsyncClient(routes=self.table, **self._arguments)

    @cached_property
    def _asker(self) -> Asker:
        return Asker(self.client, self._fallback_tier, lambda: self.table)

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
        self.outbox.attend()  # it learns on which loop to send what other threads report
        labels, off = asked(user_api_key_dict, data)
        restricted, model = is_restricted(labels), str(data.get("model") or "")
        wanted = call_type in CALLS and (self._models is None or model in self._models)
        if restricted:
            confine(data)
            at_home = model in self._on_premises or any(r.on_premises and r.model == model for r in self.table)
            if not wanted and call_type in BY_MODEL and at_home:
                return data
            if call_type not in CALLS:
                self.counts["refused"] += 1
                raise Refused(f"data=restricted: {call_type} for {model!r} is not known to stay on premises")
        elif not wanted:
            return data
        elif off:
            self.counts["opted_out"] += 1
            return data
        name, caller = uuid.uuid4().hex, str(getattr(user_api_key_dict, "token", "") or "")
        try:
            answer = await self._answer(data, labels, name, caller)
        except NoAllowedRoute as error:
            self.counts["refused"] += 1
            raise Refused(str(error)) from error
        data["model"] = answer.route or model
        mark(data, name)
        repeated = names_repeated(data) if call_type in _CHATS else frozenset()
        self._routed.put(name, Routed(answer, answer.tier, data["model"], restricted, repeated, caller))
        self.counts["classified" if answer.classified else answer.fallback] += 1
        return data

    async def _answer(self, data: Mapping[str, Any], labels: Mapping[str, str], request_id: str, caller: str) -> Answer:
        """The answer to a request; where the hook is sticky, not below what its tool loop had."""
        messages = data.get("messages") or data.get("input")
        before = await beside(data, self._loops.tier, messages, caller) if self._sticky else None
        if before is not None and not has_words(messages):  # nobody can tell a tier by results alone
            return self._asker.stay(before, _CONTINUED, restricted=is_restricted(labels), chars=chars_of(data))
        floor = max((tier for tier in (self._floor, before) if tier), default=None)
        answer = await self._asker.ask(data, labels, floor=floor, policy=self._policy, request_id=request_id)
        if self._sticky:
            await beside(data, self._loops.put, messages, caller, answer.tier)
        return answer

    async def async_post_call_response_headers_hook(
        self,
        data: dict[str, Any],
        user_api_key_dict: Any,  # noqa: ARG002
        response: Any,
        request_headers: dict[str, str] | None = None,  # noqa: ARG002
    ) -> dict[str, str] | None:
        """Tier and decision id in the response's headers, a stream's too, and the tier that answered."""
        if (routed := self._of(data)) is None:
            return None
        routed.answered = routed.answered or response is not None
        return told(routed)

    async def async_post_call_success_deployment_hook(
        self,
        request_data: dict[str, Any],
        response: Any,  # noqa: ARG002
        call_type: Any,  # noqa: ARG002
    ) -> None:
        """Remembers that a model answered; not a verdict."""
        if routed := self._of(request_data):
            routed.answered = True

    async def async_post_call_success_hook(self, data: dict[str, Any], user_api_key_dict: Any, response: Any) -> Any:
        """Has the answer judged; where a chat completion is not good enough, asks again higher up and gives that."""
        routed = self._of(data)
        self._remember(routed, response)
        if routed is None or routed.escalating or not self._validators:
            return response
        routed.answered = True
        verdict = await judged(self._validators, data, response)
        if verdict is None:
            return response
        if verdict or not routed.repeated:
            said = Verdict.ACCEPTED if verdict else Verdict.REJECTED
            self._report(routed, said, Cause.QUALITY, source=self._judge)
            return response

        messages = data.get("messages")
        higher = await escalate(
            self.table,
            routed.tier,
            lambda route: self._ask_again(route, routed, data, user_api_key_dict),
            lambda answer: judged(self._validators, data, answer),
            model=routed.model,
            restricted=routed.restricted,
            chars=chars_of(data),
        )
        self._report(routed, higher.verdict, Cause.QUALITY, source=self._judge, accepted_tier=higher.accepted_tier)
        if higher.tier is None:
            return response
        routed.served = higher.tier
        if self._sticky:
            self._loops.put(messages, routed.caller, higher.tier)
        return higher.answer

    async def _ask_again(self, route: Route, routed: Routed, data: dict[str, Any], key: Any) -> Any:
        """The route's answer, after the proxy's guardrails have seen it too; raises where there is none."""
        from litellm.proxy.proxy_server import llm_router, proxy_logging_obj

        body = {name: copy(data[name]) for name in routed.repeated & data.keys()}
        answer = await llm_router.acompletion(model=route.model, disable_fallbacks=True, **body)
        routed.escalating = True
        try:
            return await proxy_logging_obj.post_call_success_hook(data=data, response=answer, user_api_key_dict=key)
        finally:
            routed.escalating = False

    async def async_log_success_event(
        self,
        kwargs: dict[str, Any],
        response_obj: Any,
        start_time: Any,  # noqa: ARG002
        end_time: Any,  # noqa: ARG002
    ) -> None:
        """Has a stream judged when it has ended."""
        routed = self._of(kwargs)
        if routed is None or not kwargs.get("stream") or left(kwargs):
            return
        answer = kwargs.get("async_complete_streaming_response") or response_obj
        self._remember(routed, answer)
        verdict = await judged(self._validators, kwargs, answer)
        if verdict is not None:
            said = Verdict.ACCEPTED if verdict else Verdict.REJECTED
            self._report(routed, said, Cause.QUALITY, source=self._judge)

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
        self._report_exception(routed, original_exception, answered=routed.answered)

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
            self._report_exception(routed, error)

    async def log_success_fallback_event(
        self, original_model_group: str, kwargs: dict[str, Any], original_exception: Exception
    ) -> None:
        """The proxy fell back after an exception, the other model answered: from now on judges speak of its tier."""
        if (routed := self._of(kwargs)) is None:
            return
        if not routed.fell_back:  # of fallbacks that fell back themselves the one that answered is told of first
            routed.fell_back, routed.model = True, str(kwargs.get("model"))
            routed.served = tier_of_model(self.table, routed.model)
        if original_model_group == routed.answer.route:
            self._report_exception(routed, original_exception)

    async def log_failure_fallback_event(
        self,
        original_model_group: str,
        kwargs: dict[str, Any],
        original_exception: Exception,
    ) -> None:
        """The proxy fell back after an exception, and the other model failed too."""
        routed = self._of(kwargs)
        if routed is not None and original_model_group == routed.answer.route:
            self._report_exception(routed, original_exception)

    def feedback(
        self, decision_id: str, tier: Tier, *, accepted: bool, source: Source = Source.USER, outcome_id: str = ""
    ) -> None:
        """Reports what was said of an answer, by the id in its headers; from any thread, sent once requests came.

        The same word again changes nothing, another one counts instead; for a third give an `outcome_id` of its own.
        """
        self.outbox.put(said_of(decision_id, tier, accepted=accepted, source=source, outcome_id=outcome_id))

    def _remember(self, routed: Routed | None, response: Any) -> None:
        """Where the hook is sticky: the calls of an answer, whose results the next step may bring alone."""
        if routed is not None and self._sticky:
            for call in calls_of(response):
                self._loops.put_call(call, routed.caller, routed.answer.tier)

    def _of(self, data: Mapping[str, Any]) -> Routed | None:
        return next((routed for name in marks(data) if (routed := self._routed.get(name))), None)

    def _report_exception(self, routed: Routed, error: BaseException, *, answered: bool = False) -> None:
        if (cause := cause_of_exception(error, answered=answered)) is not None:
            self._report(routed, Verdict.REJECTED, cause)

    def _report(self, routed: Routed, verdict: Verdict, cause: Cause, **fields: Any) -> None:
        outcome = outcome_of(routed, verdict, cause, **fields)
        if outcome is not None:
            self.outbox.put(outcome)

    async def _send(self, outcome: Outcome) -> None:
        await self.client.report_outcome(outcome)

    async def close(self) -> None:
        """Sends what waits and closes the connections."""
        await self.outbox.drain(DRAIN_SECONDS)
        await self.client.close()
