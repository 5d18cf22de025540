"""Sessions of the libraries that compute exported graphs on the CPU, as the servers' backends do; without PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plurum.errors import needs_extra
from plurum.onnx_graphs.telemetry import import_onnxruntime
from plurum.spec import INPUT_PIXELS

__all__ = ["GraphRunner", "Tensors", "onnx_session", "onnx_stage", "openvino_stage"]

Tensors = dict[str, npt.NDArray[Any]]
# Inputs by name, among others that the graph does not have → all outputs by name.
GraphRunner = Callable[[Tensors], Tensors]
# Batch sizes that Plurum's OpenVINO backend compiles a graph for; it runs where Plurum is not installed.
_BATCH_SIZES = (4, 2, 1)


def onnx_session(path: Path, threads: int = 0) -> Any:
    """Return an ONNX Runtime session on the CPU; with `threads=0`, ONNX Runtime chooses their number.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
    """
    with needs_extra("cpu"):
        onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Errors only: parity and `plurum doctor` check the graphs.
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def openvino_stage(path: Path, threads: int = 0, *, bf16: bool = False) -> GraphRunner:
    """Return a function that runs a graph of several inputs as Plurum's OpenVINO backend does.

    It is compiled for 4, 2 and 1 images.

    Args:
        path: ONNX file with a dynamic batch dimension.
        threads: Threads per inference; 0 lets OpenVINO choose.
        bf16: If True, compute in BF16 on processors that support it.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    with needs_extra("openvino"):
        import openvino
    # State the precision: OpenVINO's default is BF16 on processors that support it.
    options: dict[str, Any] = {"NUM_STREAMS": "1", "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32"}
    options["ENABLE_CPU_PINNING"] = False
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    # OpenVINO imports NumPy in its first call, and two threads that make it at once deadlock.
    openvino.Type.u8.to_dtype()
    core = openvino.Core()
    model = core.read_model(path)
    models = {}
    for size in _BATCH_SIZES:
        model.reshape({port: [size, *list(port.partial_shape)[1:]] for port in model.inputs})
        models[size] = core.compile_model(model, "CPU", options)
    inputs, outputs = ([port.any_name for port in ports] for ports in (model.inputs, model.outputs))

    def run(tensors: Tensors) -> Tensors:
        row, results = 0, []
        for size, compiled in models.items():
            while len(tensors[INPUT_PIXELS]) - row >= size:
                results.append(compiled({name: tensors[name][row : row + size] for name in inputs}))
                row += size
        return {name: np.concatenate([result[name] for result in results]) for name in outputs}

    return run


def onnx_stage(path: Path, threads: int = 0) -> GraphRunner:
    """Return a function that runs a graph of several inputs by ONNX Runtime; `threads` as in `onnx_session`.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
    """
    session = onnx_session(path, threads)
    inputs, outputs = ([one.name for one in tensors] for tensors in (session.get_inputs(), session.get_outputs()))

    def run(tensors: Tensors) -> Tensors:
        return dict(zip(outputs, session.run(outputs, {name: tensors[name] for name in inputs}), strict=True))

    return run
