"""Triton's preprocess model: encoded images in, the pixels that members see out.

Export copies it with `images.py` and `ensemble.json` into `preprocess/1`; it needs NumPy and Pillow, not Plurum.

    IMAGE   BYTES [batch, 1]                       an encoded JPEG, PNG or TIFF each
    PIXELS  UINT8 [batch, height, width, 3]        RGB
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

if TYPE_CHECKING:
    from plurum import images
else:
    import images


class TritonPythonModel:
    """One instance: decodes the requests it is given, one image after the other."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the image rule from the contract beside this file."""
        here = Path(args["model_repository"], args["model_version"])
        image = json.loads((here / "ensemble.json").read_text(encoding="utf-8"))["image"]
        self.rule = {key: image[key] for key in ("height", "width", "colour", "resize")}

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer every request on its own: a broken image fails its request, not its neighbours'."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        encoded = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy().reshape(-1)
        pixels = []
        for index, data in enumerate(encoded):
            try:
                pixels.append(images.pixels_from_image(images.open_image(data), **self.rule))
            except images.UnreadableImageError as error:
                place = f"IMAGE[{index}] of {len(encoded)}: " if len(encoded) > 1 else "IMAGE: "
                fault = pb_utils.TritonError(place + str(error), pb_utils.TritonError.INVALID_ARG)
                return pb_utils.InferenceResponse(output_tensors=[], error=fault)
        # Nearly all requests hold one image, which need not be copied to be a batch.
        batch = pixels[0][None] if len(pixels) == 1 else np.stack(pixels)
        return pb_utils.InferenceResponse([pb_utils.Tensor("PIXELS", batch)])
