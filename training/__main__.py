"""`python -m training VERB`: from corpus to bundle. Results on stdout, progress on stderr."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from classifier.errors import ClassifierError, GateNotMet


class _Group(click.Group):
    """Prints our errors as one line and exits with their code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ClassifierError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Build, evaluate and recalibrate bundles. Exit 0 done, 1 failed, 2 usage, 3 a gate was not met."""


@main.command()
@click.option("--recipe", default="base", show_default=True, help="A name under training/recipes, or a .toml file.")
@click.option("--base", help="minilm, tiny, a local checkpoint or a hub name; the recipe's otherwise.")
@click.option("--extra", multiple=True, help="Corpus file, folder or glob to train on besides data/. Repeatable.")
@click.option("--dev", multiple=True, help="Rows to evaluate on; kept out of training. Default: data/'s test split.")
@click.option("--data", "own", type=click.Path(path_type=Path), help="Instead of data/.")
@click.option("--seed", type=int, help="Instead of the recipe's.")
@click.option("--out", type=click.Path(path_type=Path), help="Default: runs/RECIPE. A run that was stopped goes on.")
def build(
    recipe: str, base: str | None, extra: tuple[str, ...], dev: tuple[str, ...], own: Path | None, seed: int | None,
    out: Path | None,
) -> None:  # fmt: skip
    """Train a teacher, distil a student, export, calibrate and evaluate it.

    Example: python -m training build --recipe base --extra corpora/ --dev dev.jsonl.gz
    """
    from training import build as building

    settings = building.load_recipe(recipe, base=base, seed=seed)
    own = own or building.OWN_DATA
    data = building.load_data(extra, dev, own=own)
    licences = building.licences_of([str(own), *extra])
    bundle = building.build(settings, out or Path("runs") / settings["name"], data, licences=licences)
    click.echo(bundle.path)


@main.command()
@click.option("--bundle", type=click.Path(path_type=Path), help="Default: the shipped one.")
@click.option("--data", required=True, multiple=True, help="Labelled rows that the bundle was not trained on.")
@click.option("--baseline-data", multiple=True, help="Rows that the baselines learn from. None: no baselines.")
@click.option("--gate", multiple=True, metavar="METRIC=VALUE", help="Exit with 3 where the estimate is worse.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def evaluate(
    bundle: Path | None, data: tuple[str, ...], baseline_data: tuple[str, ...], gate: tuple[str, ...], as_json: bool
) -> None:
    """Score a bundle through the serving engine, with intervals, slices and baselines.

    Example: python -m training evaluate --data dev.jsonl.gz --gate accuracy=0.76
    """
    from classifier.bundle import SHIPPED
    from training import evaluate as evaluation
    from training.corpus import UNLABELLED, read_corpus

    gates = {}
    for text in gate:
        name, _, value = text.partition("=")
        if name not in evaluation.statistics() or not value.replace(".", "", 1).isdigit():
            raise click.UsageError(f"--gate {text}: give METRIC=VALUE with one of {', '.join(evaluation.statistics())}")
        gates[name] = float(value)
    rows = [r for r in read_corpus(data) if r.label != UNLABELLED]
    seen = {r.sha256 for r in rows}
    train = [r for r in read_corpus(baseline_data) if r.sha256 not in seen] if baseline_data else []
    report = evaluation.evaluate(evaluation.load_engine(bundle or SHIPPED), rows, train)
    click.echo(json.dumps(report, indent=1) if as_json else evaluation.as_text(report))
    failures = evaluation.failed_gates(report, gates)
    if failures:
        raise GateNotMet("; ".join(failures))


if __name__ == "__main__":
    main(prog_name="python -m training")
    sys.exit(0)
