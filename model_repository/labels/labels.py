"""Name the decided classes of the fused graph's predictions, and count them.

Export copies this module into `labels/1` for the labels model. If Plurum's OpenVINO model computes the fused graph,
`plurum serve` links it there too, which saves a step per prediction. Requires only NumPy, and Triton's module for
metrics.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from plurum.model_repository.voter.audit import draw_from_folder, patients_from_parameters
    from plurum.model_repository.voter.metrics import VoterMetrics
else:
    from audit import draw_from_folder, patients_from_parameters
    from metrics import VoterMetrics

# Id of health probes, which are not counted as predictions.
PROBE_ID = "plurum-probe"


class NoVoteError(ValueError):
    """A member or its detector returned NaN."""


class Labels:
    """Class names and metrics of an ensemble. Several processes may count at the same time: Triton adds them up.

    Args:
        folder: Folder with the ensemble's `ensemble.json`.
    """

    def __init__(self, folder: Path) -> None:
        metadata = json.loads((folder / "ensemble.json").read_text(encoding="utf-8"))
        self._members = [member["name"] for member in metadata["members"]]
        self._classes = np.array([name.encode() for name in metadata["classes"]], dtype=np.object_)
        self._audit = draw_from_folder(folder)
        self._metrics = VoterMetrics(folder)

    @property
    def has_audit(self) -> bool:
        """True if images are drawn for audit."""
        return self._audit is not None

    def draw(self, pixels: Sequence[Any], parameters: Sequence[str]) -> Any:
        """Return AUDIT, bool `[batch, 1]`, of requests that were inferred together; only with `has_audit`.

        Args:
            pixels: Images of each request, uint8 `[images, height, width, 3]`.
            parameters: Parameters of each request, as JSON.
        """
        if self._audit is None:
            raise ValueError("this ensemble draws no audits")
        pairs = zip(pixels, parameters, strict=True)
        return np.concatenate([self._audit.draw(own, patients_from_parameters(stated)) for own, stated in pairs])

    def name_winners(self, outputs: Mapping[str, Any], request_ids: Sequence[str], sizes: Sequence[int]) -> Any:
        """Return LABEL, BYTES `[batch, 1]`, and queue the predictions to be counted.

        Args:
            outputs: Arrays INDEX, PROBABILITIES, DISAGREEMENT, MEMBER_PROBABILITIES and REVIEW from the graph, OUTLIER
                and REVIEW_REASON if it tests for outliers, MEMBERS_USED if it is a cascade's, and AUDIT with
                `has_audit`; they may be overwritten afterwards.
            request_ids: Ids of the batch's requests.
            sizes: Number of images in each request.

        Raises:
            NoVoteError: a member or its detector returned NaN.
        """
        index = outputs["INDEX"][:, 0]
        members = outputs["MEMBER_PROBABILITIES"]
        if (is_nan := np.isnan(members)).any():
            names = [name for name, failed in zip(self._members, is_nan.any(axis=(0, 2)), strict=True) if failed]
            raise NoVoteError(f"no vote: NaN from {', '.join(names)}")
        if "OUTLIER" in outputs and np.isnan(outputs["OUTLIER"]).any():
            raise NoVoteError("no vote: NaN from a detector")
        counted = np.repeat([one != PROBE_ID for one in request_ids], sizes)
        predictions = {"label": index, "probabilities": outputs["PROBABILITIES"], "member_probabilities": members}
        predictions |= {"disagreement": outputs["DISAGREEMENT"][:, 0], "review": outputs["REVIEW"][:, 0]}
        if self.has_audit:
            predictions["audit"] = outputs["AUDIT"][:, 0]
        if "OUTLIER" in outputs:
            predictions |= {"outlier": outputs["OUTLIER"][:, 0], "review_reason": outputs["REVIEW_REASON"][:, 0]}
        if "MEMBERS_USED" in outputs:
            predictions["members_used"] = outputs["MEMBERS_USED"]
        # Copy the arrays: the next request may overwrite their memory.
        self._metrics.observe({name: np.array(values) for name, values in predictions.items()}, counted)
        return self._classes[index][:, None]

    def close(self) -> None:
        """Count the last predictions."""
        self._metrics.close()
