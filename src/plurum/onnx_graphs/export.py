"""Export of PyTorch modules to ONNX."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from plurum.conventions import OPSET

__all__ = ["onnx_from_module"]


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
