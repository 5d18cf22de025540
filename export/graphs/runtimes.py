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

from plurum.export.graphs.member import PixelModel
from plurum.export.settings import Backend, Execution, Precision
from plurum.onnx_graphs.sessions import GraphRunner, onnx_session, onnx_stage, openvino_stage
from plurum.predictions.arrays import Ints
from plurum.spec import INPUT_PIXELS, LOGITS, NOVELTY

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

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]

_BATCH = 16
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
