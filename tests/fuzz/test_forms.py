"""Multipart forms broken at random: each is refused in a line, or read as an independent reader reads it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator

import pytest
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser

from plurum.serving.gateway.messages.bodies import uploads_from_body
from plurum.serving.gateway.messages.forms import Upload
from tests.fuzz.mutations import broken_bytes, draws, outcome

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]

_WORDS = (
    *(
        b"--b",
        b"--b--",
        b"--b\r\n",
        b"\r\n--b\r\n",
        b"\r\n--b--\r\n",
        b"--bb",
        b"; filename=y",
        b"; filename*=UTF-8''z",
    ),
    *(b"Content-Disposition: form-data; name=x\r\n", b"Content-Transfer-Encoding: base64\r\n"),
    b"Content-Type: multipart/mixed\r\n",
)
_FORM = "multipart/form-data; boundary="
_TYPES = (
    *(f"{_FORM}b", f'{_FORM}"b"; charset=utf-8', f"{_FORM}b; charset=undefined", f"{_FORM}b; charset=unicode_escape"),
    *(_FORM, _FORM + "b" * 300, f"{_FORM}\xe9", "multipart/form-data", "Multipart/Form-Data;boundary=b "),
    *("multipart/form-data; charset=utf-7; boundary=b", "multipart/mixed; boundary=b"),
)


def _form(draw: random.Random) -> bytes:
    parts = []
    for _ in range(draw.randint(0, 4)):
        name = draw.choice(('name="file"', "name=files", 'name="ü"', "name=a", 'name=""'))
        file = draw.choice(('; filename="a.png"', "; filename=b", '; filename="ä ö.tif"', '; filename=""', ""))
        kind = draw.choice(("", "Content-Type: image/png\r\n", "X-Other: 1\r\nContent-Type: text/plain; charset=x\r\n"))
        data = draw.choice(
            (b"", b"\r\n", b"--b", b"\r\n--", draw.randbytes(draw.randint(0, 300)), b"\x89PNG\r\n\x1a\n")
        )
        parts.append(f"--b\r\nContent-Disposition: form-data; {name}{file}\r\n{kind}\r\n".encode() + data + b"\r\n")
    return b"".join(parts) + draw.choice((b"--b--\r\n", b"--b--"))


def _read_by_starlette(content_type: str, body: bytes) -> list[tuple[str, str, bytes]]:
    async def pieces() -> AsyncGenerator[bytes, None]:
        yield body

    async def read() -> list[tuple[str, str, bytes]]:
        parser = MultiPartParser(Headers({"content-type": content_type}), pieces())
        form = await parser.parse()
        found = [
            (field, value.filename or "", await value.read())
            for field, value in form.multi_items()
            if not isinstance(value, str)
        ]
        for file in parser._files_to_close_on_error:
            file.close()
        return found

    return asyncio.run(read())


def _check(content_type: str, body: bytes, uploads: list[Upload]) -> None:
    try:
        expected = _read_by_starlette(content_type, body)
    except MultiPartException as error:
        raise AssertionError(f"starlette refuses {body[:600]!r}: {error.message}") from error
    assert [(one.field, one.name, bytes(one.data)) for one in uploads] == expected, body[:600]


def test_forms_broken_at_random() -> None:
    taken = refused = 0
    for draw in draws("forms"):
        content_type = _TYPES[0] if draw.random() < 0.8 else draw.choice(_TYPES)
        body = _form(draw)
        if draw.random() < 0.7:
            body = broken_bytes(draw, body, 3, _WORDS)
        headers = Headers({"content-type": content_type})
        uploads = outcome(lambda: uploads_from_body(headers, bytearray(body), 3), (content_type, body))  # noqa: B023
        if uploads is None:
            refused += 1
            continue
        taken += 1
        if content_type.lower().startswith("multipart/form-data"):
            _check(content_type, body, uploads)
    assert min(taken, refused) > 20
