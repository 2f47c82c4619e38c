"""A server whose model sleeps, as a process of its own: `python -m tests.slow_server SECONDS [FIELD=VALUE ...]`.

With an engine slowed so, overload can be made on a small machine: the load generator needs less than the model does.
At its end it prints on stdout how many runs there were and how long one took, which on a busy machine is longer than
it was told to sleep.
"""

from __future__ import annotations

import asyncio
import json
import sys

from classifier.lifetime import serve
from classifier.reload import Fixed
from classifier.server import Server
from classifier.settings import resolve
from classifier.telemetry import Metrics
from classifier.testing import FakeEngine


def main(delay_seconds: str, *settings: str) -> None:
    """Serves until SIGTERM."""
    flags = dict(setting.split("=", 1) for setting in settings)
    engine = FakeEngine(delay_seconds=float(delay_seconds))
    metrics = Metrics()
    asyncio.run(serve(Server(resolve({"listen": "127.0.0.1:0", **flags}, {}), source=Fixed(engine), metrics=metrics)))
    seconds, count = (
        metrics.registry.get_sample_value(f"classifier_stage_duration_seconds_{part}", {"stage": "model"}) or 0
        for part in ("sum", "count")
    )
    print(json.dumps({"runs": engine.runs, "mean_run_seconds": seconds / max(1, count)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
