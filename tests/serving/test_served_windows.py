"""Windows in serving: Triton, clients and the gateway see the pixels that training sees, over formats and rules."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from plurum.client import Answer, EnsembleClient, Prediction
from plurum.export import repository_from_onnx
from plurum.images import open_image, pixels_from_image
from plurum.images.windows import WindowRule
from plurum.serving import Server, ServerSettings
from plurum.spec import read_ensemble
from tests.images.deep_files import FILES, drawn
from tests.serving.gateway.gateways import gateway, wait_until_ready

pytestmark = [pytest.mark.triton, pytest.mark.slow]


def probabilities(answers: Iterable[Answer]) -> list[list[float]]:
    found = list(answers)
    assert all(isinstance(one, Prediction) for one in found), found
    return [list(one.probabilities.values()) for one in found if isinstance(one, Prediction)]


@pytest.mark.parametrize("rule", [(2000.5, 1501.0), "full"])
def test_served_predictions_are_those_of_the_same_pixels(repository: Path, tmp_path: Path, rule: WindowRule) -> None:
    ensemble = read_ensemble(repository / "ensemble.json")
    image = ensemble.image.model_copy(update={"window": rule})
    members = tuple(member.model_copy(update={"image": image}) for member in ensemble.members)
    ensemble = ensemble.model_copy(update={"image": image, "members": members})
    graphs = {member.name: repository / member.name / "1" / "model.onnx" for member in ensemble.members}
    repository_from_onnx(ensemble, graphs, tmp_path / "served", 8)
    kinds = [kind for kind in FILES if rule != "full" or "floating" not in kind]
    files = [write(drawn(dtype)) for dtype, write in (FILES[kind] for kind in kinds)]
    pixels = [pixels_from_image(open_image(data, window=rule), **image.resizing) for data in files]
    settings = ServerSettings(http_port=0, grpc_port=0, metrics_port=0)
    with Server(tmp_path / "served", settings) as server, gateway(server.urls.grpc) as front:
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
