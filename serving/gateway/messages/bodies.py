"""Read request bodies within two limits: the size of each body, and the memory of all bodies together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from urllib.parse import unquote

from starlette.datastructures import Headers
from starlette.requests import Request

from plurum.serving.gateway.messages.forms import Upload, uploads_from_form
from plurum.serving.gateway.refusals import RefusalError, malformed
from plurum.settings.serving import COPIES

__all__ = ["Bodies", "uploads_from_body"]


class Bodies:
    """Bodies that are being read or processed.

    Args:
        limit_bytes: Maximum size of one body.
        total_bytes: Maximum memory of all bodies together, including their copies.

    Attributes:
        held_bytes: Bytes of all bodies in memory, without copies.
    """

    def __init__(self, limit_bytes: int, total_bytes: int) -> None:
        self.held_bytes = 0
        self._limit_bytes = limit_bytes
        self._total_bytes = total_bytes

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytearray]:
        """Yield the body of a request, which counts as held until the block ends.

        A body whose stated length exceeds a limit is refused before it is read. The connection limits the time.

        Raises:
            ClientDisconnect: the client disconnected, or the connection was closed as too slow.
            RefusalError: the body is too large or encoded, or too much memory is in use.
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
        """Return the stated length of a body, bytes; 0 if it is not stated."""
        _check_encoding(headers)
        stated = headers.get("content-length", "")
        # The parser has already refused invalid numbers.
        return int(stated) if stated.isascii() and stated.isdigit() else 0

    def _check(self, size: int, held: int = 0) -> None:
        if size > self._limit_bytes:
            raise RefusalError(413, "too_large", f"the body is larger than {self._limit_bytes >> 20} MiB")
        if COPIES * (self.held_bytes - held + size) > self._total_bytes:
            raise RefusalError(503, "busy", "no memory is available for another body at the moment")


def uploads_from_body(headers: Headers, body: bytearray, max_files: int) -> list[Upload]:
    """Return the files of a multipart form, or the whole body as one image.

    The header X-Patient names the patient of the images to which no field of the form gives one, percent-encoded.

    Raises:
        RefusalError: the content type is not supported, or the form is invalid or holds too many files.
    """
    content_type = headers.get("content-type", "")
    patient = unquote(headers.get("x-patient", ""))
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        uploads = uploads_from_form(content_type, body, max_files)
        return [replace(one, patient=one.patient or patient) for one in uploads]
    if kind == "application/json" or kind.startswith("multipart/"):
        raise malformed(f"Content-Type: expected an image or multipart/form-data, got {kind[:60]}", 415)
    return [Upload("", "", memoryview(body), patient)]


def _check_encoding(headers: Headers) -> None:
    for name in ("content-encoding", "transfer-encoding"):
        for value in headers.getlist(name):
            if value.strip().lower() not in {"identity", "chunked" if name == "transfer-encoding" else "identity"}:
                raise malformed(f"{name}: expected an unencoded body, got {value[:40]!r}. Send it unencoded.", 415)
