"""Pages on which people confirm or correct predictions."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from plurum.client.ui.corrections import csv_from_items
from plurum.client.ui.pages import Pages
from plurum.client.ui.store import DecisionConflictError, ReviewItem, ReviewStore

__all__ = ["Reviews"]

_FORM_BYTES = 1 << 16
# SQLite numbers rows up to 2**63.
_SEEN = re.compile(r"[0-9]{1,18}")
_DELETED = "this image was not sent to review, or was deleted"


@dataclass(frozen=True)
class Reviews:
    """Endpoints of the review queue.

    Attributes:
        store: Store of reviews.
        forget: Function that is called with the SHA-256 of each deleted image.
        pages: Renders the templates.
    """

    store: ReviewStore
    forget: Callable[[str], None]
    pages: Pages

    async def next(self, request: Request) -> Response:
        """Redirect to the first image without a decision, or show that there is none."""
        items = await self._items()
        for item in items:
            if item.label is None:
                return RedirectResponse(f"/review/{item.sha256}", 303)
        return self.pages.finished(items, _decided_before(items, request))

    async def item(self, request: Request) -> Response:
        """Show one image with its prediction."""
        items = await self._items()
        item = _find(items, request.path_params["sha256"])
        return self.pages.review(items, item, _decided_before(items, request))

    async def decide(self, request: Request) -> Response:
        """Record a decision and redirect to the next image; if there is a newer decision, show that instead."""
        form = await _form(request)
        item = await self._requested(request)
        label = form.get("label", "")
        if label not in item.prediction.probabilities:
            raise HTTPException(422, f"unknown class {label[:60]!r}. Choose one of the list.")
        if conflict := await self._record(item, label, form):
            return conflict
        undecided = [one for one in await self._items() if one.label is None]
        # First the images after this one, which may be deleted by now, then those before it.
        undecided.sort(key=lambda one: (one.number < item.number, one.number))
        target = f"/review/{undecided[0].sha256}" if undecided else "/review"
        return RedirectResponse(f"{target}?done={item.sha256}", 303)

    async def undo(self, request: Request) -> Response:
        """Withdraw the decision about an image, and show the image again."""
        item = await self._requested(request)
        if conflict := await self._record(item, None, await _form(request)):
            return conflict
        return RedirectResponse(f"/review/{item.sha256}", 303)

    async def delete(self, request: Request) -> Response:
        """Delete an image and all its data."""
        item = await self._requested(request)
        self.forget(item.sha256)
        await asyncio.to_thread(self.store.delete, item.sha256)
        return RedirectResponse("/review", 303)

    async def export(self, _: Request) -> Response:
        """Return all decisions as the CSV manifest that `plurum train` reads."""
        text = csv_from_items(await self._items())
        disposition = {"content-disposition": 'attachment; filename="corrections.csv"'}
        return Response(text, media_type="text/csv", headers=disposition)

    async def _items(self) -> list[ReviewItem]:
        return await asyncio.to_thread(self.store.items)

    async def _requested(self, request: Request) -> ReviewItem:
        return _find(await self._items(), request.path_params["sha256"])

    async def _record(self, item: ReviewItem, label: str | None, form: dict[str, str]) -> Response | None:
        """Record a decision; return the page to show if there is a newer decision."""
        seen = form.get("seen", "")
        if not _SEEN.fullmatch(seen):
            raise HTTPException(422, "the form does not state which decision it replaces. Reload the page.")
        try:
            await asyncio.to_thread(self.store.decide, item.sha256, label, int(seen))
        except DecisionConflictError as error:
            items = await self._items()
            return self.pages.review(items, _find(items, error.item.sha256), conflict=True)
        except KeyError as error:
            raise HTTPException(404, _DELETED) from error
        return None


def _find(items: Sequence[ReviewItem], sha256: str) -> ReviewItem:
    item = next((item for item in items if item.sha256 == sha256), None)
    if item is None:
        raise HTTPException(404, _DELETED)
    return item


def _decided_before(items: Sequence[ReviewItem], request: Request) -> ReviewItem | None:
    done = request.query_params.get("done", "")
    return next((item for item in items if item.sha256 == done), None)


async def _form(request: Request) -> dict[str, str]:
    """Return the fields of a form; the last of each name."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _FORM_BYTES:
            raise HTTPException(413, "the form is too large")
    fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
    return {name: values[-1] for name, values in fields.items()}
