"""The training loop, shared by teacher and student: rows and targets in, a trained model out.

Length-bucketed batches, AdamW with warm-up and linear decay, bfloat16 where the processor has it.

Theory of operation. Under `torchrun` or `accelerate launch` each process takes its share of a step's rows, weighted so
that N processes take the very step that one would take with N times the batch: every row once an epoch, none twice. All
that is random follows from seed, epoch, step and process alone, and a row's forms (`training.forms`) from seed and
epoch. So where a run stands is its weights, its optimiser, its schedule and its place; the first process writes these
down now and then, in one file that appears whole or not at all, and a run that was killed goes on from there to the
weights of one that was not.
"""

from __future__ import annotations

import io
import math
import random
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from classifier.durable import whole_file
from classifier.errors import InputError
from classifier.inputs import render
from classifier.tokenizer import BEFORE_TEXT, Tokenizer, pad
from classifier.types import TIERS
from training import processes
from training.corpus import Row
from training.evidence import Evidence, losses_of, row_weights
from training.forms import Forms, Ids, made, workers_beside
from training.heap import kept_heap, trim
from training.model import input_names
from training.progress import progress_bar
from training.recipe import FitOptions
from training.worst_form import flipped, forms_at_once, worst_forms

_LAYER = re.compile(r"\.(?:layers?|h|block)\.(\d+)\.")
"""A layer's number in a parameter's name, as the families of encoders and decoders spell it."""
STATE_SECONDS = 300.0
"""So much work a killed run loses at most, beside the end of an epoch, which is always kept."""
TRIM_STEPS = 10
"""Between two trims of the heap: in twenty steps of 48 rows it grows by three gigabytes."""


@dataclass(slots=True)
class _Progress:
    """Where a run stands.

    Attributes:
        epoch: epochs that are done.
        step: steps that are done of the epoch after them.
        loss: sum of those steps' losses.
        seconds: that they took.
        history: one dictionary for each epoch that is done.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


@kept_heap()
def fit(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    options: FitOptions,
    *,
    name: str,
    teacher_logits: NDArray[np.float32] | None = None,
    state: Path | None = None,
    state_seconds: float = STATE_SECONDS,
) -> list[dict[str, float]]:
    """Trains `model` in place.

    Args:
        model: a sequence classifier over the tiers.
        tokenizer: the serving tokeniser.
        rows: labelled, interval, outcome or (with `teacher_logits`) unlabelled rows.
        options: how.
        name: what the progress bar says.
        teacher_logits: (rows, 4) float32 to follow, NaN where the teacher was not asked; or None.
        state: folder for resuming, seen by every process; None keeps no state.
        state_seconds: at least so long between two writings of the state within an epoch.

    Returns:
        One dictionary an epoch: epoch, loss, seconds.

    Raises:
        InputError: training diverged: the loss is not finite; or `state` is of a run on another number of processes; or
            the model has not so many layers to freeze.
    """
    _freeze(model, options.frozen_layers)
    accelerator = processes.accelerator()
    bf16 = bfloat16(accelerator.device)
    evidence = Evidence.of(rows, teacher_logits, options.eta)
    weight = torch.from_numpy(row_weights(rows, options))
    known = tokenizer.words()
    words, word_ids = list(known), list(known.values())
    plain = [tokenizer.ids(render(r.request))[:2] for r in rows]
    lengths = [len(ids) for ids, _ in plain]
    optimizer = torch.optim.AdamW(_parameter_groups(model, options), lr=options.learning_rate, fused=True)
    world, rank = accelerator.num_processes, accelerator.process_index
    step_rows = options.batch_size * world
    steps = math.ceil(len(rows) / step_rows) * options.epochs
    schedule = get_linear_schedule_with_warmup(optimizer, int(options.warmup * steps), steps)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    mixed = [value for value in model.parameters() if value.requires_grad and options.mixing_coefficient < 1]
    begun = [value.detach().clone() for value in mixed]
    kept = None if state is None else state / "state.pt"
    progress = _Progress()
    if kept is not None and kept.is_file():
        progress = _resume(kept, model, optimizer, schedule, world)

    def losses(network: Any, sequences: Sequence[Ids], index: Tensor) -> Tensor:
        inputs = inputs_of(model, tokenizer, sequences, accelerator.device)
        with torch.autocast(accelerator.device.type, dtype=torch.bfloat16, enabled=bf16):
            logits = network(**inputs).logits.float()
        return losses_of(logits, index, evidence, options)

    def hardest(index: Tensor, tried: Sequence[Sequence[Ids]], draw: str) -> list[Ids]:
        def of_rows(sequences: Sequence[Ids], places: Tensor) -> Tensor:
            return losses(model, sequences, index[places])

        own = index.tolist()
        rngs = [random.Random(f"{draw} row {i}") for i in own]
        embedding, as_is = model.get_input_embeddings(), [plain[i] for i in own]
        model.eval()
        worst = worst_forms(tried, of_rows, at_once=forms_at_once(accelerator.device))
        worst = flipped(worst, as_is, of_rows, embedding, word_ids, random.Random(draw), rngs, lead=BEFORE_TEXT)
        model.train()
        return worst

    written = time.monotonic()
    for epoch in range(progress.epoch, options.epochs):
        start = time.monotonic() - progress.seconds
        rng = random.Random(f"{options.seed}/{epoch}")
        batches = _bucketed(lengths, step_rows, rng)[progress.step :]
        forms = Forms(rows, plain, [_part(b, rank, world) for b in batches], tokenizer, words, options, epoch)
        wrapped.train()
        bar = progress_bar(
            zip(batches, made(forms, workers_beside(accelerator.device)), strict=True),
            total=len(batches),
            desc=f"{name} epoch {epoch + 1}/{options.epochs}",
            unit="step",
            hidden=not accelerator.is_main_process,
        )
        for batch, takes in bar:
            draw = f"{options.seed}/{epoch}/{progress.step}"
            torch.manual_seed(random.Random(f"{draw}/{rank}").getrandbits(63))
            index, share = _my_rows(batch, weight, rank, world)
            loss = torch.zeros((), device=accelerator.device)
            for tried in takes:
                sequences = hardest(index, tried, draw) if options.worst_of > 1 else [only for (only,) in tried]
                parts = short_and_long([len(ids) for ids, _ in sequences])
                by_row = torch.cat([losses(wrapped, [sequences[i] for i in part], index[part]) for part in parts])
                taken = (by_row * share[torch.cat(parts)].to(by_row.device)).sum() / len(takes)
                accelerator.backward(taken)
                loss += taken.detach()
            accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            value = float(accelerator.reduce(loss, reduction="mean"))
            if not math.isfinite(value):
                raise InputError(
                    f"{name}: training diverged, the loss of epoch {epoch + 1} is {value}; lower the learning rate"
                )
            progress.step += 1
            progress.loss += value
            progress.seconds = time.monotonic() - start
            if progress.step % TRIM_STEPS == 0:
                trim()
            bar.set_postfix(loss=f"{value:.3f}", refresh=False)
            if kept is not None and accelerator.is_main_process and time.monotonic() - written >= state_seconds:
                _save_state(kept, model, optimizer, schedule, progress, world)
                written = time.monotonic()
        entry = {"epoch": epoch + 1, "loss": progress.loss / max(1, progress.step), "seconds": progress.seconds}
        progress = _Progress(epoch=epoch + 1, history=[*progress.history, entry])
        if kept is not None and accelerator.is_main_process:
            _save_state(kept, model, optimizer, schedule, progress, world)
            written = time.monotonic()
    with torch.no_grad():
        for start_value, value in zip(begun, mixed, strict=True):
            value.copy_(torch.lerp(start_value, value, options.mixing_coefficient))
    model.eval()
    return progress.history


@kept_heap()
def predict(model: PreTrainedModel, tokenizer: Tokenizer, rows: Sequence[Row], *, name: str) -> NDArray[np.float32]:
    """Logits of every row: (rows, 4) float32, in the rows' order. Each process asks its share and gets all of them."""
    accelerator = processes.accelerator()
    device = accelerator.device
    sequences = [tokenizer.ids(render(r.request))[:2] for r in rows]
    order = sorted(range(len(rows)), key=lambda i: len(sequences[i][0]))
    chunks = [order[start : start + 64] for start in range(0, len(order), 64)]
    mine = chunks[accelerator.process_index :: accelerator.num_processes]
    out = torch.zeros((len(rows), len(TIERS)))
    model.to(device).eval()
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16(device)):
        for chunk in progress_bar(mine, desc=name, unit="batch", hidden=not accelerator.is_main_process):
            inputs = inputs_of(model, tokenizer, [sequences[i] for i in chunk], device)
            out[chunk] = model(**inputs).logits.float().cpu()
    answers: NDArray[np.float32] = accelerator.reduce(out.to(device), reduction="sum").cpu().numpy()
    return answers


def inputs_of(
    model: PreTrainedModel, tokenizer: Tokenizer, sequences: Sequence[tuple[Sequence[int], int]], device: torch.device
) -> dict[str, Tensor]:
    """A padded batch as far as the model reads it: (batch, longest) int64 each."""
    padded = pad(sequences, tokenizer.pad_id)
    return {name: torch.from_numpy(padded[name]).to(device) for name in input_names(model)}


def _freeze(model: PreTrainedModel, layers: int) -> None:
    """The embeddings and so many of the lowest layers are no longer trained."""
    check_frozen(layers, model.config.num_hidden_layers)
    for name, parameter in model.named_parameters():
        if layers and _level(name, model) <= layers:
            parameter.requires_grad = False


def check_frozen(layers: int, most: int) -> None:
    """Raises InputError where a model of `most` layers has not so many to freeze."""
    if not 0 <= layers <= most:
        raise InputError(f"recipe: frozen_layers is {layers}, and the model has {most}; give 0 to so many")


def _level(name: str, model: PreTrainedModel) -> int:
    """How high in the model a parameter is: the embeddings at 0, the layers from 1 on, the classifier above them."""
    inside = _LAYER.search(name)
    return int(inside[1]) + 1 if inside else 0 if "embed" in name else model.config.num_hidden_layers + 1


def _parameter_groups(model: PreTrainedModel, options: FitOptions) -> list[dict[str, Any]]:
    """What is trained by rate and decay: matrices shrink, biases and norms do not; lower layers move less."""
    top = model.config.num_hidden_layers + 1
    groups: dict[tuple[int, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((_level(name, model), parameter.ndim >= 2), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": options.weight_decay if shrinks else 0.0,
            "lr": options.learning_rate * options.layer_decay ** (top - level),
        }
        for (level, shrinks), parameters in groups.items()
    ]


def bfloat16(device: torch.device) -> bool:
    """Whether `device` has instructions for products in bfloat16; emulated ones are many times slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported())


def _bucketed(lengths: Sequence[int], step_rows: int, rng: random.Random) -> list[list[int]]:
    """The rows of each step, of like length, in random order; every row once."""
    order = list(range(len(lengths)))
    rng.shuffle(order)
    pool = step_rows * 40
    batches: list[list[int]] = []
    for start in range(0, len(order), pool):
        chunk = sorted(order[start : start + pool], key=lambda i: lengths[i])
        batches += [chunk[i : i + step_rows] for i in range(0, len(chunk), step_rows)]
    rng.shuffle(batches)
    return batches


def short_and_long(lengths: Sequence[int]) -> list[Tensor]:
    """Places of all sequences, (n,) int64: the short ones and the long ones, each to be padded among themselves.

    The rows of a step are of like length, but what a change puts around one of them may be ten times as long, and the
    whole step would be padded to it. Two passes are taken where they save a tenth of the entries.

    >>> [part.tolist() for part in short_and_long([20, 190, 22])], short_and_long([20, 22])
    ([[0, 2], [1]], [tensor([0, 1])])
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    longest = np.array([lengths[i] for i in order])
    short = np.arange(1, len(order))
    entries = short * longest[:-1] + (len(order) - short) * longest[-1]
    if not short.size or entries.min() > 0.9 * len(order) * longest[-1]:
        return [torch.tensor(order)]
    cut = int(short[entries.argmin()])
    return [torch.tensor(order[:cut]), torch.tensor(order[cut:])]


def _my_rows(batch: Sequence[int], weight: Tensor, rank: int, world: int) -> tuple[Tensor, Tensor]:
    """The rows of a step that this process takes, and the share of each in its loss.

    Gradients are averaged over the processes, so the shares of a step's rows sum to the number of processes. One that
    the last rows do not reach goes through the step with a row of no share.
    """
    index = torch.tensor(_part(batch, rank, world))
    if rank >= len(batch):
        return index, torch.zeros(1)
    return index, weight[index] * (world / float(weight[batch].sum()))


def _part(batch: Sequence[int], rank: int, world: int) -> Sequence[int]:
    """The rows of a step that a process goes through; the first one for a process that they do not reach."""
    return batch[rank::world] or batch[:1]


def _save_state(
    path: Path, model: PreTrainedModel, optimizer: Any, schedule: Any, progress: _Progress, processes: int
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    saved = {
        "model": {name: value for name, value in model.state_dict().items() if name not in frozen},
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "progress": asdict(progress),
        "processes": processes,
    }
    whole = io.BytesIO()  # of a disk that is full torch says that a position is unexpected
    torch.save(saved, whole)
    with whole_file(path) as file:
        file.write(whole.getbuffer())


def _resume(path: Path, model: PreTrainedModel, optimizer: Any, schedule: Any, processes: int) -> _Progress:
    """Puts back what `_save_state` wrote."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    if saved["processes"] != processes:
        raise InputError(
            f"{path}: was begun with {saved['processes']} processes and goes on with as many, not with {processes}; "
            "start as many, or remove it to begin again"
        )
    model.load_state_dict(saved["model"], strict=False)  # what is frozen is as it was loaded
    optimizer.load_state_dict(saved["optimizer"])
    schedule.load_state_dict(saved["schedule"])
    return _Progress(**saved["progress"])
