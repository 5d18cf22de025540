"""Bodies of uploads while they arrive and wait: bounded in size, one by one and together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.exceptions import HTTPException
from starlette.requests import Request

__all__ = ["Arrivals"]

# Browsers send six files at once to one place, and a person has one browser.
_TOGETHER = 8


class Arrivals:
    """All bodies that are held at the moment.

    Args:
        limit_mib: Of one body; eight such bodies are held at most.
    """

    def __init__(self, limit_mib: int) -> None:
        self._limit_mib = limit_mib
        self._held_bytes = 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """Give the body of a request, which counts as held until the block ends.

        Raises:
            HTTPException: it is too large (413), or all together are (503).
        """
        pieces: list[bytes] = []
        size = 0
        try:
            async for piece in request.stream():
                size += len(piece)
                self._held_bytes += len(piece)
                if size > self._limit_mib << 20:
                    raise HTTPException(413, f"this file is larger than {self._limit_mib} MiB")
                if self._held_bytes > _TOGETHER * self._limit_mib << 20:
                    raise HTTPException(503, "too many images arrive at once; drop it again")
                pieces.append(piece)
            whole = b"".join(pieces)
            pieces.clear()
            yield whole
        finally:
            self._held_bytes -= size
