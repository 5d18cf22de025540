"""Triton's cascade model: run stages that are models of their own, such as TensorRT plans, through Triton.

Export copies it with `graph_model.py`, `stages.py` and `cores.py` into `fused/1`, for targets whose backend can't run
several graphs in one model. It requires only NumPy. The parameter `stages` of its config names the models of the
stages. Under a release's name, `fused-TAG`, it runs those of the release, `STAGE-TAG`.

    PIXELS    UINT8 [batch, height, width, 3]    → the outputs of the fused graph

Requests that arrive together go through the first stage as one batch, and only the images in doubt go on. Triton may
join them there with those of other instances.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from plurum.onnx_graphs.stages import Tensors
    from plurum.serving.backends.graph_model import GraphModel, ModelError, stage_files, timed_stages
else:
    from graph_model import GraphModel, ModelError, stage_files, timed_stages
    from stages import Tensors

_NAME = "fused"
# Triton's Python backend passes this refusal on as INTERNAL, and other errors with their codes.
_FULL_QUEUE = "Exceeds maximum queue size"


class TritonPythonModel(GraphModel):
    """One of several instances: while one waits for a stage, the others forward further requests."""

    library = "cascade"

    def initialize(self, args: dict[str, str]) -> None:
        """Read the names of tensors and stages from the config."""
        config = json.loads(args["model_config"])
        self.inputs = [entry["name"] for entry in config["input"]]
        self.outputs = [entry["name"] for entry in config["output"]]
        self.batched = config["max_batch_size"] > 0
        release = str(config["name"]).removeprefix(_NAME)
        self.stages = timed_stages(config, [partial(_run, f"{stage}{release}") for stage in stage_files(config)])


def _run(model: str, tensors: Tensors) -> Tensors:
    """Return all outputs of a stage by name.

    Raises:
        ModelError: the stage failed, or its queue is full.
    """
    request = pb_utils.InferenceRequest(
        model_name=model,
        # None named: all.
        requested_output_names=[],
        inputs=[pb_utils.Tensor(name, array) for name, array in tensors.items()],
        # On a GPU, outputs would stay in its memory.
        preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
    )
    response = request.exec()
    if response.has_error():
        error = response.error()
        is_full = _FULL_QUEUE in error.message()
        raise ModelError(f"{model}: {error.message()}", pb_utils.TritonError.UNAVAILABLE if is_full else error.code())
    # Copies: the memory is the response's.
    return {one.name(): np.array(one.as_numpy()) for one in response.output_tensors()}
