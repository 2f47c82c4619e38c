"""The same work behind the servers that a user would pick: latency at one caller, throughput at 32.

    python benchmarks/bench_peers.py [--bundle PATH] [--seconds 5]

`ours` is `classifier serve` over gRPC. `fastapi_pipeline` is FastAPI around a transformers pipeline on the fp32
MiniLM-L6 teacher's shape. `fastapi_onnx`, `litserve_onnx`, `bentoml_onnx` and `ray_onnx` run the very function that
`ours` runs, `Engine.classify`, with as many workers as there are cores. Peers run in environments of their own, so
that their pins do not meet ours; `make peers` makes them. What is not installed is skipped and said so. All are
measured in turns within one run. JSON on stdout, a table on stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

PEERS = ("fastapi_pipeline", "fastapi_onnx", "litserve_onnx", "bentoml_onnx", "ray_onnx")
NEEDS = {
    "fastapi_pipeline": ("fastapi", "uvicorn", "transformers", "torch"),
    "fastapi_onnx": ("fastapi", "uvicorn"),
    "litserve_onnx": ("litserve",),
    "bentoml_onnx": ("bentoml",),
    "ray_onnx": ("ray", "starlette"),
}
ENVIRONMENTS = {"bentoml_onnx": "bentoml", "ray_onnx": "rayserve"}
TURNS = 5
PATHS = {
    "fastapi_pipeline": "/classify",
    "fastapi_onnx": "/classify",
    "litserve_onnx": "/predict",
    "bentoml_onnx": "/classify",
    "ray_onnx": "/classify",
}


# --- the peers, run in their own environment


def serve_peer(name: str, bundle: Path, port: int) -> None:
    """Serves as that peer's own documentation would have it, on all cores."""
    if name.startswith("fastapi"):
        import uvicorn
        from fastapi import FastAPI

        app, run = FastAPI(), (pipeline_function() if name == "fastapi_pipeline" else engine_function(bundle))

        def classify(body: dict[str, str]) -> dict[str, object]:
            return run(body["prompt"])

        classify.__annotations__ = {"body": dict, "return": dict}  # FastAPI reads them, and they are text in this file
        app.post("/classify")(classify)
        uvicorn.run(app, port=port, log_level="error")
    else:
        from importlib import import_module

        import_module(f"peer_{name.removesuffix('_onnx')}").serve(bundle, port)


def engine_function(bundle: Path) -> Callable[[str], dict[str, object]]:
    """Prompt → decision, in process."""
    from classifier import Request
    from classifier.engine import Engine

    engine = Engine.from_pretrained(bundle)

    def run(prompt: str) -> dict[str, object]:
        decision = engine.classify(Request.from_text(prompt))
        return {"tier": decision.tier.label, "probabilities": list(decision.probabilities)}

    return run


def pipeline_function() -> Callable[[str], dict[str, object]]:
    """Prompt → label by a transformers pipeline on MiniLM-L6 with four labels, fp32."""
    import torch
    import transformers

    from training.model import load_base

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)  # requests in parallel use the cores, as ours do
    model, fast = load_base("minilm", 192)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=fast, model_max_length=192, pad_token="[PAD]")
    classify = transformers.pipeline("text-classification", model=model.eval(), tokenizer=tokenizer, top_k=None)

    def run(prompt: str) -> dict[str, object]:
        return {"scores": classify(prompt, truncation=True)}

    return run


# --- load


class Over:
    """One server and how to ask it: `ask()` gives a function for one thread."""

    def __init__(self, name: str, command: list[str], ask: Callable[[], Callable[[str], object]]) -> None:
        self.name, self.ask = name, ask
        self.turns: list[dict[str, float]] = []
        environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}  # `training` is not installed
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, env=environ, start_new_session=True, **quiet)

    def wait(self, seconds: float = 120.0) -> bool:
        """Whether it answers, in time."""
        end = time.monotonic() + seconds
        while True:
            try:
                self.ask()("hi")
            except Exception:
                if time.monotonic() > end or self._process.poll() is not None:
                    print(f"{self.name} did not start; by hand: {' '.join(self._process.args)}", file=sys.stderr)
                    return False
                time.sleep(0.2)
            else:
                return True

    def turn(self, prompts: list[str], seconds: float) -> None:
        """One caller, then 32, half of the time each."""
        alone, _ = self._loop(prompts, 1, seconds / 2)
        server, client = self.cpu_seconds(), time.process_time()
        many, wall = self._loop(prompts, 32, seconds / 2)
        server, client = self.cpu_seconds() - server, time.process_time() - client
        self.turns.append(
            {"p50_ms": 1e3 * statistics.median(alone), "per_second": len(many) / wall}
            | {"server_cpu_ms": 1e3 * server / len(many), "client_cpu_ms": 1e3 * client / len(many)}
        )

    def cpu_seconds(self) -> float:
        """CPU time of the server and its children so far (Linux); what other processes use does not change it."""
        parents, ticks = {}, {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                pid, fields = int(path.parent.name), path.read_text().rpartition(")")[2].split()
                parents[pid], ticks[pid] = int(fields[1]), int(fields[11]) + int(fields[12])

        def ours(pid: int) -> bool:
            while pid in parents and pid != self._process.pid:
                pid = parents[pid]
            return pid == self._process.pid

        return sum(ticks[pid] for pid in ticks if ours(pid)) / os.sysconf("SC_CLK_TCK")

    def _loop(self, prompts: list[str], callers: int, seconds: float) -> tuple[list[float], float]:
        """Seconds of each answer, and of the whole: what is under way at the end counts, and so does its time."""
        took: list[float] = []
        started = time.perf_counter()
        end = started + seconds

        def caller(number: int) -> None:
            ask, i = self.ask(), number
            while (now := time.perf_counter()) < end:
                ask(prompts[i % len(prompts)])
                took.append(time.perf_counter() - now)
                i += 1

        threads = [threading.Thread(target=caller, args=(n,)) for n in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return took, time.perf_counter() - started

    def close(self) -> None:
        """Ends it and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, 15)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, 9)
            self._process.wait()


def over_http(port: int, path: str) -> Callable[[], Callable[[str], object]]:
    """Asks by POST over a connection that is kept."""

    def make() -> Callable[[str], object]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

        def ask(prompt: str) -> object:
            connection.request("POST", path, json.dumps({"prompt": prompt}), {"Content-Type": "application/json"})
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise RuntimeError(f"{path}: status {response.status}")
            return body

        return ask

    return make


def over_grpc(address: str) -> Callable[[], Callable[[str], object]]:
    """Asks by Classify; all callers share one connection."""
    from classifier import Client

    client = Client(address, timeout_seconds=60)
    return lambda: client.classify


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def installed(python: str, modules: tuple[str, ...]) -> bool:
    """Whether that interpreter has all of them."""
    code = f"import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, {modules!r})))"
    return Path(python).exists() and subprocess.run([python, "-c", code], check=False).returncode == 0


def main() -> None:
    """Measures and prints."""
    from classifier.bundle import SHIPPED

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # Resolved: some peers run in a folder of their own.
    parser.add_argument("--bundle", type=lambda name: Path(name).resolve(), default=SHIPPED)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each turn of each server")
    parser.add_argument(
        "--environments",
        default=".venv-",
        metavar="PREFIX",
        help="what the paths of their environments begin with",
    )
    parser.add_argument("--peer", nargs=2, metavar=("NAME", "PORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        serve_peer(options.peer[0], options.bundle, int(options.peer[1]))
        return
    from load import prompts
    from servers import facts

    port = free_port()
    command = [sys.executable, "-m", "classifier", "serve", "--listen", f"127.0.0.1:{port}", "--max-wait-seconds", "30"]
    command += ["--bundle", str(options.bundle), "--store", "off"]
    servers = [Over("ours", command, over_grpc(f"127.0.0.1:{port}"))]
    pythons = {name: f"{options.environments}{ENVIRONMENTS.get(name, 'peers')}/bin/python" for name in PEERS}
    missing, failed = [name for name in PEERS if not installed(pythons[name], NEEDS[name])], []
    try:
        for name in PEERS:
            if name not in missing:
                port = free_port()
                command = [pythons[name], __file__, "--bundle", str(options.bundle), "--peer", name, str(port)]
                servers.append(Over(name, command, over_http(port, PATHS[name])))
        for server in servers[:]:
            if not server.wait():
                server.close()
                servers.remove(server)
                failed.append(server.name)
        if "ours" in failed:
            raise SystemExit(1)
        texts = prompts(40)
        for _ in range(TURNS):
            for server in servers:
                server.turn(texts, options.seconds)
    finally:
        for server in servers:
            server.close()
    rows = {
        s.name: {what: statistics.median(turn[what] for turn in s.turns) for what in servers[0].turns[0]}
        for s in servers
    }
    ours = rows["ours"]
    for row in rows.values():
        row["times_our_p50"] = row["p50_ms"] / ours["p50_ms"]
        row["of_our_throughput"] = row["per_second"] / ours["per_second"]
    print(json.dumps({"facts": facts(options.bundle), "servers": rows, "skipped": missing + failed}, indent=1))
    for name, row in rows.items():
        latency = f"p50 {row['p50_ms']:7.2f} ms ({row['times_our_p50']:.1f}x)"
        shown = f"{latency}  {row['per_second']:6.0f}/s ({row['of_our_throughput']:.2f}x)"
        shown += f"  CPU a request: server {row['server_cpu_ms']:.2f} ms, client {row['client_cpu_ms']:.2f} ms"
        print(f"{name:<18} {shown}", file=sys.stderr)
    for name in missing:
        print(
            f"{name:<18} skipped: {pythons[name]} does not have {', '.join(NEEDS[name])}; make peers", file=sys.stderr
        )


if __name__ == "__main__":
    main()
