"""A simulated gateway: asks the classifier over gRPC, tries tiers against the world, reports what became of it.

What it does with a request. It tries the tier that it was told; where the answer does not satisfy, it goes up a tier at
a time. One number drawn for each request decides all of its tries, so that a tier above one that satisfied would have
satisfied too. It reports most outcomes and stays silent on the rest; some tries fail for want of the model
(AVAILABILITY), which says nothing about the request. An audited request (a random share) is tried from the cheapest
tier up whatever it was told, and always reported: its label is known exactly, whatever the classifier thought, which is
what makes audits a fair sample to calibrate on.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from environment import Task

from classifier.client import Client
from classifier.types import TIERS, Cause, Outcome, Source, Tier, Verdict

AUDIT_LABEL = ("sample", "audit")
"""The label of audited requests."""
REPORTED_GOOD, REPORTED_BAD = 0.6, 0.9
"""Share of the satisfied and of the unsatisfied users that is heard of."""
OUTAGES = 0.03
"""Share of requests whose first try fails for want of the model."""


@dataclass(frozen=True, slots=True)
class Callers:
    """Who asks: one client each, with a token of its own.

    Attributes:
        clients: in turn.
    """

    clients: tuple[Client, ...]

    def close(self) -> None:
        """Closes them all."""
        for client in self.clients:
            client.close()


def connect(address: str, tokens: Sequence[str]) -> Callers:
    """A client for each token."""
    return Callers(tuple(Client(address, token=token, timeout_seconds=20) for token in tokens))


def replay(callers: Callers, tasks: Sequence[Task], *, audits: float, seed: int) -> dict[str, int]:
    """Sends the tasks in order, each to completion, and reports their outcomes.

    Returns:
        Counts: requests, explored, audited, reported, silent, escalated, unserved, outages.
    """
    rng = np.random.default_rng(seed)
    draws = rng.random((len(tasks), 4))
    counts = dict.fromkeys(
        ("requests", "explored", "audited", "reported", "silent", "escalated", "unserved", "outages"), 0
    )
    lock = threading.Lock()

    def one(i: int) -> None:
        task, (luck, audit, report, outage) = tasks[i], draws[i]
        audited = bool(audit < audits)
        client = callers.clients[i % len(callers.clients)]
        labels = dict((AUDIT_LABEL,)) if audited else {}
        answer = client.classify(replace(task.request, labels=labels, request_id=f"r{i}"))
        decision = answer.decision
        assert decision is not None
        happened = {"requests": 1, "explored": int(decision.tier is not decision.model_tier), "audited": int(audited)}
        served = TIERS[0] if audited else decision.tier
        accepted = next((t for t in TIERS if t >= served and luck <= task.success[t.index]), None)
        outcome = _outcome(decision.decision_id, served, accepted)
        if outage < OUTAGES and not audited:
            outcome = replace(outcome, verdict=Verdict.ESCALATED, cause=Cause.AVAILABILITY, accepted_tier=None)
            happened["outages"] = 1
        heard = REPORTED_GOOD if outcome.verdict is Verdict.ACCEPTED else REPORTED_BAD
        if audited or report < heard:
            client.report_outcome(outcome, timeout_seconds=20)
            happened["reported"] = 1
        else:
            happened["silent"] = 1
        happened["escalated"] = int(outcome.verdict is Verdict.ESCALATED)
        happened["unserved"] = int(accepted is None)
        with lock:
            for name, count in happened.items():
                counts[name] += count

    with ThreadPoolExecutor(len(callers.clients)) as pool:
        list(pool.map(one, range(len(tasks))))
    return counts


def ask(callers: Callers, tasks: Sequence[Task]) -> list[tuple[Tier, tuple[float, ...], str]]:
    """Tier, probabilities and bundle version of each task, unrecorded and so unexplored."""

    def one(i: int) -> tuple[Tier, tuple[float, ...], str]:
        answer = callers.clients[i % len(callers.clients)].classify(replace(tasks[i].request, record=False))
        assert answer.decision is not None
        return answer.tier, answer.decision.probabilities, answer.decision.bundle_version

    with ThreadPoolExecutor(len(callers.clients)) as pool:
        return list(pool.map(one, range(len(tasks))))


def _outcome(decision_id: str, served: Tier, accepted: Tier | None) -> Outcome:
    if accepted is served:
        verdict = Verdict.ACCEPTED
    elif served is TIERS[-1]:
        verdict = Verdict.REJECTED
    else:
        verdict = Verdict.ESCALATED
    return Outcome(
        decision_id,
        str(uuid.uuid4()),
        verdict,
        Cause.QUALITY,
        Source.AUTOMATIC,
        served,
        accepted_tier=accepted if verdict is Verdict.ESCALATED else None,
    )
