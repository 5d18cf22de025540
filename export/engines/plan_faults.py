"""Checks of a TensorRT plan: against its graph, its expected size, and this machine's TensorRT and GPU.

Each check returns its faults in words; an empty list means that it passed.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from plurum.errors import RepositoryError
from plurum.export.engines.build import RTX_MAGIC, EnginePlan, gpu_capability
from plurum.export.engines.nvinfer import is_same_tensorrt, loaded_version
from plurum.files import sha256_of

__all__ = ["build_faults", "machine_faults", "size_faults"]

# Size of a weight in bytes.
_BYTES = {TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.INT8: 1, TensorProto.UINT8: 1}
# Besides weights, a plan holds other data: up to 11 MB in engines of five architectures, in any precision. A plan with
# fewer bytes of weights than this may be as large as in FP32 although it computes in its graph's precision.
_MIN_CHECKED_BYTES = 12_000_000
# A plan that holds a smaller fraction of its graph's weights lacks some of them.
_ALL_WEIGHTS = 0.8


def build_faults(plan: Path, about: EnginePlan, graph: Path, max_batch_size: int) -> list[str]:
    """Check that Triton can load the plan, and that graph and largest batch match those it was built for."""
    faults = []
    with plan.open("rb") as file:
        if file.read(len(RTX_MAGIC)) == RTX_MAGIC:
            faults.append("built by TensorRT-RTX, which Triton does not load")
    if about.onnx_sha256 != sha256_of(graph):
        faults.append("built from another graph than the one beside it")
    if about.plan_sha256 != sha256_of(plan):
        faults.append("changed since it was built")
    if about.profile[2] < max_batch_size:
        faults.append(f"built for batches up to {about.profile[2]}; config.pbtxt takes {max_batch_size}")
    return faults


def size_faults(size_bytes: int, model: Any) -> list[str]:
    """Check that the size of a plan fits its graph's weights in their precision.

    Args:
        size_bytes: Size of the plan in bytes.
        model: ONNX model that it was built from.
    """
    numbers = {
        kind: sum(int(np.prod(one.dims)) for one in model.graph.initializer if one.data_type == kind) for kind in _BYTES
    }
    single = 4 * sum(numbers.values())
    own = sum(_BYTES[kind] * count for kind, count in numbers.items())
    sizes = f"{size_bytes / 1e6:.1f} MB, and the graph's weights are {own / 1e6:.1f} MB"
    if size_bytes < _ALL_WEIGHTS * own:
        return [f"{sizes}: it does not hold all of them"]
    if _MIN_CHECKED_BYTES < own < 0.75 * single and size_bytes >= single:
        return [f"{sizes}: as large as in FP32, {single / 1e6:.1f} MB; it does not compute in its graph's precision"]
    return []


def machine_faults(about: EnginePlan) -> tuple[list[str], str]:
    """Check a plan against this machine's TensorRT and GPU.

    Compares with the TensorRT that Triton loads, or, if none is found, with the Python package.

    Returns:
        Faults, and the reason if the check can't run here; both empty if the plan fits this machine.
    """
    faults, here, named = [], loaded_version(), "Triton's"
    if here is None:
        named = "Python's"
        try:
            here = importlib.metadata.version("tensorrt")
        except importlib.metadata.PackageNotFoundError:
            built = f"TensorRT {about.tensorrt} for compute capability {about.compute_capability}"
            return [], f"built by {built}; TensorRT is not installed here to compare"
    if not is_same_tensorrt(here, about.tensorrt):
        faults.append(f"built by TensorRT {about.tensorrt}, {named} is {here}: it will not load; build it again")
    try:
        gpu = gpu_capability()
    except RepositoryError as error:
        return faults, "" if faults else str(error)
    if gpu != about.compute_capability:
        faults.append(f"built for compute capability {about.compute_capability}, this GPU has {gpu}; build it again")
    return faults, ""
