"""The loop unattended: it rolls back, resumes, retrains, recalibrates on drift or waits, and outlives its errors."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("scipy")

import training.loop
import training.retrain
from classifier.drift import reference_distributions
from classifier.errors import StoreUnavailable
from classifier.policy import Guarantee, Policy
from classifier.registry import Registry
from tests.loop_support import fill_store
from tests.tiny import tiny_bundle
from training.__main__ import main
from training.loop import broken, drift_alarms, held_to, run_loop, tick
from training.loop_command import seconds
from training.retrain import told_of
from training.round_options import Options
from training.steps import Run, next_folder, only_one

PROMISE = Guarantee(alpha=0.1, method="CONFORMAL_RISK_CONTROL", n=200, bound=0.1, feasible=True)


@pytest.fixture
def options(tmp_path) -> Options:
    """A registry whose current bundle a round promoted, and no store yet."""
    return promoted(tmp_path, PROMISE)


def promoted(tmp_path: Path, guarantee: Guarantee, at: float = 500.0, before: float = 0.05) -> Options:
    """The same: the policy's guarantee, the moment by the promoter's clock, and the risk of the bundle before."""
    policies = (Policy("balanced", 0.7, guarantee=guarantee),)
    registry = Registry(tmp_path / "registry", clock=lambda: at)
    for i, scale in enumerate((6.0, 5.0)):
        tiny_bundle(tmp_path / f"bundle-{i}", scale=scale, policies=policies)
        registry.promote(registry.add(tmp_path / f"bundle-{i}"), why=told_of(f"00000{i}", "better"))
    given = Options(
        registry=str(tmp_path / "registry"),
        feedback_url=f"sqlite:///{tmp_path}/feedback.db",
        work=tmp_path / "work",
        promote=True,
    )
    state = registry.state().aliases
    judged = {"sets": {"recent": {"risk": {"current": {"estimate": before}}}}}
    said = {"run": "000001", "decision": "promoted", "why": "better", "until": 0.0}
    receipt = said | {"current": state["previous"], "candidate": state["current"]}
    Run(next_folder(given.work)).close(receipt | {"steps": {"snapshot": {}, "judge-recalibrated": judged}})
    return given


def fill(options: Options, count: int, **fields) -> None:
    fill_store(options.feedback_url, Registry(options.registry).fetch("current"), count, **fields)


def test_a_single_look_does_not_wait_for_another_retrainer(tmp_path):
    """With --once the command ends with exit code 1 where somebody retrains, as its help says."""
    registry = tmp_path / "registry"
    registry.mkdir()
    given = ["--registry", str(registry), "--feedback-url", f"sqlite:///{tmp_path}/f.db", "--work", str(tmp_path / "w")]
    with only_one(registry / "retrain.lock"):
        done = CliRunner().invoke(main, ["loop", "--once", *given])
    assert (done.exit_code, "is retraining" in done.stderr) == (1, True)
    assert "with --once ends with exit code 1" in " ".join(CliRunner().invoke(main, ["loop", "--help"]).output.split())


def test_promoted_bundle_that_breaks_its_promise_is_rolled_back(options):
    """Failures beyond the promise bring the previous bundle back, with the reason in the registry's history."""
    before = Registry(options.registry).state().aliases
    fill(options, 300, audits=0.0, failing=0.5)
    receipt = tick(options)
    after = Registry(options.registry).state()
    assert receipt["decision"] == "rolled back"
    assert after.aliases["current"] == before["previous"]
    assert "exceed the promise" in after.why
    assert list(options.work.glob("rollback-*.json"))


def test_a_bundle_that_failed_more_does_not_come_back(tmp_path):
    """A bundle that mended a promise, though not all of it, is not exchanged for the one that broke it."""
    options = promoted(tmp_path, PROMISE, before=0.6)
    fill(options, 300, audits=0.0, failing=0.5)
    assert tick(replace(options, min_outcomes=1000))["decision"] == "wait"


def test_a_bundle_is_held_to_what_the_one_before_it_had_with_exploration(tmp_path):
    """The gate saw .08 before exploration, and what is watched is decided after it: .08 and .05 are more than α."""
    policies = (Policy("balanced", 0.7, guarantee=PROMISE, epsilon=0.05), Policy("quality", 0.8, guarantee=PROMISE))
    bundle = tiny_bundle(tmp_path / "bundle", policies=policies)
    judged = {"sets": {"recent": {"risk": {"current": {"estimate": 0.08}}}}}
    found = held_to(bundle, {"steps": {"judge-recalibrated": judged}})
    assert found == pytest.approx({"balanced": 0.13, "quality": 0.1})


@pytest.mark.parametrize("ahead", ["promoter", "server"])
def test_a_clock_that_ran_ahead_hides_no_broken_promise(tmp_path, ahead):
    """Failures are told by a promotion of tomorrow, and beside decisions of next year."""
    options = promoted(tmp_path, PROMISE, at=500.0 + 86_400 * (ahead == "promoter"))
    if ahead == "server":
        fill(options, 3, begin=1000.0 + 365 * 86_400, audits=0.0, seed=1)
    fill(options, 300, audits=0.0, failing=0.5)
    assert tick(options, clock=lambda: 2000.0)["decision"] == "rolled back"


@pytest.mark.parametrize(
    ("why", "again", "decision"),
    [
        (told_of("000001", "better"), 0, "wait"),
        (told_of("000001", "better"), 300, "rolled back"),
        ("the alarm was a fault of the gateway", 300, "wait"),
    ],
    ids=["the loop", "the loop, and it fails again", "a person"],
)
def test_a_bundle_that_serves_again_is_judged_by_what_it_decides_now(options, why, again, decision):
    """What was decided before a rollback is held against no bundle, and what a person promoted again is left alone."""
    fill(options, 300, audits=0.0, failing=0.5)
    assert tick(options)["decision"] == "rolled back"
    later = time.time() + 5000.0
    Registry(options.registry, clock=lambda: later).promote("previous", why=why)
    fill(options, again, begin=later, audits=0.0, failing=0.5, seed=1)
    found = tick(replace(options, min_outcomes=1000), clock=lambda: later + 1000.0)
    assert found["decision"] == decision


@pytest.mark.parametrize(
    ("fields", "promote"),
    [({"failing": 0.0}, True), ({"audits": 1.0}, True), ({"failing": 0.5}, False)],
    ids=["promise kept", "audits fail by design", "not allowed to"],
)
def test_bundle_that_keeps_its_promise_stays(options, fields, promote):
    """No rollback where few fail, where what failed was an audit of the cheapest tier, or without --promote."""
    before = Registry(options.registry).resolve("current")
    fill(options, 300, **{"audits": 0.0, **fields})
    assert tick(replace(options, promote=promote, min_outcomes=1000))["decision"] == "wait"
    assert Registry(options.registry).resolve("current") == before


def accepted_or_not(failed: bool, day: float = 0.0, **fields) -> dict:
    """A decision that its policy promised about, and what was said of it."""
    return {"guaranteed": True, "policy": "balanced", "tier": "simple", "model_tier": "simple", "threshold": 0.7,
            "served_tier": "simple", "cause": "quality", "verdict": "escalated" if failed else "accepted",
            "decided_at": day * 86_400} | fields  # fmt: skip


@pytest.mark.parametrize(
    ("audits", "unserved"), [(0.3, 0.0), (0.0, 0.5)], ids=["a third is audited", "the top tier fails often"]
)
def test_promise_that_is_kept_is_hardly_ever_called_broken(audits, unserved):
    """Neither audits of the cheapest tier nor rejections at the top make a risk of alpha look like more."""
    fired = 0
    tiers, short = ["simple", "standard", "frontier"], {"simple": 0.19, "standard": 0.06, "frontier": 0.0}  # .10 of all
    for seed in range(20):
        rng, rows = np.random.default_rng(seed), []
        drawn = rng.choice(tiers, 5000, p=[0.4, 0.4, 0.2]).tolist()
        for decided, (audit, miss, fail) in zip(drawn, rng.random((5000, 3)).tolist(), strict=True):
            served = "simple" if audit < audits else decided
            failed = miss < short[decided] or (fail < unserved if served == "frontier" else served != decided)
            rows.append(accepted_or_not(failed, tier=decided, served_tier=served))
        fired += bool(broken({"balanced": 0.1}, rows, 0.0))
    assert fired <= 1


@pytest.mark.parametrize(("short", "expected"), [(0.19, 0), (0.3, 20)], ids=["kept", "broken"])
def test_a_ceiling_on_hard_requests_breaks_no_promise_about_all_of_them(short, expected):
    """Half of the requests are lowered to the ceiling: the others may miss twice as often as all do, and no more."""
    fired = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        hard, missed = rng.random(3000) < 0.5, rng.random(3000) < short
        lowered = {"guaranteed": False, "model_tier": "frontier", "ceiling": "simple"}
        rows = [
            accepted_or_not(bool(miss or above), **(lowered if above else {}))
            for miss, above in zip(missed, hard, strict=True)
        ]
        fired += bool(broken({"balanced": 0.1}, rows, 0.0))
    assert abs(fired - expected) <= 1


def test_a_store_that_forgets_accuses_no_bundle_in_the_long_run():
    """A risk of just what is promised stays unaccused for four years of looks at the last 90 days."""
    fired = 0
    for seed in range(12):
        failed = (np.random.default_rng(seed).random(1500 * 4) < 0.1).tolist()
        rows = [accepted_or_not(one, i / 4) for i, one in enumerate(failed)]
        looks = (rows[4 * (day - 90) : 4 * day] for day in range(95, 1500, 20))
        fired += any(broken({"balanced": 0.1}, seen, 0.0) for seen in looks)
    assert fired <= 1


def test_a_promise_that_breaks_late_is_found():
    """Failures that begin after half a year are told within two periods."""
    failed = (np.random.default_rng(0).random(4000) < 0.2).tolist()
    rows = [accepted_or_not(one, 190 + i / 200) for i, one in enumerate(failed)]
    assert broken({"balanced": 0.1}, rows, 0.0)["balanced"]["failures"] > 100


def test_bundle_by_an_estimate_has_no_promise_to_break(tmp_path):
    """No rollback for failures where the thresholds are an estimate under an assumption."""
    options = promoted(tmp_path, replace(PROMISE, method="LABEL_SHIFT"))
    fill(options, 300, audits=0.0, failing=0.5)
    assert tick(replace(options, min_outcomes=1000))["decision"] == "wait"


def test_what_a_person_promoted_is_not_rolled_back(options, tmp_path):
    """The loop watches its own promotions only."""
    registry = Registry(options.registry, clock=lambda: 500.0)
    tiny_bundle(tmp_path / "other", scale=4.0, policies=(Policy("balanced", 0.7, guarantee=PROMISE),))
    registry.promote(registry.add(tmp_path / "other"))
    fill(options, 300, audits=0.0, failing=0.5)
    assert tick(replace(options, min_outcomes=1000))["decision"] == "wait"


def calls_of_retrain(monkeypatch, *, waiting: bool = False) -> list[dict]:
    """What the loop asks of a round; it answers that it did something, or, but for recalibration, that it waits."""
    calls: list[dict] = []

    def retrain(options, **fields):
        calls.append({"recalibrate_only": options.recalibrate_only, "why": fields.get("why", "")})
        waits = waiting and not options.recalibrate_only
        return {"decision": "wait" if waits else "candidate", "why": "test"}

    monkeypatch.setattr(training.loop, "retrain", retrain)
    return calls


def with_reference(options: Options, tmp_path: Path, probabilities: list[list[float]]) -> Options:
    """A current bundle whose reference says how its scores were distributed when it was calibrated."""
    from training.export import revise

    signals = [["[turns=1]"]] * len(probabilities)
    registry = Registry(options.registry, clock=lambda: 500.0)
    revise(registry.fetch("current"), tmp_path / "referenced",
           reference=reference_distributions(probabilities, signals))  # fmt: skip
    registry.promote(registry.add(tmp_path / "referenced"))
    return options


def test_drift_calls_for_recalibration(options, tmp_path, monkeypatch):
    """Traffic that is not what the bundle was calibrated on leads to a recalibration, and the reason names it."""
    pytest.importorskip("torch")
    with_reference(options, tmp_path, [[0.97, 0.01, 0.01, 0.01]] * 300)
    fill(options, 300, audits=0.0)
    assert any("drifted" in alarm for alarm in drift_alarms(options))
    calls = calls_of_retrain(monkeypatch, waiting=True)
    tick(options)
    assert [call["recalibrate_only"] for call in calls] == [False, True]
    assert calls[1]["why"].startswith("drift: ")


def test_drift_that_stays_puts_off_no_retraining(options, monkeypatch):
    """Under an alarm that never ends outcomes add up over recalibrations until there are enough of them to train."""
    rounds: list[bool] = []

    def go(self, _why):
        rounds.append(self._options.recalibrate_only)
        receipt = {"decision": "keep", "until": self._clock(), "options": {"recalibrate_only": str(rounds[-1])}}
        return self._run.close(receipt)

    monkeypatch.setattr(training.retrain.Round, "go", go)
    monkeypatch.setattr(training.loop, "drift_alarms", lambda _: ["drifted"])
    monkeypatch.setattr(
        training.retrain, "outcomes_between", lambda _url, *span: int(np.ptp(np.clip(span, 1000.0, now)))
    )
    for now in np.arange(1000.0, 2200.0, 100.0):
        tick(replace(options, promote=False, min_outcomes=500), clock=lambda now=now: now)
    assert rounds.count(False) == 2
    assert rounds.count(True) > rounds.count(False)


@pytest.mark.parametrize(("wanted", "few"), [(1, 1), (2, 1), (10, 2), (500, 100)])
def test_drift_waits_for_a_fifth_of_the_outcomes_and_for_one_at_least(options, monkeypatch, wanted, few):
    """An alarm that stays begins no round of the outcomes that the last one saw."""
    asked: list[int] = []

    def retrain(options, **_fields):
        asked.append(options.min_outcomes)
        return {"decision": "wait", "why": "test"}

    monkeypatch.setattr(training.loop, "retrain", retrain)
    monkeypatch.setattr(training.loop, "drift_alarms", lambda _: ["drifted"])
    tick(replace(options, promote=False, min_outcomes=wanted))
    assert asked == [wanted, few]


@pytest.mark.parametrize("ahead", ["loop", "server", "machine"])
def test_a_clock_that_ran_ahead_neither_blocks_the_loop_nor_drives_it(options, monkeypatch, ahead):
    """Of two rounds' outcomes each begins one, also where loop, server or both were in another week for a while."""
    day = 86_400.0

    def go(self, why):
        snapshot = self._run.step("snapshot", self._freeze)
        return self._run.close({"decision": "keep", "until": snapshot["until"], "options": {}})

    monkeypatch.setattr(training.retrain.Round, "go", go)
    monkeypatch.setattr(training.loop, "drift_alarms", lambda _: [])
    options = replace(options, promote=False, min_outcomes=10)
    fill(options, 10)
    if ahead != "loop":
        fill(options, 10, begin=9 * day, seed=1)
    if ahead == "machine":
        assert tick(options, clock=lambda: 10 * day)["decision"] == "keep"
    looks = (2000.0 + 7 * day * (ahead == "loop"), 3000.0), (5000.0, 6000.0)
    for seed, (first, second) in enumerate(looks, 2):
        assert tick(options, clock=lambda now=first: now)["decision"] == "keep"
        assert tick(options, clock=lambda now=second: now)["decision"] == "wait"
        fill(options, 10, begin=4000.0, seed=seed)


def test_who_waits_for_decisions_ahead_of_the_clock_says_so(options):
    """Where the servers' clock is ahead of the loop's, the reason to wait counts what was decided in its future."""
    fill(options, 10)
    receipt = tick(replace(options, promote=False, min_outcomes=10), clock=lambda: 1007.0)
    assert (receipt["decision"], receipt["outcomes"]) == ("wait", 7)
    assert "; 3 are of moments that this machine's clock has not reached" in receipt["why"]


def test_cut_off_round_goes_first(options, monkeypatch):
    """A round that has no receipt is gone on with before anything new is begun."""
    fill(options, 5)
    (options.work / "000002").mkdir()
    calls = calls_of_retrain(monkeypatch)
    tick(options)
    assert calls == [{"recalibrate_only": False, "why": ""}]


def test_loop_outlives_its_errors_and_ends_when_told(options, monkeypatch):
    """A failing look is said and tried again; setting the event ends the loop."""
    answers = [StoreUnavailable("the store is gone"), RuntimeError("a bug"), {"decision": "wait", "why": "later"}]
    stop, said, told = threading.Event(), [], []

    def once(*_args, **_fields):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        stop.set()
        return answer

    monkeypatch.setattr(training.loop, "tick", once)
    run_loop(options, 0.001, stop=stop, say=said.append, tell=told.append)
    assert told == [{"decision": "wait", "why": "later"}]
    assert said == [
        "this round failed and goes on next time: the store is gone",
        "this round failed and goes on next time: RuntimeError: a bug",
    ]


@pytest.mark.parametrize(("text", "wanted"), [("90s", 90.0), ("15m", 900.0), ("1h", 3600.0), ("0.5d", 43_200.0)])
def test_durations(text, wanted):
    """A pause is a number with s, m, h or d."""
    assert seconds(text) == wanted


@pytest.mark.parametrize("text", ["", "1", "h", "-1h", "0s", "1 week"])
def test_no_duration(text):
    """Anything else is refused with examples."""
    with pytest.raises(click.BadParameter, match="90s, 15m, 1h or 1d"):
        seconds(text)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_the_loop_after_its_round_with_its_code(tmp_path, monkeypatch, number, code):
    """SIGTERM is the end of an unattended loop, Ctrl-C interrupts it; both wait for the round."""
    rounds = []

    def one_round(*_, stop, **__):
        signal.raise_signal(number)
        rounds.append(stop.wait(60))

    monkeypatch.setattr("training.loop.run_loop", one_round)
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        done = CliRunner().invoke(
            main, ["loop", "--registry", str(tmp_path), "--feedback-url", f"sqlite:///{tmp_path}/f"]
        )
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
    assert (done.exit_code, rounds) == (code, [True])
