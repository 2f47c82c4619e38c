"""Why a request got its tier: how near each threshold was, what each signal did, which part of the text carried it.

For a person who debugs a decision; it costs some ten to twenty runs of the model and is not for the serving path.

Theory of operation. Occlusion (Zeiler and Fergus 2014): a part is taken away and the model is asked again. What
changes is the part's pull, measured in tiers: the expected tier number with it minus the one without it. Parts are
sentences or lines, at most `MAX_PARTS`; the strongest is divided once more, down to words. A signal cannot be taken
away, every input has all six, so it is exchanged for that of a short plain text. Pulls are not additive: two sentences
that say the same may each have none. Where text was left out because it was too long, taking a part away lets other
text in.

Knows nothing of commands, servers or the wire.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from classifier.engine import Engine, Prepared
from classifier.inputs import ModelInput, render
from classifier.steering import SENTENCE_END, WORD_END, between, divided
from classifier.types import TIERS, Decision, Request, Scores, Tier

MAX_PARTS = 8
MIN_CHARS = 8  # a text without blanks (Chinese, a long token) is cut into pieces no shorter than this


@dataclass(frozen=True, slots=True)
class Boundary:
    """How near the rule came to stopping at a tier.

    Attributes:
        tier: t.
        cumulative: P(label <= t), a running sum of float32 probabilities.
        margin: cumulative minus the threshold; 0 or more means that t is enough.
    """

    tier: Tier
    cumulative: float
    margin: float


@dataclass(frozen=True, slots=True)
class Effect:
    """What one thing did to the answer.

    Attributes:
        what: the part of the text, the signal, or "context".
        pull: expected tier number with it minus without it; above 0 it makes the request look harder.
        tier: the tier that the policy would have chosen without it.
        start: where the part begins in what the model reads of the text; 0 for what is no part of it.
        end: where it ends.
        instead: the signal that stood in its place; empty for what was taken away.
    """

    what: str
    pull: float
    tier: Tier
    start: int = 0
    end: int = 0
    instead: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a request got its tier.

    Attributes:
        decision: the decision, without exploration and route.
        boundaries: every tier but the last, cheapest first.
        top_tier_threshold: tau, where the policy has one; 0 means none.
        signals: every signal, with its pull.
        context: the earlier conversation as a whole; None in a first turn.
        parts: the text in its order.
        detail: the part with the strongest pull, divided further; empty where it cannot be.
        runs: how often the model was asked.
    """

    decision: Decision
    boundaries: tuple[Boundary, ...]
    top_tier_threshold: float
    signals: tuple[Effect, ...]
    context: Effect | None
    parts: tuple[Effect, ...]
    detail: tuple[Effect, ...]
    runs: int


def explain(engine: Engine, request: Request) -> Explanation:
    """The explanation of one request.

    Raises:
        InvalidRequest: the policy is not one of the bundle's.
    """
    asked = _Asked(engine, request)
    read, rated = asked.prepared.input, asked.rated
    policy = asked.prepared.policy
    plain = dict(_named(signal) for signal in render(Request.from_text("a")).signals)
    signals = []
    for i, signal in enumerate(rated.signals):
        other = plain[_named(signal)[0]]
        changed = (*rated.signals[:i], other, *rated.signals[i + 1 :])
        pull, tier = asked.without(replace(rated, signals=changed)) if other != signal else (0.0, asked.decision.tier)
        signals.append(Effect(signal, pull, tier, instead=other))
    context = Effect("context", *asked.without(replace(read, context=""))) if read.context else None
    parts = asked.occlude(divide(read.text), read.text)
    detail: tuple[Effect, ...] = ()
    if parts:
        strongest = max(parts, key=lambda part: abs(part.pull))
        pieces = divide(strongest.what)
        if len(pieces) > 1:
            detail = asked.occlude([(a + strongest.start, b + strongest.start) for a, b in pieces], read.text)
    threshold = asked.decision.threshold
    cumulative, boundaries = 0.0, []
    for tier, probability in zip(TIERS[:-1], asked.decision.probabilities, strict=False):
        cumulative += probability
        boundaries.append(Boundary(tier, cumulative, cumulative - threshold))
    return Explanation(
        asked.decision,
        tuple(boundaries),
        policy.top_tier_threshold,
        tuple(signals),
        context,
        parts,
        detail,
        asked.runs,
    )


class _Asked:
    """A request, its answer, and the answers to what is like it but for one thing."""

    def __init__(self, engine: Engine, request: Request) -> None:
        self._engine = engine
        self.prepared: Prepared = engine.prepare(request)
        scores = engine.score(self.prepared)
        self.decision = engine.decide(self.prepared, scores)
        # Its signals are those that counted, where a sentence that steers was left out.
        self.rated = engine.rated(self.prepared)
        self._expected = _expected_tier(scores)
        self.runs = 2

    def without(self, changed: ModelInput) -> tuple[float, Tier]:
        """(pull, tier) of what `changed` lacks."""
        encoded = self._engine._tokenizer.encode(changed)
        prepared = replace(self.prepared, input=changed, encoded=encoded)
        scores = self._engine.score(prepared)
        self.runs += 1
        return self._expected - _expected_tier(scores), self._engine.decide(prepared, scores).tier

    def occlude(self, spans: list[tuple[int, int]], text: str) -> tuple[Effect, ...]:
        """The effect of each span of the text, beside the signals that counted: what was not rated then has none."""
        read = replace(self.prepared.input, signals=self.rated.signals)
        return tuple(
            Effect(text[a:b], *self.without(replace(read, text=(text[:a] + text[b:]).strip())), start=a, end=b)
            for a, b in spans
        )


def divide(text: str, most: int = MAX_PARTS) -> list[tuple[int, int]]:
    """Spans of at most `most` parts that make up the text: sentences and lines, else words, else pieces.

    >>> [("Hi there. Prove it!"[a:b]) for a, b in divide("Hi there. Prove it!")]
    ['Hi there. ', 'Prove it!']
    >>> divide("one two"), divide("")
    ([(0, 4), (4, 7)], [])
    """
    units = divided(text, SENTENCE_END)
    if len(units) < 2:
        units = divided(text, WORD_END)
    if len(units) < 2:
        step = max(MIN_CHARS, -(-len(text) // most))
        units = between(list(range(step, len(text) - MIN_CHARS + 1, step)), text)
    merged: list[tuple[int, int]] = []
    for start, end in units:
        # A unit joins the part before it while that part is shorter than its share of the text.
        if merged and len(units) > most and (merged[-1][1] - merged[-1][0] < len(text) / most or len(merged) == most):
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return merged


def _expected_tier(scores: Scores) -> float:
    return sum(tier * probability for tier, probability in zip(TIERS, scores.probabilities, strict=True))


def _named(signal: str) -> tuple[str, str]:
    """("code", "[code=some]")."""
    return signal.strip("[]").partition("=")[0], signal
