"""Triton's voter: combine the members' logits into one prediction with its uncertainty.

Export copies it with `voting`, `outputs.py`, `metrics.py`, `audit.py` and `ensemble.json` into `voter/1`. It requires
NumPy, but not Plurum. Its inputs are LOGITS_0 … LOGITS_{M-1}, FP32 [batch, C], one per member in the order of
`ensemble.json`; NOVELTY_i, FP32 [batch, 1], of each member with a detector; and PIXELS if `audit.json` states that
images are drawn for audit. Its outputs are those of `outputs.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from plurum import voting
    from plurum.model_repository.voter.audit import draw_from_folder, patients_from_parameters
    from plurum.model_repository.voter.metrics import VoterMetrics
    from plurum.predictions.outputs import tensors_from_verdict, voted_outputs
else:
    import voting
    from audit import draw_from_folder, patients_from_parameters
    from metrics import VoterMetrics
    from outputs import tensors_from_verdict, voted_outputs

# Id of health probes, which are not counted as predictions.
PROBE_ID = "plurum-probe"


class TritonPythonModel:
    """The single instance; it runs one vote for all requests of a batch."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the voting rule from the `ensemble.json` beside this file."""
        here = Path(args["model_repository"], args["model_version"])
        metadata = json.loads((here / "ensemble.json").read_text(encoding="utf-8"))
        self.members = [member["name"] for member in metadata["members"]]
        self.inputs = [f"LOGITS_{index}" for index in range(len(self.members))]
        self.rule = voting.rule_from_ensemble(metadata)
        # A member without a detector has no novelty.
        detectors = (metadata.get("outliers") or {}).get("members", ())
        self.novelties = [f"NOVELTY_{index}" if has else "" for index, has in enumerate(detectors)]
        # The voter runs all members, also of a cascade.
        self.has_cascade = metadata.get("cascade") is not None
        self.outputs = voted_outputs(has_outliers=self.rule.outliers is not None)
        self.classes = [name.encode() for name in metadata["classes"]]
        self.audit = draw_from_folder(here)
        self.metrics = VoterMetrics(here)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Vote once over all requests of the batch, then split the verdict into their responses."""
        logits = [self._logits(request) for request in requests]
        novelty = np.concatenate(
            [self._novelty(request, len(own)) for request, own in zip(requests, logits, strict=True)]
        )
        verdict = voting.decide(voting.softmax(np.concatenate(logits)), self.rule, novelty)
        tensors = tensors_from_verdict(verdict, self.classes, self.outputs)
        used = np.ones(verdict.member_probabilities.shape[:2], dtype=np.bool_)
        responses = []
        counted, drawn = np.zeros((2, len(verdict.label)), dtype=np.bool_)
        start = 0
        for request, own in zip(requests, logits, strict=True):
            rows = slice(start, start + len(own))
            start = rows.stop
            is_nan = np.isnan(own).any(axis=(0, 2))
            if self.novelties:
                is_nan |= np.isnan(novelty[rows]).any(axis=0)
            failed = [name for name, has_failed in zip(self.members, is_nan, strict=True) if has_failed]
            if failed:
                fault = pb_utils.TritonError(f"no vote: NaN from {', '.join(failed)}", pb_utils.TritonError.INTERNAL)
                responses.append(pb_utils.InferenceResponse(output_tensors=[], error=fault))
                continue
            counted[rows] = request.request_id() != PROBE_ID
            own_tensors = [pb_utils.Tensor(name, values[rows]) for name, values in tensors.items()]
            if self.has_cascade:
                own_tensors.append(pb_utils.Tensor("MEMBERS_USED", used[rows]))
            if self.audit is not None:
                pixels = pb_utils.get_input_tensor_by_name(request, "PIXELS").as_numpy()
                audit = self.audit.draw(pixels, patients_from_parameters(request.parameters()))
                own_tensors.append(pb_utils.Tensor("AUDIT", audit))
                drawn[rows] = audit[:, 0]
            responses.append(pb_utils.InferenceResponse(own_tensors))
        self.metrics.observe(vars(verdict) | {"audit": drawn, "members_used": used}, counted)
        return responses

    def finalize(self) -> None:
        """Count the last predictions."""
        self.metrics.close()

    def _logits(self, request: Any) -> Any:
        """Return a request's logits, FP32 `[batch, members, classes]`."""
        tensors = [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs]
        return np.stack(tensors, axis=1)

    def _novelty(self, request: Any, images: int) -> Any:
        """Return a request's novelty, FP32 `[batch, members]`, 0 for members without a detector."""
        found = np.zeros((images, len(self.novelties)), dtype=np.float32)
        for index, name in enumerate(self.novelties):
            if name:
                found[:, index] = pb_utils.get_input_tensor_by_name(request, name).as_numpy()[:, 0]
        return found
