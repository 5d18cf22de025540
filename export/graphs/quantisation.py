"""From an FP32 graph to an INT8 one for a CPU, calibrated on real images.

Activations become uint8, weights int8 per channel (u8s8), which AVX512-VNNI multiplies fastest. TensorRT wants the
other kind (int8 activations, no quantised bias), so that these graphs are for CPUs only.

What is rounded depends on what computes it. ONNX Runtime's integer kernels take integers and give integers, and what
lies between them is rounded too, lest numbers be converted to and fro. OpenVINO's give floating point, and round it
for the next in the same pass as activation, normalisation or sum: there only what enters a heavy layer is rounded,
which also answers nearer to FP32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from plurum.export.graphs.float16 import quiet_converters
from plurum.export.settings import Backend
from plurum.spec import INPUT_PIXELS
from plurum.telemetry import forbid_telemetry

__all__ = ["int8_from_onnx"]

_BATCH = 8
_HEAVY = ("Conv", "Gemm", "MatMul")
_BETWEEN = ("Add", "Relu", "MaxPool", "GlobalAveragePool")


class _Reader:
    """Hands calibration images to ONNX Runtime, a batch at a time."""

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
        source: An FP32 member graph.
        pixels: uint8 `[images, height, width, 3]`: calibration images, which no accuracy is ever measured on.
        path: Where the QDQ graph goes.
        backend: What will compute it.
    """
    forbid_telemetry()
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    inputs_alone = backend == "openvino"
    with tempfile.TemporaryDirectory() as folder, quiet_converters():
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            path,
            _Reader(pixels),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            calibrate_method=CalibrationMethod.MinMax,
            op_types_to_quantize=[*_HEAVY] if inputs_alone else _operators(prepared),
            extra_options={
                "WeightSymmetric": True,
                "ActivationSymmetric": False,
                # The mean of the batches' extremes (as arXiv 1806.08342 has it): one image that is not like the others
                # would leave coarse steps for all.
                "CalibMovingAverage": True,
                "OpTypesToExcludeOutputQuantization": [*_HEAVY] if inputs_alone else [],
            },
        )


def _operators(path: Path) -> list[str]:
    """Return what to quantise: what is heavy and, where it is harmless, what lies between."""
    present = {node.op_type for node in onnx.load(path).graph.node}
    # The residual sums of transformers, which layer normalisation tames, have outliers that 8 bits can't hold:
    # a ViT's logits moved by more than their own spread with Add, by a tenth of it without.
    return [*_HEAVY] if "LayerNormalization" in present else [*_HEAVY, *_BETWEEN]
