"""`python -m training VERB`: from corpus to bundle. Results on stdout, progress on stderr."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from classifier.cli import exit_without_output, open_closed_streams, tell, with_examples
from classifier.errors import ClassifierError, GateNotMet
from classifier.texts import encodable
from training.calibrate_command import MOST_SEED, named_number, prices_option
from training.calibrate_command import command as calibrate
from training.guarantee_command import command as guarantee
from training.jury_command import command as jury
from training.loop_command import loop_command, retrain_command

WITHOUT_EXTRA = "error: python -m training needs {}; run 'make setup', or pip install '.[training]'"


class _Group(click.Group):
    """Prints our errors as one line and exits with their code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ClassifierError as error:
            tell(f"error: {encodable(str(error))}")
            ctx.exit(error.exit_code)
        except ModuleNotFoundError as error:
            tell(WITHOUT_EXTRA.format(error.name))
            ctx.exit(1)
        except KeyboardInterrupt:
            tell("interrupted")
            ctx.exit(130)

    def main(self, *args: Any, **more: Any) -> Any:
        open_closed_streams()
        try:
            return super().main(*args, **more)
        except OSError as error:  # here, as help is printed before anything is invoked
            exit_without_output(error)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Labels, builds, evaluates, recalibrates and retrains.

    Exit 0 done, 1 failed, 2 usage, 3 a gate was not met, 130 interrupted.
    """


def _run_options(function: Callable[..., None]) -> Callable[..., None]:
    """The options of what trains."""
    options = (
        click.option("--recipe", default="base", show_default=True, help="A name in training/recipes, or a file."),
        click.option("--base", help="minilm, tiny, the folder of a bundle or checkpoint, or a hub name."),
        click.option("--student-base", help="The student starts from this one, not from the teacher's layers."),
        click.option("--lora-r", type=int, help="Train the teachers through adapters of this rank."),
        click.option(
            "--lora-alpha",
            type=float,
            help="The adapters' scale: updates are multiplied by this / rank. Default: 2 × rank.",
        ),
        click.option("--extra", multiple=True, help="Corpus file, folder or glob besides data/. Repeatable."),
        click.option(
            "--dev",
            multiple=True,
            help="Rows to evaluate on, kept out of training. Default: data/'s test. Repeatable.",
        ),
        click.option("--data", "own", type=click.Path(path_type=Path), help="Corpus instead of data/."),
        click.option("--seed", type=click.IntRange(0, MOST_SEED), help="Instead of the recipe's."),
    )
    for option in reversed(options):
        function = option(function)
    return function


_teacher_option = click.option(
    "--teacher",
    type=click.Path(path_type=Path, exists=True),
    help="Folder of trained teachers to distil from, instead of training them.",
)
_answers_option = click.option(
    "--answers",
    type=click.Path(path_type=Path, exists=True),
    help="Answers of teachers (.npz) to distil from, instead of training them.",
)
_out_option = click.option(
    "--out", type=click.Path(path_type=Path), help="Default: runs/RECIPE. A stopped run goes on."
)


def _prepare(
    recipe: str, base: str | None, student_base: str | None, lora_r: int | None, lora_alpha: float | None,
    extra: tuple[str, ...], dev: tuple[str, ...], own: Path | None, seed: int | None, out: Path | None,
) -> tuple[dict[str, Any], Any, Path]:  # fmt: skip
    """The recipe, the data and the run's folder."""
    from training.build_data import load_data
    from training.corpus import OWN_DATA
    from training.recipe import load_recipe

    settings = load_recipe(
        recipe, base=base, seed=seed, student={"base": student_base},
        teacher={"lora_r": lora_r, "lora_alpha": lora_alpha},
    )  # fmt: skip
    data = load_data(extra, dev, own=own or OWN_DATA, most_rows=settings.get("most_rows"))
    return settings, data, out or Path("runs") / settings["name"]


def _say(text: object, *, err: bool = True) -> None:
    """Of the processes that train together, the first one speaks."""
    from training import processes

    if processes.is_first():
        click.echo(encodable(str(text)), err=err)


@main.command()
@_run_options
@_teacher_option
@_answers_option
@_out_option
@click.option(
    "--cross-validated",
    type=click.Path(path_type=Path, exists=True),
    help="predictions.npz of cross-validate: thresholds keep their promise on new sources too.",
)
def build(teacher: Path | None, answers: Path | None, cross_validated: Path | None, **options: Any) -> None:
    r"""Makes a bundle out of a corpus.

    Trains teachers, distils a student, exports, calibrates and evaluates it, and writes the model card.

    \b
    python -m training build --recipe base --extra corpora/ --dev dev.jsonl.gz
    """
    from training import build as building

    recipe, data, out = _prepare(**options)
    bundle = building.build(
        recipe,
        out,
        data,
        teacher=teacher,
        answers=answers,
        cross_validated=cross_validated,
        say=_say,
    )
    if bundle is not None:
        click.echo(bundle.path)


@main.command()
@_run_options
@_teacher_option
@_answers_option
@_out_option
def train(teacher: Path | None, answers: Path | None, **options: Any) -> None:
    r"""Trains teachers and student, and nothing more.

    Leaves checkpoint/ in the run's folder; `build` with the same options goes on from there.

    \b
    python -m training train --recipe base --out runs/mine
    """
    from training.train import train as trained

    recipe, data, out = _prepare(**options)
    trained(recipe, out, data, teacher=teacher, answers=answers, say=_say)
    _say(out / "checkpoint", err=False)


@main.command("cross-validate")
@_run_options
@click.option("--folds", type=click.IntRange(2), default=5, show_default=True, help="How many folds.")
@click.option(
    "--probe", is_flag=True, help="A regression over the frozen base instead of a student: weaker, in minutes."
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Default: runs/RECIPE-folds, with --probe runs/RECIPE-probe. A stopped run goes on.",
)
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def cross_validate(folds: int, probe: bool, as_json: bool, out: Path | None, **options: Any) -> None:
    r"""Scores students on sources that they have not seen.

    Trains one for each fold of sources. What is left in OUT/predictions.npz goes to `build --cross-validated`,
    `calibrate --fit-data` or `guarantee --predictions`.

    \b
    python -m training cross-validate --recipe shipped --extra corpora/ --dev dev.jsonl.gz
    """
    from training import crossval
    from training.model import bundle_at
    from training.train import train as trained

    settings, data, folder = _prepare(out=out, **options)
    folder = out or folder.with_name(f"{folder.name}-{'probe' if probe else 'folds'}")
    if bundle_at(settings["base"]) or bundle_at(settings["student"].get("base") or ""):
        raise click.UsageError("--base: a bundle that saw the held-out sources would leak them; give another base")
    if probe:
        path = crossval.probe_across(folder, data, base=settings["base"], folds=folds, say=_say)
    else:
        path = crossval.cross_validate(settings, folder, data, trained, folds=folds, say=_say)
    found = crossval.summary(path)
    _say(json.dumps(found, indent=1) if as_json else f"{crossval.as_text(found)}\n{path}", err=False)


@main.command()
@click.option("--checkpoint", required=True, type=click.Path(path_type=Path), help="A folder that training left.")
@click.option("--data", required=True, multiple=True, help="Unseen rows: the first 600 check parity. Repeatable.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the exported files.")
def export(checkpoint: Path, data: tuple[str, ...], out: Path) -> None:
    r"""Exports a checkpoint as ONNX, in fp32 and int8.

    Says how far their answers agree with the checkpoint's.

    \b
    python -m training export --checkpoint runs/base/checkpoint --data dev.jsonl.gz --out exported
    """
    from dataclasses import asdict

    from training.corpus import OWN_DATA, read_corpus
    from training.export import export as export_model
    from training.model import load_checkpoint
    from training.steering_head import load_head

    model, fast = load_checkpoint(checkpoint)
    tokens = json.loads((checkpoint / "tokenizer_config.json").read_text(encoding="utf-8"))["model_max_length"]
    rounding = [row for row in read_corpus([OWN_DATA]) if row.split == "train"]
    parity = export_model(
        model, fast, out, max_tokens=tokens, check=read_corpus(data), rounding=rounding,
        head=load_head(checkpoint, model),
    )  # fmt: skip
    click.echo(json.dumps(asdict(parity)))


@main.command()
@click.option("--bundle", type=click.Path(path_type=Path), help="Default: the shipped one.")
@click.option(
    "--data", multiple=True, help="Labelled rows it was not trained on. Default: data/'s test split. Repeatable."
)
@click.option(
    "--baseline-data",
    multiple=True,
    help="Rows that baselines learn from. Default: with --report data/'s training split. Repeatable.",
)
@click.option("--outcomes", multiple=True, help="Rows with success_by_tier: cost against quality. Repeatable.")
@click.option("--robustness/--no-robustness", default=None, help="Typos, steering, twins, attacks. On with --report.")
@prices_option(help="Dollars a million tokens, by tier.")
@click.option(
    "--report", "target", type=click.Path(dir_okay=False, path_type=Path), help="Write the page there (.html)."
)
@click.option("--show-text", is_flag=True, help="With --report: show the beginning of the worst errors' text.")
@click.option(
    "--gate", multiple=True, metavar="METRIC=VALUE", help="Exit with 3 where the estimate is worse. Repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def evaluate(
    bundle: Path | None, data: tuple[str, ...], baseline_data: tuple[str, ...], outcomes: tuple[str, ...],
    robustness: bool | None, prices: tuple[float, ...], target: Path | None, show_text: bool, gate: tuple[str, ...],
    as_json: bool,
) -> None:  # fmt: skip
    r"""Scores a bundle through the serving engine.

    With intervals, slices and baselines; --report makes a page of it.

    \b
    python -m training evaluate --data dev.jsonl.gz --gate accuracy=0.76 --report report.html
    """
    from classifier.bundle import SHIPPED
    from classifier.page import check_page, write_page
    from classifier.texts import finite
    from training import evaluate as evaluation
    from training import outcome_curves
    from training import robustness as steadiness
    from training.evaluation_page import page
    from training.evaluation_run import Asked, read_rows, run

    gates = {}
    for text in gate:
        name, value = named_number(text)
        if name not in evaluation.statistics() or not math.isfinite(value):
            names = ", ".join(evaluation.statistics())
            raise click.UsageError(f"--gate {text}: give METRIC=VALUE, a number, with one of {names}")
        gates[name] = value
    if target is not None:
        check_page(target)
    wanted = target is not None
    rows, train = read_rows(data, baseline_data, baselines_wanted=wanted)
    asked = Asked(
        outcomes=outcomes, robustness=wanted if robustness is None else robustness, detail=wanted, prices=prices,
        show_text=show_text,
    )  # fmt: skip
    report = run(bundle or SHIPPED, rows, train, asked)
    if target is not None:
        write_page(target, page(report))
        click.echo(f"page in {target}", err=True)
    texts = [evaluation.as_text(report)]
    texts += [steadiness.as_text(report["robustness"])] if "robustness" in report else []
    texts += [outcome_curves.as_text(report["outcomes"])] if "outcomes" in report else []
    click.echo(json.dumps(finite(report), indent=1) if as_json else encodable("\n\n".join(texts)))
    failures = evaluation.failed_gates(report, gates)
    if failures:
        raise GateNotMet("; ".join(failures))


main.add_command(calibrate)
main.add_command(guarantee)
main.add_command(jury)
main.add_command(retrain_command)
main.add_command(loop_command)
with_examples(main)

if __name__ == "__main__":
    main(prog_name="python -m training")
