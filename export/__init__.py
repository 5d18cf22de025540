"""Members → ONNX → a model repository that Triton serves, every artefact checked against the model it came from.

What imports PyTorch is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
import typing

from plurum.export.settings import Budget, ExportSettings

if typing.TYPE_CHECKING:
    from plurum.export.checkpoints import Labelled, repository_from_checkpoints
    from plurum.export.engines import build_engines, engine_from_onnx
    from plurum.export.float16 import fp16_from_onnx, overflow_audit
    from plurum.export.fused import fused_from_onnx
    from plurum.export.graphs import PixelModel, onnx_from_model
    from plurum.export.parity import Parity, check_parity, member_parity, vote_parity
    from plurum.export.quantisation import int8_from_onnx
    from plurum.export.repository import Exported, repository_from_onnx, repository_from_run

__all__ = [
    "Budget",
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

_LATER = {
    "Exported": "repository",
    "Labelled": "checkpoints",
    "Parity": "parity",
    "PixelModel": "graphs",
    "build_engines": "engines",
    "check_parity": "parity",
    "engine_from_onnx": "engines",
    "fp16_from_onnx": "float16",
    "fused_from_onnx": "fused",
    "int8_from_onnx": "quantisation",
    "member_parity": "parity",
    "onnx_from_model": "graphs",
    "overflow_audit": "float16",
    "repository_from_checkpoints": "checkpoints",
    "repository_from_onnx": "repository",
    "repository_from_run": "repository",
    "vote_parity": "parity",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"plurum.export.{_LATER[name]}"), name)
