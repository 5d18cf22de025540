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
from plurum.models import normalise
from plurum.spec import INPUT_PIXELS, LOGITS, ImageSpec

__all__ = ["PixelModel", "onnx_from_model", "onnx_from_module"]


class PixelModel(nn.Module):
    """A member that takes pixels: uint8 `[batch, height, width, 3]` → float32 logits `[batch, classes]`."""

    def __init__(self, model: nn.Module, image: ImageSpec) -> None:
        super().__init__()
        self.model = model
        self.image = image

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise and classify."""
        logits: Tensor = self.model(normalise(pixels, self.image))
        return logits


def onnx_from_model(model: PixelModel, path: Path) -> None:
    """Write `model` to `path` as one ONNX file, opset 20, batch dimension dynamic, and check it against the standard.

    Raises:
        onnx.checker.ValidationError: the exporter made a graph that is no valid ONNX.
    """
    # A batch of 2: with 1 the exporter would take the batch for a constant.
    sample = torch.zeros(2, model.image.height, model.image.width, 3, dtype=torch.uint8)
    onnx_from_module(model, sample, path, (INPUT_PIXELS,), (LOGITS,))


def onnx_from_module(
    module: nn.Module, sample: Tensor, path: Path, inputs: tuple[str], outputs: tuple[str, ...]
) -> None:
    """Write a module of one input to `path` as one ONNX file whose first dimensions are free, and check it.

    Args:
        module: To export.
        sample: Its input, of a batch of 2 or more.
        path: Where the graph goes.
        inputs: Name of the input.
        outputs: Names of the outputs.

    Raises:
        onnx.checker.ValidationError: the exporter made a graph that is no valid ONNX.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # The exporter's own deprecations; what counts is checked below and in parity.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            (sample,),
            path,
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=OPSET,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    onnx.checker.check_model(path, full_check=True)
