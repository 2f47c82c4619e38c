"""`Engine.classify` behind LitServe; a module of its own because LitServe sends its class to other processes."""

from __future__ import annotations

import os
from pathlib import Path

import litserve
from bench_peers import engine_function


class Api(litserve.LitAPI):
    """One prompt in, one decision out."""

    bundle = ""

    def setup(self, device: str) -> None:
        del device
        self.run = engine_function(Path(self.bundle))

    def decode_request(self, request: dict[str, str]) -> str:
        return request["prompt"]

    def predict(self, prompt: str) -> dict[str, object]:
        return self.run(prompt)

    def encode_response(self, output: dict[str, object]) -> dict[str, object]:
        return output


def serve(bundle: Path, port: int) -> None:
    """Serves on all cores."""
    api = Api()
    api.bundle = str(bundle)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=len(os.sched_getaffinity(0)))
    server.run(port=port, host="127.0.0.1", log_level="error", generate_client_file=False)
