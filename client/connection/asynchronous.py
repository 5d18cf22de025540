"""Client of a served ensemble for asyncio."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable

from plurum.client.connection.base_client import CLOSE_S, BaseClient, raise_first
from plurum.client.connection.calls import Deadline, run_flow_async
from plurum.client.connection.payload import AnyImage, BatchSize, PreparedImage
from plurum.client.connection.predictions import Answer, Failure, Prediction, Served
from plurum.client.connection.requests import Patients

__all__ = ["AsyncEnsembleClient"]


class AsyncEnsembleClient(BaseClient):
    """Client with the API of `EnsembleClient` for asyncio; use it with `async with`, from any tasks of one event loop.

    A cancelled task stops waiting; its gRPC requests complete in the background.

    Example:
        >>> async with AsyncEnsembleClient("127.0.0.1:8001") as client:
        ...     answers = await asyncio.gather(*(client.predict([path]) for path in paths))

    Args:
        url: Address of a server, or several, as in `EnsembleClient`; so are protocol, model, api_key and tls.
        timeout_s: Time limit of one request with its retries, including the wait for one of the `concurrency` places,
            seconds.
        concurrency: Maximum number of concurrent requests of all tasks together; more wait. None is 32.

    Raises:
        MissingExtraError: tritonclient is not installed.
        SettingsError: an argument is invalid.
    """

    _default_concurrency = 32

    def _set_up(self, concurrency: int) -> None:
        self._places = asyncio.Semaphore(concurrency)
        self._describing = asyncio.Lock()

    async def __aenter__(self) -> AsyncEnsembleClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections, after waiting a few seconds for requests in progress."""
        self._requester.close()
        for transport in self._requester.transports:
            await asyncio.to_thread(transport.close, CLOSE_S)

    @property
    def served(self) -> Coroutine[None, None, Served]:
        """Awaitable description of the served ensemble, requested once.

        Raises:
            ServerError: no server responds, or it serves no ensemble.
        """
        return self._served(Deadline.after(self._requester.timeout_s))

    async def predict(
        self, images: Iterable[AnyImage], *, patients: Patients | None = None, batch_size: int | None = None
    ) -> list[Prediction]:
        """Return one prediction per image, in order; see `EnsembleClient.predict`.

        Raises:
            ImageError: an image failed; the message names the first one and the reason. `stream` returns the others.
            ServerError: no server responds, the server fails, or it serves no ensemble.
            SettingsError: the batch size is below 1, or there is not one patient per image.
        """
        answers = self.stream(images, patients=patients, batch_size=batch_size)
        return raise_first([answer async for answer in answers])

    async def stream(
        self, images: Iterable[AnyImage], *, patients: Patients | None = None, batch_size: int | None = None
    ) -> AsyncIterator[Answer]:
        """Yield one `Prediction` or `Failure` per image, in order, while later images are being classified.

        `images` is read in another thread, so that reading and encoding don't block other tasks.

        Args:
            images: Images, as in `EnsembleClient.predict`.
            patients: Patient of each image, as in `EnsembleClient.predict`; read in step with `images`.
            batch_size: Maximum number of images per request, as in `EnsembleClient.predict`.

        Raises:
            ServerError: no server responds, the server fails, or it serves no ensemble.
            SettingsError: the batch size is below 1, or there is not one patient per image.
        """
        deadline = Deadline.after(self._requester.timeout_s)
        served = await self._served(deadline)
        size = BatchSize(batch_size, served.max_batch_size)
        batches = self._requester.batches(images, patients, served, size)
        pending: deque[asyncio.Task[list[Answer]]] = deque()
        try:
            while batch := await asyncio.to_thread(next, batches, None):
                pending.append(asyncio.create_task(self._answers(batch, served, deadline, size)))
                deadline = Deadline.after(self._requester.timeout_s)
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
        # A task that waits here started later than the first, so its deadline is later too.
        async with self._describing:
            return await run_flow_async(self._requester.served(deadline))

    async def _answers(
        self, batch: list[PreparedImage | Failure], served: Served, deadline: Deadline, size: BatchSize
    ) -> list[Answer]:
        # Places are assigned in order, so earlier requests, whose deadlines are earlier, end first.
        async with self._places:
            return await run_flow_async(self._requester.answers(batch, served, deadline, size))
