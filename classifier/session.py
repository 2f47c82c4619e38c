"""The home of `onnxruntime`: one graph, one thread a run, many runs at once.

`run` releases the GIL, so requests in parallel threads use all cores. Each run uses one intra-op thread and no
spinning: with spinning on, two busy sessions slowed each other three to five times (docs/performance.md).

Knows nothing of text, calibration or policies.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from classifier.errors import BundleCorrupt

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TIERS = 4


class Session:
    """A loaded model graph.

    Args:
        path: an ONNX sequence classifier with inputs `INPUTS`, (batch, length) int64, and one output, (batch, 4).
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
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own classes are many and private
            raise BundleCorrupt(
                f"{path}: onnxruntime cannot load it ({type(error).__name__}); export it again"
            ) from error
        names = {i.name for i in self._session.get_inputs()}
        outputs = self._session.get_outputs()
        if not names <= set(INPUTS) or "input_ids" not in names or len(outputs) != 1 or outputs[0].shape[-1] != TIERS:
            raise BundleCorrupt(
                f"{path}: expected inputs {list(INPUTS)} and one output of {TIERS} logits, found inputs "
                f"{sorted(names)} and outputs {[(o.name, o.shape) for o in outputs]}; export it again"
            )
        self._inputs = tuple(name for name in INPUTS if name in names)
        self._outputs = [outputs[0].name]

    def run(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        token_type_ids: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """Logits of a batch: (batch, length) int64 each → (batch, 4) float32. Safe from any thread."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        logits: NDArray[np.float32] = self._session.run(self._outputs, {name: given[name] for name in self._inputs})[0]
        return logits


def onnxruntime_version() -> str:
    """Version of the runtime that runs the graph."""
    return str(onnxruntime.__version__)
