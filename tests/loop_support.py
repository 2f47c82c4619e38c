"""A feedback store with a history, and crashes at chosen moments, for the tests of the loop."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np

from classifier.decision_id import DecisionIds
from classifier.engine import Engine
from classifier.feedback import open_store
from classifier.types import TIERS, Cause, Outcome, Request, Source, Tier, Verdict
from tests.tiny import WORDS
from training.steps import Run

KEY = bytes(range(32))
AUDIT = {"sample": "audit"}


class Crash(BaseException):
    """The process is gone."""


def write_words(folder: Path, rows: int = 400) -> Path:
    """A base corpus of short rows whose words give their tier away: of ten, seven train and two are for the gate."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with (folder / "rows.jsonl").open("w") as file:
        for i in range(rows):
            tier = list(WORDS)[i % 4]
            text = " ".join(rng.choice(WORDS[tier], 3)) + f" {i}"
            split = ("test", "test", "dev", *7 * ["train"])[i // 4 % 10]
            row = {"id": f"r{i}", "prompt": text, "tier": tier, "source": "own-test", "language": "en", "split": split}
            file.write(json.dumps(row) + "\n")
    return folder


def fill_store(
    url: str,
    bundle: Path,
    count: int,
    *,
    begin: float = 1000.0,
    audits: float = 0.4,
    failing: float = 0.0,
    seed: int = 0,
) -> None:
    """Decisions of a bundle a second apart, each with what became of it: the words say what is needed.

    Args:
        url: of the store.
        bundle: what decides.
        count: how many.
        begin: the moment of the first.
        audits: share that is tried from the cheapest tier up.
        failing: share of the others that fails whatever the words say.
        seed: of the draws.
    """
    moment = [begin]
    ids, engine = DecisionIds(KEY), Engine.from_pretrained(bundle)
    store = open_store(url, key=KEY, keep="text", retention_days=36_500, clock=lambda: moment[0])
    rng = np.random.default_rng(seed)

    async def write() -> None:
        reports = []
        for i in range(count):
            moment[0] = begin + i
            tier = TIERS[int(rng.integers(4))]
            audited = bool(rng.random() < audits)
            text = " ".join(rng.choice(WORDS[tier.label], 3)) + f" asked {seed} {i}"
            request = Request.from_text(text, labels=AUDIT if audited else {})
            decision_id = ids.mint("gateway", f"{seed}/{i}", moment[0])
            prepared = engine.prepare(request)
            scores = engine.score(prepared)
            decision = engine.decide(prepared, scores, None if audited else ids.draw(decision_id))
            object.__setattr__(decision, "decision_id", decision_id)
            store.record(decision, request, "gateway", signals=prepared.input.signals, logits=scores.logits)
            served = TIERS[0] if audited else decision.tier
            fails = not audited and rng.random() < failing and served < Tier.FRONTIER
            accepted = Tier(served + 1) if fails else max(served, tier)
            verdict = Verdict.ACCEPTED if accepted is served else Verdict.ESCALATED
            above = accepted if verdict is Verdict.ESCALATED else None
            told = f"o{seed}/{i}"
            outcome = Outcome(decision_id, told, verdict, Cause.QUALITY, Source.USER, served, accepted_tier=above)
            reports.append(asyncio.create_task(store.report(outcome, "gateway")))
            await asyncio.sleep(0)  # it begins now, at its moment, and is written with those that follow
        await asyncio.gather(*reports)

    asyncio.run(write())
    store.flush(30)
    store.close()


def crash_at(monkeypatch, step: str, when: str) -> None:
    """From now on a run dies at a step: `before` it, `midway` (done, and not recorded), or right `after` it."""
    original = Run.step

    def dying(self, name, work):
        def half(out):
            work(out)
            raise Crash

        if name != step:
            return original(self, name, work)
        if when == "before":
            raise Crash
        result = original(self, name, half if when == "midway" else work)
        raise Crash(result)

    monkeypatch.setattr(Run, "step", dying)
