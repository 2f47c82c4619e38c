"""`python -m training guarantee`: does the promise hold, how far does it carry, what does it cost?

Reads a bundle with labelled rows, or stored predictions, and prints the tables of `training.promise_test`,
`training.transfer` and `training.cost_at_risk`.

Knows nothing of how a bundle is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from classifier.calibration import IDENTITY, Calibration
from classifier.engine import Engine
from classifier.errors import GateNotMet, InputError
from classifier.policy import choose_many
from classifier.texts import encodable, finite
from training import cost_at_risk, promise_test, transfer
from training.audit_set import is_export, read_rows
from training.calibrate_command import MOST_SEED, POLICIES, audit_label, parse_policies, prices_option
from training.calibration_report import PRICES
from training.calibration_set import CalibrationSet
from training.corpus import Row, read_corpus
from training.evaluate import baselines
from training.policy_fit import Targets, chosen_by
from training.predictions import model_of, read_baselines, read_predictions
from training.risk_control import fit_threshold
from training.step_losses import routing_losses

PROMISE, HALVES, TRANSFER, COST, CALIBRATION = TABLES = ("promise", "half-splits", "transfer", "cost", "calibration")


@dataclass(frozen=True, slots=True)
class Study:
    """What the tables are made of.

    Attributes:
        rows: labelled rows with logits.
        alphas: policy → target.
        calibration: the map that comes with the logits.
        chosen: policy → (n,) tier indices.
        rivals: (n, 4) probabilities of other models on the same rows, by name.
        prices: dollars a million tokens, cheapest tier first.
        seed: of everything drawn.
    """

    rows: CalibrationSet
    alphas: Mapping[str, float]
    chosen: Mapping[str, NDArray[np.int64]]
    calibration: Calibration = IDENTITY
    rivals: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    prices: Sequence[float] = PRICES
    seed: int = 0


def study(asked: Study, tables: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The tables asked for, by name in snake case, and why one could not be made of these rows."""
    rows, seed, calibration = asked.rows, asked.seed, asked.calibration
    makers: dict[str, Callable[[], dict[str, Any]]] = {
        HALVES: lambda: transfer.half_splits(rows, asked.alphas, calibration=calibration, seed=seed),
        TRANSFER: lambda: transfer.transfer(rows, asked.alphas, calibration=calibration, seed=seed),
        COST: lambda: cost_at_risk.study(rows, asked.chosen, asked.rivals, asked.prices, seed=seed),
        CALIBRATION: lambda: transfer.calibration_across(rows, current=calibration, seed=seed),
    }
    found: dict[str, Any] = {}
    missing = []
    for name, make in makers.items():
        if name in tables:
            try:
                found[name.replace("-", "_")] = make()
            except InputError as error:
                missing.append(f"no {name} table: {error}")
    return found, missing


def of_predictions(path: Path, alphas: Mapping[str, float], prices: Sequence[float], seed: int) -> Study:
    """The study of stored predictions: each policy's threshold is the conformal one of all the rows."""
    rows = read_predictions(path)
    probabilities = IDENTITY.apply(rows.logits)
    losses = routing_losses(probabilities, rows.labels)
    chosen = {name: choose_many(probabilities, fit_threshold(losses, a).threshold) for name, a in alphas.items()}
    return Study(rows, alphas, chosen, rivals=read_baselines(path), prices=prices, seed=seed)


def of_bundle(
    engine: Engine, rows: CalibrationSet, rivals: Mapping[str, NDArray[np.float32]], prices: Sequence[float], seed: int
) -> Study:
    """The study of a bundle: its own thresholds, on rows that it has not seen."""
    calibration, promised = engine.bundle.calibration, engine.policies
    probabilities = calibration.apply(rows.logits)
    chosen = {name: chosen_by(p, probabilities, rows) for name, p in promised.items()}
    alphas = {name: p.guarantee.alpha for name, p in promised.items() if p.guarantee.alpha}
    return Study(rows, alphas, chosen, calibration, rivals, prices, seed)


def baselines_of(train: Sequence[Row], judged: Sequence[Row], rows: CalibrationSet) -> dict[str, NDArray[np.float32]]:
    """Length and TF-IDF with logistic regression, learnt from `train` without the rows that are judged.

    Returns:
        (n, 4) float32 each, for the closed rows of `rows` in their order.

    Raises:
        InputError: what is left to learn from has one tier only.
    """
    by_hash = {row.sha256: row for row in judged}
    closed = [by_hash[i] for i in rows.ids.tolist()]
    rest = [row for row in train if row.closed and row.sha256 not in by_hash]
    if len({row.tier for row in rest}) < 2:
        raise InputError("--baseline-data: baselines take rows of two tiers, besides those that are judged")
    return {name: p for name, p in baselines(rest, closed).items() if name != "majority"}


def as_text(found: Mapping[str, Any]) -> str:
    """Every table found, as Markdown."""
    writers: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "half_splits": transfer.halves_as_text,
        "transfer": transfer.transfer_as_text,
        "cost": cost_at_risk.as_text,
        "calibration": transfer.calibration_as_text,
    }
    head = [promise_test.as_text(found)] if "policies" in found else []
    head += [f"Answers of: {found['model']}"] if "model" in found else []
    return "\n\n".join([*head, *(write(found[name]) for name, write in writers.items() if name in found)])


@click.command("guarantee")
@click.option("--bundle", type=click.Path(path_type=Path), help="Check this bundle's promises on --data.")
@click.option("--data", multiple=True, help="Labelled rows, or an export, that the bundle has not seen. Repeatable.")
@click.option("--split", help="Of --data only the rows that state this split.")
@click.option("--predictions", type=click.Path(path_type=Path), help="A .npz, such as cross-validate leaves.")
@click.option("--table", "tables", multiple=True, type=click.Choice(TABLES),
              help="What to print. Repeatable. Default: promise for a bundle, the others for predictions.")  # fmt: skip
@click.option("--policy", "policies", multiple=True, metavar="NAME=ALPHA", show_default=True,
              default=POLICIES, help="For --predictions. Repeatable.")  # fmt: skip
@click.option("--baseline-data", multiple=True, help="Rows that the cost table's baselines learn from. Repeatable.")
@prices_option(help="Dollars a million tokens, by tier, for the cost table.")
@audit_label
@click.option("--seed", type=click.IntRange(0, MOST_SEED), default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def command(
    bundle: Path | None, data: tuple[str, ...], split: str | None, predictions: Path | None, tables: tuple[str, ...],
    policies: tuple[str, ...], baseline_data: tuple[str, ...], prices: tuple[float, ...],
    audit: tuple[str, str], seed: int, as_json: bool,
) -> None:  # fmt: skip
    r"""Checks what a bundle promises on your own traffic.

    Exit code 3 where the labelled rows refute a promise.

    \b
    python -m training guarantee --bundle runs/base/bundle --data mine.jsonl
    python -m training guarantee --bundle runs/base/bundle --data mine.jsonl --table cost --baseline-data older.jsonl
    """
    if (bundle is None) == (predictions is None) or (bundle is not None) != bool(data):
        raise click.UsageError("give --bundle with --data, or --predictions alone")
    if predictions is not None and (split or baseline_data or PROMISE in tables):
        raise click.UsageError("--split, --baseline-data and --table promise are about --data; leave them out")
    if split and any(is_export(Path(path)) or path.endswith(".npz") for path in data):
        raise click.UsageError("--split: only corpus files state one; give --data such files, or leave it out")
    if baseline_data and any(is_export(Path(path)) or path.endswith(".npz") for path in data):
        raise click.UsageError(
            "--baseline-data: baselines are judged on texts; give --data corpus files, or leave it out"
        )
    found: dict[str, Any] = {}
    if predictions is not None:
        tables = tables or (HALVES, TRANSFER, COST, CALIBRATION)
        asked = of_predictions(predictions, Targets(parse_policies(policies)).alphas, prices, seed)
        found["model"] = model_of(predictions)
    else:
        assert bundle is not None
        tables = tables or (PROMISE,)
        engine = Engine.from_pretrained(bundle)
        group_by = {p.group_by for p in engine.policies.values() if p.group_by}
        rows = read_rows(list(data), engine, next(iter(group_by), ""), split=split, audit=audit)
        known = promise_test.known_rows(rows, engine.bundle)
        fresh = rows.take(~known)
        if PROMISE in tables:
            found |= promise_test.check(engine, rows, seed=seed)  # which counts and tells those that are not fresh
        elif known.any():
            click.echo(
                f"{known.sum()} of {len(rows)} rows are left out: the bundle's probabilities or thresholds were fitted "
                "on their requests",
                err=True,
            )
        rivals = baselines_of(read_corpus(baseline_data), read_corpus(data), fresh) if baseline_data else {}
        asked = of_bundle(engine, fresh, rivals, prices, seed)
    made, missing = study(asked, tables)
    found |= made
    for why in missing:
        click.echo(why, err=True)
    if missing and not made and "policies" not in found:
        raise InputError("none of the tables could be made of these rows")
    click.echo(json.dumps(finite(found), indent=1) if as_json else encodable(as_text(found)))
    refuted = [e for e in found.get("policies", []) if e["refuted"]]
    if refuted:
        estimated = all(e["what"] == promise_test.ESTIMATED for e in refuted)
        raise GateNotMet(
            f"{', '.join(sorted({e['name'] for e in refuted}))}: the {'estimate' if estimated else 'promise'} does not "
            "hold on these rows; recalibrate on rows like them with 'python -m training calibrate'"
        )
