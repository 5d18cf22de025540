"""From an FP32 graph to an FP16 one for TensorRT, calibrated on real images, and the audit of what it may overflow.

TensorRT 11 knows no weak typing: the precision is in the graph, and the network is built as it is typed. ModelOpt's
AutoCast decides by calibration which nodes stay FP32. ONNX Runtime on a CPU computes FP16 wider than it is and hides
overflow, so that parity alone would not see it; the audit looks at the FP32 values themselves.
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
from plurum.export.graphs.runtimes import onnx_session
from plurum.spec import INPUT_PIXELS

__all__ = ["HEADROOM", "OverflowAudit", "check_overflow", "fp16_from_onnx", "overflow_audit", "quiet_converters"]

FP16_MAX = 65504.0
# Images to be served may reach further than those calibrated on.
HEADROOM = 0.5
# AutoCast runs the graph with every tensor exposed, an image at a time: more of them teach it little.
_AUTOCAST_IMAGES = 16
_HEAVY = {"Conv", "Gemm", "MatMul"}


@dataclass(frozen=True)
class OverflowAudit:
    """How near an FP16 graph comes to FP16's end.

    Attributes:
        tensors: How many FP16 tensors were looked at, weights included.
        worst: The name of the largest.
        absmax: Its largest magnitude in FP32.
    """

    tensors: int
    worst: str
    absmax: float

    @property
    def passed(self) -> bool:
        """Whether all stay below FP16's largest number with headroom; NaN never does."""
        return self.absmax <= HEADROOM * FP16_MAX


def fp16_from_onnx(source: Path, pixels: npt.NDArray[np.uint8], path: Path) -> None:
    """Write the FP16 form of the graph `source` to `path`; inputs and outputs keep their types.

    Args:
        source: An FP32 member graph.
        pixels: uint8 `[images, height, width, 3]`: calibration images.
        path: Where the FP16 graph goes.

    Raises:
        MissingExtraError: the extra `gpu` is not installed.
    """
    with needs_extra("gpu", "modelopt", "onnx_graphsurgeon", "onnxconverter_common", "lief"), quiet_converters():
        from modelopt.onnx import autocast
    with tempfile.TemporaryDirectory() as folder, quiet_converters():
        calibration = Path(folder) / "calibration.npz"
        np.savez(calibration, **{INPUT_PIXELS: pixels[:_AUTOCAST_IMAGES]})
        model = autocast.convert_to_mixed_precision(
            str(source),
            low_precision_type="fp16",
            keep_io_types=True,
            calibration_data=str(calibration),
            nodes_to_exclude=[f"^{re.escape(name)}$" for name in _before_the_first_layer(onnx.load(source).graph)],
        )
    onnx.save(model, path)
    onnx.checker.check_model(path, full_check=True)


def overflow_audit(source: Path, half: Path, pixels: npt.NDArray[np.uint8]) -> OverflowAudit:
    """Return the largest value, in FP32, of any tensor that is FP16 in the graph `half`.

    Args:
        source: The FP32 graph that `half` was made from, with the same names.
        half: The FP16 graph.
        pixels: uint8 `[images, height, width, 3]`: what to run it on.
    """
    model, halved = onnx.load(source), onnx.load(half)
    computed, stated = _floats(model)
    # What a cast takes in must fit as well as what comes out of it; the cast's own name is the converter's.
    names = sorted((_half_tensors(halved) | _cast_to_half(halved, computed)) & computed)
    extremes = _weights(halved)
    if not names:
        # Asked for no output, ONNX Runtime answers all of them.
        return _audit_of(extremes)
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
    return _audit_of(extremes)


def check_overflow(name: str, audit: OverflowAudit) -> None:
    """Refuse a graph that would overflow.

    Raises:
        ParityError: it would, or has too little headroom.
    """
    if not audit.passed:
        raise ParityError(
            f"the FP16 graph of {name} would overflow: {audit.worst} reaches {audit.absmax:.3g} on calibration images, "
            f"at most {HEADROOM * FP16_MAX:.0f} leaves headroom below FP16's largest number; nothing was written. "
            f"Take --precision fp32"
        )


@contextmanager
def quiet_converters() -> Iterator[None]:
    """Hold back what converters log below an error: parity judges what they made."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _before_the_first_layer(graph: Any) -> list[str]:
    """Return the nodes that normalise: between PIXELS and the first layer. They stay FP32, as they cost nothing."""
    reached, names = {INPUT_PIXELS}, []
    for node in graph.node:
        if node.op_type not in _HEAVY and reached & set(node.input):
            names.append(node.name)
            reached |= set(node.output)
    return names


def _audit_of(extremes: dict[str, float]) -> OverflowAudit:
    # NaN is the worst of all, and compares with nothing.
    worst = max(extremes, key=lambda name: (np.isnan(extremes[name]), extremes[name]), default="")
    return OverflowAudit(len(extremes), worst, extremes.get(worst, 0.0))


def _weights(half: Any) -> dict[str, float]:
    """Return the largest magnitude of every weight that is FP16, or is cast to it."""
    cast = {node.input[0] for node in _casts(half, TensorProto.FLOAT16)}
    return {
        weight.name: float(np.abs(onnx.numpy_helper.to_array(weight)).max(initial=0.0))
        for weight in half.graph.initializer
        if weight.data_type == TensorProto.FLOAT16 or (weight.data_type == TensorProto.FLOAT and weight.name in cast)
    }


def _half_tensors(half: Any) -> set[str]:
    """Return the tensors of a graph that are FP16, without the casts' own names."""
    graph = onnx.shape_inference.infer_shapes(half).graph
    return {one.name for one in graph.value_info if one.type.tensor_type.elem_type == TensorProto.FLOAT16}


def _cast_to_half(half: Any, computed: set[str]) -> set[str]:
    """Return what is cast to FP16, by its name in the FP32 graph: casts of casts are followed back to there."""
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
    """Return what an FP32 graph computes in FP32, and which of it are its outputs already."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    floats = {
        one.name for one in (*graph.value_info, *graph.output) if one.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    computed = floats & {output for node in graph.node for output in node.output}
    return computed, {output.name for output in graph.output}
