"""The feedback loop from end to end: serve, fail, learn, judge, promote, reload, and see what it brought.

A server on an empty store; 3,000 requests through a simulated gateway over gRPC; half-way the traffic shifts; then
`python -m training retrain --promote` as a user would run it; the server takes the new bundle over by itself; and later
traffic that nobody has seen is asked again. Run it with `make loop-demo`.

    make loop-demo                                                  a simulated world over data/
    make loop-demo ARGS="--environment outcomes/*.jsonl.gz"         the real success of real models
    make loop-demo ARGS="--bundle runs/base/bundle --checkpoint runs/base/checkpoint --seeds 3"

Without a checkpoint, what retraining starts from is read from the bundle's graph.
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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from environment import Task, World, make_traffic, outcome_world, simulated_world
from figure import draw
from gateway import AUDIT_LABEL, Callers, ask, connect, replay
from measure import Measured, choices_at_risk, measure

from classifier.bundle import SHIPPED
from classifier.engine import Engine
from classifier.errors import ClassifierError
from classifier.registry import Registry
from classifier.types import TIERS
from training.calibrate import calibrate
from training.calibration_set import TRAINING_ROWS, rows_among

BEFORE, SHIFTED, AFTER = "before the shift", "after the shift", "after the loop"
ALPHAS = {"economy": 0.20, "balanced": 0.10}
ROOT = Path(__file__).parents[3]
READY_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Went:
    """How the loop went round once.

    Attributes:
        found: what was measured before the shift, after it, and after the loop.
        old: the old scores at the risk that the loop ended with.
        decision: of the receipt.
    """

    found: dict[str, Measured]
    old: Measured
    decision: str

    @property
    def less(self) -> float:
        """By how much the excess over the oracle of equal risk fell, each against the oracle at its own risk."""
        return _less(self.found[AFTER], self.found[SHIFTED])

    @property
    def less_at_equal_risk(self) -> float:
        """By how much it fell against what the old scores would cost at the new risk."""
        return _less(self.found[AFTER], self.old)


def _less(now: Measured, before: Measured) -> float:
    """By how much the excess fell; not at all where there was none."""
    return 1 - now.excess / before.excess if before.excess > 0 else 0.0


def main() -> int:
    """Runs the demo; 0 when the loop went round, whatever it brought."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    world = outcome_world(options.environment) if options.environment else simulated_world(ROOT / "data")
    print(world.origin)
    engine = Engine.from_pretrained(options.bundle)
    went = [go_round(world, engine, options, options.seed + i) for i in range(options.seeds)]
    _summarise(went)
    title = f"{world.origin.split(':')[0]}; {options.requests} requests, {options.seeds} seeds"
    draw(options.out / "loop.svg", [one.found for one in went], alpha=ALPHAS["balanced"], title=title)
    print(f"\nfigure in {options.out / 'loop.svg'}, receipts beside it; {time.monotonic() - begun:.0f} s in all")
    return 0


def go_round(world: World, engine: Engine, options: argparse.Namespace, seed: int) -> Went:
    """One round on an empty store, from the first request to what the promoted bundle does to later ones."""
    packed = str(engine.bundle.manifest.get(TRAINING_ROWS, ""))
    known = rows_among((task.sha256 for task in world.tasks), packed)
    seen = {task.sha256 for task, is_known in zip(world.tasks, known, strict=True) if is_known}
    traffic = make_traffic(
        world,
        options.requests,
        options.requests // 3,
        seen=lambda task: task.sha256 in seen,
        scores=lambda task: engine.classify(task.request).probabilities,
        first=options.first,
        later=options.later,
        seed=seed,
    )
    print(f"\nseed {seed}")
    for note in traffic.notes:
        print(f"  {note}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        start = _calibrated(engine.bundle.path, traffic.first, folder, options, seed)
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
            found[BEFORE] = _measure(ask(callers, traffic.later_before), traffic.later_before)
            before = ask(callers, traffic.later)
            found[SHIFTED] = _measure(before, traffic.later)
            start_replay = time.monotonic()
            counts = replay(callers, traffic.stream, audits=options.audits, seed=seed)
            print(f"replayed in {time.monotonic() - start_replay:.0f} s: {_line(counts)}")
            receipt = _retrain(folder, store)
            path = options.out / f"receipt-{seed}.json"
            path.write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
            version = registry.resolve("current")
            _wait_for(callers, version)
            after = ask(callers, traffic.later)
            assert {answer[2] for answer in after} == {version}
            found[AFTER] = _measure(after, traffic.later)
            callers.close()
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(READY_SECONDS)
    old = choices_at_risk(np.array([p for _, p, _ in before]), traffic.later, found[AFTER].risk)
    went = Went(found, measure(old, traffic.later), str(receipt["decision"]))
    _report(went, receipt, options)
    return went


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", nargs="+", help="outcome files; default: simulated over data/")
    parser.add_argument("--bundle", type=Path, default=SHIPPED, help="the bundle to begin with; default: the shipped")
    parser.add_argument("--checkpoint", type=Path, help="its checkpoint; default: read from its graph")
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--later", type=int, default=1000, help="held-out requests to measure on")
    parser.add_argument("--first", type=int, default=300, help="labelled requests to calibrate on at the beginning")
    parser.add_argument("--epsilon", type=float, default=0.02, help="share of requests that is explored")
    parser.add_argument("--delta", type=float, default=0.0, help="promise with confidence 1 - DELTA; 0: on the mean")
    parser.add_argument("--audits", type=float, default=0.3, help="share of requests tried from the cheapest tier up")
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=1, help="go round so often, with seeds from --seed on")
    parser.add_argument("--out", type=Path, default=Path("runs/loop-demo"))
    return parser.parse_args()


def _calibrated(bundle: Path, first: Sequence[Task], folder: Path, options: argparse.Namespace, seed: int) -> Path:
    """The beginning: thresholds fitted on labelled requests from before the shift, with room to explore."""
    rng = np.random.default_rng(seed + 1)
    with (folder / "first.jsonl").open("w", encoding="utf-8") as file:
        for i, task in enumerate(first):
            luck = rng.random()
            label = next((tier for tier in TIERS if luck <= task.success[tier.index]), None)
            if label is None:
                continue
            row = {"id": f"f{i}", **task.request.to_json(), "group": task.group}
            file.write(json.dumps(row | {"tier": label.label, "label": "OUTCOME"}) + "\n")
    calibrate(
        bundle,
        [folder / "first.jsonl"],
        folder / "start",
        policies=ALPHAS,
        delta=options.delta or None,
        epsilon=options.epsilon,
        default="balanced",
        seed=seed,
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


def _report(went: Went, receipt: dict[str, object], options: argparse.Namespace) -> None:
    """The table of one round."""
    print(f"decision: {receipt['decision']}: {receipt['why']}")
    head = "".join(f"{tier.label:>10}" for tier in TIERS)
    print(f"\n{'on held-out traffic':<34}{'risk':>7}{'cost':>8}{'oracle':>8}{'excess':>8}{head}")
    for name, m in {**went.found, "old scores at the new risk": went.old}.items():
        mix = "".join(f"{share:>10.3f}" for share in m.mix)
        print(f"{name:<34}{m.risk:>7.3f}{m.cost:>8.2f}{m.oracle:>8.2f}{m.excess:>8.2f}{mix}")
    after, alpha = went.found[AFTER], ALPHAS["balanced"]
    sure = f" with confidence {1 - options.delta:g}" if options.delta else " in the mean over calibration sets"
    print(f"promised: risk at most {alpha:g}{sure}, of which {options.epsilon:g} is kept for exploring")
    print(f"no tier satisfies {after.unserved:.1%} of them: they have no label, and no share in the risk")
    print(f"risk within it after the loop: {'yes' if after.risk <= alpha else 'NO'}")
    print(
        f"excess over the oracle of equal risk: {went.less:+.0%} less; at one risk {went.less_at_equal_risk:+.0%} less"
    )


def _summarise(went: Sequence[Went]) -> None:
    """All rounds in a table, whatever they brought."""
    print(f"\n{'round':<8}{'risk before, shifted, after':>30}{'excess shifted, after':>26}{'less':>7}{'one risk':>13}")
    for i, one in enumerate(went):
        risks = ", ".join(f"{one.found[name].risk:.3f}" for name in (BEFORE, SHIFTED, AFTER))
        excesses = ", ".join(f"{one.found[name].excess:.2f}" for name in (SHIFTED, AFTER))
        print(f"{i:<8}{risks:>30}{excesses:>26}{one.less:>7.0%}{one.less_at_equal_risk:>13.0%}  {one.decision}")
    kept = sum(one.found[AFTER].risk <= ALPHAS["balanced"] for one in went)
    risk, less, equal = (
        float(np.mean([value(one) for one in went]))
        for value in (lambda o: o.found[AFTER].risk, lambda o: o.less, lambda o: o.less_at_equal_risk)
    )
    print(f"risk within the promise in {kept} of {len(went)}, mean {risk:.3f}")
    print(f"excess {less:+.0%} less in the mean, at one risk {equal:+.0%}")


def _line(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ClassifierError as error:
        sys.exit(f"error: {error}")
