"""Artefacts on this machine: what a graph answers, and how fast.

PIXELS  uint8 [images, height, width, 3]  →  LOGITS  float32 [images, classes]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from plurum.errors import needs_extra
from plurum.export.graphs.member import PixelModel
from plurum.export.settings import Backend, Execution, Precision
from plurum.spec import INPUT_PIXELS, LOGITS
from plurum.telemetry import import_onnxruntime

__all__ = ["Artefact", "latency_ms", "logits_from_artefact", "logits_from_model", "onnx_session", "openvino_runner"]

onnxruntime = import_onnxruntime()
Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]

_BATCH = 16
# What our OpenVINO backend compiles a graph for, where there is no Plurum to import this from.
_TOGETHER = (4, 2, 1)
_WARM_UP, _TIMED = 3, 15


@dataclass(frozen=True)
class Artefact:
    """One member in one precision, ready to be served.

    Attributes:
        member: Its name.
        precision: What it computes in.
        backend: What serves it.
        path: The ONNX file.
    """

    member: str
    precision: Precision
    backend: Backend
    path: Path

    @property
    def execution(self) -> Execution:
        """Precision and backend."""
        return Execution(self.precision, self.backend)


def onnx_session(path: Path, threads: int = 0) -> Any:
    """Return an ONNX Runtime session on the CPU; 0 threads let it choose."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Warnings about graphs are judged by parity and by `plurum doctor`.
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def openvino_runner(
    path: Path, outputs: Sequence[str], threads: int = 0, *, bf16: bool = False
) -> Callable[[Pixels], list[npt.NDArray[Any]]]:
    """Return what our OpenVINO backend does with a batch, by a graph compiled for one, two and four images.

    Args:
        path: PIXELS → `outputs`, any batch.
        outputs: What is returned, each `[images, …]`, in this order.
        threads: Of an image; 0 lets OpenVINO choose.
        bf16: Whether it computes in BF16, where the processor can.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    with needs_extra("openvino"):
        import openvino
    # The precision is stated: left out, it is BF16 wherever the processor can.
    options: dict[str, Any] = {"NUM_STREAMS": "1", "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32"}
    options["ENABLE_CPU_PINNING"] = False
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    # OpenVINO meets NumPy in its first call, and two threads that both make that one wait for each other forever.
    openvino.Type.u8.to_dtype()
    core = openvino.Core()
    model = core.read_model(path)
    models = {}
    for size in _TOGETHER:
        model.reshape({INPUT_PIXELS: [size, *list(model.input(INPUT_PIXELS).partial_shape)[1:]]})
        models[size] = core.compile_model(model, "CPU", options)

    def run(batch: Pixels) -> list[npt.NDArray[Any]]:
        row, answers = 0, []
        for size, compiled in models.items():
            while len(batch) - row >= size:
                answers.append(compiled({INPUT_PIXELS: batch[row : row + size]}))
                row += size
        return [np.concatenate([answer[name] for answer in answers]) for name in outputs]

    return run


def logits_from_model(model: PixelModel, pixels: Pixels) -> Logits:
    """Return what PyTorch answers, the reference."""

    def answer(batch: Pixels) -> Logits:
        with torch.inference_mode():
            return np.asarray(model(torch.from_numpy(batch)).numpy())

    return _in_batches(answer, pixels)


def logits_from_artefact(artefact: Artefact, pixels: Pixels) -> Logits:
    """Return what the artefact answers here; one for TensorRT is run by ONNX Runtime, which computes FP16 wider.

    Raises:
        MissingExtraError: OpenVINO is needed and not installed.
    """
    return _in_batches(_runner(artefact, threads=0), pixels)


def latency_ms(artefact: Artefact, pixels: Pixels) -> float:
    """Return the median time of one image on one thread, as `plurum serve` runs members, in milliseconds."""
    run, image = _runner(artefact, threads=1), np.ascontiguousarray(pixels[:1])
    times = []
    for _ in range(_WARM_UP + _TIMED):
        start = time.perf_counter()
        run(image)
        times.append(time.perf_counter() - start)
    return statistics.median(times[_WARM_UP:]) * 1000


def _runner(artefact: Artefact, threads: int) -> Callable[[Pixels], Logits]:
    if artefact.backend == "openvino":
        run = openvino_runner(artefact.path, [LOGITS], threads, bf16=artefact.precision == "bf16")
        return lambda batch: run(batch)[0]
    session = onnx_session(artefact.path, threads)
    return lambda batch: np.asarray(session.run([LOGITS], {INPUT_PIXELS: batch})[0])


def _in_batches(answer: Callable[[Pixels], Logits], pixels: Pixels) -> Logits:
    # Copies: a run's pixels are mapped from a file that must not be written to, which PyTorch warns of.
    return np.concatenate([answer(np.array(pixels[start : start + _BATCH])) for start in range(0, len(pixels), _BATCH)])
