"""Retries after HTTP errors, and the key in each request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import pytest

from plurum.client import AsyncEnsembleClient, EnsembleClient, Failure, Prediction
from plurum.conventions import PROBE_ID
from plurum.errors import ImageError, PlurumError, ServerError, SettingsError
from plurum.serving import Server
from tests.client.stub_server import StubRequest, StubResponse, forward, http_server

pytestmark = pytest.mark.triton
Pixels = npt.NDArray[np.uint8]
FAILED = r"^the server at .* failed: so it goes\. See its log"


@contextmanager
def faulty(
    served: Server, statuses: list[int], seen: list[str | None], probes: list[int] | None = None
) -> Iterator[str]:
    """The real server over HTTP, with errors before its first responses.

    Args:
        served: The server.
        statuses: Statuses of the first responses to requests about images.
        seen: Receives the key of each of these requests.
        probes: Statuses of the first responses to probes.
    """

    def respond(request: StubRequest) -> StubResponse:
        if request.method == "POST":
            is_probe = PROBE_ID.encode() in request.body[:200]
            if not is_probe:
                seen.append(request.headers["Authorization"])
            if due := (probes or []) if is_probe else statuses:
                return StubResponse(due.pop(0), b'{"error": "so it goes"}')
        return forward(served.urls.http, request)

    with http_server(respond) as url:
        yield url


@pytest.mark.parametrize("count", [1, 8])
def test_request_is_sent_again_when_the_model_is_healthy(served: Server, count: int, pixels: Pixels) -> None:
    seen: list[str | None] = []
    probes = [500, 500]
    with faulty(served, [500], seen, probes) as url, EnsembleClient(url) as client:
        assert len(client.predict(pixels[:count])) == count
    # Eight images that were sent together are then sent alone.
    assert len(seen) == 1 + count
    assert not probes


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_request_that_fails_twice_is_not_sent_again(served: Server, kind: str, pixels: Pixels) -> None:
    seen: list[str | None] = []

    async def request(url: str) -> None:
        async with AsyncEnsembleClient(url) as client:
            await client.predict([pixels[0]])

    with (
        faulty(served, [500] * 1000, seen) as url,
        EnsembleClient(url) as client,
        pytest.raises(ServerError, match=FAILED),
    ):
        asyncio.run(request(url)) if kind == "async" else client.predict([pixels[0]])
    assert len(seen) == 2


@pytest.mark.parametrize("status", [502, 503, 504, 429])
def test_temporary_errors_are_retried(served: Server, status: int, pixels: Pixels) -> None:
    seen: list[str | None] = []
    with faulty(served, [status] * 2, seen) as url, EnsembleClient(url) as client:
        assert client.predict([pixels[0]])[0].label
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (400, ImageError, r"^image 0: so it goes"),
        (413, ImageError, r"^image 0: so it goes"),
        (401, ServerError, r"denies access: so it goes\. Give its key as PLURUM_API_KEY"),
        (403, ServerError, r"denies access"),
        (422, ServerError, r"received the request and failed: so it goes"),
    ],
)
def test_permanent_errors_are_not_retried(
    served: Server, status: int, error: type[PlurumError], message: str, pixels: Pixels
) -> None:
    seen: list[str | None] = []
    with faulty(served, [status] * 3, seen) as url, EnsembleClient(url) as client, pytest.raises(error, match=message):
        client.predict([pixels[0]])
    assert len(seen) == 1


def test_failing_server_is_not_an_image_error(served: Server, pixels: Pixels) -> None:
    seen: list[str | None] = []
    with (
        faulty(served, [500] * 1000, seen, [500] * 1000) as url,
        EnsembleClient(url, timeout_s=2) as client,
        pytest.raises(ServerError, match=FAILED) as caught,
    ):
        client.predict(pixels[:3])
    assert not isinstance(caught.value, ImageError)
    assert len(seen) == 1


def test_image_on_which_the_server_fails_does_not_affect_others(served: Server, pixels: Pixels) -> None:
    # The batch fails, then the first image alone.
    with faulty(served, [500] * 2, []) as url, EnsembleClient(url) as client:
        failure, *others = client.stream(pixels[:3])
    assert [type(answer) for answer in others] == [Prediction, Prediction]
    assert isinstance(failure, Failure)
    assert (failure.fault, failure.index) == ("server", 0)
    assert "failed: so it goes" in failure.reason


def test_key_is_sent_and_never_shown(
    served: Server, pixels: Pixels, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    seen: list[str | None] = []
    with faulty(served, [401], seen) as url:
        with EnsembleClient(url, api_key="open-sesame") as client, pytest.raises(ServerError) as caught:
            client.predict([pixels[0]])
        monkeypatch.setenv("PLURUM_API_KEY", "open-barley\n")
        with EnsembleClient(url) as client:
            client.predict([pixels[0]])
            assert "barley" not in repr(vars(client))
        with EnsembleClient(url, api_key="") as client:
            client.predict([pixels[0]])
    assert seen == ["Bearer open-sesame", "Bearer open-barley", None]
    with pytest.raises(SettingsError) as refused:
        EnsembleClient(api_key="open\nbarley")
    for text in (str(caught.value), str(refused.value), caplog.text):
        assert "sesame" not in text
        assert "barley" not in text


def test_warning_about_a_key_without_tls(caplog: pytest.LogCaptureFixture) -> None:
    for address in ("http://triton.example:8000", "https://triton.example:8000", "http://127.0.0.1:8000"):
        EnsembleClient(address, api_key="open-sesame").close()
    assert [record.getMessage() for record in caplog.records] == [
        "triton.example:8000: the API key is sent without TLS; use https:// or grpcs://"
    ]
