"""Predictions of a served ensemble, requested with only `tritonclient` and the documented metadata."""

from __future__ import annotations

import hashlib
import io
import math
import struct
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import tritonclient.grpc
import tritonclient.http
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException

from plurum.run import Run
from plurum.serving import Server
from plurum.voting import Verdict, decide, softmax
from tests.images.image_files import png_from_pixels
from tests.model_repository.expected_outputs import float_outputs
from tests.pixel_matrix.png_cells import chunk
from tests.sample_runs.fitted_run import ARCHS, CLASSES
from tests.serving.voter_counts import wait_for_counts

pytestmark = pytest.mark.triton

C, M = 10, 2
EXPECTED = {
    "PROBABILITIES": ("FP32", np.dtype(np.float32), (C,)),
    "LABEL": ("BYTES", np.dtype(np.object_), (1,)),
    "ENTROPY": ("FP32", np.dtype(np.float32), (1,)),
    "DISAGREEMENT": ("FP32", np.dtype(np.float32), (1,)),
    "STD": ("FP32", np.dtype(np.float32), (C,)),
    "MEMBER_PROBABILITIES": ("FP32", np.dtype(np.float32), (M, C)),
    "PREDICTION_SET": ("BOOL", np.dtype(np.bool_), (C,)),
    "REVIEW": ("BOOL", np.dtype(np.bool_), (1,)),
}
PROTOCOLS = {"grpc": tritonclient.grpc, "http": tritonclient.http}


def address(served: Server, protocol: str) -> str:
    return served.urls.grpc if protocol == "grpc" else served.urls.http.removeprefix("http://")


def ask(
    served: Server, protocol: str, model: str, name: str, values: npt.NDArray[Any], datatype: str | None = None
) -> Any:
    library = PROTOCOLS[protocol]
    kinds = {"uint8": "UINT8", "object": "BYTES", "float32": "FP32"}
    tensor = library.InferInput(name, list(values.shape), datatype or kinds[str(values.dtype)])
    tensor.set_data_from_numpy(values)
    with library.InferenceServerClient(address(served, protocol)) as client:
        return client.infer(model, [tensor])


def encoded(*images: bytes) -> npt.NDArray[Any]:
    return np.array(images, dtype=np.object_)[:, None]


@pytest.fixture(scope="module")
def images(run: Run) -> npt.NDArray[np.uint8]:
    return np.array(run.pixels()[40:48])


@pytest.fixture(scope="module")
def verdict(run: Run, repository: Path, images: npt.NDArray[np.uint8]) -> Verdict:
    logits = []
    for member in run.ensemble().members:
        session = onnxruntime.InferenceSession(repository / member.name / "1" / "model.onnx")
        logits.append(session.run(["LOGITS"], {"PIXELS": images})[0])
    return decide(softmax(np.stack(logits, axis=1)), run.ensemble().rule)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("model", ["ensemble", "ensemble_pixels"])
def test_all_outputs_by_name_type_shape_and_value(
    served: Server, run: Run, verdict: Verdict, images: npt.NDArray[np.uint8], protocol: str, batch: int, model: str
) -> None:
    if model == "ensemble":
        answer = ask(served, protocol, model, "IMAGE", encoded(*(png_from_pixels(image) for image in images[:batch])))
    else:
        answer = ask(served, protocol, model, "PIXELS", images[:batch])
    for name, (datatype, dtype, dims) in EXPECTED.items():
        values = answer.as_numpy(name)
        output = answer.get_output(name)
        assert (output["datatype"] if protocol == "http" else output.datatype) == datatype
        assert values.dtype == dtype
        assert values.shape == (batch, *dims)
    for name, expected in float_outputs(verdict).items():
        np.testing.assert_allclose(answer.as_numpy(name), expected[:batch], atol=1e-5)
    labels = [run.ensemble().classes[index] for index in verdict.label[:batch]]
    assert [label.decode() for label in answer.as_numpy("LABEL")[:, 0]] == labels
    np.testing.assert_array_equal(answer.as_numpy("PREDICTION_SET"), verdict.prediction_set[:batch])
    np.testing.assert_array_equal(answer.as_numpy("REVIEW")[:, 0], verdict.review[:batch])


def test_the_images_exercise_the_rule(verdict: Verdict) -> None:
    """Otherwise the test above could not distinguish a correct rule from a wrong one."""
    assert verdict.review.any()
    assert not verdict.review.all()
    assert len(set(verdict.label)) > 1
    assert verdict.disagreement.max() > 0.01


def _bomb() -> bytes:
    """Return a PNG of 20,000 × 20,000 pixels in 50 kB."""

    packer = zlib.compressobj(9)
    row = bytes(1 + 20_000 // 8)
    packed = b"".join(packer.compress(row) for _ in range(20_000)) + packer.flush()
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def _jpeg() -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


BAD_IMAGES = {
    "corrupt JPEG": (_jpeg()[:700], "corrupt or truncated"),
    "text": (b"dear server, please classify me", "not a JPEG, PNG, TIFF, WEBP, AVIF, JPEG2000 or DICOM"),
    "nothing": (b"", "not a JPEG, PNG, TIFF, WEBP, AVIF, JPEG2000 or DICOM"),
    "one pixel": (png_from_pixels(np.zeros((1, 1, 3), np.uint8)), "too small"),
    "bomb": (_bomb(), "too large"),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(("bad", "reason"), BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
def test_a_bad_image_fails_alone(
    served: Server, verdict: Verdict, images: npt.NDArray[np.uint8], protocol: str, bad: bytes, reason: str
) -> None:
    """Send bad requests together with good ones, so that they share batches."""

    def one(index: int) -> npt.NDArray[Any] | str:
        data = bad if index % 3 == 1 else png_from_pixels(images[index % 8])
        try:
            answer = ask(served, protocol, "ensemble", "IMAGE", encoded(data))
        except InferenceServerException as error:
            return str(error.message())
        return np.asarray(answer.as_numpy("PROBABILITIES")[0])

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(one, range(24)))
    for index, answer in enumerate(answers):
        if index % 3 == 1:
            assert isinstance(answer, str)
            assert reason in answer
        else:
            assert not isinstance(answer, str), answer
            np.testing.assert_allclose(answer, verdict.probabilities[index % 8], atol=1e-5)


def test_the_error_of_a_bad_image_is_the_callers(served: Server) -> None:
    with pytest.raises(InferenceServerException) as refused:
        ask(served, "grpc", "ensemble", "IMAGE", encoded(b"text", _jpeg()))
    assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert "IMAGE[0] of 2" in refused.value.message()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("model", "name", "values", "datatype", "reason"),
    [
        ("ensemble_pixels", "PIXELS", np.zeros((1, 32, 32, 3), np.float32), "FP32", "data-type"),
        ("ensemble_pixels", "PIXELS", np.zeros((1, 33, 32, 3), np.uint8), "UINT8", "shape"),
        ("ensemble_pixels", "PIXELS", np.zeros((32, 32, 3), np.uint8), "UINT8", "batch"),
        ("ensemble_pixels", "PIXELS", np.zeros((9, 32, 32, 3), np.uint8), "UINT8", "batch"),
        ("ensemble", "IMAGE", np.zeros((1, 1), np.float32), "FP32", "data-type"),
        ("ensemble", "IMAGE", np.full((9, 1), b"x", np.object_), "BYTES", "batch"),
        ("ensemble", "IMAGE", np.full((1, 2), b"x", np.object_), "BYTES", "shape"),
        ("ensemble", "PICTURE", np.full((1, 1), b"x", np.object_), "BYTES", "PICTURE"),
        ("nobody", "IMAGE", np.full((1, 1), b"x", np.object_), "BYTES", "nobody"),
    ],
)
def test_an_invalid_request_is_refused_and_serving_continues(
    served: Server,
    images: npt.NDArray[np.uint8],
    protocol: str,
    model: str,
    name: str,
    values: npt.NDArray[Any],
    datatype: str,
    reason: str,
) -> None:
    with pytest.raises(InferenceServerException) as refused:
        ask(served, protocol, model, name, values, datatype)
    assert reason in refused.value.message()
    assert ask(served, protocol, "ensemble_pixels", "PIXELS", images[:1]).as_numpy("REVIEW").shape == (1, 1)


def test_a_member_that_computes_nan_is_an_error_and_not_an_answer(served: Server) -> None:
    with tritonclient.grpc.InferenceServerClient(served.urls.grpc) as client:
        tensors = []
        for index, value in enumerate((0.0, math.nan)):
            tensor = tritonclient.grpc.InferInput(f"LOGITS_{index}", [1, C], "FP32")
            tensor.set_data_from_numpy(np.full((1, C), value, np.float32))
            tensors.append(tensor)
        with pytest.raises(InferenceServerException, match="NaN from regnetx_002"):
            client.infer("voter", tensors)


def predictions(samples: dict[str, float]) -> float:
    return sum(value for name, value in samples.items() if name.startswith("plurum_predictions_total"))


def test_metrics_count_what_was_answered(
    served: Server, repository: Path, verdict: Verdict, images: npt.NDArray[np.uint8]
) -> None:
    before = wait_for_counts(served.urls.metrics)
    ask(served, "grpc", "ensemble_pixels", "PIXELS", images)
    after = wait_for_counts(served.urls.metrics)
    release = hashlib.sha256((repository / "ensemble.json").read_bytes()).hexdigest()[:12]

    def grew(name: str, **labels: str) -> float:
        labels |= {"ensemble": "digits-test", "release": release}
        sample = name + "{" + ",".join(f'{key}="{value}"' for key, value in sorted(labels.items())) + "}"
        return after[sample] - before[sample]

    confidence = verdict.probabilities.max(axis=1)
    assert [grew("plurum_predictions_total", **{"class": name}) for name in CLASSES] == [
        np.count_nonzero(verdict.label == index) for index in range(C)
    ]
    assert grew("plurum_reviews_total") == np.count_nonzero(verdict.review)
    for index, member in enumerate(ARCHS):
        own = verdict.member_probabilities[:, index].argmax(axis=1)
        assert grew("plurum_member_dissents_total", member=member) == np.count_nonzero(own != verdict.label)
    assert grew("plurum_batch_size_bucket", le="4.0") == 0
    assert grew("plurum_batch_size_bucket", le="8.0") == 1
    assert grew("plurum_confidence_count") == 8
    assert grew("plurum_confidence_sum") == pytest.approx(confidence.sum(), 1e-3)
    assert grew("plurum_confidence_bucket", le="0.5") == np.count_nonzero(confidence <= 0.5)
    assert grew("plurum_confidence_bucket", le="+Inf") == 8
    assert grew("plurum_entropy_nats_sum") == pytest.approx(verdict.entropy.sum(), 1e-3)
    assert grew("plurum_disagreement_nats_sum") == pytest.approx(verdict.disagreement.sum(), 1e-3)


def test_probes_of_the_server_are_not_counted(served: Server, images: npt.NDArray[np.uint8]) -> None:
    before = predictions(wait_for_counts(served.urls.metrics))
    tensor = tritonclient.grpc.InferInput("PIXELS", [8, 32, 32, 3], "UINT8")
    tensor.set_data_from_numpy(images)
    with tritonclient.grpc.InferenceServerClient(served.urls.grpc) as client:
        client.infer("ensemble_pixels", [tensor], request_id="plurum-probe")
        client.infer("ensemble_pixels", [tensor], request_id="mine")
    assert predictions(wait_for_counts(served.urls.metrics)) == before + 8


def test_latency_summaries_are_on_the_page(served: Server) -> None:
    with urllib.request.urlopen(served.urls.metrics) as page:
        families = {family.name: family for family in text_string_to_metric_families(page.read().decode())}
    summary = families["nv_inference_request_summary_us"]
    assert summary.type == "summary"
    quantiles = {(sample.labels["model"], sample.labels.get("quantile")) for sample in summary.samples}
    models = ("ensemble", "ensemble_pixels", "voter", "resnet10t")
    assert {(model, quantile) for model in models for quantile in ("0.5", "0.95", "0.99")} <= quantiles
    assert families["plurum_predictions"].type == "counter"
