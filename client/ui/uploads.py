"""Read uploads within two limits: the size of each body, and the memory of all bodies together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.exceptions import HTTPException
from starlette.requests import Request

__all__ = ["Uploads"]

# A browser sends at most six files at once to a server.
_MAX_BODIES = 8


class Uploads:
    """Bodies in memory.

    Args:
        limit_mib: Maximum size of one body, MiB; all bodies together may have eight times this size.
    """

    def __init__(self, limit_mib: int) -> None:
        self._limit_mib = limit_mib
        self._held_bytes = 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Yield the body of a request, which counts as held until the block ends.

        Raises:
            HTTPException: the body is too large (413), or all bodies together are (503).
        """
        pieces: list[bytes] = []
        size = 0
        try:
            async for piece in request.stream():
                size += len(piece)
                self._held_bytes += len(piece)
                if size > self._limit_mib << 20:
                    raise HTTPException(413, f"this file is larger than {self._limit_mib} MiB")
                if self._held_bytes > _MAX_BODIES * self._limit_mib << 20:
                    raise HTTPException(503, "too many images are being uploaded. Upload this one again.")
                pieces.append(piece)
            whole = b"".join(pieces)
            pieces.clear()
            yield whole
        finally:
            self._held_bytes -= size
