"""A round of the loop: from a feedback store to a candidate, judged and promoted, whatever dies on the way."""

from __future__ import annotations

import json
import re
import shutil
import stat
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from classifier.bundle import read_bundle, write_bundle
from classifier.engine import Engine
from classifier.errors import BundleError, BundleNotFound, Busy, GateNotMet, InputError, SettingsError
from classifier.inputs import INPUT_VERSION
from classifier.registry import Registry
from classifier.session import Session
from tests.loop_support import Crash, crash_at, fill_store, write_words
from training.build_data import load_data
from training.calibrate import calibrate
from training.calibration_set import TRAINING_ROWS, pack_rows, rows_among
from training.corpus import write_corpus
from training.export import assemble, choose_golden, export
from training.loop import tick
from training.model import load_checkpoint, tokenizer_of
from training.recipe import load_recipe
from training.retrain import Round, retrain
from training.round_options import Options, lock_path
from training.steering_head import fit_head, load_head, new_head, save_head
from training.steps import Run, only_one, unfinished
from training.train import train

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]

NOW = 2000.0
STEPS = (
    "begin", "snapshot", "recalibrate", "judge-recalibrated", "thresholds", "judge-thresholds", "train",
    "calibrate-trained", "judge-retrained", "register", "promote",
)  # fmt: skip
LAST = "receipt"
"""The step that the receipt itself is."""
SHORT = ("snapshot", "train", "register", "promote", LAST)
"""Those that `make test` dies at; `make faults` does at all."""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A folder with a corpus, a bundle that promises something, its checkpoint in a registry, and a feedback store."""
    folder = tmp_path_factory.mktemp("loop")
    words = write_words(folder / "data")
    data = load_data([], [], own=words)
    model, fast = train(load_recipe("tiny"), folder / "run", data, say=lambda _: None)
    head = new_head(model)
    fit_head(head, model, tokenizer_of(fast, 64), data.train, forms=64, seed=0)
    save_head(head, folder / "run" / "checkpoint")
    export(
        model, fast, folder / "export",
        max_tokens=64, check=data.dev[:20], rounding=data.train, head=head, int8_agreement=0.0,
    )  # fmt: skip
    facts = {"seed": 0, TRAINING_ROWS: pack_rows(r.sha256 for r in data.train)}
    golden = choose_golden(data.train)
    assemble(folder / "export", folder / "raw", golden=golden, card="# tiny\n", facts=facts)
    write_corpus(folder / "held.jsonl", data.calibration)
    calibrate(folder / "raw", [folder / "held.jsonl"], folder / "bundle", policies={"balanced": 0.4}, epsilon=0.1)
    registry = Registry(folder / "registry")
    registry.promote(registry.add(folder / "bundle", checkpoint=folder / "run" / "checkpoint"))
    fill_store(f"sqlite:///{folder}/feedback.db", folder / "bundle", 400, audits=0.6)
    (folder / "recipe.toml").write_text(
        "base_rows_share = 1.0\nint8_agreement = 0.0\nsteering_forms = 64\nepochs = 1\n"
    )
    return folder


@pytest.fixture
def options(base, tmp_path) -> Options:
    """A round on a copy of the registry and the store."""
    shutil.copytree(base / "registry", tmp_path / "registry")
    shutil.copyfile(base / "feedback.db", tmp_path / "feedback.db")
    return Options(
        registry=str(tmp_path / "registry"),
        feedback_url=f"sqlite:///{tmp_path}/feedback.db",
        work=tmp_path / "work",
        min_outcomes=100,
        held_out=0.5,
        data=(str(base / "data"),),
        recipe=base / "recipe.toml",
        promote=True,
    )


def verdict(*, accepted=False, repairs=False, cost=1.0, why="no better"):
    """What a gate says that had rows enough."""
    return {"accepted": accepted, "repairs": repairs, "refused": False, "cost": cost, "why": why}


def judge(_round, _out, name):
    """A gate that refuses what is recalibrated and accepts what is retrained."""
    return verdict(accepted=name == "calibrate-trained", why=f"said of {name}")


def refuse(_round, _out, **_fields):
    """A gate that refuses everything."""
    return verdict()


def go(options: Options, **fields):
    return retrain(options, clock=lambda: NOW, **fields)


@pytest.fixture(scope="module")
def done(base, tmp_path_factory) -> Path:
    """A whole round: its work folder, its receipt, the registry, and the registry as it was before."""
    folder = tmp_path_factory.mktemp("done")
    shutil.copytree(base / "registry", folder / "registry")
    shutil.copytree(base / "registry", folder / "before")
    given = Options(
        registry=str(folder / "registry"), feedback_url=f"sqlite:///{base}/feedback.db", work=folder / "work",
        min_outcomes=100, held_out=0.5, data=(str(base / "data"),), recipe=base / "recipe.toml", promote=True,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Round, "_judge", judge)
        patch.setattr("training.retrain.melt", lambda _: None)  # so that tests can go on from any step
        retrain(given, clock=lambda: NOW)
    return folder


def cut_off(options: Options, done: Path, step: str, *anew: str) -> None:
    """The round of `done` as it was just before a step. Later results that cost time are kept but for those named."""
    run = options.work / "000001"
    shutil.copytree(done / "work" / "000001", run)
    shutil.rmtree(options.registry)
    shutil.copytree(done / "before", options.registry)
    for name in ("receipt.json", "attempts"):
        (run / name).unlink()
    for name in {step, *anew, "register", "promote", LAST} - ({"register"} if step == "promote" else set()):
        shutil.rmtree(run / name)
    if step == "promote":
        Registry(options.registry).add(
            run / "calibrate-trained" / "bundle", checkpoint=run / "train" / "checkpoint", candidate=True
        )


def current(options: Options) -> str:
    """The version of the one valid current bundle."""
    registry = Registry(options.registry)
    version = registry.resolve("current")
    assert read_bundle(registry.fetch("current")).version == version
    return version


def test_round_promotes_a_child_of_what_served(done):
    """A retrained bundle is registered with its checkpoint, promoted, and names its parent and what it learnt from."""
    receipt = json.loads((done / "work" / "000001" / "receipt.json").read_text())
    before, registry = Registry(done / "before").resolve("current"), Registry(done / "registry")
    assert (receipt["decision"], receipt["current"]) == ("promoted", before)
    after = read_bundle(registry.fetch("current"))
    assert after.version == receipt["candidate"]
    assert after.manifest["parent"] == before == registry.resolve("previous")
    assert after.manifest["data"]["feedback_rows"] > 50
    assert registry.checkpoint("current") is not None
    assert Engine.from_pretrained(after.path).golden_ok
    assert after.policies["balanced"].guarantee.label == "OUTCOME"
    assert after.policies["balanced"].epsilon == pytest.approx(0.1)
    assert after.reference["n"] > 50


def test_head_that_marks_steering_is_trained_on_beside_the_student(done):
    """The candidate's graph marks what steers, by a head that learnt from the new student's states."""
    before, after = (Registry(done / name) for name in ("before", "registry"))
    old, new = (registry.checkpoint("current") for registry in (before, after))
    first, second = (load_head(path, load_checkpoint(path)[0]).last.weight for path in (old, new))
    assert not first.equal(second)
    graph = Session(after.fetch("current") / "model.onnx")
    ids = np.ones((1, 5), dtype=np.int64)
    assert graph.run(ids, ids, 0 * ids)[1].shape == (1, 5)


def test_receipt_says_what_why_and_from_which_data(done):
    """The receipt holds hashes, counts, every step's findings, the decision and why, and not the store's URL."""
    text = (done / "work" / "000001" / "receipt.json").read_text()
    receipt = json.loads(text)
    steps = receipt["steps"]
    assert set(steps) == set(STEPS)
    assert "said of calibrate-trained" in receipt["why"]
    assert steps["snapshot"]["outcomes"] == 400
    assert len(steps["snapshot"]["sha256"]) == len(steps["train"]["train_sha256"]) == 64
    assert "feedback.db" not in text


def test_texts_are_deleted_when_the_round_ends(options, done):
    """While a round runs its owner alone can read the texts; afterwards they are only in the store."""
    cut_off(options, done, "train")
    frozen = options.work / "000001" / "snapshot" / "feedback.jsonl"
    assert stat.S_IMODE(frozen.stat().st_mode) == 0o600
    assert b"asked 0" in frozen.read_bytes()
    assert go(replace(options, recalibrate_only=True))["decision"] == "keep"
    texts = [p for p in options.work.rglob("*") if p.is_file() and b"asked 0" in p.read_bytes()]
    assert texts == []


@pytest.mark.parametrize(
    "when", ["midway", *(pytest.param(when, marks=pytest.mark.faults) for when in ("before", "after"))]
)
@pytest.mark.parametrize(
    "step", [step if step in SHORT else pytest.param(step, marks=pytest.mark.faults) for step in (*STEPS, LAST)]
)
def test_crash_at_any_step_leaves_one_current_and_the_round_goes_on(step, when, options, done, monkeypatch):
    """Wherever a round dies, there is one valid current bundle, and the next start ends the round."""
    cut_off(options, done, step)
    monkeypatch.setattr(Round, "_judge", judge)
    with monkeypatch.context() as patch:
        crash_at(patch, step, when)
        with pytest.raises(Crash):
            go(options)
    current(options)
    assert unfinished(options.work) is not None
    receipt = go(options)
    assert receipt["decision"] == "promoted"
    assert current(options) == receipt["candidate"]
    assert len([e for e in Registry(options.registry).history() if e.action == "promote"]) == 2
    assert go(replace(options, min_outcomes=10**6))["decision"] == "wait"


def test_round_waits_for_outcomes(options):
    """Below the wanted number of outcomes since the last round nothing is done."""
    receipt = go(replace(options, min_outcomes=401))
    assert (receipt["decision"], receipt["outcomes"]) == ("wait", 400)
    assert "400 decisions since the last round have an outcome of quality, 401 are wanted" in receipt["why"]
    assert not options.work.exists()


def test_second_retrainer_is_refused(options):
    """While one process retrains a registry's bundle, another is refused, whatever its work folder."""
    with only_one(lock_path(options)), pytest.raises(Busy, match="one at a time"):
        go(replace(options, work=options.work / "other"))


def test_promotion_of_another_in_between_is_respected(options, base, done):
    """Where somebody promoted another bundle meanwhile, the candidate is registered and not promoted."""
    cut_off(options, done, "promote")
    registry = Registry(options.registry)
    other = registry.promote(registry.add(base / "raw")).aliases["current"]
    receipt = go(options)
    assert (receipt["decision"], current(options)) == ("superseded", other)


def older(bundle, folder):
    """That bundle as a package of other inputs made it."""
    manifest = {**bundle.manifest, "input_version": INPUT_VERSION - 1}
    return write_bundle(folder, bundle.path, manifest, {"README.md": "# older\n"})


def test_a_bundle_of_another_input_version_is_not_retrained(options, base, tmp_path):
    """After an upgrade that it was not made for no round begins, and its outcomes wait for one that can be judged."""
    registry = Registry(options.registry)
    registry.promote(registry.add(older(read_bundle(base / "bundle"), tmp_path / "older").path))
    for _ in range(4):
        with pytest.raises(BundleError, match=f"input version {INPUT_VERSION - 1}.*the bundle that ships"):
            go(options)
    assert not list(options.work.glob("*/snapshot"))
    registry.promote(read_bundle(base / "bundle").version)
    assert go(replace(options, audit_label="sample=none"))["decision"] == "keep"


def test_a_round_on_a_bundle_of_another_input_version_ends(options, base, done, monkeypatch):
    """Where the package was upgraded in the middle of a round, that round ends and says why; the next one is free."""
    cut_off(options, done, "recalibrate")
    monkeypatch.setattr(Round, "_current", older(read_bundle(base / "bundle"), options.work / "older"))
    receipt = go(options)
    assert (receipt["decision"], f"input version {INPUT_VERSION - 1}" in receipt["why"]) == ("gave up", True)
    assert unfinished(options.work) is None


@pytest.mark.parametrize("when", ["midway", "after"])
def test_a_promotion_that_is_done_stays_one_whatever_is_promoted_after_it(options, base, done, monkeypatch, when):
    """A round that died once it had promoted says so, also where somebody promoted another bundle in the meantime."""
    cut_off(options, done, "promote")
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_at(patch, "promote", when)
        go(options)
    registry, promoted = Registry(options.registry), current(options)
    other = registry.promote(registry.add(base / "raw")).aliases["current"]
    receipt = go(options)
    assert (receipt["decision"], receipt["candidate"], current(options)) == ("promoted", promoted, other)


def test_a_promotion_that_was_rolled_back_is_not_made_again(options, done, monkeypatch):
    """Who rolls back a bundle, whose round died before that was recorded, is not overruled when the round goes on."""
    cut_off(options, done, "promote")
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_at(patch, "promote", "midway")
        go(options)
    before = Registry(options.registry).rollback(why="escalations doubled").aliases["current"]
    assert (go(options)["decision"], current(options)) == ("promoted", before)


def test_a_round_is_tracked_once(options, done, monkeypatch):
    """A round that died between its run in MLflow and its end makes no second one, and keeps the first one's id."""
    tracked = []
    monkeypatch.setattr("training.retrain.track", lambda receipt, **_: tracked.append(receipt) or "abc")
    cut_off(options, done, "train")
    options = replace(options, recalibrate_only=True)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_at(patch, LAST, "after")
        go(options)
    receipt = go(options)
    assert (receipt["mlflow_run"], len(tracked)) == ("abc", 1)
    assert LAST not in receipt["steps"]


def test_round_that_never_ends_is_given_up(options, monkeypatch):
    """A round that fails each time is given up after three beginnings; those without a registry do not count."""

    def unreachable(_registry):
        raise BundleError("s3: cannot be reached")

    crash_at(monkeypatch, "recalibrate", "before")
    for _ in range(3):
        with pytest.raises(Crash):
            go(options)
        with monkeypatch.context() as patch, pytest.raises(BundleError):
            patch.setattr(Registry, "state", unreachable)
            go(options)
    assert go(options)["decision"] == "gave up"


@pytest.fixture
def bare(options, base, done) -> Options:
    """A round about to train, on a registry whose current bundle has no checkpoint, as the shipped one has none."""
    cut_off(options, done, "train", "calibrate-trained", "judge-retrained")
    shutil.rmtree(options.registry)
    registry = Registry(options.registry)
    registry.promote(registry.add(base / "bundle"))
    return options


def test_without_a_checkpoint_the_graph_is_trained_on(bare, monkeypatch):
    """What serves is enough to learn from: the weights are read from the graph, and the candidate has a checkpoint."""
    monkeypatch.setattr(Round, "_judge", judge)
    receipt = go(bare)
    assert (receipt["decision"], current(bare)) == ("promoted", receipt["candidate"])
    assert load_checkpoint(Registry(bare.registry).checkpoint("current"))


def test_graph_that_cannot_be_trained_on_is_recalibrated(bare, monkeypatch):
    """Where a bundle's graph does not tell its weights, the rest of the round goes on, and the receipt says why."""

    def unknown(path):
        raise InputError(f"{path}: no weights")

    monkeypatch.setattr("training.recover.recover", unknown)
    receipt = go(bare)
    assert receipt["decision"] == "keep"
    assert receipt["why"].endswith("no weights")


@pytest.mark.parametrize(
    ("name", "value"),
    [("held_out", 5.0), ("held_out", 1.0), ("held_out", float("nan")), ("principal_share", 0.0), ("window_days", -1.0),
     ("window_days", float("inf")), ("audit_label", "foo")],
)  # fmt: skip
def test_a_round_that_cannot_be_is_refused_before_it_begins(options, name, value):
    """Shares and days that are none, and a label without a value, are named; nothing is frozen."""
    with pytest.raises(SettingsError, match=name.replace("_", "[_-]")):
        replace(options, **{name: value})


@pytest.mark.parametrize("step", ["snapshot", "recalibrate"])
def test_a_round_that_is_resumed_keeps_to_what_it_was_begun_with(options, monkeypatch, step):
    """Its receipt has the options and the reason of its beginning, and one that was to recalibrate alone trains not."""
    crash_at(monkeypatch, step, "before")
    with pytest.raises(Crash):
        go(replace(options, held_out=0.4, recalibrate_only=True), why="drift")
    monkeypatch.undo()
    monkeypatch.setattr(Round, "_judge", refuse)
    receipt = go(options)
    assert (receipt["options"]["held_out"], receipt["options"]["recalibrate_only"]) == ("0.4", "True")
    assert (receipt["steps"]["begin"]["why"], "train" in receipt["steps"]) == ("drift", False)


def test_a_round_that_another_package_began_goes_on(options, monkeypatch):
    """Of the options it was begun with this package takes those that it knows; it blocked the loop for ever."""
    crash_at(monkeypatch, "snapshot", "before")
    with pytest.raises(Crash):
        go(options)
    monkeypatch.undo()
    path = options.work / "000001" / "begin" / "result.json"
    begun = json.loads(path.read_text())
    kept = {"recalibrate_only": True, "audit_label": "sample=nothing", "unheard_of": 1}
    path.write_text(json.dumps({**begun, "options": kept}))
    receipt = go(replace(options, held_out=0.4))
    assert (receipt["decision"], receipt["options"]["held_out"]) == ("keep", "0.4")
    assert "labelled sample=nothing" in receipt["why"]


def test_training_by_another_recipe_begins_again(options, done, tmp_path, monkeypatch):
    """A round that is gone on with after its recipe was changed is trained by that one alone, as its receipt says."""

    def dies(*_args, **_fields):
        raise Crash

    cut_off(options, done, "train")
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr("training.export.export", dies)
        go(options)
    before = options.recipe.read_text()
    (tmp_path / "slower.toml").write_text(before + "learning_rate = 1e-4\n")
    receipt = go(replace(options, recipe=tmp_path / "slower.toml"))
    [epoch] = receipt["steps"]["train"]["history"]
    earlier = json.loads((done / "work" / "000001" / "receipt.json").read_text())["steps"]["train"]["history"]
    assert epoch["loss"] != earlier[0]["loss"]


def test_outcomes_before_the_window_begin_no_round(options):
    """Where traffic ended a window ago, a loop does not begin a round over nothing at each look; the outcomes wait."""
    receipt = retrain(options, clock=lambda: NOW + 40 * 86_400)
    assert (receipt["decision"], receipt["outcomes"]) == ("wait", 400)
    assert "--window-days" in receipt["why"]
    assert unfinished(options.work) is None


def test_registry_without_a_current_bundle_is_named(options, tmp_path):
    """There must be something to improve on; a round that waited long for it is not given up once it is there."""
    late = replace(options, registry=str(tmp_path / "empty"), audit_label="sample=nothing")
    for _ in range(4):
        with pytest.raises(BundleNotFound, match="no bundle 'current'"):
            go(late)
    assert go(replace(late, registry=options.registry))["decision"] == "keep"


def test_a_work_folder_is_one_registrys(options, tmp_path, monkeypatch):
    """A round of another registry is neither gone on with nor counted: its folder is refused, by the loop too."""
    crash_at(monkeypatch, "recalibrate", "before")
    with pytest.raises(Crash):
        go(options)
    shutil.copytree(options.registry, tmp_path / "other")
    for act in (go, tick):
        with pytest.raises(InputError, match="give each registry a --work of its own"):
            act(replace(options, registry=str(tmp_path / "other")))
    with pytest.raises(Crash):
        go(replace(options, registry=f"{tmp_path}/other/../registry"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("base_rows_share = 1.0\nint8_agreement = 0.9\nepoch = 2", "unknown key 'epoch'; there are base_rows_share, "),
        ("base_row_share = 1.0\nint8_agreement = 0.9", "unknown key 'base_row_share'; there are base_rows_share, "),
        ("base_rows_share = 1.0", "lacks the key 'int8_agreement'"),
        ('base_rows_share = "1"\nint8_agreement = 0.9', "base_rows_share is '1', expected a number"),
        ("epochs: 2", "cannot be read as TOML"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused_before_anything_is_done(options, tmp_path, text, told):
    """A misspelt, missing or unreadable setting is named, and no round is begun."""
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(InputError, match=told):
        go(replace(options, recipe=tmp_path / "mine.toml"))
    assert not any(options.work.glob("*/snapshot"))


def test_audit_label_must_be_a_pair(options):
    """A label that is no NAME=VALUE is refused with an example."""
    with pytest.raises(SettingsError, match="sample=audit"):
        go(replace(options, audit_label="audit"))


def test_thresholds_alone_are_tried_where_a_new_map_does_harm(options, done, monkeypatch):
    """Where the gate refuses new probabilities, the old ones get new thresholds, and are taken where those pass."""
    cut_off(options, done, "judge-recalibrated")
    monkeypatch.setattr(
        Round, "_judge", lambda _r, _o, name: verdict(accepted=name == "thresholds", why=f"said of {name}")
    )
    for step in ("judge-recalibrated", "judge-thresholds"):
        shutil.rmtree(options.work / "000001" / step, ignore_errors=True)
    receipt = go(options)
    assert receipt["candidate"] == receipt["steps"]["thresholds"]["version"]
    assert all(f"said of {name}" in receipt["why"] for name in ("recalibrate", "thresholds"))
    before, after = (
        Engine.from_pretrained(Registry(options.registry).fetch(version)).bundle
        for version in (receipt["current"], receipt["candidate"])
    )
    assert after.calibration == before.calibration
    assert after.policies["balanced"].threshold == receipt["steps"]["thresholds"]["thresholds"]["balanced"]


@pytest.mark.parametrize(("trained", "taken"), [(9.0, "recalibrate"), (7.0, "calibrate-trained")])
def test_cheaper_of_two_repairs_is_taken(options, done, monkeypatch, trained, taken):
    """Where recalibration keeps a broken promise at a price, retraining is tried, and the cheaper of the two taken."""
    costs = {"recalibrate": 8.0, "calibrate-trained": trained}
    cut_off(options, done, "judge-recalibrated", "judge-retrained")
    monkeypatch.setattr(Round, "_judge", lambda _r, _o, name: verdict(repairs=True, cost=costs[name]))
    receipt = go(options)
    assert receipt["candidate"] == receipt["steps"][taken]["version"]


def test_training_that_fails_leaves_what_recalibration_found(options, done, monkeypatch):
    """Where the retrained graph fails its parity check, the round goes on with the recalibrated candidate."""

    def fails(*_args, **_fields):
        raise GateNotMet("int8 chooses the fp32 tier on 0.93 of 600 rows")

    cut_off(options, done, "judge-recalibrated", "train")
    monkeypatch.setattr("training.retrain.retrained", fails)
    monkeypatch.setattr(Round, "_judge", lambda _r, _o, **_fields: verdict(repairs=True))
    receipt = go(options)
    assert (receipt["decision"], receipt["candidate"]) == ("promoted", receipt["steps"]["recalibrate"]["version"])
    assert "0.93 of 600 rows" in receipt["why"]


def test_base_row_that_is_an_audit_is_not_trained_on(options, done, tmp_path, monkeypatch):
    """A prompt of the base corpus that a user sent as an audit judges, and the round that it is in comes to its end."""
    cut_off(options, done, "train", "calibrate-trained", "judge-retrained")
    frozen = Round(options, Run(options.work / "000001"), print, lambda: NOW)
    frozen._snapshot = frozen._run.step("snapshot", frozen._freeze)
    audits = frozen._held_out.recent
    more = "".join(
        json.dumps({"prompt": r.request.messages[-1].content, "tier": r.tier.label, "split": "train"}) + "\n"
        for r in audits[:40]
    )
    (tmp_path / "more.jsonl").write_text(more)
    (tmp_path / "recipe.toml").write_text("base_rows_share = 9.0\nint8_agreement = 0.0\nepochs = 1\n")
    monkeypatch.setattr(Round, "_judge", judge)
    data = (*options.data, str(tmp_path / "more.jsonl"))
    receipt = go(replace(options, data=data, recipe=tmp_path / "recipe.toml"))
    assert receipt["decision"] == "promoted"
    trained_on = read_bundle(Registry(options.registry).fetch("current")).manifest[TRAINING_ROWS]
    assert not rows_among((r.sha256 for r in audits), trained_on).any()


def test_base_corpus_without_unseen_test_rows_is_refused(options, tmp_path):
    """Files without test rows to judge on are refused in a line, before anything is fitted."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "hello", "tier": "simple", "split": "train"}\n')
    with pytest.raises(InputError, match="no unseen test rows in --data"):
        go(replace(options, data=(str(tmp_path / "rows.jsonl"),)))


def test_round_without_audits_changes_nothing(options):
    """With fewer recent audits than the gate wants nothing is fitted, trained or promoted, and the reason is said."""
    receipt = go(replace(options, audit_label="sample=nothing"))
    assert (receipt["decision"], receipt["candidate"]) == ("keep", "")
    assert "0 recent audits are closed, 0 of which" in receipt["why"]
    assert "no recent request is labelled sample=nothing (--audit-label)" in receipt["why"]
    assert set(receipt["steps"]) == {"begin", "snapshot", "recalibrate"}


def test_round_without_new_audits_changes_nothing(options, done, monkeypatch):
    """After a promotion the audits that fitted it judge no other bundle: until new ones came in nothing is tried."""
    cut_off(options, done, "judge-recalibrated")
    options = replace(options, recalibrate_only=True, min_outcomes=0)
    monkeypatch.setattr(Round, "_judge", lambda _r, _o, **_f: verdict(accepted=True))
    assert go(options)["decision"] == "promoted"
    assert (options.work / "000001" / "recalibrate" / "bundle").is_dir()
    receipt = go(options)
    assert sorted(path.name for path in (options.work / "000001").iterdir()) == ["attempts", "receipt.json"]
    assert receipt["decision"] == "keep"
    assert re.search("[1-9][0-9]+ recent audits are closed, 0 of which fitted nothing", receipt["why"])
    assert set(receipt["steps"]) == {"begin", "snapshot", "recalibrate"}


@pytest.mark.parametrize("back", [Registry.rollback, partial(Registry.promote, name="previous")])
def test_a_bundle_that_was_rolled_back_is_not_made_again_of_the_same_audits(options, base, done, monkeypatch, back):
    """The next round overrules nobody who rolled back, by whichever command: it wants 60 audits from since then."""
    cut_off(options, done, "judge-recalibrated")
    options = replace(options, recalibrate_only=True, min_outcomes=0)
    monkeypatch.setattr(Round, "_judge", lambda _r, _o, **_f: verdict(accepted=True))
    promoted = go(options)
    back(Registry(options.registry), why="escalations doubled")
    receipt = go(options)
    assert (receipt["decision"], current(options)) == ("keep", promoted["current"])
    assert f"0 of which fitted nothing of the serving bundle or {promoted['candidate']}, rolled back" in receipt["why"]
    fill_store(options.feedback_url, base / "bundle", 150, begin=1500.0, seed=1)
    assert go(options)["decision"] == "promoted"


def test_receipt_counts_what_was_fitted(options, monkeypatch):
    """Too few audits for a map fit none and are not counted; what is then but thresholds is not tried again."""
    monkeypatch.setattr(Round, "_judge", refuse)
    receipt = go(replace(options, recalibrate_only=True, held_out=0.8))
    fitted = receipt["steps"]["recalibrate"]
    assert (fitted["map_rows"], fitted["rows"]) == (0, fitted["audits"]["closed"])
    assert "thresholds" not in receipt["steps"]


def test_nothing_is_trained_that_too_few_rows_would_judge(options, base, done, tmp_path):
    """Where the gate lacks golden rows it says how many there are, and no time goes into what it would refuse."""
    cut_off(options, done, "judge-recalibrated", "train")
    rows = [json.loads(line) for line in (base / "data" / "rows.jsonl").read_text().splitlines()]
    few = [row for row in rows if row["split"] == "test"][:59]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few))
    receipt = go(replace(options, data=(str(tmp_path / "few.jsonl"),)))
    assert (receipt["decision"], "train" in receipt["steps"]) == ("keep", False)
    assert "golden: 59 rows are too few to tell" in receipt["why"]


def test_gate_tells_what_the_log_says(options, done):
    """The real gate compares both bundles on labels and, where the log was explored, on the log as well."""
    cut_off(options, done, "judge-recalibrated", "judge-thresholds")
    receipt = go(replace(options, recalibrate_only=True, mlflow_uri="https://me:secret@127.0.0.1:1/?token=secret"))
    assert receipt["options"]["mlflow_uri"] == "https://127.0.0.1:1/"
    judged = receipt["steps"]["judge-recalibrated"]
    assert {"recent", "golden"} == set(judged["sets"])
    assert "difference" in judged["sets"]["recent"]["cost"]
    assert {"current", "candidate"} == set(judged["off_policy"])
    assert "off-policy" in judged["why"]
    assert receipt["decision"] in ("keep", "promoted")
