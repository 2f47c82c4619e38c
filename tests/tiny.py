"""A real bundle in miniature: a small WordPiece vocabulary and a two-layer ONNX graph, built in well under a second.

The graph has fixed weights: it averages word embeddings and applies two dense layers, so that "hi" is simple and
"prove" is frontier. Everything else about the bundle (manifest, checksums, calibration, policies, golden inputs) is
what a trained one has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, normalizers, pre_tokenizers

from classifier.bundle import Bundle, write_bundle
from classifier.calibration import IDENTITY, Calibration
from classifier.checksums import sha256
from classifier.engine import rate
from classifier.inputs import INPUT_VERSION, render
from classifier.policy import Policy
from classifier.policy_file import policies_to_json
from classifier.session import Session
from classifier.signals import SIGNALS
from classifier.tokenizer import Tokenizer
from classifier.types import Request

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = {
    "simple": ["hi", "thanks", "translate", "capital", "date", "spell"],
    "standard": ["explain", "email", "function", "sql", "recipe", "compare"],
    "complex": ["debug", "review", "refactor", "contract", "diagnose", "plan"],
    "frontier": ["prove", "novel", "lock", "free", "theorem", "olympiad"],
}
FILLERS = ["the", "a", "to", "of", "and", "is", "it", "yes", "do", "this", "please", "what", "##s", "##ing", "##er"]
STEERING_WORDS = ["router", "escalate"]
LETTERS = [*"abcdefghijklmnopqrstuvwxyz0123456789", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789")]
MAX_TOKENS = 64
POLICIES = (
    Policy(name="economy", threshold=0.55),
    Policy(name="balanced", threshold=0.7),
    Policy(name="quality", threshold=0.85),
)


def vocabulary() -> list[str]:
    """Every piece, in the order of its id."""
    words = [w for group in WORDS.values() for w in group]
    pieces = [*SPECIALS, *SIGNALS, *words, *FILLERS, *LETTERS, *"[]=.,!?<>/:;-_'\"()|", *STEERING_WORDS]
    return list(dict.fromkeys(pieces))


def fast_tokenizer() -> FastTokenizer:
    """A lower-casing WordPiece tokeniser over `vocabulary()`."""
    ids = {piece: i for i, piece in enumerate(vocabulary())}
    fast = FastTokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer(lowercase=True)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.add_special_tokens(SPECIALS)
    return fast


def graph(scale: float = 6.0, *, marks: bool = False) -> onnx.ModelProto:
    """input_ids, attention_mask, token_type_ids (batch, length) int64 → logits (batch, 4) float32.

    Words that steer count as much as three of `frontier`. With `marks` a second output, steering (batch, length), says
    4 of each of them and -4 of every other entry.
    """
    pieces = vocabulary()
    rng = np.random.default_rng(0)
    table = (0.02 * rng.standard_normal((len(pieces), 4))).astype(np.float32)
    for column, words in enumerate(WORDS.values()):
        for word in words:
            table[pieces.index(word), column] += 1.0
    table[pieces.index("[length=30000]"), 2] += 0.1
    steers = np.full(len(pieces), -4, dtype=np.float32)
    for word in STEERING_WORDS:
        table[pieces.index(word), 3] += 3.0
        steers[pieces.index(word)] = 4.0
    mix = np.eye(4, dtype=np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"]),
        helper.make_node("Mul", ["embedded", "mask3"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "middle"], ["summed"], keepdims=0),
        helper.make_node("MatMul", ["summed", "mix"], ["hidden"]),
        helper.make_node("Tanh", ["hidden"], ["squashed"]),
        helper.make_node("MatMul", ["squashed", "scaled"], ["raw"]),
        helper.make_node("Add", ["raw", "bias"], ["logits"]),
    ]
    constants = {
        "table": table,
        "mix": mix,
        "scaled": scale * mix,
        "bias": np.array([0.5, 0.3, -0.2, -0.8], dtype=np.float32),
        "last": np.array([2], dtype=np.int64),
        "middle": np.array([1], dtype=np.int64),
    }
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])]
    if marks:
        nodes.append(helper.make_node("Gather", ["steers", "input_ids"], ["steering"]))
        constants["steers"] = steers
        outputs.append(helper.make_tensor_value_info("steering", TensorProto.FLOAT, ["batch", "length"]))
    names = ("input_ids", "attention_mask", "token_type_ids")
    return helper.make_model(
        helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "length"]) for n in names],
            outputs,
            [numpy_helper.from_array(v, n) for n, v in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )


def golden_requests() -> list[Request]:
    """One request a tier and a chat."""
    chat = [
        {"role": "user", "content": "plan the refactor"},
        {"role": "assistant", "content": "review and debug it?"},
        {"role": "user", "content": "yes do it"},
    ]
    return [*(Request.from_text(words[0]) for words in WORDS.values()), Request.from_messages(chat)]


def tiny_bundle(
    path: Path,
    *,
    scale: float = 6.0,
    calibration: Calibration = IDENTITY,
    policies: tuple[Policy, ...] = POLICIES,
    default: str = "balanced",
    manifest: dict[str, Any] | None = None,
    marks: bool = False,
) -> Bundle:
    """A bundle in the new folder `path`; another `scale`, or one that `marks`, is another model, hence version."""
    staged = path.parent / f".staged-{path.name}"
    staged.mkdir(parents=True)
    onnx.save(graph(scale, marks=marks), staged / "model.onnx")
    fast_tokenizer().save(str(staged / "tokenizer.json"))
    config = {"model_type": "bert", "num_labels": 4, "max_position_embeddings": 512}
    (staged / "config.json").write_text(json.dumps(config))
    (staged / "tokenizer_config.json").write_text(json.dumps({"model_max_length": MAX_TOKENS}))
    (staged / "calibration.json").write_text(json.dumps(calibration.to_json()))
    policy_json = policies_to_json(
        policies,
        default,
        model_sha256=sha256(staged / "model.onnx"),
        calibration_revision=calibration.revision,
    )
    (staged / "policy.json").write_text(json.dumps(policy_json))
    (staged / "reference.json").write_text(json.dumps({"schema_version": 1, "n": 0}))
    (staged / "README.md").write_text("# A tiny bundle for tests\n")
    tokenizer = Tokenizer(fast_tokenizer(), MAX_TOKENS)
    session = Session(staged / "model.onnx")
    golden = []
    for request in golden_requests():
        model_input = render(request)
        logits = rate(model_input, tokenizer.encode(model_input), tokenizer, session)
        golden.append(
            {
                "messages": [{"role": m.role, "content": m.content} for m in request.messages],
                "probabilities": [float(p) for p in calibration.apply(logits)],
            }
        )
    facts = {
        "parent": None,
        "input_version": INPUT_VERSION,
        "max_tokens": MAX_TOKENS,
        "golden": golden,
        "golden_tolerance": 0.001,
        "seed": 0,
        **(manifest or {}),
    }
    bundle = write_bundle(path, staged, facts)
    for file in staged.iterdir():
        file.unlink()
    staged.rmdir()
    return bundle
