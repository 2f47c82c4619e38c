"""How fast is a classification in process, over gRPC, and against an RPC that does nothing? One run, ratios first.

    python benchmarks/bench_serving.py [--bundle PATH] [--seconds 5] [--out serving.json]

Everything is measured in turns within one run, so that a busy machine slows all sides alike; medians are compared,
never numbers of two runs. The echo server answers bytes of the same sizes through the same admission and the same
executor hop, without parsing, preparing or scoring: what remains is gRPC for Python and the wake-ups. A second echo
server does without the hop when a request is alone, as the service does. A third runs the model in the hop, on one
input prepared before: what it takes beyond the model alone is the least that any such server with a hop adds to a run
of that length, as cores that idled meanwhile have to wake up and caches were swept.
Prints a table on stderr and JSON on stdout.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import grpc

from classifier import Request, wire
from classifier.bundle import SHIPPED
from classifier.engine import Engine
from classifier.lifetime import run
from classifier.v1 import classifier_pb2 as pb

METHOD = f"/{wire.SERVICE}/Classify"
TEXT = """please explain how the billing service retries failed payments and write a short test that shows what happens
when the database is slow or the network drops half of the packets between two regions during a deploy on friday"""
TOKENS = {"20-60 tokens": 40, "200 tokens": 200, "2,000 tokens": 2000, "4 kB": 700, "1 MB": 175_000}
TURNS = 12


def prompts(words: int, count: int = 32) -> list[str]:
    """Prompts of about that many tokens, all different."""
    draw, vocabulary = random.Random(7), TEXT.split()
    return [" ".join(draw.choice(vocabulary) for _ in range(words)) for _ in range(count)]


def percentiles(seconds: list[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds."""
    ordered = sorted(seconds)
    return {
        "p50_ms": 1e3 * statistics.median(ordered),
        "p99_ms": 1e3 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
    }


def timed(work: Callable[[int], object], seconds: float, start: int = 0) -> list[float]:
    """Durations of `work(i)`, again and again for that long."""
    took, end, i = [], time.perf_counter() + seconds, start
    while (now := time.perf_counter()) < end:
        work(i)
        took.append(time.perf_counter() - now)
        i += 1
    return took


def fixed_request() -> Request:
    """What the echo server that runs the model runs it on."""
    return Request.from_text(prompts(TOKENS["20-60 tokens"])[0])


# --- the echo server: the same transport and the same hop, and nothing else


async def echo_server(answer_bytes: int, cores: int, engine: Engine | None, *, single: bool) -> None:
    """Answers every Classify with that many bytes, after a hop through `Admission`, and there a run of the model.

    With `single` there is no hop for a request that is alone.
    """
    from classifier.admission import Admission

    admission = Admission(cores, 256, 10.0)
    answer = b"x" * answer_bytes
    prepared = engine and engine.prepare(fixed_request())

    def work() -> bytes:
        if engine and prepared:
            engine.score(prepared)
        return answer

    async def handle(data: bytes, context: object) -> bytes:
        del data, context
        found, _ = await admission.run(work, "echo", single=single)
        return found

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 2**24)])
    methods = {"Classify": grpc.unary_unary_rpc_method_handler(handle)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(wire.SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"serving on 127.0.0.1:{port}", file=sys.stderr, flush=True)
    await server.wait_for_termination()


class Process:
    """A server process: its address, CPU seconds and resident memory."""

    def __init__(self, *command: str) -> None:
        started = time.perf_counter()
        self._process = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        line = ""
        while not line.startswith("serving on "):
            line = self._process.stderr.readline()
            if not line:
                raise SystemExit(f"{' '.join(command)} ended with {self._process.wait()}")
        self.ready_seconds = time.perf_counter() - started
        self.address = line.split()[-1]

    def cpu_seconds(self) -> float:
        """User and system time so far (Linux)."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_mb(self) -> float:
        """Resident memory (Linux)."""
        return int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    def close(self) -> None:
        """Ends it."""
        self._process.terminate()
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()


@contextlib.contextmanager
def process(*command: str) -> Iterator[Process]:
    """A server process for the length of a block."""
    running = Process(*command)
    try:
        yield running
    finally:
        running.close()


# --- load over gRPC


def message(prompt: str) -> bytes:
    """A serialised ClassifyRequest."""
    return pb.ClassifyRequest(messages=[pb.Message(role="user", content=prompt)]).SerializeToString()


async def closed_loop(
    address: str, payloads: list[bytes], callers: int, connections: int, seconds: float
) -> dict[str, float]:
    """`callers` that each send the next request when the last is answered."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options) for _ in range(connections)]
    calls = [channel.unary_unary(METHOD) for channel in channels]
    await asyncio.gather(*(call(payloads[0], timeout=10) for call in calls))
    took: list[float] = []
    errors = 0
    end = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        nonlocal errors
        call, i = calls[number % connections], number
        while (now := time.perf_counter()) < end:
            try:
                await call(payloads[i % len(payloads)], timeout=10)
                took.append(time.perf_counter() - now)
            except grpc.RpcError:
                errors += 1
            i += 1

    started = time.perf_counter()
    await asyncio.gather(*(caller(n) for n in range(callers)))
    wall = time.perf_counter() - started
    for channel in channels:
        await channel.close()
    return {
        "per_second": len(took) / wall,
        "errors": errors,
        "answered": len(took),
        **percentiles(took or [float("nan")]),
    }


async def open_loop(address: str, payloads: list[bytes], rate: float, seconds: float) -> dict[str, float]:
    """Poisson arrivals at `rate` a second, whether or not the earlier ones were answered."""
    draw = random.Random(11)
    took: list[float] = []
    errors = 0
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(METHOD)
        await call(payloads[0], timeout=10)

        async def one(i: int, due: float) -> None:
            nonlocal errors
            try:
                await call(payloads[i % len(payloads)], timeout=10)
                took.append(time.perf_counter() - due)
            except grpc.RpcError:
                errors += 1

        due, end, tasks = time.perf_counter(), time.perf_counter() + seconds, []
        while due < end:
            due += draw.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(one(len(tasks), due)))
        await asyncio.gather(*tasks)
    return {"offered_per_second": rate, "errors": errors, **percentiles(took or [float("nan")])}


def latency(engine: Engine, servers: dict[str, Process], seconds: float) -> dict[str, dict[str, float]]:
    """One caller: in process, over gRPC and echoed, in turns. `servers`: rpc, echo, echo_here, echo_model."""
    found = {}
    prepared = engine.prepare(fixed_request())
    with contextlib.ExitStack() as channels:
        call = {
            side: channels.enter_context(grpc.insecure_channel(each.address)).unary_unary(METHOD)
            for side, each in servers.items()
        }
        for name, words in TOKENS.items():
            texts = prompts(words, 4 if words > 10_000 else 32)
            requests = [Request.from_text(text) for text in texts]
            payloads = [message(text) for text in texts]
            work: dict[str, Callable[[int], object]] = {
                "in_process": lambda i, requests=requests: engine.classify(requests[i % len(requests)]),
            }
            for side in ("rpc", "echo", "echo_here"):
                work[side] = lambda i, ask=call[side], payloads=payloads: ask(payloads[i % len(payloads)], timeout=10)
            if name == "20-60 tokens":
                work["model"] = lambda _: engine.score(prepared)
                work["echo_model"] = lambda _, data=payloads[0]: call["echo_model"](data, timeout=10)
            for each in work.values():
                timed(each, 0.2)
            # Each side's median of each turn; then the medians over the turns, and p99 as the median of the turns'.
            turns: dict[str, list[dict[str, float]]] = {side: [] for side in work}
            for _ in range(TURNS):
                for side, each in work.items():
                    turns[side].append(percentiles(timed(each, seconds / TURNS)))
            sides = {
                f"{side}_{q}": statistics.median(turn[q] for turn in turns[side])
                for side in work
                for q in ("p50_ms", "p99_ms")
            }
            overhead = sides["rpc_p50_ms"] - sides["in_process_p50_ms"]
            found[name] = {
                **sides,
                "overhead_over_echo": overhead / sides["echo_p50_ms"],
                "overhead_over_echo_here": overhead / sides["echo_here_p50_ms"],
            }
            if "echo_model" in work:
                least = sides["echo_model_p50_ms"] - sides["model_p50_ms"]
                found[name] |= {
                    "least_overhead_over_echo": least / sides["echo_p50_ms"],
                    "overhead/least": overhead / least,
                }
    return found


def all_cores_in_process(bundle: Path, seconds: float) -> float:
    """Median seconds of a classification in process, while as many processes as cores do nothing else."""
    command = [sys.executable, __file__, "--bundle", str(bundle), "--in-process", str(seconds)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in os.sched_getaffinity(0)]
    return statistics.median(float(each.communicate()[0]) for each in running)


def throughput(engine: Engine, bundle: Path, server: Process, echo: Process, seconds: float) -> dict[str, object]:
    """Many callers: 1, 8, 32 and 128, on one connection and several; and what could be had at best."""
    texts = prompts(TOKENS["20-60 tokens"])
    payloads, requests = [message(t) for t in texts], [Request.from_text(t) for t in texts]
    rows: dict[str, dict[str, float]] = {}
    for callers in (1, 8, 32, 128):
        for connections in sorted({1, min(callers, 8)}):
            result = asyncio.run(closed_loop(server.address, payloads, callers, connections, seconds))
            rows[f"{callers} callers, {connections} connections"] = result
    ratios, parts = [], []
    for _ in range(5):
        both = all_cores_in_process(bundle, seconds / 5)
        mine = time.process_time()
        alone = timed(lambda i: engine.classify(requests[i % len(requests)]), seconds / 5)
        m, m_cpu = statistics.median(alone), (time.process_time() - mine) / len(alone)
        mine, theirs = time.process_time(), echo.cpu_seconds()
        echoed = asyncio.run(closed_loop(echo.address, payloads, 32, 1, seconds / 2))
        g = (time.process_time() - mine + echo.cpu_seconds() - theirs) / echoed["answered"]
        mine, theirs = time.process_time(), server.cpu_seconds()
        ours = asyncio.run(closed_loop(server.address, payloads, 32, 1, seconds / 2))
        rpc_cpu = (time.process_time() - mine + server.cpu_seconds() - theirs) / ours["answered"]
        best = 2 / (m + g)
        ratios.append(ours["per_second"] / best)
        parts.append({"m_ms": 1e3 * m, "g_ms": 1e3 * g, "best_per_second": best, "per_second": ours["per_second"]})
        parts[-1] |= {"rpc_cpu_ms": 1e3 * rpc_cpu, "cpu_ratio": (m_cpu + g) / rpc_cpu}
        parts[-1] |= {"both_m_ms": 1e3 * both, "both_ratio": ours["per_second"] / (2 / (both + g))}
    capacity = statistics.median(part["per_second"] for part in parts)
    return {
        "closed_loop": rows,
        "of_best_at_32_callers": statistics.median(ratios),
        # The same ratio in CPU time, which other processes on the machine change little.
        "of_best_at_32_callers_by_cpu": statistics.median(part["cpu_ratio"] for part in parts),
        # And with m taken while every core classifies: cores that are two threads of one slow each other.
        "of_best_at_32_callers_both_busy": statistics.median(part["both_ratio"] for part in parts),
        "of_best_parts": parts,
        "open_loop": {
            f"{share:.0%} of capacity": asyncio.run(open_loop(server.address, payloads, share * capacity, seconds))
            for share in (0.3, 0.6, 0.9)
        },
    }


def facts(bundle: Path) -> dict[str, object]:
    """What the numbers depend on."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": cpu[1] if cpu else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        **{name: version(name) for name in ("grpcio", "onnxruntime", "tokenizers")},
        "event_loop": "uvloop" if find_spec("uvloop") else "asyncio",
        "bundle": json.loads((bundle / "manifest.json").read_text())["version"],
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=SHIPPED)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each number")
    parser.add_argument("--out", type=Path, help="write the JSON there as well")
    parser.add_argument("--echo-server", type=int, metavar="BYTES", help=argparse.SUPPRESS)
    parser.add_argument("--in-process", type=float, metavar="SECONDS", help=argparse.SUPPRESS)
    parser.add_argument("--run-model", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--single", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.echo_server is not None:
        runs = Engine.from_pretrained(options.bundle) if options.run_model else None
        run(echo_server(options.echo_server, len(os.sched_getaffinity(0)), runs, single=options.single))
        return
    engine = Engine.from_pretrained(options.bundle)
    if options.in_process is not None:
        requests = [Request.from_text(text) for text in prompts(TOKENS["20-60 tokens"])]
        print(statistics.median(timed(lambda i: engine.classify(requests[i % len(requests)]), options.in_process)))
        return
    answer_bytes = wire.decision_to_proto(engine.classify(Request.from_text("hi"))).ByteSize() + 60
    serve = ("-m", "classifier", "serve", "--listen", "127.0.0.1:0", "--bundle", str(options.bundle))
    serve += ("--queue-size", "256", "--max-wait-seconds", "10", "--store", "off")
    ready, resident = [], []
    for _ in range(5):
        with process(*serve) as server:
            ready.append(server.ready_seconds)
            resident.append(server.resident_mb())
    echoes = (__file__, "--bundle", str(options.bundle), "--echo-server", str(answer_bytes))
    with (
        process(*serve) as server,
        process(*echoes) as echo,
        process(*echoes, "--single") as echo_here,
        process(*echoes, "--run-model") as echo_model,
    ):
        servers = {"rpc": server, "echo": echo, "echo_here": echo_here, "echo_model": echo_model}
        result = {
            "facts": facts(options.bundle),
            "latency": latency(engine, servers, options.seconds),
            "throughput": throughput(engine, options.bundle, server, echo, options.seconds),
            "cold_start": {"ready_seconds": statistics.median(ready), "resident_mb": statistics.median(resident)},
            "resident_mb_after": server.resident_mb(),
        }
    short, kilobytes, megabyte = (result["latency"][n] for n in ("20-60 tokens", "4 kB", "1 MB"))
    result["targets"] = {
        "(rpc - in process) / echo, 20-60 tokens, <= 1.3": short["overhead_over_echo"],
        "the same over an echo without the hop when alone": short["overhead_over_echo_here"],
        "the same of an echo that runs the model": short["least_overhead_over_echo"],
        "the first / the second": short["overhead/least"],
        "throughput / best at 32 callers, one connection, >= 0.85": result["throughput"]["of_best_at_32_callers"],
        "the same with m taken while every core is busy": result["throughput"]["of_best_at_32_callers_both_busy"],
        "the same by CPU time": result["throughput"]["of_best_at_32_callers_by_cpu"],
        "1 MB / 4 kB over RPC, <= 3": megabyte["rpc_p50_ms"] / kilobytes["rpc_p50_ms"],
        "READY seconds, <= 1": result["cold_start"]["ready_seconds"],
        "resident MB, <= 200": result["resident_mb_after"],
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    for name, sides in result["latency"].items():
        shown = "  ".join(
            f"{side} {sides[f'{side}_p50_ms']:6.2f}/{sides[f'{side}_p99_ms']:6.2f}"
            for side in ("in_process", "rpc", "echo")
        )
        print(f"{name:<14} p50/p99 ms  {shown}", file=sys.stderr)
    for name, row in result["throughput"]["closed_loop"].items():
        print(
            f"{name:<28} {row['per_second']:7.0f}/s  p50 {row['p50_ms']:.1f} ms  p99 {row['p99_ms']:.1f} ms",
            file=sys.stderr,
        )
    for name, value in result["targets"].items():
        print(f"{value:8.2f}  {name}", file=sys.stderr)


if __name__ == "__main__":
    main()
