"""An echo server: the transport of `classifier serve` and the same hop, and nothing else; for bench_serving.py.

    python benchmarks/echo.py BYTES [--single] [--bundle PATH]

It answers bytes of the same sizes through the same admission and the same executor hop, without parsing, preparing or
scoring: what remains is gRPC for Python and the wake-ups. With `--single` it does without the hop when a request is
alone, as the service does. With a bundle it runs that model in the hop, on one input prepared before: what it takes
beyond the model alone is the least that any such server with a hop adds to a run of that length, as cores that idled
meanwhile have to wake up and caches were swept.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import grpc
from load import fixed_request

from classifier import wire
from classifier.admission import Admission
from classifier.engine import Engine
from classifier.lifetime import run


async def echo(answer_bytes: int, cores: int, engine: Engine | None, *, single: bool) -> None:
    """Answers every Classify with that many bytes, after a hop through `Admission`, and there a run of the model.

    With `single` there is no hop for a request that is alone.
    """
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


def main() -> None:
    """Serves until it is told to end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bytes", type=int, help="of an answer")
    parser.add_argument("--single", action="store_true", help="no hop for a request that is alone")
    parser.add_argument("--bundle", type=Path, help="run this model in the hop")
    options = parser.parse_args()
    engine = Engine.from_pretrained(options.bundle) if options.bundle else None
    run(echo(options.bytes, len(os.sched_getaffinity(0)), engine, single=options.single))


if __name__ == "__main__":
    main()
