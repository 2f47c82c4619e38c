"""Fixtures that every test file may use: a tiny real bundle and the engine over it, servers to ask and clients."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import fsspec
import pytest
from hypothesis import settings

from classifier.engine import Engine
from classifier.testing import fake_server
from tests.client_support import Both, by_word
from tests.tiny import tiny_bundle

# The tests' models are too small to share; beside other work, threads that wait for one another took 30 times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# An example may take its time on a busy machine: what is timed is in benchmarks/.
settings.register_profile("untimed", settings(), deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def tiny_bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a real but tiny bundle; tests that alter it copy it first."""
    return tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny").path


@pytest.fixture(scope="session")
def tiny_engine(tiny_bundle_path: Path) -> Engine:
    """The engine of the tiny bundle."""
    return Engine.from_pretrained(tiny_bundle_path)


@pytest.fixture(scope="module")
def address():
    """A server that answers with the tier whose name a prompt holds."""
    with fake_server(tier_of=by_word) as found:
        yield found


@pytest.fixture
def signal_mask():
    """Given back: what a test leaves blocked, as a start that fails does, later tests' processes would inherit."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@pytest.fixture(scope="module")
def nowhere():
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(params=["sync", "async"])
def client_of(request):
    """Makes a client, once the sync and once the async one."""
    return lambda *args, **kwargs: Both(request.param, *args, **kwargs)


@pytest.fixture(scope="module")
def postgresql():
    """A PostgreSQL of a file's own, for some tests kill it."""
    from tests.feedback_support import PostgreSQL

    server = PostgreSQL()
    yield server
    server.stop()


@pytest.fixture
def disks(monkeypatch):
    """The disks of a host: what is on them, to put files there."""
    from tests.bulk_support import Disks

    monkeypatch.setattr(Disks, "store", {})
    monkeypatch.setattr(Disks, "pseudo_dirs", [""])
    fsspec.register_implementation("disks", Disks, clobber=True)
    return Disks("nas", "secret")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MiB, and what gives it another size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("only root may mount a disk")

    def resize(size):
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)

    yield folder, resize
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
