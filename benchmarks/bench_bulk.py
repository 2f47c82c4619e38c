"""How fast are logs labelled, how soon does it begin, in how much memory? Each part is one command; ratios of one run.

    python benchmarks/bench_bulk.py [startup|rate|memory|pipeline …] [--rows 100000] [--out bulk.json]

Without a part all run. Mixed traffic is made from `data/`: its prompts, each perturbed by a number at its
end so that none repeats, as plain prompts, OpenAI and Anthropic bodies.

- *rate*: `classifier label` over `--rows` with a process a core, against cores × the engine's own rate on one core,
  measured before and after the run, and against as many engines at once as there are cores, which tells what a core is
  worth beside busy neighbours; and the engine's part of a row's processor time.
- *startup*: from the command to its end for one row, and to the first chunk of a run on all cores with its engines
  loaded; beside the first the processor time that it takes, which busy neighbours change little.
- *memory*: the parent's peak with 10,000 rows and with `--memory-rows`, answers made by an engine that does nothing;
  and the parent's processor time a row, reading and merging: what more cores do not make faster.
- *pipeline*: a `transformers` pipeline loop over the fp32 teacher, all cores, against `classifier label`, in turns.
  `--teacher PATH` is a fine-tuned one; by default MiniLM-L6 with an untrained head, which takes the same time.

Prints a table on stderr and JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from typing import Self

from classifier.answering import EngineMaker, Identity, identity_of
from classifier.bulk import label
from classifier.bundle import SHIPPED
from classifier.cores import available_cores
from classifier.engine import Engine
from classifier.labelling import EngineAnswerer
from classifier.payloads import request_of_row
from classifier.runs import Options
from classifier.testing import FAKE_POLICY, FakeEngine

DATA = Path(__file__).parents[1] / "data"
KEPT_ROWS = 2000


@dataclass(frozen=True)
class Nothing:
    """Makes an engine that does nothing, in each process; with a bundle, after loading that.

    Attributes:
        bundle: loaded and left, so that a start takes what it takes.
        delay_seconds: that an answer takes, asleep.
    """

    bundle: str = ""
    delay_seconds: float = 0.0

    def identity(self, policy: str) -> Identity:
        del policy
        return identity_of("fake000000000000", "fake", FAKE_POLICY)

    def __call__(self) -> EngineAnswerer:
        if self.bundle:
            Engine.from_pretrained(self.bundle)
        return EngineAnswerer(FakeEngine(delay_seconds=self.delay_seconds))


def traffic(path: Path, count: int) -> list[dict]:
    """Writes so many rows of mixed traffic; returns the first ones."""
    draw = random.Random(9)
    rows = [json.loads(line) for file in sorted(DATA.glob("*.jsonl")) for line in file.open(encoding="utf-8")]
    draw.shuffle(rows)
    first = []
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            messages = [dict(m) for m in (rows[i % len(rows)].get("messages") or [])]
            if not messages:
                messages = [{"role": "user", "content": rows[i % len(rows)]["prompt"]}]
            messages[-1]["content"] += f" ({i})"
            row = {"tenant": f"t{i % 7}", "model": "big", "tokens": i % 900}
            if len(messages) == 1 and i % 3:
                row["prompt"] = messages[0]["content"]
            elif i % 2:
                row |= {"messages": messages, "tools": [{"type": "function", "function": {"name": "search"}}]}
            else:
                parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
                row |= {"system": "You are helpful.", "messages": parts}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            if i < KEPT_ROWS:
                first.append(row)
    return first


def per_second(work: Callable[[int], object], seconds: float) -> float:
    """How often a second `work` is done; it is told how often it was done before."""
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        work(done)
        done += 1
    return done / (time.perf_counter() - start)


def engine_rate(bundle: str, rows: list[dict], seconds: float) -> tuple[float, float]:
    """Answers a second of `Engine.classify` in one process, requests parsed before, and CPU seconds of an answer."""
    engine = Engine.from_pretrained(bundle)
    requests = [request_of_row(row) for row in rows]
    start, cpu = time.perf_counter(), time.process_time()
    rate = per_second(lambda i: engine.classify(requests[i % len(requests)]), seconds)
    return rate, (time.process_time() - cpu) / (rate * (time.perf_counter() - start))


def together(bundle: str, rows: list[dict], seconds: float, cores: int) -> float:
    """The rates of as many engines at once as there are cores, summed."""
    with ProcessPoolExecutor(cores) as pool:
        return sum(found for found, _ in pool.map(engine_rate, [bundle] * cores, [rows] * cores, [seconds] * cores))


def cpu_seconds() -> float:
    """CPU time of this process and of those that it has waited for."""
    return sum(getrusage(who).ru_utime + getrusage(who).ru_stime for who in (RUSAGE_SELF, RUSAGE_CHILDREN))


def rate(given: argparse.Namespace, folder: Path, cores: int) -> dict[str, float]:
    """`classifier label` against the engine on one core, and against engines on all of them."""
    log = folder / "log.jsonl"
    first = traffic(log, given.rows)
    singles, all_at_once = [], []
    took = cpu = 0.0
    for turn in (0, 1):
        singles.append(engine_rate(given.bundle, first, given.seconds))
        all_at_once.append(together(given.bundle, first, given.seconds, cores))
        if not turn:
            start, start_cpu = time.perf_counter(), cpu_seconds()
            tally = label([str(log)], str(folder / "out.parquet"), EngineMaker(given.bundle), Options()).tally
            took, cpu = time.perf_counter() - start, cpu_seconds() - start_cpu
    bulk, everywhere, cpu = given.rows / took, statistics.mean(all_at_once), cpu / given.rows
    single, engine_cpu = (statistics.mean(values) for values in zip(*singles, strict=True))
    return {
        "bulk_rate": bulk,
        "engine_rate": single,
        "engines_together_rate": everywhere,
        "of_cores_times_engine": bulk / (cores * single),
        "of_engines_together": bulk / everywhere,
        "cpu_ms_a_row": 1e3 * cpu,
        "engine_cpu_ms": 1e3 * engine_cpu,
        "engine_share_of_cpu": engine_cpu / cpu,
        "bad": tally.bad,
        "repeats": tally.repeats,
    }


class Watch:
    """Resident memory of this process over time (Linux)."""

    def __init__(self) -> None:
        self.samples: list[float] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self._done.wait(0.1):
            self.samples.append(int(Path("/proc/self/statm").read_text().split()[1]) * page / 1e6)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._done.set()
        self._thread.join()


def fake_run(log: Path, bundle: str = "") -> dict[str, float]:
    """A run with an engine that does nothing, in a process of its own: memory, seconds, seconds to the first chunk."""
    script = log.with_suffix(".py")
    script.write_text(
        "import sys, json, time\n"
        "from resource import RUSAGE_SELF, getrusage\n"
        "began = float(sys.argv[1]); sys.path.insert(0, sys.argv[4])\n"
        "from bench_bulk import Nothing, Watch, label, Options\n"
        "if __name__ == '__main__':\n"
        "    told = []\n"
        "    with Watch() as watch:\n"
        "        label([sys.argv[2]], sys.argv[3], Nothing(sys.argv[5]), Options(),\n"
        "              told=lambda _: told.append(time.time()))\n"
        "    used = getrusage(RUSAGE_SELF)\n"
        "    print(json.dumps({'mb': max(watch.samples, default=0), 'whole': time.time() - began,\n"
        "                      'first': told[0] - began, 'cpu': used.ru_utime + used.ru_stime}))\n"
    )
    output = log.with_suffix(f".{time.time_ns()}.parquet")
    arguments = [str(time.time()), str(log), str(output), str(Path(__file__).parent), bundle]
    done = subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def memory(given: argparse.Namespace, folder: Path) -> dict[str, float]:
    """The parent's peak memory with few and with many rows."""
    found = {}
    for rows in (10_000, given.memory_rows):
        log = folder / f"memory-{rows}.jsonl"
        traffic(log, rows)
        told = fake_run(log)
        found |= {f"parent_mb_{rows}": told["mb"], f"rate_without_model_{rows}": rows / told["whole"]}
        found[f"parent_cpu_us_a_row_{rows}"] = 1e6 * told["cpu"] / rows
        log.unlink()
    return found


def startup(given: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Seconds of a command with one row, and until the first chunk of a run on all cores; medians of five runs."""
    one, many = folder / "one.jsonl", folder / "many.jsonl"
    one.write_text('{"prompt": "hi"}\n')
    many.write_text('{"prompt": "hi"}\n' * 20_000)
    whole, cpu, first = [], [], []
    for i in range(5):
        start, start_cpu = time.perf_counter(), cpu_seconds()
        arguments = ["label", str(one), "-o", str(folder / f"one-{i}.parquet"), "--bundle", given.bundle]
        subprocess.run([sys.executable, "-m", "classifier", *arguments], check=True, capture_output=True)
        whole.append(time.perf_counter() - start)
        cpu.append(cpu_seconds() - start_cpu)
        first.append(fake_run(many, given.bundle)["first"])
    return {
        "one_row_seconds": statistics.median(whole),
        "one_row_cpu_seconds": statistics.median(cpu),
        "first_chunk_seconds": statistics.median(first),
    }


def pipeline(given: argparse.Namespace, folder: Path) -> dict[str, float]:
    """`classifier label` against a `transformers` pipeline that is called with one text after another, in turns."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizerFast
    from transformers import pipeline as pipeline_of

    from training.model import load_base

    torch.set_num_threads(available_cores())
    if given.teacher:
        model = AutoModelForSequenceClassification.from_pretrained(given.teacher)
        tokenizer = AutoTokenizer.from_pretrained(given.teacher)
    else:
        model, fast = load_base("minilm", 256)
        tokenizer = BertTokenizerFast(tokenizer_object=fast)
    classify = pipeline_of("text-classification", model=model.eval(), tokenizer=tokenizer, device="cpu")
    log, count = folder / "turns.jsonl", min(given.rows, 20_000)
    texts = ["\n".join(m.content for m in request_of_row(row).messages) for row in traffic(log, count)]

    def one_by_one(i: int) -> None:
        classify(texts[i % len(texts)], truncation=True, max_length=256)

    rates, bulk = [], []
    for turn in range(3):
        rates.append(per_second(one_by_one, given.seconds))
        if turn < 2:
            start = time.perf_counter()
            label([str(log)], str(folder / f"turn-{turn}.parquet"), EngineMaker(given.bundle), Options())
            bulk.append(count / (time.perf_counter() - start))
    return {
        "pipeline_rate": statistics.mean(rates),
        "bulk_beside_it_rate": statistics.mean(bulk),
        "times_pipeline": statistics.mean(bulk) / statistics.mean(rates),
    }


def shown(found: dict[str, float]) -> Iterable[str]:
    """A line for each number."""
    return (f"{name:<34}{value:>14,.3f}" for name, value in found.items())


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("startup", "rate", "memory", "pipeline")
    parser.add_argument("parts", nargs="*", choices=(*parts, []), metavar="PART", help=", ".join(parts))
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--memory-rows", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement of an engine or a pipeline")
    parser.add_argument("--bundle", default=str(SHIPPED))
    parser.add_argument("--teacher", default="")
    parser.add_argument("--out", default="")
    given = parser.parse_args()
    cores, load = available_cores(), os.getloadavg()[0]
    found: dict[str, float] = {"cores": cores, "load_before": load}
    chosen = given.parts or parts
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "startup" in chosen:
            found |= startup(given, folder)
        if "rate" in chosen:
            found |= {"rows": given.rows, **rate(given, folder, cores)}
        if "memory" in chosen:
            found |= memory(given, folder)
        if "pipeline" in chosen:
            found |= pipeline(given, folder)
    print("\n".join(shown(found)), file=sys.stderr)
    print(json.dumps(found))
    if given.out:
        Path(given.out).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
