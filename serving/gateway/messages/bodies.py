"""Bodies of requests, read within limits: each of them, and the memory of all of them together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import Headers
from starlette.requests import Request

from plurum.serving.gateway.messages.forms import Upload, uploads_from_form
from plurum.serving.gateway.refusals import RefusalError
from plurum.serving.gateway.settings import COPIES

__all__ = ["Bodies", "uploads_from_body"]


class Bodies:
    """What is being read and held.

    Args:
        limit_bytes: Of one body.
        total_bytes: Memory that all may take at once, with their copies.
    """

    def __init__(self, limit_bytes: int, total_bytes: int) -> None:
        self.held_bytes = 0
        self._limit_bytes = limit_bytes
        self._total_bytes = total_bytes

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytearray]:
        """Give the body of a request, which counts as held until the block ends.

        Nothing is read of a body whose head tells that it would be refused. How long it may take to arrive is the
        connection's matter.

        Raises:
            ClientDisconnect: the client went away, or the connection was closed as too slow.
            RefusalError: it is too large, encoded, or there is no room for it.
        """
        self._check(self._stated(request.headers))
        body = bytearray()
        held = 0
        try:
            async for piece in request.stream():
                self._check(len(body) + len(piece), held)
                held += len(piece)
                self.held_bytes += len(piece)
                body += piece
            yield body
        finally:
            self.held_bytes -= held

    def _stated(self, headers: Headers) -> int:
        """Return how long a body is said to be; 0 where that is not said."""
        _check_encoding(headers)
        stated = headers.get("content-length", "")
        # The parser has refused what is no number.
        return int(stated) if stated.isascii() and stated.isdigit() else 0

    def _check(self, size: int, held: int = 0) -> None:
        if size > self._limit_bytes:
            raise RefusalError(413, "too_large", f"the body is larger than {self._limit_bytes >> 20} MiB")
        if COPIES * (self.held_bytes - held + size) > self._total_bytes:
            raise RefusalError(503, "busy", "no memory is left for another body at the moment")


def uploads_from_body(headers: Headers, body: bytearray, max_files: int) -> list[Upload]:
    """Return the files of a multipart form, or the body itself as the one image that it is.

    Raises:
        RefusalError: it is neither, or holds too many files.
    """
    content_type = headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return uploads_from_form(content_type, body, max_files)
    if kind == "application/json" or kind.startswith("multipart/"):
        raise RefusalError(
            415, "malformed", f"an image is needed as the body, or files of a multipart form; not {kind[:60]}"
        )
    return [Upload("", "", memoryview(body))]


def _check_encoding(headers: Headers) -> None:
    for name in ("content-encoding", "transfer-encoding"):
        for value in headers.getlist(name):
            if value.strip().lower() not in {"identity", "chunked" if name == "transfer-encoding" else "identity"}:
                raise RefusalError(
                    415, "malformed", f"{name}: bodies are taken as they are, not {value[:40]!r}; send it unencoded"
                )
