"""The costs of an architecture: weights, operations, bytes on disk, memory; and the graphs to measure its speed with.

They are kept in the folder of the comparison, so that a repeated command reuses them.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from plurum.benchmarks.compare.comparison import Costs, Runtime
from plurum.benchmarks.compare.contenders import Contender, model_from_contender
from plurum.benchmarks.compare.memory import memory_of_graph, memory_of_model
from plurum.errors import needs_extra
from plurum.files import atomic_folder
from plurum.models import flops_of_model
from plurum.onnx_graphs.costs import multiply_adds
from plurum.run import Run

__all__ = ["CALIBRATION_IMAGES", "costs_of", "flops_of", "graph_of", "versions"]

# The default of `plurum export`.
CALIBRATION_IMAGES = 128
_PACKAGES = ("plurum", "numpy", "onnx", "onnxruntime", "timm", "torch")
_GRAPHS: tuple[Runtime, ...] = ("onnx_fp32", "onnx_int8")


def versions() -> dict[str, str]:
    """Return the versions of the packages that figures depend on."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def graph_of(folder: Path, runtime: Runtime) -> Path:
    """Return the path of a contender's graph in its folder."""
    return folder / f"{runtime}.onnx"


def costs_of(contender: Contender, run: Run, folder: Path, batch_size: int, progress: Callable[[str], None]) -> Costs:
    """Return the costs of the contender, and write its FP32 and INT8 graphs to `folder`; existing ones are reused.

    Args:
        contender: Contender to measure.
        run: Run whose training images calibrate INT8.
        folder: Folder that keeps graphs and costs.
        batch_size: Images per batch in the measurement of memory.
        progress: Receives one line about each step.

    Raises:
        MetadataError: The checkpoint is missing or broken.
        MissingExtraError: PyTorch, ONNX or ONNX Runtime is not installed.
    """
    key = " ".join([contender.sha256, run.data().fingerprint, str(batch_size), *versions().values()])
    if (kept := _kept(folder)) is not None and kept.key == key:
        return kept
    with atomic_folder(folder) as hidden:
        _write_graphs(contender, run, hidden, progress)
        costs = _measured(contender, hidden, key, _spread(run, batch_size), progress)
        (hidden / "costs.json").write_text(costs.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return costs


def flops_of(contender: Contender, graph: Path) -> int:
    """Return the floating-point operations per image, as PyTorch counts them during a prediction.

    Those of a contender that is an ONNX graph are counted from the shapes of its exported `graph`.
    """
    import torch

    if contender.format == "onnx":
        return 2 * multiply_adds(graph)
    pixels = torch.zeros(1, contender.decoded.height, contender.decoded.width, 3, dtype=torch.uint8)
    return flops_of_model(model_from_contender(contender), pixels)


def _kept(folder: Path) -> Costs | None:
    try:
        return Costs.model_validate_json((folder / "costs.json").read_bytes())
    except (OSError, ValidationError):
        return None


def _write_graphs(contender: Contender, run: Run, folder: Path, progress: Callable[[str], None]) -> None:
    with needs_extra("export"):
        from plurum.export import int8_from_onnx, onnx_from_model
    progress(f"{contender.name}: to ONNX")
    onnx_from_model(model_from_contender(contender), graph_of(folder, "onnx_fp32"))
    progress(f"{contender.name}: to INT8")
    int8_from_onnx(graph_of(folder, "onnx_fp32"), _spread(run, CALIBRATION_IMAGES), graph_of(folder, "onnx_int8"))


def _measured(
    contender: Contender, folder: Path, key: str, pixels: npt.NDArray[np.uint8], progress: Callable[[str], None]
) -> Costs:
    progress(f"{contender.name}: operations and memory")
    counted = sum(weights.numel() for weights in model_from_contender(contender).parameters())
    graphs = {runtime: graph_of(folder, runtime) for runtime in _GRAPHS}
    files: dict[Runtime, Path] = {"pytorch": contender.checkpoint, **graphs}
    return Costs(
        key=key,
        parameters=contender.parameters or counted,
        gflops=flops_of(contender, graphs["onnx_fp32"]) / 1e9,
        size_mb={runtime: file.stat().st_size / 1e6 for runtime, file in files.items()},
        memory_mb={
            "pytorch": memory_of_model(contender, pixels),
            **{runtime: memory_of_graph(path, pixels) for runtime, path in graphs.items()},
        },
    )


def _spread(run: Run, most: int) -> npt.NDArray[np.uint8]:
    """Return up to `most` training images, evenly spread, as neighbours may be of one class or patient."""
    rows = run.table().rows("train")
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(np.int64))]
    return np.array(run.pixels()[chosen])
