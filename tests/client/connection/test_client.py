"""The client and a real server."""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from plurum.client import EnsembleClient, Failure, Prediction, Served
from plurum.errors import ImageError, ServerError, SettingsError
from plurum.run import Run
from plurum.serving import Server
from tests.client.stub_server import StubRequest, StubResponse, forward, http_server
from tests.images.image_files import png_from_pixels
from tests.serving.servers import FREE

pytestmark = pytest.mark.triton


@pytest.fixture
def client(url: str) -> Iterator[EnsembleClient]:
    with EnsembleClient(url) as client:
        yield client


def same(one: Any, other: Any) -> bool:
    """Batches of other sizes take other paths through the arithmetic: alike to 1e-5, not to the bit."""
    assert isinstance(one, Prediction)
    assert isinstance(other, Prediction)
    return one.label == other.label and list(one.probabilities.values()) == pytest.approx(
        list(other.probabilities.values()), abs=1e-5
    )


def test_description_of_the_served_ensemble(client: EnsembleClient, run: Run) -> None:
    ensemble = run.ensemble()
    names = tuple(member.name for member in ensemble.members)
    shape = (ensemble.image.height, ensemble.image.width, 3)
    checkpoints = tuple(member.sha256 for member in ensemble.members)
    metadata = hashlib.sha256(ensemble.model_dump_json().encode()).hexdigest()
    assert client.served == Served(ensemble.classes, names, 8, shape, checkpoints=checkpoints, metadata_sha256=metadata)


def test_a_prediction_has_a_number_for_every_name(
    client: EnsembleClient, run: Run, pixels: npt.NDArray[np.uint8]
) -> None:
    ensemble = run.ensemble()
    for prediction in client.predict(pixels[:8]):
        assert tuple(prediction.probabilities) == ensemble.classes
        assert sum(prediction.probabilities.values()) == pytest.approx(1)
        assert prediction.confidence == prediction.probabilities[prediction.label]
        assert prediction.label in prediction.prediction_set
        assert tuple(prediction.std) == ensemble.classes
        assert tuple(prediction.member_probabilities) == tuple(member.name for member in ensemble.members)
        # By the rule that the members' votes went through: weights 0.7 and 0.3, before the temperature.
        first, second = (one or {} for one in prediction.member_probabilities.values())
        mean = {name: 0.7 * first[name] + 0.3 * second[name] for name in ensemble.classes}
        assert max(mean, key=mean.__getitem__) == prediction.label
        assert prediction.review == (
            prediction.confidence < ensemble.review.threshold or len(prediction.prediction_set) > 1
        )


def test_every_form_of_an_image_gets_the_same_prediction(
    client: EnsembleClient, pixels: npt.NDArray[np.uint8], tmp_path: Path
) -> None:
    """The three channels are alike, so that a grey array is the same image, too."""
    image = pixels[3]
    (tmp_path / "scan.png").write_bytes(png_from_pixels(image))
    forms = [
        image,
        image[..., 0],
        png_from_pixels(image),
        Image.fromarray(image),
        Image.fromarray(image[..., 0]),
        tmp_path / "scan.png",
        str(tmp_path / "scan.png"),
    ]
    first, *others = client.predict(forms)
    assert all(same(first, other) for other in others)
    assert not same(first, client.predict([pixels[5]])[0])


def test_server_resizes_images(client: EnsembleClient, pixels: npt.NDArray[np.uint8]) -> None:
    larger = pixels[3].repeat(3, axis=0).repeat(2, axis=1)
    (from_array,), (from_bytes,) = client.predict([larger]), client.predict([png_from_pixels(larger)])
    assert same(from_array, from_bytes)


@pytest.mark.parametrize(("batch_size", "concurrency"), [(1, 1), (3, 2), (8, 4), (1000, 16)])
def test_predictions_come_in_order(url: str, pixels: npt.NDArray[np.uint8], batch_size: int, concurrency: int) -> None:
    with EnsembleClient(url) as client:
        alone = [client.predict([image])[0] for image in pixels[:12]]
    mixed = [image if index % 3 else png_from_pixels(image) for index, image in enumerate(pixels[:12])]
    with EnsembleClient(url, concurrency=concurrency) as client:
        together = client.predict(itertools.chain(mixed, mixed, mixed), batch_size=batch_size)
    assert len({prediction.label for prediction in alone}) > 2
    assert len(together) == 36
    assert all(same(one, other) for one, other in zip(alone * 3, together, strict=True))


def test_bad_image_does_not_affect_others(
    client: EnsembleClient, pixels: npt.NDArray[np.uint8], tmp_path: Path
) -> None:
    good = png_from_pixels(pixels[0])
    images = [
        good,
        b"no image",
        good,
        pixels[0],
        np.zeros((4, 4, 3), np.uint8),
        tmp_path / "nowhere.png",
        good[: len(good) // 2],
        pixels[0].astype(np.float32),
        good,
    ]
    answers = list(client.stream(images))
    (expected,) = client.predict([good])
    failures = {answer.index: answer for answer in answers if isinstance(answer, Failure)}
    assert sorted(failures) == [1, 4, 5, 6, 7]
    assert all(same(answers[index], expected) for index in (0, 2, 3, 8))
    assert "not a JPEG, PNG, TIFF, WEBP, AVIF, JPEG2000 or DICOM" in failures[1].reason
    assert "4 x 4 pixels is too small" in failures[4].reason
    assert failures[5].name == str(tmp_path / "nowhere.png")
    assert failures[5].reason == "can't be read: No such file or directory"
    assert "corrupt or truncated" in failures[6].reason
    assert "float32 [32, 32, 3]" in failures[7].reason
    assert all("\n" not in failure.reason for failure in failures.values())


def test_predict_names_the_first_image_without_an_answer(
    client: EnsembleClient, pixels: npt.NDArray[np.uint8], tmp_path: Path
) -> None:
    (tmp_path / "notes.png").write_text("no image")
    with pytest.raises(
        ImageError, match=r"notes\.png: .*not a JPEG, PNG, TIFF, WEBP, AVIF, JPEG2000 or DICOM image.* \(and 1 more\)"
    ):
        client.predict([pixels[0], tmp_path / "notes.png", b""])
    with pytest.raises(ImageError, match=r"^image 1: .*not a JPEG"):
        client.predict([pixels[0], b""])
    assert client.predict([pixels[0]])


def test_no_images_give_no_predictions(client: EnsembleClient) -> None:
    assert client.predict([]) == []


def test_batch_size_of_zero_is_refused(client: EnsembleClient) -> None:
    with pytest.raises(SettingsError, match="batch_size: expected at least 1, got 0"):
        client.predict([b""], batch_size=0)


def test_an_endless_stream_is_read_a_few_requests_ahead(client: EnsembleClient, pixels: npt.NDArray[np.uint8]) -> None:
    taken = itertools.count()

    def endless() -> Iterator[npt.NDArray[np.uint8]]:
        while True:
            yield pixels[next(taken) % len(pixels)]

    stream = client.stream(endless(), batch_size=2)
    answers = list(itertools.islice(stream, 21))
    stream.close()  # type: ignore[attr-defined]
    assert len(answers) == 21
    # At most four times six requests of two behind a late one, one that waits, and the image that showed it was full.
    assert next(taken) <= 21 + 2 * (4 * 6 + 1) + 1
    assert same(client.predict([pixels[0]])[0], answers[0])


def test_threads_can_share_a_client(client: EnsembleClient, pixels: npt.NDArray[np.uint8]) -> None:
    expected = client.predict(pixels[:8])
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda index: client.predict([pixels[index % 8]] * 3), range(24)))
    for index, triple in enumerate(answers):
        assert len(triple) == 3
        assert all(same(answer, expected[index % 8]) for answer in triple)


def test_unknown_model_lists_the_available_ones(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository / "preprocess", tmp_path / "other" / "preprocess")
    with Server(tmp_path / "other", FREE) as server:
        for url in (server.urls.grpc, server.urls.http):
            with (
                EnsembleClient(url) as client,
                pytest.raises(
                    ServerError, match=r"unknown model 'ensemble' at .*; available: preprocess\. .* plurum serve REPO"
                ),
            ):
                client.predict([b""])


@pytest.fixture
def gateway(served: Server) -> Iterator[str]:
    """A server that forwards requests, and hides the configs of models."""

    def respond(request: StubRequest) -> StubResponse:
        hidden = request.path.endswith("/config")
        return StubResponse(403, b"") if hidden else forward(served.urls.http, request)

    with http_server(respond) as url:
        yield url


def test_hidden_configs_give_numbered_classes(gateway: str, served: Server, pixels: npt.NDArray[np.uint8]) -> None:
    with EnsembleClient(gateway) as client, EnsembleClient(served.urls.http) as open_client:
        (numbered,), (named,) = client.predict([pixels[0]]), open_client.predict([pixels[0]])
        assert client.served.max_batch_size == 1
    assert tuple(numbered.probabilities) == tuple(map(str, range(10)))
    assert tuple(numbered.member_probabilities) == ("0", "1")
    assert list(numbered.probabilities.values()) == pytest.approx(list(named.probabilities.values()), abs=1e-6)
    assert numbered.label == named.label
    assert numbered.confidence == pytest.approx(named.confidence, abs=1e-6)
