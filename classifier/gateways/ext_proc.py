"""Envoy's external processor: reads the body of a chat request, sets the headers that routes match on.

    :path, headers ─▶ request_headers ─▶ left alone, or "send the body"
    body           ─▶ request_body    ─▶ x-classifier-tier, -decision-id, the model header, perhaps the body's model
    status         ─▶ response_headers ─▶ the same headers for the caller; an outage is reported as AVAILABILITY

One stream is one HTTP request. A request is never failed, but one: a restricted request without a route on premises,
as is every one that is no chat, gets 403. What a caller sends under our own headers' names is removed. Needs the extra
`envoy` (`xds-protos`).
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc

from classifier.addresses import is_local
from classifier.client import CLASSIFY_SECONDS, AsyncClient
from classifier.errors import InvalidRequest, MissingExtra, NoAllowedRoute, SettingsError
from classifier.fallback import Answer
from classifier.gateways.asking import Asker
from classifier.gateways.chat import (
    DATA_HEADER,
    FALLBACK_HEADER,
    ID_HEADER,
    SWITCH_HEADER,
    TIER_HEADER,
    headers_of,
    is_off,
    is_outage,
    labels_of,
)
from classifier.gateways.outbox import Outbox
from classifier.gateways.settings import GatewaySettings, Latest, read_token
from classifier.lifetime import first_signal, print_ready
from classifier.listening import ALONE, bind
from classifier.routing import RoutingTable, is_restricted, read_table
from classifier.types import Cause, Outcome, Source, Tier, Verdict

try:
    from envoy.config.core.v3 import base_pb2 as core
    from envoy.extensions.filters.http.ext_proc.v3 import processing_mode_pb2 as mode
    from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
    from envoy.service.ext_proc.v3 import external_processor_pb2_grpc as pb_grpc
    from envoy.type.v3 import http_status_pb2
except ImportError as missing:
    raise MissingExtra(
        "Envoy's protos are not installed; pip install 'request-complexity-classifier[envoy]'"
    ) from missing

PATHS = ("/chat/completions", "/messages", "/responses")
MODEL_HEADER = "x-ai-eg-model"
"""The header that Envoy AI Gateway routes on."""
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a token of RFC 9110, section 5.6.2
_BODY_REASON = "BODY_UNREADABLE"
DRAIN_SECONDS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtProcSettings(GatewaySettings):
    """What the external processor is told, beside what every gateway is. Checked when made.

    Attributes:
        server_token_file: file of the bearer token shown to the server.
        routes: routing table, read again when it changes; empty sets no model.
        fallback_tier: where nothing comes back in time, and for bodies that are larger than `max_request_bytes`.
        model_header: what the model's name is written to.
        rewrite_body: write the model into the body too, where that names one.
        insecure: listen where other machines reach it, without TLS.
    """

    listen: str = "127.0.0.1:50061"
    timeout_seconds: float = CLASSIFY_SECONDS
    server_token_file: str = ""
    routes: str = ""
    fallback_tier: Tier = Tier.COMPLEX
    model_header: str = MODEL_HEADER
    rewrite_body: bool = False
    insecure: bool = False

    def __post_init__(self) -> None:
        GatewaySettings.__post_init__(self)
        if not is_local(self.listen) and not self.insecure:
            raise SettingsError(
                f"listen: {self.listen} can be reached by other machines, and Envoy sends prompts there without TLS; "
                "listen on 127.0.0.1 or a unix socket beside Envoy, or say --insecure"
            )
        if not _HEADER_NAME.fullmatch(self.model_header):
            told = f"model_header: {self.model_header!r} is no header's name"
            raise SettingsError(f"{told}; give letters, digits and hyphens, such as {MODEL_HEADER}")
        if self.rewrite_body and not self.routes:
            raise SettingsError("--rewrite-body needs --routes: without a table no model is known for a tier")


class Processor(pb_grpc.ExternalProcessorServicer):  # type: ignore[misc]
    """Envoy's calls → the client's answers.

    Args:
        client: with a fallback tier.
        settings: what to write where.
        routes: the routing table of the moment; None sets no model.
    """

    def __init__(
        self, client: AsyncClient, settings: ExtProcSettings, routes: Callable[[], RoutingTable] | None = None
    ) -> None:
        self._asker, self._settings = Asker(client, settings.fallback_tier, routes), settings
        self.outbox = Outbox(client.report_outcome)

    async def Process(  # noqa: N802 - the proto's name
        self, request_iterator: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[Any]:
        """One HTTP request: an answer to each of its parts that Envoy sends."""
        del context
        headers: Mapping[str, str] = {}
        labels: Mapping[str, str] = {}
        answer: Answer | None = None
        async for message in request_iterator:
            part = message.WhichOneof("request")
            if part == "request_headers":
                headers, labels = _headers(message.request_headers), _labels(message.request_headers)
                has_body = not message.request_headers.end_of_stream
                if has_body and is_restricted(labels) and not _is_chat(headers):
                    yield _refusal(NoAllowedRoute("data=restricted: only chat requests have routes on premises"))
                    return
                yield self._clean(read_body=has_body and _is_wanted(headers, labels))
            elif part == "request_body":
                try:
                    answer, body = await self._answer(labels, message.request_body.body)
                except NoAllowedRoute as error:
                    yield _refusal(error)
                    return
                yield self._routed(answer, body)
                if not message.request_body.end_of_stream:
                    # Envoy does not hold it whole. Where the end came meanwhile, with nothing before it, Envoy (1.40)
                    # sends that on only when the stream ends: the request would hang until it is given up.
                    return
            elif part == "response_headers":
                status = _headers(message.response_headers).get(":status", "")
                if answer is not None and is_outage(status):
                    self._report_outage(answer)  # first: Envoy ends the stream as soon as it has the last answer
                told = headers_of(answer) if answer else {}
                yield pb.ProcessingResponse(response_headers=pb.HeadersResponse(response=_common(told)))
            else:
                yield _untouched(part)

    async def _answer(self, labels: Mapping[str, str], raw: bytes) -> tuple[Answer, dict[str, Any] | None]:
        """(answer, the body where it could be read).

        Raises:
            NoAllowedRoute: the request is restricted and has no route on premises.
        """
        try:
            body = _parsed(raw, self._settings.max_request_bytes)
        except InvalidRequest:
            return self._asker.fall_back(_BODY_REASON, restricted=is_restricted(labels), chars=len(raw)), None
        # Not the caller's x-request-id: two requests of one id would be one decision.
        return await self._asker.ask(body, labels, request_id=uuid.uuid4().hex), body

    def _clean(self, *, read_body: bool) -> Any:
        """Removes what a caller forged; asks for the body, or not.

        Envoy forgets the route that it took before. Of a body that comes after this answer, or is larger than its
        buffer, it sends the first bytes on before it forgets any route for the answer to the body.
        """
        forged = [TIER_HEADER, ID_HEADER, FALLBACK_HEADER]
        if read_body:  # else nobody writes it anew; the model may be the server's where no table is here
            forged.append(self._settings.model_header)
        response = pb.ProcessingResponse(
            request_headers=pb.HeadersResponse(
                response=pb.CommonResponse(
                    header_mutation=pb.HeaderMutation(remove_headers=forged), clear_route_cache=True
                )
            )
        )
        if not read_body:
            none = mode.ProcessingMode
            response.mode_override.CopyFrom(
                mode.ProcessingMode(request_body_mode=none.NONE, response_header_mode=none.SKIP)
            )
        return response

    def _routed(self, answer: Answer, body: dict[str, Any] | None) -> Any:
        told = headers_of(answer)
        if answer.route:
            told[self._settings.model_header] = answer.route
        response = _common(told)
        response.clear_route_cache = True
        if self._settings.rewrite_body and answer.route and body is not None and "model" in body:
            text = _encoded({**body, "model": answer.route})
            if text is not None:
                response.body_mutation.body = text
                response.header_mutation.set_headers.append(_header("content-length", str(len(text))))
        return pb.ProcessingResponse(request_body=pb.BodyResponse(response=response))

    def _report_outage(self, answer: Answer) -> None:
        decision = answer.decision
        if decision is None or not decision.decision_id:
            return
        self.outbox.put(
            Outcome(
                decision.decision_id,
                f"{decision.decision_id[:200]}:availability",
                Verdict.REJECTED,
                Cause.AVAILABILITY,
                Source.AUTOMATIC,
                answer.tier,
            )
        )


def _parsed(raw: bytes, limit: int) -> dict[str, Any]:
    """The object that a body holds.

    Raises:
        InvalidRequest: it is too large, or no JSON object.
    """
    if len(raw) > limit:
        raise InvalidRequest("body", f"has {len(raw)} bytes, the limit is {limit}")
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise InvalidRequest("body", "is not JSON, or was cut") from None
    if not isinstance(body, dict):
        raise InvalidRequest("body", "is not an object")
    return body


def _encoded(body: Mapping[str, Any]) -> bytes | None:
    """A body as JSON; all but ASCII is escaped where it holds half a character, which UTF-8 cannot.

    None where a number is too large for JSON to say it again.
    """
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return json.dumps(body, allow_nan=False).encode()
    except ValueError:
        return None


def _headers(message: Any) -> dict[str, str]:
    """By name in lower case; of one that came several times the last."""
    return {header.key.lower(): _value(header) for header in message.headers.headers}


def _labels(message: Any) -> dict[str, str]:
    return labels_of(sent=[_value(header) for header in message.headers.headers if header.key.lower() == DATA_HEADER])


def _value(header: Any) -> str:
    return str(header.raw_value.decode("utf-8", "replace") if header.raw_value else header.value)


def _is_chat(headers: Mapping[str, str]) -> bool:
    path = headers.get(":path", "").partition("?")[0].rstrip("/")
    # A message that is put into a thread of OpenAI's assistants is no chat: nothing answers it.
    return headers.get(":method") == "POST" and path.endswith(PATHS) and "/threads/" not in path


def _is_wanted(headers: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a request goes to a chat API and did not opt out; a restricted one cannot."""
    return _is_chat(headers) and (is_restricted(labels) or not is_off(headers.get(SWITCH_HEADER)))


def _header(name: str, value: str) -> Any:
    return core.HeaderValueOption(
        header=core.HeaderValue(key=name, raw_value=value.encode()),
        append_action=core.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
    )


def _common(told: Mapping[str, str]) -> Any:
    return pb.CommonResponse(
        header_mutation=pb.HeaderMutation(set_headers=[_header(name, value) for name, value in told.items()])
    )


def _refusal(error: NoAllowedRoute) -> Any:
    text = json.dumps({"error": {"type": error.reason, "message": str(error)}}).encode()
    return pb.ProcessingResponse(
        immediate_response=pb.ImmediateResponse(
            status=http_status_pb2.HttpStatus(code=http_status_pb2.Forbidden),
            headers=pb.HeaderMutation(set_headers=[_header("content-type", "application/json")]),
            body=text,
            details="no_allowed_route",
        )
    )


def _untouched(part: str) -> Any:
    if part.endswith("trailers"):
        return pb.ProcessingResponse(**{part: pb.TrailersResponse()})
    return pb.ProcessingResponse(**{part: pb.BodyResponse()})


async def _serve(
    settings: ExtProcSettings, routes: Callable[[], RoutingTable] | None, token: str | Callable[[], str]
) -> signal.Signals:
    # However large a body Envoy buffers, it gets an answer, the fallback where it is over `max_request_bytes`: a
    # stream that gRPC ends goes on unrouted.
    unlimited = [(f"grpc.max_{way}_message_length", -1) for way in ("receive", "send")]
    async with AsyncClient(
        settings.address,
        fallback_tier=settings.fallback_tier,
        timeout_seconds=settings.timeout_seconds,
        routes=routes() if routes else None,
        token=token,
        tls_ca=settings.server_ca or None,
        tls_cert=settings.server_cert or None,
        tls_key=settings.server_key or None,
    ) as client:
        processor = Processor(client, settings, routes)
        server = grpc.aio.server(options=[*unlimited, ALONE])
        try:
            pb_grpc.add_ExternalProcessorServicer_to_server(processor, server)
            address = bind(server, settings.listen)
            await server.start()
            told = first_signal()
            print_ready([address])
            ended_by = await told
        finally:  # one that is left to its loop's end would write into freed memory when it is called after that
            await server.stop(DRAIN_SECONDS)
        await processor.outbox.drain(DRAIN_SECONDS)
    return ended_by


def run(settings: ExtProcSettings) -> signal.Signals:
    """Serves until SIGTERM or SIGINT, and returns which it was.

    Raises:
        SettingsError: the address cannot be had, or a file cannot be read.
    """
    settings.credentials()  # names the file that cannot be read, which the client does not
    routes = Latest("routes", read_table, settings.routes) if settings.routes else None
    token = Latest("tokens", read_token, settings.server_token_file) if settings.server_token_file else ""
    return asyncio.run(_serve(settings, routes, token))
