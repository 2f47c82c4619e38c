"""The home of `onnxruntime`: one graph, one thread a run, many runs at once.

`run` releases the GIL, so requests in parallel threads use all cores. Each run uses one intra-op thread and no
spinning: with spinning on, two busy sessions slowed each other three to five times (docs/performance.md). Sums of int8
are exact on every x86 processor: without VNNI the quickest way to sum saturates at 16 bits (docs/design/0003-graph.md).

Knows nothing of text, calibration or policies.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from classifier.errors import BundleCorrupt
from classifier.types import TIERS

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
STEERING = "steering"
"""The output that says of each entry how likely it is to steer (`classifier.steering`)."""


class Session:
    """A loaded model graph.

    Args:
        path: an ONNX sequence classifier with inputs `INPUTS`, (batch, length) int64, whose first output is the logits,
            (batch, 4); a second one may be `STEERING`, (batch, length).
        threads: intra-op threads of one run.

    Raises:
        BundleCorrupt: the file is no such graph.
    """

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.add_session_config_entry("session.x64quantprecision", "1")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own classes are many and private
            raise BundleCorrupt(
                f"{path}: onnxruntime cannot load it ({type(error).__name__}); export it again"
            ) from error
        names = {i.name for i in self._session.get_inputs()}
        logits, *more = outputs = self._session.get_outputs()
        known = "input_ids" in names and names <= set(INPUTS) and logits.shape[-1] == len(TIERS)
        if not known or [output.name for output in more] not in ([], [STEERING]):
            raise BundleCorrupt(
                f"{path}: expected inputs {list(INPUTS)} and {len(TIERS)} logits, perhaps {STEERING!r} behind them; "
                f"found inputs {sorted(names)} and outputs {[(o.name, o.shape) for o in outputs]}; export it again"
            )
        self._inputs = tuple(name for name in INPUTS if name in names)
        self._outputs = [logits.name, *(output.name for output in more)]

    def run(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        token_type_ids: NDArray[np.int64],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Logits of a batch, and how likely each entry steers where the graph says it. Safe from any thread.

        Returns:
            (batch, 4) float32, and (batch, length) float32 log-odds or None.
        """
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        logits, *steering = self._session.run(self._outputs, {name: given[name] for name in self._inputs})
        return logits, steering[0] if steering else None


def onnxruntime_version() -> str:
    """Version of the runtime that runs the graph."""
    return str(onnxruntime.__version__)
