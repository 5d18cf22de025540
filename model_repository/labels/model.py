"""Triton's labels model: gives the fused graph's answers their class names, and counts them.

Export copies it with `labels.py`, `voting.py`, `metrics.py` and `ensemble.json` into `labels/1`; it needs NumPy, not
Plurum. A graph can't answer with strings on a GPU, and can't count.

    INDEX                        INT32 [batch, 1]: the winning class, from the fused graph
    LABEL                        BYTES [batch, 1]: its name
    PROBABILITIES … REVIEW       the fused graph's other answers, in and out as they are
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
    """The only instance: more would gain nothing."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the names from the contract beside this file."""
        self.labels = Labels(Path(args["model_repository"], args["model_version"]))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request on its own."""
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """Count what was answered last."""
        self.labels.close()

    def _answer(self, request: Any) -> Any:
        tensors = {tensor.name(): tensor for tensor in request.inputs()}
        answers = {name: one.as_numpy() for name, one in tensors.items()}
        try:
            names = self.labels.of(answers, [request.request_id()], [len(answers["INDEX"])])
        except NoVoteError as error:
            fault = pb_utils.TritonError(str(error), pb_utils.TritonError.INTERNAL)
            return pb_utils.InferenceResponse(output_tensors=[], error=fault)
        del tensors["INDEX"]
        return pb_utils.InferenceResponse([*tensors.values(), pb_utils.Tensor("LABEL", names)])
