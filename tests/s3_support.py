"""S3 servers of our own for the tests of the registry: SeaweedFS, and moto, which words its errors as AWS does.

Both come from `make test-s3`, in an environment of its own; elsewhere there are none, and nothing here runs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.feedback_support import quick_folder
from tests.gateways.support import free_port

BUCKET = "models"
_WEED = Path(sys.executable).parent / "weed"


@dataclass(frozen=True)
class S3:
    """A server with an empty bucket."""

    endpoint: str

    @property
    def options(self) -> dict[str, str]:
        """What fsspec needs to reach it."""
        return {"key": "k", "secret": "s", "endpoint_url": self.endpoint}

    @property
    def environ(self) -> dict[str, str]:
        """The same for another process."""
        return {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_ENDPOINT_URL": self.endpoint}

    def make_bucket(self) -> S3:
        """The server, once its bucket takes an object: it listens before all of its parts have found one another."""
        import s3fs

        files, end = s3fs.S3FileSystem(**self.options), time.monotonic() + 60
        while True:
            try:
                files.makedirs(BUCKET, exist_ok=True)
                files.pipe(f"{BUCKET}/first", b"first")
                files.rm(f"{BUCKET}/first")
            except OSError:
                assert time.monotonic() < end, "the bucket took no object in time"
                time.sleep(0.1)
            else:
                return self


def installed() -> list[str]:
    """Names of the servers that can be started here; both where `make test-s3` asks for them."""
    if os.environ.get("CLASSIFIER_REQUIRE_S3") == "1":
        return ["seaweedfs", "moto"]
    if importlib.util.find_spec("s3fs") is None:
        return []
    return ["seaweedfs"] * _WEED.exists() + ["moto"] * (importlib.util.find_spec("moto") is not None)


@contextlib.contextmanager
def running(name: str) -> Iterator[S3]:
    """That server, stopped and removed at the end."""
    with _seaweedfs() if name == "seaweedfs" else _moto() as endpoint:
        yield S3(endpoint).make_bucket()


@contextlib.contextmanager
def _seaweedfs() -> Iterator[str]:
    folder = quick_folder("classifier-s3-")
    parts = ("master", "volume", "filer", "s3")
    ports = dict(zip([f"{part}.port{kind}" for part in parts for kind in ("", ".grpc")], _free_ports(8), strict=True))
    command = [str(_WEED), f"-logdir={folder}", "server", "-s3", f"-dir={folder}", "-ip=127.0.0.1", "-volume.max=32"]
    command += [f"-{flag}={port}" for flag, port in ports.items()]
    # Nothing that is not needed: it reports to its makers unless told not to.
    command += ["-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += ["-volume.preStopSeconds=0", f"-filer.localSocket={folder}/filer.sock"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        endpoint = f"http://127.0.0.1:{ports['s3.port']}"
        end = time.monotonic() + 120
        while not _answers(endpoint):
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            assert time.monotonic() < end, "SeaweedFS did not start in time"
            time.sleep(0.05)
        yield endpoint
    finally:
        process.kill()
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _moto() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        # Every one of them in a process answers from the same memory: without this, the next would find our bucket.
        urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST"), timeout=10).close()
        yield endpoint
    finally:
        server.stop()


def _answers(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(endpoint, timeout=10):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False


def _free_ports(count: int) -> list[int]:
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port())
    return list(found)
