"""Attacks that upload an image, or a form with one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from plurum.benchmarks.claims.hostile import images
from plurum.benchmarks.claims.hostile.attack import EITHER, Attacker, Kind, Make
from plurum.benchmarks.tools.requests import bytes_element

__all__ = ["FORMS", "IMAGES"]

_CHARSETS = (
    "undefined", "unicode_escape", "utf-7", "idna", "rot13", "zlib_codec", "hex", "base64", "punycode", "mbcs",
    "utf-16",
    "raw_unicode_escape", "x" * 5000, "", "\udcff", "../x", "None", "utf-8; charset=undefined", "string_escape",
)  # fmt: skip
_BOUNDARIES = ("", "b" * 70, "b" * 20_000, '"', "b b", "--", "é", "b\tb", "=", "b;c=d", '"b')
_DISPOSITIONS = (
    'form-data; name="file"; filename="../../etc/passwd"', "form-data", 'attachment; name="file"', "",
    'form-data; name=""',
    'form-data; name="file"; filename="\0"', f'form-data; name="file"; filename="{"a" * 60_000}"',
    'form-data; name="file',
    "form-data; name*=utf-7''+AGY-; filename*=undefined''%ff", 'form-data; name="_charset_"',
    'form-data; name="files[]"; filename="x"',
    'form-data; name="file"; name="files"; filename="a"; filename="b"', 'form-data; filename="only"',
    f"form-data; {'a=b; ' * 9000}",
)  # fmt: skip
_END, _MULTIPART = b"--b--\r\n", "multipart/form-data; boundary"
_DISPOSITION = 'form-data; name="file"; filename="a"'
_PART_HEADERS = (
    ["Content-Type: text/plain; charset=undefined"], ["Content-Transfer-Encoding: base64"], ["x: y"] * 5000,
    ["a" * 60_000], ["Content-Type: multipart/form-data; boundary=b"], ["Content-Length: -1"], [": x"],
    ["Content-Encoding: gzip"],
)  # fmt: skip
_TYPES = (
    "application/x-www-form-urlencoded", "multipart/mixed; boundary=b", "multipart/form-data", "text/html",
    "image/svg+xml", ";", "a" * 9000, "multipart/form-data;boundary",
)  # fmt: skip


def _upload(attacker: Attacker, data: bytes) -> int:
    if attacker.path.startswith("/v2/"):
        # Triton's own HTTP: the image goes as bytes behind the JSON.
        tensor = {"name": "IMAGE", "shape": [1, 1], "datatype": "BYTES"}
        head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": len(data) + 4}}]})
        body = head.encode() + bytes_element(data)
        return attacker.send("POST", attacker.path, body, inference_header_content_length=len(head))
    return attacker.send("POST", attacker.path, data)


def _one_of(files: Callable[[], Sequence[bytes]]) -> Make:
    return lambda attacker: [_upload(attacker, attacker.choose(*files()))]


def _fixed(file: Callable[[], bytes]) -> Make:
    return lambda attacker: [_upload(attacker, file())]


def _fuzzed(attacker: Attacker) -> list[int]:
    return [_upload(attacker, images.fuzzed(attacker.image(), attacker.chance))]


def _random(attacker: Attacker) -> list[int]:
    begin = attacker.choose(
        b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"II+\0", b"BM", b"GIF89a"
    )
    return [_upload(attacker, begin + attacker.chance.randbytes(attacker.chance.randint(0, 3000)))]


IMAGES: dict[str, Kind] = {
    "fuzzed images": Kind(_fuzzed, may=EITHER),
    "random bytes for an image": Kind(_random),
    "truncated JPEG that claims 8000 × 8000": Kind(_fixed(images.claimed_jpeg)),
    "JPEG whose last scan comes 20,000 times": Kind(_fixed(images.endless_jpeg), cost=50),
    "JPEG segments, loops, codings": Kind(_one_of(images.broken_jpegs), cost=20, may=EITHER),
    "PNG bombs": Kind(_one_of(images.png_bombs), cost=20, may=EITHER),
    "PNG floods of chunks": Kind(_one_of(images.broken_pngs), cost=10, may=EITHER),
    "TIFF tile of 26,000 × 26,000": Kind(_fixed(images.huge_tile), cost=50),
    "TIFF of a thousand pages, or in a circle": Kind(_one_of(images.many_pages), cost=4, may=EITHER),
    "TIFF strips and entries": Kind(_one_of(images.broken_tiffs), cost=20, may=EITHER),
    "other formats": Kind(_one_of(images.other_formats)),
    "polyglots": Kind(_one_of(images.polyglots), may=EITHER),
    "legal images of 64 megapixels": Kind(_one_of(images.costly_images), cost=50, may=EITHER | {"timeout"}),
}


def _form(attacker: Attacker, parts: bytes, kind: str = f"{_MULTIPART}=b") -> list[int]:
    return [attacker.send("POST", attacker.path, parts, content_type=kind)]


def _part(image: bytes, disposition: str = _DISPOSITION, *lines: str) -> bytes:
    head = "\r\n".join([f"--b\r\nContent-Disposition: {disposition}", *lines])
    return head.encode("utf-8", "surrogateescape") + b"\r\n\r\n" + image + b"\r\n"


def _typed(kind: str, *choices: str) -> Make:
    """Send a valid form with a content type in which one of `choices` stands."""
    return lambda attacker: _form(attacker, _part(attacker.image()) + _END, kind.format(attacker.choose(*choices)))


def _disposition(attacker: Attacker) -> list[int]:
    return _form(attacker, _part(attacker.image(), attacker.choose(*_DISPOSITIONS)) + _END)


def _part_headers(attacker: Attacker) -> list[int]:
    return _form(attacker, _part(attacker.image(), _DISPOSITION, *attacker.choose(*_PART_HEADERS)) + _END)


def _many_parts(attacker: Attacker) -> list[int]:
    part = _part(b"x", attacker.choose('form-data; name="a"', 'form-data; name="files"; filename="a"'))
    return _form(attacker, part * attacker.chance.randint(65, 20_000) + _END)


def _torn(attacker: Attacker) -> list[int]:
    whole = _part(attacker.image()) * 2 + _END
    return _form(attacker, whole[: attacker.chance.randrange(len(whole) - 8)])


def _other_types(attacker: Attacker) -> list[int]:
    kind = attacker.choose(*_TYPES)
    return _form(attacker, attacker.choose(b"file=x&" * 5000, _part(attacker.image()), b""), kind)


FORMS: dict[str, Kind] = {
    "forms with odd charsets": Kind(_typed(f"{_MULTIPART}=b; charset={{}}", *_CHARSETS), may=EITHER),
    "forms with odd boundaries": Kind(_typed(f"{_MULTIPART}={{}}", *_BOUNDARIES), may=EITHER),
    "forms with odd names": Kind(_disposition, may=EITHER),
    "forms with odd headers of parts": Kind(_part_headers, may=EITHER),
    "forms of many parts": Kind(_many_parts, cost=10, may=EITHER),
    "forms that break off": Kind(_torn),
    "other content types": Kind(_other_types, may=EITHER),
}
