"""Grad-CAM maps of the images on the page, computed on request, one image at a time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from plurum.client.ui.connection import Connection
from plurum.client.ui.pages import Pages
from plurum.errors import PlurumError
from plurum.evidence import Evidence, EvidenceMap

__all__ = ["Explanations"]

_MAX_IMAGES = 32
Maps = tuple[EvidenceMap, ...]


@dataclass
class Explanations:
    """Endpoints for Grad-CAM maps; the maps of recent images stay in memory.

    Attributes:
        evidence: Source of the maps; None if no run was given.
        connection: Connection to the served ensemble, which must have the members of that run.
        data_of: Function that returns an image's bytes by its SHA-256, or raises `HTTPException`.
        pages: Renders the templates.
    """

    evidence: Evidence | None
    connection: Connection
    data_of: Callable[[str], Awaitable[bytes]]
    pages: Pages
    _maps: OrderedDict[tuple[str, str], Maps] = field(default_factory=OrderedDict)
    # Computing the maps of one image uses all cores and much memory.
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def fragment(self, request: Request) -> Response:
        """Return the part of a page that shows the maps of an image for the class in `label`."""
        sha256, label = request.path_params["sha256"], request.query_params.get("label", "")
        try:
            maps = await self._maps_of(sha256, label)
        except PlurumError as error:
            raise HTTPException(409, str(error)) from error
        return self.pages.evidence(sha256, label, maps)

    async def picture(self, request: Request) -> Response:
        """Return one map over its image."""
        key = (request.path_params["sha256"], request.query_params.get("label", ""))
        # Compare text: Python refuses to convert a number of thousands of digits.
        pictures = {str(index): one.picture for index, one in enumerate(self._maps.get(key, ()))}
        if not (picture := pictures.get(request.path_params["index"])):
            raise HTTPException(404, "the map is no longer in memory. Reload the page.")
        return Response(picture, media_type="image/png")

    def forget(self, sha256: str) -> None:
        """Drop all maps of an image."""
        for key in [key for key in self._maps if key[0] == sha256]:
            del self._maps[key]

    async def _maps_of(self, sha256: str, label: str) -> Maps:
        if self.evidence is None:
            raise HTTPException(404, "no run was given. Start the page with --run RUN to see Grad-CAM maps.")
        key = (sha256, label)
        async with self._turn:
            if key not in self._maps:
                served = await self.connection.served()
                if reason := self.evidence.mismatch(served.classes, served.members, served.checkpoints):
                    raise HTTPException(409, reason)
                data = await self.data_of(sha256)
                self._maps[key] = await asyncio.to_thread(self.evidence.maps, data, label)
            self._maps.move_to_end(key)
            while len(self._maps) > _MAX_IMAGES:
                self._maps.popitem(last=False)
            return self._maps[key]
