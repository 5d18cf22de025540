"""Checks of a TensorRT plan: is it of its graph, of its size, and of this machine's TensorRT and GPU?

Each returns its faults in words; an empty list is well.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from plurum.errors import RepositoryError
from plurum.export.engines.build import RTX_MAGIC, Plan, gpu_capability
from plurum.export.engines.nvinfer import loaded_version, same_tensorrt
from plurum.files import sha256_of

__all__ = ["build_faults", "machine_faults", "size_faults"]

# What a weight takes in a graph, in bytes.
_BYTES = {TensorProto.FLOAT: 4, TensorProto.FLOAT16: 2, TensorProto.INT8: 1, TensorProto.UINT8: 1}
# Beside its weights a plan holds other things, up to 11 MB in engines of five architectures, whatever the precision:
# with fewer bytes of weights than this it could be as large as in FP32 and still compute in its graph's precision.
_JUDGED_BYTES = 12_000_000
# A plan holds all weights of its graph; less of them, and a member was lost on the way.
_ALL_WEIGHTS = 0.8


def build_faults(plan: Path, about: Plan, graph: Path, max_batch_size: int) -> list[str]:
    """Is it a plan for Triton, of the graph beside it, for batches as large as its config takes?"""
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
    """Is a plan as large as its graph's weights are in their precision?

    Args:
        size_bytes: Of the plan.
        model: The graph it was built of.
    """
    numbers = {
        kind: sum(int(np.prod(one.dims)) for one in model.graph.initializer if one.data_type == kind) for kind in _BYTES
    }
    single = 4 * sum(numbers.values())
    own = sum(_BYTES[kind] * count for kind, count in numbers.items())
    told = f"{size_bytes / 1e6:.1f} MB, and the graph's weights are {own / 1e6:.1f} MB"
    if size_bytes < _ALL_WEIGHTS * own:
        return [f"{told}: it does not hold all of them"]
    if _JUDGED_BYTES < own < 0.75 * single and size_bytes >= single:
        return [f"{told}: as large as in FP32, {single / 1e6:.1f} MB; it does not compute in its graph's precision"]
    return []


def machine_faults(about: Plan) -> tuple[list[str], str]:
    """Return what of this machine does not fit a plan, and what can't be known here; both empty where all is well.

    Triton's own TensorRT counts. Where it isn't found, that of Python is compared.
    """
    faults, here, named = [], loaded_version(), "Triton's"
    if here is None:
        named = "Python's"
        try:
            here = importlib.metadata.version("tensorrt")
        except importlib.metadata.PackageNotFoundError:
            built = f"TensorRT {about.tensorrt} for compute capability {about.compute_capability}"
            return [], f"built by {built}; there is no TensorRT here to compare"
    if not same_tensorrt(here, about.tensorrt):
        faults.append(f"built by TensorRT {about.tensorrt}, {named} is {here}: it will not load; build it again")
    try:
        gpu = gpu_capability()
    except RepositoryError as error:
        return faults, "" if faults else str(error)
    if gpu != about.compute_capability:
        faults.append(f"built for compute capability {about.compute_capability}, this GPU has {gpu}; build it again")
    return faults, ""
