"""What a bundle says of requests, one run each through `Engine`, as it serves them.

Knows nothing of labels or files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from classifier.engine import Engine
from classifier.inputs import ModelInput
from classifier.policy import Policy, choose_many
from classifier.types import TIERS, Request
from training.progress import progress_bar


@dataclass(frozen=True, slots=True)
class Answers:
    """What a bundle says of n requests.

    Attributes:
        requests: as they came.
        inputs: what the model read of each.
        logits: (n, 4) float32, before calibration.
        probabilities: (n, 4) float32, calibrated.
    """

    requests: Sequence[Request]
    inputs: Sequence[ModelInput]
    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]

    @property
    def signals(self) -> list[tuple[str, ...]]:
        """The six signal names of each request."""
        return [model_input.signals for model_input in self.inputs]

    def chosen_by(self, policy: Policy) -> NDArray[np.int64]:
        """What a policy chooses as it is served, but for floors, ceilings and exploration: (n,) int64 tier indices."""
        groups = (policy.group_of(r.labels, i.script) for r, i in zip(self.requests, self.inputs, strict=True))
        thresholds = np.array([policy.threshold_of(group) for group in groups])
        return choose_many(self.probabilities, thresholds, policy.top_tier_threshold)


def load_engine(bundle: Path) -> Engine:
    """The engine of a bundle, with two threads a run: evaluation has nobody to share the cores with."""
    return Engine.from_pretrained(bundle, threads=2)


def ask(engine: Engine, requests: Sequence[Request], *, name: str = "score") -> Answers:
    """What the engine's bundle says of each request; `name` is what the progress bar says."""
    inputs, logits, probabilities = [], [], []
    for request in progress_bar(requests, desc=name):
        prepared = engine.prepare(request)
        scores = engine.score(prepared)
        inputs.append(prepared.input)
        logits.append(scores.logits)
        probabilities.append(scores.probabilities)
    before, after = (np.array(rows, dtype=np.float32).reshape(-1, len(TIERS)) for rows in (logits, probabilities))
    return Answers(requests, inputs, before, after)
