"""Bodies of requests, read within limits: each of them, and all of them together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from plurum.serving.gateway.refusals import RefusalError

__all__ = ["Bodies", "Upload", "uploads_from_body"]

_PIECE = 1 << 16
# Beside its files a form may have a few fields, which we don't read.
_FIELDS, _FIELD_BYTES = 16, 4096


@dataclass(frozen=True)
class Upload:
    """An image as it was sent.

    Attributes:
        field: The form's field that it came in.
        name: The file's, as the client calls it; empty where it has none.
        data: Its bytes.
    """

    field: str
    name: str
    data: bytes


class _FormParser(MultiPartParser):
    # Patients' images are not written to a disk in passing; what they may take of the memory has been limited before.
    spool_max_size = 1 << 40


class Bodies:
    """What is being read and held.

    Args:
        limit_bytes: Of one body.
        total_bytes: Of all at once.
    """

    def __init__(self, limit_bytes: int, total_bytes: int) -> None:
        self.held_bytes = 0
        self._limit_bytes = limit_bytes
        self._total_bytes = total_bytes

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Give the body of a request, which counts as held until the block ends.

        How long it may take to arrive is the connection's matter.

        Raises:
            ClientDisconnect: the client went away, or the connection was closed as too slow.
            RefusalError: it is too large, encoded, or there is no room for it.
        """
        if request.headers.get("content-encoding", "identity") != "identity":
            raise RefusalError(415, "malformed", "bodies are taken as they are, without Content-Encoding")
        stated = request.headers.get("content-length", "")
        if stated.isdigit() and int(stated) > self._limit_bytes:
            raise self._too_large()
        size, pieces = 0, []
        try:
            async for piece in request.stream():
                size += len(piece)
                self.held_bytes += len(piece)
                if size > self._limit_bytes:
                    raise self._too_large()
                if self.held_bytes > self._total_bytes:
                    raise RefusalError(503, "busy", "no memory is left for another body at the moment")
                pieces.append(piece)
            yield b"".join(pieces)
        finally:
            self.held_bytes -= size

    def _too_large(self) -> RefusalError:
        return RefusalError(413, "too_large", f"the body is larger than {self._limit_bytes >> 20} MiB")


async def uploads_from_body(request: Request, body: bytes, max_files: int) -> list[Upload]:
    """Return the files of a multipart form, or the body itself as the one image that it is.

    Raises:
        RefusalError: it is neither, or holds too many files.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        if kind == "application/json":
            raise RefusalError(
                415, "malformed", "an image is needed as the body, or files of a multipart form; not JSON"
            )
        return [Upload("", "", body)]
    parser = _FormParser(
        request.headers, _pieces(body), max_files=max_files, max_fields=_FIELDS, max_part_size=_FIELD_BYTES
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        too_many = error.message.startswith("Too many files")
        raise RefusalError(413 if too_many else 400, "too_large" if too_many else "malformed", error.message) from error
    uploads = []
    for field, value in form.multi_items():
        if not isinstance(value, str):
            uploads.append(Upload(field, value.filename or "", await value.read()))
    await form.close()
    if not uploads:
        raise RefusalError(400, "malformed", "there is no file in the form; curl sends one with -F file=@IMAGE")
    return uploads


async def _pieces(body: bytes) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(body), _PIECE):
        yield body[start : start + _PIECE]
        # A form can be made that takes long to parse: others get their turn.
        await asyncio.sleep(0)
