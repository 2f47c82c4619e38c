"""A trained model → the files of a bundle: ONNX through optimum, int8, parity checks, golden inputs.

The graph is fused by `training.graph`; `training.int8` rounds it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer
from transformers import PreTrainedModel

from classifier.bundle import Bundle, read_bundle, write_bundle
from classifier.calibration import IDENTITY
from classifier.checksums import sha256
from classifier.engine import rate
from classifier.errors import GateNotMet, InputError
from classifier.inputs import INPUT_VERSION, render
from classifier.policy import Policy
from classifier.policy_file import policies_to_json
from classifier.session import STEERING, Session
from classifier.tokenizer import Encoded, Tokenizer
from classifier.types import TIERS
from training.corpus import Row
from training.graph import fuse, marking
from training.int8 import quantise, round_weights
from training.model import input_names, tokenizer_of
from training.processes import one_thread
from training.progress import progress_bar
from training.steering_head import SteeringHead
from training.vocabulary import save_tokenizer

FP32_TOLERANCE = 1e-4
"""Largest allowed difference of a logit between torch and ONNX, both in single precision."""
INT8_AGREEMENT = 0.97
"""Smallest allowed share of rows on which int8 and fp32 choose the same tier."""
GOLDEN_TOLERANCE = 0.02
"""Probabilities may differ this much on replay: other instruction sets round int8 products in another order."""
GOLDEN_INPUTS = 12
_TASK = "text-classification"
PARITY_ROWS = 600
"""Rows that parity is measured on: int8 and fp32 agree on a share that is known to about a point then."""
ROUNDING_ROWS = 256
"""Requests whose activations say how to round; four times as many rounded no better (docs/design/0003-graph.md)."""
UNPROVEN_THRESHOLDS = {"economy": 0.55, "balanced": 0.7, "quality": 0.85}
"""Of a bundle that was never calibrated: plausible, promised to nobody."""


@dataclass(frozen=True, slots=True)
class Parity:
    """How far the exported graphs are from the model they came from.

    Attributes:
        fp32_difference: largest difference of a logit, and of log-odds that mark, between torch and the fp32 graph.
        int8_agreement: share of rows on which the int8 graph's arg-max is the fp32 graph's.
        int8_spread: root mean square change of the logits by int8, in units of their own spread.
        rows: how many rows it was measured on.
    """

    fp32_difference: float
    int8_agreement: float
    int8_spread: float
    rows: int


def export(
    model: PreTrainedModel,
    fast: FastTokenizer,
    out: Path,
    *,
    max_tokens: int,
    check: Sequence[Row],
    rounding: Sequence[Row],
    head: SteeringHead | None = None,
    int8_agreement: float = INT8_AGREEMENT,
) -> Parity:
    """Writes `config.json, tokenizer.json, tokenizer_config.json, model.onnx` (int8) and `model_fp32.onnx` into `out`.

    Args:
        model: the trained student.
        fast: its tokeniser.
        out: a folder, made if need be.
        max_tokens: the longest sequence the bundle will read.
        check: rows outside training, a few hundred at least; parity is measured on the first `PARITY_ROWS`.
        rounding: other rows, such as those of training: `ROUNDING_ROWS` of them guide the rounding to int8.
        head: marks what steers, in an output of its own; None leaves it out.
        int8_agreement: smallest allowed share of rows on which int8 and fp32 choose the same tier.

    Raises:
        GateNotMet: a parity check failed; both numbers are named.
        InputError: `check` is empty, or `out` is a file.
    """
    if not check:
        raise InputError("no row to check the export on; give --data some that the model was not trained on")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"--out {out}: is a file; give a folder") from None
    model = model.eval().float()
    model.config.max_tokens = max_tokens
    tokenizer, names = tokenizer_of(fast, max_tokens), input_names(model)
    whole, fused = (each if head is None else marking(each, head) for each in (model, fuse(model)))
    sample = random.Random(0).sample(list(rounding), min(ROUNDING_ROWS, len(rounding)))
    with tempfile.TemporaryDirectory() as folder:
        export_fp32(fused, Path(folder))
        inputs = (_tensors(tokenizer.encode(render(row.request)), names) for row in sample)
        with one_thread():
            rounded = round_weights(fused, inputs)
        quantise(Path(folder), rounded)
        shutil.copyfile(Path(folder) / "model.onnx", out / "model_fp32.onnx")
        shutil.copyfile(Path(folder) / "model_quantized.onnx", out / "model.onnx")
    model.config.save_pretrained(out)
    save_tokenizer(fast, out, max_tokens)
    with one_thread():
        parity = _parity(whole, tokenizer, out, check[:PARITY_ROWS])
    if not parity.fp32_difference <= FP32_TOLERANCE:
        raise GateNotMet(
            f"{out}: torch and ONNX fp32 logits differ by {parity.fp32_difference:.2e}, allowed {FP32_TOLERANCE:g}; "
            "the export does not compute the model, check the exporter's versions"
        )
    if parity.int8_agreement < int8_agreement:
        raise GateNotMet(
            f"{out}: int8 chooses the fp32 tier on {parity.int8_agreement:.3f} of {parity.rows} rows, wanted "
            f"{int8_agreement}; train longer, or more gently"
        )
    return parity


def assemble(
    files: Path,
    out: Path,
    *,
    golden: Sequence[Row],
    card: str,
    facts: Mapping[str, Any],
) -> Bundle:
    """A bundle without map, promises or reference from what `export` wrote; the int8 graph answers the golden inputs.

    Args:
        files: folder that `export` wrote.
        out: folder of the new bundle; must not exist.
        golden: rows of `data/` to replay at load, about `GOLDEN_INPUTS`; never from users.
        card: the model card, Markdown.
        facts: recipe, data hashes, seed, metrics, parent: what the manifest says beside the files.
    """
    policies = [Policy(name=name, threshold=value) for name, value in UNPROVEN_THRESHOLDS.items()]
    config = json.loads((files / "config.json").read_text(encoding="utf-8"))
    max_tokens = int(config["max_tokens"])
    fast = FastTokenizer.from_file(str(files / "tokenizer.json"))
    tokenizer = tokenizer_of(fast, max_tokens)
    session = Session(files / "model.onnx")
    answers = []
    for row in golden:
        model_input = render(row.request)
        logits = rate(model_input, tokenizer.encode(model_input), tokenizer, session)
        answers.append(golden_case(row, IDENTITY.apply(logits)))
    added: dict[str, str | Mapping[str, Any]] = {
        "calibration.json": IDENTITY.to_json(),
        "policy.json": policies_to_json(
            policies, "balanced", model_sha256=sha256(files / "model.onnx"), calibration_revision=IDENTITY.revision
        ),
        "reference.json": {"schema_version": 1, "n": 0},
        "README.md": card,
    }
    manifest = {
        "parent": None,
        "input_version": INPUT_VERSION,
        "max_tokens": max_tokens,
        "golden_tolerance": GOLDEN_TOLERANCE,
        **facts,
        "golden": answers,
    }
    return write_bundle(out, files, manifest, added)


def revise(
    parent: Path,
    out: Path,
    *,
    card: str | None = None,
    reference: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Bundle:
    """A bundle with the same weights, calibration and policies as `parent`, and another card, reference or facts."""
    bundle = read_bundle(parent)
    changed = {
        name: content for name, content in (("README.md", card), ("reference.json", reference)) if content is not None
    }
    return write_bundle(out, parent, {**bundle.manifest, **(facts or {})}, changed)


def golden_case(row: Row, probabilities: NDArray[np.float32]) -> dict[str, Any]:
    """One golden input as the manifest holds it."""
    return {
        "messages": [asdict(m) for m in row.request.messages],
        "tools": list(row.request.tools),
        "attachments": row.request.attachments,
        "probabilities": [round(float(p), 6) for p in probabilities],
    }


def choose_golden(rows: Sequence[Row]) -> list[Row]:
    """Short rows of every tier, the same for the same rows: what a manifest can hold without growing."""
    short = [r for r in rows if r.request.characters <= 600]
    ordered = sorted(short, key=lambda r: hashlib.sha256(r.id.encode()).hexdigest())
    chosen: list[Row] = []
    for tier in TIERS:
        chosen += [r for r in ordered if r.tier is tier][: -(-GOLDEN_INPUTS // len(TIERS))]
    return chosen[:GOLDEN_INPUTS]


def export_fp32(model: PreTrainedModel, folder: Path) -> None:
    """`model.onnx` in `folder`: the graph of `model` in single precision, as optimum exports it."""
    from optimum.exporters.onnx import onnx_export_from_model

    logging.getLogger("optimum").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, about constants that are constants
        onnx_export_from_model(
            model, folder, task=_TASK, custom_onnx_configs={"model": _onnx_config(model)}, do_validation=False, opset=17
        )


def _onnx_config(model: PreTrainedModel) -> Any:
    """Optimum's configuration for the model, with the second output that a marking one has."""
    from optimum.exporters.tasks import TasksManager

    known = TasksManager.get_exporter_config_constructor("onnx", model, task=_TASK, library_name="transformers").func
    if not hasattr(model, STEERING):
        return known(model.config, task=_TASK)

    class Marking(known):  # type: ignore[misc, valid-type]
        @property
        def outputs(self) -> dict[str, dict[int, str]]:
            return {**super().outputs, STEERING: {0: "batch_size", 1: "sequence_length"}}

    return Marking(model.config, task=_TASK)


def _tensors(encoded: Encoded, names: Sequence[str]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(getattr(encoded, name)) for name in names}


def _parity(model: PreTrainedModel, tokenizer: Tokenizer, out: Path, rows: Sequence[Row]) -> Parity:
    names = input_names(model)
    full, small = Session(out / "model_fp32.onnx", threads=2), Session(out / "model.onnx", threads=2)
    logits32, logits8, worst = [], [], 0.0
    for i, row in enumerate(progress_bar(rows, desc="parity", unit="row")):
        model_input = render(row.request)
        encoded = tokenizer.encode(model_input)
        logits32.append(rate(model_input, encoded, tokenizer, full))
        logits8.append(rate(model_input, encoded, tokenizer, small))
        if i < 64:
            with torch.inference_mode():
                expected = model(**_tensors(encoded, names))
            found = full.run(encoded.input_ids, encoded.attention_mask, encoded.token_type_ids)
            for one, other in zip((expected["logits"], expected.get(STEERING)), found, strict=True):
                worst = float(np.maximum(worst, np.abs(one.numpy() - other).max())) if other is not None else worst
    a, b = np.array(logits32), np.array(logits8)
    spread = float(np.sqrt(((a - b) ** 2).mean()) / max(float(a.std()), 1e-9))
    return Parity(worst, float((a.argmax(1) == b.argmax(1)).mean()), spread, len(rows))
