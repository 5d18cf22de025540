"""Our stand-in for `backend: "openvino"`, inside a real server, on graphs small enough to foresee."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from plurum.errors import ServerError
from plurum.serving import Server
from tests.serving.servers import FREE

pytestmark = pytest.mark.triton

CONFIG = """
backend: "openvino"
max_batch_size: 8
default_model_filename: "model.onnx"
input { name: "X" data_type: TYPE_FP32 dims: [-1] }
output { name: "Y" data_type: TYPE_FP32 dims: [1] }
dynamic_batching { preferred_batch_size: 4 max_queue_delay_microseconds: 2000000 }
instance_group { count: 1 kind: KIND_CPU }
"""
BF16 = 'parameters { key: "HINT_BF16" value { string_value: "YES" } }'
IMAGE = (3, 17, 23)
NET = CONFIG.replace("dims: [-1]", f"dims: {list(IMAGE)}").replace("dims: [1]", "dims: [5]").replace("2000000", "0")
NET = NET.replace("model.onnx", "net.onnx")
# 1 + 2⁻⁹ needs ten bits, which BF16 has not.
WEIGHT = np.float32(1 + 2**-9)


def save(graph: onnx.GraphProto, folder: Path, config: str, name: str) -> None:
    (folder / "1").mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "1" / name)
    (folder / "config.pbtxt").write_text(config)


def write_model(repository: Path, name: str, config: str) -> None:
    """Y = the sum of X, each times WEIGHT; a MatMul, which is what BF16 is for."""
    shapes: list[str | int | None] = ["batch", 64]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["X", "weights"], ["Y"])],
        name,
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, shapes)],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(np.full((64, 1), WEIGHT, np.float32), "weights")],
    )
    save(graph, repository / name, config, "model.onnx")


def write_net(repository: Path, name: str, config: str) -> None:
    """Two convolutions, a mean and a matrix product, all of random weights."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (16, 3, 3, 3), "w2": (32, 16, 3, 3), "w3": (32, 5)}
    weights = {key: rng.normal(size=shape, scale=0.2).astype(np.float32) for key, shape in shapes.items()}
    nodes = [
        helper.make_node("Conv", ["X", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("MatMul", ["f", "w3"], ["Y"]),
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, ["batch", *IMAGE])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(array, key) for key, array in weights.items()],
    )
    save(graph, repository / name, config, "net.onnx")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("openvino")
    write_model(repository, "exact", CONFIG)
    write_model(repository, "rounded", CONFIG + BF16)
    write_net(repository, "net", NET)
    write_net(repository, "rounded_net", NET + BF16)
    with Server(repository, FREE) as server:
        yield server


def tensor(rows: list[float], size: int = 64) -> Any:
    values = np.repeat(np.array(rows, np.float32)[:, None], size, axis=1)
    made = InferInput("X", list(values.shape), "FP32")
    made.set_data_from_numpy(values)
    return made


def ask(server: Server, model: str, *questions: Any) -> list[Any]:
    """Send all at once; return answers, or errors, in the order of the questions."""
    arrived: queue.Queue[tuple[int, Any]] = queue.Queue()
    with InferenceServerClient(server.urls.grpc) as client:
        for index, question in enumerate(questions):

            def answered(result: Any, error: Any, index: int = index) -> None:
                arrived.put((index, error or result.as_numpy("Y")))

            client.async_infer(model, [question], answered)
        answers = dict(arrived.get(timeout=20) for _ in questions)
    return [answers[index] for index in range(len(questions))]


def test_fp32_unless_the_config_hints_at_bf16(server: Server) -> None:
    (exact,) = ask(server, "exact", tensor([1, 2, 3, 4]))
    (rounded,) = ask(server, "rounded", tensor([1, 2, 3, 4]))
    expected = np.array([[1], [2], [3], [4]]) * 64 * WEIGHT
    np.testing.assert_allclose(exact, expected, rtol=1e-6)
    np.testing.assert_allclose(rounded, expected, rtol=2**-7)
    if "avx512_bf16" in Path("/proc/cpuinfo").read_text():
        assert np.abs(rounded / expected - 1).max() > 2**-10


def test_requests_are_batched_and_their_responses_separated(server: Server) -> None:
    one, two, three = ask(server, "exact", tensor([1]), tensor([2, 3]), tensor([4]))
    for answer, rows in ((one, [1]), (two, [2, 3]), (three, [4])):
        np.testing.assert_allclose(answer[:, 0], np.array(rows) * 64 * WEIGHT, rtol=1e-6)


@pytest.mark.parametrize("size", [2, 3, 4, 7, 8])
@pytest.mark.parametrize("model", ["net", "rounded_net"])
def test_predictions_do_not_depend_on_the_rest_of_the_batch(server: Server, model: str, size: int) -> None:
    """Whatever sizes a batch is made up of, each image is answered as if it were alone, to the last bit."""
    images = np.random.default_rng(size).normal(size=(size, *IMAGE)).astype(np.float32)

    def asked(rows: Any) -> Any:
        made = InferInput("X", list(rows.shape), "FP32")
        made.set_data_from_numpy(rows)
        return ask(server, model, made)[0]

    alone = np.concatenate([asked(images[row : row + 1]) for row in range(size)])
    assert np.unique(alone, axis=0).shape == alone.shape
    np.testing.assert_array_equal(asked(images), alone)


def test_a_failing_request_does_not_affect_others(server: Server) -> None:
    one, bad, three = ask(server, "exact", tensor([1]), tensor([1, 1], size=63), tensor([3]))
    assert isinstance(bad, InferenceServerException)
    assert "OpenVINO" in bad.message()
    np.testing.assert_allclose([one[0, 0], three[0, 0]], np.array([1, 3]) * 64 * WEIGHT, rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (CONFIG.replace('"Y"', '"Z"'), r"config\.pbtxt names the outputs Z; the graph has Y"),
        (CONFIG.replace("model.onnx", "absent.onnx"), r"OpenVINO can't load absent\.onnx"),
        (
            CONFIG + 'parameters { key: "INFERENCE_NUM_THREADS" value { string_value: "two" } }',
            "INFERENCE_NUM_THREADS: expected a number, got 'two'",
        ),
        (
            CONFIG + 'parameters { key: "threads_alone" value { string_value: "two" } }',
            "threads_alone: expected a number, got 'two'",
        ),
    ],
    ids=["output", "file", "threads", "threads alone"],
)
def test_models_that_cannot_be_served_name_the_reason(tmp_path: Path, config: str, reason: str) -> None:
    write_model(tmp_path, "model", config)
    server = Server(tmp_path, FREE)
    with pytest.raises(ServerError, match=reason), server:
        pass
    server.log.path.unlink()
