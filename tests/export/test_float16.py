"""FP16 conversion keeps overflowing tensors in FP32, and the audit finds overflow that ONNX Runtime hides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from plurum.errors import ParityError
from plurum.export.graphs.float16 import OverflowAudit, check_overflow, fp16_from_onnx, overflow_audit
from plurum.export.graphs.runtimes import Artefact, outputs_from_artefact
from plurum.onnx_graphs.export import onnx_from_module

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)


class Overflowing(nn.Module):
    """Return a graph with intermediate values of a million."""

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
    onnx_from_module(Overflowing(scale), (sample,), path, ("PIXELS",), ("LOGITS",))
    return path


def halved(source: Path) -> Path:
    """Convert naively, without regard for overflow."""
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
    # In the FP32 graph, ReLU's input is a million times the first layer's output.
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
    answers = [outputs_from_artefact(Artefact("m", "fp16", "tensorrt", path), PIXELS).logits for path in (source, half)]
    np.testing.assert_allclose(answers[0], answers[1], atol=5e-3)


def graph_of(nodes: list[Any], path: Path) -> Path:
    """Return a graph from PIXELS, uint8 `[batch, 8, 8, 3]`, to LOGITS, with constants of a million and a millionth."""
    inputs = [helper.make_tensor_value_info("PIXELS", TensorProto.UINT8, ["batch", 8, 8, 3])]
    outputs = [helper.make_tensor_value_info("LOGITS", TensorProto.FLOAT, ["batch", 8, 8, 3])]
    constants = [helper.make_tensor(name, TensorProto.FLOAT, [1], [value]) for name, value in CONSTANTS.items()]
    graph = helper.make_graph(nodes, "planted", inputs, outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    onnx.checker.check_model(path, full_check=True)
    return path


CONSTANTS = {"large": 1e4, "small": 1e-6}
TO_FLOAT = helper.make_node("Cast", ["PIXELS"], ["floats"], to=TensorProto.FLOAT)
TO_LARGE = helper.make_node("Mul", ["floats", "large"], ["millions"])
# Names as AutoCast gives to added tensors.
TO_HALF = helper.make_node("Cast", ["millions"], ["millions_cast_to_fp16"], to=TensorProto.FLOAT16)


def planted_source(folder: Path) -> Path:
    last = helper.make_node("Mul", ["millions", "small"], ["LOGITS"])
    return graph_of([TO_FLOAT, TO_LARGE, last], folder / "source.onnx")


@pytest.mark.parametrize("detour", [False, True], ids=["directly", "by another cast"])
def test_a_value_too_large_that_is_cast_to_fp16_is_seen(tmp_path: Path, detour: bool) -> None:
    """At most 2.55 million in FP32, and infinite after the cast; no FP16 tensor has the source's name."""
    casts = [TO_HALF]
    if detour:
        there = helper.make_node("Cast", ["millions"], ["doubles"], to=TensorProto.DOUBLE)
        casts = [there, helper.make_node("Cast", ["doubles"], ["millions_cast_to_fp16"], to=TensorProto.FLOAT16)]
    back = helper.make_node("Cast", ["millions_cast_to_fp16"], ["singles"], to=TensorProto.FLOAT)
    last = helper.make_node("Mul", ["singles", "small"], ["LOGITS"])
    half = graph_of([TO_FLOAT, TO_LARGE, *casts, back, last], tmp_path / "half.onnx")
    audit = overflow_audit(planted_source(tmp_path), half, PIXELS)
    assert audit.worst == "millions"
    assert audit.absmax == pytest.approx(float(PIXELS.max()) * 1e4)
    assert not audit.passed


def test_a_graph_with_nothing_in_fp16_overflows_nowhere(tmp_path: Path) -> None:
    source = planted_source(tmp_path)
    assert overflow_audit(source, source, PIXELS) == OverflowAudit(0, "", 0.0)


def test_a_weight_that_is_cast_to_fp16_is_seen(tmp_path: Path) -> None:
    cast = helper.make_node("Cast", ["large"], ["large_cast_to_fp16"], to=TensorProto.FLOAT16)
    back = helper.make_node("Cast", ["large_cast_to_fp16"], ["single"], to=TensorProto.FLOAT)
    last = helper.make_node("Mul", ["floats", "single"], ["LOGITS"])
    half = graph_of([TO_FLOAT, cast, back, last], tmp_path / "half.onnx")
    assert overflow_audit(planted_source(tmp_path), half, PIXELS) == OverflowAudit(1, "large", 1e4)


def test_not_a_number_is_the_worst(tmp_path: Path) -> None:
    root = helper.make_node("Sqrt", ["below"], ["roots"])
    below = helper.make_node("Neg", ["millions"], ["below"])
    last = helper.make_node("Mul", ["roots", "small"], ["LOGITS"])
    source = graph_of([TO_FLOAT, TO_LARGE, below, root, last], tmp_path / "source.onnx")
    cast = helper.make_node("Cast", ["roots"], ["roots_cast_to_fp16"], to=TensorProto.FLOAT16)
    back = helper.make_node("Cast", ["roots_cast_to_fp16"], ["LOGITS"], to=TensorProto.FLOAT)
    half = graph_of([TO_FLOAT, TO_LARGE, below, root, cast, back], tmp_path / "half.onnx")
    audit = overflow_audit(source, half, PIXELS)
    assert audit.worst == "roots"
    assert np.isnan(audit.absmax)
    assert not audit.passed
