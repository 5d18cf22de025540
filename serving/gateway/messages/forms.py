"""Split a multipart form (RFC 7578) into its files without copying them. Fields `patient` name their patients.

Parsing is strict, because a lenient parser can lose files silently: the form must be complete, end with its closing
boundary, and use UTF-8 names. Each part takes one search for the boundary, whatever the form contains.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from python_multipart.multipart import parse_options_header

from plurum.serving.gateway.refusals import RefusalError, malformed

__all__ = ["Upload", "uploads_from_form"]

# RFC 2046: up to 70 of these characters, the last of which is not a space.
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
# A header line: a token of RFC 9110, and a value without control characters.
_LINE = re.compile(rb"(?P<name>[0-9A-Za-z!#$%&'*+.^_`|~-]+):[ \t]*(?P<value>[^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*")
_HEAD_BYTES = 4096
# Name of form fields that name the patient of all files, or of each file in order; contents of others are ignored.
PATIENT_FIELD = "patient"
# Limits of form fields that are not files: their contents, and their number without patients.
_MAX_FIELDS, _FIELD_BYTES = 16, 4096
# Encodings under which a part's bytes are unchanged.
_PLAIN = frozenset({b"", b"7bit", b"8bit", b"binary", b"identity"})


@dataclass(frozen=True)
class Upload:
    """An uploaded image.

    Attributes:
        field: Name of its form field; empty if the body is the image.
        name: File name from the client; empty if there is none.
        data: Bytes of the image, a view of the body.
        patient: Patient of the image; empty if unknown.
    """

    field: str
    name: str
    data: memoryview
    patient: str = ""


def uploads_from_form(content_type: str, body: bytearray, max_files: int) -> list[Upload]:
    """Return the files of a form.

    Args:
        content_type: Content-Type header of the request, with the boundary.
        body: The complete form.
        max_files: Maximum number of files.

    Raises:
        RefusalError: the form is invalid, truncated or encoded, or holds no files or too many, or there is neither one
            patient for all files nor one for each.
    """
    uploads: list[Upload] = []
    patients: list[str] = []
    fields = 0
    view = memoryview(body)
    for start, end in _parts(body, _boundary(content_type)):
        field, name, data = _part(view[start:end])
        if name is None:
            is_patient = field == PATIENT_FIELD and len(patients) < max_files
            fields += not is_patient
            if fields > _MAX_FIELDS or len(data) > _FIELD_BYTES:
                raise malformed(f"form fields: expected at most {_MAX_FIELDS} of {_FIELD_BYTES} bytes besides files")
            if is_patient:
                patients.append(_text(data))
            continue
        if len(uploads) == max_files:
            raise RefusalError(413, "too_large", f"files: expected at most {max_files} in one request, got more")
        uploads.append(Upload(field, name, data))
    if not uploads:
        raise malformed("files: expected at least 1, got 0. With curl, send one with -F file=@IMAGE.")
    return _with_patients(uploads, patients)


def _with_patients(uploads: list[Upload], patients: list[str]) -> list[Upload]:
    """Return the files with their patients: one for all, or one for each."""
    if len(patients) > 1 and len(patients) != len(uploads):
        raise malformed(f"{PATIENT_FIELD}: expected 1 field for all files or {len(uploads)}, got {len(patients)}")
    owners = patients if len(patients) == len(uploads) else (patients or [""]) * len(uploads)
    return [replace(one, patient=owner) for one, owner in zip(uploads, owners, strict=True)]


def _text(data: memoryview) -> str:
    try:
        return bytes(data).decode()
    except UnicodeDecodeError as error:
        raise malformed(f"{PATIENT_FIELD}: expected UTF-8, got {bytes(data[:20])!r}") from error


def _boundary(content_type: str) -> bytes:
    _, options = parse_options_header(content_type)
    if (charset := options.get(b"charset", b"utf-8").lower()) not in {b"utf-8", b"utf8"}:
        raise malformed(f"charset: expected utf-8 or none, got {charset.decode('latin-1')[:40]!r}", 415)
    boundary = options.get(b"boundary", b"")
    if not _BOUNDARY.fullmatch(boundary):
        raise malformed("Content-Type: expected a boundary of 1 to 70 characters that RFC 2046 permits")
    return boundary


def _parts(body: bytearray, boundary: bytes) -> Iterator[tuple[int, int]]:
    """Yield start and end of each part of a form, including its head; lazily, so that a limit can stop it early."""
    delimiter = b"\r\n--" + boundary
    # The first boundary may have no line break before it.
    first = 2 if body.startswith(b"\r\n") else 0
    if not body.startswith(delimiter[2:], first):
        raise malformed("the form does not start with its boundary")
    at = first + len(delimiter) - 2
    while not body.startswith(b"--", at):
        if not body.startswith(b"\r\n", at):
            raise malformed("the form's boundary is not followed by a line break")
        # A part without a head starts with the empty line that would end the head.
        end = body.find(delimiter, at)
        if end < 0:
            raise malformed("the form is truncated: its last boundary is missing")
        yield at + 2, end + 2
        at = end + len(delimiter)
    if body[at + 2 : at + 2 + _HEAD_BYTES].strip() or len(body) > at + 2 + _HEAD_BYTES:
        raise malformed("there are bytes after the form's last boundary")


def _part(part: memoryview) -> tuple[str, str | None, memoryview]:
    """Return a part's field name, its file name (None if it is not a file), and its data."""
    # The line break before the boundary belongs to the boundary.
    part = part[:-2]
    head, end, _ = bytes(part[:_HEAD_BYTES]).partition(b"\r\n\r\n")
    if not end:
        raise malformed(f"a part of the form has no head that ends within {_HEAD_BYTES} bytes")
    headers: dict[bytes, bytes] = {}
    for line in head.split(b"\r\n"):
        found = _LINE.fullmatch(line)
        if found is None or found["name"].lower() in headers:
            raise malformed(f"a part of the form has an invalid line in its head: {line[:40]!r}")
        headers[found["name"].lower()] = found["value"]
    return *_names(headers), part[len(head) + 4 :]


def _names(headers: dict[bytes, bytes]) -> tuple[str, str | None]:
    for header in (b"content-transfer-encoding", b"content-encoding"):
        if (encoding := headers.get(header, b"").lower()) not in _PLAIN:
            raise malformed(f"{header.decode()}: expected none, got {encoding[:40]!r}", 415)
    if headers.get(b"content-type", b"").lower().startswith(b"multipart/"):
        raise malformed("nested forms are not supported. Send each file as a separate part.", 415)
    disposition = headers.get(b"content-disposition", b"")
    kind, options = parse_options_header(disposition)
    if kind != b"form-data" or b"name" not in options:
        raise malformed("a part of the form has no Content-Disposition: form-data with a name")
    if b"filename" not in options and b"filename*" in disposition.lower():
        raise malformed("filename*: expected filename, as RFC 7578 requires in forms")
    try:
        file = options[b"filename"].decode() if b"filename" in options else None
        return options[b"name"].decode(), file
    except UnicodeDecodeError as error:
        raise malformed("a name in the form is not UTF-8") from error
