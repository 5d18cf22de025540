"""TensorRT-RTX's builder, which needs no GPU, and engines that must not reach a server."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from plurum.errors import RepositoryError
from plurum.export.engines.build import RTX_MAGIC, Engine, build_engines, engine_from_onnx, read_plan, write_plan
from plurum.onnx_graphs.export import onnx_from_module


class Tiny(nn.Module):
    """uint8 pixels [batch, 8, 8, 3] → logits [batch, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.conv(pixels.to(torch.float32).permute(0, 3, 1, 2))
        return features.mean(dim=(2, 3))[:, :2]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "model.onnx"
    onnx_from_module(Tiny(), (torch.zeros(2, 8, 8, 3, dtype=torch.uint8),), path, ("PIXELS",), ("LOGITS",))
    return path


def test_a_graph_builds_with_its_batch_free(graph: Path) -> None:
    engine = engine_from_onnx(graph, 16, "tensorrt_rtx")
    assert engine.inputs == {"PIXELS": ("UINT8", (-1, 8, 8, 3))}
    assert engine.outputs == {"LOGITS": ("FLOAT", (-1, 2))}
    assert engine.data.startswith(RTX_MAGIC)


def test_what_parses_and_does_not_build_says_so(tmp_path: Path) -> None:
    """Return the operator that timm's fused attention becomes from opset 23 on."""
    attention = helper.make_graph(
        [helper.make_node("Attention", ["X", "X", "X"], ["Y"])],
        "attention",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["batch", 2, 8, 4])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["batch", 2, 8, 4])],
    )
    model = helper.make_model(attention, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    onnx.save(model, tmp_path / "attention.onnx")
    with pytest.raises(RepositoryError, match=r"TensorRT parses .*attention\.onnx and can't build it: .+"):
        engine_from_onnx(tmp_path / "attention.onnx", 16, "tensorrt_rtx")


def test_a_file_that_is_no_graph(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(RepositoryError, match=r"TensorRT can't parse .*model\.onnx"):
        engine_from_onnx(tmp_path / "model.onnx", 16, "tensorrt_rtx")


def test_an_rtx_engine_never_becomes_a_plan(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="built by TensorRT-RTX, which Triton does not load"):
        write_plan(Engine(RTX_MAGIC + b"...", "1.7", {}, {}), tmp_path / "model.plan")
    assert list(tmp_path.iterdir()) == []


def test_a_plan_without_its_manifest(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"model\.plan\.json can't be read: .*; build the plan again"):
        read_plan(tmp_path / "model.plan")


def test_a_repository_for_a_cpu_has_no_plans(repository: Path) -> None:
    with pytest.raises(RepositoryError, match="has no graph for TensorRT; export it with --target gpu"):
        build_engines(repository)
