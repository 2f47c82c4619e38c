"""The training loop: every row once, on one process or several; a run that was stopped ends as one that was not."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from classifier.engine import Engine
from classifier.errors import InputError
from classifier.inputs import render
from tests.fit_support import MAX_TOKENS, OPTIONS, tiny_rows, without_dropout
from training import fit as fitting
from training.corpus import write_corpus
from training.fit import fit, predict
from training.forms import Forms
from training.model import load_base, tokenizer_of

pytestmark = [pytest.mark.training, pytest.mark.filterwarnings("ignore")]
ROOT = Path(__file__).parent.parent
SCRIPT = "tests/fit_process.py"
SEARCHING = replace(OPTIONS, worst_of=3)


def trained(options=SEARCHING, **arguments):
    """Weights of the tiny model after a run, dropout and all."""
    torch.manual_seed(0)
    model, fast = load_base("tiny", MAX_TOKENS)
    fit(model, tokenizer_of(fast, MAX_TOKENS), tiny_rows(), options, name="test", **arguments)
    return model.state_dict()


@pytest.fixture(scope="module")
def whole():
    """Weights of a run that nothing stops, and that makes its forms itself."""
    return trained()


def same(one, other) -> bool:
    """Whether two models have the same weights, bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def python(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A script or module in a process of its own, which sees no GPU."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}, capture_output=True,
        text=True, timeout=240,
    )  # fmt: skip


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    """A script or module on two processes."""
    return python("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *arguments)


def test_more_layers_than_there_are_cannot_be_frozen():
    """A recipe that freezes what the model has not is refused, with how many layers it has."""
    model, _ = load_base("tiny", MAX_TOKENS)
    layers = model.config.num_hidden_layers
    for wrong in (-1, layers + 1):
        with pytest.raises(InputError, match=f"frozen_layers is {wrong}, and the model has {layers}"):
            trained(replace(OPTIONS, frozen_layers=wrong))


def test_a_step_of_uneven_forms_is_padded_in_two_parts(monkeypatch):
    """Short and long forms are padded apart, and the steps are those that are padded as one."""
    rows, divided = tiny_rows(27), fitting.short_and_long
    monkeypatch.setattr(fitting, "bfloat16", None)  # is set for all by `without_dropout`

    def losses():
        torch.manual_seed(0)
        model, tokenizer = without_dropout()
        assert len(divided([len(tokenizer.ids(render(row.request))[0]) for row in rows])) == 2
        options = replace(OPTIONS, epochs=5, batch_size=27, augment=0.0)
        return [epoch["loss"] for epoch in fit(model, tokenizer, rows, options, name="test")]

    apart = losses()
    monkeypatch.setattr(fitting, "short_and_long", lambda lengths: [torch.arange(len(lengths))])
    assert apart == pytest.approx(losses(), rel=1e-5)
    assert apart[-1] < apart[0]


def test_each_kind_of_form_has_its_share_of_a_step():
    """A row is learnt from as it is, with more around what is rated, and in the worst of its rewordings."""
    _, fast = load_base("tiny", MAX_TOKENS)
    tokenizer, rows = tokenizer_of(fast, MAX_TOKENS), tiny_rows(8)
    plain = [tokenizer.ids(render(row.request))[:2] for row in rows]
    options = replace(SEARCHING, each_kind=True, augment=0.0)
    as_is, around, reworded = Forms(rows, plain, [range(8)], tokenizer, [], options, 0)[0]
    assert as_is == [[ids] for ids in plain]
    assert all(form != own for [form], own in zip(around, plain, strict=True))
    assert {len(tried) for tried in reworded} == {3}


def test_the_result_may_keep_a_share_of_the_weights_that_training_began_with():
    """Each weight is as far from where it began as the coefficient says; one that mixes nothing in is refused."""
    whole, some = trained(OPTIONS), trained(replace(OPTIONS, mixing_coefficient=0.75))
    torch.manual_seed(0)
    start = load_base("tiny", MAX_TOKENS)[0].state_dict()
    assert all(torch.allclose(some[n], start[n] + 0.75 * (whole[n] - start[n]), atol=1e-6) for n in start)
    with pytest.raises(InputError, match="mixing_coefficient is 0"):
        replace(OPTIONS, mixing_coefficient=0.0)


@pytest.mark.parametrize(
    ("stopped_at", "workers"),
    [pytest.param(3, 0, marks=pytest.mark.faults), (13, 0), pytest.param(20, 0, marks=pytest.mark.faults), (3, 2)],
    ids=["first epoch", "an epoch's last step", "second epoch", "others make the forms"],
)
def test_stopped_run_goes_on_to_the_same_weights(whole, tmp_path, monkeypatch, stopped_at, workers):
    """A run that is stopped within an epoch ends with the weights of one that was not, whoever makes its forms."""
    monkeypatch.setattr(fitting, "workers_beside", lambda _: workers)
    calls = 0

    def until_stopped(*arguments):
        nonlocal calls
        calls += 1
        if calls == stopped_at:
            raise KeyboardInterrupt
        return rows_of_a_step(*arguments)

    rows_of_a_step = fitting._my_rows
    monkeypatch.setattr(fitting, "_my_rows", until_stopped)
    with pytest.raises(KeyboardInterrupt):
        trained(state=tmp_path, state_seconds=0)
    again = trained(state=tmp_path, state_seconds=0)
    steps = 2 * -(-len(tiny_rows()) // OPTIONS.batch_size)
    assert calls == steps + 1, "no step was taken twice but the one that was cut off"
    assert same(again, whole)


def test_a_full_disk_is_told_as_one(tmp_path, monkeypatch):
    """The state of a run that finds no room for itself raises what the disk said, which the loop knows."""

    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fitting, "whole_file", lambda _: Full())
    with pytest.raises(OSError, match="No space left"):
        trained(state=tmp_path, state_seconds=0)


def test_finished_run_is_not_trained_again(whole, tmp_path, monkeypatch):
    """Started again, a finished run gives back its weights and takes no step."""
    trained(state=tmp_path)
    monkeypatch.setattr(fitting, "losses_of", None)
    assert same(whole, trained(state=tmp_path))


def test_state_within_an_epoch_is_written_by_the_clock(tmp_path, monkeypatch):
    """Within an epoch the state is written once the time is up, at its end always."""
    written = []
    monkeypatch.setattr(fitting, "_save_state", lambda *a: written.append((a[4].epoch, a[4].step)))
    trained(state=tmp_path, state_seconds=float("inf"))
    assert written == [(1, 0), (2, 0)]


def test_diverging_run_says_so_and_keeps_what_was_good(tmp_path, monkeypatch):
    """A loss that is not finite ends the run with the reason; the state stays that of the last sound step."""
    loss = fitting.losses_of
    monkeypatch.setattr(fitting, "_save_state", lambda *a: kept.append(a[4].step))
    kept: list[int] = []
    monkeypatch.setattr(fitting, "losses_of", lambda *a: loss(*a) * (float("nan") if len(kept) == 2 else 1.0))
    with pytest.raises(InputError, match="training diverged, the loss of epoch 1 is nan; lower the learning rate"):
        trained(state=tmp_path, state_seconds=0)
    assert kept == [1, 2]


@pytest.mark.parametrize(
    ("key", "wrong", "expected"),
    [
        ("epochs", 0, "1 or more"),
        ("batch_size", 0, "1 or more"),
        ("learning_rate", -1.0, "a finite number above 0"),
        ("layer_decay", 9.0, "a number above 0, and at most 1"),
        ("eta", 0.5, "a number from 0 to below 0.5"),
        ("distill_weight", 1.5, "a number from 0 .* to 1"),
        ("temperature", 0.0, "a finite number above 0"),
        ("weight_decay", -1.0, "a finite number from 0"),
        ("warmup", 6.0, "a share of the steps, 0 to 1"),
        ("rps_weight", -0.5, "a finite number from 0"),
        ("augment", 30.0, "a share of the rows, 0 to 1"),
        ("source_power", -0.3, "a finite number from 0"),
        ("learning_rate", float("inf"), "a finite number above 0"),
    ],
)
def test_options_that_cannot_train_are_refused(key, wrong, expected):
    """A value that its key does not take is named before anything is trained, with what is expected."""
    with pytest.raises(InputError, match=f"recipe: {key} is {wrong:g}, expected {expected}"):
        replace(OPTIONS, **{key: wrong})


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
def test_outcomes_cannot_weigh_nothing(weight):
    """A step of such rows alone would be divided by nothing: it is said before anything is trained."""
    with pytest.raises(InputError, match=r"outcome_weight is .*, expected a number above 0; .*leave their rows out"):
        replace(OPTIONS, outcome_weight=weight)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_processes_share_the_rows_of_a_step(world):
    """The processes' rows of a step are the step's rows, each once, and their shares sum to the number of processes."""
    weight = torch.rand(5) + 0.5
    found = [fitting._my_rows([4, 2, 0, 1, 3], weight, rank, world) for rank in range(world)]
    taken = [int(i) for index, share in found for i in index[share > 0]]
    assert sorted(taken) == [0, 1, 2, 3, 4]
    assert float(sum(share.sum() for _, share in found)) == pytest.approx(world)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> list[dict]:
    """What each of two processes saw and ended with."""
    out = tmp_path_factory.mktemp("two")
    done = python(SCRIPT, out)
    assert done.returncode == 0, done.stderr[-2000:]
    return [torch.load(out / f"rank-{rank}.pt") for rank in (0, 1)]


def test_two_processes_train_on_every_row_once(two_processes):
    """Two processes take every row once an epoch between them, and none twice."""
    seen = [Counter(p["seen"]) for p in two_processes]
    assert seen[0] + seen[1] == Counter(dict.fromkeys(range(len(tiny_rows())), OPTIONS.epochs))
    assert abs(len(two_processes[0]["seen"]) - len(two_processes[1]["seen"])) <= 2 * OPTIONS.epochs


def test_two_processes_end_with_the_same_weights_and_answers(two_processes):
    """Both processes end with the same weights, the same history, and the answers to all rows."""
    first, second = two_processes
    assert same(first["weights"], second["weights"])
    assert [e["loss"] for e in first["history"]] == [e["loss"] for e in second["history"]]
    assert torch.equal(first["answers"], second["answers"])
    assert bool((first["answers"].abs().sum(dim=1) > 0).all())


def test_only_the_first_process_writes(two_processes):
    """The state is written by the first process alone."""
    assert [p["written"] > 0 for p in two_processes] == [True, False]


def test_two_processes_take_the_steps_of_one_with_twice_the_batch(two_processes, monkeypatch):
    """Two processes arrive, but for rounding, where one does whose batches hold as many rows as theirs together."""
    monkeypatch.setattr(fitting, "bfloat16", lambda _: False)
    model, tokenizer = without_dropout()
    history = fit(model, tokenizer, tiny_rows(), replace(OPTIONS, batch_size=2 * OPTIONS.batch_size), name="test")
    assert [e["loss"] for e in history] == pytest.approx([e["loss"] for e in two_processes[0]["history"]], abs=1e-5)
    answers = torch.from_numpy(predict(model, tokenizer, tiny_rows(), name="test"))
    # With half the batch they differ by 0.02.
    assert torch.allclose(answers, two_processes[0]["answers"], atol=1e-3)


@pytest.mark.parametrize("instructions", [True, False])
def test_bfloat16_is_taken_where_the_processor_has_it(monkeypatch, instructions):
    """A processor without its instructions trains in single precision: emulated, bfloat16 is a tenth as fast."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: instructions)
    assert fitting.bfloat16(torch.device("cpu")) is instructions


def test_another_number_of_processes_is_refused(tmp_path, monkeypatch):
    """A run that two processes began is not gone on with by one: its steps would be others."""
    save = fitting._save_state
    monkeypatch.setattr(fitting, "_save_state", lambda *a: save(*a[:-1], 2))
    trained(replace(OPTIONS, epochs=1), state=tmp_path)
    with pytest.raises(InputError, match="begun with 2 processes and goes on with as many, not with 1"):
        trained(replace(OPTIONS, epochs=1), state=tmp_path)


@pytest.mark.faults
def test_killed_processes_go_on_to_the_same_weights(two_processes, tmp_path):
    """Two processes, of which one is killed within an epoch, end when started again as those that were not."""
    killed = torchrun(SCRIPT, tmp_path, 4)
    assert killed.returncode != 0
    assert not list(tmp_path.glob("rank-*.pt"))
    assert (tmp_path / "state" / "state.pt").is_file()
    assert torchrun(SCRIPT, tmp_path).returncode == 0
    for rank, process in enumerate(two_processes):
        assert same(torch.load(tmp_path / f"rank-{rank}.pt")["weights"], process["weights"])


@pytest.mark.faults
def test_command_builds_on_two_processes(tmp_path):
    """`torchrun -m training build` trains on both processes; one of them builds the bundle and says where it is."""
    corpus = tmp_path / "rows.jsonl"
    write_corpus(corpus, tiny_rows(320))
    out = tmp_path / "run"
    done = torchrun("-m", "training", "build", "--recipe", "tiny", "--data", corpus, "--out", out)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [str(out / "bundle")]
    assert done.stderr.count("teacher ready") == 1
    assert Engine.from_pretrained(out / "bundle").golden_ok
