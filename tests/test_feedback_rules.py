"""The rules of what is remembered, as a model in memory, against any order of what can happen.

One writer that may die at any statement, and several that write at once.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from classifier.database import Database
from classifier.errors import StoreUnavailable
from classifier.ledger import Ledger
from classifier.types import Cause, OutcomeState
from tests.feedback_support import quick_folder

JOINED, PENDING, DUPLICATE = OutcomeState

_IDS, _OUTCOMES, _TIMES = st.sampled_from("abc"), st.sampled_from("wxyz"), st.sampled_from([1.0, 2.0, 3.0])
_DECISION, _OUTCOME = st.tuples(_IDS, st.sampled_from([1, 2])), st.tuples(_IDS, _OUTCOMES, _TIMES, _TIMES)
_WRITE = st.tuples(st.just("write"), st.tuples(st.lists(_DECISION, max_size=3), st.lists(_OUTCOME, max_size=4)))
_FORGET = st.tuples(st.just("forget"), st.lists(_IDS, min_size=1, max_size=2))
# Where the process dies: before that statement or commit of the step, after the step, or not.
_STEP = st.tuples(st.one_of(_WRITE, _FORGET), st.one_of(st.none(), st.integers(0, 7)))


class Crash(BaseException):
    """The process dies here."""


class Rules:
    """What should be remembered: the rules, in memory."""

    def __init__(self) -> None:
        self.decided: dict[str, int] = {}
        self.reported: dict[str, tuple[str, float, float]] = {}
        self.gone: set[str] = set()

    def write(self, decisions: list, outcomes: list) -> list[OutcomeState]:
        """The first decision of an id stays, the first outcome of an id stays, and nothing comes back."""
        for i, tier in decisions:
            if i not in self.gone:
                self.decided.setdefault(i, tier)
        states = []
        for i, o, occurred, received in outcomes:
            if o in self.reported or i in self.gone:
                states.append(DUPLICATE)
                continue
            states.append(JOINED if i in self.decided else PENDING)
            self.reported[o] = (i, occurred, received)
        return states

    def forget(self, ids: list[str]) -> tuple[int, int]:
        """Decisions and their outcomes go, and stay away."""
        before = len(self.decided), len(self.reported)
        self.gone |= set(ids)
        self.decided = {i: t for i, t in self.decided.items() if i not in self.gone}
        self.reported = {o: r for o, r in self.reported.items() if r[0] not in self.gone}
        return before[0] - len(self.decided), before[1] - len(self.reported)

    def check(self, ledger: Ledger) -> None:
        """The database holds that and no more; the latest outcome of a decision is the effective one."""
        effective = {}
        for i, tier in self.decided.items():
            mine = [(occurred, received, o) for o, (j, occurred, received) in self.reported.items() if i == j]
            effective[i] = (tier, max(mine)[2] if mine else None, len(mine))
        found = {r["decision_id"]: (r["tier"], r["outcome_id"], r["outcome_count"] or 0) for r in ledger.rows()}
        assert found == effective
        assert {r["outcome_id"] for r in ledger.rows(history=True)} - {None} == set(self.reported)
        assert ledger.counts()["forgotten"] == len(self.gone)
        judged = {i for o, (i, _, _) in self.reported.items() if _cause(o) is Cause.QUALITY} & self.decided.keys()
        assert ledger.judged(1.0, 3.0) == len(judged)


class Process:
    """A process with a database open; where it dies, another goes on from what is on disk."""

    def __init__(self, url: str) -> None:
        self._open(url)

    def _open(self, url: str) -> None:
        self._url = url
        self.database = Database(url)
        self.ledger = Ledger(self.database)

    def run(self, step: Callable[[Ledger], Any], dies_at: int | None = None) -> tuple[bool, Any]:
        """Whether the step was finished, and its answer.

        Args:
            step: what it does.
            dies_at: before which statement or commit of the step it dies; beyond the last one, after the step.
        """
        if dies_at is None:
            return True, step(self.ledger)
        self.database.check()  # the tables are there: what dies is the step
        numbers, left = itertools.count(), [self._url]

        def look(*_: object) -> None:
            if next(numbers) == dies_at:
                left[0] = self._as_on_disk()
                raise Crash

        for event in ("before_cursor_execute", "commit"):
            sa.event.listen(self.database._engine, event, look)
        try:
            done, answer = True, step(self.ledger)
        except Crash:
            done, answer = False, None
        else:
            left[0] = self._as_on_disk()
        self.database.close()
        self._open(left[0])
        return done, answer

    def _as_on_disk(self) -> str:
        """The URL of what a killed process would leave: SQLite's files, its log among them, as they lie now."""
        if self.database.path is None:
            return self._url  # the server rolls back what is open when the connection ends
        before = self.database.path.parent
        after = before.with_name(f"after-{before.name}")
        shutil.copytree(before, after)
        return f"sqlite:///{after}/{self.database.path.name}"


def check_sequence(url: str, steps: list) -> None:
    """Runs the steps on a database and on the model, and compares what both end with."""
    process, rules = Process(url), Rules()
    try:
        for (action, items), dies_at in steps:
            if action == "write":
                decisions = [_decision_row(*item) for item in items[0]]
                outcomes = [_outcome_row(*item) for item in items[1]]
                done, answer = process.run(functools.partial(_write, decisions, outcomes), dies_at)
                expected = rules.write(*items) if done else None
            else:
                done, answer = process.run(functools.partial(_forget, items), dies_at)
                expected = rules.forget(items) if done else None
            assert answer == expected
        rules.check(process.ledger)
    finally:
        process.database.close()


def check_interleaving(url: str, scripts: list) -> None:
    """Runs each script on a replica of its own, all at once: what they end in does not depend on who was first."""
    rules, taken = Rules(), collections.Counter()
    start = threading.Barrier(len(scripts))

    def replica(script: list) -> list[tuple[str, OutcomeState]]:
        states = []
        with contextlib.closing(Database(url)) as database:
            ledger = Ledger(database)
            start.wait(30)
            for action, items in script:
                if action == "write":
                    decisions = [_decision_row(i, 1) for i in items[0]]
                    outcomes = [_outcome_row(i, i + o, 1.0, 1.0) for i, o in items[1]]
                    answers = _until_taken(functools.partial(_write, decisions, outcomes), ledger)
                    states += zip([row["outcome_id"] for row in outcomes], answers, strict=True)
                else:
                    _until_taken(functools.partial(_forget, items), ledger)
        return states

    with ThreadPoolExecutor(len(scripts)) as pool:
        for answers in pool.map(replica, scripts):
            taken.update(o for o, state in answers if state is not DUPLICATE)
    # Forgets come last: they win whenever they come.
    for action, items in sorted(itertools.chain(*scripts), key=lambda step: step[0] == "forget"):
        if action == "write":
            rules.write([(i, 1) for i in items[0]], [(i, i + o, 1.0, 1.0) for i, o in items[1]])
        else:
            rules.forget(items)
    with contextlib.closing(Database(url)) as database:
        rules.check(Ledger(database))
    # Of an outcome that two replicas took, one says that it is new.
    assert set(taken.values()) <= {1}
    assert set(rules.reported) <= set(taken)


def _write(decisions: list, outcomes: list, ledger: Ledger) -> list[OutcomeState]:
    return ledger.write(decisions, outcomes)


def _forget(ids: list[str], ledger: Ledger) -> tuple[int, int]:
    return ledger.forget(ids)


def _until_taken(step: Callable[[Ledger], Any], ledger: Ledger) -> Any:
    """As a client does: a lock that was waited for in vain is tried again."""
    while True:
        with contextlib.suppress(StoreUnavailable):
            return step(ledger)


def _decision_row(decision_id: str, tier: int) -> dict:
    numbers = {"decided_at": 1.0, "model_tier": 1, "reason": 1, "threshold": 0.5, "propensity": 1.0, "input_tokens": 1}
    texts = dict.fromkeys(("policy", "bundle_version", "calibration_revision", "route", "request_hash"), "")
    lists = dict.fromkeys(("probabilities", "logits", "signals"), "[]")
    none = dict.fromkeys(("floor", "ceiling", "request"))
    flags = {"guaranteed": True, "truncated": False, "labels": "{}"}
    return {"decision_id": decision_id, "caller": "g", "tier": tier, **numbers, **texts, **lists, **none, **flags}


def _outcome_row(decision_id: str, outcome_id: str, occurred_at: float, received_at: float) -> dict:
    row = {"caller": "g", "outcome_id": outcome_id, "decision_id": decision_id, "verdict": 1, "source": 1}
    times = {"occurred_at": occurred_at, "received_at": received_at, "cause": int(_cause(outcome_id))}
    return {**row, **times, "served_tier": 1, "accepted_tier": None, "request_hash": None, "request": None}


def _cause(outcome_id: str) -> Cause:
    return Cause.AVAILABILITY if outcome_id.endswith("z") else Cause.QUALITY


@contextlib.contextmanager
def sqlite_url() -> Iterator[str]:
    """A new SQLite database in memory-backed files."""
    folder = quick_folder("classifier-rules-")
    try:
        yield f"sqlite:///{folder}/first/feedback.db"
    finally:
        shutil.rmtree(folder)


@settings(max_examples=60, deadline=None)
@given(steps=st.lists(_STEP, max_size=12))
def test_any_order_of_events_ends_as_the_rules_say(steps):
    """Decisions, outcomes, duplicates and forgets in any order, the process dying anywhere, end as a model does."""
    with sqlite_url() as url:
        check_sequence(url, steps)


@pytest.mark.faults
@settings(max_examples=500, deadline=None)
@given(steps=st.lists(_STEP, max_size=25))
def test_any_order_of_events_ends_as_the_rules_say_at_length(steps):
    """Five hundred longer sequences on SQLite end as the model does."""
    with sqlite_url() as url:
        check_sequence(url, steps)


@pytest.mark.faults
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(_STEP, max_size=25))
def test_any_order_of_events_ends_as_the_rules_say_on_postgresql(postgresql, steps):
    """A hundred longer sequences on PostgreSQL end as the model does."""
    check_sequence(postgresql.migrated(), steps)


# What a script's writes hold is the same for the same ids, so that it cannot matter who was first.
_ACTS = st.one_of(
    st.tuples(
        st.just("write"), st.tuples(st.lists(_IDS, max_size=3), st.lists(st.tuples(_IDS, _OUTCOMES), max_size=4))
    ),
    st.tuples(st.just("forget"), st.lists(st.sampled_from("ab"), min_size=1, max_size=1)),
)
_SCRIPTS = st.lists(st.lists(_ACTS, min_size=1, max_size=6), min_size=2, max_size=3)


@settings(max_examples=10, deadline=None)
@given(scripts=_SCRIPTS)
def test_replicas_that_write_at_once_end_alike(scripts):
    """Whoever comes first: what was forgotten is gone, the rest is there, and an outcome is new to one caller only."""
    with sqlite_url() as url:
        check_interleaving(url, scripts)


@pytest.mark.faults
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scripts=_SCRIPTS)
def test_replicas_that_write_at_once_end_alike_on_postgresql(postgresql, scripts):
    """The same where transactions really overlap."""
    check_interleaving(postgresql.migrated(), scripts)
