"""One round of the feedback loop: what was learnt becomes a candidate, is judged, and perhaps promoted.

    snapshot → recalibrate → judge ┬ enough ────────────────────────────────────────────────────┐
                                   └ thresholds → judge → train → calibrate → judge → choose ───┴ register → promote

Every step is kept in the run's folder and skipped where it is there, so a run that was cut off anywhere goes on where
it was (`training.steps`). Registering and promoting may be repeated: the registry stores the same version once, and
promotes only where the bundle that was compared with is still current.

Recalibration alone is tried first, in seconds, and kept where it is enough: where the gate accepts it. Where the gate
finds a new probability map harmful elsewhere, thresholds alone are fitted, which leave the order of all requests as it
is. Where that only repairs the promise at a higher price, retraining is tried; of those that the gate lets pass the
cheapest one is taken. Where recent audits are too few to fit thresholds on, or too few of them fitted nothing of the
serving bundle and may judge, nothing is tried.

Knows nothing of how labels are made of outcomes (`feedback_set`), or of how two bundles are compared (`gate`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from classifier.addresses import shown_url
from classifier.bundle import Bundle, input_mismatch, read_bundle
from classifier.engine import Engine
from classifier.errors import BundleError, GateNotMet, InputError
from classifier.registry import Registry
from classifier.types import Request
from training.answers import load_engine
from training.calibration_set import CALIBRATED_ON, CalibrationSet, outside, score_rows, unseen
from training.candidates import recalibrated, retrained
from training.choices import golden_set, off_policy_pair, recent_set
from training.corpus import RUBRIC, Row, read_corpus
from training.decision_log import parse_audit
from training.feedback_set import SetOptions
from training.frozen import Frozen, freeze, melt, outcomes_between, thaw
from training.gate import judge
from training.held_out import HeldOut, feedback_rows, hold_out, kept_for_judging, recent_log
from training.progress import Say
from training.recipe import load_retraining
from training.round_options import KEPT, Options, check_work, claim_work, lock_path
from training.steps import Run, keep_receipts, last_round, next_folder, only_one, unfinished
from training.tracking import track

GOLDEN_MARGIN = 0.05
"""By how much the risk on golden rows may be worse at equal cost: what may be forgotten."""
THRESHOLDS = "thresholds"
"""The step whose bundle has new thresholds and the serving bundle's probabilities."""
TRAINED = "calibrate-trained"
"""The step whose bundle is the retrained candidate."""
MOST_GOLDEN = 600
MOST_LOGGED = 1000
MOST_ATTEMPTS = 3
"""So often a run is begun again before it is given up: what fails each time would block the loop for ever."""


def retrain(
    options: Options, *, why: str = "asked for", say: Say = lambda _: None, clock: Callable[[], float] = time.time
) -> dict[str, Any]:
    """One round, or the rest of one that was cut off.

    Returns:
        The receipt. Its `decision` is one of `wait`, `keep`, `candidate`, `promoted`, `superseded`, `gave up`.

    Raises:
        Busy: another retrainer is at it.
        ClassifierError: a step could not be done; the run goes on from there next time.
    """
    check_work(options)
    with only_one(lock_path(options)):
        if (folder := unfinished(options.work)) is None:
            now, text, count_of = clock(), "", partial(outcomes_between, options.feedback_url)
            since = last_round(options.work, trains=not options.recalibrate_only, now=now)
            count = count_of(since, now)
            if count < options.min_outcomes:
                ahead = count_of(now, math.inf)
                found = f"{count} decisions since the last round have an outcome of quality"
                text = f"{found}, {options.min_outcomes} are wanted (--min-outcomes; with 0 a round never waits)"
                text += f"; {ahead} are of moments that this machine's clock has not reached" if ahead else ""
            elif count and not count_of(max(since, options.window_begin(now)), now):
                text = f"none of {count} decisions since the last round with an outcome of quality is in --window-days"
            if text:
                return {"decision": "wait", "why": text, "outcomes": count}
            keep_receipts(options.work)
            folder = next_folder(options.work)
        else:
            say(f"{folder}: goes on where it was cut off")
        return Round(options, Run(folder, say=say), say, clock).go(why)


def told_of(run: str, why: str) -> str:
    """What the registry's history says of a change that a round made."""
    return f"round {run}: {why}"[:500]


class Round:
    """One run's steps, each a method; see the module's text.

    Args:
        options: what to do.
        run: where it is kept.
        say: where progress goes.
        clock: seconds since the epoch.
    """

    def __init__(self, options: Options, run: Run, say: Say, clock: Callable[[], float]) -> None:
        self._options, self._run, self._say, self._clock = options, run, say, clock
        self._registry = Registry(options.registry)
        self._recipe = load_retraining(options.recipe)

    def go(self, why: str) -> dict[str, Any]:
        """All steps that are left, and the receipt."""
        self._keep_to(self._run.step("begin", lambda _: self._begin(why))["options"])
        self._snapshot = self._run.step("snapshot", self._freeze)
        self._registry.state()  # a store or registry that cannot be reached is no fault of the round: it does not count
        with self._run.attempt() as begun:
            if begun > MOST_ATTEMPTS:
                return self._close("gave up", f"it was begun {MOST_ATTEMPTS} times without an end; see the log")
            if mismatch := input_mismatch(self._current):  # the package was upgraded since
                return self._close("gave up", mismatch)
            name, verdict = self._choose()
            if name is None:
                return self._close("keep", verdict["why"])
            candidate = self._run.step("register", lambda _: self._register(name, verdict))["version"]
            if not self._options.promote:
                return self._close("candidate", verdict["why"], candidate)
            if told := self._run.step("promote", lambda _: self._promote(candidate, verdict)).get("superseded"):
                return self._close("superseded", told, candidate)
            return self._close("promoted", verdict["why"], candidate)

    def _keep_to(self, begun: Mapping[str, Any]) -> None:
        """Takes the options that the round was begun with; one that never trains stays one."""
        given, begun = self._options, {name: begun[name] for name in KEPT if name in begun}  # another package's
        never = bool(begun.pop("recalibrate_only", False)) or given.recalibrate_only
        self._options = replace(given, recalibrate_only=never, **begun)
        if others := [name for name in begun if begun[name] != getattr(given, name)]:
            self._say(f"the round goes on as it was begun: {', '.join(f'{n} {begun[n]}' for n in others)}")

    def _begin(self, why: str) -> dict[str, Any]:
        # Without one that can be judged there is nothing to begin, nor a work folder to claim.
        if mismatch := input_mismatch(read_bundle(self._registry.fetch("current"))):
            raise BundleError(mismatch)
        claim_work(self._options)
        return {"why": why, "options": {name: getattr(self._options, name) for name in KEPT}}

    def _freeze(self, out: Path) -> dict[str, Any]:
        now, given, current = self._clock(), self._options, self._registry.resolve("current")
        begin, audit = given.window_begin(now), parse_audit(given.audit_label)
        found = freeze(given.feedback_url, out, since=begin, until=now, held_out=given.held_out, audit=audit)
        return {"current": current, "rolled_back": self._registry.given_up(), **found}

    def _choose(self) -> tuple[str | None, dict[str, Any]]:
        """The step whose bundle is to be registered, and why; None where the current one stays."""
        run = self._run
        verdicts, told = {}, []
        for name, judged, what in (
            ("recalibrate", "judge-recalibrated", "recalibrated"),
            (THRESHOLDS, "judge-thresholds", "thresholds alone"),
        ):
            fitted = run.step(name, partial(self._recalibrate, fit_map=name != THRESHOLDS))
            if not fitted["done"]:
                return None, fitted
            verdict = verdicts[name] = run.step(judged, partial(self._judge, name=name))
            told.append(f"{what}: {verdict['why']}")
            if verdict["accepted"]:
                return name, {**verdict, "why": f"recalibration is enough: {'; '.join(told)}"}
            if verdict["refused"]:  # no candidate is judged on more rows
                return None, {"why": "; ".join(told)}
            if verdict["repairs"] or not fitted["map_rows"]:
                break
        trained, second = self._try_training()
        if trained is not None:
            verdicts[TRAINED] = trained
        both = "; ".join([*told, f"retrained: {second}"])
        passed = {name: one["cost"] for name, one in verdicts.items() if one["accepted"] or one["repairs"]}
        if not passed:
            return None, {"why": both}
        name = min(passed, key=passed.__getitem__)
        return name, {"why": f"{name} is taken: {both}"}

    def _try_training(self) -> tuple[dict[str, Any] | None, str]:
        """The verdict on a retrained candidate and its reasons; None where there is none."""
        if self._options.recalibrate_only:
            return None, "retraining is off"
        taught = self._run.step("train", self._train)
        if not taught["done"]:
            return None, taught["why"]
        self._run.step(TRAINED, self._calibrate_trained)
        verdict = self._run.step("judge-retrained", partial(self._judge, name=TRAINED))
        return verdict, verdict["why"]

    def _recalibrate(self, out: Path, *, fit_map: bool) -> dict[str, Any]:
        """The current weights with thresholds of now, where there are audits for them, and probabilities of now."""
        current, held, of = self._current, self._held_out, "the serving bundle"
        new = unseen(held.recent, current, CALIBRATED_ON)
        if gone := self._gone:  # the same audits would make the same bundle again
            new = unseen(new, gone, CALIBRATED_ON)
            of += f" or {gone.version}, rolled back"
        alpha = current.policies[current.default_policy].guarantee.alpha
        if why := held.lack(new, of=of, alpha=alpha, label=self._options.audit_label):
            return {"done": False, "why": why, "audits": held.counts}
        mapped, recent = held.to_fit(retrained=False)
        found = self._calibrated(out, current.path, mapped if fit_map else [], recent, held.traffic)
        return found | {"done": True, "audits": held.counts}

    def _train(self, out: Path) -> dict[str, Any]:
        """The current bundle's student, trained on and exported, not yet calibrated; or why that cannot be done."""
        current, base, frozen, held = self._current, self._base, self._frozen(), self._held_out
        kept = kept_for_judging(frozen, held)
        feedback, counts = feedback_rows(frozen, held, kept, self._caps)
        if not feedback:
            return {"done": False, "why": "no outcome from before says anything to learn from", "feedback": counts}
        try:
            _, facts = retrained(
                current.path,
                self._registry.checkpoint(current.version),
                out,
                recipe=self._recipe,
                feedback=feedback,
                base=outside([row for row in base if row.split == "train" and row.label == RUBRIC], kept),
                check=[row for row in base if row.split == "test"],
                state=self._run.state("train"),
            )
        except (GateNotMet, InputError) as error:
            return {"done": False, "why": f"{error}", "feedback": counts}
        return facts | {"done": True, "feedback": counts}

    def _calibrate_trained(self, out: Path) -> dict[str, Any]:
        raw, held = self._run.path("train") / "raw", self._held_out
        return self._calibrated(out, raw, *held.to_fit(retrained=True), held.traffic)

    def _calibrated(
        self, out: Path, weights: Path, mapped: Sequence[Row], recent: Sequence[Row], traffic: Sequence[Request]
    ) -> dict[str, Any]:
        """The weights in `weights` with the promises of the current bundle, fitted anew, in `out/bundle`."""
        engine = load_engine(weights)
        found = recalibrated(
            weights,
            out,
            map_rows=self._scored(mapped, engine) if mapped else None,
            rows=self._scored(recent, engine),
            promises=self._current,
            traffic=traffic,
        )
        return {
            "version": found.bundle.version,
            "label": found.report["label"],
            "rows": found.report["rows"]["thresholds"],
            "map_rows": found.map_rows,
            "rows_sha256": found.report["rows"]["set_sha256"],
            "left_out": found.left_out,
            "thresholds": {name: policy.threshold for name, policy in found.bundle.policies.items()},
            "notes": found.report["notes"],
        }

    def _register(self, name: str, verdict: Mapping[str, Any]) -> dict[str, Any]:
        run, registry, why = self._run, self._registry, told_of(self._run.name, verdict["why"])
        trained = run.path("train") / "checkpoint"
        weights = trained if name == TRAINED else registry.checkpoint(self._snapshot["current"])
        return {"version": registry.add(run.path(name) / "bundle", checkpoint=weights, candidate=True, why=why)}

    def _promote(self, version: str, verdict: Mapping[str, Any]) -> dict[str, Any]:
        before, why = self._snapshot["current"], told_of(self._run.name, verdict["why"])
        # A crash after the registry's change and before this step was recorded: the promotion is done, and what others
        # made of it since then is theirs.
        done = ("promote", version, why) in ((e.action, e.version, e.why) for e in self._registry.history())
        now = self._registry.resolve("current")
        if not done and now not in (before, version):
            return {"superseded": f"{now} became current meanwhile, and the candidate was compared with {before}"}
        if not done and now != version:
            self._registry.promote(version, why=why, expected=before)
        return {"at": self._clock()}

    def _close(self, decision: str, why: str, candidate: str = "") -> dict[str, Any]:
        """Ends the run. Its receipt is a step: MLflow gets one run of a round that was cut off behind it."""
        return self._run.close(self._run.step("receipt", lambda _: self._receipt(decision, why, candidate)))

    def _receipt(self, decision: str, why: str, candidate: str) -> dict[str, Any]:
        """The receipt, tracked; deletes the texts that the run froze."""
        options = asdict(replace(self._options, mlflow_uri=shown_url(self._options.mlflow_uri)))
        receipt = {
            "run": self._run.name,
            "decision": decision,
            "why": why,
            "current": self._snapshot["current"],
            "candidate": candidate,
            "since": self._snapshot["since"],
            "until": self._snapshot["until"],
            "closed_at": self._clock(),
            "options": {name: str(value) for name, value in options.items() if name != "feedback_url"},
            "steps": self._run.results(),
        }
        melt(self._run.path("snapshot"))
        made = {"bundle": self._registry.fetch(candidate)} if candidate else {}
        return receipt | {"mlflow_run": track(receipt, uri=self._options.mlflow_uri, artefacts=made, say=self._say)}

    # --- what the steps share

    @property
    def _caps(self) -> SetOptions:
        return SetOptions(self._options.principal_share, self._options.principal_label)

    @cached_property
    def _current(self) -> Bundle:
        return read_bundle(self._registry.fetch(self._snapshot["current"]))

    @cached_property
    def _gone(self) -> Bundle | None:
        gone = self._snapshot.get("rolled_back")
        return read_bundle(self._registry.fetch(gone)) if gone else None

    @cached_property
    def _base(self) -> list[Row]:
        return read_corpus(self._options.data)

    def _frozen(self) -> Frozen:
        return thaw(self._run.path("snapshot"), self._snapshot["split"], parse_audit(self._options.audit_label))

    @cached_property
    def _held_out(self) -> HeldOut:
        found = hold_out(self._frozen(), self._base, self._current, options=self._caps, most=MOST_GOLDEN)
        if not found.golden:
            given = " ".join(self._options.data)
            raise InputError(f"no unseen test rows in --data {given}: a round judges on such what it forgot; add some")
        return found

    def _scored(self, rows: Sequence[Row], engine: Engine) -> CalibrationSet:
        return score_rows(rows, engine, self._current.policies[self._current.default_policy].group_by)

    def _judge(self, _: Path, *, name: str) -> dict[str, Any]:
        """The bundle of a step against the current one, without the audits that it was told to leave out."""
        held = self._held_out
        left_out = self._run.result(name)["left_out"]
        recent = held.to_fit(retrained=name == TRAINED)[1]
        audits = [row for row in recent if row.source not in left_out]
        current, candidate = load_engine(self._current.path), load_engine(self._run.path(name) / "bundle")
        scored = self._scored(audits, current), self._scored(audits, candidate)
        return judge(
            [
                recent_set(current, candidate, scored, held.traffic, self._gone),
                golden_set(current, candidate, held.golden, risk_margin=GOLDEN_MARGIN),
            ],
            off_policy=off_policy_pair(current, candidate, recent_log(self._frozen(), self._caps, MOST_LOGGED)),
        ).as_json()
