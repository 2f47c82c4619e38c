"""What a round of the feedback loop is asked to do, and the lock that its rounds share.

Knows nothing of steps, bundles or stores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from classifier.errors import InputError
from training.corpus import OWN_DATA
from training.decision_log import AUDIT_LABEL, parse_audit
from training.recipe import RETRAINING

_EXPECTED = {
    "held_out": "a share of the window between 0 and 1",
    "principal_share": "a share above 0, at most 1",
    "window_days": "a number of days above 0",
}
KEPT = ("window_days", "held_out", "audit_label", "principal_share", "principal_label", "recalibrate_only")
"""Options that a round keeps to from its snapshot on, whoever resumes it."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a round is to do.

    Attributes:
        registry: folder or URL of the bundle registry.
        feedback_url: of the feedback store.
        work: folder of the runs.
        min_outcomes: fewer new outcomes than this are waited for.
        window_days: how far back decisions are taken.
        held_out: share of the window, the latest decisions, that calibrates and judges.
        audit_label: NAME=VALUE of the label of audited requests.
        principal_share: highest share that one principal has in what trains, and in the audits; in (0, 1].
        principal_label: a label, set by the gateway, that tells a caller's own clients apart; "" for none.
        data: base corpus: mixed in where its split is train, golden where it is test.
        recipe: file of the retraining recipe.
        promote: promote what the gate accepts.
        recalibrate_only: never train.
        mlflow_uri: where receipts are tracked beside the run's folder; "" is nowhere.

    Raises:
        InputError: a share or a number of days is none, or the label is not NAME=VALUE.
    """

    registry: str
    feedback_url: str
    work: Path
    min_outcomes: int = 500
    window_days: float = 30.0
    held_out: float = 1 / 3
    audit_label: str = AUDIT_LABEL
    principal_share: float = 0.2
    principal_label: str = ""
    data: tuple[str, ...] = (str(OWN_DATA),)
    recipe: Path = RETRAINING
    promote: bool = False
    recalibrate_only: bool = False
    mlflow_uri: str = ""

    def __post_init__(self) -> None:
        parse_audit(self.audit_label)
        for name, most in (("held_out", 1.0), ("principal_share", 1.0), ("window_days", math.inf)):
            value = getattr(self, name)
            if not 0 < value <= most or not math.isfinite(value) or (name == "held_out" and value == most):
                raise InputError(f"{name}: expected {_EXPECTED[name]}, found {value:g}")


def lock_path(options: Options) -> Path:
    """The lock that retrainers of one registry share: in its folder, or in the work folder where it is remote."""
    remote = "://" in options.registry
    return (options.work if remote else Path(options.registry)) / "retrain.lock"
