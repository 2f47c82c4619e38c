"""Several processes on one port."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from classifier import Client
from classifier.metrics_page import _KINDS
from classifier.recorder import CLOSE_SECONDS
from classifier.settings import ServerSettings
from classifier.workers import _Keeper
from tests.serving_support import child_processes, server_process, until


def children(pid):
    """Process ids of the workers (Linux)."""
    return [c for c in child_processes(pid) if _is_worker(c)]


def _is_worker(pid):
    with contextlib.suppress(OSError):  # it ended meanwhile
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


@pytest.fixture
def arguments(tiny_bundle_path):
    return ["--bundle", str(tiny_bundle_path), "--listen", "127.0.0.1:0", "--workers", "2", "--cores", "2"]


def test_workers_share_the_port_the_ids_and_the_page(arguments, tmp_path):
    """Two workers answer on one port, make the same ids, and are counted on one page, whatever else fills the disk."""
    env = {"TMPDIR": str(tmp_path)}
    with server_process(*arguments, "--metrics-listen", "127.0.0.1:0", env=env) as server:
        [address] = server.wait_ready()
        workers = children(server.process.pid)
        assert len(workers) == 2
        ids = set()
        for _ in range(20):
            with Client(address, timeout_seconds=60) as client:
                ids.add(client.classify("hi", request_id="r").decision.decision_id)
        assert len(ids) == 1
        line = 'classifier_requests_total{code="OK",method="Classify"} 20.0'
        until(lambda: line in server.metrics_page())  # counted after the answer
        files = {path.name: path.stat() for path in tmp_path.glob("classifier-metrics-*/*.db")}
        assert set(files) == {f"{kind}_{pid}.db" for kind in _KINDS for pid in workers}
        assert all(512 * file.st_blocks >= file.st_size for file in files.values())  # the space is theirs already
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert len(server.ready_lines) == 1


def test_ctrl_c_while_workers_start_is_one_word(arguments):
    """The SIGINT that a terminal sends to all of them ends workers without a traceback, also before they listen."""
    with server_process(*arguments) as server:
        until(lambda: len(children(server.process.pid)) > 1)  # the keeper of shared memory, and a worker
        for pid in (server.process.pid, *children(server.process.pid)):
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                os.kill(pid, signal.SIGINT)
        assert server.wait() == 130
        assert not [line for line in server.lines if "Traceback" in line]


def test_a_killed_worker_is_replaced_and_the_port_stays(arguments):
    """After kill -9 of a worker another takes its place; clients are served again."""
    with server_process(*arguments) as server:
        [address] = server.wait_ready()
        before = set(children(server.process.pid))
        os.kill(min(before), signal.SIGKILL)
        server.wait_said("another takes its place")
        for _ in range(10):
            with Client(address, timeout_seconds=60) as client:
                assert client.classify("hi").classified
        until(lambda: len(set(children(server.process.pid)) - before) == 1)


def test_a_worker_that_cannot_be_replaced_now_is_replaced_later(arguments):
    """Where the system gives no process or file, the other workers serve on, and the place is filled when it does."""
    with server_process(*arguments) as server:
        [address] = server.wait_ready()
        parent = server.process.pid
        before, limits = set(children(parent)), resource.prlimit(parent, resource.RLIMIT_NOFILE)
        # No new one, and as many as the parent polls: a pipe and an end of each worker.
        resource.prlimit(parent, resource.RLIMIT_NOFILE, (4, limits[1]))
        os.kill(min(before), signal.SIGKILL)
        server.wait_said("a worker cannot be started (Too many open files)")
        assert set(children(parent)) == before - {min(before)}
        with Client(address, timeout_seconds=60) as client:
            assert client.classify("hi").classified
        resource.prlimit(parent, resource.RLIMIT_NOFILE, limits)
        until(lambda: len(set(children(parent)) - before) == 1)


def test_a_worker_that_still_starts_outlives_sighup(arguments):
    """SIGHUP does not end a worker that does not listen to it yet."""
    with server_process(*arguments) as server:
        server.wait_ready()
        before = set(children(server.process.pid))
        os.kill(min(before), signal.SIGKILL)
        until(lambda: set(children(server.process.pid)) - before)
        [fresh] = set(children(server.process.pid)) - before
        os.kill(fresh, signal.SIGHUP)
        server.wait_said(f"worker {fresh} serves")


def test_sighup_complains_of_nothing_that_did_not_change(arguments, tmp_path):
    """What workers are told otherwise than the settings say, ports and cores, is no change."""
    config = tmp_path / "c.toml"
    config.write_text("max_messages = 7\n")
    with server_process(*arguments, "--config", str(config), "--metrics-listen", "127.0.0.1:0") as server:
        server.wait_ready()
        config.write_text("max_messages = 8\nqueue_size = 3\n")
        server.signal(signal.SIGHUP)
        server.wait_said("settings: queue_size need a restart")


def test_a_worker_that_takes_anothers_place_begins_with_the_settings_of_now(arguments, tmp_path):
    """What SIGHUP changed holds in a worker that starts afterwards, and in what its keeper says of it, too."""
    config = tmp_path / "c.toml"
    config.write_text("max_messages = 7\nlog_level = 'warning'\n")
    with server_process(*arguments, "--config", str(config)) as server:
        [address] = server.wait_ready()

        def limit():
            with Client(address, timeout_seconds=60) as client:
                return client.info(timeout_seconds=60).limits.max_messages

        assert limit() == 7
        config.write_text("max_messages = 8\nlog_level = 'info'\n")
        server.signal(signal.SIGHUP)
        until(lambda: limit() == 8)
        for worker in children(server.process.pid):
            os.kill(worker, signal.SIGKILL)
        until(lambda: len([line for line in server.lines if "serves" in line]) == 2)
        assert limit() == 8


def test_workers_end_with_their_parent(arguments):
    """A parent that is killed takes its workers along."""
    with server_process(*arguments) as server:
        server.wait_ready()
        workers = children(server.process.pid)
        server.process.kill()
        until(lambda: not any(_alive(w) for w in workers))


def test_a_worker_that_comes_to_nothing_is_tried_less_and_less():
    """Each one that does not serve for a second puts the next off for twice as long; else another follows at once."""

    class Worker:
        pid, exitcode = 7, 1

        def __init__(self):
            self.pipe, self.child = multiprocessing.Pipe()
            self.sentinel = self.child.fileno()

        def is_alive(self):
            return True

    told = ServerSettings(workers=1)
    keeper = _Keeper(told, b"", lambda: told, "", lambda: None)

    def seconds_to_the_next(*, served):
        worker = Worker()
        keeper._workers[worker] = worker.pipe
        if served is not None:
            worker.child.send(None)
            keeper._tend()
            keeper._served_from[worker] -= served
        before = time.monotonic()
        keeper._replace(worker)
        return max(0, round(keeper._next_start - before))

    assert [seconds_to_the_next(served=served) for served in (None, 0, None, 0, 0, 0, 0, 0)] == [
        1,
        2,
        4,
        8,
        16,
        32,
        60,
        60,
    ]
    assert [seconds_to_the_next(served=served) for served in (60, None)] == [0, 1]


def test_a_worker_has_the_time_to_write_what_it_recorded():
    """One that is told to end is killed only when drain and recorder have had all the time that they may take."""
    told = ServerSettings(drain_seconds=3, shutdown_delay_seconds=2)
    keeper = _Keeper(told, b"", lambda: told, "", lambda: None)
    waited = []

    class Worker:
        pid, join = None, staticmethod(waited.append)

        def is_alive(self):
            return False

    keeper._workers[Worker()] = SimpleNamespace(close=lambda: None)
    keeper._end()
    assert waited[0] > told.drain_seconds + told.shutdown_delay_seconds + CLOSE_SECONDS


def test_a_worker_that_cannot_start_ends_the_start(tmp_path):
    """An unusable bundle is one error, with the exit code of a single process."""
    arguments = ["--bundle", str(tmp_path), "--listen", "127.0.0.1:0", "--workers", "2"]
    with server_process(*arguments) as server:
        assert server.wait() == 1
        assert [line for line in server.lines if line.startswith("error: ")] == server.lines[-1:]
        assert not server.ready_lines


def test_a_worker_that_cannot_take_a_place_says_why(tiny_bundle_path, tmp_path):
    """Where the bundle is gone by then, the reason is a warning, and tried again."""
    shutil.copytree(tiny_bundle_path, tmp_path / "served")
    arguments = ["--bundle", str(tmp_path / "served"), "--listen", "127.0.0.1:0", "--log-level", "warning"]
    with server_process(*arguments, "--workers", "2", "--watch-seconds", "60") as server:
        server.wait_ready()
        shutil.rmtree(tmp_path / "served")
        os.kill(children(server.process.pid)[0], signal.SIGKILL)
        assert "give the folder of a bundle" in server.wait_said("cannot start: ")


def test_workers_whose_spans_nobody_would_get_are_refused_in_one_line(arguments):
    """Spans are sent over gRPC: variables that ask for another protocol end the start with what to set."""
    with server_process(*arguments, "--traces", env={"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}) as server:
        assert server.wait() == 2
    assert [line.partition(",")[0] for line in server.lines] == ["error: traces: spans are sent over gRPC"]


def test_the_port_of_workers_is_not_shared_with_strangers(arguments):
    """A second set of workers on the same port is refused."""
    with server_process(*arguments) as server:
        [address] = server.wait_ready()
        arguments[arguments.index("127.0.0.1:0")] = address
        with server_process(*arguments) as other:
            assert other.wait() == 2
            assert "is in use" in other.lines[-1]


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False
