"""Export members to ONNX and to a Triton model repository; every artefact is checked against its PyTorch model.

Names that need PyTorch are imported on first use.
"""

from __future__ import annotations

import importlib
import typing

from plurum.export.settings import Budget, ExportSettings

if typing.TYPE_CHECKING:
    from plurum.export.engines.build import build_engines, engine_from_onnx
    from plurum.export.graphs.float16 import fp16_from_onnx, overflow_audit
    from plurum.export.graphs.fused import fused_from_onnx
    from plurum.export.graphs.member import PixelModel, onnx_from_model
    from plurum.export.graphs.quantisation import int8_from_onnx
    from plurum.export.repository.assembly import ExportResult, repository_from_onnx, repository_from_run
    from plurum.export.repository.checkpoints import ExportImages, repository_from_checkpoints
    from plurum.export.repository.parity import Parity, check_parity, member_parity, vote_parity

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

# Module of each name that is imported on first use. `Exported` and `Labelled` are names of earlier versions.
_MODULES = {
    "ExportImages": "repository.checkpoints",
    "ExportResult": "repository.assembly",
    "Parity": "repository.parity",
    "PixelModel": "graphs.member",
    "build_engines": "engines.build",
    "check_parity": "repository.parity",
    "engine_from_onnx": "engines.build",
    "fp16_from_onnx": "graphs.float16",
    "fused_from_onnx": "graphs.fused",
    "int8_from_onnx": "graphs.quantisation",
    "member_parity": "repository.parity",
    "onnx_from_model": "graphs.member",
    "overflow_audit": "graphs.float16",
    "repository_from_checkpoints": "repository.checkpoints",
    "repository_from_onnx": "repository.assembly",
    "repository_from_run": "repository.assembly",
    "vote_parity": "repository.parity",
}
_FORMER = {"Exported": "ExportResult", "Labelled": "ExportImages"}


def __getattr__(name: str) -> object:
    present = _FORMER.get(name, name)
    if present not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"plurum.export.{_MODULES[present]}"), present)
