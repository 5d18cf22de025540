"""Export a member to an ONNX graph.

    PIXELS  uint8 [batch, height, width, 3]  →  LOGITS  float32 [batch, classes]

The graph includes normalisation: clients send a quarter of the bytes and can't normalise wrongly.
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
    """Member with normalisation: uint8 pixels `[batch, height, width, 3]` → float32 logits `[batch, classes]`."""

    def __init__(self, model: nn.Module, image: ImageSpec) -> None:
        super().__init__()
        self.model = model
        self.image = image

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise `pixels` and return logits."""
        logits: Tensor = self.model(normalise(pixels, self.image))
        return logits


def onnx_from_model(model: PixelModel, path: Path) -> None:
    """Write `model` to `path` as one ONNX file of opset 20 with a dynamic batch dimension, and validate it.

    Raises:
        onnx.checker.ValidationError: the exported graph is not valid ONNX.
    """
    # A batch of 2, because the exporter would treat a batch of 1 as a constant.
    sample = torch.zeros(2, model.image.height, model.image.width, 3, dtype=torch.uint8)
    onnx_from_module(model, sample, path, (INPUT_PIXELS,), (LOGITS,))


def onnx_from_module(
    module: nn.Module, sample: Tensor, path: Path, inputs: tuple[str], outputs: tuple[str, ...]
) -> None:
    """Write a module with one input to `path` as one ONNX file with a dynamic batch dimension, and validate it.

    Args:
        module: Module to export.
        sample: Example input with a batch of at least 2.
        path: File for the graph.
        inputs: Name of the input.
        outputs: Names of the outputs.

    Raises:
        onnx.checker.ValidationError: the exported graph is not valid ONNX.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # The exporter warns about its own deprecated calls; the graph is checked below and by parity.
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
