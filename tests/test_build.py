"""From corpus to bundle in seconds, with the tiny recipe: what is built is what is served."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("torch")

import torch
import yaml

from classifier.bundle import SHIPPED, read_bundle
from classifier.engine import Engine
from classifier.errors import BundleError, InputError
from classifier.inputs import render
from classifier.types import Request, Tier
from tests.calibration_support import write_rows
from tests.tiny import WORDS
from training import build_data
from training.__main__ import main
from training.build import build
from training.build_data import load_data
from training.calibration_set import TRAINING_ROWS, pack_rows, rows_among
from training.card import OWN_ALONE, render_card
from training.corpus import OUTCOME, OWN_DATA, read_corpus, split_of
from training.export import revise
from training.model import load_base, load_checkpoint, student_from, tokenizer_of
from training.recipe import RECIPES, load_recipe
from training.recover import recover
from training.steering_head import load_head
from training.train import train

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """320 short rows whose words give their tier away."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    with (folder / "rows.jsonl").open("w") as file:
        for i in range(320):
            tier = list(WORDS)[i % 4]
            text = " ".join(rng.choice(WORDS[tier], 3)) + f" {i}"
            row = {"id": f"r{i}", "prompt": text, "tier": tier, "source": "own-test", "language": "en", "kind": "chat"}
            file.write(json.dumps(row | ({"licence": "CC0"} if i % 2 else {})) + "\n")
    return folder


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory) -> Path:
    """A finished run of the tiny recipe."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    said: list[str] = []
    build(load_recipe("tiny"), out, load_data([], [], own=corpus), say=said.append)
    assert any("int8 chooses the fp32 tier" in line for line in said)
    assert OWN_ALONE in said
    return out


def test_what_a_file_holds_out_is_no_part_of_a_build(corpus, tmp_path):
    """Rows stated as dev or test neither train nor calibrate; caps count what trains, and cost calibration nothing."""
    kinds = {"stated": ("train", "dev", "test"), "unstated": (None,)}
    with (tmp_path / "extra.jsonl").open("w") as file:
        for i in range(600):
            for source, splits in kinds.items():
                row = {"id": f"{i}", "prompt": f"{source} {i}", "tier": "simple", "source": source}
                file.write(json.dumps(row | {"split": splits[i % len(splits)]}) + "\n")
    data = load_data([str(tmp_path / "extra.jsonl")], [], own=corpus, most_rows={"stated": 150, "unstated": 100})
    assert {r.stated_split for r in [*data.train, *data.calibration, *data.traffic]} == {"", "train"}
    assert Counter(r.source for r in data.train if r.source in kinds) == {"stated": 150, "unstated": 100}
    assert sum(r.source == "unstated" for r in data.calibration) == sum(
        split_of(f"unstated/{i}") == "dev" for i in range(600)
    )


def test_no_request_and_no_group_is_on_two_sides_of_a_build(corpus, tmp_path):
    """What extra rows repeat of our own, or of those to look at, stays there; twins of our held-out rows stay out."""
    own = [json.loads(line) for line in (corpus / "rows.jsonl").open()]
    new = [{"prompt": f"new {i}", "tier": "simple"} for i in range(200)]
    twins = [{"prompt": f"twin of {i}", "tier": "simple", "group": f"own-test/r{i}"} for i in range(len(own))]
    again = [{"prompt": row["prompt"], "tier": row["tier"]} for row in own]
    dev = [{"prompt": f"new {i}", "tier": "simple"} for i in range(20)]
    for name, rows in (("extra", [*new, *twins, *again]), ("dev", dev)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    extra, looked_at = str(tmp_path / "extra.jsonl"), str(tmp_path / "dev.jsonl")
    for given in ([], [looked_at]):
        data = load_data([extra], given, own=corpus)
        sides = [data.train, data.calibration, data.dev]
        for fact in ("sha256", *(() if given else ("group",))):
            values = [value for side in sides for value in {getattr(row, fact) for row in side}]
            assert len(values) == len(set(values))
        assert all(sides)


def test_build_without_rows_to_calibrate_on_is_refused_before_it_trains(corpus, tmp_path):
    """Where every labelled row states that it trains, nothing is left to calibrate on, and that is said at once."""
    row = {"prompt": "hi", "tier": "simple", "split": "train"}
    (tmp_path / "extra.jsonl").write_text(json.dumps(row) + "\n")
    data = load_data([str(tmp_path / "extra.jsonl")], [], own=corpus)
    with pytest.raises(InputError, match="no row is left to calibrate on"):
        build(load_recipe("tiny"), tmp_path / "run", data)
    assert not (tmp_path / "run").exists()


def test_build_without_rows_to_look_at_is_refused_before_it_trains(corpus, tmp_path):
    """Rows that all state train or dev, or a file of --dev without a label, leave nothing for the card's numbers."""
    rows = [json.loads(line) for line in (corpus / "rows.jsonl").open()]
    own, dev = tmp_path / "own.jsonl", tmp_path / "dev.jsonl"
    own.write_text("".join(json.dumps(r | {"split": ("train", "dev")[i % 5 == 0]}) + "\n" for i, r in enumerate(rows)))
    dev.write_text('{"prompt": "unlabelled"}\n{"prompt": "open", "at_least": "standard"}\n')
    for data in (load_data([], [], own=own), load_data([], [str(dev)], own=corpus)):
        with pytest.raises(InputError, match="no labelled row is left to look at"):
            build(load_recipe("tiny"), tmp_path / "run", data)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("labelled", [True, False])
def test_a_run_without_a_row_to_learn_from_is_refused(corpus, tmp_path, labelled):
    """Where all rows are held out, or those that are not have no label: a teacher that learnt nothing is no teacher."""
    rows = [json.loads(line) for line in (corpus / "rows.jsonl").open()]
    held_out = [row | {"split": ("dev", "test")[i % 2]} for i, row in enumerate(rows[:20])]
    others = [] if labelled else [{"prompt": row["prompt"], "split": "train"} for row in rows[20:]]
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in [*held_out, *others]))
    with pytest.raises(InputError, match=f"of {len(others)} rows to learn from none has a label"):
        build(load_recipe("tiny"), tmp_path / "run", load_data([], [], own=own), say=str)
    assert not (tmp_path / "run").exists()


def test_only_rows_with_a_known_tier_are_looked_at(corpus, tmp_path):
    """Of --dev what has no label, an interval alone, or no tier that satisfied is judged by nobody, nor learnt from."""
    dev = tmp_path / "dev.jsonl"
    unknown = [{"at_least": "standard"}, {}, {"success_by_tier": {"simple": 0.0}}]
    rows = [json.loads(line) for line in (corpus / "rows.jsonl").open()][:4]
    given = [{"prompt": rows[i]["prompt"]} | label for i, label in enumerate([*unknown, {"tier": "complex"}])]
    dev.write_text("".join(json.dumps(row) + "\n" for row in given))
    data = load_data([], [str(dev)], own=corpus)
    assert [row.tier.label for row in data.dev] == ["complex"]
    kept_out = {row.sha256 for row in read_corpus([dev])}
    assert not kept_out & {row.sha256 for row in [*data.train, *data.calibration]}


@pytest.fixture
def begun_only(monkeypatch) -> None:
    """Runs are stopped as soon as they begin to train."""

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("training.train.train_teachers", stop)


def test_more_frozen_layers_than_the_student_has_are_refused_before_a_teacher_is_trained(corpus, tmp_path, begun_only):
    """A student of one layer cannot keep two as they are; the folder is still that of no run, and takes another one."""
    data = load_data([], [], own=corpus)
    with pytest.raises(InputError, match="frozen_layers is 2, and the model has 1"):
        train(load_recipe("tiny", student={"frozen_layers": 2}), tmp_path, data, say=str)
    with pytest.raises(KeyboardInterrupt):
        train(load_recipe("tiny"), tmp_path, data, say=str)


def test_golden_inputs_are_from_the_projects_own_data(run, corpus):
    """Whatever corpus a bundle is made of, the manifest holds requests of data/ and none of the user's."""
    golden = {json.dumps(case["messages"]) for case in read_bundle(run / "bundle").manifest["golden"]}

    def texts(path):
        return {json.dumps([asdict(m) for m in row.request.messages]) for row in read_corpus([path])}

    assert golden <= texts(OWN_DATA)
    assert not golden & texts(corpus)


def test_build_without_the_projects_own_data_is_refused_before_it_trains(corpus, tmp_path, monkeypatch):
    """Where data/ is not there no user's request stands in for it."""
    monkeypatch.setattr(build_data, "OWN_DATA", tmp_path / "data")
    with pytest.raises(InputError, match=r"golden inputs are requests of this project's data/ and never of users"):
        build(load_recipe("tiny"), tmp_path / "run", load_data([], [], own=corpus))
    assert not (tmp_path / "run").exists()


def test_built_bundle_serves(run):
    """The result loads in the engine with its golden inputs replayed."""
    engine = Engine.from_pretrained(run / "bundle")
    assert engine.golden_ok
    assert len(engine.bundle.manifest["golden"]) == 12
    assert sum(engine.classify(Request.from_text("hi")).probabilities) == pytest.approx(1, abs=1e-6)


def test_card_says_what_it_costs_to_leave_real_traffic_out(run):
    """A bundle made of our own prompts alone says so, with what that lost where it was measured."""
    assert OWN_ALONE in (run / "bundle" / "README.md").read_text()
    assert OWN_ALONE not in (SHIPPED / "README.md").read_text()


def test_what_is_said_of_the_shipped_bundle_is_in_its_manifest():
    """The page on training and the cards of others quote the figures that the shipped bundle's evaluation gave."""
    measured = json.loads((SHIPPED / "manifest.json").read_text())["metrics"]
    names = ("accuracy", "quadratic_kappa", "auroc_above_simple")
    accuracy, kappa, auroc = (f"{measured[name][0]:.3f}".lstrip("0") for name in names)
    page = (Path(__file__).parents[1] / "docs/training.md").read_text()
    assert f"has {accuracy} and {kappa}." in page
    assert f"{accuracy}, {kappa} and {auroc}." in OWN_ALONE


def test_manifest_says_what_it_was_made_of(run):
    """The manifest holds recipe, seed, data hashes, parity and metrics."""
    manifest = read_bundle(run / "bundle").manifest
    assert manifest["recipe"]["name"] == "tiny"
    assert manifest["data"]["train_rows"] > 200
    assert manifest["parity"]["fp32_difference"] <= 1e-4
    assert 0 <= manifest["metrics"]["accuracy"][0] <= 1


def test_the_cards_front_matter_is_what_hugging_face_reads(run, corpus):
    """Languages are texts, Norwegian too, whose code YAML takes for a negation; names hold what UTF-8 can."""
    report = json.loads((run / "report.json").read_text())
    rows = [replace(row, language="no", source="half \ud83d") for row in read_corpus([corpus])[:3]]
    card = render_card(recipe=load_recipe("tiny"), rows=rows, report=report, notes=[])
    assert yaml.safe_load(card.split("---")[1])["language"] == ["no"]
    assert "| half ? | 3 |" in card


def test_card_is_rendered_from_the_report(run):
    """The model card has front matter, sources with licences, metrics with intervals and the policies."""
    card = (run / "bundle" / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0")
    for part in ("| own-test |", "CC0", "quadratic_kappa", "## Calibration and policies", "## Limits"):
        assert part in card


def test_training_and_serving_encode_alike(run, corpus):
    """Every row has the same ids in training, from the checkpoint, as in serving, from the bundle."""
    _, fast = load_checkpoint(run / "checkpoint")
    tokenizer = tokenizer_of(fast, 64)
    engine = Engine.from_pretrained(run / "bundle")
    for row in read_corpus([corpus])[:50]:
        assert tokenizer.ids(render(row.request))[0] == engine.prepare(row.request).encoded.input_ids[0].tolist()


def test_bundle_opens_in_transformers_and_optimum(run):
    """ORTModelForSequenceClassification and a transformers pipeline open the bundle and answer with tier names."""
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer, pipeline

    folder = str(run / "bundle")
    model = ORTModelForSequenceClassification.from_pretrained(folder, file_name="model.onnx")
    classify = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))
    [answer] = classify("prove the theorem")
    assert answer["label"] in WORDS


def test_finished_run_is_not_overwritten(run, corpus):
    """Building into a finished run is refused, and so is going on with other data or another recipe: it says which."""
    with pytest.raises(BundleError, match="already built"):
        build(load_recipe("tiny"), run, load_data([], [], own=corpus))
    with pytest.raises(InputError, match=r"a run with another recipe\.seed; give what it began with"):
        train(load_recipe("tiny", seed=7), run, load_data([], [], own=corpus), say=lambda _: None)


def test_base_is_itself_wherever_it_lies(run, corpus, tmp_path, begun_only):
    """A run that began with a bundle goes on with a copy of it from another folder, and with no other base."""
    data, out = load_data([], [], own=corpus), tmp_path / "begun"
    moved = shutil.copytree(run / "bundle", tmp_path / "moved")
    for base in (run / "bundle", moved):
        with pytest.raises(KeyboardInterrupt):
            train(load_recipe("tiny", base=str(base)), out, data, say=str)
    with pytest.raises(InputError, match=r"another recipe\.base"):
        train(load_recipe("tiny"), out, data, say=str)


def test_teachers_are_those_that_taught(run, corpus, tmp_path):
    """A run goes on with the teachers that it began with; a folder without finished ones is refused, not trained in."""
    data, recipe = load_data([], [], own=corpus), load_recipe("tiny")
    begun = tmp_path / "begun"
    train(recipe, begun, data, teacher=run / "teacher", say=str)
    other = Path(shutil.copytree(run / "teacher", tmp_path / "other"))
    weights = other / "teacher-0" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[::-1])
    for teacher in (other, None):
        with pytest.raises(InputError, match="another taught_by"):
            build(recipe, begun, data, teacher=teacher, say=str)
    with pytest.raises(InputError, match="holds no finished teacher-0"):
        train(recipe, tmp_path / "new", data, teacher=corpus, say=str)
    assert not (corpus / "teacher-0").exists()


@pytest.mark.parametrize("where", ["out", "cross_validated"])
def test_what_a_build_cannot_use_is_refused_before_it_trains(corpus, tmp_path, where):
    """A file where the folder should be, or predictions that are none, cost no hours."""
    (tmp_path / "file.npz").write_text("x")
    given = {"out": tmp_path / "run", where: tmp_path / "file.npz"}
    with pytest.raises(InputError, match=r"file\.npz"):
        build(load_recipe("tiny"), given.pop("out"), load_data([], [], own=corpus), say=str, **given)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def again(run, corpus, tmp_path_factory) -> Path:
    """A copy of the run that lost its export and went on; what is looked at, and labelled by the rubric, is simple."""
    copy = Path(shutil.copytree(run, tmp_path_factory.mktemp("runs") / "again"))
    shutil.rmtree(copy / "bundle")
    shutil.rmtree(copy / "export")
    data = load_data([], [], own=corpus)
    train = [r if r.tier is Tier.SIMPLE else replace(r, label=OUTCOME) for r in data.train]
    simple = [r for r in data.dev if r.tier is Tier.SIMPLE]
    build(load_recipe("tiny"), copy, replace(data, train=train, dev=simple), say=str)
    return copy


def test_stopped_run_goes_on(run, again):
    """A run whose export was lost builds the same bundle again from its checkpoints, without training."""
    before, after = (read_bundle(path / "bundle").manifest for path in (run, again))
    assert before["files"]["model.onnx"] == after["files"]["model.onnx"]


def test_a_build_ends_where_one_tier_alone_is_labelled_by_the_rubric_or_looked_at(again):
    """There are no baselines then; what rows of one tier do not tell is null in its files, and a dash on its card."""

    def strict(path):
        return json.loads((again / path).read_text(), parse_constant=lambda name: pytest.fail(f"{path} holds {name}"))

    report = strict("report.json")
    assert "baselines" not in report
    assert report["overall"]["auroc_above_simple"] == strict("bundle/manifest.json")["metrics"]["auroc_above_simple"]
    assert report["overall"]["auroc_above_simple"] == [None, None, None]
    assert "| auroc_above_simple | – | – |" in (again / "bundle" / "README.md").read_text()


@pytest.mark.parametrize(
    ("stopped_at", "taught"),
    [(3, False), (0, True), (4, True)],
    ids=["in the teacher", "at the student", "in the student"],
)
def test_run_stopped_while_it_trains_ends_as_one_that_was_not(run, corpus, tmp_path, monkeypatch, stopped_at, taught):
    """Wherever training is stopped, the run that goes on leaves the very checkpoint of one that was not stopped."""
    from training import fit as fitting

    if taught:
        shutil.copytree(run / "teacher", tmp_path / "teacher")
    calls, loss = iter(range(1000)), fitting.losses_of

    def until_stopped(*arguments, **fields):
        if next(calls) == stopped_at:
            raise KeyboardInterrupt
        return loss(*arguments, **fields)

    data = load_data([], [], own=corpus)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fitting, "losses_of", until_stopped)
        train(load_recipe("tiny"), tmp_path, data, say=str)
    assert not (tmp_path / "checkpoint").exists()
    train(load_recipe("tiny"), tmp_path, data, say=str)
    weights = "checkpoint/model.safetensors"
    assert (tmp_path / weights).read_bytes() == (run / weights).read_bytes()


@pytest.fixture(scope="module")
def settled(run, corpus, tmp_path_factory) -> SimpleNamespace:
    """What went on from its own answers: its folder, its bundle, the one that it went on from, what that learnt from
    beside its own rows, and what the build said.
    """
    folder, data, said = tmp_path_factory.mktemp("settled"), load_data([], [], own=corpus), []
    learnt = data.calibration[:10]
    base = revise(run / "bundle", folder / "base", facts={TRAINING_ROWS: pack_rows(r.sha256 for r in learnt)})
    bundle = build(_settling(base.path), folder / "run", data, say=said.append)
    return SimpleNamespace(folder=folder / "run", bundle=bundle, base=base, learnt=learnt, said=said)


def test_rows_that_a_base_learnt_from_stay_known(settled):
    """What goes on from a bundle knows its training rows: they do not calibrate, and it is the parent."""
    learnt = settled.learnt
    assert f"{len(learnt)} calibration rows are left out: the base was trained on them" in settled.said
    assert settled.bundle.manifest["parent"] == settled.base.version
    assert rows_among((r.sha256 for r in learnt), settled.bundle.manifest[TRAINING_ROWS]).all()


def test_settled_bundle_keeps_its_answers_and_what_is_frozen(run, corpus, settled):
    """What goes on from its own answers moves no frozen weight, keeps its head, and says what it went on from."""
    before, _, head = recover(run / "bundle")
    after, _ = load_checkpoint(settled.folder / "checkpoint")
    start = before.half().float().state_dict()
    moved = {name for name, value in after.state_dict().items() if not torch.equal(value, start[name])}
    assert moved
    assert not any(".layer." in name or "embeddings" in name for name in moved)
    kept = load_head(settled.folder / "checkpoint", after).state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in head.state_dict().items())
    assert settled.bundle.manifest["recipe"]["of_base"] == read_bundle(run / "bundle").manifest["recipe"]
    assert "base_model: tiny\n" in (settled.bundle.path / "README.md").read_text()
    rows = [row for row in read_corpus([corpus]) if row.split == "train"][:50]
    one, other = (
        np.array([engine.score(engine.prepare(row.request)).probabilities for row in rows])
        for engine in (Engine.from_pretrained(run / "bundle"), Engine.from_pretrained(settled.bundle.path))
    )
    assert np.abs(one - other).mean() < 0.02


def test_a_bundle_settles_with_all_its_layers(run, corpus, tmp_path, monkeypatch):
    """One that has more layers than the recipe says is not cut: it would be another model."""
    deeper = SimpleNamespace(config=SimpleNamespace(num_hidden_layers=4))
    monkeypatch.setattr("training.train.load_base", lambda *_: (deeper, None))
    said: list[str] = []
    with pytest.raises(AttributeError):  # there is no model to train
        train(_settling(run / "bundle"), tmp_path / "run", load_data([], [], own=corpus), say=said.append)
    assert "the student has 4 layers, all that the bundle has" in said


def test_student_of_a_trained_teacher_has_no_head_of_the_bundle(run, corpus, tmp_path):
    """Where a teacher was trained, its student's frozen layers are that teacher's: a bundle's head cannot read them."""
    recipe = _settling(run / "bundle", seeds=[0], epochs=1)
    student, _ = train(recipe, tmp_path / "run", load_data([], [], own=corpus), say=str)
    assert load_head(tmp_path / "run" / "checkpoint", student) is None


def _settling(base: Path | str, **teaching: Any) -> dict[str, Any]:
    """The recipe `settle` for a student of one layer."""
    learning = {"layers": 1, "frozen_layers": 1, "epochs": 1, "worst_of": 2, "learning_rate": 1e-3}
    small = {"max_tokens": 64, "int8_agreement": 0.5, "student": learning, "teacher": teaching}
    return load_recipe("settle", base=str(base), **small)


def test_only_a_bundle_settles(corpus, tmp_path):
    """What has no answers of its own is refused before anything is trained, and so is a recipe without a base."""
    with pytest.raises(InputError, match="--base tiny: without"):
        build(_settling("tiny"), tmp_path / "run", load_data([], [], own=corpus), say=str)
    with pytest.raises(InputError, match="recipe settle names no base to start from: give --base"):
        load_recipe("settle")


def test_unknown_recipe_lists_those_there_are():
    """A recipe that does not exist is refused with the names of those that do."""
    with pytest.raises(InputError, match="there are base, settle, shipped, tiny, or"):
        load_recipe("huge")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("steering_forms", "steering_form", "has the unknown key 'steering_form'; there are max_tokens, seed, "),
        ("int8_agreement = 0.5\n", "", "lacks the key int8_agreement; begin with a copy of training/recipes/base.toml"),
        ("layers = 1\n", "", "lacks the key student.layers"),
        ("balanced", "middle", "lacks the key policies.balanced"),
        (
            "[teacher]\nseeds = [0]\nepochs = 1\nbatch_size = 16\nlearning_rate = 1e-3\n",
            "teacher = 3\n",
            "teacher is 3, expected a table",
        ),
        ("seeds = [0]", "seeds = 0", "teacher: seeds is 0, expected a list of whole numbers"),
        ("seeds = [0]", 'seeds = ["0"]', "expected a list of whole numbers"),
        ("seeds = [0]", "seeds = [0, -1]", "teacher -1: seed is -1, expected 0 or more, and below"),
        ("layers = 1\nepochs = 1", "layers = 1\nepochs = 1.5", "student: epochs is 1.5, expected a whole number"),
        ("learning_rate = 1e-3", 'learning_rate = "1e-3"', "teacher: learning_rate is '1e-3', expected a number"),
        ("balanced = 0.10", "balanced = true", "policies: balanced is True, expected a number"),
        ("balanced = 0.10", "balanced = 10", "policy balanced is 10, expected a share of requests, as in 0.10"),
        ("economy = 0.20", "economy = 0.0", "policy economy is 0, expected a share of requests"),
        ("int8_agreement = 0.5", "int8_agreement = 97", "int8_agreement is 97, expected a share of rows, 0 to 1"),
        ("steering_forms = 64", "steering_forms = -64", r"steering_forms is -64, expected 0 \(no head\) or more"),
        ("max_tokens = 64", "max_tokens = 0", "max_tokens is 0, expected 16 or more"),
        ("seed = 0", "seed = -1", "seed is -1, expected 0 or more"),
    ],
)
def test_a_recipe_of_ones_own_is_refused_before_anything_is_trained(tmp_path, old, new, told):
    """A key that is misspelt or missing is named at once, and not by a traceback when the build comes to it."""
    path = tmp_path / "mine.toml"
    path.write_text((RECIPES / "tiny.toml").read_text().replace(old, new))
    with pytest.raises(InputError, match=told):
        load_recipe(str(path))


def test_checkpoint_that_is_not_there_is_named(tmp_path):
    """A base or checkpoint that cannot be loaded is refused with what to give."""
    with pytest.raises(InputError, match="no sequence-classification checkpoint"):
        load_base(str(tmp_path), 64)
    with pytest.raises(InputError, match="no checkpoint there"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(("layers", "kept"), [(1, [5]), (2, [2, 5]), (3, [1, 3, 5]), (6, [0, 1, 2, 3, 4, 5])])
def test_student_keeps_spread_layers_and_the_last(layers, kept):
    """A student takes evenly spread layers of its teacher, the last one among them."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=30, hidden_size=8, num_hidden_layers=6, num_attention_heads=2, intermediate_size=8, num_labels=4
    )
    teacher = BertForSequenceClassification(config)
    student = student_from(teacher, layers)
    for layer, source in zip(student.base_model.encoder.layer, kept, strict=True):
        wanted = teacher.base_model.encoder.layer[source].output.dense.weight
        assert layer.output.dense.weight.equal(wanted)
    with pytest.raises(InputError, match=r"layers of the recipe's \[student\]"):
        student_from(teacher, 7)


def test_fused_graph_computes_the_same():
    """Fused attention and a last layer of one row change nothing but the time, whatever the padding."""
    import torch

    from training.graph import fuse

    model, _ = load_base("tiny", 64)
    ids = torch.randint(5, 60, (3, 20))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    with torch.inference_mode():
        plain = model.eval()(input_ids=ids, attention_mask=mask).logits
        fused = fuse(model)(input_ids=ids, attention_mask=mask).logits
    assert torch.allclose(plain, fused, atol=1e-5)


def test_what_cannot_be_written_ends_with_a_line(tmp_path):
    """A run's folder inside a file is an error of one line, with the path and what to check."""
    rows, dev = write_rows(tmp_path / "rows.jsonl", 200), write_rows(tmp_path / "dev.jsonl", 20, seed=1)
    out = rows / "run"
    arguments = ["build", "--recipe", "tiny", "--data", str(rows), "--dev", str(dev), "--out", str(out)]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1
    told = f"error: {out} cannot be used (Not a directory); check the path, the space and the rights"
    assert done.output.splitlines()[-1] == told
