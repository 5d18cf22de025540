"""Ask a served ensemble about images, from asyncio."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable
from types import TracebackType

from plurum.client.asking import Urls, asker_from, raise_first
from plurum.client.calls import Deadline, carried_out_async
from plurum.client.client import CLOSE_S
from plurum.client.payload import AnyImage, BatchSize, Item
from plurum.client.predictions import Answer, Failure, Prediction, Served
from plurum.client.transport import Tls, WireProtocol
from plurum.errors import SettingsError

__all__ = ["AsyncEnsembleClient"]


class AsyncEnsembleClient:
    """What `EnsembleClient` is, for `async with` and any number of tasks of one event loop.

    A task that is cancelled stops waiting; what it asked over gRPC ends by itself.

    Example:
        >>> async with AsyncEnsembleClient("127.0.0.1:8001") as client:
        ...     answers = await asyncio.gather(*(client.predict([path]) for path in paths))

    Args:
        url: As `EnsembleClient` takes it, and so all others.
        protocol: Likewise.
        model: Likewise.
        timeout_s: Likewise; time spent waiting for a place among `concurrency` is part of it.
        concurrency: How many requests of all tasks together are under way at once; more wait for their turn.
        api_key: Likewise.
        tls: Likewise.

    Raises:
        MissingExtraError: tritonclient is not installed.
        SettingsError: an argument that can't be used.
    """

    def __init__(
        self,
        url: Urls = None,
        protocol: WireProtocol | None = None,
        *,
        model: str | None = None,
        timeout_s: float = 60.0,
        concurrency: int = 32,
        api_key: str | None = None,
        tls: Tls | None = None,
    ) -> None:
        if concurrency < 1:
            raise SettingsError(f"{concurrency} requests at once ask nothing; give 1 or more")
        self._asker = asker_from(url, protocol, model, timeout_s, api_key, tls)
        self._concurrency = concurrency
        self._places = asyncio.Semaphore(concurrency)
        self._describing = asyncio.Lock()

    async def __aenter__(self) -> AsyncEnsembleClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the connections, after waiting a few seconds for requests under way."""
        self._asker.close()
        for transport in self._asker.transports:
            await asyncio.to_thread(transport.close, CLOSE_S)

    @property
    def served(self) -> Coroutine[None, None, Served]:
        """What the server says of its ensemble, to be awaited; asked once.

        Raises:
            ServerError: no server answers, or it serves no ensemble.
        """
        return self._served(Deadline.after(self._asker.timeout_s))

    async def predict(self, images: Iterable[AnyImage], *, batch_size: int | None = None) -> list[Prediction]:
        """Return one prediction per image, in order; see `EnsembleClient.predict`.

        Raises:
            ImageError: an image got no answer; the message names the first and says why. `stream` gives the others.
            ServerError: no server answers, it fails, or it serves no ensemble.
            SettingsError: a batch of less than one image.
        """
        return raise_first([answer async for answer in self.stream(images, batch_size=batch_size)])

    async def stream(self, images: Iterable[AnyImage], *, batch_size: int | None = None) -> AsyncIterator[Answer]:
        """Yield one `Prediction` or `Failure` per image, in order, while later images are on their way.

        `images` is read in another thread, since reading and encoding take time that other tasks need.

        Args:
            images: As `EnsembleClient.stream` takes them.
            batch_size: Likewise.

        Raises:
            ServerError: no server answers (any more), it fails, or it serves no ensemble.
            SettingsError: a batch of less than one image.
        """
        deadline = Deadline.after(self._asker.timeout_s)
        served = await self._served(deadline)
        size = BatchSize(batch_size, served.max_batch_size)
        batches = self._asker.batches(images, served, size)
        pending: deque[asyncio.Task[list[Answer]]] = deque()
        try:
            while batch := await asyncio.to_thread(next, batches, None):
                pending.append(asyncio.create_task(self._answers(batch, served, deadline, size)))
                deadline = Deadline.after(self._asker.timeout_s)
                while pending and (len(pending) > self._concurrency or pending[0].done()):
                    for answer in await pending.popleft():
                        yield answer
            while pending:
                for answer in await pending.popleft():
                    yield answer
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)

    async def _served(self, deadline: Deadline) -> Served:
        # Whoever waits here for the first began after it, and has more time left.
        async with self._describing:
            return await carried_out_async(self._asker.served(deadline))

    async def _answers(
        self, batch: list[Item | Failure], served: Served, deadline: Deadline, size: BatchSize
    ) -> list[Answer]:
        # Places are given in the order of asking, so that those before have ended by their deadlines, which are sooner.
        async with self._places:
            return await carried_out_async(self._asker.answers(batch, served, deadline, size))
