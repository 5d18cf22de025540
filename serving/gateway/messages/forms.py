"""Files of a multipart form (RFC 7578), split at its boundary without copying them.

The form is read strictly, since whoever reads it loosely can lose a file of it without a word: it is whole, ends with
its last boundary, and names are UTF-8. The boundary stands nowhere else, so splitting takes one search for each part,
however the form is made.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header

from plurum.serving.gateway.refusals import RefusalError

__all__ = ["Upload", "uploads_from_form"]

# RFC 2046: up to 70 of these, the last of which is no space.
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
# RFC 9110's token, and a value without control characters.
_LINE = re.compile(rb"(?P<name>[0-9A-Za-z!#$%&'*+.^_`|~-]+):[ \t]*(?P<value>[^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*")
_HEAD_BYTES = 4096
# Beside its files a form may have a few fields, which are not read.
_MAX_FIELDS, _FIELD_BYTES = 16, 4096
# What says that a part stands there as it is.
_PLAIN = frozenset({b"", b"7bit", b"8bit", b"binary", b"identity"})


@dataclass(frozen=True)
class Upload:
    """An image as it was sent.

    Attributes:
        field: The form's field that it came in.
        name: The file's, as the client calls it; empty where it has none.
        data: Its bytes, a view of the body.
    """

    field: str
    name: str
    data: memoryview


def uploads_from_form(content_type: str, body: bytearray, max_files: int) -> list[Upload]:
    """Return the files of a form.

    Args:
        content_type: The request's header, with the boundary.
        body: The whole form.
        max_files: At most so many files are taken.

    Raises:
        RefusalError: it is no form, is cut off, is encoded, or holds no file or too many.
    """
    uploads: list[Upload] = []
    fields = 0
    view = memoryview(body)
    for start, end in _parts(body, _boundary(content_type)):
        field, name, data = _part(view[start:end])
        if name is None:
            fields += 1
            if fields > _MAX_FIELDS or len(data) > _FIELD_BYTES:
                raise _malformed(f"at most {_MAX_FIELDS} fields of {_FIELD_BYTES} bytes are taken beside files")
            continue
        if len(uploads) == max_files:
            raise RefusalError(413, "too_large", f"too many files: at most {max_files} are taken in one request")
        uploads.append(Upload(field, name, data))
    if not uploads:
        raise _malformed("the form holds no file; curl sends one with -F file=@IMAGE")
    return uploads


def _boundary(content_type: str) -> bytes:
    _, options = parse_options_header(content_type)
    if (charset := options.get(b"charset", b"utf-8").lower()) not in {b"utf-8", b"utf8"}:
        raise RefusalError(415, "malformed", f"charset: expected utf-8 or none, got {charset.decode('latin-1')[:40]!r}")
    boundary = options.get(b"boundary", b"")
    if not _BOUNDARY.fullmatch(boundary):
        raise _malformed("Content-Type: expected a boundary of 1 to 70 characters as RFC 2046 has them")
    return boundary


def _parts(body: bytearray, boundary: bytes) -> Iterator[tuple[int, int]]:
    """Yield where each part stands in a form, its head included; of endless parts no more than are asked for."""
    delimiter = b"\r\n--" + boundary
    # The first may stand at the very beginning.
    first = 2 if body.startswith(b"\r\n") else 0
    if not body.startswith(delimiter[2:], first):
        raise _malformed("the form does not begin with its boundary")
    at = first + len(delimiter) - 2
    while not body.startswith(b"--", at):
        if not body.startswith(b"\r\n", at):
            raise _malformed("the form's boundary is followed by something else than a line's end")
        # A part without any head begins with the empty line that ends it.
        end = body.find(delimiter, at)
        if end < 0:
            raise _malformed("the form is cut off: its last boundary is missing")
        yield at + 2, end + 2
        at = end + len(delimiter)
    if body[at + 2 : at + 2 + _HEAD_BYTES].strip() or len(body) > at + 2 + _HEAD_BYTES:
        raise _malformed("bytes stand behind the form's last boundary")


def _part(part: memoryview) -> tuple[str, str | None, memoryview]:
    """Return a part's field, the file's name (None where it is no file), and its data."""
    # The line's end before the boundary belongs to the boundary.
    part = part[:-2]
    head, end, _ = bytes(part[:_HEAD_BYTES]).partition(b"\r\n\r\n")
    if not end:
        raise _malformed(f"a part of the form has no head that ends within {_HEAD_BYTES} bytes")
    headers: dict[bytes, bytes] = {}
    for line in head.split(b"\r\n"):
        found = _LINE.fullmatch(line)
        if found is None or found["name"].lower() in headers:
            raise _malformed(f"a part of the form has a bad line in its head: {line[:40]!r}")
        headers[found["name"].lower()] = found["value"]
    return *_names(headers), part[len(head) + 4 :]


def _names(headers: dict[bytes, bytes]) -> tuple[str, str | None]:
    for header in (b"content-transfer-encoding", b"content-encoding"):
        if (encoding := headers.get(header, b"").lower()) not in _PLAIN:
            raise RefusalError(415, "malformed", f"{header.decode()}: expected none, got {encoding[:40]!r}")
    if headers.get(b"content-type", b"").lower().startswith(b"multipart/"):
        raise RefusalError(415, "malformed", "a form within a form is not taken; send each file as a part of its own")
    disposition = headers.get(b"content-disposition", b"")
    kind, options = parse_options_header(disposition)
    if kind != b"form-data" or b"name" not in options:
        raise _malformed("a part of the form has no Content-Disposition: form-data with a name")
    if b"filename" not in options and b"filename*" in disposition.lower():
        raise _malformed("filename*: expected filename, which RFC 7578 has in forms")
    try:
        file = options[b"filename"].decode() if b"filename" in options else None
        return options[b"name"].decode(), file
    except UnicodeDecodeError as error:
        raise _malformed("a name in the form is no UTF-8") from error


def _malformed(text: str) -> RefusalError:
    return RefusalError(400, "malformed", text)
