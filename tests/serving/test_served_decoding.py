"""Decoding in serving: Triton, clients and the gateway see the pixels that training sees, over formats and rules."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from plurum.client import Answer, EnsembleClient, Prediction
from plurum.export import repository_from_onnx
from plurum.images import open_image, pixels_from_image
from plurum.images.windows import WindowRule
from plurum.score import Scorer
from plurum.serving import Server
from plurum.spec import ImageSpec, read_ensemble
from tests.images.deep_files import FILES, drawn
from tests.images.image_files import encoded, photograph
from tests.serving.gateway.gateways import gateway, wait_until_ready
from tests.serving.servers import FREE

pytestmark = [pytest.mark.triton, pytest.mark.slow]


def probabilities(answers: Iterable[Answer]) -> list[list[float]]:
    found = list(answers)
    assert all(isinstance(one, Prediction) for one in found), found
    return [list(one.probabilities.values()) for one in found if isinstance(one, Prediction)]


def write_served(repository: Path, out: Path, **changes: object) -> ImageSpec:
    """Write a repository of the same members whose images are decoded in another way; return their image spec."""
    ensemble = read_ensemble(repository / "ensemble.json")
    image = ensemble.image.model_copy(update=changes)
    members = tuple(member.model_copy(update={"image": image}) for member in ensemble.members)
    ensemble = ensemble.model_copy(update={"image": image, "members": members})
    graphs = {member.name: repository / member.name / "1" / "model.onnx" for member in ensemble.members}
    repository_from_onnx(ensemble, graphs, out, 8)
    return image


@pytest.mark.parametrize("rule", [(2000.5, 1501.0), "full"])
def test_served_predictions_are_those_of_the_same_pixels(repository: Path, tmp_path: Path, rule: WindowRule) -> None:
    image = write_served(repository, tmp_path / "served", window=rule)
    kinds = [kind for kind in FILES if rule != "full" or "floating" not in kind]
    files = [write(drawn(dtype)) for dtype, write in (FILES[kind] for kind in kinds)]
    pixels = [pixels_from_image(open_image(data, window=rule), **image.resizing) for data in files]
    with Server(tmp_path / "served", FREE) as server, gateway(server.urls.grpc) as front:
        wait_until_ready(front)
        with EnsembleClient(server.urls.grpc) as client:
            assert client.served.window == rule
            expected = probabilities(client.predict(pixels))
            found = probabilities(client.predict(files))
            plain = probabilities(client.predict([pixels_from_image(open_image(files[0]), **image.resizing)]))
        np.testing.assert_allclose(found, expected, atol=1e-5)
        # Without the rule, probabilities would differ, or the file would be refused.
        assert np.ptp([*expected, *plain], axis=0).max() > 1e-2
        for data, shares in zip(files, expected, strict=True):
            np.testing.assert_allclose(list(front.predict(data).json["probabilities"].values()), shares, atol=1e-5)
        # A page behind the gateway shows images by this window.
        with EnsembleClient(front.http) as client:
            assert client.served.window == rule


def test_large_jpegs_are_decoded_as_in_training(repository: Path, tmp_path: Path) -> None:
    image = write_served(repository, tmp_path / "served", reduced_decoding=True)
    # The last one is so large that a separate process decodes it.
    pictures = [photograph(side, side) for side in (16 * image.height, 16 * image.height + 1, 2400)]
    files = [encoded(picture, "JPEG", quality=90) for picture in pictures]
    reduced, whole = (
        [pixels_from_image(open_image(data, **how), **image.resizing) for data in files]
        for how in (image.decoding, {"window": None})
    )
    assert [np.array_equal(*pair) for pair in zip(reduced, whole, strict=True)] == [False, True, False]
    with Server(tmp_path / "served", FREE) as server, EnsembleClient(server.urls.grpc) as client:
        expected, found = (probabilities(client.predict(images)) for images in (reduced, files))
        changed = probabilities(client.predict(whole))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert not np.allclose(found, changed, atol=1e-6)
    scorer = Scorer(tmp_path / "served")
    scored = probabilities(scorer.answers(list(files)))
    scorer.close()
    np.testing.assert_allclose(scored, expected, atol=1e-5)
