"""Build graphs as TensorRT engines, without a GPU, and measure their sizes.

    python -m plurum.benchmarks.claims.engines

For each architecture, with random weights and the batch statistics of noise: the ONNX graph in FP32 and in FP16, and
the engine that TensorRT-RTX builds from each; then the first three members and their vote as one FP16 graph. Measured:
sizes, the largest difference of a probability between the FP16 and the FP32 graph on ONNX Runtime, the largest value of
an FP16 tensor, and seconds to build. Not measured: speed, and whether Triton's TensorRT builds and loads the same
engines; that needs a GPU.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
import typer
from rich.table import Table

from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.members import random_model
from plurum.conventions import IMAGENET_MEAN, IMAGENET_STD
from plurum.spec import ImageSpec

if TYPE_CHECKING:
    from torch import nn

__all__ = ["engine_table", "engines"]

_ARCHS = [*command.ARCHS, "convnext_atto", "vit_tiny_patch16_224"]
_CLASSES = 10
_IMAGES = 4
_FUSED = 3
_MAX_BATCH_SIZE = 16


def engines(
    work: Annotated[Path, typer.Option(help="Folder that receives the graphs.")] = Path("runs/engines"),
    arch: command.Architectures = _ARCHS,
    size: command.ImageSize = 224,
) -> None:
    """Build all engines: a table on standard error, one line of JSON on standard output."""
    with command.measurement("engines") as (say, state):
        rows = engine_table(work, arch, size, say)
    table = Table("", "ONNX FP32", "ONNX FP16", "engine FP32", "engine FP16", "FP16 / FP32", "difference", "largest")
    for name, row in rows.items():
        sizes = [f"{row[key]:.1f} MB" for key in ("onnx_fp32", "onnx_fp16", "engine_fp32", "engine_fp16")]
        ratio = f"{row['engine_fp16'] / row['engine_fp32']:.2f}"
        table.add_row(name, *sizes, ratio, f"{row['difference']:.1e}", f"{row['largest']:.3g}")
    command.print_report({"size": size, "engines": rows}, state, table)


def engine_table(work: Path, archs: Sequence[str], size: int, progress: command.Say) -> dict[str, dict[str, float]]:
    """Return sizes in MB, differences and seconds, by architecture and for the fused graph of the first three."""
    from plurum.export import PixelModel, fp16_from_onnx, fused_from_onnx, onnx_from_model, overflow_audit
    from plurum.voting import VotingRule

    work.mkdir(parents=True, exist_ok=True)
    image = ImageSpec(height=size, width=size, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    pixels = _pixels(size)
    rows = {}
    for arch in archs:
        progress(arch)
        single, half = work / f"{arch}.fp32.onnx", work / f"{arch}.fp16.onnx"
        onnx_from_model(PixelModel(_model_with_statistics(arch, size), image), single)
        fp16_from_onnx(single, pixels, half)
        rows[arch] = _row(single, half, pixels) | {"largest": overflow_audit(single, half, pixels).absmax}
    together = list(archs[:_FUSED])
    progress("fused")
    for precision in ("fp32", "fp16"):
        graphs = [work / f"{arch}.{precision}.onnx" for arch in together]
        rule = VotingRule((1 / len(graphs),) * len(graphs), temperature=1.5, quantiles=(0.5,) * _CLASSES)
        fused_from_onnx(graphs, rule, _CLASSES, work / f"fused.{precision}.onnx")
    largest = max(rows[arch]["largest"] for arch in together)
    rows["fused"] = _row(work / "fused.fp32.onnx", work / "fused.fp16.onnx", pixels) | {"largest": largest}
    return rows


def _row(single: Path, half: Path, pixels: npt.NDArray[np.uint8]) -> dict[str, float]:
    from plurum.export import engine_from_onnx

    row = {"difference": float(np.abs(_probabilities(single, pixels) - _probabilities(half, pixels)).max())}
    for precision, path in (("fp32", single), ("fp16", half)):
        row[f"onnx_{precision}"] = path.stat().st_size / 1e6
        start = time.perf_counter()
        row[f"engine_{precision}"] = len(engine_from_onnx(path, _MAX_BATCH_SIZE, "tensorrt_rtx").data) / 1e6
        row[f"seconds_{precision}"] = time.perf_counter() - start
    return row


def _probabilities(path: Path, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    from plurum.export.graphs.runtimes import onnx_session
    from plurum.spec import INPUT_PIXELS
    from plurum.voting import softmax

    session = onnx_session(path)
    names = [one.name for one in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, {INPUT_PIXELS: pixels}), strict=True))
    return np.asarray(outputs["PROBABILITIES"] if "PROBABILITIES" in outputs else softmax(outputs["LOGITS"]))


def _model_with_statistics(arch: str, size: int) -> nn.Module:
    """Return the architecture with random weights and the batch statistics of noise."""
    import torch

    model = random_model(arch, _CLASSES).train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(4, 3, size, size))
    return model.eval()


def _pixels(size: int) -> npt.NDArray[np.uint8]:
    """Return images of large coloured squares."""
    coarse = np.random.default_rng(0).integers(0, 256, (_IMAGES, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(size // 8, axis=1).repeat(size // 8, axis=2)


if __name__ == "__main__":
    command.run_as_program(engines)
