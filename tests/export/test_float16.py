"""FP16 keeps what overflows in FP32, and the audit sees what ONNX Runtime hides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

from plurum.errors import ParityError
from plurum.export.float16 import OverflowAudit, check_overflow, fp16_from_onnx, overflow_audit
from plurum.export.graphs import onnx_from_module
from plurum.export.runtimes import Artefact, logits_from_artefact

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)


class Overflowing(nn.Module):
    """Logits that come by way of values of a million."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(192, 16), nn.Linear(16, 2)
        self.scale = scale

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.first(pixels.to(torch.float32).flatten(1) / 255)
        logits: Tensor = self.second(torch.relu(features * self.scale) / self.scale)
        return logits


def exported(folder: Path, scale: float) -> Path:
    path = folder / f"{scale:g}.onnx"
    sample = torch.zeros(2, 8, 8, 3, dtype=torch.uint8)
    onnx_from_module(Overflowing(scale), sample, path, ("PIXELS",), ("LOGITS",))
    return path


def halved(source: Path) -> Path:
    """Convert as one does who has not heard of overflow."""
    from onnxconverter_common import float16

    path = source.with_suffix(".naive.onnx")
    onnx.save(float16.convert_float_to_float16(onnx.load(source), keep_io_types=True, op_block_list=["Cast"]), path)
    return path


@pytest.mark.filterwarnings("ignore")
def test_the_audit_tells_a_graph_that_overflows_from_one_that_does_not(tmp_path: Path) -> None:
    for scale, passes in ((1e6, False), (10.0, True)):
        source = exported(tmp_path, scale)
        audit = overflow_audit(source, halved(source), PIXELS)
        assert audit.tensors > 3
        assert audit.passed is passes
    large = exported(tmp_path, 1e6)
    # Measured on the FP32 graph: ReLU's input is a million times what the first layer answers.
    first = np.abs(Overflowing(1e6).first(torch.from_numpy(PIXELS).float().flatten(1) / 255).detach().numpy()).max()
    assert overflow_audit(large, halved(large), PIXELS).absmax == pytest.approx(first * 1e6, rel=1e-3)


def test_an_overflow_is_refused_with_its_place() -> None:
    check_overflow("m", OverflowAudit(9, "x", 32000.0))
    with pytest.raises(ParityError, match=r"FP16 graph of m would overflow: relu_3 reaches 1e\+05"):
        check_overflow("m", OverflowAudit(9, "relu_3", 1e5))
    with pytest.raises(ParityError, match="reaches nan"):
        check_overflow("m", OverflowAudit(9, "relu_3", float("nan")))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_autocast_keeps_what_overflows_and_the_audit_agrees(tmp_path: Path) -> None:
    source, half = exported(tmp_path, 1e6), tmp_path / "half.onnx"
    fp16_from_onnx(source, PIXELS, half)
    audit = overflow_audit(source, half, PIXELS)
    assert audit.passed
    assert audit.tensors > 0
    kinds = {weight.data_type for weight in onnx.load(half).graph.initializer}
    assert TensorProto.FLOAT16 in kinds
    answers = [logits_from_artefact(Artefact("m", "fp16", "tensorrt", path), PIXELS) for path in (source, half)]
    np.testing.assert_allclose(answers[0], answers[1], atol=5e-3)
