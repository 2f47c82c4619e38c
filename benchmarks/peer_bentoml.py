"""`Engine.classify` behind BentoML; a module of its own because BentoML imports its service by name."""

from __future__ import annotations

import os
from pathlib import Path

import bentoml
from bench_peers import engine_function


# `from __future__ import annotations` makes texts of annotations; BentoML reads them, so they are built-ins only.
@bentoml.service(workers=len(os.sched_getaffinity(0)), logging={"access": {"enabled": False}})
class Classifier:
    """One prompt in, one decision out."""

    def __init__(self) -> None:
        self._run = engine_function(Path(os.environ["PEER_BUNDLE"]))

    @bentoml.api
    def classify(self, prompt: str) -> dict:
        return self._run(prompt)


def serve(bundle: Path, port: int) -> None:
    """Serves on all cores, as `bentoml serve` does."""
    os.environ["PEER_BUNDLE"] = str(bundle)
    os.chdir(Path(__file__).parent)
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    command = ["-m", "bentoml", "serve", "peer_bentoml:Classifier", "--host", "127.0.0.1", "--port", str(port)]
    os.execv(os.sys.executable, [os.sys.executable, *command])
