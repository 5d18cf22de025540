"""Checks of one graph: does it load, is it what its config and its manifest say, is it legal for its target?

Each returns its faults in words; an empty list is well.
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
from plurum.export.manifest import Published
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
# Less than this share of the weights in a precision, and it is not what the graph is in. Normalisation and what
# overflows stay FP32; of small graphs that is more.
_MOST = 0.5


def load_faults(path: Path) -> list[str]:
    """Is it valid ONNX that ONNX Runtime loads?"""
    try:
        onnx.checker.check_model(path, full_check=True)
        onnx_session(path)
    except Exception as error:  # ONNX, protobuf and ONNX Runtime raise what they like
        return [(str(error).strip().splitlines() or [type(error).__name__])[0]]
    return []


def operator_faults(model: Any) -> list[str]:
    """Is it of the opset, and without the operators, that TensorRT builds?"""
    versions = {one.domain: one.version for one in model.opset_import}
    faults = []
    if versions.get("", 0) > OPSET:
        faults.append(f"opset {versions['']}; TensorRT is known to build opset {OPSET}")
    if any(node.op_type == "Attention" for node in model.graph.node):
        faults.append("an Attention operator, which TensorRT parses and then fails to build; export with opset 20")
    return faults


def interface_faults(model: Any, config: Any) -> list[str]:
    """Are inputs and outputs, their types and their shapes those that config.pbtxt states?"""
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
    """Is PIXELS consumed by Cast alone? TensorRT takes bytes for nothing else (their shape may be asked for)."""
    consumers = {node.op_type for node in model.graph.node if INPUT_PIXELS in node.input}
    if others := sorted(consumers - {"Cast", "Shape"}):
        return [f"PIXELS, which is UINT8, goes into {', '.join(others)} before it is cast"]
    return []


def precision_faults(model: Any, published: Published) -> list[str]:
    """Is most of its weight in the precision that the manifest claims?"""
    kinds = {"fp16": (TensorProto.FLOAT16,), "int8": (TensorProto.INT8, TensorProto.UINT8)}.get(
        published.precision, (TensorProto.FLOAT,)
    )
    sizes = [(one.data_type, int(np.prod(one.dims))) for one in model.graph.initializer]
    floats = [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8, TensorProto.UINT8]
    total = sum(size for kind, size in sizes if kind in floats)
    share = sum(size for kind, size in sizes if kind in kinds) / max(1, total)
    if share < _MOST:
        return [f"{share:.0%} of the weights are {published.precision.upper()}, which the manifest claims"]
    return []


def quantisation_faults(model: Any, backend: str) -> list[str]:
    """Are quantisation's zero points and types those that its target takes?"""
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
            yield f"{what} has no free batch dimension, and config.pbtxt takes batches of {max_batch_size}"
        shape = shape[1:]
    if len(shape) != len(dims) or any(a != b and -1 not in {a, b} for a, b in zip(shape, dims, strict=False)):
        yield f"{what} is {shape} in the graph and {dims} in config.pbtxt"
