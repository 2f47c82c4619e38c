"""A chat-completions endpoint on loopback whose models are functions."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, Mapping[str, str], Any]
"""Status, headers, body: JSON, bytes, or bytes that come part by part."""
WORDS = {"hello": "simple", "write": "standard", "debug": "complex", "conjecture": "frontier"}


def tier_in(text: str) -> str:
    """The tier that a text's words give away."""
    return next((tier for word, tier in WORDS.items() if word in text), "simple")


def vote(case: Mapping[str, Any], tier: str, *, steering: bool = False, **more: Any) -> str:
    """A juror's answer to a case."""
    return json.dumps({"case": case["case"], "work": "what it says", "steering": steering, "tier": tier, **more})


def completion(content: str | None, *, read: int = 100, written: int = 20, finish: str = "stop") -> Answer:
    """A response with that content."""
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    return 200, {}, {"choices": [{"message": {"content": content}, "finish_reason": finish}], "usage": usage}


def honest(asked: Asked) -> Answer:
    """A juror that rates the rated message by its words."""
    return completion(vote(asked.case, tier_in(asked.text)))


@dataclass(frozen=True, slots=True)
class Asked:
    """One question as it came.

    Attributes:
        body: of the request.
        headers: of the request, names in lower case.
        count: questions before it.
        path: of the request, with its query.
    """

    body: Mapping[str, Any]
    headers: Mapping[str, str]
    count: int
    path: str

    @property
    def case(self) -> dict[str, Any]:
        """The document in the user message."""
        found: dict[str, Any] = json.loads(self.body["messages"][1]["content"])
        return found

    @property
    def text(self) -> str:
        """The rated message."""
        return str(self.case["conversation"][self.case["rated"]]["content"])


@dataclass(slots=True)
class FakeEndpoint:
    """What was asked, and where.

    Attributes:
        url: up to /v1.
        asked: every question that came, in order.
    """

    url: str
    asked: list[Asked] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        """The rated messages in order."""
        return [asked.text for asked in self.asked]


@contextlib.contextmanager
def endpoint(answer: Callable[[Asked], Answer]) -> Iterator[FakeEndpoint]:
    """Serves while the block runs; `answer` runs in the request's thread."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                asked = Asked(body, {k.lower(): v for k, v in self.headers.items()}, len(found.asked), self.path)
                found.asked.append(asked)
            known = self.path.partition("?")[0] == "/v1/chat/completions"
            status, headers, content = answer(asked) if known else (404, {}, {})
            if isinstance(content, Iterator):
                parts, length = content, {"connection": "close"}
            else:
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                parts, length = iter([data]), {"content-length": str(len(data))}
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.send_response(status)
                for name, value in {**headers, **length}.items():
                    self.send_header(name, value)
                self.end_headers()
                for part in parts:
                    self.wfile.write(part)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found = FakeEndpoint(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
