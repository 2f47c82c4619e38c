"""Labelling on a real Ray cluster on this machine: the rows of a local run, also when a node is killed in the middle.

Needs Ray, whose pins want an environment of their own: `make test-ray`. What needs none is in test_cluster_nodes.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import Mock

import pytest

pytest.importorskip("ray", reason="Ray is not installed here; `make test-ray` runs these")

import ray
from ray.cluster_utils import Cluster

from classifier.answering import EngineMaker
from classifier.bulk import label
from classifier.bundle import SHIPPED
from classifier.cluster import label_on_ray
from classifier.errors import InputError, ServerUnreachable, SettingsError
from classifier.labelled import open_labelled
from classifier.readers import Selection
from classifier.runs import Options
from tests.bulk_support import prompts, write_lines

DATA = Path(__file__).parents[1] / "data"
pytestmark = [pytest.mark.timeout(600), pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module", autouse=True)
def environment():
    """What the nodes' processes need, and no reports to anybody."""
    root = str(Path(__file__).parents[1])
    before = dict(os.environ)
    os.environ |= {"PYTHONPATH": root, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def two_nodes():
    """A cluster of two nodes with a core each; yields it and the node that may be killed."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    cluster.wait_for_nodes()
    yield cluster, second
    ray.shutdown()
    cluster.shutdown()


def write_logs(folder: Path, files: int, rows: int) -> Path:
    """So many files of so many rows, some of them bad."""
    folder.mkdir()
    for i in range(files):
        lines = [{"prompt": f"{text} of file {i}", "n": i} for text in prompts(rows)]
        lines[rows // 2] = b"{broken"
        write_lines(folder / f"{i:03}.jsonl", lines)
    return folder


def test_a_node_that_is_killed_costs_no_row(two_nodes, tiny_bundle_path, tmp_path):
    """With one of two nodes killed mid-run no row comes twice, none is missing, and all are those of one machine."""
    cluster, second = two_nodes
    logs = write_logs(tmp_path / "logs", 24, 2500)
    nodes, chunks = set(), []

    def told(progress):
        chunks.append(progress.tally.rows)
        nodes.update(labelling_nodes())
        if len(nodes) == 2 and len(chunks) > 5 and second in cluster.worker_nodes:
            cluster.remove_node(second, allow_graceful=False)

    progress = label_on_ray([str(logs)], str(tmp_path / "out"), tiny_bundle_path, Options(), told=told)
    assert len(nodes) == 2, "both nodes took part"
    assert second not in cluster.worker_nodes, "one was killed in the middle"
    assert len(chunks) == 60, "each chunk of 1,000 rows is told of once"
    label([str(logs)], str(tmp_path / "local.parquet"), EngineMaker(tiny_bundle_path), Options(processes=1))
    wanted = list(open_labelled(tmp_path / "local.parquet").rows())
    assert list(open_labelled(tmp_path / "out").rows()) == wanted
    assert (progress.tally.rows, progress.tally.bad) == (len(wanted), 24)
    keys = {(row["classifier_file"], row["classifier_row"]) for row in wanted}
    assert len(keys) == len(wanted) == 24 * 2500


def labelling_nodes() -> set[str]:
    """The nodes on which an actor is alive."""
    from ray._private.state import actors  # its public twin needs the dashboard

    return {
        a["Address"]["NodeID"]
        for a in actors().values()
        if a["State"] == "ALIVE" and "Labelling" in a["ActorClassName"]
    }


def test_answers_are_those_of_one_machine(two_nodes, tmp_path):
    """2,000 requests of the corpus get the same probabilities and tiers, bit for bit, from Ray as from files."""
    del two_nodes
    inputs = []
    for name in ("everyday", "languages", "professional", "software"):
        lines = (DATA / f"{name}.jsonl").read_bytes().splitlines()[:500]
        inputs.append(str(write_lines(tmp_path / f"{name}.jsonl", lines)))
    label_on_ray(inputs, str(tmp_path / "out"), SHIPPED)
    label(inputs, str(tmp_path / "local.parquet"), EngineMaker(SHIPPED), Options(processes=1))
    ray_rows, rows = (
        list(open_labelled(tmp_path / "out").rows()),
        list(open_labelled(tmp_path / "local.parquet").rows()),
    )
    assert ray_rows == rows
    assert len(rows) == 2000
    assert open_labelled(tmp_path / "out").facts == open_labelled(tmp_path / "local.parquet").facts


def test_a_stopped_run_goes_on_and_another_one_is_refused(two_nodes, tiny_bundle_path, tmp_path):
    """A run that was stopped labels what is missing; a run that is about something else is refused."""
    del two_nodes
    logs = write_logs(tmp_path / "logs", 3, 2500)

    def stop(progress):
        if progress.tally.rows > 3000:
            raise KeyboardInterrupt

    out = str(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        label_on_ray([str(logs)], out, tiny_bundle_path, Options(), told=stop)
    with pytest.raises(InputError, match="share"):
        label_on_ray([str(logs)], out, tiny_bundle_path, Options(selection=Selection(0.5)))
    progress = label_on_ray([str(logs)], out, tiny_bundle_path, Options())
    assert progress.resumed_rows > 3000
    assert progress.tally.rows == 7500
    assert label_on_ray([str(logs)], out, tiny_bundle_path, Options()).resumed_rows == 7500
    label([str(logs)], str(tmp_path / "local.parquet"), EngineMaker(tiny_bundle_path), Options(processes=1))
    assert list(open_labelled(out).rows()) == list(open_labelled(tmp_path / "local.parquet").rows())


def test_the_command_labels_tables_on_a_cluster_of_its_own(tiny_bundle_path, tmp_path):
    """`--engine ray` without an address starts Ray here, also where another died, reads Parquet, prints the summary."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"prompt": prompts(1500)}), tmp_path / "in.parquet")
    ray_folder = tempfile.mkdtemp(dir="/tmp")  # short: Ray's sockets lie under it
    Path(ray_folder, "ray_current_cluster").write_text("127.0.0.1:9")  # as Ray leaves it where it was killed
    arguments = ["label", str(tmp_path / "in.parquet"), "-o", str(tmp_path / "out"), "--engine", "ray", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "classifier", *arguments, "--bundle", str(tiny_bundle_path)],
        env=os.environ | {"RAY_TMPDIR": ray_folder},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    shutil.rmtree(ray_folder, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == 1500
    assert [row["prompt"] for row in open_labelled(tmp_path / "out").rows(["prompt"])] == prompts(1500)


@pytest.mark.parametrize(
    ("address", "error", "line"),
    [
        ("nowhere", SettingsError, "nowhere: is no address of a Ray cluster, HOST:PORT or auto; check --ray-address"),
        ("ray://127.0.0.1:9", ServerUnreachable, "no Ray cluster answers there .*; check --ray-address"),
    ],
)
def test_a_cluster_that_is_not_there_is_said_at_once(address, error, line, tiny_bundle_path, tmp_path):
    """A wrong address, or one at which nothing answers, ends with one line that says what to check."""
    logs = write_logs(tmp_path / "logs", 1, 10)
    with pytest.raises(error, match=line):
        label_on_ray([str(logs)], str(tmp_path / "out"), tiny_bundle_path, Options(), ray_address=address)


def test_what_ray_says_when_it_cannot_start_is_one_line(tiny_bundle_path, tmp_path, monkeypatch):
    """An error of Ray's own comes with its first line and what to check, and is not taken for one of the output."""
    monkeypatch.setattr(ray, "init", Mock(side_effect=ConnectionError("Could not find any running Ray.\nA trace")))
    logs = write_logs(tmp_path / "logs", 1, 10)
    with pytest.raises(ServerUnreachable, match=r"auto: .* \(Could not find any running Ray\.\); check --ray-address"):
        label_on_ray([str(logs)], str(tmp_path / "out"), tiny_bundle_path, Options(), ray_address="auto")


def test_a_full_disk_is_said_and_survived(two_nodes, tiny_bundle_path, tmp_path):
    """Where a node cannot write, the run ends with one line that says what to do; with space it goes on to the end."""
    del two_nodes
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("only root may mount a disk")
    try:
        logs, out = write_logs(tmp_path / "logs", 3, 2500), str(disk / "out")
        with pytest.raises(InputError, match=r"cannot be written \(No space left on device\); make space"):
            label_on_ray([str(logs)], out, tiny_bundle_path, Options())
        with pytest.raises(InputError, match="is not complete"):
            open_labelled(out)
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        assert label_on_ray([str(logs)], out, tiny_bundle_path, Options()).tally.rows == 7500
        assert len({row["classifier_row"] for row in open_labelled(out).rows(["classifier_row"])}) == 2500
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_what_a_cluster_cannot_do_is_said(tmp_path, tiny_bundle_path):
    """Standard input and a limit are refused with what to use instead."""
    for inputs, options in ((["-"], Options()), ([str(tmp_path)], Options(selection=Selection(limit=5)))):
        with pytest.raises(SettingsError, match="--engine local"):
            label_on_ray(inputs, str(tmp_path / "out"), tiny_bundle_path, options)
