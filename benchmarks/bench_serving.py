"""How fast is a classification in process, over gRPC, and against an RPC that does nothing? One run, ratios first.

    python benchmarks/bench_serving.py [--bundle PATH] [--seconds 5] [--out serving.json]

Everything is measured in turns within one run, so that a busy machine slows all sides alike; medians are compared,
never numbers of two runs. The RPCs that do nothing are those of echo.py: with the executor hop, without it when a
request is alone, and with a run of the model in it. Prints a table on stderr and JSON on stdout.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import grpc
from load import METHOD, TOKENS, closed_loop, fixed_request, message, open_loop, percentiles, prompts, timed
from servers import Process, facts, process, serving

from classifier import Request, wire
from classifier.bundle import SHIPPED
from classifier.engine import Engine

ECHO = str(Path(__file__).with_name("echo.py"))
TURNS = 12


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
            # The median of each turn, and of those the median. A turn has too few calls for a p99: it is of them all.
            turns: dict[str, list[list[float]]] = {side: [] for side in work}
            for _ in range(TURNS):
                for side, each in work.items():
                    turns[side].append(timed(each, seconds / TURNS))
            sides = {}
            for side, found_in in turns.items():
                sides[f"{side}_p50_ms"] = 1e3 * statistics.median(map(statistics.median, found_in))
                sides[f"{side}_p99_ms"] = percentiles(list(chain.from_iterable(found_in)))["p99_ms"]
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
    cores, ratios, parts = len(os.sched_getaffinity(0)), [], []
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
        best = cores / (m + g)
        ratios.append(ours["per_second"] / best)
        parts.append({"m_ms": 1e3 * m, "g_ms": 1e3 * g, "best_per_second": best, "per_second": ours["per_second"]})
        parts[-1] |= {"rpc_cpu_ms": 1e3 * rpc_cpu, "cpu_ratio": (m_cpu + g) / rpc_cpu}
        parts[-1] |= {"both_m_ms": 1e3 * both, "both_ratio": ours["per_second"] / (cores / (both + g))}
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


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=SHIPPED)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each number")
    parser.add_argument("--out", type=Path, help="write the JSON there as well")
    parser.add_argument("--in-process", type=float, metavar="SECONDS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    engine = Engine.from_pretrained(options.bundle)
    if options.in_process is not None:
        requests = [Request.from_text(text) for text in prompts(TOKENS["20-60 tokens"])]
        print(statistics.median(timed(lambda i: engine.classify(requests[i % len(requests)]), options.in_process)))
        return
    answer_bytes = wire.decision_to_proto(engine.classify(Request.from_text("hi"))).ByteSize() + 60
    limits = ("--queue-size", "256", "--max-wait-seconds", "10", "--store", "off")
    ready, resident = [], []
    for _ in range(5):
        with serving(options.bundle, *limits) as server:
            ready.append(server.ready_seconds)
            resident.append(server.resident_mb())
    echoes = (ECHO, str(answer_bytes))
    with (
        serving(options.bundle, *limits) as server,
        process(*echoes) as echo,
        process(*echoes, "--single") as echo_here,
        process(*echoes, "--bundle", str(options.bundle)) as echo_model,
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
