"""Labels logs on one machine: a process a core, resumable from files, the same bytes whatever happened on the way.

Theory of operation. The input is cut into chunks at fixed places (`readers`). Each chunk becomes one piece, a file in
the folder `OUT.parts`, written beside its name and renamed when it is whole; which process made it, and when, leaves no
trace in it (`pieces`, `processes`). A run that finds pieces there makes only those that are missing. At the end the
pieces are merged in order into one file, which is renamed to its name, then the manifest says that it is complete, then
the pieces go. So a run killed anywhere and started again ends with the file of a run that was not. `OUT.manifest.json`
holds what the run is about (bundle, policy, inputs, how rows are read); a run that is about something else is refused.

Knows nothing of formats of rows, of the model, or of terminals.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import chain, islice
from pathlib import Path
from typing import Any

from classifier.addresses import without_secrets
from classifier.answering import Identity, Maker
from classifier.cores import available_cores
from classifier.durable import explained, whole_file, write_whole
from classifier.errors import InputError
from classifier.labelled import kind_of, merge_pieces, output_schema
from classifier.labelling import Labeller
from classifier.pieces import SPACE, read_piece, read_tally
from classifier.processes import processes_of
from classifier.progress import Position, Progress, Tally
from classifier.readers import Chunk, read_chunks
from classifier.run_manifest import begun_manifest, check_same, manifest_bytes, manifest_path, read_manifest, schema_of
from classifier.runs import HEAD_CHUNKS, Options, input_schema, plan_of, stated_of
from classifier.sources import STDIN, Source, find_sources

_WAITING = 2
"""Chunks in line for each process; one is worked on, one is there when that is done."""


def label(
    inputs: Sequence[str],
    output: str,
    maker: Maker,
    options: Options | None = None,
    *,
    told: Callable[[Progress], None] = lambda _: None,
) -> Progress:
    """Labels the inputs into the file `output`, or finishes what an earlier run began.

    Args:
        inputs: files, folders, globs, fsspec URLs, or `-`.
        output: a .parquet, .jsonl or .csv file.
        maker: makes what answers, in each process.
        options: how rows are read.
        told: called whenever a chunk is done.

    Raises:
        InputError: the input is not there, the output is another run's, or there is no space.
        ClassifierError: what answers cannot be made, or a process died.
    """
    options = options or Options()
    sources = find_sources(inputs, written=output)
    run = Run.open(sources, output, maker.identity(options.policy), options)
    if run.complete is not None:
        return Progress(run.complete, run.complete.rows)
    with explained(output, SPACE), run.held():
        progress = run.label(maker, told)
        run.finish(progress.tally)
    return progress


class Run:
    """One output in the making: its manifest, its pieces.

    Attributes:
        complete: the tally of a run that is complete already, else None.
    """

    def __init__(self, sources: Sequence[Source], output: Path, identity: Identity, options: Options) -> None:
        self.complete: Tally | None = None
        self._sources = sources
        self._output = output
        self._identity = identity
        self._options = options
        self._kind = kind_of(str(output))
        self._parts = output.with_name(output.name + ".parts")
        self._total = _total_bytes(sources)
        self._chunks: Iterator[Chunk] = iter(())
        self._position = Position()
        self._count = 0
        self._few: int | None = None
        self._schema: Any = None
        self._found: dict[str, Any] | None = None
        self._begun: dict[str, Any] | None = None

    @classmethod
    def open(cls, sources: Sequence[Source], output: str, identity: Identity, options: Options) -> Run:
        """The run of an output: new, begun, or complete.

        Raises:
            InputError: the output is there and is another run's.
        """
        if "://" in output:
            shown = without_secrets(output)
            raise InputError(f"{shown}: only --engine ray writes to a URL; give a file of this machine and copy it")
        path = Path(output)
        run = cls(sources, path, identity, options)
        if not path.parent.is_dir():
            raise InputError(f"{output}: there is no folder {path.parent}; make it first")
        stated = stated_of(sources, identity, options)
        found = run._found = read_manifest(manifest_path(path))
        if found is None and path.exists():
            raise InputError(f"{output}: exists, and no manifest beside it says how it was made; choose another file")
        if found is not None and found.get("complete") and not path.exists():
            found = None  # the output was taken away, and is made anew
        if found is not None:
            check_same(output, found, stated)
        if found is not None and found.get("complete"):
            if sources[0].name == STDIN:
                raise InputError(
                    f"{output}: is complete, and whether standard input is the same again cannot be told; choose "
                    "another file, or remove this one"
                )
            run.complete = Tally.from_json(found["complete"])
            shutil.rmtree(run._parts, ignore_errors=True)
            return run
        run._begin(stated, None if sources[0].name == STDIN else found)
        return run

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps a second run off this output, writes its manifest if it is new, and removes what is none of its pieces.

        Raises:
            InputError: another run is at it, or was since this one looked.
        """
        self._parts.mkdir(exist_ok=True)
        with (self._parts / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InputError(f"{self._output}: another run is writing it; wait for that, or stop it") from None
            if read_manifest(manifest_path(self._output)) != self._found:
                raise InputError(f"{self._output}: another run began it at the same time; run the same command again")
            for left in self._parts.glob("*" if self._begun else ".*"):
                if left.name != "lock":
                    left.unlink(missing_ok=True)
            if self._begun is not None:
                self._write_manifest(self._begun)
            yield

    def label(self, maker: Maker, told: Callable[[Progress], None]) -> Progress:
        """Makes the pieces that are missing."""
        options = self._options
        progress = Progress(position=self._position, total_bytes=self._total, limit=options.selection.limit)
        plan = plan_of(options, self._identity, self._kind, self._schema)
        processes = options.processes or available_cores()
        processes = processes if self._few is None else max(1, min(processes, self._few))
        tally = _InOrder()
        pending: dict[Future[dict[str, Any]], int] = {}

        def collect() -> None:
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                found = Tally.from_json(future.result())
                tally.add(pending.pop(future), found)
                progress.tally.add(found)
            told(progress)

        with processes_of(processes, maker, plan) as submit:
            for chunk in self._chunks:
                self._count += 1
                part = self._part(chunk.index)
                if part.exists():
                    found = read_tally(part)
                    progress.resumed_rows += found.rows
                    progress.tally.add(found)
                    tally.add(chunk.index, found)
                    continue
                pending[submit(chunk, part)] = chunk.index
                while len(pending) >= _WAITING * processes:
                    collect()
            while pending:
                collect()
        progress.tally = tally.total
        return progress

    def finish(self, tally: Tally) -> None:
        """Merges the pieces, says that the output is complete, and removes them."""
        with whole_file(self._output, staged_in=self._parts) as file:
            merge_pieces((read_piece(self._part(i)) for i in range(self._count)), file, self._kind, self._schema)
        manifest = read_manifest(manifest_path(self._output)) or {}
        self._write_manifest({**manifest, "complete": tally.to_json()})
        shutil.rmtree(self._parts, ignore_errors=True)

    def _begin(self, stated: Mapping[str, Any], begun: Mapping[str, Any] | None) -> None:
        """Decides the columns and the manifest, or takes the columns of the run that goes on."""
        chunks = read_chunks(
            self._sources,
            row_format=self._options.row_format,
            selection=self._options.selection,
            position=self._position,
        )
        head = list(islice(chunks, HEAD_CHUNKS))
        self._few = len(head) if len(head) < HEAD_CHUNKS else None
        self._chunks = chain(_drained(deque(head)), chunks)
        if begun is not None:
            self._schema = schema_of(begun)
            return
        self._schema = output_schema(input_schema(self._sources, head), self._identity.facts())
        self._begun = begun_manifest(stated, self._schema)

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        write_whole(manifest_path(self._output), manifest_bytes(manifest), staged_in=self._parts)

    def _part(self, index: int) -> Path:
        return self._parts / f"part-{index:08d}"


class _InOrder:
    """Adds up the tallies of chunks in their order, so that the examples of errors are the first ones.

    Attributes:
        total: of all chunks before the first one that is missing.
    """

    def __init__(self) -> None:
        self.total = Tally()
        self._next = 0
        self._early: dict[int, Tally] = {}

    def add(self, index: int, tally: Tally) -> None:
        self._early[index] = tally
        while self._next in self._early:
            self.total.add(self._early.pop(self._next))
            self._next += 1


def _drained(chunks: deque[Chunk]) -> Iterator[Chunk]:
    """The chunks, none of them held once it was handed on."""
    while chunks:
        yield chunks.popleft()


def preview(inputs: Sequence[str], output: str, maker: Maker, options: Options | None = None) -> dict[str, Any]:
    """What `label` would read and how, from the first chunk, with an estimate of the time; writes nothing.

    Raises:
        InputError: the input is not there, or the output cannot be one.
    """
    options = options or Options()
    sources = find_sources(inputs, written=output)
    kind, identity, position = kind_of(output), maker.identity(options.policy), Position()
    chunks = read_chunks(sources, row_format=options.row_format, selection=options.selection, position=position)
    head = list(islice(chunks, 1))
    columns = input_schema(sources, head)
    plan = plan_of(options, identity, kind, output_schema(columns, identity.facts()))
    labeller = Labeller(maker(), plan)
    start = time.perf_counter()
    tally = labeller.label(head[0])[1] if head else Tally()
    seconds = time.perf_counter() - start
    total, processes = _total_bytes(sources), options.processes or available_cores()
    # One chunk is a small part of a file, and a reader holds up to a block more than it has handed on.
    known = bool(total and position.bytes and tally.rows)
    left = seconds * (total / position.bytes) / processes if known else None
    return {
        "files": len(sources),
        "bytes": total,
        "kind": kind,
        "bundle_version": identity.bundle_version,
        "policy": identity.policy,
        "rows": tally.rows,
        "formats": dict(tally.formats),
        "errors": dict(tally.errors),
        "columns": columns.names,
        "processes": processes,
        "seconds_left": left,
    }


def _total_bytes(sources: Sequence[Source]) -> int:
    sizes = [source.size for source in sources]
    return 0 if None in sizes else sum(size or 0 for size in sizes)
