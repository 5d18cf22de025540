"""Our backend for `backend: "onnxruntime"`, inside a real server, on graphs small enough to foresee."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from plurum.errors import ServerError
from plurum.serving import Server, ServerSettings

pytestmark = pytest.mark.triton

# Long enough for a test's requests to meet in one batch, one instance so that there is only one place to meet.
MEET = """
dynamic_batching { preferred_batch_size: 4 max_queue_delay_microseconds: 2000000 }
instance_group { count: 1 kind: KIND_CPU }
"""
TABLE = np.arange(10, dtype=np.float32) * 10


def write_graph(
    repository: Path, name: str, node: Any, shapes: Mapping[str, tuple[int, list[Any]]], config: str, **constants: Any
) -> None:
    """Write a model of one node; `shapes` are its input's and its output's, in this order."""
    tensors = [helper.make_tensor_value_info(tensor, *shape) for tensor, shape in shapes.items()]
    weights = [numpy_helper.from_array(value, constant) for constant, value in constants.items()]
    graph = helper.make_graph([node], name, tensors[:1], tensors[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (repository / name / "1").mkdir(parents=True)
    onnx.save(model, repository / name / "1" / "model.onnx")
    (repository / name / "config.pbtxt").write_text(f'backend: "onnxruntime"\n{config}')


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("graphs")
    batched = {"X": (TensorProto.INT64, ["batch", "n"]), "Y": (TensorProto.FLOAT, ["batch", "n"])}
    stated = """
        max_batch_size: 8
        input { name: "X" data_type: TYPE_INT64 dims: [-1] }
        output { name: "Y" data_type: TYPE_FP32 dims: [-1] }
    """
    # An index beyond the table fails inside ONNX Runtime, and the whole run with it.
    gather = helper.make_node("Gather", ["table", "X"], ["Y"])
    write_graph(repository, "lookup", gather, batched, stated + MEET, table=TABLE)
    write_graph(repository, "unstated", gather, batched, "", table=TABLE)
    # Adds up along the batch: shows what was run together.
    running = helper.make_node("CumSum", ["X", "axis"], ["Y"])
    sums = {"X": (TensorProto.FLOAT, ["batch", "n"]), "Y": (TensorProto.FLOAT, ["batch", "n"])}
    write_graph(repository, "running", running, sums, stated.replace("INT64", "FP32") + MEET, axis=np.array(0))
    square = {"X": (TensorProto.FLOAT, [2, 2]), "Y": (TensorProto.FLOAT, [2, 2])}
    write_graph(repository, "unbatched", helper.make_node("Neg", ["X"], ["Y"]), square, "")
    return repository


@pytest.fixture(scope="module")
def server(graphs: Path) -> Iterator[Server]:
    with Server(graphs, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.urls.grpc) as client:
        yield client


def tensor(values: npt.NDArray[Any]) -> Any:
    made = InferInput("X", list(values.shape), np_to_triton_dtype(values.dtype))
    made.set_data_from_numpy(values)
    return made


def ask_together(
    client: InferenceServerClient, *questions: list[list[int]], model: str = "lookup", dtype: Any = np.int64
) -> list[Any]:
    """Send all at once; return answers, or errors, in the order of the questions."""
    arrived: queue.Queue[tuple[int, Any]] = queue.Queue()

    def answered(index: int) -> Any:
        return lambda result, error: arrived.put((index, error or result.as_numpy("Y")))

    for index, question in enumerate(questions):
        client.async_infer(model, [tensor(np.array(question, dtype))], answered(index))
    answers = dict(arrived.get(timeout=20) for _ in questions)
    return [answers[index] for index in range(len(questions))]


def executions(client: InferenceServerClient) -> dict[int, int]:
    """Return how often the model was run with each batch size."""
    (statistics,) = client.get_inference_statistics("lookup").model_stats
    return {entry.batch_size: entry.compute_infer.count for entry in statistics.batch_stats}


def grown(before: dict[int, int], after: dict[int, int]) -> dict[int, int]:
    return {size: count - before.get(size, 0) for size, count in after.items() if count != before.get(size, 0)}


def test_concurrent_requests_become_one_batch(client: InferenceServerClient) -> None:
    before = executions(client)
    one, two, three = ask_together(client, [[1]], [[2], [3]], [[4]])
    # Triton counts a batch after its answers have left.
    deadline = time.monotonic() + 10
    while not grown(before, executions(client)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert grown(before, executions(client)) == {4: 1}
    assert one.tolist() == [[10]]
    assert two.tolist() == [[20], [30]]
    assert three.tolist() == [[40]]


def test_one_run_is_one_run_of_the_session(client: InferenceServerClient) -> None:
    questions = [[[1]], [[20]], [[300], [4000]]]
    answers = ask_together(client, *questions, model="running", dtype=np.float32)
    sums = sorted(answer.ravel().tolist() for answer in answers)
    # In whatever order they arrived, the last has added up all.
    assert max(map(max, sums)) == 4321
    assert len({value for values in sums for value in values}) == 4


def test_a_failing_request_does_not_affect_others(client: InferenceServerClient) -> None:
    before = executions(client)
    one, bad, three, four = ask_together(client, [[1]], [[99]], [[3]], [[4]])
    # A batch with a failure is not in the statistics: nothing but it was run.
    assert grown(before, executions(client)) in ({}, {4: 1})
    assert isinstance(bad, InferenceServerException)
    assert "indices element out of data bounds, idx=99" in bad.message()
    assert (one.tolist(), three.tolist(), four.tolist()) == ([[10]], [[30]], [[40]])


def test_requests_of_other_shapes_are_answered_beside_each_other(client: InferenceServerClient) -> None:
    answers = ask_together(client, [[1]], [[2, 3]], [[4]], [[5, 6]])
    assert [answer.tolist() for answer in answers] == [[[10]], [[20, 30]], [[40]], [[50, 60]]]


def test_missing_fields_of_a_config_come_from_the_graph(client: InferenceServerClient) -> None:
    config = client.get_model_config("unstated").config
    assert config.max_batch_size == 4
    assert [(entry.name, list(entry.dims)) for entry in config.input] == [("X", [-1])]
    assert [(entry.name, list(entry.dims)) for entry in config.output] == [("Y", [-1])]
    answer = client.infer("unstated", [tensor(np.array([[1, 2], [3, 4]], np.int64))])
    assert answer.as_numpy("Y").tolist() == [[10, 20], [30, 40]]


def test_a_graph_without_a_batch_dimension_is_served(client: InferenceServerClient) -> None:
    config = client.get_model_config("unbatched").config
    assert config.max_batch_size == 0
    assert [list(entry.dims) for entry in config.input] == [[2, 2]]
    values = np.array([[1, 2], [3, 4]], np.float32)
    assert np.array_equal(client.infer("unbatched", [tensor(values)]).as_numpy("Y"), -values)


@pytest.mark.parametrize(
    ("question", "reason"),
    [
        (np.zeros((1, 2), np.float32), "'X' data-type is 'FP32', but model 'lookup' expects 'INT64'"),
        (np.zeros((2,), np.int64), "unexpected shape for input 'X'"),
        (np.zeros((9, 2), np.int64), "batch-size must be <= 8"),
    ],
    ids=["dtype", "rank", "batch"],
)
def test_invalid_requests_are_client_errors_and_serving_continues(
    client: InferenceServerClient, question: npt.NDArray[Any], reason: str
) -> None:
    with pytest.raises(InferenceServerException, match=reason) as raised:
        client.infer("lookup", [tensor(question)])
    assert raised.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert client.infer("lookup", [tensor(np.array([[7]] * 4, np.int64))]).as_numpy("Y").tolist() == [[70]] * 4


def test_outputs_that_the_graph_lacks_are_refused(graphs: Path, tmp_path: Path) -> None:
    model = tmp_path / "lookup"
    model.mkdir()
    (model / "1").symlink_to(graphs / "lookup" / "1")
    config = (graphs / "lookup" / "config.pbtxt").read_text()
    (model / "config.pbtxt").write_text(config.replace('output { name: "Y"', 'output { name: "Z"'))
    server = Server(tmp_path, ServerSettings(http_port=0, grpc_port=0, metrics_port=0))
    with pytest.raises(ServerError, match=r"config\.pbtxt names the outputs Z; the graph has Y"), server:
        pass
    server.log.path.unlink()
