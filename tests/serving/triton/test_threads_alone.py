"""Threads of an instance that computes alone, in both models that run graphs; Triton itself is not needed for it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from plurum.onnx_graphs import stages
from plurum.serving.backends import cores

ROOT = Path(__file__).resolve().parents[3]
FILES = {
    "onnxruntime": ROOT / "serving" / "backends" / "onnxruntime" / "model.py",
    "openvino": ROOT / "model_repository" / "openvino" / "model.py",
}
THREADS = {"onnxruntime": "intra_op_thread_count", "openvino": "INFERENCE_NUM_THREADS"}


class Turns:
    """Stands for the shared cores: alone in every other use."""

    def __init__(self) -> None:
        self.number = 0

    @contextmanager
    def use(self) -> Iterator[bool]:
        self.number += 1
        yield self.number % 2 == 0


def load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def graph_file(tmp_path: Path) -> Path:
    shape: list[int | str] = ["batch", 4]
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("X", "Y")]
    graph = helper.make_graph([helper.make_node("Neg", ["X"], ["Y"])], "graph", tensors[:1], tensors[1:])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def model_of(library: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Load a model that runs graphs, with an empty module in place of Triton's."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    monkeypatch.setitem(sys.modules, "cores", cores)
    monkeypatch.setitem(sys.modules, "stages", stages)
    graph_model = load("graph_model", ROOT / "serving" / "backends" / "graph_model.py")
    monkeypatch.setitem(sys.modules, "graph_model", graph_model)
    return load("model", FILES[library])


@pytest.mark.parametrize(
    ("batching", "sizes"),
    [({}, [4, 2, 1]), ({"preferred_batch_size": [4]}, [4, 2, 1]), ({"preferred_batch_size": [1]}, [1])],
    ids=["short graph", "tuned", "long graph"],
)
def test_openvino_compiles_a_long_graph_for_single_images_alone(
    batching: dict[str, Any], sizes: list[int], graph_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"name": "fused", "max_batch_size": 7, "input": [{"name": "X"}], "parameters": {}}
    graph = model_of("openvino", monkeypatch)._Graph(
        graph_file, config | {"dynamic_batching": batching}, ["X"], cores.SharedCores(None)
    )
    assert list(graph._models) == sizes
    given = np.arange(28, dtype=np.float32).reshape(7, 4)
    np.testing.assert_array_equal(graph.infer({"X": given})["Y"], -given)


@pytest.mark.parametrize("library", FILES)
def test_a_graph_runs_with_the_threads_of_all_only_while_it_is_alone(
    library: str, graph_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(library, monkeypatch)
    parameters = {THREADS[library]: {"string_value": "1"}, "threads_alone": {"string_value": "2"}}
    config = {"name": "fused", "max_batch_size": 4, "input": [{"name": "X"}], "parameters": parameters}
    arguments = (config, ["X"], Turns()) if library == "openvino" else (config, Turns())
    graph = model._Graph(graph_file, *arguments)
    used: list[int] = []

    def recorded(inner: Any, threads: int) -> Any:
        class Recorder:
            def __call__(self, *given: Any) -> Any:
                used.append(threads)
                return inner(*given)

            run = __call__

        return Recorder()

    if library == "openvino":
        threads = [int(one.get_property("INFERENCE_NUM_THREADS")) for one in (graph._models[1], graph._alone)]
        graph._models = {size: recorded(one, threads[0]) for size, one in graph._models.items()}
        graph._alone = recorded(graph._alone, threads[1])
    else:
        sessions = (graph._session, graph._alone)
        threads = [int(one.get_session_options().intra_op_num_threads) for one in sessions]
        graph._session, graph._alone = (recorded(one.run, count) for one, count in zip(sessions, threads, strict=True))
    for _ in range(4):
        given = np.arange(4, dtype=np.float32)[None]
        np.testing.assert_array_equal(graph.infer({"X": given})["Y"], -given)
    assert used == [1, 2, 1, 2]
