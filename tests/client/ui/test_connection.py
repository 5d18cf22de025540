"""Connection of the page through failures and releases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine

import pytest

from plurum.client import AsyncEnsembleClient, Failure, Prediction, Served
from plurum.client.ui import Connection
from plurum.errors import ImageError, ServerError
from tests.client.samples import prediction


class FakeClient:
    """Stands in for a client of one release."""

    def __init__(self, members: tuple[str, ...], answer: Prediction | Failure | ServerError) -> None:
        self._served = Served(("CE", "LAA"), members, 8, None)
        self._answer = answer
        self.gate = asyncio.Event()
        self.closed = False

    @property
    def served(self) -> Coroutine[None, None, Served]:
        async def told() -> Served:
            return self._served

        return told()

    async def stream(self, _: list[bytes]) -> AsyncIterator[Prediction | Failure]:
        await self.gate.wait()
        assert not self.closed
        if isinstance(self._answer, ServerError):
            raise self._answer
        yield self._answer

    async def close(self) -> None:
        self.closed = True


class Scripted(Connection):
    """A connection to what its test says."""

    def __init__(self, *clients: FakeClient) -> None:
        self._script = list(clients)
        super().__init__(None, None, 0.2)

    def _new_client(self) -> AsyncEnsembleClient:
        return self._script.pop(0)  # type: ignore[return-value]


def fakes(*answers: Prediction | Failure | ServerError) -> list[FakeClient]:
    return [FakeClient((f"release-{number}",), answer) for number, answer in enumerate(answers)]


def test_new_release_gets_new_requests_and_the_old_one_completes() -> None:
    async def story() -> None:
        old, new = fakes(prediction("CE"), prediction("LAA"))
        connection = Scripted(old, new)
        waiting = asyncio.create_task(connection.predict(b"first"))
        await asyncio.sleep(0.01)
        assert (await connection.served()).members == ("release-1",)
        new.gate.set()
        assert (await connection.predict(b"second"))[0].label == "LAA"
        old.gate.set()
        assert (await waiting)[0].label == "CE"
        await asyncio.sleep(0.3)
        assert (old.closed, new.closed) == (True, False)
        await connection.close()
        assert new.closed

    asyncio.run(story())


def test_description_is_requested_again_after_a_failure() -> None:
    async def story() -> None:
        old, new = fakes(ServerError("it fails"), prediction("LAA"))
        connection = Scripted(old, new)
        old.gate.set()
        new.gate.set()
        with pytest.raises(ServerError, match="it fails"):
            await connection.predict(b"first")
        assert (await connection.predict(b"second"))[0].label == "LAA"
        await connection.close()
        assert old.closed

    asyncio.run(story())


@pytest.mark.parametrize(("fault", "kind"), [("image", ImageError), ("server", ServerError)])
def test_failure_is_raised_as_image_or_server_error(fault: str, kind: type[Exception]) -> None:
    async def story() -> None:
        (client,) = fakes(Failure(0, "image 0", "too dark", fault))  # type: ignore[arg-type]
        client.gate.set()
        connection = Scripted(client)
        with pytest.raises(kind, match=r"^too dark$"):
            await connection.predict(b"image")
        await connection.close()

    asyncio.run(story())
