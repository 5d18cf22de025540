"""Convert Triton's responses to the JSON of `/predict`, with the field names of `plurum.client.Prediction`."""

from __future__ import annotations

from typing import Any

from plurum.predictions.prediction import predictions_from_tensors
from plurum.predictions.wire import tensors_from_response
from plurum.serving.gateway.triton import ServedEnsemble
from plurum.spec import release_from_version

__all__ = ["predictions_from_response"]


def predictions_from_response(response: Any, served: ServedEnsemble, images: int) -> list[dict[str, Any]]:
    """Return one JSON object per image.

    Raises:
        ServerError: the response comes from another release, whose classes or members differ from those of `served`.
    """
    release = release_from_version(response.model_version)
    tensors = tensors_from_response(response)
    predictions = predictions_from_tensors(tensors, served.classes, served.members, images, release)
    return [one.to_dict() | {"ensemble": served.ensemble} for one in predictions]
