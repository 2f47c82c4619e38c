"""Servers as real processes, and certificates made on the spot, for the tests of serving."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Polls until the condition holds, less often as time goes on; fails after the deadline."""
    end, pause = time.monotonic() + seconds, 0.005
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(pause)
        pause = min(1.2 * pause, 0.05)


def limited(max_file_bytes: int | None) -> list[str]:
    """What to put before a command so that its files cannot grow beyond that, as on a full disk.

    Not `preexec_fn`, which forks: beside gRPC's threads the child of a fork may crash before it runs a program.
    """
    return [] if max_file_bytes is None else ["prlimit", f"--fsize={max_file_bytes}", "--"]


class ServerProcess:
    """`classifier serve` with arguments, its stderr collected line by line."""

    def __init__(
        self,
        *arguments: str,
        env: dict[str, str] | None = None,
        module: str = "",
        max_file_bytes: int | None = None,
    ) -> None:
        environ = {k: v for k, v in os.environ.items() if not k.startswith("CLASSIFIER_")}
        # A machine that runs tests may stand still for a moment: nothing is refused for that.
        environ["CLASSIFIER_MAX_WAIT_SECONDS"] = "30"
        if "--feedback-url" not in arguments:  # the default would be the user's own store
            environ["CLASSIFIER_STORE"] = "off"
        self.process = subprocess.Popen(
            [*limited(max_file_bytes), sys.executable, "-m", *(module or "classifier serve").split(), *arguments],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environ | (env or {}),
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    @property
    def ready_lines(self) -> list[str]:
        """The lines that say that it serves."""
        return [line for line in self.lines if line.startswith("serving on ")]

    def wait_said(self, words: str) -> str:
        """Waits for a line on stderr that holds the words, and returns it."""
        until(lambda: self._with(words) or self.process.poll() is not None)
        assert self._with(words), f"it ended with {self.process.returncode}: {self.lines}"
        return self._with(words)[0]

    def metrics_page(self) -> str:
        """The Prometheus page of a server that was started with `--metrics-listen 127.0.0.1:0`."""
        [address] = re.findall(r"metrics on ([^\s\"]+)", self.wait_said("metrics on"))
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as page:
            return page.read().decode()

    def _with(self, words: str) -> list[str]:
        return [line for line in self.lines if words in line]

    def wait_ready(self, seconds: float = 60.0) -> list[str]:
        """Waits for the line and returns its addresses."""
        until(lambda: self.ready_lines or self.process.poll() is not None, seconds)
        assert self.ready_lines, f"it ended with {self.process.returncode}: {self.lines}"
        return re.sub(r"^serving on ", "", self.ready_lines[0]).split(", ")

    def signal(self, number: int) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    def wait(self, seconds: float = 60.0) -> int:
        """The exit code."""
        code = self.process.wait(seconds)
        self._reader.join(60)
        return code

    def resident_bytes(self) -> int:
        """Resident memory now (Linux)."""
        return resident_bytes(self.process.pid)


def child_processes(pid: int) -> list[int]:
    """Process ids of its children (Linux)."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended meanwhile
            found += map(int, (task / "children").read_text().split())
    return found


def resident_bytes(pid: int) -> int:
    """Resident memory of a process (Linux)."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def server_process(
    *arguments: str, env: dict[str, str] | None = None, module: str = "", max_file_bytes: int | None = None
) -> Iterator[ServerProcess]:
    """A server process, ended when the block is left.

    Args:
        arguments: of `classifier serve`, or of `module`.
        env: variables beside the environment's.
        module: run this instead.
        max_file_bytes: every write beyond it fails, as on a full disk.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as state:  # what the user has there is not looked at
        env = {"XDG_STATE_HOME": state} | (env or {})
        server = ServerProcess(*arguments, env=env, module=module, max_file_bytes=max_file_bytes)
        try:
            yield server
        finally:
            if server.process.poll() is None:
                server.signal(signal.SIGTERM)
                try:
                    server.wait(15)
                except subprocess.TimeoutExpired:
                    server.process.kill()
            server.wait()  # also where the test killed it: a pipe must not be closed while its reader reads
            for pipe in (server.process.stdout, server.process.stderr):
                assert pipe is not None
                pipe.close()


def port_nobody_is_given() -> int:
    """A free port of this machine below those that the kernel hands out, so that no connection takes it meanwhile."""
    while True:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


_NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


def make_certificates(folder: Path, *names: str) -> None:
    """An authority (`ca.pem`) and for each name a certificate for localhost it signed (`NAME.pem`, `NAME.key`)."""
    folder.mkdir(parents=True, exist_ok=True)
    # Python 3.13 trusts no authority that does not say what its key is for.
    own = ["-subj", "/CN=test", "-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    _openssl(folder, "req", "-x509", *_NEW_KEY, "-days", "2", *own, "-keyout", "ca.key", "-out", "ca.pem")
    for name in names:
        sign_certificate(folder, name, f"/CN={name}", f"DNS:localhost,DNS:{name},IP:127.0.0.1")


def sign_certificate(folder: Path, name: str, subject: str, alternatives: str = "") -> None:
    """A certificate of the authority in `folder` (`NAME.pem`, `NAME.key`), with those alternative names."""
    _openssl(folder, "req", *_NEW_KEY, "-subj", subject, "-keyout", f"{name}.key", "-out", f"{name}.csr")
    names = f"subjectAltName={alternatives}\n" if alternatives else ""
    (folder / f"{name}.ext").write_text(f"authorityKeyIdentifier=keyid\n{names}")
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext"]
    _openssl(folder, "x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=folder)
