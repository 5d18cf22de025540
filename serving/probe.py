"""A real question: Triton says ready while a model's process is dead, so only an answer counts."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from plurum.spec import IMAGE, INPUT_PIXELS, Ensemble

__all__ = ["PROBE_ID", "ask"]

# The voter leaves requests of this name out of its metrics.
PROBE_ID = "plurum-probe"


def ask(url: str, ensemble: Ensemble, models: list[str], timeout_s: float) -> None:
    """Ask each of the served `models` that takes images about a grey one.

    Args:
        url: HOST:PORT of the gRPC endpoint.
        ensemble: States the size of the image.
        models: Names of models in the repository.
        timeout_s: For each question.

    Raises:
        InferenceServerException: there was no answer.
    """
    from tritonclient.grpc import InferenceServerClient

    pixels = np.full((1, ensemble.image.height, ensemble.image.width, 3), 128, np.uint8)
    questions = {
        "ensemble": _image_input(pixels[0]),
        "ensemble_pixels": _pixel_input(pixels),
        "ensemble_fused": _pixel_input(pixels),
    }
    with InferenceServerClient(url) as client:
        for model, question in questions.items():
            if model in models:
                client.infer(model, [question], request_id=PROBE_ID, client_timeout=timeout_s)


def _pixel_input(pixels: Any) -> Any:
    from tritonclient.grpc import InferInput

    tensor = InferInput(INPUT_PIXELS, list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    return tensor


def _image_input(pixels: Any) -> Any:
    from tritonclient.grpc import InferInput

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    tensor = InferInput(IMAGE, [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[file.getvalue()]], dtype=np.object_))
    return tensor
