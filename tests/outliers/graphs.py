"""Verdicts of a repository's own graphs, computed by the test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from plurum.export.graphs.runtimes import Artefact, outputs_from_artefact
from plurum.export.repository.parity import verdict_from_members
from plurum.export.settings import Backend, Execution
from plurum.spec import Ensemble
from plurum.voting import Verdict, softmax

__all__ = ["BACKENDS", "expected_verdict"]

BACKENDS: tuple[Backend, ...] = ("onnxruntime", "openvino")


def expected_verdict(
    repository: Path, ensemble: Ensemble, pixels: npt.NDArray[np.uint8], execution: Execution
) -> Verdict:
    """Return the verdict in this process, from the repository's own graphs."""
    found = [
        outputs_from_artefact(
            Artefact(member.name, *execution, repository / member.name / "1" / "model.onnx", has_novelty), pixels
        )
        for member, has_novelty in zip(ensemble.members, ensemble.detecting, strict=True)
    ]
    return verdict_from_members([softmax(one.logits) for one in found], ensemble.rule, [one.novelty for one in found])
