"""Labels logs on a Ray cluster with the code of `labelling`: files are read by tasks, chunks labelled by actors.

Theory of operation. Ray Data reads groups of files, each in one task, which cuts them into the chunks that a run on one
machine would make, and hands each to an actor with one core and an engine. The actor writes the chunk's piece as a
Parquet file of its own, named by group and chunk, and beside it a tally. Whatever Ray runs twice because a node was
lost is written twice under one name with the same bytes, so no row comes twice; at the end the driver counts that no
chunk is missing. Sorted by name the files are in the input's order. The bundle travels through Ray's object store, once
to each node, and is unpacked there once.

Room is left for reading: actors ask for a little less than the core that they use, and reading tasks for that little.
(As many whole-core actors as cores would hold every core, and nothing would ever be read.)

The home of `ray`. Knows nothing of formats of rows or of models.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import pickle
import shutil
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from classifier.answering import EngineMaker
from classifier.bundle import FILES, MANIFEST, read_bundle
from classifier.errors import BundleError, ClassifierError, InputError, MissingExtra, ServerUnreachable, SettingsError
from classifier.labelled import merge_pieces, output_schema
from classifier.labelling import Labeller, Plan
from classifier.progress import Progress, Tally
from classifier.readers import Selection, read_chunks
from classifier.run_manifest import CLUSTER_MANIFEST, begun_manifest, check_same, manifest_bytes, schema_of
from classifier.runs import HEAD_CHUNKS, Options, input_schema, plan_of, stated_of
from classifier.sources import STDIN, Source, find_sources
from classifier.target import Target

ACTOR_CPUS, READ_CPUS = 0.9, 0.1
GROUP_BYTES = 64 * 2**20
"""Small files are read by one task up to about so many bytes."""
_TALLIES = "_tallies"
_FAILED = -1
"""In place of a chunk's number: what stands there says why its files cannot be read."""


def label_on_ray(
    inputs: Sequence[str],
    output: str,
    bundle: str | Path,
    options: Options | None = None,
    *,
    ray_address: str | None = None,
    told: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Labels the inputs into Parquet files in the folder `output`, or finishes what an earlier run began.

    Args:
        inputs: files, folders, globs or fsspec URLs that every node can reach.
        output: a folder, or an fsspec URL of one, that every node can reach; made if it is not there.
        bundle: the bundle's folder on this machine.
        options: how rows are read; `processes` is the most actors, by default as many as the cluster has cores.
        ray_address: of a running cluster; None means a new one on this machine, whatever else runs or has run here.
        told: called whenever a chunk is done.

    Raises:
        InputError: the input is not there, the output is another run's, or cannot be written.
        MissingExtra: Ray is not installed.
        SettingsError: `ray_address` is no address, or the rows come from standard input or are limited.
        ServerUnreachable: nothing answers there.
        ClassifierError: a chunk is missing in the end.
    """
    ray = _ray()
    options = options or Options()
    if STDIN in inputs or options.selection.limit is not None:
        raise SettingsError("a cluster reads files, and all of each: standard input and --limit need --engine local")
    sources, target = find_sources(inputs, written=output), Target(output)
    identity = EngineMaker(bundle).identity(options.policy)
    stated = stated_of(sources, identity, options)
    head = list(islice(read_chunks(sources, row_format=options.row_format, selection=options.selection), HEAD_CHUNKS))
    manifest = target.manifest()
    if manifest is None and target.names():
        raise InputError(
            f"{output}: is not empty, and no {CLUSTER_MANIFEST} in it says how it was made; choose another"
        )
    if manifest is not None:
        check_same(output, manifest, stated)
        if manifest.get("complete"):
            tally = Tally.from_json(manifest["complete"])
            return Progress(tally, tally.rows)
        schema = schema_of(manifest)
    else:
        schema = output_schema(input_schema(sources, head), identity.facts())
        target.write(CLUSTER_MANIFEST, manifest_bytes(begun_manifest(stated, schema)))
    plan = plan_of(options, identity, "parquet", schema)
    progress = Progress()
    started = not ray.is_initialized()
    if started:
        _connect(ray, ray_address or "local")
        logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        tallies = _run(ray, sources, target, plan, bundle, options, progress, told)
    finally:
        if started:
            ray.shutdown()
    progress.tally = Tally()
    for _, tally in sorted(tallies.items()):
        progress.tally.add(tally)
    manifest = target.manifest() or {}
    target.write(CLUSTER_MANIFEST, manifest_bytes({**manifest, "complete": progress.tally.to_json()}))
    target.discard(_TALLIES)
    return progress


def _run(
    ray: Any,
    sources: Sequence[Source],
    target: Target,
    plan: Plan,
    bundle: str | Path,
    options: Options,
    progress: Progress,
    told: Callable[[Progress], None],
) -> dict[tuple[int, int], Tally]:
    """Labels every chunk that is not there; the tallies by group and chunk.

    Raises:
        ClassifierError: a chunk is missing.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # each chunk is a block, so that each goes to whichever actor is free
    groups = [{"group": i, "sources": pickle.dumps(group)} for i, group in enumerate(grouped(sources))]
    actors = max(1, options.processes or int(ray.cluster_resources().get("CPU", 1)))
    reading = _Reading(options.row_format, options.selection, str(Path.cwd()))
    shipped = [ray.put(bundle_files(bundle))]  # held here, so that actors that are started again find it
    labelled = (
        ray.data.from_items(groups, override_num_blocks=max(1, len(groups)))
        .map_batches(reading, batch_size=1, num_cpus=READ_CPUS)
        .map_batches(
            _Labelling,
            fn_constructor_args=(shipped, plan, target.shared_url),
            batch_size=1,
            num_cpus=ACTOR_CPUS,
            compute=ray.data.ActorPoolStrategy(size=actors),
        )
    )
    tallies: dict[tuple[int, int], Tally] = {}
    ends: dict[int, int] = {}
    for row in labelled.iter_rows():
        group, chunk, told_of = int(row["group"]), int(row["chunk"]), json.loads(row["tally"])
        if told_of is not None and "failed" in told_of:
            raise InputError(told_of["failed"])
        if told_of is None:
            ends[group] = chunk
            continue
        tallies[group, chunk] = Tally.from_json(told_of["tally"])
        progress.tally.add(tallies[group, chunk])
        progress.resumed_rows += tallies[group, chunk].rows if told_of["resumed"] else 0
        told(progress)
    wanted = {(group, chunk) for group, end in ends.items() for chunk in range(end)}
    if len(ends) < len(groups) or wanted != set(tallies) or not wanted <= target.parts():
        raise ClassifierError(f"{target.url}: pieces are missing; run the same command again to make them")
    return tallies


def grouped(sources: Sequence[Source]) -> list[list[Source]]:
    """Files in order, small ones together up to about `GROUP_BYTES`."""
    groups: list[list[Source]] = []
    size = 0
    for source in sources:
        if not groups or size + (source.size or 0) > GROUP_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(source)
        size += source.size or 0
    return groups


def bundle_files(path: str | Path) -> dict[str, bytes]:
    """Every file of a bundle, verified, to travel."""
    read_bundle(path)
    return {name: (Path(path) / name).read_bytes() for name in (*FILES, MANIFEST)}


def unpack_bundle(files: Mapping[str, bytes]) -> Path:
    """The bundle's folder on this node, made by the first who asks and verified by each.

    Named by the manifest, which has the hash of every other file: a version does not say for which inputs it was made.
    """
    digest = hashlib.sha256(files[MANIFEST]).hexdigest()[:16]
    folder = _own_folder() / digest
    if _holds(folder, files):
        return folder
    staging = Path(tempfile.mkdtemp(prefix=f".{digest}-", dir=folder.parent))
    for name, data in files.items():
        (staging / name).write_bytes(data)
    try:
        staging.rename(folder)
    except OSError:  # another actor was faster, or what is there is damaged: then this one is used
        if not _holds(folder, files):
            return staging
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def _own_folder() -> Path:
    """The folder of this user's bundles on this node; a new one where another made it, or may write into it."""
    folder = Path(tempfile.gettempdir()) / f"classifier-bundles-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
        return folder
    return Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))


def _holds(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Whether a folder holds this very bundle, whole: a cleaner of old files may have taken some of it."""
    with contextlib.suppress(BundleError, OSError):
        read_bundle(folder)
        return (folder / MANIFEST).read_bytes() == files[MANIFEST]
    return False


@dataclass(frozen=True, slots=True)
class _Reading:
    """A task: a group of files to chunks, then one row that says how many there were.

    Attributes:
        row_format: how rows are read.
        selection: which rows.
        folder: what relative names are relative to.
    """

    row_format: str
    selection: Selection
    folder: str

    def __call__(self, batch: Mapping[str, Any]) -> Iterator[dict[str, list[Any]]]:
        with contextlib.suppress(OSError):
            os.chdir(self.folder)
        group, sources = int(batch["group"][0]), pickle.loads(batch["sources"][0])  # noqa: S301 (our own bytes)
        count = 0
        try:
            for count, chunk in enumerate(  # noqa: B007
                read_chunks(sources, row_format=self.row_format, selection=self.selection), start=1
            ):
                yield {"group": [group], "chunk": [chunk.index], "rows": [pickle.dumps(chunk)]}
        except ClassifierError as error:
            yield {"group": [group], "chunk": [_FAILED], "rows": [str(error).encode()]}
        yield {"group": [group], "chunk": [count], "rows": [b""]}


class _Labelling:
    """An actor: one core, one engine."""

    def __init__(self, files: list[Any], plan: Plan, url: str) -> None:
        folder = unpack_bundle(_ray().get(files[0]))
        self._labeller = Labeller(EngineMaker(folder)(), plan)
        self._target = Target(url)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        group, index, rows = int(batch["group"][0]), int(batch["chunk"][0]), batch["rows"][0]
        try:
            told = {"failed": rows.decode()} if index == _FAILED else self._told(group, index, rows)
        except ClassifierError as error:  # what is raised here reaches the driver as text only
            told = {"failed": str(error)}
        return {"group": [group], "chunk": [index], "tally": [json.dumps(told)]}

    def _told(self, group: int, index: int, rows: bytes) -> dict[str, Any] | None:
        if not rows:
            return None
        name = part_name(group, index)
        done = self._target.read(f"{_TALLIES}/{name}.json")
        if done is not None and self._target.holds(f"{name}.parquet"):
            return {"tally": json.loads(done), "resumed": True}
        piece, tally = self._labeller.label(pickle.loads(rows))  # noqa: S301 (our own bytes)
        part = io.BytesIO()
        merge_pieces([piece], part, "parquet", self._labeller.schema)
        self._target.write(f"{name}.parquet", part.getvalue())
        self._target.write(f"{_TALLIES}/{name}.json", json.dumps(tally.to_json()).encode())
        return {"tally": tally.to_json(), "resumed": False}


def part_name(group: int, index: int) -> str:
    """Name of a piece: sorted by it, pieces are in the input's order."""
    return f"part-{group:06d}-{index:06d}"


def _connect(ray: Any, address: str) -> None:
    """Starts Ray here for `local`, else joins the cluster: of one that is gone Ray would ask 13 minutes long."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    advice = "check --ray-address and RAY_ADDRESS, or leave both out to start Ray on this machine"
    if address not in ("local", "auto"):
        if not host or not port.isdecimal():
            raise SettingsError(f"{address}: is no address of a Ray cluster, HOST:PORT or auto; {advice}")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise ServerUnreachable(f"{address}: no Ray cluster answers there ({error}); {advice}") from None
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (OSError, RuntimeError, ValueError) as error:
        said = str(error).strip().partition("\n")[0]
        raise ServerUnreachable(f"{address}: Ray cannot be reached or started ({said}); {advice}") from None


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtra("--engine ray needs Ray; pip install 'request-complexity-classifier[ray]'") from None
    return ray
