"""The served ensemble, as a page asks it: for hours, through restarts and other releases."""

from __future__ import annotations

import asyncio

from plurum.client.connection.addresses import WireProtocol
from plurum.client.connection.asynchronous import AsyncEnsembleClient
from plurum.client.connection.base_client import Urls
from plurum.client.connection.predictions import Failure, Prediction, Served
from plurum.errors import ImageError, ServerError

__all__ = ["Connection"]


class Connection:
    """A way to the servers, made anew when it fails and when they serve something else.

    Args:
        urls: As `AsyncEnsembleClient` takes them.
        protocol: Likewise.
        timeout_s: Likewise; a server that goes away in mid-flight is waited for as long.

    Raises:
        MissingExtraError: tritonclient is not installed.
        SettingsError: an argument that can't be used.
    """

    def __init__(self, urls: Urls, protocol: WireProtocol | None, timeout_s: float) -> None:
        self._arguments = (urls, protocol, timeout_s)
        self._timeout_s = timeout_s
        # At once, so that what can't be used is said before anybody asks.
        self._client: AsyncEnsembleClient | None = self._made()
        self._served: Served | None = None
        self._retired: dict[AsyncEnsembleClient, asyncio.Task[None]] = {}

    async def served(self) -> Served:
        """Ask what is served now, which takes a moment; one that is away fails at once.

        Raises:
            ServerError: no server answers, or it serves no ensemble.
        """
        fresh = self._made()
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

    async def ask(self, data: bytes) -> Prediction:
        """Return the answer to one encoded image.

        Raises:
            ImageError: it has none; the reason is the server's.
            ServerError: no server answers, or it fails.
        """
        if self._client is None:
            await self.served()
        client = self._client
        if client is None:
            raise ServerError("the server has just gone; ask again")
        try:
            answers = [answer async for answer in client.stream([data])]
        except ServerError:
            # What is known of the server may no longer hold.
            if self._client is client:
                self._replace(None)
            raise
        (answer,) = answers
        if isinstance(answer, Failure):
            raise (ImageError if answer.fault == "image" else ServerError)(answer.reason)
        return answer

    async def close(self) -> None:
        """Let go of all connections."""
        self._replace(None)
        clients, tasks = list(self._retired), list(self._retired.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(client.close() for client in clients))

    def _made(self) -> AsyncEnsembleClient:
        urls, protocol, timeout_s = self._arguments
        return AsyncEnsembleClient(urls, protocol, timeout_s=timeout_s)

    def _replace(self, client: AsyncEnsembleClient | None) -> None:
        old, self._client, self._served = self._client, client, None
        if old is not None:
            # Others may still wait for what they asked through it.
            self._retire(old, self._timeout_s)

    def _retire(self, client: AsyncEnsembleClient, after_s: float) -> None:
        async def retired() -> None:
            await asyncio.sleep(after_s)
            await client.close()
            del self._retired[client]

        self._retired[client] = asyncio.create_task(retired())
