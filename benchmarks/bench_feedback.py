"""How many outcomes are acknowledged a second, and what does remembering a decision cost? One run.

    python benchmarks/bench_feedback.py [--bundle PATH] [--seconds 5] [--blocks 30] [--out feedback.json]

A real server on SQLite, asked over gRPC by 32 callers at once: outcomes acknowledged a second, each on disk. Then one
caller classifies in blocks that are recorded and blocks that are not, in turns, so that a busy machine slows both
alike; what is compared is the CPU time of the whole server process per request, until a block's decisions are written.
Then again in turns with the store free and locked by another process: what is compared is the time of a Classify.
Prints a table on stderr and JSON on stdout.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from load import PROMPT
from servers import Process, serving

from classifier import AsyncClient, Client, Outcome, Tier
from classifier.bundle import SHIPPED
from classifier.decision_id import DecisionIds, read_key
from classifier.types import Cause, Source, Verdict

CALLERS = 32
BLOCK = 150


async def outcomes_per_second(address: str, ids: DecisionIds, seconds: float) -> tuple[int, float]:
    """Outcomes that 32 callers had acknowledged, and the seconds it took."""
    end = time.perf_counter() + seconds
    counts = [0] * CALLERS

    async def report(n: int, client: AsyncClient) -> None:
        while time.perf_counter() < end:
            decision_id = ids.mint("", "", time.time())
            told = Outcome(
                decision_id, f"{n}-{counts[n]}", Verdict.ACCEPTED, Cause.QUALITY, Source.AUTOMATIC, Tier.SIMPLE
            )
            await client.report_outcome(told, timeout_seconds=30)
            counts[n] += 1

    async with AsyncClient(address, timeout_seconds=5) as client:
        start = time.perf_counter()
        await asyncio.gather(*(report(n, client) for n in range(CALLERS)))
        return sum(counts), time.perf_counter() - start


def written(database: Path) -> int:
    """Decisions in the store."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return int(connection.execute("SELECT count(*) FROM decisions").fetchone()[0])


def block(server: Process, database: Path, *, record: bool) -> float:
    """CPU seconds a request of one block, its decisions on disk."""
    before, cpu = written(database), server.cpu_seconds()
    with Client(server.address, timeout_seconds=5) as client:
        for n in range(BLOCK):
            client.classify(f"{PROMPT} {n}", record=record)
    while record and written(database) < before + BLOCK:
        time.sleep(0.02)
    if not record:
        time.sleep(0.6)  # as long as the last decisions of the other kind of block take, so that idling is paid alike
    return (server.cpu_seconds() - cpu) / BLOCK


def latencies(address: str) -> list[float]:
    """Seconds of each Classify of a block, sorted."""
    with Client(address, timeout_seconds=5) as client:
        client.classify(PROMPT)  # the connection
        times = []
        for n in range(BLOCK):
            start = time.perf_counter()
            client.classify(f"{PROMPT} {n}")
            times.append(time.perf_counter() - start)
    return sorted(times)


@contextlib.contextmanager
def locked(database: Path) -> Iterator[None]:
    """Nobody else can write."""
    with contextlib.closing(sqlite3.connect(database, isolation_level=None, timeout=30)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Median and 99th percentile, in milliseconds."""
    return {f"p{percent}": 1e3 * sorted(seconds)[len(seconds) * percent // 100] for percent in (50, 99)}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=SHIPPED)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--blocks", type=int, default=30, help="blocks of each kind")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-feedback-") as name:
        folder = Path(name)
        remember = ("--feedback-url", f"sqlite:///{folder}/feedback.db", "--key-file", f"{folder}/key")
        with serving(arguments.bundle, *remember) as server:
            ids = DecisionIds(read_key(folder / "key"))
            cpu = server.cpu_seconds()
            count, seconds = asyncio.run(outcomes_per_second(server.address, ids, arguments.seconds))
            cpu = server.cpu_seconds() - cpu
            database = folder / "feedback.db"
            for record in (False, True):
                block(server, database, record=record)  # warm-up
            plain, recorded = [], []
            for n in range(arguments.blocks):
                for record in (True, False) if n % 2 else (False, True):
                    (recorded if record else plain).append(block(server, database, record=record))
            free, barred = [], []
            for n in range(max(arguments.blocks // 3, 2)):
                for lock in (True, False) if n % 2 else (False, True):
                    with locked(database) if lock else contextlib.nullcontext():
                        (barred if lock else free).extend(latencies(server.address))
    base, differences = statistics.median(plain), [r - p for r, p in zip(recorded, plain, strict=True)]
    added = statistics.median(differences)
    result = {
        "outcomes_per_second": count / seconds,
        "outcome_cpu_ms": 1e3 * cpu / count,
        "callers": CALLERS,
        "classify_cpu_ms": 1e3 * base,
        "recording_cpu_ms": 1e3 * added,
        "recording_share": added / base,
        "classify_ms": {name: quantiles(times) for name, times in (("store_free", free), ("store_locked", barred))},
        "blocks": arguments.blocks,
        "requests_per_block": BLOCK,
        "bundle": str(arguments.bundle),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
    }
    print(
        f"{result['outcomes_per_second']:,.0f} outcomes/s acknowledged to {CALLERS} callers, each on disk (SQLite), "
        f"{1e6 * cpu / count:.0f} us CPU of the server each\n"
        f"recording adds {1e6 * added:.0f} us CPU to {1e3 * base:.2f} ms a Classify: {100 * added / base:.1f} %\n"
        + "\n".join(
            f"Classify, {name.replace('_', ' ')}: p50 {ms['p50']:.2f} ms, p99 {ms['p99']:.2f} ms"
            for name, ms in result["classify_ms"].items()
        ),
        file=sys.stderr,
    )
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
