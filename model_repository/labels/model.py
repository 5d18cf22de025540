"""Triton's labels model: gives the fused graph's answers their class names, and counts them.

Export copies it with `voting.py`, `metrics.py` and `ensemble.json` into `labels/1`; it needs NumPy, not Plurum. A graph
can't answer with strings on a GPU, and can't count.

    INDEX                        INT32 [batch, 1]: the winning class, from the fused graph
    LABEL                        BYTES [batch, 1]: its name
    PROBABILITIES … REVIEW       the fused graph's other answers, in and out as they are
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from plurum.model_repository.voter.metrics import Answers, Metrics
else:
    from metrics import Answers, Metrics

# `plurum serve` asks under this request id whether the ensemble answers; that is no prediction for anyone.
PROBE_ID = "plurum-probe"


class TritonPythonModel:
    """The only instance, as it counts what it answers."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the names from the contract beside this file."""
        here = Path(args["model_repository"], args["model_version"])
        contract = json.loads((here / "ensemble.json").read_text(encoding="utf-8"))
        self.members = [member["name"] for member in contract["members"]]
        self.classes = np.array([name.encode() for name in contract["classes"]], dtype=np.object_)
        self.metrics = Metrics(here)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request on its own."""
        return [self._answer(request) for request in requests]

    def finalize(self) -> None:
        """Count what was answered last."""
        self.metrics.close()

    def _answer(self, request: Any) -> Any:
        tensors = {tensor.name(): tensor for tensor in request.inputs()}
        index = tensors.pop("INDEX").as_numpy()
        names = ("PROBABILITIES", "DISAGREEMENT", "MEMBER_PROBABILITIES", "REVIEW")
        probabilities, disagreement, members, review = (tensors[name].as_numpy() for name in names)
        silent = [name for name, rest in zip(self.members, np.isnan(members).any(axis=(0, 2)), strict=True) if rest]
        if silent:
            fault = pb_utils.TritonError(f"no vote: NaN from {', '.join(silent)}", pb_utils.TritonError.INTERNAL)
            return pb_utils.InferenceResponse(output_tensors=[], error=fault)
        counted = np.full(len(index), request.request_id() != PROBE_ID)
        answers = Answers(index[:, 0], probabilities, disagreement[:, 0], members, review[:, 0], counted)
        # Copies: what came in lies in memory that the next request will be written to.
        self.metrics.observe(Answers(*map(np.array, answers)))
        label = pb_utils.Tensor("LABEL", self.classes[index[:, 0]][:, None])
        return pb_utils.InferenceResponse([*tensors.values(), label])
