"""Quantise an FP32 graph to INT8 for a CPU, calibrated on real images.

Activations become uint8, weights int8 per channel (u8s8), which AVX512-VNNI multiplies fastest. TensorRT needs int8
activations and no quantised bias, so these graphs are for CPUs only.

The quantised operators depend on the backend. ONNX Runtime's integer kernels take and return integers, so the
operators between them are quantised too, which saves conversions. OpenVINO's kernels return floating point, and
quantise it for the next layer in the same pass as activation, normalisation or sum. There, only the inputs of heavy
layers are quantised, which is also closer to FP32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from plurum.export.graphs.float16 import silence_converters
from plurum.export.graphs.member import detector_nodes, resizing_nodes
from plurum.export.settings import Backend
from plurum.onnx_graphs.telemetry import forbid_telemetry
from plurum.spec import INPUT_PIXELS

__all__ = ["int8_from_onnx"]

_BATCH = 8
_HEAVY = ("Conv", "Gemm", "MatMul")
_BETWEEN = ("Add", "Relu", "MaxPool", "GlobalAveragePool")


class _CalibrationReader:
    """Calibration data reader for ONNX Runtime, one batch at a time."""

    def __init__(self, pixels: npt.NDArray[np.uint8]) -> None:
        self._batches: Iterator[npt.NDArray[np.uint8]] = iter(
            [np.array(pixels[start : start + _BATCH]) for start in range(0, len(pixels), _BATCH)]
        )

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch as the session's inputs, or None at the end."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT_PIXELS: batch}


def int8_from_onnx(source: Path, pixels: npt.NDArray[np.uint8], path: Path, backend: Backend = "onnxruntime") -> None:
    """Write the INT8 form of the graph `source` to `path`.

    Args:
        source: FP32 graph of a member.
        pixels: Calibration images, uint8 `[images, height, width, 3]`; accuracy is never measured on them.
        path: File for the QDQ graph.
        backend: Backend that will run the graph.
    """
    forbid_telemetry()
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    inputs_alone = backend == "openvino"
    with tempfile.TemporaryDirectory() as folder, silence_converters():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            path,
            _CalibrationReader(pixels),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_exclude=_whole_nodes(prepared),
            op_types_to_quantize=[*_HEAVY] if inputs_alone else _operators(prepared),
            extra_options={
                "WeightSymmetric": True,
                "ActivationSymmetric": False,
                # Average the batches' extremes (arXiv 1806.08342): otherwise one unusual image would make the
                # quantisation steps coarse for all.
                "CalibMovingAverage": True,
                "OpTypesToExcludeOutputQuantization": [*_HEAVY] if inputs_alone else [],
            },
        )


def _whole_nodes(path: Path) -> list[str]:
    """Return the names of the nodes that stay FP32: a detector's distances have a wide range; resizing is exact."""
    graph = onnx.load(path).graph
    return [node.name for node in (*detector_nodes(graph), *resizing_nodes(graph))]


def _operators(path: Path) -> list[str]:
    """Return the operator types to quantise: heavy layers and, if accuracy allows, the operators between them."""
    present = {node.op_type for node in onnx.load(path).graph.node}
    # The residual sums of transformers have outliers that 8 bits can't hold: with Add quantised, a ViT's logits moved
    # by more than their own spread; without it, by a tenth of the spread.
    return [*_HEAVY] if "LayerNormalization" in present else [*_HEAVY, *_BETWEEN]
