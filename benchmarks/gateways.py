"""LiteLLM's proxy with our hook: its time beside the client's own, and where it sends real prompts.

    .venv-litellm/bin/python benchmarks/gateways.py                       time inside the hook
    .venv-litellm/bin/python benchmarks/gateways.py OUTCOMES.jsonl.gz ... and the table

Needs `make test-litellm` once for its environment. Rows of a file of outcomes hold a `prompt`, the `success_by_tier` of
real models and perhaps a `split`, of which `dev` is taken. The prompts go through a real proxy process, in front of an
upstream that answers at once; the model that was asked stands for its tier. Prices are the routing table's defaults.
"""

from __future__ import annotations

import asyncio
import gzip
import itertools
import json
import os
import random
import secrets
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
sys.path.insert(0, str(ROOT))

from classifier import AsyncClient, Tier  # noqa: E402
from classifier.routing import PRICES  # noqa: E402
from classifier.types import TIERS  # noqa: E402
from tests.gateways.support import Upstream, chat, free_port, listens, post, process, until  # noqa: E402

PROMPTS = 500
ROUNDS = 2_000
TABLE = "\n".join(f'[routes.{tier.label}]\nmodel = "{tier.label}"' for tier in TIERS)


class Serving:
    """`classifier serve` with the shipped bundle."""

    def __init__(self, folder: Path) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        (folder / "routing.toml").write_text(TABLE)
        self.block = process(
            [sys.executable, "-m", "classifier", "serve", "--listen", self.address, "--store", "off"],
            folder / "serve.log",
        )

    def __enter__(self) -> str:
        running = self.block.__enter__()
        until(lambda: listens(int(self.address.rpartition(":")[2])) or running.poll() is not None)
        return self.address

    def __exit__(self, *exc: object) -> None:
        self.block.__exit__(None, None, None)


async def time_hook(address: str, folder: Path) -> None:
    """Prints p50 and p95 of the hook and of the client, alternating, in one loop against one server."""
    from classifier.gateways.litellm import ClassifierHook

    hook = ClassifierHook(address, routes=folder / "routing.toml", timeout_seconds=1, sticky=True)
    times: dict[str, list[float]] = {"client": [], "hook": []}
    async with AsyncClient(address, fallback_tier=Tier.COMPLEX, timeout_seconds=1) as client:
        for number in range(ROUNDS):
            prompt = f"Write an email to a customer whose order {number} is late, and offer a refund."
            data = chat(prompt) | {"litellm_call_id": f"call-{number}"}
            for name in random.sample(sorted(times), 2):
                start = time.perf_counter()
                if name == "hook":
                    await hook.async_pre_call_hook(None, None, data, "acompletion")
                else:
                    await client.classify(data["messages"])
                times[name].append(time.perf_counter() - start)
    await hook.close()
    cuts = {name: statistics.quantiles(values[100:], n=20) for name, values in times.items()}
    for name, values in cuts.items():
        print(f"{name:8} p50 {1e3 * values[9]:.2f} ms, p95 {1e3 * values[18]:.2f} ms")
    print(f"hook / client at p50: {cuts['hook'][9] / cuts['client'][9]:.2f} (wanted: at most 1.5)\n")


def rows_of(paths: list[str]) -> list[dict]:
    """Development rows with success for every tier, drawn from the files in turn."""
    draws = []
    for path in paths:
        with gzip.open(path, "rt") as lines:
            rows = [json.loads(line) for line in lines]
        usable = [
            row
            for row in rows
            if row.get("split", "dev") == "dev" and all(row["success_by_tier"].get(t.label) is not None for t in TIERS)
        ]
        random.Random(0).shuffle(usable)
        draws.append(usable)
    in_turn = [row for group in itertools.zip_longest(*draws) for row in group if row is not None]
    return in_turn[:PROMPTS]


def route(rows: list[dict], address: str, folder: Path) -> None:
    """Sends the rows through the proxy, once for each way of routing, and prints the table."""
    upstream, port, key = Upstream(), free_port(), f"sk-{secrets.token_hex(32)}"
    base = {"api_base": f"http://127.0.0.1:{upstream.port}/v1", "api_key": "none"}
    models = [{"model_name": n, "litellm_params": {"model": f"openai/{n}", **base}} for n in [t.label for t in TIERS]]
    models.append({"model_name": "auto", "litellm_params": {"model": "openai/auto", **base}})
    tiers = dict(zip(("SIMPLE", "MEDIUM", "COMPLEX", "REASONING"), [t.label for t in TIERS], strict=True))
    for kind in ("heuristic", "heuristic_v2"):
        config = {"tiers": tiers, "classifier_type": kind}
        params = {"model": "auto_router/complexity_router", "complexity_router_config": config}
        models.append({"model_name": kind, "litellm_params": params})
    settings = {"callbacks": "classifier_hook.hook", "num_retries": 0}
    (folder / "config.yaml").write_text(json.dumps({"model_list": models, "litellm_settings": settings}))
    (folder / "classifier_hook.py").write_text(
        "from classifier.gateways.litellm import ClassifierHook\n"
        f'hook = ClassifierHook("{address}", routes="{folder}/routing.toml", timeout_seconds=2)\n'
    )
    command = [str(Path(sys.executable).parent / "litellm"), "--config", str(folder / "config.yaml")]
    more = {"LITELLM_MASTER_KEY": key, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "*"}
    served: dict[str, list[Tier]] = {}
    with process([*command, "--host", "127.0.0.1", "--port", str(port)], folder / "litellm.log", **more) as running:
        until(lambda: listens(port) or running.poll() is not None, 400)
        for name in ("auto", "heuristic", "heuristic_v2"):
            upstream.seen.clear()
            fallbacks = []
            for row in rows:
                status, headers, body = post(
                    f"http://127.0.0.1:{port}/v1/chat/completions",
                    chat(row["prompt"], model=name),
                    authorization=f"Bearer {key}",
                )
                assert status == 200, body
                fallbacks += [headers["x-classifier-fallback"]] if "x-classifier-fallback" in headers else []
            served[name] = [Tier.parse(model) for model in upstream.models()]
            assert len(served[name]) == len(rows)
            if fallbacks:
                print(f"{name}: {len(fallbacks)} of {len(rows)} fell back: {', '.join(sorted(set(fallbacks)))}")
    upstream.close()
    titles = {"auto": "this classifier", "heuristic": "LiteLLM rules", "heuristic_v2": "LiteLLM heuristic_v2"}
    ways = {titles[name]: tiers for name, tiers in served.items()}
    ways |= {f"always {tier.label}": [tier] * len(rows) for tier in TIERS}
    print(f"{len(rows)} prompts, dollars per million tokens")
    print("| routed by | simple | standard | complex | frontier | dollars | success |")
    print("|---|---|---|---|---|---|---|")
    for name, tiers_served in ways.items():
        shares = " | ".join(f"{tiers_served.count(t) / len(rows):.1%}" for t in TIERS)
        cost = statistics.fmean(PRICES[t] for t in tiers_served)
        success = statistics.fmean(
            row["success_by_tier"][tier.label] for row, tier in zip(rows, tiers_served, strict=True)
        )
        print(f"| {name} | {shares} | {cost:.2f} | {success:.1%} |")


def main() -> None:
    """Runs what the arguments ask for."""
    with tempfile.TemporaryDirectory() as name, Serving(Path(name)) as address:
        asyncio.run(time_hook(address, Path(name)))
        if sys.argv[1:]:
            route(rows_of(sys.argv[1:]), address, Path(name))


if __name__ == "__main__":
    main()
