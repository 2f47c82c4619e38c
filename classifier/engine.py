"""Composition: request → inputs → tokens → logits → probabilities → decision. No I/O after loading.

Online and offline meet here: the service, bulk labelling and evaluation all use this class, one request a run, so
that they answer alike. (A dynamically quantised graph is not batch-invariant: its activation scales are taken over the
batch.)

Knows nothing of ids, storage, queues or the wire.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classifier.bundle import Bundle, input_mismatch, read_bundle
from classifier.errors import BundleCorrupt, BundleError, InvalidRequest
from classifier.inputs import ModelInput, render
from classifier.policy import Policy, decide
from classifier.session import Session
from classifier.steering import without_steering
from classifier.texts import encodable
from classifier.tokenizer import BEFORE_TEXT, Encoded, Tokenizer
from classifier.types import Decision, Request, Scores, Timings


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that is ready for the model.

    Attributes:
        request: as it came.
        policy: the policy that will choose.
        input: what the model reads, as text.
        encoded: what the model reads, as ids.
    """

    request: Request
    policy: Policy
    input: ModelInput
    encoded: Encoded


class Engine:
    """A loaded bundle that classifies. Safe from any thread.

    Attributes:
        bundle: what it was built from.
        golden_ok: whether the golden inputs were answered within the manifest's tolerance on this machine.
        golden_message: empty, or what differed and what follows.
    """

    def __init__(self, bundle: Bundle, tokenizer: Tokenizer, session: Session) -> None:
        self.bundle = bundle
        self._tokenizer = tokenizer
        self._session = session
        self.golden_ok = True
        self.golden_message = ""

    @classmethod
    def from_pretrained(cls, path: str | Path, *, threads: int = 1, other_inputs: bool = False) -> Engine:
        """The engine of the bundle in folder `path`: verified, loaded, warmed by its golden inputs.

        Args:
            path: a bundle's folder; nothing is fetched.
            threads: intra-op threads of one run. More than one makes a single answer faster and the machine slower.
            other_inputs: whether one made for another `INPUT_VERSION` will do. Its policies promise nothing about what
                this version makes of a request: for recalibration, never for serving.

        Raises:
            BundleNotFound: there is no bundle there.
            BundleCorrupt: it is not what its manifest says, or was made for other inputs.
            BundleError: the folder's path is not UTF-8.
        """
        if encodable(str(path)) != str(path):
            raise BundleError(f"{path}: tokenizers and onnxruntime open no path that is not UTF-8; rename the folder")
        bundle = read_bundle(path)
        if not other_inputs and (mismatch := input_mismatch(bundle)):
            raise BundleCorrupt(mismatch)
        try:
            max_tokens = int(bundle.manifest["max_tokens"])
            golden, tolerance = list(bundle.manifest["golden"]), float(bundle.manifest["golden_tolerance"])
            # None, or wider than probabilities can differ, would be no check; longer than the graph reads, no answer;
            # too short for any text, one that is always the same.
            longest = int(bundle.config.get("max_position_embeddings", max_tokens))
            if not golden or not 0 <= tolerance < 1 or not BEFORE_TEXT < max_tokens <= longest:
                raise ValueError("out of range")  # noqa: TRY301 - as what cannot be read
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise BundleCorrupt(
                f"{path}: manifest.json lacks max_tokens, golden_tolerance or golden inputs, or has others there; "
                "export it again"
            ) from error
        try:
            tokenizer = Tokenizer.from_file(bundle.path / "tokenizer.json", max_tokens)
            engine = cls(bundle, tokenizer, Session(bundle.path / "model.onnx", threads=threads))
            engine._replay(golden, tolerance)
        except (BundleError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # onnxruntime's own are many and private; a panic of tokenizers is no Exception
            raise BundleCorrupt(
                f"{path}: manifest.json holds golden inputs that are none, or that its tokenizer and graph cannot "
                f"answer ({type(error).__name__}); export it again"
            ) from error
        return engine

    @property
    def bundle_version(self) -> str:
        """Content hash of the bundle."""
        return self.bundle.version

    @property
    def calibration_revision(self) -> str:
        """Hash of the bundle's calibration."""
        return self.bundle.calibration.revision

    @property
    def policies(self) -> Mapping[str, Policy]:
        """The bundle's policies by name."""
        return self.bundle.policies

    @property
    def default_policy(self) -> str:
        """Name of the policy used where a request names none."""
        return self.bundle.default_policy

    def prepare(self, request: Request) -> Prepared:
        """What the model reads of `request`; bad input stops here.

        Raises:
            InvalidRequest: the policy is not one of the bundle's.
            TypeError: it is no request, such as a text.
        """
        if not isinstance(request, Request):
            raise TypeError(
                f"request is of type {type(request).__name__}; give a Request, as Request.from_text makes one"
            )
        name = request.policy or self.bundle.default_policy
        policy = self.bundle.policies.get(name)
        if policy is None:
            raise InvalidRequest("policy", f"is not one of this bundle's: {', '.join(sorted(self.bundle.policies))}")
        model_input = render(request)
        return Prepared(request, policy, model_input, self._tokenizer.encode(model_input))

    def score(self, prepared: Prepared) -> Scores:
        """The model's answer: one run, which releases the GIL; another where the text steers (`rate`)."""
        encoded = prepared.encoded
        logits = rate(prepared.input, encoded, self._tokenizer, self._session)
        return Scores(
            logits=tuple(logits.tolist()),
            probabilities=tuple(self.bundle.calibration.apply(logits).tolist()),
            input_tokens=encoded.input_ids.shape[1],
            truncated=encoded.truncated or prepared.input.truncated,
        )

    def rated(self, prepared: Prepared) -> ModelInput:
        """What of a request is rated: all that the model reads of it, or what is left where its text steers."""
        return _rated(prepared.input, prepared.encoded, self._tokenizer, self._session)[0]

    def decide(self, prepared: Prepared, scores: Scores, draw: float | None = None) -> Decision:
        """The policy's choice.

        Args:
            prepared: from `prepare`.
            scores: from `score`.
            draw: a uniform number in [0, 1) for the policy's exploration; None never explores.
        """
        request, policy = prepared.request, prepared.policy
        return decide(
            scores.probabilities,
            policy,
            floor=request.floor,
            ceiling=request.ceiling,
            group=policy.group_of(request.labels, prepared.input.script),
            draw=draw if policy.may_explore(request.labels) else None,
            golden_ok=self.golden_ok,
            bundle_version=self.bundle.version,
            calibration_revision=self.bundle.calibration.revision,
            truncated=scores.truncated,
            input_tokens=scores.input_tokens,
        )

    def classify(self, request: Request, draw: float | None = None) -> Decision:
        """`prepare`, `score` and `decide` in a row, with timings.

        Raises:
            InvalidRequest: the policy is not one of the bundle's.
        """
        start = time.perf_counter()
        prepared = self.prepare(request)
        before_model = time.perf_counter()
        scores = self.score(prepared)
        model = time.perf_counter() - before_model
        decision = self.decide(prepared, scores, draw)
        timings = Timings(prepare=before_model - start, model=model, total=time.perf_counter() - start)
        object.__setattr__(decision, "timings", timings)  # nobody else holds it yet
        return decision

    def logits(self, request: Request) -> NDArray[np.float32]:
        """The model's logits before calibration: (4,) float32."""
        return np.array(self.score(self.prepare(request)).logits, dtype=np.float32)

    def _replay(self, golden: Sequence[Mapping[str, Any]], tolerance: float) -> None:
        """Answers the golden inputs: warms the session, and tells whether this processor's arithmetic is the same."""
        worst = 0.0
        for case in golden:
            found = self.score(self.prepare(Request.from_json(case))).probabilities
            worst = float(np.maximum(worst, np.abs(np.subtract(found, case["probabilities"])).max()))
        if not worst <= tolerance:  # NaN is no agreement
            self.golden_ok = False
            self.golden_message = (
                f"golden inputs differ by up to {worst:.4f} (tolerance {tolerance:g}): this processor's int8 sums "
                "are not those that the policies were fitted on; answers carry guaranteed=false until "
                "'python -m training calibrate' is run here"
            )


def rate(model_input: ModelInput, encoded: Encoded, tokenizer: Tokenizer, session: Session) -> NDArray[np.float32]:
    """Logits of one request, of what is left of it where its text steers: (4,) float32."""
    return _rated(model_input, encoded, tokenizer, session)[1]


def _rated(
    model_input: ModelInput, encoded: Encoded, tokenizer: Tokenizer, session: Session
) -> tuple[ModelInput, NDArray[np.float32]]:
    logits, steering = session.run(encoded.input_ids, encoded.attention_mask, encoded.token_type_ids)
    left = None if steering is None else without_steering(model_input, encoded, steering[0], tokenizer)
    if left is not None:
        again = tokenizer.encode(left)
        logits, _ = session.run(again.input_ids, again.attention_mask, again.token_type_ids)
    return left or model_input, logits[0]
