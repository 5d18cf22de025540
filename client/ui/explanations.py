"""Where members looked, for those who want to see it: computed when asked for, one image at a time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from plurum.client.ui.connection import Connection
from plurum.client.ui.pages import Pages
from plurum.errors import PlurumError
from plurum.evidence import Evidence, EvidenceMap

__all__ = ["Explanations"]

_REMEMBERED = 32
Maps = tuple[EvidenceMap, ...]


class Explanations:
    """Maps of what speaks for an answer, remembered for a while.

    Args:
        evidence: Of a run's members; None where no run was given.
        connection: Says what is served, which must be that run.
        data_of: Returns an image's bytes by its SHA-256, or raises `HTTPException`.
        pages: Fills templates.
    """

    def __init__(
        self,
        evidence: Evidence | None,
        connection: Connection,
        data_of: Callable[[str], Awaitable[bytes]],
        pages: Pages,
    ) -> None:
        self._evidence = evidence
        self._connection = connection
        self._data_of = data_of
        self._pages = pages
        self._made: OrderedDict[tuple[str, str], Maps] = OrderedDict()
        # Networks take all cores and much memory for one image.
        self._turn = asyncio.Lock()

    async def fragment(self, request: Request) -> Response:
        """Say what there is to see of an image, for the class in `label`."""
        sha256, label = request.path_params["sha256"], request.query_params.get("label", "")
        try:
            maps = await self._maps(sha256, label)
        except PlurumError as error:
            raise HTTPException(409, str(error)) from error
        return self._pages.evidence(sha256, label, maps)

    async def picture(self, request: Request) -> Response:
        """Show one map over its image."""
        key = (request.path_params["sha256"], request.query_params.get("label", ""))
        # By name, not by number: Python refuses to convert what has thousands of digits.
        pictures = {str(index): one.picture for index, one in enumerate(self._made.get(key, ()))}
        if not (picture := pictures.get(request.path_params["index"])):
            raise HTTPException(404, "this map is no longer remembered; load the page again")
        return Response(picture, media_type="image/png")

    def forget(self, sha256: str) -> None:
        """Do so at once with all maps of an image."""
        for key in [key for key in self._made if key[0] == sha256]:
            del self._made[key]

    async def _maps(self, sha256: str, label: str) -> Maps:
        if self._evidence is None:
            raise HTTPException(404, "no run was given; start the page with --run RUN to see where members looked")
        key = (sha256, label)
        async with self._turn:
            if key not in self._made:
                served = await self._connection.served()
                if reason := self._evidence.mismatch(served.classes, served.members, served.checkpoints):
                    raise HTTPException(409, reason)
                data = await self._data_of(sha256)
                self._made[key] = await asyncio.to_thread(self._evidence.maps, data, label)
            self._made.move_to_end(key)
            while len(self._made) > _REMEMBERED:
                self._made.popitem(last=False)
            return self._made[key]
