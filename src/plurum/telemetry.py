"""ONNX Runtime's own reports: since 1.29 its Linux packages send events to their maker unless a variable forbids it."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from typing import Any

__all__ = ["forbid_telemetry", "import_onnxruntime"]

_VARIABLE = "ORT_DISABLE_TELEMETRY"


def forbid_telemetry(environment: MutableMapping[str, str] | None = None) -> None:
    """Keep ONNX Runtime from reporting, from writing a device identifier, and from writing to the temporary folder.

    It reads the variable once, when it is imported. A value that a user has set is left as it is.

    Args:
        environment: Of a process to be started; None is this one's own.
    """
    (os.environ if environment is None else environment).setdefault(_VARIABLE, "1")


def import_onnxruntime() -> Any:
    """Return the package `onnxruntime`, imported with its reports forbidden.

    Raises:
        ImportError: it is not installed.
    """
    forbid_telemetry()
    import onnxruntime

    return onnxruntime
