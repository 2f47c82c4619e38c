"""How an endpoint is asked: paced, again where that may help, and never past what it says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("httpx")

from classifier.errors import InputError, ServerUnreachable
from tests.jury_support import completion, endpoint
from training.jury_endpoint import MOST_TRIES, Endpoint, NoAnswer, Pace, QuestionRefused, checked_url, retry_after

MESSAGES = [{"role": "system", "content": "rubric"}, {"role": "user", "content": '{"case": "0"}'}]


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


def ask(url: str, clock: Clock, **settings):
    """One question, and what came of it."""

    async def put():
        pace = Pace(None, sleep=clock.sleep, clock=clock)
        async with Endpoint(checked_url(url), pace=pace, sleep=clock.sleep, seed=0, **settings) as asked:
            return await asked.ask("m", MESSAGES)

    return asyncio.run(put())


def test_question_is_put_as_the_api_takes_it():
    """Model, messages and further members are sent, the key as a bearer token, and the usage is read."""
    with endpoint(lambda _: completion("yes", read=7, written=3)) as server:
        found = ask(server.url + "/", Clock(), key="secret", body={"temperature": 0.5, "seed": None})
    [asked] = server.asked
    assert asked.body == {"model": "m", "messages": MESSAGES, "temperature": 0.5}
    assert asked.headers["authorization"] == "Bearer secret"
    assert (found.content, found.usage, found.cut_off) == ("yes", (7, 3), False)


def test_without_a_key_none_is_sent():
    """No authorization header without a key."""
    with endpoint(lambda _: completion("yes")) as server:
        ask(server.url, Clock())
    assert "authorization" not in server.asked[0].headers


def test_an_endpoint_of_this_machine_is_asked_through_no_proxy(monkeypatch):
    """Prompts do not go to the web's proxy on their way from this machine to itself."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with endpoint(lambda _: completion("meant")) as server, endpoint(lambda _: completion("proxy")) as proxy:
        for name in ("http_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url.removesuffix("/v1"))
        assert ask(server.url, Clock()).content == "meant"
    assert not proxy.asked


@pytest.mark.parametrize("status", [408, 429, 500, 503, 529])
def test_what_may_pass_is_tried_again_later_and_later(status):
    """A passing failure is tried again after 1, 2, 4 … seconds, drawn from the upper half of each."""
    clock = Clock()
    with endpoint(lambda a: (status, {}, {}) if a.count < 4 else completion("yes")) as server:
        assert ask(server.url, clock).content == "yes"
    assert len(server.asked) == 5
    assert all(2.0**i / 2 <= s <= 2.0**i for i, s in enumerate(clock.slept)), clock.slept


def test_retry_after_is_kept_to():
    """No question is put before the endpoint's own word, which is no try too many for being long."""
    clock = Clock()
    with endpoint(lambda a: (429, {"retry-after": "70"}, {}) if a.count < 2 else completion("yes")) as server:
        ask(server.url, clock)
    assert clock.slept == [70, 70]


def test_one_rest_holds_back_every_question():
    """Where one question is told to wait, the others wait as well, each in its turn behind it."""
    clock = Clock()
    pace = Pace(60, sleep=clock.sleep, clock=clock)

    async def turns():
        pace.rest(30)
        await asyncio.gather(*(take() for _ in range(3)))

    taken = []

    async def take():
        await pace.turn()
        taken.append(clock.now)

    asyncio.run(turns())
    assert min(taken) >= 130


def test_pace_lets_so_many_a_minute():
    """At 120 a minute questions are half a second apart."""
    clock = Clock()
    pace = Pace(120, sleep=clock.sleep, clock=clock)

    async def turns():
        for _ in range(4):
            await pace.turn()

    asyncio.run(turns())
    assert clock.slept == [0.5, 0.5, 0.5]


def test_endpoint_that_wants_too_long_a_rest_ends_the_run():
    """An hour is too long to wait: the error says when to come back."""
    with (
        endpoint(lambda _: (429, {"retry-after": "3600"}, {})) as server,
        pytest.raises(ServerUnreachable, match="come back in 60 minutes"),
    ):
        ask(server.url, Clock())


@pytest.mark.parametrize("body", [b"", b"<html>", [], {}, {"choices": []}, {"error": {"code": 429}}])
def test_what_is_no_completion_is_tried_again(body):
    """A 200 of another shape, such as a proxy's page, is no answer of a model: the question is put again."""
    with endpoint(lambda a: completion("yes") if a.count else (200, {}, body)) as server:
        assert ask(server.url, Clock()).content == "yes"
    with endpoint(lambda _: (200, {}, body)) as server, pytest.raises(NoAnswer, match="HTTP 200 without a chat compl"):
        ask(server.url, Clock())


def test_answer_that_trickles_in_is_too_late():
    """The time for an answer ends at its last byte, however little time passes between two of them."""

    def trickle(_: object) -> Iterator[bytes]:
        for _ in range(100):
            yield b" "
            time.sleep(0.1)

    with endpoint(lambda a: completion("yes") if a.count else (200, {}, trickle(a))) as server:
        assert ask(server.url, Clock(), timeout=2.0).content == "yes"


def test_endless_answer_is_not_kept_in_memory(monkeypatch):
    """An answer that is larger than any is left, and the question put again."""
    monkeypatch.setattr("training.jury_endpoint.LARGEST_ANSWER", 1000)
    with endpoint(lambda a: completion("yes" if a.count else "y" * 2000)) as server:
        assert ask(server.url, Clock()).content == "yes"


def test_tries_come_to_an_end():
    """After eight tries a question is given up for now, with what was last wrong."""
    with endpoint(lambda _: (502, {}, {})) as server:
        with pytest.raises(NoAnswer, match=f"HTTP 502, {MOST_TRIES} times"):
            ask(server.url, Clock())
        assert len(server.asked) == MOST_TRIES
    with pytest.raises(NoAnswer, match=r"no connection \(ConnectError\)"):
        ask(server.url, Clock())


def test_slow_answer_is_tried_again():
    """An answer that does not come in time is asked for again."""
    import threading

    late = threading.Event()
    with endpoint(lambda a: completion("yes") if a.count or late.wait(20) else completion("late")) as server:
        found = ask(server.url, Clock(), timeout=3.0)
        late.set()
    assert found.content == "yes"
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("status", "body", "error", "message"),
    [
        (401, {}, InputError, "HTTP 401 for model m: the key is not accepted"),
        (
            404,
            {"error": {"code": "model_not_found"}},
            InputError,
            r"HTTP 404 \(model_not_found\) for model m: there is no",
        ),
        (429, {"error": {"code": "insufficient_quota"}}, InputError, "the account has no money left"),
        (403, {"error": {"code": 403, "message": "no access"}}, InputError, "HTTP 403 for model m: the key may not do"),
        (
            403,
            {"error": {"code": 403, "metadata": {"reasons": ["violence"]}}},
            QuestionRefused,
            "HTTP 403: the case is",
        ),
        (
            403,
            {"error": {"message": "Your chosen model requires moderation"}},
            QuestionRefused,
            "HTTP 403: the case is",
        ),
        (
            403,
            {"error": {"code": "content_policy_violation"}},
            QuestionRefused,
            r"HTTP 403 \(content_policy_violation\)",
        ),
        (302, {}, InputError, "HTTP 302, expected 200"),
        (400, {"error": {"code": "context_length_exceeded"}}, QuestionRefused, r"HTTP 400 \(context_length_exceeded\)"),
        (413, b"<html>", QuestionRefused, "HTTP 413"),
    ],
)
def test_what_will_not_pass_is_not_tried_again(status, body, error, message):
    """A wrong key, path or model ends the run, an unwanted case its question, after one try."""
    with endpoint(lambda _: (status, {}, body)) as server:
        with pytest.raises(error, match=message):
            ask(server.url, Clock(), key="secret")
        assert len(server.asked) == 1


def test_a_403_of_a_model_that_has_answered_is_of_the_case():
    """A key that one question was answered with may ask: what is forbidden then is the case, whatever the body says."""

    async def put(server):
        async with Endpoint(checked_url(server.url)) as asked:
            await asked.ask("m", MESSAGES)
            with pytest.raises(QuestionRefused, match="HTTP 403: the case is not wanted"):
                await asked.ask("m", MESSAGES)
            with pytest.raises(InputError, match="HTTP 403 for model other: the key may not do this"):
                await asked.ask("other", MESSAGES)

    with endpoint(lambda a: (403, {}, b"") if a.count else completion("yes")) as server:
        asyncio.run(put(server))


def test_errors_quote_neither_prompt_nor_key():
    """What an endpoint says in sentences may hold the prompt, so only its short word is passed on."""
    body = {"error": {"message": 'cannot read {"case"', "code": 'bad {"case": "0"}', "type": "invalid_request_error"}}
    with endpoint(lambda _: (400, {}, body)) as server, pytest.raises(QuestionRefused) as refused:
        ask(server.url, Clock(), key="secret")
    assert str(refused.value) == "HTTP 400 (invalid_request_error)"


@pytest.mark.parametrize(
    ("status", "headers"), [(502, {}), (401, {}), (403, {}), (302, {}), (402, {}), (429, {"retry-after": "3600"})]
)
def test_errors_name_the_endpoint_without_its_query(status, headers):
    """A key in the query of the URL is sent, and shown in no error."""
    with endpoint(lambda _: (status, headers, {})) as server:
        with pytest.raises((NoAnswer, InputError, ServerUnreachable)) as raised:
            ask(f"{server.url}?key=secret", Clock())
        assert f"{server.url}/chat/completions: " in str(raised.value)
    assert "secret" not in str(raised.value)
    assert {asked.path for asked in server.asked} == {"/v1/chat/completions?key=secret"}


@pytest.mark.parametrize(
    "body",
    [
        {"choices": [{"message": None}]},
        {"choices": [{"message": {"content": 5}}]},
        {"choices": [{"message": {"content": None}}], "usage": {"prompt_tokens": -1, "completion_tokens": 10**400}},
    ],
)
def test_response_without_a_text_is_an_empty_one(body):
    """A completion without a text is an empty answer; what is no count of tokens is not counted."""
    with endpoint(lambda _: (200, {}, body)) as server:
        found = ask(server.url, Clock())
    assert (found.content, found.usage) == ("", (None, None))


def test_an_answer_in_parts_is_its_text():
    """Of an answer in parts the text counts, and neither thinking nor what is no part."""
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, 5, {"type": "text", "text": "[2]"}]
    with endpoint(lambda _: (200, {}, {"choices": [{"message": {"content": parts}}]})) as server:
        assert ask(server.url, Clock()).content == "[2]"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "-3"}, 0),
        ({"retry-after": "inf"}, 0),
        ({"retry-after": "soon"}, 0),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 60),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:10 GMT"}, 0),
        ({"retry-after": "Thu, 01 Jan 1970 01:00:05 GMT", "date": "Thu, 01 Jan 1970 01:00:00 GMT"}, 5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
    ],
)
def test_retry_after_is_read_as_seconds_or_date(headers, seconds):
    """`Retry-After` is seconds or a date by the endpoint's clock; what is neither asks for nothing."""
    assert retry_after(headers, now=40.0) == seconds


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://x/v1", "http://", "http://me:pw@host/v1", "http://h:x/", "http://me:pw/@h"]
)
def test_url_that_is_none_is_refused(url):
    """A base URL has a scheme and a host and no password."""
    with pytest.raises(InputError, match="--base-url: ") as refused:
        checked_url(url)
    assert "pw" not in str(refused.value)
