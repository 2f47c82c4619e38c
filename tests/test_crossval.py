"""Cross-validation by source: what is reported of a source was learnt without it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from classifier.errors import InputError
from classifier.types import TIERS
from tests.calibration_support import write_rows
from tests.tiny import WORDS
from training.__main__ import main
from training.build_data import Data, load_data
from training.calibrate import calibrate
from training.corpus import parse_row, write_corpus
from training.crossval import as_text, cross_validate, fold_data, probe_across, source_folds, summary
from training.distill import read_answers
from training.predictions import model_of, read_baselines, read_predictions
from training.probe import embed, probe
from training.recipe import RECIPES, load_recipe
from training.train import train

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Ninety rows of six sources, and twelve of our own."""
    folder = tmp_path_factory.mktemp("crossval")
    rng = np.random.default_rng(0)
    for name, n, sources in (("traffic", 90, 6), ("own", 12, 1)):
        with (folder / f"{name}.jsonl").open("w") as file:
            for i in range(n):
                tier = list(WORDS)[i % 4]
                prompt = " ".join([*rng.choice(WORDS[tier], 3), name, str(i)])
                file.write(json.dumps({"prompt": prompt, "tier": tier, "source": f"{name}-{i % sources}"}) + "\n")
    return load_data([str(folder / "traffic.jsonl")], [], own=folder / "own.jsonl")


def test_every_row_of_traffic_is_held_out_once_with_its_whole_source(data: Data):
    """Each fold trains on no row of the sources that it holds out, and the folds together hold out every row."""
    held_out = []
    for part, held in fold_data(data):
        assert not {r.source for r in held} & {r.source for r in part.train}
        assert {r.source for r in part.train} >= {r.source for r in data.train if r.source.startswith("own")}
        held_out += held
    assert sorted(r.sha256 for r in held_out) == sorted(r.sha256 for r in data.traffic)


def test_folds_keep_sources_whole():
    """Cross-validation folds never share a source and are of like size."""
    data = [{"prompt": f"{s}-{i}", "tier": "simple", "source": f"s{s}"} for s in range(20) for i in range(s + 5)]
    rows = [parse_row(row, "") for row in data]
    folds = source_folds(rows, 5)
    for source in {r.source for r in rows}:
        assert len({f for f, r in zip(folds, rows, strict=True) if r.source == source}) == 1
    sizes = np.bincount(folds)
    assert sizes.max() - sizes.min() <= 25


def test_a_group_of_two_sources_does_not_leak(data: Data):
    """Rows that are alike are not trained on where one of them is held out, whatever their sources."""
    alike = {r.sha256: replace(r, group=f"template-{i % 20}") for i, r in enumerate(data.traffic)}
    rows = replace(data, traffic=list(alike.values()), train=[alike.get(r.sha256, r) for r in data.train])
    for part, held in fold_data(rows):
        assert not {r.group for r in held} & {r.group for r in part.train}


def test_fewer_sources_than_folds_are_refused(data: Data):
    """One source cannot be cross-validated by source; the message says what to give."""
    one = replace(data, traffic=[r for r in data.traffic if r.source == "traffic-0"])
    with pytest.raises(InputError, match="1 sources"):
        fold_data(one)


def test_folds_that_leave_nothing_to_learn_from_are_refused(data: Data):
    """Where fewer than two tiers are left without a fold's sources, that is said before anything is trained."""
    with pytest.raises(InputError, match="fold 1, 0 rows of 0 tiers are left"):
        fold_data(replace(data, train=[]))
    simple = [r for r in data.train if r.tier is TIERS[0]]
    unknown = [replace(r, probabilities=None, at_most=TIERS[3], stated_tier=None) for r in simple]
    with pytest.raises(InputError, match="rows of 1 tiers are left"):
        fold_data(replace(data, train=[*simple, *unknown]))


def test_rows_whose_tier_is_not_known_are_not_cross_validated(tmp_path):
    """Of an interval no end is the tier, and what no tier satisfied needed none of them: no answer is held to those."""
    labels = {"known": {"tier": "complex"}, "interval": {"at_least": "complex", "label": "RUBRIC"},
              "unserved": {"tier": "frontier", "unserved": True}}  # fmt: skip
    rows = [json.dumps({"prompt": name, "source": name} | label) for name, label in labels.items()]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    assert [r.source for r in load_data([], [], own=tmp_path / "rows.jsonl").traffic] == ["known"]


def test_predictions_are_a_calibration_set(data: Data, tmp_path):
    """What cross-validation leaves can be calibrated on, is trained again for no other data, and has a headline."""
    path = cross_validate(load_recipe("tiny"), tmp_path, data, train, folds=2, say=lambda _: None)
    rows = read_predictions(path)
    assert len(rows) == len(data.traffic)
    assert set(rows.sources) == {r.source for r in data.traffic}
    said: list[str] = []
    assert cross_validate(load_recipe("tiny"), tmp_path, data, train, folds=2, say=said.append) == path
    assert "teacher ready" not in said
    fewer = replace(data, train=data.train[1:])
    with pytest.raises(InputError, match="a run with another train_sha256"):
        cross_validate(load_recipe("tiny"), tmp_path, fewer, train, folds=2, say=said.append)
    found = summary(path)
    low, high = found["accuracy"][1:]
    assert low <= found["accuracy"][0] <= high
    assert "6 sources" in as_text(found)


def test_a_probe_is_learnt_without_the_source_and_says_what_it_is(data: Data, tmp_path):
    """A regression over the frozen base answers every row once, beside baselines of the same folds, under its name."""
    path = probe_across(tmp_path, data, base="tiny", folds=3, say=lambda _: None)
    rows = read_predictions(path)
    assert sorted(zip(rows.sources, rows.groups, strict=True)) == sorted((r.source, r.group) for r in data.traffic)
    assert model_of(path) == "linear probe of tiny"
    for name, p in read_baselines(path).items():
        np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-4, err_msg=name)
    assert set(read_baselines(path)) == {"length", "tfidf_logistic_regression"}
    assert "linear probe of tiny" in as_text(summary(path))


def test_rows_that_were_answered_across_sources_are_known_again(data: Data, tiny_bundle_path, tmp_path):
    """Where the map is fitted on stored predictions, their rows fit no threshold."""
    path = probe_across(tmp_path, data, base="tiny", folds=3, say=lambda _: None)
    write_corpus(tmp_path / "traffic.jsonl", data.traffic)
    given = [tmp_path / "traffic.jsonl", write_rows(tmp_path / "new.jsonl", 120, seed=2)]
    report = calibrate(tiny_bundle_path, given, tmp_path / "out", policies={"balanced": 0.2}, fit_paths=[path])
    assert report["rows"]["thresholds"] == 120
    assert any(note.startswith("90 rows were left out") for note in report["notes"])


def test_a_probe_finds_out_first_where_nothing_can_be_written(data: Data, tmp_path):
    """A folder that cannot be made is an error before anything is embedded."""
    (tmp_path / "file").write_text("")
    said = []
    with pytest.raises(InputError, match="file/out: cannot be written"):
        probe_across(tmp_path / "file" / "out", data, base="tiny", folds=3, say=said.append)
    assert said == []


def test_a_recipe_of_ones_own_has_its_folder_among_the_runs(data: Data, tmp_path, monkeypatch):
    """Without --out the answers are under the recipe's name where the command runs, not beside the recipe."""
    elsewhere, here = tmp_path / "elsewhere", tmp_path / "here"
    for folder in (elsewhere, here):
        folder.mkdir()
    shutil.copy(RECIPES / "tiny.toml", elsewhere / "mine.toml")
    write_corpus(here / "rows.jsonl", data.traffic)
    monkeypatch.chdir(here)
    command = ["cross-validate", "--probe", "--recipe", str(elsewhere / "mine.toml"), "--extra", "rows.jsonl"]
    done = CliRunner().invoke(main, [*command, "--data", "rows.jsonl", "--folds", "2"], catch_exceptions=False)
    assert done.stdout.splitlines()[-1] == "runs/mine-probe/predictions.npz"
    assert [path.name for path in elsewhere.iterdir()] == ["mine.toml"]
    [told] = [option.help for option in main.commands["cross-validate"].params if option.name == "out"]
    assert "with --probe runs/RECIPE-probe" in told


def test_a_probe_knows_nothing_of_the_rows_that_it_answers(data: Data):
    """Other labels on the held-out rows change no answer."""
    rows = data.traffic
    features = embed(rows, "tiny")
    train, held = np.arange(0, 60), np.arange(60, 90)
    other = [*rows[:60], *(replace(r, probabilities=(0.0, 0.0, 0.0, 1.0), stated_tier=None) for r in rows[60:])]
    np.testing.assert_array_equal(probe(features, train, held, rows), probe(features, train, held, other))


def test_answers_of_teachers_elsewhere_teach_a_student(data: Data, tmp_path):
    """A student can follow stored answers; rows that were not asked about keep their labels, unlabelled ones go."""
    path = tmp_path / "answers.npz"
    known = data.train[::2]
    answers = np.log(np.tile(np.float32([0.7, 0.1, 0.1, 0.1]), (len(known), 1)))
    np.savez(path, rows=np.array([r.sha256[:16] for r in known]), log_probabilities=answers)
    found = read_answers(path, data.train)
    assert np.isnan(found).any(axis=1).tolist() == [i % 2 == 1 for i in range(len(data.train))]
    student, _ = train(load_recipe("tiny"), tmp_path / "run", data, answers=path, say=lambda _: None)
    assert student.config.num_hidden_layers == 1
    assert not (tmp_path / "run" / "teacher").exists()


def test_a_file_of_answers_that_was_cut_off_is_refused(data: Data, tmp_path):
    """What a stopped copy left behind is refused by name, wherever it ends."""
    whole, path = tmp_path / "whole.npz", tmp_path / "answers.npz"
    names = np.array([r.sha256[:16] for r in data.train])
    np.savez(whole, rows=names, log_probabilities=np.zeros((len(names), 4), np.float32))
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
        with pytest.raises(InputError, match=r"answers\.npz: not a file of answers"):
            read_answers(path, data.train)


@pytest.mark.parametrize("shape", [(2, 3), (3, 4), (2,)], ids=["three tiers", "a row too many", "one number a row"])
def test_answers_of_another_shape_are_refused(data: Data, tmp_path, shape: tuple[int, ...]):
    """Four numbers for each row, or the message says which shapes there are."""
    path = tmp_path / "answers.npz"
    names = np.array([r.sha256[:16] for r in data.train[:2]])
    np.savez(path, rows=names, log_probabilities=np.zeros(shape, np.float32))
    with pytest.raises(InputError, match=r"answers\.npz: rows have shape \(2,\) and .*, expected \(m,\) and \(m, 4\)"):
        read_answers(path, data.train)


@pytest.mark.parametrize("content", [b"nonsense", b""])
def test_files_that_are_no_answers_are_refused(data: Data, tmp_path, content: bytes):
    """A file that is not one of answers is refused by name."""
    path = tmp_path / "answers.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"answers\.npz"):
        read_answers(path, data.train)


def test_answers_about_other_rows_are_refused(data: Data, tmp_path):
    """Answers that cover none of the rows are a mistake, and said to be one."""
    path = tmp_path / "answers.npz"
    np.savez(path, rows=np.array(["0" * 16]), log_probabilities=np.zeros((1, 4), np.float32))
    with pytest.raises(InputError, match="none of the"):
        read_answers(path, data.train)
