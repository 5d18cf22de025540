"""DICOM images at the gateway: classified as other images, and broken ones refused beside neighbours."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import psutil
import pytest

from tests.fuzz.dicom_mutations import broken_dicom, dicom_corpus
from tests.images.dicom_bombs import dicom_bombs
from tests.images.dicom_files import dicom, identifying_values
from tests.images.image_files import png_from_pixels
from tests.serving.gateway.gateways import Gateway

pytestmark = [pytest.mark.triton, pytest.mark.slow, pytest.mark.timeout(600)]

_BROKEN, _MOST_GROWTH, _MOST_GATEWAY_MIB = 300, 300 << 20, 64


def resident() -> int:
    """Return the memory of the server's processes, bytes."""
    return sum(process.memory_info().rss for process in psutil.Process().children(recursive=True))


def test_broken_files_are_refused_beside_neighbours(small: Gateway) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    expected = small.predict(png_from_pixels(pixels)).json
    corpus, statuses, before, gateway_before = dicom_corpus(), Counter[int](), 0, 0.0
    for data in corpus[:3]:
        assert small.predict(data).status == 200
    for number in range(_BROKEN):
        draw = random.Random(number)
        reply = small.predict(broken_dicom(draw, draw.choice(corpus)))
        statuses[reply.status] += 1
        assert reply.status == 200 or 400 <= reply.status < 429, reply.body
        assert identifying_values(reply.body) == []
        if number % 30 == 0:
            assert small.predict(dicom(pixels)).json["probabilities"] == pytest.approx(expected["probabilities"])
            before, gateway_before = before or resident(), gateway_before or small.resident_mib()
    assert resident() < before + _MOST_GROWTH
    assert small.resident_mib() < gateway_before + _MOST_GATEWAY_MIB
    assert statuses[200] < _BROKEN / 2, statuses


def test_bombs_are_refused_before_they_are_decoded(small: Gateway) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    expected = small.predict(dicom(pixels)).json["probabilities"]
    before, gateway_before = resident(), small.resident_mib("HWM")
    for name, bomb in dicom_bombs().items():
        reply = small.predict(bomb)
        assert 400 <= reply.status < 429, (name, reply.body)
        assert b"DICOM: " in reply.body, (name, reply.body)
        assert small.predict(dicom(pixels)).json["probabilities"] == pytest.approx(expected)
    assert resident() < before + _MOST_GROWTH
    # The most that it had at any time.
    assert small.resident_mib("HWM") < gateway_before + _MOST_GATEWAY_MIB
