"""Everything that is asked of a bundle in one evaluation, put together: what `python -m training evaluate` reports.

Knows nothing of flags or pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from classifier.errors import InputError
from training import outcome_curves, robustness
from training.answers import ask, load_engine
from training.calibration_report import PRICES
from training.calibration_set import CALIBRATED_ON, unseen
from training.corpus import OWN_DATA, UNLABELLED, Row, read_corpus
from training.evaluate import baselines, evaluate
from training.evaluation_detail import detail, histories
from training.outcomes import read_outcomes
from training.rivals import litellm_tiers


@dataclass(frozen=True, slots=True)
class Asked:
    """What an evaluation shall hold.

    Attributes:
        outcomes: files of outcomes to replay the router on.
        robustness: whether typos, steering, twins and attacks are measured.
        detail: whether thresholds, policies, routers, errors and training curves are added, for the page.
        prices: dollars a million tokens, cheapest tier first.
        show_text: whether the worst errors come with their text.
        attacked: simple prompts that are attacked.
        tries: of each attack.
    """

    outcomes: tuple[str, ...] = ()
    robustness: bool = False
    detail: bool = False
    prices: tuple[float, ...] = PRICES
    show_text: bool = False
    attacked: int = 100
    tries: int = 200


def read_rows(
    data: Sequence[str], baseline_data: Sequence[str], *, baselines_wanted: bool
) -> tuple[list[Row], list[Row]]:
    """The labelled rows to evaluate on, and the closed ones that baselines learn from.

    Args:
        data: corpus paths; none means the test split of `data/`.
        baseline_data: corpus paths; none means the training split of `data/`, where baselines are wanted.
        baselines_wanted: whether there shall be baselines without `baseline_data`.
    """
    own = read_corpus([OWN_DATA]) if not data or (baselines_wanted and not baseline_data) else []
    rows = [r for r in (read_corpus(data) if data else own) if r.label != UNLABELLED]
    rows = rows if data else [r for r in rows if r.split == "test"]
    learnt = read_corpus(baseline_data) if baseline_data else [r for r in own if r.split == "train"]
    seen = {r.sha256 for r in rows}
    wanted = baselines_wanted or bool(baseline_data)
    return rows, [r for r in learnt if r.sha256 not in seen and r.closed] if wanted else []


def run(bundle: Path, rows: Sequence[Row], train: Sequence[Row], asked: Asked) -> dict[str, Any]:
    """The evaluation as JSON-ready data: that of `training.evaluate`, and what else is asked.

    Rows of which only an interval is known, or that no tier satisfied, have no label to hold an answer against: they
    are left out and counted.

    Args:
        bundle: folder of the bundle.
        rows: labelled rows to evaluate on.
        train: closed rows that baselines learn from; empty leaves them out.
        asked: what the report shall hold.

    Raises:
        InputError: no row is left, or the outcomes cannot be read.
    """
    given, closed = len(rows), [r for r in rows if r.closed]
    rows = [r for r in closed if r.judges]
    if not rows:
        raise InputError(
            f"none of {given} labelled rows states a tier that satisfied or the chance of each, and an interval is no "
            "label to hold answers against; give --data rows with one"
        )
    outcomes = read_outcomes(asked.outcomes) if asked.outcomes else None  # first: what follows takes minutes
    rivals = baselines(train, rows) if train else {}  # as soon: it fails where nothing can be learnt
    engine = load_engine(bundle)
    answers = ask(engine, [r.request for r in rows])
    report = evaluate(engine.bundle_version, rows, answers.probabilities, rivals)
    report["seen_in_training"] = len(rows) - len(unseen(rows, engine.bundle))
    report["seen_in_calibration"] = len(rows) - len(unseen(rows, engine.bundle, CALIBRATED_ON))
    report["open_rows"], report["unserved"] = given - len(closed), len(closed) - len(rows)
    report["baseline_rows"] = len(train)
    if asked.detail:
        routers = litellm_tiers(answers.requests)
        report["litellm"] = sorted(routers)
        report["detail"] = detail(
            rows, answers, engine.policies, engine.default_policy,
            prices=asked.prices, rivals=rivals, routers=routers, show_text=asked.show_text,
        )  # fmt: skip
        report["histories"] = histories(bundle)
    if asked.robustness:
        evaluated = {r.sha256 for r in rows}
        twins = [r for r in read_corpus([OWN_DATA]) if r.family and (r.split == "test" or r.sha256 in evaluated)]
        report["robustness"] = robustness.measure(
            engine, rows, twin_rows=unseen(twins, engine.bundle), attacked=asked.attacked, tries=asked.tries
        )
    if outcomes is not None:
        known = ask(engine, outcomes.requests, name="outcomes")
        report["outcomes"] = outcome_curves.measure(
            outcomes,
            known.probabilities,
            prices=asked.prices,
            policies={name: known.chosen_by(policy) for name, policy in engine.policies.items()},
            routers=litellm_tiers(outcomes.requests),
        )
    return report
