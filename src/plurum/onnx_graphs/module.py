"""A stored ONNX graph as a PyTorch module, computed by ONNX Runtime on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from plurum.errors import needs_extra
from plurum.onnx_graphs.telemetry import import_onnxruntime

__all__ = ["OnnxModel", "session_of"]


def session_of(graph: bytes) -> Any:
    """Return an ONNX Runtime session on the CPU for a serialised graph.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
    """
    with needs_extra("cpu"):
        onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    # Errors only: every graph is compared with its original.
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


class OnnxModel(nn.Module):
    """Graph of a member as a module: normalised images `[batch, 3, height, width]` → logits `[batch, classes]`.

    It computes on the CPU, whatever the device of the images, and records no gradients.

    Args:
        graph: Serialised ONNX model with the input IMAGES and the output LOGITS, and FEATURES if it has features.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
    """

    def __init__(self, graph: bytes) -> None:
        super().__init__()
        self.graph = graph
        self._session = session_of(graph)

    @property
    def has_features(self) -> bool:
        """True if the graph has the output FEATURES."""
        return len(self._session.get_outputs()) > 1

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, float32 `[batch, classes]`."""
        return self._run(images, ["LOGITS"])[0]

    def logits_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits, and the features, float32 `[batch, features]`."""
        logits, features = self._run(images, ["LOGITS", "FEATURES"])
        return logits, features

    def _run(self, images: Tensor, outputs: list[str]) -> list[Tensor]:
        values = self._session.run(outputs, {"IMAGES": images.detach().cpu().float().numpy()})
        return [torch.from_numpy(value).to(images.device) for value in values]
