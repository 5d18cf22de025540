"""Opt-out of ONNX Runtime's telemetry, which its Linux packages send by default since version 1.29."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from typing import Any

__all__ = ["forbid_telemetry", "import_onnxruntime"]

_VARIABLE = "ORT_DISABLE_TELEMETRY"


def forbid_telemetry(environment: MutableMapping[str, str] | None = None) -> None:
    """Stop ONNX Runtime from sending telemetry, and from writing a device identifier and temporary files.

    ONNX Runtime reads the variable once, when it is imported. A value set by the user is kept.

    Args:
        environment: Environment of a process to be started; None is this process's.
    """
    (os.environ if environment is None else environment).setdefault(_VARIABLE, "1")


def import_onnxruntime() -> Any:
    """Return the package `onnxruntime`, imported with telemetry disabled.

    Raises:
        ImportError: the package is not installed.
    """
    forbid_telemetry()
    import onnxruntime

    return onnxruntime
