"""Export members to ONNX and to a Triton model repository; every artefact is checked against its PyTorch model."""

from plurum.export.engines.build import build_engines, engine_from_onnx
from plurum.export.graphs.float16 import fp16_from_onnx, overflow_audit
from plurum.export.graphs.fused import fused_from_onnx
from plurum.export.graphs.member import PixelModel, onnx_from_model
from plurum.export.graphs.quantisation import int8_from_onnx
from plurum.export.repository.assembly import ExportResult, repository_from_onnx, repository_from_run
from plurum.export.repository.checkpoints import ExportImages, repository_from_checkpoints
from plurum.export.repository.parity import Parity, check_parity, member_parity, vote_parity
from plurum.export.settings import Budget, ExportSettings

# Names of earlier versions.
Exported = ExportResult
Labelled = ExportImages

__all__ = [
    "Budget",
    "ExportImages",
    "ExportResult",
    "ExportSettings",
    "Exported",
    "Labelled",
    "Parity",
    "PixelModel",
    "build_engines",
    "check_parity",
    "engine_from_onnx",
    "fp16_from_onnx",
    "fused_from_onnx",
    "int8_from_onnx",
    "member_parity",
    "onnx_from_model",
    "overflow_audit",
    "repository_from_checkpoints",
    "repository_from_onnx",
    "repository_from_run",
    "vote_parity",
]
