"""Fake upstreams on loopback, processes that are waited for, and a look into the feedback store."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BAD = "I am not sure."
GOOD = "Here is the answer."


def until(condition: Callable[[], object], seconds: float = 90.0) -> None:
    """Polls until the condition holds; fails after the deadline."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.02)


def free_port() -> int:
    """A free port below those that the kernel hands out, so that no connection takes it meanwhile."""
    while True:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


STATUS_OF = {"unavailable": 503, "limited": 429, "too long": 400, "broken off": 200, "stuck": 200}
"""What may be wrong with a model, and the status that it answers with then; one that is `gone` hangs up, and a stream
that is `stuck` says no more until nobody listens."""
_MESSAGES = {
    "unavailable": "out of order",
    "limited": "slow down",
    "too long": "This model's maximum context length is 10 tokens. Please reduce the length of the messages.",
}


class Upstream:
    """An OpenAI- and Anthropic-like provider, streams included. `small` answers badly where a prompt holds `hard`.

    Attributes:
        wrong: what is wrong with a model (a key of `STATUS_OF`, or `gone`), and for how many requests; None means all.
        seen: every body that came, with its headers.
        left: nobody listens any more to a stream that was stuck.
    """

    def __init__(self) -> None:
        self.wrong: dict[str, tuple[str, int | None]] = {}
        self.seen: list[dict[str, Any]] = []
        self.left = threading.Event()
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self._body()
                try:
                    body = json.loads(raw)
                except ValueError:
                    body = {"model": "unreadable", "bytes": len(raw)}
                upstream.seen.append(body | {"headers": {k.lower(): v for k, v in self.headers.items()}})
                model = str(body.get("model"))
                wrong = upstream.what_is_wrong(model)
                if wrong == "gone":
                    self.close_connection = True
                    return
                text = BAD if _is_bad(body) else GOOD
                if body.get("stream") and STATUS_OF.get(wrong, 200) == 200:
                    self._stream(model, text, wrong, body)
                    return
                answer = _response(model, text, body) if self.path.endswith("/responses") else _answer(model, text)
                if wrong in _MESSAGES:
                    code = "context_length_exceeded" if wrong == "too long" else STATUS_OF[wrong]
                    answer = {"error": {"message": _MESSAGES[wrong], "type": "server_error", "code": code}}
                text = json.dumps(answer).encode()
                self.send_response(STATUS_OF.get(wrong, 200))
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def _stream(self, model: str, text: str, wrong: str, body: dict[str, Any]) -> None:
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("connection", "close")
                self.end_headers()
                self.close_connection = True
                of_responses = self.path.endswith("/responses")
                for word in text.split(" ")[: 2 if wrong else None]:
                    said = _chunk(model, {"role": "assistant", "content": word + " "}, None)
                    self._event(_delta(word + " ") if of_responses else said)
                if wrong == "stuck":
                    self.rfile.read(1)
                    upstream.left.set()
                elif wrong:
                    self.wfile.write(b"data: {not json\n\n")
                elif of_responses:
                    self._event({"type": "response.completed", "response": _response(model, text, body)})
                else:
                    self._event(_chunk(model, {}, "stop"))
                    self.wfile.write(b"data: [DONE]\n\n")

            def _event(self, chunk: dict[str, Any]) -> None:
                self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
                self.wfile.flush()

            def _body(self) -> bytes:
                if "chunked" not in self.headers.get("transfer-encoding", ""):
                    return self.rfile.read(int(self.headers.get("content-length") or 0))
                chunks = []
                while size := int(self.rfile.readline(), 16):
                    chunks.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(chunks)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def what_is_wrong(self, model: str) -> str:
        """What is wrong with the model for the request that came; counts it."""
        wrong, left = self.wrong.get(model, ("", None))
        if left is not None:
            self.wrong[model] = (wrong, left - 1)
            if left < 1:
                return ""
        return wrong

    @contextlib.contextmanager
    def ill(self, what: str, *models: str, times: int | None = None) -> Iterator[None]:
        """Something is wrong with the models inside the block, or for so many requests."""
        self.wrong = dict.fromkeys(models, (what, times))
        try:
            yield
        finally:
            self.wrong = {}

    def models(self) -> list[str]:
        """The models that were asked, in order."""
        return [str(body.get("model")) for body in self.seen]

    def close(self) -> None:
        """Stops."""
        self._server.shutdown()
        self._server.server_close()


def _is_bad(body: dict[str, Any]) -> bool:
    return body.get("model") == "small" and "hard" in json.dumps([body.get("messages"), body.get("input")])


def _answer(model: str, text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }


def _response(model: str, text: str, body: dict[str, Any]) -> dict[str, Any]:
    """A message, or where tools were offered a call of the first, by an id of its own."""
    content = [{"type": "output_text", "text": text, "annotations": []}]
    message = {"type": "message", "id": "m", "status": "completed", "role": "assistant", "content": content}
    if tools := body.get("tools"):
        call_id = f"call_{random.randrange(10**9)}"
        message = {"type": "function_call", "id": "f", "call_id": call_id, "name": tools[0]["name"], "arguments": "{}"}
    return {
        "id": "x",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "model": model,
        "output": [message],
        "usage": {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15},
    }


def _delta(text: str) -> dict[str, Any]:
    place = {"item_id": "m", "output_index": 0, "content_index": 0}
    return {"type": "response.output_text.delta", "delta": text, **place}


def _chunk(model: str, delta: dict[str, Any], finish: str | None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": model, "choices": [choice]}


class Classifier:
    """The fake-model server as a process that can be killed and comes back on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.store = folder / "feedback.db"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it, and waits until it serves: from when it listens until then it turns requests away."""
        log = (self.folder / "classifier.log").open("wb")
        running = self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.gateways.fake_classifier",
                f"listen={self.address}",
                f"feedback_url=sqlite:///{self.store}",
                f"key_file={self.folder / 'server.key'}",
                "max_wait_seconds=30",
                "cores=8",  # one that is slow keeps no other from its answer
            ],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env=clean_environment(),
        )
        log.close()
        said = (self.folder / "classifier.log").read_text
        until(lambda: "serving on" in said() or running.poll() is not None)
        assert running.poll() is None, said()

    def kill(self) -> None:
        """Kills it without warning."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """Ends it."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """The store cannot be written inside the block: another holds its lock."""
        with contextlib.closing(sqlite3.connect(self.store, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
            other.execute("ROLLBACK")

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """What the store holds."""
        with contextlib.closing(sqlite3.connect(f"file:{self.store}?mode=ro", uri=True)) as connection:
            return connection.execute(statement).fetchall()


def clean_environment(**more: str) -> dict[str, str]:
    """The environment without settings of ours and without proxies, with the checkout importable."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CLASSIFIER_") and "proxy" not in k.lower()}
    return kept | {"PYTHONPATH": str(ROOT)} | more


def listens(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def process(arguments: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its output in a file, ended when the block is left."""
    with log.open("wb") as output:
        running = subprocess.Popen(
            arguments, stdout=output, stderr=output, cwd=log.parent, env=clean_environment(**environment)
        )
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(20)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def post(url: str, body: Any, **headers: str) -> tuple[int, dict[str, str], Any]:
    """(status, headers with lower-case names, body) of a POST."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json", **names})
    try:
        with _direct.open(request, timeout=60) as response:
            return response.status, {k.lower(): v for k, v in response.headers.items()}, _read(response.read())
    except urllib.error.HTTPError as error:
        return error.code, {k.lower(): v for k, v in error.headers.items()}, _read(error.read())


def post_each(url: str, body: Any, headers: Iterable[tuple[str, str]]) -> tuple[int, dict[str, str]]:
    """(status, headers) of a POST that sends each header as often as it is listed, and leaves before the body."""
    parts = urllib.parse.urlsplit(url)
    data = json.dumps(body).encode()
    with contextlib.closing(http.client.HTTPConnection(parts.netloc, timeout=60)) as connection:
        connection.putrequest("POST", parts.path)
        for name, value in (("content-type", "application/json"), ("content-length", str(len(data))), *headers):
            connection.putheader(name, value)
        connection.endheaders(data)
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.headers.items()}


def _read(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return raw.decode(errors="replace")


def chat(prompt: str, model: str = "auto", **more: Any) -> dict[str, Any]:
    """A chat completion's body."""
    return {"model": model, "messages": [{"role": "user", "content": prompt}], **more}
