"""OUTLIER and REVIEW_REASON of a served ensemble: over both protocols, by the chain and fused, in INT8, by OpenVINO."""

from __future__ import annotations

import contextlib
import csv
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

from plurum.client import EnsembleClient, Failure, Prediction, answers_report
from plurum.export import repository_from_onnx
from plurum.export.settings import Backend, Execution
from plurum.run import Run
from plurum.serving import Server, ServerSettings
from plurum.spec import read_ensemble
from plurum.voting import REVIEW_REASONS, Verdict
from tests.images.image_files import png_from_pixels
from tests.outliers.graphs import BACKENDS, expected_verdict
from tests.sample_runs.fitted_run import CLASSES
from tests.serving.gateway.gateways import gateway, wait_until_ready
from tests.serving.voter_counts import wait_for_counts

pytestmark = pytest.mark.triton

_MODELS = ("ensemble_pixels", "ensemble_fused")
# Some of the images are outliers, the inverted ones.
_IMAGES = 8
FP32 = Execution("fp32", "onnxruntime")


@contextlib.contextmanager
def serving(repository: Path) -> Iterator[Server]:
    with Server(repository, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)) as server:
        yield server


@pytest.fixture(scope="module")
def images(detected: Run) -> list[npt.NDArray[np.uint8]]:
    pixels = np.array(detected.pixels()[44 : 44 + _IMAGES])
    return [*pixels, *(255 - pixels)]


@pytest.fixture(scope="module")
def detecting(detecting_repository: Path) -> Iterator[Server]:
    with serving(detecting_repository) as server:
        yield server


def predict(url: str, model: str, images: Any) -> list[Prediction]:
    with EnsembleClient(url, model=model) as client:
        assert client.served.has_outliers
        answers = client.predict(images)
    assert not [one for one in answers if isinstance(one, Failure)]
    return [one for one in answers if isinstance(one, Prediction)]


def check_predictions(predictions: list[Prediction], expected: Verdict, tolerance: float) -> None:
    found = np.array([one.outlier for one in predictions])
    np.testing.assert_allclose(found, expected.outlier, atol=tolerance)
    bits = [sum(1 << REVIEW_REASONS.index(name) for name in one.review_reason or ()) for one in predictions]
    assert bits == expected.review_reason.tolist()
    assert [one.review for one in predictions] == expected.review.tolist()
    outliers = [one for one in predictions if "outlier" in (one.review_reason or ())]
    assert 0 < len(outliers) < len(predictions)


@pytest.mark.parametrize("model", _MODELS)
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_the_server_tests_as_this_process_does(
    protocol: str, model: str, detecting: Server, detecting_repository: Path, images: list[npt.NDArray[np.uint8]]
) -> None:
    expected = expected_verdict(
        detecting_repository, read_ensemble(detecting_repository / "ensemble.json"), np.stack(images), FP32
    )
    url = detecting.urls.grpc if protocol == "grpc" else detecting.urls.http
    check_predictions(predict(url, model, images), expected, 1e-6)


def test_the_gateway_and_files_have_them(
    detecting: Server, images: list[npt.NDArray[np.uint8]], tmp_path: Path
) -> None:
    with gateway(detecting.urls.grpc) as one:
        wait_until_ready(one)
        found = predict(one.http, "ensemble_pixels", images)
        (answer,) = [one.predict(png_from_pixels(images[-1])).json]
    direct = predict(detecting.urls.grpc, "ensemble_pixels", images)
    assert [(each.outlier, each.review_reason) for each in found] == [
        (each.outlier, each.review_reason) for each in direct
    ]
    assert (answer["outlier"], answer["review_reason"]) == (direct[-1].outlier, list(direct[-1].review_reason or ()))
    with answers_report(tmp_path / "out.csv", CLASSES, has_outliers=True) as report:
        for index, each in enumerate(direct):
            report.add(f"{index}.png", each)
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["review_reason"] for row in rows] == ["|".join(each.review_reason or ()) for each in direct]
    assert [float(row["outlier"]) for row in rows] == pytest.approx([each.outlier for each in direct], abs=1e-6)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_int8_and_openvino(
    backend: Backend, fused: bool, int8_repositories: dict[str, Path], images: list[npt.NDArray[np.uint8]]
) -> None:
    repository = int8_repositories[backend]
    ensemble = read_ensemble(repository / "ensemble.json")
    expected = expected_verdict(repository, ensemble, np.stack(images), Execution("int8", backend))
    with serving(repository) as server:
        found = predict(server.urls.grpc, _MODELS[fused], images)
    # OpenVINO computes the fused graph in other sums; a rank or two of 40 may differ.
    check_predictions(found, expected, 2.1 / 41)


def test_reasons_and_p_values_are_counted(detecting_repository: Path, images: list[npt.NDArray[np.uint8]]) -> None:
    with serving(detecting_repository) as server:
        found = predict(server.urls.grpc, "ensemble_pixels", images)
        samples = wait_for_counts(server.urls.metrics)

    def value(name: str, label: str = "") -> float:
        (amount,) = (amount for key, amount in samples.items() if key.startswith(f"{name}{{") and label in key)
        return amount

    for name in REVIEW_REASONS:
        expected = sum(name in (one.review_reason or ()) for one in found)
        assert value("plurum_review_reasons_total", f'reason="{name}"') == expected
    assert value("plurum_outlier_p_value_count") == len(images)
    low = sum((one.outlier or 0) <= 0.1 for one in found)
    assert value("plurum_outlier_p_value_bucket", 'le="0.1"') == low
    assert (value("plurum_outlier_alpha"), value("plurum_outlier_reference_patients")) == (0.1, 40)


def with_nan_for_bright_images(source: Path, path: Path) -> None:
    """Write a member's graph whose detector returns NaN for white images."""
    model = onnx.load(source)
    graph = model.graph
    for node in graph.node:
        node.output[:] = ["NOVELTY/right" if name == "NOVELTY" else name for name in node.output]
    one = helper.make_tensor("nan/none", TensorProto.FLOAT, [], [255.0])
    axes = helper.make_tensor("nan/axes", TensorProto.INT64, [3], [1, 2, 3])
    nan = helper.make_tensor("nan/nan", TensorProto.FLOAT, [], [math.nan])
    flat = helper.make_tensor("nan/flat", TensorProto.INT64, [2], [-1, 1])
    graph.initializer.extend([one, axes, nan, flat])
    graph.node.extend(
        [
            helper.make_node("Cast", ["PIXELS"], ["nan/pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMin", ["nan/pixels", "nan/axes"], ["nan/least"], keepdims=0),
            helper.make_node("Reshape", ["nan/least", "nan/flat"], ["nan/column"]),
            helper.make_node("Less", ["nan/column", "nan/none"], ["nan/fine"]),
            helper.make_node("Where", ["nan/fine", "NOVELTY/right", "nan/nan"], ["NOVELTY"]),
        ]
    )
    onnx.save(model, path)


@pytest.mark.parametrize("model", _MODELS)
def test_nan_from_a_detector_fails_that_request_alone(
    model: str, detecting_repository: Path, images: list[npt.NDArray[np.uint8]], tmp_path: Path
) -> None:
    ensemble = read_ensemble(detecting_repository / "ensemble.json")
    graphs = {}
    for member in ensemble.members:
        graphs[member.name] = tmp_path / f"{member.name}.onnx"
        shutil.copyfile(detecting_repository / member.name / "1" / "model.onnx", graphs[member.name])
    name = ensemble.members[1].name
    with_nan_for_bright_images(detecting_repository / name / "1" / "model.onnx", graphs[name])
    repository_from_onnx(ensemble, graphs, tmp_path / "out", 8, form="chain", fused=True)
    white = np.full_like(images[0], 255)
    with serving(tmp_path / "out") as server, EnsembleClient(server.urls.grpc, model=model) as client:
        first, broken, last = client.stream([images[0], white, images[1]])
    assert isinstance(first, Prediction)
    assert isinstance(last, Prediction)
    assert isinstance(broken, Failure)
    assert "no vote: NaN from" in broken.reason
