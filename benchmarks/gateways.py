"""LiteLLM's proxy with our hook: its time beside the client's own, and where it sends real prompts.

    .venv-litellm/bin/python benchmarks/gateways.py                       time inside the hook
    .venv-litellm/bin/python benchmarks/gateways.py OUTCOMES.jsonl.gz ... and the table

Needs `make test-litellm` once for its environment. Rows of a file of outcomes hold a `prompt`, the `success_by_tier` of
real models and perhaps a `split`, of which `dev` is taken. The prompts go through a real proxy process, in front of an
upstream that answers at once; the model that was asked stands for its tier. Prices are the routing table's defaults.

Beside every router stands chance, twice, at the same cost and without looking at the prompt: its own shares of the
tiers drawn blindly, and the best mix of two. Points of success over them have intervals by bootstrap over prompts.
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

import numpy as np  # noqa: E402
from servers import serving  # noqa: E402

from classifier import AsyncClient, Client, Tier  # noqa: E402
from classifier.bundle import SHIPPED  # noqa: E402
from classifier.intervals import bootstrap_interval, mean  # noqa: E402
from classifier.routing import PRICES  # noqa: E402
from classifier.types import TIERS  # noqa: E402
from tests.gateways.litellm_proxy import LITELLM_ENVIRONMENT, litellm_command  # noqa: E402
from tests.gateways.support import Upstream, chat, free_port, listens, post, process, until  # noqa: E402

PROMPTS = 500
ROUNDS = 2_000
POLICIES = ("economy", "balanced", "quality")
HOOKS = {
    f"{policy}{'_floored' if floor else ''}": f'policy="{policy}"' + floor
    for floor in ("", ", floor=Tier.COMPLEX")
    for policy in POLICIES
}
RIVALS = {"heuristic": "LiteLLM's rules", "heuristic_v2": "LiteLLM's heuristic_v2"}
TABLE = "\n".join(f'[routes.{tier.label}]\nmodel = "{tier.label}"' for tier in TIERS)


async def time_hook(address: str, folder: Path) -> None:
    """Prints p50 and p95 of the hook and of the client, alternating, in one loop against one server."""
    from classifier.gateways.litellm import ClassifierHook

    hook = ClassifierHook(address, routes=folder / "routing.toml", timeout_seconds=1, sticky=True)
    times: dict[str, list[float]] = {"client": [], "hook": []}
    async with AsyncClient(address, fallback_tier=Tier.COMPLEX, timeout_seconds=1) as client:
        for number in range(ROUNDS):
            prompt = f"Write an email to a customer whose order {number} is late, and offer a refund."
            data = chat(prompt)
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


def route(rows: list[dict], address: str, folder: Path) -> dict[str, list[Tier]]:
    """Sends the rows through the proxy, once for each way of routing; the tier that served each."""
    upstream, port, key = Upstream(), free_port(), f"sk-{secrets.token_hex(32)}"
    base = {"api_base": f"http://127.0.0.1:{upstream.port}/v1", "api_key": "none"}
    names = [*(tier.label for tier in TIERS), *HOOKS]
    models = [{"model_name": n, "litellm_params": {"model": f"openai/{n}", **base}} for n in names]
    tiers = dict(zip(("SIMPLE", "MEDIUM", "COMPLEX", "REASONING"), [t.label for t in TIERS], strict=True))
    for kind in RIVALS:
        config = {"tiers": tiers, "classifier_type": kind}
        params = {"model": "auto_router/complexity_router", "complexity_router_config": config}
        models.append({"model_name": kind, "litellm_params": params})
    settings = {"callbacks": [f"classifier_hook.{name}" for name in HOOKS], "num_retries": 0}
    (folder / "config.yaml").write_text(json.dumps({"model_list": models, "litellm_settings": settings}))
    told = f'"{address}", routes="{folder}/routing.toml", timeout_seconds=30'
    hooks = [f'{name} = ClassifierHook({told}, models=["{name}"], {more})' for name, more in HOOKS.items()]
    imports = ["from classifier import Tier", "from classifier.gateways.litellm import ClassifierHook"]
    (folder / "classifier_hook.py").write_text("\n".join([*imports, *hooks]))
    more = LITELLM_ENVIRONMENT | {"LITELLM_MASTER_KEY": key}
    served: dict[str, list[Tier]] = {}
    with process(litellm_command(folder / "config.yaml", port), folder / "litellm.log", **more) as running:
        until(lambda: listens(port) or running.poll() is not None, 400)
        for name in (*HOOKS, *RIVALS):
            upstream.seen.clear()
            for row in rows:
                status, headers, body = post(
                    f"http://127.0.0.1:{port}/v1/chat/completions",
                    chat(row["prompt"], model=name),
                    authorization=f"Bearer {key}",
                )
                assert status == 200, body
                assert "x-classifier-fallback" not in headers, headers
            served[name] = [Tier.parse(model) for model in upstream.models()]
            assert len(served[name]) == len(rows)
    upstream.close()
    return served


def best_mix(success: np.ndarray, cost: float) -> tuple[str, np.ndarray]:
    """(the best mix of two tiers that costs so much, its expected success on each prompt).

    Args:
        success: (n, 4) of each prompt on each tier.
        cost: dollars per million tokens, no less than those of the cheapest tier.
    """
    mixes = []
    for low, high in itertools.combinations(TIERS, 2):
        share = (cost - PRICES[low]) / (PRICES[high] - PRICES[low])
        if 0 <= share <= 1:
            expected = (1 - share) * success[:, low.index] + share * success[:, high.index]
            mixes.append((expected.mean(), f"{share:.1%} {high.label}, else {low.label}", expected))
    _, name, expected = max(mixes, key=lambda mix: mix[0])
    return name, expected


def points(differences: np.ndarray) -> str:
    """Mean difference in percentage points with its interval."""
    found = bootstrap_interval(mean(differences), len(differences))
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * value for value in found))


def print_table(rows: list[dict], served: dict[str, list[Tier]]) -> None:
    """Prints shares, cost and success of every way of routing, and what they have over chance at the same cost."""
    success = np.array([[row["success_by_tier"][tier.label] for tier in TIERS] for row in rows])
    titles = RIVALS | {
        name: f"this classifier, {name.replace('_floored', ' above a floor of complex')}" for name in HOOKS
    }
    ways = {titles[name]: tiers for name, tiers in served.items()}
    ways |= {f"always {tier.label}": [tier] * len(rows) for tier in TIERS}
    print(f"{len(rows)} prompts, dollars per million tokens")
    columns = ["simple", "standard", "complex", "frontier", "dollars", "success", "over its shares, blindly"]
    print(" | ".join(["| routed by", *columns, "over the best mix of that cost |"]))
    print("|---|" + "---:|" * (len(columns) + 1))
    for name, tiers in ways.items():
        shares = np.array([tiers.count(tier) / len(rows) for tier in TIERS])
        cost = statistics.fmean(PRICES[tier] for tier in tiers)
        found = success[np.arange(len(rows)), [tier.index for tier in tiers]]
        cells = [name, *(f"{share:.1%}" for share in shares), f"{cost:.2f}", f"{found.mean():.1%}", "", ""]
        if not name.startswith("always"):
            mix, expected = best_mix(success, cost)
            cells[-2:] = [points(found - success @ shares), f"{points(found - expected)}: {mix}"]
        print(f"| {' | '.join(cells)} |")


def print_settings(address: str) -> None:
    """Prints the bundle and its policies' thresholds."""
    with Client(address) as client:
        info = client.info(timeout_seconds=30)
    found = ", ".join(f"{policy.name} {policy.threshold:.3f}" for policy in info.policies)
    print(f"bundle {info.bundle_version}, thresholds {found}")


def main() -> None:
    """Runs what the arguments ask for."""
    with tempfile.TemporaryDirectory() as name, serving(SHIPPED, "--store", "off") as server:
        (Path(name) / "routing.toml").write_text(TABLE)
        print_settings(server.address)
        asyncio.run(time_hook(server.address, Path(name)))
        if sys.argv[1:]:
            rows = rows_of(sys.argv[1:])
            print_table(rows, route(rows, server.address, Path(name)))


if __name__ == "__main__":
    main()
