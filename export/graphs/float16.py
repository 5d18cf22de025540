"""Convert an FP32 graph to FP16 for TensorRT, calibrated on real images, and audit it for overflow.

TensorRT 11 has no weak typing: the graph states the precision, and the network is built with these types. ModelOpt's
AutoCast decides by calibration which nodes stay FP32. ONNX Runtime on a CPU computes FP16 in a wider type, so parity
alone would miss overflow. The audit therefore looks at the FP32 values.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from plurum.errors import ParityError, needs_extra
from plurum.export.graphs.member import detector_nodes
from plurum.export.graphs.runtimes import onnx_session
from plurum.spec import INPUT_PIXELS

__all__ = ["HEADROOM", "OverflowAudit", "check_overflow", "fp16_from_onnx", "overflow_audit", "silence_converters"]

FP16_MAX = 65504.0
# Images in service may give larger values than the calibration images.
HEADROOM = 0.5
# AutoCast runs the graph once per image with every tensor exposed: more images are slow and change little.
_AUTOCAST_IMAGES = 16
_HEAVY = {"Conv", "Gemm", "MatMul"}


@dataclass(frozen=True)
class OverflowAudit:
    """Largest value in an FP16 graph's tensors, to be compared with FP16's largest number.

    Attributes:
        tensors: Number of FP16 tensors examined, weights included.
        worst: Name of the tensor with the largest magnitude.
        absmax: Largest magnitude in that tensor, computed in FP32.
    """

    tensors: int
    worst: str
    absmax: float

    @property
    def passed(self) -> bool:
        """True if all tensors stay below FP16's largest number with headroom; False for NaN."""
        return self.absmax <= HEADROOM * FP16_MAX


def fp16_from_onnx(source: Path, pixels: npt.NDArray[np.uint8], path: Path) -> None:
    """Write the FP16 form of the graph `source` to `path`; inputs and outputs keep their types.

    Args:
        source: FP32 graph of a member.
        pixels: Calibration images, uint8 `[images, height, width, 3]`.
        path: File for the FP16 graph.

    Raises:
        MissingExtraError: the extra `fp16` is not installed.
    """
    with needs_extra("fp16", "modelopt", "onnx_graphsurgeon", "onnxconverter_common", "lief"), silence_converters():
        from modelopt.onnx import autocast
    graph = onnx.load(source).graph
    # The detector stays FP32, too: its distances have a wide range, and it is small.
    whole = [*_nodes_before_first_layer(graph), *(node.name for node in detector_nodes(graph))]
    with tempfile.TemporaryDirectory() as folder, silence_converters():
        calibration = Path(folder) / "calibration.npz"
        arrays: dict[str, Any] = {INPUT_PIXELS: pixels[:_AUTOCAST_IMAGES]}
        np.savez(calibration, **arrays)
        model = autocast.convert_to_mixed_precision(
            str(source),
            low_precision_type="fp16",
            keep_io_types=True,
            calibration_data=str(calibration),
            nodes_to_exclude=[f"^{re.escape(name)}$" for name in whole],
        )
    onnx.save(model, path)
    onnx.checker.check_model(path, full_check=True)


def overflow_audit(source: Path, half: Path, pixels: npt.NDArray[np.uint8]) -> OverflowAudit:
    """Return the largest magnitude, in FP32, of any tensor that is FP16 in the graph `half`.

    Args:
        source: FP32 graph that `half` was made from, with the same tensor names.
        half: FP16 graph.
        pixels: Images to run the graph on, uint8 `[images, height, width, 3]`.
    """
    model, halved = onnx.load(source), onnx.load(half)
    computed, stated = _floats(model)
    # Check the inputs of casts too: AutoCast names the outputs, so the FP32 graph does not have them.
    names = sorted((_half_tensors(halved) | _cast_to_half(halved, computed)) & computed)
    extremes = _weights(halved)
    if not names:
        # Without output names, ONNX Runtime returns all outputs.
        return _audit_from_extremes(extremes)
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in stated
    )
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, Path(folder) / "exposed.onnx")
        session = onnx_session(Path(folder) / "exposed.onnx")
        for image in pixels:
            values = session.run(names, {INPUT_PIXELS: image[None]})
            for name, value in zip(names, values, strict=True):
                extremes[name] = float(np.maximum(extremes.get(name, 0.0), np.abs(value).max(initial=0.0)))
    return _audit_from_extremes(extremes)


def check_overflow(name: str, audit: OverflowAudit) -> None:
    """Refuse a graph that would overflow.

    Raises:
        ParityError: a tensor would overflow, or has too little headroom.
    """
    if not audit.passed:
        raise ParityError(
            f"the FP16 graph of {name} would overflow: {audit.worst} reaches {audit.absmax:.3g} on calibration images; "
            f"expected at most {HEADROOM * FP16_MAX:.0f}, which leaves headroom below FP16's largest number. "
            f"Nothing was written. Choose --precision fp32"
        )


@contextmanager
def silence_converters() -> Iterator[None]:
    """Suppress the converters' log messages below errors; parity checks their result."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _nodes_before_first_layer(graph: Any) -> list[str]:
    """Return the nodes between PIXELS and the first layer, which normalise; cheap enough to stay FP32."""
    reached, names = {INPUT_PIXELS}, []
    for node in graph.node:
        if node.op_type not in _HEAVY and reached & set(node.input):
            names.append(node.name)
            reached |= set(node.output)
    return names


def _audit_from_extremes(extremes: dict[str, float]) -> OverflowAudit:
    # NaN counts as the largest value, and every comparison with it is False.
    worst = max(extremes, key=lambda name: (np.isnan(extremes[name]), extremes[name]), default="")
    return OverflowAudit(len(extremes), worst, extremes.get(worst, 0.0))


def _weights(half: Any) -> dict[str, float]:
    """Return the largest magnitude of every weight that is FP16 or cast to FP16, by name."""
    cast = {node.input[0] for node in _casts(half, TensorProto.FLOAT16)}
    return {
        weight.name: float(np.abs(onnx.numpy_helper.to_array(weight)).max(initial=0.0))
        for weight in half.graph.initializer
        if weight.data_type == TensorProto.FLOAT16 or (weight.data_type == TensorProto.FLOAT and weight.name in cast)
    }


def _half_tensors(half: Any) -> set[str]:
    """Return the names of a graph's FP16 tensors, apart from its outputs."""
    graph = onnx.shape_inference.infer_shapes(half).graph
    return {one.name for one in graph.value_info if one.type.tensor_type.elem_type == TensorProto.FLOAT16}


def _cast_to_half(half: Any, computed: set[str]) -> set[str]:
    """Return the tensors that are cast to FP16, by name in the FP32 graph; chains of casts are followed back to it."""
    back = {node.output[0]: node.input[0] for node in half.graph.node if node.op_type == "Cast"}
    found = set()
    for node in _casts(half, TensorProto.FLOAT16):
        name = node.input[0]
        while name not in computed and name in back:
            name = back[name]
        found.add(name)
    return found


def _casts(model: Any, to: int) -> list[Any]:
    return [
        node
        for node in model.graph.node
        if node.op_type == "Cast" and any(one.name == "to" and one.i == to for one in node.attribute)
    ]


def _floats(model: Any) -> tuple[set[str], set[str]]:
    """Return the names of the FP32 tensors that a graph computes, and the names of its outputs."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    floats = {
        one.name for one in (*graph.value_info, *graph.output) if one.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    computed = floats & {output for node in graph.node for output in node.output}
    return computed, {output.name for output in graph.output}
