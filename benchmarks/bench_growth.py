"""What do more cores bring to `classifier label`? The rate by number of processes, and of Ray's actors, in turns.

    python benchmarks/bench_growth.py [--rows 12000] [--turns 2] [--out growth.json]

The rate on 1, 2, 4… cores up to those there are, start-up subtracted by a long and a short run; where Ray is installed
(the environment of `make test-ray`), of as many actors on a cluster of this machine, too; and of 1, 8 and 32 processes
whose engine sleeps 10 ms a row, which shows where the parent, and not a core, would be the limit.
Prints a table on stderr and JSON on stdout.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench_bulk import Nothing, shown, traffic

from classifier.answering import EngineMaker
from classifier.bulk import label
from classifier.bundle import SHIPPED
from classifier.cores import available_cores
from classifier.runs import Options

FEW_ROWS = 2000


def growth(given: argparse.Namespace, folder: Path, cores: int) -> dict[str, float]:
    """The rate by number of cores, from the difference of a long and a short run; means of the turns."""
    few, many = FEW_ROWS, given.rows
    logs = {count: folder / f"growth-{count}.jsonl" for count in (few, many)}
    for count, log in logs.items():
        traffic(log, count)
    counts = [2**i for i in range(cores.bit_length()) if 2**i <= cores]
    ways = [("local", label_here), *([("ray", label_there)] if importlib.util.find_spec("ray") else [])]
    rates: dict[str, list[float]] = {}
    for turn in range(given.turns):
        for processes in counts:
            for name, run in ways:
                took = {}
                for count, log in logs.items():
                    start = time.perf_counter()
                    run(log, folder / f"{name}-{processes}-{count}-{turn}", given.bundle, processes)
                    took[count] = time.perf_counter() - start
                rate = (many - few) / (took[many] - took[few])
                print(f"{name}, {processes} at once: {rate:,.1f} rows a second", file=sys.stderr, flush=True)
                rates.setdefault(f"{name}_rate_{processes}", []).append(rate)
    found = {name: statistics.mean(values) for name, values in rates.items()}
    for name, _ in ways:
        for processes in counts[1:]:
            found[f"{name}_growth_{processes}"] = found[f"{name}_rate_{processes}"] / found[f"{name}_rate_1"]
    for processes in (1, 8, 32):
        took = []
        for waves in (1, 3):
            log = folder / f"asleep-{processes}-{waves}.jsonl"
            traffic(log, 1000 * waves * processes)
            start = time.perf_counter()
            label([str(log)], f"{log}.parquet", Nothing(delay_seconds=0.01), Options(processes=processes))
            took.append(time.perf_counter() - start)
        found[f"asleep_rate_{processes}"] = 2000 * processes / (took[1] - took[0])
        found[f"asleep_growth_{processes}"] = found[f"asleep_rate_{processes}"] / found["asleep_rate_1"]
    return found


def label_here(log: Path, output: Path, bundle: str, processes: int) -> None:
    """A run on this machine."""
    label([str(log)], f"{output}.parquet", EngineMaker(bundle), Options(processes=processes))


def label_there(log: Path, output: Path, bundle: str, processes: int) -> None:
    """A run on a Ray cluster of its own on this machine, the log in a file for each actor."""
    from classifier.cluster import label_on_ray

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0"}
    folder = output.with_name(f"{output.name}-logs")
    folder.mkdir()
    lines = log.read_bytes().splitlines(keepends=True)
    for i in range(processes):
        (folder / f"{i:03}.jsonl").write_bytes(b"".join(lines[i::processes]))
    label_on_ray([str(folder)], str(output), bundle, Options(processes=processes))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=12_000, help=f"of the long runs; the short ones have {FEW_ROWS:,}")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--bundle", default=str(SHIPPED))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    cores, load = available_cores(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        found = {"cores": cores, "load_before": load, **growth(given, Path(name), cores)}
    print("\n".join(shown(found)), file=sys.stderr)
    print(json.dumps(found))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
