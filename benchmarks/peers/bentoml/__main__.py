"""BentoML with ONNX Runtime: a worker a core, as its documentation says for CPUs.

bentoml serve plurum.benchmarks.peers.bentoml.__main__:Ensemble
"""
# mypy: disable-error-code="import-not-found, import-untyped, misc, untyped-decorator"

from __future__ import annotations

from typing import Annotated, Any

import bentoml
from PIL.Image import Image

from plurum.benchmarks.peers.answering import OnnxMembers, job_from_environment

__all__ = ["Ensemble"]


@bentoml.service(workers=job_from_environment().workers)
class Ensemble:
    """The members of one worker."""

    def __init__(self) -> None:
        self.members = OnnxMembers(job_from_environment())

    @bentoml.api
    def predict(self, image: Annotated[Image, bentoml.validators.ContentType("image/jpeg")], /) -> dict[str, Any]:
        """Answer a JPEG in the body; BentoML opens it."""
        return self.members.answer_to_image(image)
