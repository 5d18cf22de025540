"""The pages where a person confirms or corrects what was sent to review."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from urllib.parse import parse_qs

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from plurum.client.ui.corrections import csv_from_items
from plurum.client.ui.pages import Pages
from plurum.client.ui.store import DecidedError, Item, ReviewStore

__all__ = ["Reviews"]

_FORM_BYTES = 1 << 16
# SQLite numbers rows up to 2**63.
_SEEN = re.compile(r"[0-9]{1,18}")
_DELETED = "this image was not sent to review, or was deleted"


class Reviews:
    """The queue, by what browsers ask of it.

    Args:
        store: Of reviews.
        forget: Called with the SHA-256 of what is deleted.
        pages: Fills templates.
    """

    def __init__(self, store: ReviewStore, forget: Callable[[str], None], pages: Pages) -> None:
        self._store = store
        self._forget = forget
        self._pages = pages

    async def next(self, request: Request) -> Response:
        """Go to the first image that nobody has decided about, or say that there is none."""
        items = await self._items()
        for item in items:
            if item.label is None:
                return RedirectResponse(f"/review/{item.sha256}", 303)
        return self._pages.finished(items, _by_sha256(items, request.query_params.get("done", "")))

    async def item(self, request: Request) -> Response:
        """Show one image with all that was answered."""
        items = await self._items()
        item = _known(items, request)
        return self._pages.item(items, item, _by_sha256(items, request.query_params.get("done", "")))

    async def decide(self, request: Request) -> Response:
        """Write down what a person says, and go to the next; where somebody else was faster, show that instead."""
        form = await _form(request)
        item = _known(await self._items(), request)
        label = form.get("label", "")
        if label not in item.prediction.probabilities:
            raise HTTPException(422, f"there is no class {label[:60]!r}; choose one of the list")
        if refused := await self._written(item, label, form):
            return refused
        left = _following(await self._items(), item)
        target = f"/review/{left[0].sha256}" if left else "/review"
        return RedirectResponse(f"{target}?done={item.sha256}", 303)

    async def undo(self, request: Request) -> Response:
        """Take back what was said of an image, and show it again."""
        item = _known(await self._items(), request)
        if refused := await self._written(item, None, await _form(request)):
            return refused
        return RedirectResponse(f"/review/{item.sha256}", 303)

    async def delete(self, request: Request) -> Response:
        """Forget an image with all that is known of it."""
        item = _known(await self._items(), request)
        self._forget(item.sha256)
        await asyncio.to_thread(self._store.delete, item.sha256)
        return RedirectResponse("/review", 303)

    async def export(self, _: Request) -> Response:
        """Hand out all decisions as the CSV that `plurum train` reads."""
        text = csv_from_items(await self._items())
        disposition = {"content-disposition": 'attachment; filename="corrections.csv"'}
        return Response(text, media_type="text/csv", headers=disposition)

    async def _items(self) -> list[Item]:
        return await asyncio.to_thread(self._store.items)

    async def _written(self, item: Item, label: str | None, form: dict[str, str]) -> Response | None:
        """Write a decision; return the page to show if somebody else was faster."""
        seen = form.get("seen", "")
        if not _SEEN.fullmatch(seen):
            raise HTTPException(422, "the form does not say which decision it knew of; load the page again")
        try:
            await asyncio.to_thread(self._store.decide, item.sha256, label, int(seen))
        except DecidedError as error:
            items = await self._items()
            # What was deleted since is not shown.
            return self._pages.item(items, _listed(items, error.item.sha256), conflict=True)
        except KeyError as error:
            raise HTTPException(404, _DELETED) from error
        return None


def _known(items: Sequence[Item], request: Request) -> Item:
    return _listed(items, request.path_params["sha256"])


def _listed(items: Sequence[Item], sha256: str) -> Item:
    item = _by_sha256(items, sha256)
    if item is None:
        raise HTTPException(404, _DELETED)
    return item


def _following(items: Sequence[Item], item: Item) -> list[Item]:
    """Return the undecided images: those after `item`, which may be deleted, then those before it."""
    undecided = [one for one in items if one.label is None]
    return sorted(undecided, key=lambda one: (one.number < item.number, one.number))


def _by_sha256(items: Sequence[Item], sha256: str) -> Item | None:
    return next((item for item in items if item.sha256 == sha256), None)


async def _form(request: Request) -> dict[str, str]:
    """Return the fields of a form; the last of each name."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _FORM_BYTES:
            raise HTTPException(413, "this is no form of ours: it is too large")
    fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
    return {name: values[-1] for name, values in fields.items()}
