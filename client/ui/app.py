"""The page as a process: its routes, and its endpoints for predictions."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable
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

from plurum.client.bulk.report import decision_lines
from plurum.client.connection.payload import without_patient
from plurum.client.ui.connection import Connection
from plurum.client.ui.explanations import Explanations
from plurum.client.ui.middleware import PageMiddleware
from plurum.client.ui.page_connection import PageConnection
from plurum.client.ui.pages import Pages, point_text
from plurum.client.ui.pictures import Decoding, RecentImage, RecentImages, decode_image, picture_from_image
from plurum.client.ui.reviews import Reviews
from plurum.client.ui.store import ReviewStore
from plurum.client.ui.uploads import Uploads
from plurum.errors import ImageError, PlurumError, ServerError
from plurum.evidence import Evidence
from plurum.settings.client import UiSettings
from plurum.web.server import WebServer, http_url, is_loopback, open_listener, server_config

__all__ = ["run_ui", "ui_app"]

_log = logging.getLogger(__name__)
_DRAIN_S = 5
_NAME_LENGTH = 200
_DROPPED = "the image is no longer in memory. Upload it again."


def run_ui(
    connection: Connection,
    store: ReviewStore,
    evidence: Evidence | None,
    settings: UiSettings,
    announce: Callable[[str], None],
) -> None:
    """Serve the page until SIGINT, SIGTERM or SIGHUP.

    Args:
        connection: Connection to the served ensemble, which may be unavailable.
        store: Store of reviews.
        evidence: Source of Grad-CAM maps; None shows none.
        settings: Options of the page.
        announce: Function that is called with the page's URL when it accepts requests.

    Raises:
        ServerError: the port can't be listened on.
    """
    with open_listener(settings.host, settings.port) as listener:
        if not is_loopback(listener):
            _log.warning(
                "there is no login: everyone who can reach %s sees all images that were sent to review and may decide "
                "about them, and the images cross the network unencrypted. Put a proxy with a login and TLS in front.",
                settings.host,
            )
        config = server_config(
            ui_app(connection, store, evidence, settings),
            loop="asyncio",
            http=PageConnection,
            timeout_graceful_shutdown=_DRAIN_S,
        )
        url = http_url(settings.host, listener.getsockname()[1])
        WebServer(config, lambda: announce(url)).run(sockets=[listener])


def ui_app(connection: Connection, store: ReviewStore, evidence: Evidence | None, settings: UiSettings) -> ASGIApp:
    """Return the ASGI application of the page; the ASGI server must support lifespan events.

    Args:
        connection: Connection to the served ensemble; closed at shutdown.
        store: Store of reviews.
        evidence: Source of Grad-CAM maps; None shows none.
        settings: Options of the page.
    """
    pages = Pages(evidence is not None)
    recent = RecentImages(settings.recent_mib << 20)
    predictions = _Predictions(connection, store, recent, pages, settings)
    explanations = Explanations(evidence, connection, predictions.data_of, pages)

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

    shown = {
        "/": predictions.page,
        "/served": predictions.served,
        "/pictures/{sha256}": predictions.picture,
        "/evidence/{sha256}": explanations.fragment,
        "/evidence/{sha256}/{index}": explanations.picture,
        "/review": reviews.next,
        "/review/{sha256}": reviews.item,
        "/corrections.csv": reviews.export,
    }
    changes = {
        "/answers": predictions.classify,
        "/answers/{sha256}/review": predictions.send_to_review,
        "/review/{sha256}": reviews.decide,
        "/review/{sha256}/undo": reviews.undo,
        "/review/{sha256}/delete": reviews.delete,
    }
    routes = [
        *(Route(path, endpoint) for path, endpoint in shown.items()),
        *(Route(path, endpoint, methods=["POST"]) for path, endpoint in changes.items()),
        Mount("/static", StaticFiles(directory=Path(__file__).parent / "static")),
    ]
    handlers = {HTTPException: pages.refusal, PlurumError: pages.fault, ClientDisconnect: pages.gone}
    return PageMiddleware(Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers), settings.host)


class _Predictions:
    """Endpoints of the page on which images are dropped."""

    def __init__(
        self, connection: Connection, store: ReviewStore, recent: RecentImages, pages: Pages, settings: UiSettings
    ) -> None:
        self._connection = connection
        self._store = store
        self._recent = recent
        self._pages = pages
        self._limit_mib = settings.max_image_mib
        self._uploads = Uploads(settings.max_image_mib)
        self._places = asyncio.Semaphore(settings.uploads)
        # Separate from `_places`: pictures are shown while images wait for a server.
        self._decoding = Decoding(settings.uploads)
        self._counting = asyncio.Lock()

    async def page(self, _: Request) -> Response:
        """Show the page; its script requests the state of the server."""
        return self._pages.start(await asyncio.to_thread(self._store.progress), self._limit_mib)

    async def served(self, _: Request) -> Response:
        """Describe the served ensemble and its decisions, or state why none is available."""
        try:
            served = await self._connection.served()
        except ServerError as error:
            return JSONResponse({"error": str(error)}, 503)
        line = f"{len(served.classes)} classes, {len(served.members)} members"
        decisions = decision_lines(served)
        return JSONResponse({"line": line + point_text(served.point, served.classes), "decisions": decisions})

    async def classify(self, request: Request) -> Response:
        """Classify the image in the body, and store it if the prediction needs review or was drawn for audit."""
        # A slow upload takes no place from others.
        async with self._uploads.body(request) as data:
            name = _name(request.headers.get("x-file-name", ""))
            try:
                # The patient's data in a DICOM file are neither sent nor stored.
                data = await asyncio.to_thread(without_patient, data)  # noqa: PLW2901
                # Errors found here need no server.
                async with self._decoding.room(data):
                    await _check_connected(request)
                    await asyncio.to_thread(decode_image, data, self._connection.window)
                async with self._places:
                    await _check_connected(request)
                    prediction, audit_rate = await self._connection.predict(data)
            except ImageError as error:
                return JSONResponse({"error": str(error)}, 422)
            except ServerError as error:
                return JSONResponse({"error": str(error)}, 503)
            sha256 = hashlib.sha256(data).hexdigest()
            item = await asyncio.to_thread(self._store.item, sha256)
            # An image that is in review already gets the new prediction in any case.
            if prediction.review or prediction.audit or item:
                await asyncio.to_thread(self._store.add, data, name, prediction, audit_rate=audit_rate)
                item = await asyncio.to_thread(self._store.item, sha256)
            self._recent.add(sha256, RecentImage(name, data, prediction, audit_rate))
        response = self._pages.prediction(sha256, name, prediction, item)
        waiting, moment = await self._waiting()
        response.headers.update({"x-waiting": str(waiting), "x-counted": str(moment)})
        return response

    async def send_to_review(self, request: Request) -> Response:
        """Send an image to review that the ensemble did not flag."""
        sha256 = request.path_params["sha256"]
        image = self._recent.get(sha256)
        if image is None:
            raise HTTPException(404, _DROPPED)
        sent = (image.data, image.name, image.prediction)
        await asyncio.to_thread(self._store.add, *sent, by_person=True, audit_rate=image.audit_rate)
        if "x-stay" in request.headers:
            waiting, moment = await self._waiting()
            return JSONResponse({"item": f"/review/{sha256}", "waiting": waiting, "counted": moment})
        return RedirectResponse(f"/review/{sha256}", 303)

    async def picture(self, request: Request) -> Response:
        """Return an image for display."""
        data = await self.data_of(request.path_params["sha256"])
        async with self._decoding.room(data):
            content, kind = await asyncio.to_thread(picture_from_image, data, self._connection.window)
        return Response(content, media_type=kind)

    async def data_of(self, sha256: str) -> bytes:
        """Return the bytes of an image that was recently classified or is in review.

        Raises:
            HTTPException: the image is neither.
        """
        image = self._recent.get(sha256)
        if image is not None:
            return image.data
        item = await asyncio.to_thread(self._store.item, sha256)
        # The image may be deleted at the same time.
        with contextlib.suppress(FileNotFoundError):
            if item is not None:
                return await asyncio.to_thread(item.file.read_bytes)
        raise HTTPException(404, _DROPPED)

    async def _waiting(self) -> tuple[int, int]:
        """Return the number of images without a decision, and the time of the count in microseconds.

        The page needs the time because responses can overtake each other.
        """
        async with self._counting:
            # This clock never goes back, not even when this process restarts.
            moment = time.monotonic_ns() // 1000
            return (await asyncio.to_thread(self._store.progress)).waiting, moment


async def _check_connected(request: Request) -> None:
    """Check that the browser still waits for the response."""
    if await request.is_disconnected():
        raise ClientDisconnect


def _name(quoted: str) -> str:
    """Return a file's name for display from the browser's header; it is never used as a path."""
    name = unquote(quoted).replace("\\", "/").rpartition("/")[2]
    return "".join(letter if letter.isprintable() else "�" for letter in name)[-_NAME_LENGTH:] or "pasted image"
