"""How long does one run of the graph take, by depth and length, beside a plain int8 export of MiniLM-L6? One run.

    python -m benchmarks.bench_model [--bundle PATH] [--rounds 60] [--out model.json]

Graphs of 2, 3, 4 and 6 of MiniLM's layers are exported as `training.export` does, and six layers once more as optimum
alone does; a time does not depend on what the weights have learnt. One thread, one request a run, all graphs in turns,
so that a busy machine slows all alike. Needs the extras `training` and `minilm`. Prints a table on stderr and JSON on
stdout.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
from transformers import logging

from classifier.bundle import SHIPPED
from classifier.session import Session
from training import export
from training.graph import fuse
from training.int8 import quantise
from training.model import load_base, student_from

LENGTHS = (20, 40, 60, 200, 256)
"""Tokens of a request, the markers included. 20 to 60 are a short prompt's."""
PLAIN = "6 layers, plain export"


def graph(layers: int, folder: Path, *, fused: bool = True) -> Session:
    """An int8 graph of MiniLM cut to `layers`, with a head that has learnt nothing."""
    folder.mkdir()
    model, _ = load_base("minilm", 256)
    model = student_from(model, layers).eval().float()
    export.export_fp32(fuse(model) if fused else model, folder)
    quantise(folder, [])  # a time does not depend on how weights were rounded
    return Session(folder / "model_quantized.onnx")


def medians(sessions: dict[str, Session], rounds: int) -> dict[str, dict[int, float]]:
    """Milliseconds of one run, by graph and length."""
    rng = np.random.default_rng(0)
    found: dict[str, dict[int, float]] = {name: {} for name in sessions}
    for length in LENGTHS:
        times: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(rounds):
            ids = rng.integers(1000, 20_000, (1, length), dtype=np.int64)
            for name, session in sessions.items():
                start = time.perf_counter()
                session.run(ids, np.ones_like(ids), np.zeros_like(ids))
                times[name].append(time.perf_counter() - start)
        for name, values in times.items():
            found[name][length] = float(np.median(values)) * 1e3
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=SHIPPED)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        sessions = {f"{n} layers": graph(n, Path(folder) / str(n)) for n in (2, 3, 4, 6)}
        sessions[PLAIN] = graph(6, Path(folder) / "plain", fused=False)
        sessions["the bundle"] = Session(options.bundle / "model.onnx")
        medians(sessions, 3)
        found = medians(sessions, options.rounds)
    short = {name: float(np.mean([times[n] / found[PLAIN][n] for n in LENGTHS[:3]])) for name, times in found.items()}
    header = "median ms by tokens" + "".join(f"{n:>8d}" for n in LENGTHS)
    print(header + "   of plain MiniLM-L6, 20-60", file=sys.stderr)
    for name, times in found.items():
        print(f"{name:<19}" + "".join(f"{times[n]:8.2f}" for n in LENGTHS) + f"   {short[name]:.2f}", file=sys.stderr)
    result = {
        "milliseconds": found,
        "of_plain_minilm": short,
        "machine": platform.processor() or platform.machine(),
        "onnxruntime": onnxruntime.__version__,
    }
    text = json.dumps(result, indent=1)
    if options.out:
        options.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
