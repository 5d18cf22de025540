"""Triton's voter: the members' logits in, one answer and how uncertain it is out.

Export copies it with `voting.py`, `metrics.py` and `ensemble.json` into `voter/1`; it needs NumPy, not Plurum.

    LOGITS_0 … LOGITS_{M-1}  FP32 [batch, C]       one per member, in the contract's order
    PROBABILITIES, LABEL, ENTROPY, DISAGREEMENT, STD, MEMBER_PROBABILITIES, PREDICTION_SET, REVIEW
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from plurum import voting
    from plurum.model_repository.voter.metrics import Answers, Metrics
else:
    import voting
    from metrics import Answers, Metrics

# `plurum serve` asks under this request id whether the ensemble answers; that is no prediction for anyone.
PROBE_ID = "plurum-probe"


class TritonPythonModel:
    """The only instance: one vote for all requests of a batch."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the voting rule from the contract beside this file."""
        here = Path(args["model_repository"], args["model_version"])
        contract = json.loads((here / "ensemble.json").read_text(encoding="utf-8"))
        self.members = [member["name"] for member in contract["members"]]
        self.inputs = [f"LOGITS_{index}" for index in range(len(self.members))]
        self.rule = voting.rule_from_ensemble(contract)
        self.classes = np.array([name.encode() for name in contract["classes"]], dtype=np.object_)
        self.metrics = Metrics(here)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Vote once over everything that came together, then cut the verdict into the requests' answers."""
        logits = [self._logits(request) for request in requests]
        verdict = voting.decide(voting.softmax(np.concatenate(logits)), self.rule)
        outputs = self._outputs(verdict)
        responses = []
        counted = np.zeros(len(verdict.label), dtype=np.bool_)
        start = 0
        for request, asked in zip(requests, logits, strict=True):
            rows = slice(start, start + len(asked))
            start = rows.stop
            silent = [name for name, rest in zip(self.members, np.isnan(asked).any(axis=(0, 2)), strict=True) if rest]
            if silent:
                fault = pb_utils.TritonError(f"no vote: NaN from {', '.join(silent)}", pb_utils.TritonError.INTERNAL)
                responses.append(pb_utils.InferenceResponse(output_tensors=[], error=fault))
                continue
            counted[rows] = request.request_id() != PROBE_ID
            tensors = [pb_utils.Tensor(name, values[rows]) for name, values in outputs.items()]
            responses.append(pb_utils.InferenceResponse(tensors))
        self.metrics.observe(
            Answers(
                verdict.label,
                verdict.probabilities,
                verdict.disagreement,
                verdict.member_probabilities,
                verdict.review,
                counted,
            )
        )
        return responses

    def finalize(self) -> None:
        """Count what was answered last."""
        self.metrics.close()

    def _logits(self, request: Any) -> Any:
        """Return a request's logits, [batch, members, classes]."""
        tensors = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs]
        return np.stack(tensors, axis=1)

    def _outputs(self, verdict: voting.Verdict) -> dict[str, Any]:
        """Return every output over the whole batch, in the types of the wire."""
        return {
            "PROBABILITIES": verdict.probabilities.astype(np.float32),
            "LABEL": self.classes[verdict.label][:, None],
            "ENTROPY": verdict.entropy.astype(np.float32)[:, None],
            "DISAGREEMENT": verdict.disagreement.astype(np.float32)[:, None],
            "STD": verdict.std.astype(np.float32),
            "MEMBER_PROBABILITIES": verdict.member_probabilities.astype(np.float32),
            "PREDICTION_SET": verdict.prediction_set,
            "REVIEW": verdict.review[:, None],
        }
