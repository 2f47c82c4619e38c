"""What do HTTP and a routing table cost? One run, in turns, medians compared.

    python benchmarks/bench_http.py [--bundle PATH] [--requests 600]

Three servers on this machine: one as it is, one with a routing table, one behind the HTTP gateway; one for each way, so
that each answers as often and is as warm. One caller asks them in turn for the same request over connections that stay
open, so that a busy machine slows all alike. Prints a table on stderr and JSON on stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import statistics
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import grpc
from load import PROMPT
from servers import process, serving

from classifier import Request, wire
from classifier.bundle import SHIPPED
from classifier.v1 import classifier_pb2_grpc as pb_grpc

ROUTES = Path(__file__).parent.parent / "docs" / "examples" / "routing.toml"
WARM_UP = 50


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=SHIPPED)
    parser.add_argument("--requests", type=int, default=600)
    asked = parser.parse_args()
    request = wire.request_to_proto(Request.from_text(PROMPT))
    body = json.dumps({"messages": [{"role": "user", "content": PROMPT}]})
    with contextlib.ExitStack() as held:
        off = ("--store", "off")
        plain = held.enter_context(serving(asked.bundle, *off)).address
        routed = held.enter_context(serving(asked.bundle, *off, "--routes", str(ROUTES))).address
        behind = held.enter_context(serving(asked.bundle, *off)).address
        gateway = ("-m", "classifier", "gateway", "http", "--listen", "127.0.0.1:0", "--address", behind)
        base = urlsplit(held.enter_context(process(*gateway)).address)
        stubs = [
            pb_grpc.ClassifierServiceStub(held.enter_context(grpc.insecure_channel(address)))
            for address in (plain, routed)
        ]
        connection = http.client.HTTPConnection(base.hostname or "", base.port)
        held.callback(connection.close)

        def over_http() -> None:
            connection.request("POST", "/v1/classify", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
            assert response.status == 200, answer

        ways = {
            "gRPC": lambda: stubs[0].Classify(request, timeout=10),
            "gRPC, with a routing table": lambda: stubs[1].Classify(request, timeout=10),
            "HTTP": over_http,
        }
        took: dict[str, list[float]] = {name: [] for name in ways}
        for i in range(WARM_UP + asked.requests):
            for name, ask in ways.items():
                before = time.perf_counter()
                ask()
                if i >= WARM_UP:
                    took[name].append(time.perf_counter() - before)
    medians = {name: 1e3 * statistics.median(seconds) for name, seconds in took.items()}
    for name, median in medians.items():
        print(f"{name:<28}{median:8.3f} ms  {median / medians['gRPC']:6.2f} x", file=sys.stderr)
    print(json.dumps({"requests": asked.requests, "p50_ms": medians}))


if __name__ == "__main__":
    main()
