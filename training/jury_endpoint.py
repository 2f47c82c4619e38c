"""An OpenAI-compatible chat-completions endpoint: paced, tried again where that may help, and patient when told to be.
The home of `httpx`.

What may pass by itself is tried again: no connection, a time-out, 408, 409, 425, 429, 5xx, and a 200 that is no chat
completion, as of a proxy in between; after 2^n seconds up to a minute, drawn from the upper half of that, and never
before a `Retry-After`. A 429 or a `Retry-After` holds back every question, not only its own. What will not pass by
itself ends the run (the key, the path, the model) or the question (a case too long, or not wanted). A 403 is of the
key or of the case: of the case where it says so, and where the model has answered before.

Knows nothing of rubrics, votes or files.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import email.utils
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import httpx

from classifier.addresses import is_local, shown_url
from classifier.errors import InputError, ServerUnreachable
from training.jury_bodies import Response, code_of, is_moderated, response_of

MOST_TRIES = 8
LONGEST_BACKOFF = 60.0
LONGEST_WAIT = 900.0
"""Seconds; an endpoint that wants more time than this is asked another day."""
LARGEST_ANSWER = 8 << 20
"""Bytes; far more than any model writes, and what an endpoint gone wrong may put into memory."""
_PASSING = frozenset({408, 409, 425, 429})
_FINAL = {
    401: "the key is not accepted; give the name of the variable that holds it with --api-key-env",
    402: "the account has no money left; what is answered is kept",
    403: "the key may not do this",
    404: "there is no such path or model; give --base-url up to /v1, and --model as the endpoint spells it",
    405: "there is no such path; give --base-url up to /v1",
}
_SPENT = frozenset({"insufficient_quota", "billing_hard_limit_reached"})

Sleep = Callable[[float], Awaitable[None]]


class QuestionRefused(Exception):
    """The endpoint will not answer this question, whoever asks again; the text says why and quotes nothing."""


class NoAnswer(Exception):
    """So many tries brought nothing; later may."""


class NotPut(Exception):
    """No more questions were wanted when this one's turn came."""


class _Heard(NamedTuple):
    """An HTTP response, read to its end."""

    status: int
    headers: httpx.Headers
    body: bytes


class Pace:
    """When the next question may be put: so many a minute at most, and none while the endpoint wants a rest.

    Args:
        a_minute: most questions a minute; None for no limit.
        sleep: waits so many seconds.
        clock: seconds, growing.
    """

    def __init__(
        self, a_minute: float | None, *, sleep: Sleep = asyncio.sleep, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._apart = 60.0 / a_minute if a_minute else 0.0
        self._sleep, self._clock = sleep, clock
        self._next = self._rest_until = -math.inf

    async def turn(self) -> None:
        """Returns when this question may be put."""
        while True:
            now = self._clock()
            at = max(now, self._next, self._rest_until)
            self._next = at + self._apart
            if at > now:
                await self._sleep(at - now)
            if self._rest_until <= self._clock():
                return  # else a rest began meanwhile, and this question takes its place behind it

    def rest(self, seconds: float) -> None:
        """No question for so long."""
        self._rest_until = max(self._rest_until, self._clock() + seconds)


def checked_url(base_url: str) -> httpx.URL:
    """The URL of an endpoint, up to `/v1`.

    Raises:
        InputError: it cannot be used.
    """
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL:  # its text quotes what it takes for a port, and a password may be
        url = httpx.URL()
    if url.scheme not in ("http", "https") or not url.host or url.userinfo:
        raise InputError("--base-url: expected http:// or https://, a host, and the path up to /v1, without a password")
    return url


class Endpoint:
    """Asks one endpoint.

    Args:
        url: from `checked_url`.
        key: sent as a bearer token; empty sends none.
        body: further members of each request, such as `temperature`.
        pace: when questions may be put.
        timeout: seconds for one answer, from the question to its last byte.
        connections: at once.
        sleep: waits so many seconds.
        seed: of what is drawn: how long to wait.
    """

    def __init__(
        self,
        url: httpx.URL,
        *,
        key: str = "",
        body: Mapping[str, Any] | None = None,
        pace: Pace | None = None,
        timeout: float = 120.0,
        connections: int = 8,
        sleep: Sleep = asyncio.sleep,
        seed: int | None = None,
    ) -> None:
        self._url = url.copy_with(path=f"{url.path.rstrip('/')}/chat/completions")
        self._shown = shown_url(str(self._url))
        self._body = {name: value for name, value in (body or {}).items() if value is not None}
        self._pace = pace or Pace(None, sleep=sleep)
        self._sleep = sleep
        self._timeout = timeout
        self._random = random.Random(seed)
        self._stopped = asyncio.Event()
        self._answered: set[str] = set()
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(timeout, connect=min(10.0, timeout), pool=None),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
            headers={"authorization": f"Bearer {key}"} if key else {},
            # A proxy for the web, where the environment names one, is not asked for what is on this machine.
            mounts={f"all://{url.netloc.decode()}": None} if is_local(f"{url.host}:0") else {},
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    def stop(self) -> None:
        """No more questions are put: those that wait for their turn, however long a rest is, end now."""
        self._stopped.set()

    async def ask(self, model: str, messages: Sequence[Mapping[str, str]]) -> Response:
        """The answer to a conversation.

        Args:
            model: as the endpoint names it.
            messages: of the conversation.

        Raises:
            NotPut: `stop` was called before its turn came.
            QuestionRefused: not to this one, ever.
            NoAnswer: not now.
            InputError: not to anything: the key, the path or the model is not right.
            ServerUnreachable: the endpoint wants a longer rest than anybody waits.
        """
        request = {"model": model, "messages": list(messages), **self._body}
        problem = ""
        for tried in range(MOST_TRIES):
            wait = min(LONGEST_BACKOFF, 2.0**tried) * self._random.uniform(0.5, 1.0)
            await self._unless_stopped(self._pace.turn())
            try:
                heard = await self._post(request)
            except (TimeoutError, httpx.TimeoutException):
                problem = "no answer in time"
            except httpx.DecodingError:
                problem = "an answer that cannot be read"
            except httpx.HTTPError as error:
                problem = f"no connection ({type(error).__name__})"
            else:
                if heard.status == httpx.codes.OK and (response := response_of(heard.body)) is not None:
                    self._answered.add(model)
                    return response
                problem = self._problem(heard, model)
                told = self._told_to_wait(heard)
                if told or heard.status == httpx.codes.TOO_MANY_REQUESTS:
                    self._pace.rest(max(wait, told))
                    continue
            if tried < MOST_TRIES - 1:
                await self._unless_stopped(self._sleep(wait))
        raise NoAnswer(f"{self._shown}: {problem}, {MOST_TRIES} times")

    async def _post(self, request: Mapping[str, Any]) -> _Heard:
        """Puts a question. httpx bounds the silence between two bytes only, and no body: both are bounded here."""
        async with asyncio.timeout(self._timeout), self._client.stream("POST", self._url, json=request) as response:
            body = bytearray()
            async for part in response.aiter_bytes():
                body += part
                if len(body) > LARGEST_ANSWER:
                    raise httpx.DecodingError(f"more than {LARGEST_ANSWER} bytes")
            return _Heard(response.status_code, response.headers, bytes(body))

    async def _unless_stopped(self, waiting: Awaitable[None]) -> None:
        """Waits for it, or raises NotPut as soon as no more questions are put."""
        tasks = asyncio.ensure_future(waiting), asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        if self._stopped.is_set():
            raise NotPut
        await tasks[0]

    def _problem(self, heard: _Heard, model: str) -> str:
        """What is wrong, where it may pass.

        Raises:
            QuestionRefused: it will not, for this question.
            InputError: it will not, for any.
        """
        status, code = heard.status, code_of(heard.body)
        told = f"HTTP {status}" + (f" ({code})" if code else "")
        if code in _SPENT:
            raise InputError(f"{self._shown}: {told}: the account has no money left; what is answered is kept")
        if status == httpx.codes.OK:
            return f"{told} without a chat completion"
        if status == httpx.codes.FORBIDDEN and (is_moderated(heard.body) or model in self._answered):
            raise QuestionRefused(f"{told}: the case is not wanted")
        if status in _FINAL:
            raise InputError(f"{self._shown}: {told} for model {model}: {_FINAL[status]}")
        if status in _PASSING or status >= 500:
            return told
        if 400 <= status < 500:
            raise QuestionRefused(told)
        raise InputError(f"{self._shown}: {told}, expected 200; give --base-url as the endpoint has it, up to /v1")

    def _told_to_wait(self, heard: _Heard) -> float:
        """Seconds that the endpoint asks for; 0 where it asks for none.

        Raises:
            ServerUnreachable: that is too long.
        """
        seconds = retry_after(heard.headers, time.time())
        if seconds > LONGEST_WAIT:
            raise ServerUnreachable(
                f"{self._shown}: asks to come back in {seconds / 60:.0f} minutes; do, what is answered is kept"
            )
        return seconds


def retry_after(headers: Mapping[str, str], now: float) -> float:
    """Seconds that a response asks to wait: `retry-after-ms`, or `Retry-After` in seconds or as a date; 0 for none.

    A date is one of the endpoint's clock: the response's own `Date` is what it counts from, else `now`.

    >>> retry_after({"retry-after": "2"}, 0.0), retry_after({"retry-after": "Thu, 01 Jan 1970 00:00:09 GMT"}, 4.0)
    (2.0, 5.0)
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        try:
            seconds = float(text) * unit
        except ValueError:
            continue
        return max(0.0, seconds) if math.isfinite(seconds) else 0.0
    moment, sent = _moment(headers.get("retry-after", "")), _moment(headers.get("date", ""))
    return 0.0 if moment is None else max(0.0, moment - (now if sent is None else sent))


def _moment(text: str) -> float | None:
    """Seconds since the epoch of a date as HTTP writes it; None for what is none."""
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)).timestamp()
