"""ONNX files, broken at random: a model with its weights, or one line; and no other file is read."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from plurum.errors import PlurumError
from plurum.onnx_graphs.files import read_onnx, tensors_of
from plurum.onnx_graphs.member_graphs import GraphSource, convert_graph
from tests.fuzz.mutations import Fuzz, broken_bytes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]

_SECRET = b"\x07\x5e\xc2\xe7" * 4


def small_graph(path: Path) -> bytes:
    """Write a graph whose weights lie beside it, and return it."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["picture"], ["means"]),
        helper.make_node("Reshape", ["means", "shape"], ["flat"]),
        helper.make_node("Gemm", ["flat", "head"], ["scores"], transB=1),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("shares", TensorProto.FLOAT, [1, 2])],
        [
            numpy_helper.from_array(np.ones((2, 3), np.float32), "head"),
            numpy_helper.from_array(np.array([1, 3]), "shape"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path.read_bytes()


def test_onnx_files(tmp_path: Path) -> None:
    path, folder = tmp_path / "in" / "model.onnx", tmp_path / "in"
    folder.mkdir()
    fuzz, corpus = Fuzz("ONNX files"), [small_graph(path)]
    onnx.save(onnx.load(path), tmp_path / "whole.onnx")
    corpus.append((tmp_path / "whole.onnx").read_bytes())
    (tmp_path / "secret").write_bytes(_SECRET)
    shutil.copyfile(folder / "weights.bin", tmp_path / "weights.bin")
    source = GraphSource("", "", "NCHW", "probabilities", 8, 8, (0, 1))
    for draw in fuzz.draws():
        content = broken_bytes(draw, draw.choice(corpus), 3, [b"../secret", b"/etc/passwd", b"weights.bin"])
        path.write_bytes(content)
        model: Any = fuzz.fed(lambda: read_onnx(path), content)
        if model is not None:
            assert all(_SECRET not in tensor.raw_data for tensor in tensors_of(model)), f"{fuzz}: {content!r}"
            assert not any(tensor.external_data for tensor in tensors_of(model)), f"{fuzz}: {content!r}"
            _convert(model, source)


def _convert(model: Any, source: GraphSource) -> None:
    # What onnx itself raises becomes one line where the command converts.
    with contextlib.suppress(PlurumError, ValueError, RuntimeError, LookupError, TypeError):
        convert_graph(model, source)
