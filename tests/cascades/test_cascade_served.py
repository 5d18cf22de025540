"""A served cascade answers as the reference does, row by row, by every library, protocol and public model.

`models` is the form for GPUs: each stage is a model. ONNX Runtime stands in for TensorRT.
"""

from __future__ import annotations

import io
import json
import queue
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
from PIL import Image
from tritonclient.utils import InferenceServerException

from plurum.benchmarks.bench.result import BenchLoad, Case, Target
from plurum.benchmarks.bench.stages import count_stages, stage_figures
from plurum.client import EnsembleClient, Failure, Prediction
from plurum.errors import RepositoryError
from plurum.export import repository_from_onnx
from plurum.export.repository.configs import text_of
from plurum.predictions.arrays import Bytes
from plurum.predictions.outputs import OUTPUTS
from plurum.predictions.prediction import numbers_from_prediction
from plurum.score import Scorer
from plurum.serving import Server
from plurum.serving.triton.probe import Probe, ProbeError
from plurum.serving.triton.staging import read_config
from plurum.voting import CascadeVerdict
from tests.cascades.linear_cascade import CLASSES, ENSEMBLES, PIXELS, expected_verdict, write_members
from tests.cascades.stage_models import write_stage_models
from tests.serving.gateway.gateways import gateway, wait_until_ready
from tests.serving.servers import FREE
from tests.serving.voter_counts import wait_for_counts

pytestmark = pytest.mark.triton
ENSEMBLE = ENSEMBLES["three stages with detectors"]
MEMBERS = [member.name for member in ENSEMBLE.members]
MODELS = ("ensemble_pixels", "ensemble_fused")
# Images of which each leaves at another stage.
STAGES = expected_verdict(ENSEMBLE, PIXELS).stage
MIXED = PIXELS[[int(np.flatnonzero(one == STAGES)[0]) for one in (2, 0, 1, 0)]]


@pytest.fixture(scope="module", params=["onnxruntime", "openvino", "models"])
def exported(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp("cascade")
    # The first member, which runs last, is broken for images that are almost white.
    graphs = write_members(folder, ENSEMBLE, np.array([True, False, False]))
    if request.param == "models":
        repository = write_stage_models(ENSEMBLE, graphs, folder / "repository")
    else:
        repository = folder / "repository"
        repository_from_onnx(ENSEMBLE, graphs, repository, 8)
    config = read_config(repository / "fused")
    if request.param == "openvino":
        config.backend = request.param
    batch_four(repository, config)
    return repository


@pytest.fixture(scope="module")
def server(exported: Path) -> Iterator[Server]:
    with Server(exported, FREE) as server:
        yield server


def batch_four(repository: Path, config: Any) -> None:
    """Let the cascade wait for four requests, or for a time."""
    config.dynamic_batching.preferred_batch_size.append(4)
    config.dynamic_batching.max_queue_delay_microseconds = 300_000
    (repository / "fused" / "config.pbtxt").write_text(text_of(config), encoding="utf-8")


def request_of(pixels: Bytes) -> Any:
    values = np.ascontiguousarray(pixels)
    tensor = tritonclient.grpc.InferInput("PIXELS", list(values.shape), "UINT8")
    tensor.set_data_from_numpy(values)
    return tensor


def png_of(pixels: Bytes) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def check(found: Any, expected: CascadeVerdict, rows: slice = slice(None)) -> None:
    """Compare a response of Triton with the reference for its images."""
    values = vars(expected.verdict) | {"members_used": expected.members_used}
    values["label"] = np.array([name.encode() for name in CLASSES], dtype=np.object_)[expected.verdict.label]
    for name, one in OUTPUTS.items():
        if name == "AUDIT":
            continue
        received, wanted = found.as_numpy(name), values[one.field][rows]
        received = received[:, 0] if one.is_scalar else received
        if one.datatype == "FP32":
            np.testing.assert_allclose(received, wanted, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(received, wanted, err_msg=name)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("size", [1, 3, 8])
def test_answers_equal_the_reference(server: Server, model: str, size: int) -> None:
    expected = expected_verdict(ENSEMBLE, PIXELS)
    with tritonclient.grpc.InferenceServerClient(server.urls.grpc) as client:
        for at in range(0, 24, size):
            rows = slice(at, at + size)
            check(client.infer(model, [request_of(PIXELS[rows])]), expected, rows)


def test_a_worker_without_a_server_answers_alike(exported: Path, server: Server) -> None:
    if (exported / "stage_0").is_dir():
        with pytest.raises(RepositoryError, match="got models of stages, which only Triton runs"):
            Scorer(exported)
        return
    images: list[Any] = [png_of(pixels) for pixels in PIXELS]
    # The first member is broken for white images, and runs last, if a stage before does not settle them.
    images += [b"no image", png_of(np.full((8, 8, 3), 255, np.uint8))]
    scorer = Scorer(exported)
    found = scorer.answers(images)
    scorer.close()
    with EnsembleClient(server.urls.grpc) as client:
        assert scorer.served == replace(client.served, pixels_shape=None)
        served = list(client.stream(images, batch_size=1))
    fleet = Scorer(url=server.urls.grpc)
    asked = fleet({"bytes": np.array(images, dtype=np.object_)})
    fleet.close()
    assert asked.column("label").to_pylist() == [getattr(one, "label", None) for one in served]
    assert set(asked.column("release").to_pylist()) == {scorer.served.metadata_sha256}
    assert {type(one) for one in found} == {Prediction, Failure}
    for ours, theirs in zip(found, served, strict=True):
        if isinstance(theirs, Failure):
            assert isinstance(ours, Failure)
            # Triton says in which of its models.
            assert ours.reason == theirs.reason.removeprefix("in ensemble 'ensemble', ")
            continue
        assert isinstance(ours, Prediction)
        numbers = [numbers_from_prediction(one, CLASSES) for one in (ours, theirs)]
        for name, value in numbers[0].items():
            np.testing.assert_allclose(value, numbers[1][name], atol=1e-5, err_msg=name)
        assert (ours.members_used, ours.review_reason) == (theirs.members_used, theirs.review_reason)
        assert ours.outlier == pytest.approx(theirs.outlier, abs=1e-5)


def request_together(server: Server, images: list[Bytes], full: set[int]) -> dict[int, Any]:
    """Return the response, or the error, of each of several requests that are sent at once.

    Args:
        server: Server.
        images: Images of each request.
        full: Indices of the requests that run all members.
    """
    arrived: queue.Queue[tuple[int, Any]] = queue.Queue()
    with tritonclient.grpc.InferenceServerClient(server.urls.grpc) as client:
        for index, image in enumerate(images):
            parameters = {"full": True} if index in full else {}

            def answered(result: Any, error: Any, index: int = index) -> None:
                arrived.put((index, error or result))

            client.async_infer("ensemble_pixels", [request_of(image)], answered, parameters=parameters)
        return dict(arrived.get(timeout=20) for _ in images)


def test_requests_that_run_together_are_answered_alone(server: Server) -> None:
    """One of four asks for all members, and another breaks a member that only images in doubt reach."""
    white = np.full((1, 8, 8, 3), 255, np.uint8)
    images = [MIXED[:1], MIXED[1:2], MIXED[1:2], white]
    answers = request_together(server, images, {2, 3})
    check(answers[0], expected_verdict(ENSEMBLE, images[0]))
    check(answers[1], expected_verdict(ENSEMBLE, images[1]))
    check(answers[2], expected_verdict(ENSEMBLE, images[2], full=True))
    assert answers[1].as_numpy("MEMBERS_USED").tolist() == [[False, True, False]]
    assert answers[2].as_numpy("MEMBERS_USED").all()
    assert isinstance(answers[3], InferenceServerException)
    assert "no vote: NaN from one" in str(answers[3])


def replace_last_stage(repository: Path, statement: str) -> Any:
    """Let a Python model be the last stage, which runs a statement for images in doubt; return its config."""
    last = repository / "stage_2"
    (last / "1" / "model.onnx").unlink()
    (last / "1" / "model.py").write_text(_LAST_STAGE.replace("STATEMENT", statement), encoding="utf-8")
    stage = read_config(last)
    stage.backend = "python"
    stage.ClearField("default_model_filename")
    (last / "config.pbtxt").write_text(text_of(stage), encoding="utf-8")
    return stage


def test_a_stage_that_fails_fails_its_requests_alone(tmp_path: Path) -> None:
    """The model of the last stage returns an error, except for probes; the other stages answer in the same batch."""
    repository = write_stage_models(ENSEMBLE, write_members(tmp_path, ENSEMBLE), tmp_path / "repository")
    replace_last_stage(repository, "return pb_utils.InferenceResponse(error=pb_utils.TritonError('out of order'))")
    config = read_config(repository / "fused")
    batch_four(repository, config)
    images = [MIXED[:1], MIXED[1:2], MIXED[2:3], MIXED[3:4]]
    with Server(repository, FREE) as server:
        answers = request_together(server, images, set())
    for index in (1, 2, 3):
        check(answers[index], expected_verdict(ENSEMBLE, images[index]))
    assert isinstance(answers[0], InferenceServerException)
    assert "cascade: stage_2: out of order" in str(answers[0])


def test_a_full_queue_of_a_stage_is_no_fault_of_the_server(tmp_path: Path) -> None:
    repository = write_stage_models(ENSEMBLE, write_members(tmp_path, ENSEMBLE), tmp_path / "repository")
    stage = replace_last_stage(repository, f"while not Path('{tmp_path / 'released'}').exists(): time.sleep(0.05)")
    stage.dynamic_batching.default_queue_policy.max_queue_size = 1
    (repository / "stage_2" / "config.pbtxt").write_text(text_of(stage), encoding="utf-8")
    config = read_config(repository / "fused")
    # Each request is a batch of its own.
    config.ClearField("dynamic_batching")
    (repository / "fused" / "config.pbtxt").write_text(text_of(config), encoding="utf-8")
    with Server(repository, FREE) as server:
        arrived: queue.Queue[Any] = queue.Queue()
        with tritonclient.grpc.InferenceServerClient(server.urls.grpc) as client:
            for _ in range(4):
                client.async_infer(
                    "ensemble_pixels", [request_of(MIXED[:1])], lambda result, error: arrived.put(error or result)
                )
            # One request is being computed, and one waits for it.
            answers = [arrived.get(timeout=60), arrived.get(timeout=60)]
            (tmp_path / "released").touch()
            answers += [arrived.get(timeout=60), arrived.get(timeout=60)]
    refused = [one for one in answers if isinstance(one, InferenceServerException)]
    assert refused[:2] == answers[:2]
    assert len(refused) < 4
    assert {one.status() for one in refused} == {"StatusCode.UNAVAILABLE"}
    assert re.search("cascade: stage_2: .*Exceeds maximum queue size", str(refused[0]))


# Computes zeros, for other images than a probe's only after a statement.
_LAST_STAGE = """
import json
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.outputs = json.loads(args["model_config"])["output"]

    def execute(self, requests):
        return [self._respond(request) for request in requests]

    def _respond(self, request):
        pixels = pb_utils.get_input_tensor_by_name(request, "PIXELS").as_numpy()
        if (pixels != 128).any():
            STATEMENT
        return pb_utils.InferenceResponse([self._zeros(one, len(pixels)) for one in self.outputs])

    def _zeros(self, one, batch):
        kind = pb_utils.triton_string_to_numpy(one["data_type"])
        return pb_utils.Tensor(one["name"], np.zeros((batch, *one["dims"]), kind))
"""


def test_full_must_be_a_boolean(server: Server) -> None:
    with (
        tritonclient.grpc.InferenceServerClient(server.urls.grpc) as client,
        pytest.raises(InferenceServerException, match="full: expected true or false, got 'yes'"),
    ):
        client.infer("ensemble_pixels", [request_of(MIXED[:1])], parameters={"full": "yes"})


def test_a_probe_runs_all_members(server: Server) -> None:
    probe = Probe(server.urls.http, ENSEMBLE, ["ensemble", *MODELS])
    for model in MODELS:
        found = probe.predict(model, MIXED, 20.0)
        np.testing.assert_allclose(found, expected_verdict(ENSEMBLE, MIXED, full=True).verdict.probabilities, atol=1e-5)
    # The first member is broken for white images, and runs last.
    white = np.full((1, 8, 8, 3), 255, np.uint8)
    with pytest.raises(ProbeError, match="no vote: NaN from one"):
        probe.predict("ensemble_fused", white, 20.0)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_clients_name_the_members_that_ran(server: Server, protocol: Any) -> None:
    expected = expected_verdict(ENSEMBLE, MIXED)
    with EnsembleClient(getattr(server.urls, protocol), protocol) as client:
        assert client.served.has_cascade
        found = client.predict(list(MIXED))
    used = [tuple(np.array(MEMBERS)[row].tolist()) for row in expected.members_used]
    assert [one.members_used for one in found] == used
    for one in found:
        ran = [name for name, values in one.member_probabilities.items() if values is not None]
        assert tuple(ran) == one.members_used
    leaving = next(one for one in found if len(one.members_used or ()) == 1)
    assert json.loads(json.dumps(leaving.to_dict()))["member_probabilities"]["one"] is None
    assert Prediction.from_dict(leaving.to_dict()) == leaving
    with EnsembleClient(getattr(server.urls, protocol), protocol, full=True) as client:
        assert {one.members_used for one in client.predict(list(MIXED))} == {tuple(MEMBERS)}


def test_settled_predictions_are_counted_by_stage(server: Server) -> None:
    def counted() -> dict[str, float]:
        samples = wait_for_counts(server.urls.metrics)
        found = {name: value for name, value in samples.items() if name.startswith("plurum_settled_total{")}
        return {
            stage: sum(value for name, value in found.items() if f'stage="{stage}"' in name)
            for stage in ("1", "2", "3")
        }

    before = counted()
    with tritonclient.grpc.InferenceServerClient(server.urls.grpc) as client:
        client.infer("ensemble_pixels", [request_of(MIXED)])
        client.infer("ensemble_pixels", [request_of(MIXED[:2])], parameters={"full": True})
        client.infer("ensemble_pixels", [request_of(MIXED)], request_id="plurum-probe")
    after = counted()
    assert {stage: after[stage] - before[stage] for stage in after} == {"1": 2, "2": 1, "3": 3}


def test_a_bench_tells_what_each_stage_settles_and_takes(server: Server) -> None:
    wait_for_counts(server.urls.metrics)
    before = count_stages(server.urls.metrics)
    taken = before
    with tritonclient.grpc.InferenceServerClient(server.urls.grpc) as client:
        deadline = time.monotonic() + 60
        # The model counts times with a later request.
        while taken["plurum_stage_images_total", 3] == before["plurum_stage_images_total", 3]:
            assert time.monotonic() < deadline
            client.infer("ensemble_pixels", [request_of(MIXED)])
            taken = count_stages(server.urls.metrics)
    wait_for_counts(server.urls.metrics)
    taken = count_stages(server.urls.metrics)
    taken.subtract(before)
    case = Case(target=Target(model="ensemble_pixels", protocol="grpc"), load=BenchLoad(kind="concurrency", value=1))
    figures = stage_figures(case, taken)
    assert [(one.stage, one.settled) for one in figures] == [(1, 0.5), (2, 0.25), (3, 0.25)]
    assert all(one.ms_per_image is not None and one.ms_per_image > 0 for one in figures)
    assert stage_figures(case, count_stages(None)) == []


def test_the_gateway_answers_alike(server: Server) -> None:
    expected = expected_verdict(ENSEMBLE, MIXED)
    files = []
    for pixels in MIXED:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        files.append(file.getvalue())
    with gateway(server.urls.grpc) as one:
        wait_until_ready(one)
        with EnsembleClient(one.http) as client:
            found = client.predict(list(MIXED))
            assert client.served.has_cascade
        with EnsembleClient(one.http, full=True) as client:
            assert {answer.members_used for answer in client.predict(list(MIXED))} == {tuple(MEMBERS)}
        plain = [one.predict(file).json for file in files]
        assert one.send("POST", "/predict?full=true", files[1]).json["members_used"] == MEMBERS
        refused = one.send("POST", "/predict?full=yes", files[1])
    for answer, stated, label, used in zip(
        found, plain, expected.verdict.label, expected.members_used.tolist(), strict=True
    ):
        ran = [name for name, has in zip(MEMBERS, used, strict=True) if has]
        assert (answer.label, answer.members_used) == (CLASSES[label], tuple(ran))
        assert (stated["label"], stated["members_used"]) == (CLASSES[label], ran)
        assert [name for name, values in stated["member_probabilities"].items() if values is not None] == ran
    assert refused.status == 400
    assert "full: expected true or false, got 'yes'" in refused.json["error"]
