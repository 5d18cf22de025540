"""Members → ONNX → a model repository that Triton serves, each graph checked against the model it came from."""

from plurum.export.graphs import PixelModel, onnx_from_model
from plurum.export.parity import Parity, check_parity, parity_of
from plurum.export.repository import repository_from_onnx, repository_from_run
from plurum.export.settings import ExportSettings

__all__ = [
    "ExportSettings",
    "Parity",
    "PixelModel",
    "check_parity",
    "onnx_from_model",
    "parity_of",
    "repository_from_onnx",
    "repository_from_run",
]
