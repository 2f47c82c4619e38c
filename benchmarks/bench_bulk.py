"""How fast are logs labelled, against the engine on one core, and how much memory does it take? One run, ratios first.

    python benchmarks/bench_bulk.py [--rows 100000] [--memory-rows 1000000] [--bundle PATH] [--out bulk.json]

Mixed traffic is made from `data/`: its prompts, each perturbed by a number at its end, as plain prompts, OpenAI and
Anthropic bodies. The engine's own rate is measured before and after the run, on one core and then in as many processes
at once as there are cores, so that what a core is worth beside busy neighbours is known. The memory of the parent is
measured with an engine that does nothing. Prints a table on stderr and JSON on stdout. What the pipeline of
`transformers` does is measured with `--teacher PATH`, a folder with a fine-tuned MiniLM-L6 classifier (or with
`--teacher random`, the same graph with random weights, which costs the same).
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
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from typing import Self

from classifier.answering import EngineMaker, Identity, identity_of
from classifier.bulk import label
from classifier.bundle import SHIPPED
from classifier.engine import Engine
from classifier.labelling import EngineAnswers
from classifier.payloads import request_of_row
from classifier.runs import Options
from classifier.settings import available_cores
from classifier.testing import FAKE_POLICY, FakeEngine

DATA = Path(__file__).parents[1] / "data"


class Nothing:
    """Makes an engine that does nothing, in each process."""

    def identity(self, policy: str) -> Identity:
        del policy
        return identity_of("fake000000000000", "fake", FAKE_POLICY)

    def __call__(self) -> EngineAnswers:
        return EngineAnswers(FakeEngine())


def traffic(path: Path, count: int) -> list[dict]:
    """Writes so many rows of mixed traffic; returns the first 2,000."""
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
            if i < 2000:
                first.append(row)
    return first


def engine_cpu(bundle: str, rows: list[dict], count: int) -> float:
    """CPU seconds of one `Engine.classify` in one process; busy neighbours change little."""
    engine = Engine.from_pretrained(bundle)
    requests = [request_of_row(row) for row in rows]
    start = time.process_time()
    for i in range(count):
        engine.classify(requests[i % len(requests)])
    return (time.process_time() - start) / count


def cpu_seconds() -> float:
    """CPU time of this process and of those that it has waited for."""
    return sum(getrusage(who).ru_utime + getrusage(who).ru_stime for who in (RUSAGE_SELF, RUSAGE_CHILDREN))


def engine_rate(bundle: str, rows: list[dict], seconds: float) -> float:
    """Answers a second of `Engine.classify` in one process, requests parsed beforehand."""
    engine = Engine.from_pretrained(bundle)
    requests = [request_of_row(row) for row in rows]
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        engine.classify(requests[done % len(requests)])
        done += 1
    return done / (time.perf_counter() - start)


def together(bundle: str, rows: list[dict], seconds: float, cores: int) -> float:
    """The rates of as many engines at once as there are cores, summed."""
    with ProcessPoolExecutor(cores) as pool:
        return sum(pool.map(engine_rate, [bundle] * cores, [rows] * cores, [seconds] * cores))


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


def memory(rows: int, folder: str) -> dict[str, float]:
    """Peak memory of the parent and the rate, with an engine that does nothing; in a process of its own."""
    code = (
        "import sys, json, time; sys.path.insert(0, sys.argv[3])\n"
        "from bench_bulk import Nothing, Watch, label, Options\n"
        "if __name__ == '__main__':\n"
        "    start = time.perf_counter()\n"
        "    with Watch() as watch: label([sys.argv[1]], sys.argv[2], Nothing(), Options(processes=2))\n"
        "    print(json.dumps({'peak_mb': max(watch.samples), 'seconds': time.perf_counter() - start}))\n"
    )
    script = Path(folder) / "memory.py"
    script.write_text(code)
    log = Path(folder) / f"memory-{rows}.jsonl"
    traffic(log, rows)
    arguments = [sys.executable, str(script), str(log), f"{log}.parquet", str(Path(__file__).parent)]
    found = json.loads(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)
    log.unlink()
    return found


def startup(bundle: str, folder: str) -> float:
    """Seconds from the command to its end, for one row: the median of five."""
    log, took = Path(folder) / "one.jsonl", []
    log.write_text('{"prompt": "hi"}\n')
    for i in range(5):
        start = time.perf_counter()
        arguments = ["label", str(log), "-o", f"{folder}/one-{i}.parquet", "--bundle", bundle]
        subprocess.run([sys.executable, "-m", "classifier", *arguments], check=True, capture_output=True)
        took.append(time.perf_counter() - start)
    return statistics.median(took)


def pipeline_rate(teacher: str, rows: list[dict], seconds: float) -> float:
    """Answers a second of a `transformers` pipeline over the fp32 teacher, one by one, all cores."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, pipeline

    torch.set_num_threads(available_cores())
    tokenizer = AutoTokenizer.from_pretrained(str(SHIPPED) if teacher == "random" else teacher)
    if teacher == "random":
        config = BertConfig(
            vocab_size=len(tokenizer), hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
            intermediate_size=1536, num_labels=4,
        )  # fmt: skip
        model = AutoModelForSequenceClassification.from_config(config)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(teacher)
    classify = pipeline("text-classification", model=model.eval(), tokenizer=tokenizer, device="cpu")
    texts = [request_of_row(row).messages[-1].content for row in rows]
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        classify(texts[done % len(texts)], truncation=True, max_length=256)
        done += 1
    return done / (time.perf_counter() - start)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--memory-rows", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--bundle", default=str(SHIPPED))
    parser.add_argument("--teacher", default="")
    parser.add_argument("--out", default="")
    given = parser.parse_args()
    cores = available_cores()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.jsonl"
        first = traffic(log, given.rows)
        found: dict[str, float] = {"cores": cores, "rows": given.rows, "startup_seconds": startup(given.bundle, folder)}
        before = engine_rate(given.bundle, first, given.seconds)
        both = together(given.bundle, first, given.seconds, cores)
        engine_cpu_seconds = engine_cpu(given.bundle, first, 2000)
        start, start_cpu = time.perf_counter(), cpu_seconds()
        tally = label([str(log)], f"{folder}/out.parquet", EngineMaker(given.bundle), Options()).tally
        rate = given.rows / (time.perf_counter() - start)
        bulk_cpu_seconds = (cpu_seconds() - start_cpu) / given.rows
        engine_cpu_seconds = (engine_cpu_seconds + engine_cpu(given.bundle, first, 2000)) / 2
        both = (both + together(given.bundle, first, given.seconds, cores)) / 2
        single = (before + engine_rate(given.bundle, first, given.seconds)) / 2
        found |= {"bulk_rate": rate, "engine_rate": single, "engines_together_rate": both, "bad": tally.bad}
        found |= {"cpu_ms_a_row": 1e3 * bulk_cpu_seconds, "engine_cpu_ms": 1e3 * engine_cpu_seconds}
        found["engine_share_of_cpu"] = engine_cpu_seconds / bulk_cpu_seconds
        found |= {"per_core": rate / (cores * single), "of_engines_together": rate / both, "repeats": tally.repeats}
        for rows in (10_000, given.memory_rows):
            told = memory(rows, folder)
            found |= {f"memory_mb_{rows}": told["peak_mb"], f"read_rate_{rows}": rows / told["seconds"]}
        if given.teacher:
            found["pipeline_rate"] = pipeline_rate(given.teacher, first, given.seconds)
            found["times_pipeline"] = rate / found["pipeline_rate"]
    for name, value in found.items():
        print(f"{name:<26}{value:>12,.3f}", file=sys.stderr)
    print(json.dumps(found))
    if given.out:
        Path(given.out).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
