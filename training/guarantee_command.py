"""`python -m training guarantee`: options to `training.guarantee`, and its tables as text or JSON.

Knows nothing of what the tables are made of.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from classifier.errors import GateNotMet, InputError
from classifier.texts import encodable, finite
from training.calibrate_command import MOST_SEED, POLICIES, audit_label, parse_policies, prices_option

PROMISE, *OTHERS = TABLES = ("promise", "half-splits", "transfer", "cost", "calibration")


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
    from classifier.engine import Engine
    from training import promise_test
    from training.audit_set import is_export, read_rows
    from training.corpus import read_corpus
    from training.guarantee import as_text, baselines_of, of_bundle, of_predictions, study
    from training.policy_fit import Targets
    from training.predictions import model_of

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
        tables = tables or tuple(OTHERS)
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
