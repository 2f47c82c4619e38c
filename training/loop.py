"""The loop unattended: watch what was promoted, finish what was cut off, look for drift, retrain when enough came in.

One `tick` does at most one of these, in this order, and says which:

1. *roll back* the bundle that a round promoted, where its reported failures exceed its promise (a sequential test that
   may be looked at as often as one likes);
2. *resume* a round that was cut off;
3. *retrain*, where enough outcomes came in since the last round that might train;
4. *recalibrate*, where traffic or outcomes have drifted from what the bundle was calibrated on;
5. *wait*.

Knows nothing of how a round works, or of flags.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from classifier.bundle import Bundle, read_bundle
from classifier.database import Database
from classifier.drift import MAX_INDEX, drift_report, fell_short
from classifier.errors import Busy, ClassifierError
from classifier.exports import export_row
from classifier.ledger import Ledger
from classifier.policy import promised_risks
from classifier.registry import Registry
from training.progress import Say
from training.retrain import retrain, told_of
from training.round_options import Options, check_work, lock_path
from training.sequential import ERROR, SequentialTest
from training.steps import only_one, receipts, unfinished, write_json

DRIFT_SHARE = 0.2
"""An alarm counts once this share of `min_outcomes` came in since the last round: recalibration takes labels, too."""
PERIOD_DAYS = 30.0
"""How long a test of a promise goes on before the next one; two of them are less than what the store keeps."""
_NEARLY_ALL = 0.99  # a bound that can be exceeded

Clock = Callable[[], float]


def tick(options: Options, *, say: Say = lambda _: None, clock: Clock = time.time) -> dict[str, Any]:
    """One look at the world, and what it calls for.

    Returns:
        A receipt: of a round, of a rollback, or of waiting.

    Raises:
        Busy: another retrainer is at it.
    """
    check_work(options)
    rolled = roll_back_if_worse(options, clock=clock) if options.promote else None
    if rolled is not None:
        return rolled
    if unfinished(options.work) is not None:
        return retrain(options, say=say, clock=clock)
    # An alarm may stay on for ever: it does not come before the round that could end it.
    found = retrain(options, why="enough outcomes", say=say, clock=clock)
    if found["decision"] == "wait" and (drifted := drift_alarms(options)):
        fewest = max(1, round(DRIFT_SHARE * options.min_outcomes))
        few = replace(options, recalibrate_only=True, min_outcomes=fewest)
        recalibrated = retrain(few, why=f"drift: {'; '.join(drifted)}", say=say, clock=clock)
        return found if recalibrated["decision"] == "wait" else recalibrated
    return found


def decisions_of(options: Options, version: str, since: float) -> Iterator[dict[str, Any]]:
    """Decisions that a bundle made since a moment, with their outcomes, as exports spell them, oldest first."""
    with contextlib.closing(Database(options.feedback_url, make=False)) as database:
        yield from map(export_row, Ledger(database).rows(since, bundle=version))


def drift_alarms(options: Options) -> list[str]:
    """What has drifted since the current bundle took over; empty where nothing has, or nothing can be said."""
    registry = Registry(options.registry)
    bundle = read_bundle(registry.fetch("current"))
    if not bundle.reference.get("n"):
        return []
    promised = promised_risks(bundle.policies)
    rows = decisions_of(options, bundle.version, tenure(registry, bundle.version)[0])
    alarms: list[str] = drift_report(rows, bundle.reference, promised, max_index=MAX_INDEX)["alarms"]
    return alarms


def tenure(registry: Registry, version: str) -> tuple[float, float]:
    """When a version last ceased to be current, 0 for never, and when it became so again, seconds since the epoch.

    Its decisions after the first of these are of its present time: the clock of who promoted it may have run ahead of
    the servers'.
    """
    left = came = 0.0
    serves = False
    for event in registry.history():
        before, serves = serves, event.aliases.get("current") == version
        if before and not serves:
            left = event.at
        elif serves and not before:
            came = event.at
    return left, came


def own_promotion(registry: Registry, closed: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The receipt of the round that promoted what serves; None where a person did, or came back to it.

    Args:
        registry: where that bundle serves.
        closed: receipts of rounds.
    """
    last = registry.last_change()
    if last is None or last.action != "promote":
        return None
    own = (r for r in closed if r["decision"] == "promoted" and r["candidate"] == last.version)
    return next((r for r in own if told_of(r["run"], r["why"]) == last.why), None)


def roll_back_if_worse(options: Options, *, clock: Clock = time.time) -> dict[str, Any] | None:
    """Rolls back the bundle that the last round promoted, where its risk exceeds what it is held to.

    A failure is reported, and says that the tier that was decided was too small; silence is none. So the test fires
    only where that risk is exceeded even if everybody who said nothing was content.

    Returns:
        The receipt; None where there is no reason.
    """
    registry = Registry(options.registry)
    promotion = own_promotion(registry, receipts(options.work))
    if promotion is None:
        return None
    current = promotion["candidate"]
    with only_one(lock_path(options)):
        bundle = read_bundle(registry.fetch(current))
        left, came = tenure(registry, current)
        fired = broken(held_to(bundle, promotion), decisions_of(options, current, left), came, clock())
        if not fired:
            return None
        why = f"failures of {', '.join(fired)} exceed the promise (sequential test)"
        restored = registry.rollback(why=why, expected=current).version
        receipt = {
            "decision": "rolled back",
            "why": why,
            "current": current,
            "candidate": restored,
            "tests": fired,
            "closed_at": clock(),
        }
        write_json(options.work / f"rollback-{current}.json", receipt)
        return receipt


def held_to(bundle: Bundle, promotion: Mapping[str, Any]) -> dict[str, float]:
    """By policy the risk above which a bundle is rolled back: its promise, or what the one before it had, if more.

    A round may promote what keeps a promise that was broken, and a promise in the mean over draws of the audits leaves
    some bundles a little above it: going back would then make it worse.

    Args:
        bundle: what was promoted.
        promotion: the receipt of it; the gate saw both bundles' default policies on recent audits, before exploration,
            which misses up to a share epsilon more.
    """
    promises, name = promised_risks(bundle.policies), bundle.default_policy
    judged = [step.get("sets", {}).get("recent", {}) for step in promotion.get("steps", {}).values()]
    before = max((one["risk"]["current"]["estimate"] for one in judged if "risk" in one), default=0.0)
    if name in promises:
        promises[name] = max(promises[name], min(before + bundle.policies[name].epsilon, _NEARLY_ALL))
    return promises


def broken(
    promises: Mapping[str, float], rows: Iterable[Mapping[str, Any]], since: float, now: float = math.inf
) -> dict[str, dict[str, Any]]:
    """What the tests counted of the policies whose failures exceed their promise.

    A test begins anew every `PERIOD_DAYS`, with a share of the error of its own (1/2, 1/6, 1/12 … are 1 in all), and
    the last two count. One of all decisions would begin at another one each day, once the store forgets the oldest:
    after a year it had accused 2 in 5 of the bundles whose risk was just what they promise.

    Args:
        promises: policy → P(chosen < label) at most, as `held_to` has them.
        rows: decisions with their outcomes, as exports spell them, oldest first.
        since: when the bundle took over, seconds since the epoch.
        now: seconds since the epoch; a decision of a later moment, by a clock that ran ahead, counts as one of now.
    """
    tests: dict[tuple[int, str], SequentialTest] = {}
    period = 0
    for row in rows:
        short, name = fell_short(row), row["policy"]
        if short is None or name not in promises:
            continue
        period = max(0, math.floor((min(row["decided_at"], now) - since) / (PERIOD_DAYS * 86_400)))
        if (period, name) not in tests:
            error = ERROR / len(promises) / ((period + 1) * (period + 2))
            tests[period, name] = SequentialTest(promises[name], error)
        tests[period, name].add(failed=short)
    return {name: test.as_json() for (at, name), test in tests.items() if at >= period - 1 and test.fired}


def run_loop(
    options: Options, every: float, *, stop: threading.Event, say: Say, tell: Callable[[Mapping[str, Any]], object]
) -> None:
    """Ticks until `stop` is set. A tick that fails is said and tried again at the next: the loop outlives errors."""
    while not stop.is_set():
        try:
            tell(tick(options, say=say))
        except Busy as error:
            say(f"{error}")
        except ClassifierError as error:
            say(f"this round failed and goes on next time: {error}")
        except Exception as error:
            say(f"this round failed and goes on next time: {type(error).__name__}: {error}")
        stop.wait(every)
