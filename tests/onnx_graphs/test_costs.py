"""Work of graphs, and the batching that follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import model_config_pb2 as pb

from plurum.export import repository_from_onnx
from plurum.onnx_graphs.costs import multiply_adds
from plurum.run import Run
from plurum.spec import Ensemble


def write_graph(path: Path, nodes: list[Any], size: list[int | str], **weights: tuple[int, ...]) -> Path:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, size)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_convolutions_and_products_count_for_one_image(tmp_path: Path) -> None:
    node = helper.make_node
    image: list[int | str] = ["batch", 3, 8, 8]
    dense = [node("Conv", ["X", "w"], ["Y"], pads=[1, 1, 1, 1])]
    assert multiply_adds(write_graph(tmp_path / "dense", dense, image, w=(16, 3, 3, 3))) == 16 * 64 * 27
    strided = [node("Conv", ["X", "w"], ["Y"], group=3, strides=[2, 2], pads=[1, 1, 1, 1])]
    assert multiply_adds(write_graph(tmp_path / "depthwise", strided, image, w=(3, 1, 3, 3))) == 3 * 16 * 9
    product = [node("Flatten", ["X"], ["f"]), node("Gemm", ["f", "w"], ["g"], transB=1), node("Relu", ["g"], ["Y"])]
    assert multiply_adds(write_graph(tmp_path / "product", product, image, w=(5, 192))) == 5 * 192


@pytest.mark.parametrize(("pixels", "expected"), [(60, []), (64, [1])], ids=["short", "long"])
def test_only_short_graphs_wait_for_batches(run: Run, tmp_path: Path, pixels: int, expected: list[int]) -> None:
    channels = 24415
    nodes = [helper.make_node("Conv", ["X", "w"], ["Y"])]
    graph = write_graph(tmp_path / "graph", nodes, [1, 1, pixels, pixels], w=(channels, 1, 1, 1))
    assert multiply_adds(graph) == channels * pixels**2
    ensemble: Ensemble = run.ensemble()
    graphs = {member.name: graph for member in ensemble.members}
    repository_from_onnx(ensemble, graphs, tmp_path / "repository", form="chain")
    for member in ensemble.members:
        text = (tmp_path / "repository" / member.name / "config.pbtxt").read_text()
        config: Any = text_format.Parse(text, pb.ModelConfig())
        assert list(config.dynamic_batching.preferred_batch_size) == expected
