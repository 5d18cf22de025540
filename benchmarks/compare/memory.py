"""Measure the memory of a model during predictions, in a process of its own.

The process ends with the measurement, so that nothing that another model has left counts. It imports everything before
it loads the model, and reports the memory at that point too, which is the larger part for small models.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from plurum.benchmarks.compare.comparison import Memory
from plurum.benchmarks.tools.machine import peak_bytes
from plurum.onnx_graphs.telemetry import import_onnxruntime

if TYPE_CHECKING:
    from plurum.benchmarks.compare.contenders import Contender

__all__ = ["memory_of_graph", "memory_of_model"]

_PREDICTIONS = 3


def memory_of_graph(path: Path, pixels: npt.NDArray[np.uint8]) -> Memory:
    """Return the memory of a process that runs the ONNX file `path` on uint8 `[batch, height, width, 3]`."""
    return _run_apart(_graph, path, pixels)


def memory_of_model(contender: Contender, pixels: npt.NDArray[np.uint8]) -> Memory:
    """Return the memory of a process that runs the contender in PyTorch on uint8 `[batch, height, width, 3]`."""
    return _run_apart(_model, contender, pixels)


def _run_apart(work: Callable[..., Memory], *arguments: Any) -> Memory:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def _graph(path: Path, pixels: npt.NDArray[np.uint8]) -> Memory:
    from plurum.benchmarks.tools.local import onnx_runner

    idle = peak_bytes("self") / 1e6
    predict = onnx_runner(path, 1)
    for _ in range(_PREDICTIONS):
        predict(pixels)
    return Memory(idle=idle, peak=peak_bytes("self") / 1e6)


def _model(contender: Contender, pixels: npt.NDArray[np.uint8]) -> Memory:
    import torch

    from plurum import export
    from plurum.benchmarks.compare.contenders import model_from_contender
    from plurum.training.inference import ensembles

    # Imported before the first reading of memory.
    _ = export, ensembles
    if contender.format == "onnx":
        import_onnxruntime()
    torch.set_num_threads(1)
    idle = peak_bytes("self") / 1e6
    model = model_from_contender(contender)
    with torch.inference_mode():
        for _ in range(_PREDICTIONS):
            model(torch.from_numpy(pixels))
    return Memory(idle=idle, peak=peak_bytes("self") / 1e6)
