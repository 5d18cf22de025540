"""The paths of the page, and what happens behind each."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from plurum.client.ui.arrivals import Arrivals
from plurum.client.ui.connection import Connection
from plurum.client.ui.door import Door
from plurum.client.ui.explanations import Explanations
from plurum.client.ui.pages import Pages
from plurum.client.ui.pictures import Asked, Decoding, Recent, readable, shown
from plurum.client.ui.reviews import Reviews
from plurum.client.ui.store import ReviewStore
from plurum.errors import ImageError, PlurumError, ServerError
from plurum.evidence import Evidence
from plurum.settings.client import UiSettings

__all__ = ["ui_app"]

_NAME_LENGTH = 200


def ui_app(connection: Connection, store: ReviewStore, evidence: Evidence | None, settings: UiSettings) -> ASGIApp:
    """Return the whole application, for an ASGI server with lifespan.

    Args:
        connection: To the served ensemble; closed at the end.
        store: Of reviews.
        evidence: Where members looked; None shows none.
        settings: Options.
    """
    pages = Pages(evidence is not None)
    recent = Recent(settings.recent_mib << 20)
    asking = _Asking(connection, store, recent, pages, settings)
    explanations = Explanations(evidence, connection, asking.data_of, pages)

    def forget(sha256: str) -> None:
        recent.forget(sha256)
        explanations.forget(sha256)

    reviews = Reviews(store, forget, pages)

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await connection.close()

    routes = [
        Route("/", asking.page),
        Route("/served", asking.served),
        Route("/answers", asking.answer, methods=["POST"]),
        Route("/answers/{sha256}/review", asking.send, methods=["POST"]),
        Route("/pictures/{sha256}", asking.picture),
        Route("/evidence/{sha256}", explanations.fragment),
        Route("/evidence/{sha256}/{index}", explanations.picture),
        Route("/review", reviews.next),
        Route("/review/{sha256}", reviews.item),
        Route("/review/{sha256}", reviews.decide, methods=["POST"]),
        Route("/review/{sha256}/undo", reviews.undo, methods=["POST"]),
        Route("/review/{sha256}/delete", reviews.delete, methods=["POST"]),
        Route("/corrections.csv", reviews.export),
        Mount("/static", StaticFiles(directory=Path(__file__).parent / "static")),
    ]
    refusals = {HTTPException: pages.refusal, PlurumError: pages.fault, ClientDisconnect: pages.gone}
    return Door(Starlette(routes=routes, lifespan=lifespan, exception_handlers=refusals), settings.host)


class _Asking:
    """The page where images are dropped."""

    def __init__(
        self, connection: Connection, store: ReviewStore, recent: Recent, pages: Pages, settings: UiSettings
    ) -> None:
        self._connection = connection
        self._store = store
        self._recent = recent
        self._pages = pages
        self._limit_mib = settings.max_image_mib
        self._arrivals = Arrivals(settings.max_image_mib)
        self._places = asyncio.Semaphore(settings.uploads)
        # Of its own: pictures are shown while images wait for a server that is away.
        self._decoding = Decoding(settings.uploads)
        self._counting = asyncio.Lock()

    async def page(self, _: Request) -> Response:
        """Show where to drop images; whether a server answers is asked for by the page."""
        return self._pages.ask(await asyncio.to_thread(self._store.progress), self._limit_mib)

    async def served(self, _: Request) -> Response:
        """Say in one line what is served, or why nothing is."""
        try:
            served = await self._connection.served()
        except ServerError as error:
            return JSONResponse({"error": str(error)}, 503)
        return JSONResponse({"line": f"{len(served.classes)} classes, {len(served.members)} members"})

    async def answer(self, request: Request) -> Response:
        """Ask about the one image that the body is; an answer that a person should look at is kept."""
        # What arrives slowly takes no place from others.
        async with self._arrivals.body(request) as data:
            name = _name(request.headers.get("x-file-name", ""))
            try:
                # Said here, it needs no server, and comes in words for people.
                async with self._decoding.room(data):
                    await _check_waits(request)
                    await asyncio.to_thread(_check, data)
                async with self._places:
                    await _check_waits(request)
                    prediction = await self._connection.ask(data)
            except ImageError as error:
                return JSONResponse({"error": str(error)}, 422)
            except ServerError as error:
                return JSONResponse({"error": str(error)}, 503)
            sha256 = hashlib.sha256(data).hexdigest()
            item = await asyncio.to_thread(self._store.item, sha256)
            # One that is there already gets the new answer, whatever it is.
            if prediction.review or item:
                await asyncio.to_thread(self._store.add, data, name, prediction)
                item = await asyncio.to_thread(self._store.item, sha256)
            self._recent.add(sha256, Asked(name, data, prediction))
        answer = self._pages.answer(sha256, name, prediction, item)
        waiting, moment = await self._waiting()
        answer.headers.update({"x-waiting": str(waiting), "x-counted": str(moment)})
        return answer

    async def send(self, request: Request) -> Response:
        """Keep an answer for review that the ensemble itself was sure of."""
        sha256 = request.path_params["sha256"]
        asked = self._recent.get(sha256)
        if asked is None:
            raise HTTPException(404, "this image is no longer remembered; drop it again")
        await asyncio.to_thread(self._store.add, asked.data, asked.name, asked.prediction, by_person=True)
        if "x-stay" in request.headers:
            waiting, moment = await self._waiting()
            return JSONResponse({"item": f"/review/{sha256}", "waiting": waiting, "counted": moment})
        return RedirectResponse(f"/review/{sha256}", 303)

    async def picture(self, request: Request) -> Response:
        """Show an image that was asked about."""
        data = await self.data_of(request.path_params["sha256"])
        async with self._decoding.room(data):
            content, kind = await asyncio.to_thread(shown, data)
        return Response(content, media_type=kind)

    async def data_of(self, sha256: str) -> bytes:
        """Return the bytes of an image that was asked about lately or sent to review.

        Raises:
            HTTPException: neither.
        """
        asked = self._recent.get(sha256)
        if asked is not None:
            return asked.data
        item = await asyncio.to_thread(self._store.item, sha256)
        # Its file may go while we look.
        with contextlib.suppress(FileNotFoundError):
            if item is not None:
                return await asyncio.to_thread(item.file.read_bytes)
        raise HTTPException(404, "this image is no longer remembered; drop it again")

    async def _waiting(self) -> tuple[int, int]:
        """Return how many wait for a person, and when that was counted, microseconds: answers overtake each other."""
        async with self._counting:
            # Of a clock that never goes back, not even when this process is started again.
            moment = time.monotonic_ns() // 1000
            return (await asyncio.to_thread(self._store.progress)).waiting, moment


async def _check_waits(request: Request) -> None:
    """Make sure that the sender still waits: others don't wait for what nobody wants to know any more.

    Raises:
        ClientDisconnect: the sender has left.
    """
    if await request.is_disconnected():
        raise ClientDisconnect


def _check(data: bytes) -> None:
    """Decode an image, and keep nothing of it.

    Raises:
        ImageError: it can't be read.
    """
    readable(data)


def _name(quoted: str) -> str:
    """Return what to call a file, by what the browser says: for people, never for a path."""
    name = unquote(quoted).replace("\\", "/").rpartition("/")[2]
    return "".join(letter if letter.isprintable() else "�" for letter in name)[-_NAME_LENGTH:] or "pasted image"
