"""Connection of the page to the served ensemble, which lasts through restarts and releases."""

from __future__ import annotations

import asyncio

from plurum.client.connection.addresses import WireProtocol
from plurum.client.connection.asynchronous import AsyncEnsembleClient
from plurum.client.connection.base_client import Urls
from plurum.client.connection.predictions import Failure, Prediction, Served
from plurum.errors import ImageError, ServerError
from plurum.images.windows import WindowRule

__all__ = ["Connection"]


class Connection:
    """Connection to the servers, renewed after failures and when another ensemble is served.

    Args:
        urls: Addresses of the servers, as in `AsyncEnsembleClient`.
        protocol: `grpc` or `http`; None takes the protocol from the URLs, else gRPC.
        timeout_s: Time limit of a request with its retries, seconds.

    Raises:
        MissingExtraError: tritonclient is not installed.
        SettingsError: an argument is invalid.
    """

    def __init__(self, urls: Urls, protocol: WireProtocol | None, timeout_s: float) -> None:
        self._arguments = (urls, protocol, timeout_s)
        self._timeout_s = timeout_s
        # Create a client now, to report invalid arguments at once.
        self._client: AsyncEnsembleClient | None = self._new_client()
        self._served: Served | None = None
        self._retired: dict[AsyncEnsembleClient, asyncio.Task[None]] = {}

    async def served(self) -> Served:
        """Request the description of the ensemble that is served now; fail at once if no server responds.

        Raises:
            ServerError: no server responds, or it serves no ensemble.
        """
        fresh = self._new_client()
        try:
            served = await fresh.served
        except BaseException:
            self._retire(fresh, 0)
            raise
        if self._client is not None and served == self._served:
            self._retire(fresh, 0)
        else:
            self._replace(fresh)
            self._served = served
        return served

    @property
    def window(self) -> WindowRule | None:
        """Window that the server applied when it was last described; None if it applies none, or is unknown."""
        return None if self._served is None else self._served.window

    async def predict(self, data: bytes) -> tuple[Prediction, float | None]:
        """Return the prediction for one encoded image, and the rate of its server's audits; None if it draws none.

        Raises:
            ImageError: the server refuses the image.
            ServerError: no server responds, or the server fails.
        """
        if self._client is None:
            await self.served()
        client = self._client
        if client is None:
            raise ServerError("the server has just become unavailable. Try again.")
        try:
            (answer,) = [answer async for answer in client.stream([data])]
            audit_rate = (await client.served).audit_rate
        except ServerError:
            # Another ensemble may be served when the server is back.
            if self._client is client:
                self._replace(None)
            raise
        if isinstance(answer, Failure):
            raise (ImageError if answer.fault == "image" else ServerError)(answer.reason)
        return answer, audit_rate

    async def close(self) -> None:
        """Close all connections."""
        self._replace(None)
        clients, tasks = list(self._retired), list(self._retired.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(client.close() for client in clients))

    def _new_client(self) -> AsyncEnsembleClient:
        urls, protocol, timeout_s = self._arguments
        return AsyncEnsembleClient(urls, protocol, timeout_s=timeout_s)

    def _replace(self, client: AsyncEnsembleClient | None) -> None:
        old, self._client, self._served = self._client, client, None
        if old is not None:
            # Requests of other tasks may still be in progress.
            self._retire(old, self._timeout_s)

    def _retire(self, client: AsyncEnsembleClient, after_s: float) -> None:
        async def close_later() -> None:
            await asyncio.sleep(after_s)
            await client.close()
            del self._retired[client]

        self._retired[client] = asyncio.create_task(close_later())
