"""BentoML with ONNX Runtime: a worker per core, as its documentation recommends for CPUs.

bentoml serve plurum.benchmarks.peers.bentoml.__main__:BentoMembers
"""
# mypy: disable-error-code="import-not-found, import-untyped, misc, untyped-decorator"

from __future__ import annotations

from typing import Annotated, Any

import bentoml
from PIL.Image import Image

from plurum.benchmarks.peers.application import OnnxMembers, job_from_environment

__all__ = ["BentoMembers"]


@bentoml.service(workers=job_from_environment().workers)
class BentoMembers:
    """The members of one worker."""

    def __init__(self) -> None:
        self.members = OnnxMembers(job_from_environment())

    @bentoml.api
    def predict(self, image: Annotated[Image, bentoml.validators.ContentType("image/jpeg")], /) -> dict[str, Any]:
        """Predict a JPEG in the body; BentoML decodes it."""
        return self.members.predict_image(image)
