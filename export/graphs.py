"""From a member to its ONNX graph.

    PIXELS  uint8 [batch, height, width, 3]  →  LOGITS  float32 [batch, classes]

Normalisation is inside: a quarter of the bytes on the wire, and no client can get it wrong.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from plurum.export.settings import OPSET
from plurum.models import normalised
from plurum.spec import INPUT_PIXELS, LOGITS, ImageSpec

__all__ = ["PixelModel", "onnx_from_model"]


class PixelModel(nn.Module):
    """A member that takes pixels: uint8 `[batch, height, width, 3]` → float32 logits `[batch, classes]`."""

    def __init__(self, model: nn.Module, image: ImageSpec) -> None:
        super().__init__()
        self.model = model
        self.image = image

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise and classify."""
        logits: Tensor = self.model(normalised(pixels, self.image))
        return logits


def onnx_from_model(model: PixelModel, path: Path) -> None:
    """Write `model` to `path` as one ONNX file, opset 20, batch dimension dynamic, and check it against the standard.

    Raises:
        onnx.checker.ValidationError: the exporter made a graph that is no valid ONNX.
    """
    # A batch of 2: with 1 the exporter would take the batch for a constant.
    sample = torch.zeros(2, model.image.height, model.image.width, 3, dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # The exporter's own deprecations; what counts is checked below and in parity.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model.eval(),
            (sample,),
            path,
            input_names=[INPUT_PIXELS],
            output_names=[LOGITS],
            opset_version=OPSET,
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    onnx.checker.check_model(path, full_check=True)
