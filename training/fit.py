"""The training loop, shared by teacher and student: rows and targets in, a trained model out.

Length-bucketed batches, AdamW with warm-up and linear decay, bfloat16 where the processor has it. Runs under
`torchrun`/`accelerate launch` as it is. Writes its state after every epoch, so that a run that was killed goes on where
it was and ends with the same weights as one that was not.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, get_linear_schedule_with_warmup

from classifier.errors import InputError
from classifier.inputs import render
from classifier.tokenizer import Tokenizer, pad
from classifier.types import TIERS
from training.augment import augment
from training.corpus import UNLABELLED, Row, soft_labels
from training.losses import distillation_loss, label_loss


@dataclass(frozen=True, slots=True)
class FitOptions:
    """How to train.

    Attributes:
        epochs: passes over the data.
        batch_size: rows of one step, on each process.
        learning_rate: peak of the schedule.
        layer_decay: the rate of each layer is this times the rate of the layer above it, in (0, 1]; what lies deep in
            a pretrained model moves less.
        weight_decay: of AdamW.
        warmup: share of the steps over which the rate rises.
        rps_weight: weight of the ranked-probability term.
        augment: share of rows changed in a label-preserving way, each epoch anew.
        source_power: a source of n rows weighs n^-power a row, within 0.3 to 3 of the mean; 0 leaves all alike.
        eta: chance that interval evidence is wrong, in [0, 0.5), where a row does not carry its own.
        distill_weight: share of the loss that follows the teacher, in [0, 1].
        temperature: of distillation.
        outcome_weight: factor on the weight of OUTCOME rows.
        seed: of everything random.
    """

    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 5e-5
    layer_decay: float = 1.0
    weight_decay: float = 0.01
    warmup: float = 0.06
    rps_weight: float = 0.5
    augment: float = 0.3
    source_power: float = 0.3
    eta: float = 0.1
    distill_weight: float = 0.0
    temperature: float = 1.0
    outcome_weight: float = 0.3
    seed: int = 0


def fit(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    rows: Sequence[Row],
    options: FitOptions,
    *,
    name: str,
    teacher_logits: NDArray[np.float32] | None = None,
    state: Path | None = None,
    after_epoch: Callable[[int, PreTrainedModel], None] | None = None,
) -> list[dict[str, float]]:
    """Trains `model` in place.

    Args:
        model: a sequence classifier over the tiers.
        tokenizer: the serving tokeniser.
        rows: labelled, interval, outcome or (with `teacher_logits`) unlabelled rows.
        options: how.
        name: what the progress bar says.
        teacher_logits: (rows, 4) float32 to follow, NaN where the teacher was not asked; or None.
        state: folder for resuming; None keeps no state.
        after_epoch: called with the epoch and the model.

    Returns:
        One dictionary an epoch: epoch, loss, seconds.

    Raises:
        InputError: training diverged: the loss is not finite; the state keeps the last good epoch.
    """
    accelerator = Accelerator()
    bf16 = _bfloat16(accelerator.device)
    target = torch.from_numpy(soft_labels(rows))
    inside = torch.tensor([[float(r.at_least <= t <= r.at_most) for t in TIERS] for r in rows])
    eta = torch.tensor([options.eta if r.eta is None else r.eta for r in rows])
    weight = torch.from_numpy(row_weights(rows, options))
    followed = None if teacher_logits is None else torch.from_numpy(np.ascontiguousarray(teacher_logits, np.float32))
    labelled = torch.tensor([float(r.label != UNLABELLED) for r in rows])
    plain = [tokenizer.ids(render(r.request))[:2] for r in rows]
    optimizer = torch.optim.AdamW(_parameter_groups(model, options), lr=options.learning_rate, fused=True)
    world = accelerator.num_processes
    steps_an_epoch = math.ceil(len(rows) / (options.batch_size * world))
    schedule = get_linear_schedule_with_warmup(
        optimizer, int(options.warmup * steps_an_epoch * options.epochs), steps_an_epoch * options.epochs
    )
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    history: list[dict[str, float]] = []
    first = 0
    if state is not None and (state / "history.json").is_file():
        saved = torch.load(state / "state.pt", map_location="cpu", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        history = json.loads((state / "history.json").read_text())
        first = len(history)
    for epoch in range(first, options.epochs):
        start = time.monotonic()
        # Everything random of an epoch follows from seed and epoch alone: a resumed run draws the same.
        rng = random.Random(f"{options.seed}/{epoch}")
        torch.manual_seed(options.seed * 1000 + epoch)
        sequences = [
            tokenizer.ids(render(augment(r.request, rng)))[:2] if rng.random() < options.augment else plain[i]
            for i, r in enumerate(rows)
        ]
        batches = _bucketed([len(ids) for ids, _ in sequences], options.batch_size, world, rng)
        mine = batches[accelerator.process_index :: world]
        wrapped.train()
        total = 0.0
        bar = tqdm(mine, desc=f"{name} epoch {epoch + 1}/{options.epochs}", unit="batch", disable=None)
        for batch in bar:
            index = torch.tensor(batch)
            inputs = {
                k: torch.from_numpy(v).to(accelerator.device) for k, v in pad([sequences[i] for i in batch]).items()
            }
            with torch.autocast(accelerator.device.type, dtype=torch.bfloat16, enabled=bf16):
                logits = wrapped(**inputs).logits.float()
            loss = _loss(logits, index, target, inside, eta, labelled, followed, options)
            step_weight = weight[index].to(loss.device)
            mean = (loss * step_weight).sum() / step_weight.sum()
            accelerator.backward(mean)
            accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += float(mean.detach())
            bar.set_postfix(loss=f"{float(mean.detach()):.3f}")
        if not math.isfinite(total):
            raise InputError(
                f"{name}: training diverged, the loss of epoch {epoch + 1} is {total}; lower the learning rate"
            )
        history.append({"epoch": epoch + 1, "loss": total / max(1, len(mine)), "seconds": time.monotonic() - start})
        accelerator.wait_for_everyone()
        if state is not None and accelerator.is_main_process:
            _save_state(state, model, optimizer, schedule, history)
        if after_epoch is not None and accelerator.is_main_process:
            after_epoch(epoch + 1, model)
    model.eval()
    return history


def predict(model: PreTrainedModel, tokenizer: Tokenizer, rows: Sequence[Row], *, name: str) -> NDArray[np.float32]:
    """Logits of every row: (rows, 4) float32, in the rows' order."""
    sequences = [tokenizer.ids(render(r.request))[:2] for r in rows]
    order = sorted(range(len(rows)), key=lambda i: len(sequences[i][0]))
    out = np.zeros((len(rows), len(TIERS)), dtype=np.float32)
    device = Accelerator().device
    model.to(device).eval()
    with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=_bfloat16(device)):
        for start in tqdm(range(0, len(order), 64), desc=name, unit="batch", disable=None):
            chunk = order[start : start + 64]
            inputs = {k: torch.from_numpy(v).to(device) for k, v in pad([sequences[i] for i in chunk]).items()}
            out[chunk] = model(**inputs).logits.float().cpu().numpy()
    return out


def _parameter_groups(model: PreTrainedModel, options: FitOptions) -> list[dict[str, Any]]:
    """The parameters by rate and decay: matrices shrink, biases and norms do not; lower layers move less."""
    top = model.config.num_hidden_layers + 1
    groups: dict[tuple[int, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        _, inside, rest = name.partition(".layer.")
        level = int(rest.split(".")[0]) + 1 if inside else 0 if "embeddings" in name else top
        shrinks = parameter.ndim >= 2 and "LayerNorm" not in name
        groups.setdefault((level, shrinks), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": options.weight_decay if shrinks else 0.0,
            "lr": options.learning_rate * options.layer_decay ** (top - level),
        }
        for (level, shrinks), parameters in groups.items()
    ]


def _bfloat16(device: torch.device) -> bool:
    """Whether products in bfloat16 are fast and sound on `device`."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.backends.mkldnn.is_available()) and os.uname().machine == "x86_64"


def row_weights(rows: Sequence[Row], options: FitOptions) -> NDArray[np.float32]:
    """Weight of each row in the loss: (rows,) float32, mean 1."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.source] = counts.get(row.source, 0) + 1
    by_source = np.array([counts[r.source] ** -options.source_power for r in rows])
    by_source = np.clip(by_source / by_source.mean(), 0.3, 3.0)
    kind = np.array([options.outcome_weight if r.label == "OUTCOME" else 1.0 for r in rows])
    weight = by_source * kind * np.array([r.weight for r in rows])
    return (weight / weight.mean()).astype(np.float32)


def _loss(
    logits: Tensor,
    index: Tensor,
    target: Tensor,
    inside: Tensor,
    eta: Tensor,
    labelled: Tensor,
    followed: Tensor | None,
    options: FitOptions,
) -> Tensor:
    device = logits.device
    rows = (tensor[index].to(device) for tensor in (target, inside, eta))
    by_label = label_loss(logits, *rows, rps_weight=options.rps_weight)
    if followed is None:
        return by_label
    answers = followed[index].to(device)
    answered = ~torch.isnan(answers).any(dim=-1)
    by_teacher = distillation_loss(logits, torch.nan_to_num(answers), temperature=options.temperature)
    # What has no label follows the teacher alone; what the teacher was not asked about follows its label alone.
    share = torch.where(labelled[index].to(device) > 0, options.distill_weight, 1.0) * answered
    return (1 - share) * by_label + share * by_teacher


def _bucketed(lengths: Sequence[int], batch_size: int, world: int, rng: random.Random) -> list[list[int]]:
    """Batches of rows of like length, in random order, as many for every process."""
    order = list(range(len(lengths)))
    rng.shuffle(order)
    pool = batch_size * 40
    batches: list[list[int]] = []
    for start in range(0, len(order), pool):
        chunk = sorted(order[start : start + pool], key=lambda i: lengths[i])
        batches += [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
    rng.shuffle(batches)
    while len(batches) % world:
        batches.append(batches[len(batches) % len(batches[:1])])
    return batches


def _save_state(
    state: Path, model: PreTrainedModel, optimizer: object, schedule: object, history: list[dict[str, float]]
) -> None:
    state.mkdir(parents=True, exist_ok=True)
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}  # type: ignore[attr-defined]
    torch.save(saved, state / "state.pt.new")
    (state / "state.pt.new").rename(state / "state.pt")
    (state / "history.new").write_text(json.dumps(history))
    (state / "history.new").rename(state / "history.json")


def options_json(options: FitOptions) -> dict[str, float]:
    """The options as they are written into a bundle."""
    return asdict(options)
