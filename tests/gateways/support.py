"""Fake upstreams on loopback, processes that are waited for, and a look into the feedback store."""

from __future__ import annotations

import contextlib
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
import urllib.request
from collections.abc import Callable, Iterator
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


class Upstream:
    """An OpenAI- and Anthropic-like provider. `small` answers badly where a prompt holds `hard`; `down` models fail."""

    def __init__(self) -> None:
        self.down: set[str] = set()
        self.seen: list[dict[str, Any]] = []
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
                bad = model == "small" and "hard" in json.dumps(body.get("messages"))
                answer: dict[str, Any] = {
                    "id": "x",
                    "object": "chat.completion",
                    "created": 1,
                    "model": model,
                    "choices": [
                        {
                            "index": 0,
                            "finish_reason": "stop",
                            "message": {"role": "assistant", "content": BAD if bad else GOOD},
                        }
                    ],
                    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
                }
                if model in upstream.down:
                    answer = {"error": {"message": "out of order", "type": "server_error", "code": 503}}
                text = json.dumps(answer).encode()
                self.send_response(503 if model in upstream.down else 200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

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

    def models(self) -> list[str]:
        """The models that were asked, in order."""
        return [str(body.get("model")) for body in self.seen]

    def close(self) -> None:
        """Stops."""
        self._server.shutdown()
        self._server.server_close()


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
        """Starts it, and waits until it listens."""
        log = (self.folder / "classifier.log").open("ab")
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.gateways.fake_classifier",
                f"listen={self.address}",
                f"feedback_url=sqlite:///{self.store}",
                f"key_file={self.folder / 'server.key'}",
                "max_wait_seconds=30",
            ],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env=clean_environment(),
        )
        log.close()
        until(lambda: listens(self.port) or self.process is None or self.process.poll() is not None)
        assert self.process.poll() is None, (self.folder / "classifier.log").read_text()

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


def _read(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return raw.decode(errors="replace")


def chat(prompt: str, model: str = "auto", **more: Any) -> dict[str, Any]:
    """A chat completion's body."""
    return {"model": model, "messages": [{"role": "user", "content": prompt}], **more}
