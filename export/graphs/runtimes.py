"""Run artefacts on this machine: their outputs and their latency.

PIXELS  uint8 [images, height, width, 3]  →  LOGITS  float32 [images, classes]
                                             NOVELTY  float32 [images, 1], if the member has a detector
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from plurum.errors import needs_extra
from plurum.export.graphs.member import PixelModel
from plurum.export.settings import Backend, Execution, Precision
from plurum.predictions.arrays import Ints
from plurum.spec import INPUT_PIXELS, LOGITS, NOVELTY
from plurum.telemetry import import_onnxruntime

__all__ = [
    "Artefact",
    "GraphRunner",
    "MemberOutputs",
    "batches_of",
    "latency_ms",
    "onnx_session",
    "onnx_stage",
    "openvino_runner",
    "openvino_stage",
    "outputs_from_artefact",
    "outputs_from_model",
]

onnxruntime = import_onnxruntime()
Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]
Tensors = dict[str, npt.NDArray[Any]]
# Inputs by name, among others that the graph does not have → all outputs by name.
GraphRunner = Callable[[Tensors], Tensors]

_BATCH = 16
# Batch sizes that Plurum's OpenVINO backend compiles a graph for; it runs where Plurum is not installed.
_BATCH_SIZES = (4, 2, 1)
_WARM_UP, _TIMED = 3, 15


@dataclass(frozen=True)
class Artefact:
    """Graph of a member in one precision for one backend.

    Attributes:
        member: Name of the member.
        precision: Precision of the computation.
        backend: Backend that will serve the graph.
        path: ONNX file.
        has_novelty: True if it has the output NOVELTY.
    """

    member: str
    precision: Precision
    backend: Backend
    path: Path
    has_novelty: bool = False

    @property
    def execution(self) -> Execution:
        """Precision and backend of the artefact."""
        return Execution(self.precision, self.backend)

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs."""
        return [LOGITS, NOVELTY] if self.has_novelty else [LOGITS]


class MemberOutputs(NamedTuple):
    """Outputs of a member for images.

    Attributes:
        logits: Logits, float32 `[images, classes]`.
        novelty: Novelty by its detector, float32 `[images]`; None without a detector.
    """

    logits: Logits
    novelty: npt.NDArray[np.float32] | None = None


def onnx_session(path: Path, threads: int = 0) -> Any:
    """Return an ONNX Runtime session on the CPU; with `threads=0`, ONNX Runtime chooses their number."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Errors only: parity and `plurum doctor` check the graphs.
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def openvino_runner(
    path: Path, outputs: Sequence[str], threads: int = 0, *, bf16: bool = False
) -> Callable[[Pixels], list[npt.NDArray[Any]]]:
    """Return a function that runs a batch as Plurum's OpenVINO backend does, with graphs for 4, 2 and 1 images.

    Args:
        path: ONNX file, PIXELS → `outputs`, with a dynamic batch dimension.
        outputs: Names of the outputs to return, each `[images, …]`, in this order.
        threads: Threads per inference; 0 lets OpenVINO choose.
        bf16: If True, compute in BF16 on processors that support it.

    Raises:
        MissingExtraError: OpenVINO is not installed.
    """
    stage = openvino_stage(path, threads, bf16=bf16)

    def run(batch: Pixels) -> list[npt.NDArray[Any]]:
        found = stage({INPUT_PIXELS: batch})
        return [found[name] for name in outputs]

    return run


def openvino_stage(path: Path, threads: int = 0, *, bf16: bool = False) -> GraphRunner:
    """Return a function that runs a graph of several inputs as Plurum's OpenVINO backend does; see `openvino_runner`.

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


def onnx_stage(path: Path) -> GraphRunner:
    """Return a function that runs a graph of several inputs by ONNX Runtime."""
    session = onnx_session(path)
    inputs, outputs = ([one.name for one in tensors] for tensors in (session.get_inputs(), session.get_outputs()))

    def run(tensors: Tensors) -> Tensors:
        return dict(zip(outputs, session.run(outputs, {name: tensors[name] for name in inputs}), strict=True))

    return run


def outputs_from_model(model: PixelModel, pixels: Pixels) -> MemberOutputs:
    """Return PyTorch's outputs, the reference."""

    def infer(batch: Pixels) -> list[npt.NDArray[Any]]:
        with torch.inference_mode():
            outputs = model(torch.from_numpy(batch))
        return [one.numpy() for one in (outputs if isinstance(outputs, tuple) else (outputs,))]

    return _run_in_batches(infer, pixels)


def outputs_from_artefact(artefact: Artefact, pixels: Pixels, rows: Ints | None = None) -> MemberOutputs:
    """Return the artefact's outputs on this machine.

    ONNX Runtime runs artefacts for TensorRT; on a CPU it computes FP16 in a wider type.

    Args:
        artefact: Artefact to run.
        pixels: Images, uint8 `[images, height, width, 3]`.
        rows: Indices of the images to run, `[rows]`; None runs all.

    Raises:
        MissingExtraError: OpenVINO is needed and not installed.
    """
    return _run_in_batches(_runner(artefact, threads=0), pixels, rows)


def latency_ms(artefact: Artefact, pixels: Pixels) -> float:
    """Return the median latency of one image on one thread, as `plurum serve` runs members, in milliseconds."""
    run, image = _runner(artefact, threads=1), np.ascontiguousarray(pixels[:1])
    times = []
    for _ in range(_WARM_UP + _TIMED):
        start = time.perf_counter()
        run(image)
        times.append(time.perf_counter() - start)
    return statistics.median(times[_WARM_UP:]) * 1000


def _runner(artefact: Artefact, threads: int) -> Callable[[Pixels], list[npt.NDArray[Any]]]:
    if artefact.backend == "openvino":
        return openvino_runner(artefact.path, artefact.outputs, threads, bf16=artefact.precision == "bf16")
    session = onnx_session(artefact.path, threads)
    return lambda batch: list(session.run(artefact.outputs, {INPUT_PIXELS: batch}))


def batches_of(pixels: Pixels, rows: Ints | None = None) -> Iterator[Pixels]:
    """Yield the images, or those with the indices `rows`, in batches.

    Batches are copies: a run's pixels are a read-only file mapping, which PyTorch warns about, and may be larger than
    the memory.
    """
    for start in range(0, len(pixels) if rows is None else len(rows), _BATCH):
        part = slice(start, start + _BATCH)
        yield np.array(pixels[part] if rows is None else pixels[rows[part]])


def _run_in_batches(
    infer: Callable[[Pixels], list[npt.NDArray[Any]]], pixels: Pixels, rows: Ints | None = None
) -> MemberOutputs:
    batches = zip(*(infer(batch) for batch in batches_of(pixels, rows)), strict=True)
    logits, *novelty = (np.concatenate(parts) for parts in batches)
    return MemberOutputs(logits, novelty[0][:, 0] if novelty else None)
