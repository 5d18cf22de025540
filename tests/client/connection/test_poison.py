"""An image that ends a model's process, sent by the client to Triton's own ports: how often, and what others notice."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from plurum.benchmarks.tools.servers import GatewayStack, serve_behind_gateway
from plurum.client import EnsembleClient, Failure, Prediction
from plurum.client.connection.addresses import WireProtocol
from plurum.errors import ServerError
from tests.serving.servers import changed_repository

pytestmark = [pytest.mark.slow, pytest.mark.triton]

# Appended to preprocess: an image with this word in it ends its process, as a defect in a decoder could.
_POISON = """

import os, signal
_execute = TritonPythonModel.execute

def poisonous(self, requests):
    images = [pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy() for request in requests]
    if any(b"poison" in bytes(image) for batch in images for image in batch.ravel()):
        with open("SEEN", "a") as seen:
            seen.write("x")
        os.kill(os.getpid(), signal.SIGKILL)
    return _execute(self, requests)

TritonPythonModel.execute = poisonous
"""


def png(shade: int, note: str = "") -> bytes:
    """Return a small PNG with a text in it."""
    file, info = io.BytesIO(), PngInfo()
    info.add_text("Comment", note)
    Image.new("RGB", (32, 32), (shade, 99, 200)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File in which preprocess records each time that it gets the image."""
    return tmp_path_factory.mktemp("poison") / "seen"


@pytest.fixture(scope="module")
def stack(repository: Path, seen: Path) -> Iterator[GatewayStack]:
    """A watched server whose preprocess fails as `_POISON` says."""
    copy = changed_repository(repository, seen.parent, _POISON.replace("SEEN", str(seen)), "preprocess")
    (copy / "export.json").unlink()
    with serve_behind_gateway(copy) as stack:
        yield stack


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_poisonous_image_reaches_the_model_twice_and_costs_others_nothing(
    stack: GatewayStack, seen: Path, protocol: WireProtocol
) -> None:
    seen.write_text("")
    honest = [png(shade) for shade in range(7)]
    with EnsembleClient(stack.urls[protocol], protocol) as client, ThreadPoolExecutor(4) as pool:
        expected = client.predict(honest)
        others = [pool.submit(client.predict, honest, batch_size=1) for _ in range(3)]
        answers = list(client.stream([*honest, png(9, "poison")]))
        assert [type(answer) for answer in answers] == [Prediction] * 7 + [Failure]
        assert isinstance(answers[-1], Failure)
        assert answers[-1].fault == "server"
        assert [answer.label for answer in answers if isinstance(answer, Prediction)] == [one.label for one in expected]
        assert all([one.label for one in other.result()] == [one.label for one in expected] for other in others)
    assert seen.read_text() == "xx"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_poisonous_image_alone_is_sent_twice(stack: GatewayStack, seen: Path, protocol: WireProtocol) -> None:
    seen.write_text("")
    with EnsembleClient(stack.urls[protocol], protocol) as client:
        with pytest.raises(ServerError, match=r"failed: .*\. See its log"):
            client.predict([png(9, "poison")])
        assert client.predict([png(3)])
    assert seen.read_text() == "xx"
