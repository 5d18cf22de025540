"""Work of a graph, counted from its shapes."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

__all__ = ["multiply_adds"]


def multiply_adds(graph: Path) -> int:
    """Return the multiply–adds of an ONNX graph for one image, in its convolutions and matrix products.

    Dimensions without a fixed size count as 1. Operations whose shapes are unknown count as none.
    """
    import onnx

    inferred = onnx.shape_inference.infer_shapes(onnx.load(graph)).graph
    shapes: dict[str, tuple[int, ...]] = {one.name: tuple(one.dims) for one in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        shapes[value.name] = tuple(size.dim_value or 1 for size in value.type.tensor_type.shape.dim)
    return sum(prod(shapes.get(node.output[0], (0,))) * _products(node, shapes) for node in inferred.node)


def _products(node: Any, shapes: dict[str, tuple[int, ...]]) -> int:
    """Return the multiply–adds behind each number of a node's output."""
    if node.op_type == "Conv":
        return prod(shapes.get(node.input[1], (0,))[1:])
    if node.op_type in {"Gemm", "MatMul"}:
        is_transposed = any(one.name == "transA" and one.i for one in node.attribute)
        return shapes.get(node.input[0], (0,))[0 if is_transposed else -1]
    return 0
