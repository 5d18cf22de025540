"""Checks of one graph: that it loads, matches its config and its manifest, and fits its target.

Each check returns its faults in words; an empty list means that it passed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from tritonclient.grpc import model_config_pb2 as pb

from plurum.export.graphs.runtimes import onnx_session
from plurum.export.manifest import PublishedGraph
from plurum.export.settings import OPSET
from plurum.spec import INPUT_PIXELS

__all__ = [
    "interface_faults",
    "load_faults",
    "operator_faults",
    "pixel_faults",
    "precision_faults",
    "quantisation_faults",
]

_TYPES = {
    "TYPE_UINT8": TensorProto.UINT8,
    "TYPE_INT32": TensorProto.INT32,
    "TYPE_FP32": TensorProto.FLOAT,
    "TYPE_BOOL": TensorProto.BOOL,
}
# Smallest fraction of weights in the stated precision. Normalisation and tensors that would overflow stay FP32, a
# larger fraction in small graphs.
_MOST = 0.5


def load_faults(path: Path) -> list[str]:
    """Check that the file is valid ONNX and that ONNX Runtime loads it."""
    try:
        onnx.checker.check_model(path, full_check=True)
        onnx_session(path)
    except Exception as error:  # ONNX, protobuf and ONNX Runtime have no common base class of errors
        return [(str(error).strip().splitlines() or [type(error).__name__])[0]]
    return []


def operator_faults(model: Any) -> list[str]:
    """Check that TensorRT builds the graph's opset and operators."""
    versions = {one.domain: one.version for one in model.opset_import}
    faults = []
    if versions.get("", 0) > OPSET:
        faults.append(f"opset {versions['']}; TensorRT is known to build opset {OPSET}")
    if any(node.op_type == "Attention" for node in model.graph.node):
        faults.append("an Attention operator, which TensorRT parses and then fails to build; export with opset 20")
    return faults


def interface_faults(model: Any, config: Any) -> list[str]:
    """Check that the names, types and shapes of inputs and outputs match config.pbtxt."""
    faults = []
    for kind, stated, present in (
        ("input", config.input, model.graph.input),
        ("output", config.output, model.graph.output),
    ):
        found = {one.name: one.type.tensor_type for one in present}
        for entry in stated:
            if entry.name not in found:
                faults.append(f"config.pbtxt states the {kind} {entry.name}; the graph has {', '.join(found)}")
                continue
            tensor, type_name = found[entry.name], pb.DataType.Name(entry.data_type)
            if _TYPES.get(type_name) != tensor.elem_type:
                actual = TensorProto.DataType.Name(tensor.elem_type)
                faults.append(f"{kind} {entry.name} is {actual} in the graph and {type_name} in config.pbtxt")
            faults += _shape_faults(f"{kind} {entry.name}", list(entry.dims), tensor, config.max_batch_size)
    return faults


def pixel_faults(model: Any) -> list[str]:
    """Check that only Cast and Shape take PIXELS; TensorRT supports UINT8 in no other operator."""
    consumers = {node.op_type for node in model.graph.node if INPUT_PIXELS in node.input}
    if others := sorted(consumers - {"Cast", "Shape"}):
        return [f"PIXELS, which is UINT8, goes into {', '.join(others)} before it is cast"]
    return []


def precision_faults(model: Any, published: PublishedGraph) -> list[str]:
    """Check that most weights have the precision that the manifest states."""
    kinds = {"fp16": (TensorProto.FLOAT16,), "int8": (TensorProto.INT8, TensorProto.UINT8)}.get(
        published.precision, (TensorProto.FLOAT,)
    )
    sizes = [(one.data_type, int(np.prod(one.dims))) for one in model.graph.initializer]
    floats = [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8]
    total = sum(size for kind, size in sizes if kind in floats)
    share = sum(size for kind, size in sizes if kind in kinds) / max(1, total)
    if share < _MOST:
        return [f"only {share:.0%} of the weights are {published.precision.upper()}, the precision in the manifest"]
    return []


def quantisation_faults(model: Any, backend: str) -> list[str]:
    """Check that the backend supports the types and zero points of the quantisation."""
    if backend != "tensorrt":
        return []
    zero_points = {
        node.input[2]
        for node in model.graph.node
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"} and len(node.input) > 2
    }
    faults = set()
    for one in model.graph.initializer:
        if one.name in zero_points:
            if one.data_type != TensorProto.INT8:
                faults.add("activations quantised to uint8; TensorRT takes int8")
            if numpy_helper.to_array(one).any():
                faults.add("a zero point other than 0; TensorRT takes symmetric quantisation")
    return sorted(faults)


def _shape_faults(what: str, dims: list[int], tensor: Any, max_batch_size: int) -> Iterable[str]:
    shape = [one.dim_value if one.HasField("dim_value") else -1 for one in tensor.shape.dim]
    if max_batch_size > 0:
        if shape[:1] != [-1]:
            yield f"{what} has no dynamic batch dimension, and config.pbtxt takes batches of {max_batch_size}"
        shape = shape[1:]
    if len(shape) != len(dims) or any(a != b and -1 not in {a, b} for a, b in zip(shape, dims, strict=False)):
        yield f"{what} is {shape} in the graph and {dims} in config.pbtxt"
