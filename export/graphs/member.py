"""Export a member to an ONNX graph.

    PIXELS  uint8 [batch, height, width, 3]  →  LOGITS  float32 [batch, classes]
                                                NOVELTY  float32 [batch, 1], if the member has a detector

The graph includes normalisation: clients send a quarter of the bytes and can't normalise wrongly.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from plurum.export.settings import OPSET
from plurum.models import normalise
from plurum.spec import INPUT_PIXELS, LOGITS, NOVELTY, ImageSpec

__all__ = ["PixelModel", "detector_nodes", "onnx_from_model", "onnx_from_module"]


class PixelModel(nn.Module):
    """Member with normalisation: uint8 pixels `[batch, height, width, 3]` → float32 logits `[batch, classes]`.

    With a detector, it also returns the novelty, float32 `[batch, 1]`.

    Args:
        model: Classifier, images → logits; with a detector images → logits and features.
        image: Image spec of the member.
        detector: Detector of outliers, features `[batch, features]` → novelty `[batch, 1]`; None without one.
    """

    def __init__(self, model: nn.Module, image: ImageSpec, detector: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model
        self.image = image
        self.detector = detector

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return (LOGITS,) if self.detector is None else (LOGITS, NOVELTY)

    def forward(self, pixels: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Normalise `pixels` and return logits, with the novelty if there is a detector."""
        images = normalise(pixels, self.image)
        if self.detector is None:
            only: Tensor = self.model(images)
            return only
        logits, features = self.model(images)
        return logits, self.detector(features)


def detector_nodes(graph: Any) -> list[Any]:
    """Return the nodes of a member's graph that compute only NOVELTY, not LOGITS; none without a detector."""
    makers = {name: node for node in graph.node for name in node.output}

    def reach(output: str) -> dict[int, Any]:
        found: dict[int, Any] = {}
        waiting = [output]
        while waiting:
            node = makers.get(waiting.pop())
            if node is not None and id(node) not in found:
                found[id(node)] = node
                waiting.extend(node.input)
        return found

    classifying = reach(LOGITS)
    return [node for key, node in reach(NOVELTY).items() if key not in classifying]


def onnx_from_model(model: PixelModel, path: Path) -> None:
    """Write `model` to `path` as one ONNX file of opset 20 with a dynamic batch dimension, and validate it.

    Raises:
        onnx.checker.ValidationError: the exported graph is not valid ONNX.
    """
    # A batch of 2, because the exporter would treat a batch of 1 as a constant.
    sample = torch.zeros(2, model.image.height, model.image.width, 3, dtype=torch.uint8)
    onnx_from_module(model, (sample,), path, (INPUT_PIXELS,), model.outputs)


def onnx_from_module(
    module: nn.Module, samples: tuple[Tensor, ...], path: Path, inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> None:
    """Write a module to `path` as one ONNX file with a dynamic batch dimension, and validate it.

    Args:
        module: Module to export.
        samples: Example of each input, with a batch of at least 2.
        path: File for the graph.
        inputs: Names of the inputs.
        outputs: Names of the outputs.

    Raises:
        onnx.checker.ValidationError: the exported graph is not valid ONNX.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    batch = {0: torch.export.Dim("batch")}
    with warnings.catch_warnings():
        # The exporter warns about its own deprecated calls; the graph is checked below and by parity.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            samples,
            path,
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=OPSET,
            dynamic_shapes=(batch,) * len(samples),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    onnx.checker.check_model(path, full_check=True)
