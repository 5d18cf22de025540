"""Triton's labels model: add class names to the fused graph's predictions, and count them.

Export copies it with `labels.py`, `voting`, `metrics.py`, `audit.py` and `ensemble.json` into `labels/1`. It
requires NumPy, but not Plurum. A graph can't output strings on a GPU, and can't count.

    INDEX                        INT32 [batch, 1]: the decided class, from the fused graph
    LABEL                        BYTES [batch, 1]: name of the decided class
    PROBABILITIES … REVIEW       the fused graph's other outputs, passed through unchanged
    PIXELS → AUDIT               if `audit.json` states that images are drawn for audit
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from plurum.model_repository.labels.labels import Labels, NoVoteError
else:
    from labels import Labels, NoVoteError


class TritonPythonModel:
    """The single instance; more would not be faster."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the class names from the `ensemble.json` beside this file."""
        self.labels = Labels(Path(args["model_repository"], args["model_version"]))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Return a response to each request."""
        return [self._respond(request) for request in requests]

    def finalize(self) -> None:
        """Count the last predictions."""
        self.labels.close()

    def _respond(self, request: Any) -> Any:
        tensors = {tensor.name(): tensor for tensor in request.inputs()}
        outputs = {name: one.as_numpy() for name, one in tensors.items()}
        if self.labels.has_audit:
            outputs["AUDIT"] = self.labels.draw([outputs["PIXELS"]], [request.parameters()])
            del tensors["PIXELS"]
        try:
            names = self.labels.name_winners(outputs, [request.request_id()], [len(outputs["INDEX"])])
        except NoVoteError as error:
            fault = pb_utils.TritonError(str(error), pb_utils.TritonError.INTERNAL)
            return pb_utils.InferenceResponse(output_tensors=[], error=fault)
        del tensors["INDEX"]
        added = [pb_utils.Tensor("LABEL", names)]
        if self.labels.has_audit:
            added.append(pb_utils.Tensor("AUDIT", outputs["AUDIT"]))
        return pb_utils.InferenceResponse([*tensors.values(), *added])
