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
    from plurum.export.repository.latencies import member_latencies
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
    "member_latencies",
    "member_parity",
    "onnx_from_model",
    "overflow_audit",
    "repository_from_checkpoints",
    "repository_from_onnx",
    "repository_from_run",
    "vote_parity",
]

# Names that are imported on first use, by module.
_MODULES = {
    "engines.build": ("build_engines", "engine_from_onnx"),
    "graphs.float16": ("fp16_from_onnx", "overflow_audit"),
    "graphs.fused": ("fused_from_onnx",),
    "graphs.member": ("PixelModel", "onnx_from_model"),
    "graphs.quantisation": ("int8_from_onnx",),
    "repository.assembly": ("ExportResult", "repository_from_onnx", "repository_from_run"),
    "repository.checkpoints": ("ExportImages", "repository_from_checkpoints"),
    "repository.latencies": ("member_latencies",),
    "repository.parity": ("Parity", "check_parity", "member_parity", "vote_parity"),
}
# Names of earlier versions.
_FORMER = {"Exported": "ExportResult", "Labelled": "ExportImages"}


def __getattr__(name: str) -> object:
    present = _FORMER.get(name, name)
    for module, names in _MODULES.items():
        if present in names:
            return getattr(importlib.import_module(f"plurum.export.{module}"), present)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
