"""The feedback loop from end to end: serve, fail, learn, judge, promote, reload, and see what it brought.

A server on an empty store; 3,000 requests through a simulated gateway over gRPC; half-way the traffic shifts; then
`python -m training retrain --promote` as a user would run it; the server takes the new bundle over by itself; and later
traffic that nobody has seen is asked again. Run it with `make loop-demo`.

    make loop-demo                                                  a simulated world over data/
    make loop-demo ARGS="--environment outcomes/*.jsonl.gz"         the real success of real models
    make loop-demo ARGS="--bundle runs/base/bundle --checkpoint runs/base/checkpoint"

Without a checkpoint there is nothing to retrain from, and recalibration alone is shown.
"""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from environment import Task, World, make_traffic, outcome_world, simulated_world
from figure import draw
from gateway import AUDIT_LABEL, Callers, ask, connect, replay
from measure import Measured, choices_at_risk, measure

from classifier.bundle import SHIPPED
from classifier.engine import Engine
from classifier.registry import Registry
from classifier.types import TIERS
from training.calibrate import calibrate
from training.calibration_set import TRAINING_ROWS, rows_among

ALPHAS = {"economy": 0.20, "balanced": 0.10}
ROOT = Path(__file__).parents[3]
READY_SECONDS = 60


def main() -> int:
    """Runs the demo; 0 when the loop went round, whatever it brought."""
    options = _options()
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    world = outcome_world(options.environment) if options.environment else simulated_world(ROOT / "data")
    engine = Engine.from_pretrained(options.bundle)
    base = engine.bundle
    packed = str(base.manifest.get(TRAINING_ROWS, ""))
    seen = {t.sha256 for t, known in zip(world.tasks, rows_among((t.sha256 for t in world.tasks), packed)) if known}  # noqa: B905 - an array beside a tuple of its length
    traffic = make_traffic(
        world,
        options.requests,
        options.requests // 3,
        seen=lambda task: task.sha256 in seen,
        scores=lambda task: engine.classify(task.request).probabilities,
        first=options.first,
        later=options.later,
        seed=options.seed,
    )
    _print_head(world, traffic.notes, options)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        start = _calibrated(base.path, traffic.first, folder, options)
        registry = Registry(folder / "registry")
        registry.promote(registry.add(start, checkpoint=options.checkpoint), why="the demo begins")
        store = f"sqlite:///{folder}/feedback.sqlite"
        tokens = [secrets.token_hex(16) for _ in range(options.callers)]
        (folder / "tokens").write_text("".join(f"team-{i} {token}\n" for i, token in enumerate(tokens)))
        (folder / "tokens").chmod(0o600)
        server = _serve(folder, store)
        try:
            callers = connect(f"unix:{folder}/demo.sock", tokens)
            found: dict[str, Measured] = {}
            found["before the shift"] = _measure(ask(callers, traffic.later_before), traffic.later_before)
            before = ask(callers, traffic.later)
            found["after the shift"] = _measure(before, traffic.later)
            start_replay = time.monotonic()
            counts = replay(callers, traffic.stream, audits=options.audits, seed=options.seed)
            print(f"\nreplayed in {time.monotonic() - start_replay:.0f} s: {_line(counts)}")
            receipt = _retrain(folder, store)
            (out / "receipt.json").write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
            version = registry.resolve("current")
            _wait_for(callers, version)
            after = ask(callers, traffic.later)
            assert {answer[2] for answer in after} == {version}
            found["after the loop"] = _measure(after, traffic.later)
            callers.close()
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(READY_SECONDS)
    _report(found, before, traffic.later, receipt, options)
    title = world.origin.split(":")[0] + f"; {options.requests} requests, {len(traffic.later)} later ones"
    draw(out / "loop.svg", found, alpha=ALPHAS["balanced"], title=title)
    print(f"\nfigure in {out / 'loop.svg'}, receipt in {out / 'receipt.json'}; {time.monotonic() - begun:.0f} s in all")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", nargs="+", help="outcome files; default: simulated over data/")
    parser.add_argument("--bundle", type=Path, default=SHIPPED, help="the bundle to begin with; default: the shipped")
    parser.add_argument("--checkpoint", type=Path, help="its checkpoint; without it nothing is retrained")
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--later", type=int, default=1000, help="held-out requests to measure on")
    parser.add_argument("--first", type=int, default=300, help="labelled requests to calibrate on at the beginning")
    parser.add_argument("--epsilon", type=float, default=0.02, help="share of requests that is explored")
    parser.add_argument("--audits", type=float, default=0.3, help="share of requests tried from the cheapest tier up")
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/loop-demo"))
    return parser.parse_args()


def _print_head(world: World, notes: Sequence[str], options: argparse.Namespace) -> None:
    print(world.origin)
    for note in notes:
        print(f"  {note}")
    if options.checkpoint is None:
        print(
            "  no --checkpoint: there are no weights to go on from, so only recalibration can be shown; "
            "'make train' leaves one in runs/base/checkpoint"
        )


def _calibrated(bundle: Path, first: Sequence[Task], folder: Path, options: argparse.Namespace) -> Path:
    """The beginning: thresholds fitted on labelled requests from before the shift, with room to explore."""
    rng = np.random.default_rng(options.seed + 1)
    with (folder / "first.jsonl").open("w", encoding="utf-8") as file:
        for i, task in enumerate(first):
            luck = rng.random()
            label = next((tier for tier in TIERS if luck <= task.success[tier.index]), None)
            if label is None:
                continue
            messages = [{"role": m.role, "content": m.content} for m in task.request.messages]
            row = {"id": f"f{i}", "messages": messages, "tools": list(task.request.tools), "group": task.group}
            row |= {"attachments": task.request.attachments, "tier": label.label, "label": "OUTCOME"}
            file.write(json.dumps(row) + "\n")
    calibrate(
        bundle,
        [folder / "first.jsonl"],
        folder / "start",
        policies=ALPHAS,
        epsilon=options.epsilon,
        default="balanced",
        seed=options.seed,
    )
    return folder / "start"


def _serve(folder: Path, store: str) -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "classifier", "serve", "--listen", f"unix:{folder}/demo.sock"),
            *("--registry", str(folder / "registry"), "--watch-seconds", "0.5", "--key-file", str(folder / "key")),
            *("--feedback-url", store, "--store", "text", "--tokens", str(folder / "tokens")),
            *("--log-level", "error", "--max-wait-seconds", "20"),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    for line in server.stderr:
        if line.startswith("serving on"):
            return server
    raise SystemExit("the server did not start")


def _retrain(folder: Path, store: str) -> dict[str, object]:
    command = [
        *(sys.executable, "-m", "training", "retrain", "--registry", str(folder / "registry")),
        *("--feedback-url", store, "--work", str(folder / "loop"), "--audit-label", "=".join(AUDIT_LABEL)),
        *("--promote", "--json"),
    ]
    print(f"\n$ python {' '.join(command[1:])}", flush=True)
    start = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    print(f"exit code {done.returncode} after {time.monotonic() - start:.0f} s")
    if done.returncode not in (0, 3):
        raise SystemExit("retraining failed; what it said stands above")
    receipt: dict[str, object] = json.loads(done.stdout)
    return receipt


def _wait_for(callers: Callers, version: str) -> None:
    end = time.monotonic() + READY_SECONDS
    while callers.clients[0].info().bundle_version != version:
        if time.monotonic() > end:
            raise SystemExit("the server did not take the promoted bundle over")
        time.sleep(0.1)


def _measure(answers: Sequence[tuple[object, ...]], tasks: Sequence[Task]) -> Measured:
    return measure(np.array([tier.index for tier, *_ in answers]), tasks)  # type: ignore[attr-defined]


def _report(
    found: dict[str, Measured],
    before: Sequence[tuple[object, ...]],
    later: Sequence[Task],
    receipt: dict[str, object],
    options: argparse.Namespace,
) -> None:
    """The table, and the excess cost of the old scores at the new risk."""
    after = found["after the loop"]
    old = measure(choices_at_risk(np.array([p for _, p, _ in before]), later, after.risk), later)
    print(f"\ndecision: {receipt['decision']}: {receipt['why']}")
    head = "".join(f"{tier.label:>10}" for tier in TIERS)
    print(f"\n{'on held-out traffic':<34}{'risk':>7}{'cost':>8}{'oracle':>8}{'excess':>8}{head}")
    rows = {**found, "old scores at the new risk": old}
    for name, m in rows.items():
        mix = "".join(f"{share:>10.3f}" for share in m.mix)
        print(f"{name:<34}{m.risk:>7.3f}{m.cost:>8.2f}{m.oracle:>8.2f}{m.excess:>8.2f}{mix}")
    alpha = ALPHAS["balanced"]
    print(f"\npromised: risk at most {alpha:g}, of which {options.epsilon:g} is kept for exploring")
    print(f"risk within it after the loop: {'yes' if after.risk <= alpha else 'NO'}")
    if old.excess > 0:
        print(f"excess over the oracle of equal risk, at the new risk: {1 - after.excess / old.excess:+.0%} less")


def _line(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


if __name__ == "__main__":
    sys.exit(main())
