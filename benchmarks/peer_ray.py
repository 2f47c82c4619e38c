"""`Engine.classify` behind Ray Serve; a module of its own because Ray sends its class to other processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import ray
from bench_peers import engine_function
from ray import serve as ray_serve
from starlette.requests import Request


class Classifier:
    """One prompt in, one decision out."""

    def __init__(self, bundle: str) -> None:
        self._run = engine_function(Path(bundle))

    async def __call__(self, request: Request) -> dict[str, object]:
        return self._run((await request.json())["prompt"])


def serve(bundle: Path, port: int) -> None:
    """Serves with a replica a core."""
    cores = len(os.sched_getaffinity(0))
    here = Path(__file__).parent
    ray.init(
        num_cpus=cores,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        runtime_env={"env_vars": {"PYTHONPATH": f"{here.parent}:{here}"}},
    )
    ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
    deployment = ray_serve.deployment(
        Classifier, num_replicas=cores, max_ongoing_requests=100, ray_actor_options={"num_cpus": 1}
    )
    ray_serve.run(deployment.bind(str(bundle)), route_prefix="/classify")
    signal.sigwait({signal.SIGTERM})
    ray_serve.shutdown()
    ray.shutdown()
