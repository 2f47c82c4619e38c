"""What a round of the feedback loop is asked to do, and the lock that its rounds share.

Knows nothing of steps, bundles or stores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from classifier.durable import write_whole
from classifier.errors import InputError, SettingsError
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

_OWNER = "registry.txt"


@dataclass(frozen=True, slots=True)
class Options:
    """What a round is to do.

    Attributes:
        registry: folder or URL of the bundle registry.
        feedback_url: of the feedback store.
        work: folder of the runs.
        min_outcomes: fewer decisions with a new outcome of quality than this are waited for.
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
        SettingsError: a share or a number of days is none, or the label is not NAME=VALUE.
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
                raise SettingsError(f"{name}: expected {_EXPECTED[name]}, found {value:g}")

    def window_begin(self, now: float) -> float:
        """The first moment of the window of a round that begins at `now`, seconds since the epoch."""
        return now - self.window_days * 86_400


def lock_path(options: Options) -> Path:
    """The lock that retrainers of one registry share: in its folder, or in the work folder where it is remote."""
    return (options.work if _remote(options) else Path(options.registry)) / "retrain.lock"


def claim_work(options: Options) -> None:
    """Makes the work folder that of the registry."""
    options.work.mkdir(parents=True, exist_ok=True)
    write_whole(options.work / _OWNER, _name(options).encode())


def check_work(options: Options) -> None:
    """Looks whose the work folder is: another's rounds would be taken for cut off, and for the registry's own.

    Raises:
        InputError: it is another registry's.
    """
    path = options.work / _OWNER
    if path.is_file() and (found := path.read_text(encoding="utf-8")) != _name(options):
        raise InputError(
            f"{options.work}: holds the rounds of the registry {found}, not of {_name(options)}; give each registry a "
            f"--work of its own, or remove {path} where it is the same one elsewhere"
        )


def _name(options: Options) -> str:
    return options.registry if _remote(options) else str(Path(options.registry).resolve())


def _remote(options: Options) -> bool:
    return "://" in options.registry
