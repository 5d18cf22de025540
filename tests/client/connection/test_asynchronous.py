"""The client for asyncio and a real server."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from plurum.client import AsyncEnsembleClient, EnsembleClient, Failure, Prediction
from plurum.client.connection.over_grpc import GrpcTransport
from plurum.client.connection.over_http import HttpTransport
from plurum.errors import ImageError, ServerError, SettingsError

pytestmark = pytest.mark.triton


def test_both_clients_have_the_same_surface() -> None:
    def surface(client: type) -> dict[str, list[str]]:
        methods = {name: one for name, one in vars(client).items() if not name.startswith("_") and callable(one)}
        return {name: list(inspect.signature(one).parameters) for name, one in methods.items()}

    assert surface(AsyncEnsembleClient) == surface(EnsembleClient)
    assert list(inspect.signature(AsyncEnsembleClient).parameters) == list(inspect.signature(EnsembleClient).parameters)
    assert "served" in vars(AsyncEnsembleClient)


def test_predictions_equal_those_of_the_other_client(url: str, pixels: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    images = [*pixels, b"no image", tmp_path / "nowhere.png"]

    async def request() -> list[Prediction | Failure]:
        async with AsyncEnsembleClient(url, concurrency=3) as client:
            assert (await client.served) == other.served
            with pytest.raises(ImageError, match=r"^image 1: "):
                await client.predict([pixels[0], b""])
            with pytest.raises(SettingsError, match="batch_size: expected at least 1, got 0"):
                await client.predict([b""], batch_size=0)
            return [answer async for answer in client.stream(images, batch_size=4)]

    with EnsembleClient(url) as other:
        answers, expected = asyncio.run(request()), list(other.stream(images, batch_size=4))
    assert len(answers) == len(expected) == 42
    for answer, wanted in zip(answers, expected, strict=True):
        if isinstance(wanted, Failure):
            assert answer == wanted
        else:
            assert isinstance(answer, Prediction)
            assert answer.label == wanted.label
            assert answer.confidence == pytest.approx(wanted.confidence, abs=1e-5)


def test_concurrency_limits_a_thousand_tasks(
    url: str, pixels: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way, most = 0, 0
    for transport in (GrpcTransport, HttpTransport):
        original = transport.infer

        def infer(*given, original=original, **named):  # type: ignore[no-untyped-def]
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            call = original(*given, **named)

            def end(_: object) -> None:
                nonlocal under_way
                under_way -= 1

            call.add_done_callback(end)
            return call

        monkeypatch.setattr(transport, "infer", infer)

    async def request() -> list[list[Prediction]]:
        async with AsyncEnsembleClient(url, concurrency=16) as client:
            return await asyncio.gather(*(client.predict([pixels[index % 40]]) for index in range(1000)))

    answers = asyncio.run(request())
    with EnsembleClient(url) as client:
        expected = [answer.label for answer in client.predict(pixels)]
    assert [answer.label for (answer,) in answers] == expected * 25
    assert 4 < most <= 17


def test_cancelled_task_does_not_affect_others(url: str, pixels: npt.NDArray[np.uint8]) -> None:
    async def request() -> list[list[Prediction] | BaseException]:
        async with AsyncEnsembleClient(url, concurrency=2) as client:
            await client.predict([pixels[0]])
            tasks = [asyncio.create_task(client.predict(pixels, batch_size=1)) for _ in range(6)]
            await asyncio.sleep(0.02)
            for task in tasks[::2]:
                task.cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

    answers = asyncio.run(request())
    assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[::2])
    assert all(isinstance(answer, list) and len(answer) == 40 for answer in answers[1::2])


def test_a_closed_client_says_so(url: str) -> None:
    async def request() -> None:
        client = AsyncEnsembleClient(url)
        assert await client.served
        await client.close()
        await client.predict([b"image"])

    with pytest.raises(ServerError, match="the client is closed"):
        asyncio.run(request())
