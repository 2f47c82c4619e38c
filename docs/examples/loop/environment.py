"""The world of the loop demo: how likely each request is to succeed at each tier, and how its traffic shifts.

Two worlds. From outcome files (`success_by_tier` of real models): rows whose success is known at all four tiers, made
non-decreasing over them; *real*. From labelled prompts: success derived from the label by the rule below; *simulated*.

The simulated rule. A try at a tier satisfies with the chance `NEAR[tier - need]`; need is the row's label (its
distribution, where it has one), raised by a tier for the kinds in `HARDER` and lowered by one for those in `EASIER`:
this gateway's models are weaker at some work than the rubric says and stronger at other, which is what a classifier
that learnt the rubric cannot know and the loop can find out.

The shift. Topics (a row's category, kind or source) are ordered by how much surer the bundle is than what happens bears
out. Before the shift four of five requests are on the half where it is least too sure, after it on the other half: the
traffic moves to where the bundle is wrong, which is the shift that breaks a promise.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from classifier.errors import InputError
from classifier.types import TIERS, Request
from training.corpus import RUBRIC, parse_row, read_corpus
from training.corpus_files import expand, read_lines

NEAR = {-3: 0.02, -2: 0.10, -1: 0.40, 0: 0.95, 1: 0.98, 2: 0.99, 3: 0.99}
"""P(a try satisfies) by how far the tried tier lies above what the request needs."""
HARDER = frozenset({"code-completion", "code-debug", "code-review", "sql", "math", "reasoning", "agentic", "proof"})
EASIER = frozenset({"chat", "rewrite", "translate", "summarise", "creative", "planning", "analysis", "support"})
PER_TOPIC = 40
"""Tasks of a topic that the bundle is asked about to order the topics."""
COMMON = 0.8
"""Share of the traffic on the half of the topics that is common at the time."""


@dataclass(frozen=True, slots=True)
class Task:
    """One request and what the world makes of it.

    Attributes:
        request: what is sent.
        success: P(a try at the tier satisfies), cheapest tier first, non-decreasing.
        topic: what the traffic shifts by.
        group: tasks of one group are alike and never on both sides of a split.
        sha256: of the conversation.
    """

    request: Request
    success: tuple[float, float, float, float]
    topic: str
    group: str
    sha256: str


@dataclass(frozen=True, slots=True)
class World:
    """All tasks, and where their success comes from.

    Attributes:
        tasks: in a fixed order.
        origin: a sentence for the reader.
    """

    tasks: tuple[Task, ...]
    origin: str


def simulated_world(data: Path) -> World:
    """The world over labelled prompts, by the rule above."""
    tasks = []
    for row in read_corpus([data]):
        if row.label != RUBRIC or row.probabilities is None:
            continue
        moved = (row.kind in HARDER) - (row.kind in EASIER)
        success = np.zeros(len(TIERS))
        for need, share in enumerate(row.probabilities):
            needed = min(max(need + moved, 0), len(TIERS) - 1)
            success += share * np.array([NEAR[t - needed] for t in range(len(TIERS))])
        tasks.append(Task(row.request, _rising(success), row.kind, row.group, row.sha256))
    return World(tuple(tasks), f"SIMULATED: derived from the labels of {len(tasks)} prompts in {data.name}/")


def outcome_world(paths: Sequence[str]) -> World:
    """The world of outcome files: what real models really did.

    Raises:
        InputError: no row has its success at all four tiers.
    """
    tasks, rows = [], 0
    for path in expand(paths):
        for _, line in read_lines(path):
            data = json.loads(line)
            rows += 1
            success = data.get("success_by_tier") or {}
            if any(success.get(tier.label) is None for tier in TIERS):
                continue
            row = parse_row(data, path.name.split(".")[0])
            topic = f"{row.source}/{data.get('category') or ''}".rstrip("/")
            values = np.array([float(success[tier.label]) for tier in TIERS])
            tasks.append(Task(row.request, _rising(values), topic, row.group, row.sha256))
    if not tasks:
        raise InputError(f"{', '.join(paths)}: no row has success_by_tier for all of {[t.label for t in TIERS]}")
    unique = {task.sha256: task for task in tasks}
    origin = f"REAL outcomes of real models: {len(unique)} of {rows} rows, those with outcomes at all four tiers"
    return World(tuple(unique.values()), origin)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is sent, in order.

    Attributes:
        first: labelled tasks from before the shift, to calibrate on before anything is served.
        stream: what is replayed; the shift is half-way.
        later_before: held-out tasks with the mix of before the shift.
        later: held-out tasks with the mix of after the shift.
        notes: sentences for the reader.
    """

    first: list[Task]
    stream: list[Task]
    later_before: list[Task]
    later: list[Task]
    notes: list[str]


def make_traffic(
    world: World,
    requests: int,
    recent: int,
    *,
    seen: Callable[[Task], bool],
    scores: Callable[[Task], Sequence[float]],
    first: int,
    later: int,
    seed: int,
) -> Traffic:
    """Draws the demo's traffic. What calibrates, judges or measures is never a prompt that the bundle was trained on.

    Args:
        world: the tasks.
        requests: length of the stream.
        recent: the last part of the stream, whose labels will calibrate and judge.
        seen: whether the bundle was trained on a task.
        scores: the bundle's probabilities for a task.
        first: tasks to calibrate on before anything is served.
        later: tasks to measure on.
        seed: of every draw.

    Raises:
        InputError: there are too few tasks.
    """
    rng = np.random.default_rng(seed)
    fresh = [task for task in world.tasks if not seen(task)]
    old = [task for task in world.tasks if seen(task)]
    parts: dict[str, list[Task]] = {"first": [], "recent": [], "later": [], "early": []}
    plenty = len(fresh) >= 2 * (first + requests + 2 * later)
    shares = (0.1, 0.2, 0.3, 0.4) if plenty else (0.2, 0.45, 0.35, 0.0)
    for task in fresh:
        parts[_part(task.group, tuple(parts), shares)].append(task)
    if not plenty:
        parts["early"] = old or parts["recent"]
    if empty := [name for name, part in parts.items() if not part]:
        raise InputError(
            f"{len(fresh)} of {len(world.tasks)} prompts are new to the bundle, too few for the demo: none is left for "
            f"the part {empty[0]!r}; give more rows, from more conversations"
        )
    hard = _half_too_sure(fresh, scores)
    shift = requests // 2
    early_after = requests - shift - recent
    before = _draw(parts["early"], hard, shift, harder=False, rng=rng)
    taken = {task.sha256 for task in before}
    left = [task for task in parts["early"] if task.sha256 not in taken] or parts["early"]
    after = _draw(left, hard, early_after, harder=True, rng=rng)
    last = _draw(parts["recent"], hard, recent, harder=True, rng=rng)
    notes = [
        f"{len(fresh)} prompts are new to the bundle, {len(old)} were in its training set; "
        + (
            "only new ones are used."
            if plenty
            else f"the first {requests - recent} requests are of the latter, all that calibrates or measures is new."
        ),
        f"traffic shifts to {', '.join(sorted(hard))}",
    ]
    if repeats := len(last) - len({task.sha256 for task in last}):
        notes.append(f"{repeats} of the last {recent} requests repeat a prompt (each try is drawn anew).")
    return Traffic(
        _draw(parts["first"], hard, min(first, len(parts["first"])), harder=False, rng=rng),
        [*before, *after, *last],
        _draw(parts["later"], hard, min(later, len(parts["later"])), harder=False, rng=rng),
        _draw(parts["later"], hard, min(later, len(parts["later"])), harder=True, rng=rng),
        notes,
    )


def _rising(success: NDArray[np.float64]) -> tuple[float, float, float, float]:
    return tuple(float(s) for s in np.minimum(np.maximum.accumulate(success), 1.0))  # type: ignore[return-value]


def _half_too_sure(tasks: Sequence[Task], scores: Callable[[Task], Sequence[float]]) -> frozenset[str]:
    """The topics where P(label <= t) lies furthest above the success at t, about half of the tasks."""
    by_topic: dict[str, list[Task]] = defaultdict(list)
    for task in tasks:
        by_topic[task.topic].append(task)
    too_sure = {}
    for topic, members in by_topic.items():
        sample = sorted(members, key=lambda t: t.sha256)[:PER_TOPIC]
        stated = np.cumsum([scores(t) for t in sample], axis=1)[:, :-1]
        too_sure[topic] = float((stated - np.array([t.success for t in sample])[:, :-1]).mean())
    chosen, count = set(), 0
    for topic in sorted(too_sure, key=lambda t: -too_sure[t]):
        if count + len(by_topic[topic]) / 2 > len(tasks) / 2:
            break
        chosen.add(topic)
        count += len(by_topic[topic])
    return frozenset(chosen)


def _part(group: str, names: Sequence[str], shares: Sequence[float]) -> str:
    position = int.from_bytes(hashlib.sha256(f"demo/{group}".encode()).digest()[:8], "big") / 2**64
    for name, share in zip(names, shares, strict=True):
        if position < share:
            return name
        position -= share
    return names[-1]


def _draw(
    pool: Sequence[Task], hard: frozenset[str], count: int, *, harder: bool, rng: np.random.Generator
) -> list[Task]:
    """`count` tasks, `COMMON` of them from the half that is common; none twice before all of its half came once."""
    halves = [[t for t in pool if (t.topic in hard) is side] for side in (False, True)]
    orders = [[half[i] for i in rng.permutation(len(half))] for half in halves]
    drawn, at = [], [0, 0]
    for common in rng.random(count) < COMMON:
        side = int(common == harder)
        if not orders[side]:
            side = 1 - side
        drawn.append(orders[side][at[side] % len(orders[side])])
        at[side] += 1
    return drawn
