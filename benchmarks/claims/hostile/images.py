"""Files that are costly or confusing to decode; each is made once and kept in memory."""

from __future__ import annotations

import functools
import io
import random
import struct
import zlib
from collections.abc import Sequence

from PIL import Image

__all__ = [
    "broken_jpegs",
    "broken_pngs",
    "broken_tiffs",
    "claimed_jpeg",
    "costly_images",
    "endless_jpeg",
    "fuzzed",
    "huge_tile",
    "many_pages",
    "other_formats",
    "png_bombs",
    "polyglots",
]

_SIDE, _SCANS = 8000, 20_000
_BYTE, _ASCII, _SHORT, _LONG = 1, 2, 3, 4


def _encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _pixels(side: int = 64) -> Image.Image:
    return Image.frombytes("RGB", (side, side), random.Random(side).randbytes(3 * side * side))  # noqa: S311


def _zeros(size: int) -> bytes:
    """Return `size` zeros, compressed; they are never all in memory."""
    packer, piece = zlib.compressobj(9), bytes(1 << 20)
    packed = [packer.compress(piece) for _ in range(size >> 20)]
    return b"".join([*packed, packer.compress(bytes(size & 0xFFFFF)), packer.flush()])


def fuzzed(image: bytes, chance: random.Random) -> bytes:
    """Return `image` in one of the formats that Pillow writes, with some bytes changed, cut off or repeated."""
    kind = chance.choice(("JPEG", "PNG", "TIFF", "WEBP", "AVIF", "JPEG2000"))
    data = bytearray(image if kind == "JPEG" else _again(image, kind))
    for _ in range(chance.randint(1, 40)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    start, end = sorted(chance.randrange(len(data)) for _ in range(2))
    match chance.randrange(4):
        case 0:
            return bytes(data[: max(start, 4)])
        case 1:
            return bytes(data[:start] + data[start:end] * 3 + data[end:])
        case _:
            return bytes(data)


@functools.cache
def _again(image: bytes, kind: str) -> bytes:
    return _encoded(Image.open(io.BytesIO(image)), kind)


def _claiming(data: bytes, side: int) -> bytes:
    """Return a JPEG whose frame header claims another size."""
    at = min(place for marker in (b"\xff\xc0", b"\xff\xc1", b"\xff\xc2") if (place := data.find(marker)) > 0)
    return data[: at + 5] + struct.pack(">HH", side, side) + data[at + 9 :]


@functools.cache
def claimed_jpeg() -> bytes:
    """Return a few hundred bytes that claim 8000 × 8000 pixels."""
    return _claiming(_encoded(Image.new("L", (16, 16), 99), "JPEG"), _SIDE)


@functools.cache
def endless_jpeg() -> bytes:
    """Return a progressive JPEG of 8000 × 8000 pixels whose last scan is repeated 20,000 times."""
    data = _encoded(Image.new("L", (_SIDE, _SIDE), 99), "JPEG", progressive=True)
    start, end = data.rfind(b"\xff\xda"), data.rfind(b"\xff\xd9")
    return data[:start] + data[start:end] * _SCANS + b"\xff\xd9"


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 255, marker, len(body) + 2) + body


@functools.cache
def broken_jpegs() -> Sequence[bytes]:
    """Return JPEGs with floods of segments, loops in their metadata, and codings that are rare."""
    good = _encoded(_pixels(), "JPEG")
    progressive = _encoded(_pixels(), "JPEG", progressive=True)
    scan = progressive[progressive.rfind(b"\xff\xda") : -2]
    loop = b"Exif\0\0II*\0" + struct.pack("<I", 8) + struct.pack("<HHHIII", 1, 0x8769, _LONG, 1, 8, 8)
    icc = b"".join(_segment(0xE2, b"ICC_PROFILE\0" + bytes([n % 255 + 1, 255]) + bytes(60_000)) for n in range(400))
    floods = [_segment(0xFE, b"") * 200_000, _segment(0xFE, bytes(65_000)) * 300, _segment(0xE1, loop) * 500, icc]
    tables = [good[:2] + _segment(0xDB, bytes([0]) + bytes(64)) * 20_000 + good[2:]]
    return (
        *(good[:2] + flood + good[2:] for flood in floods),
        *tables,
        *(good.replace(b"\xff\xc0", bytes([255, coding]), 1) for coding in (0xC1, 0xC3, 0xC5, 0xC9, 0xCA, 0xCB)),
        progressive[:-2] + scan * 500 + b"\xff\xd9",
        _claiming(progressive, 65_535),
        _claiming(good, 0),
        good[:-2] + b"\xff\xd0" * 500_000,
        good + good * 50,
    )


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 0, data: bytes = b"") -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = data or zlib.compress(bytes((width + 1) * height), 9)
    return (
        b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + b"".join(chunks) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
    )


@functools.cache
def png_bombs() -> Sequence[bytes]:
    """Return PNGs that unfold: too many pixels, more data than pixels, compressed texts and profiles."""
    zeros = _zeros(200 << 20)
    return (
        _png(30_000, 30_000, depth=1, data=_zeros(3_751 * 30_000)),
        _png(64, 64, data=zeros),
        _png(64, 64, _chunk(b"zTXt", b"a\0\0" + zeros)),
        _png(64, 64, _chunk(b"iCCP", b"a\0\0" + zeros)),
        _png(64, 64, _chunk(b"iTXt", b"a\0\1\0\0\0" + zeros)),
        _png((1 << 31) - 1, (1 << 31) - 1, data=zlib.compress(b"\0")),
        _png(1, 60_000_000, data=zlib.compress(bytes(1000))),
    )


@functools.cache
def broken_pngs() -> Sequence[bytes]:
    """Return PNGs with floods of chunks, wrong sums, and headers that contradict their data."""
    good = _png(64, 64)
    frames = _chunk(b"acTL", struct.pack(">II", 1 << 30, 0)) + _chunk(b"fcTL", bytes(26)) * 20_000
    return (
        _png(64, 64, _chunk(b"tEXt", b"a\0b") * 100_000),
        _png(64, 64, _chunk(b"IDAT", b"") * 100_000),
        _png(64, 64, frames),
        _png(64, 64, _chunk(b"PLTE", bytes(3 * 256)) * 2000),
        _png(64, 64, _chunk(b"eXIf", b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x8769, _LONG, 1, 8, 8))),
        _png(64, 64, depth=3),
        _png(64, 64, colour=7),
        _png(0, 64),
        good.replace(b"IDAT", b"IDAX"),
        good[:-20],
        good[:33] + struct.pack(">I", (1 << 31) - 1) + good[37:],
        good[:33] + _chunk(b"IHDR", struct.pack(">IIBBBBB", 8000, 8000, 8, 0, 0, 0, 0)) + good[33:],
    )


def _tiff(entries: dict[int, tuple[int, Sequence[int]]], data: bytes, next_ifd: int = 0) -> bytes:
    """Return a little-endian TIFF of one directory; offset 8 is where `data` begin."""
    at = 8 + len(data)
    place = at + 2 + 12 * len(entries) + 4
    fields, behind = b"", b""
    for tag, (kind, values) in sorted(entries.items()):
        packed = struct.pack(f"<{len(values)}{'BBBHI'[kind]}", *values)
        if len(packed) > 4:
            value = struct.pack("<I", place + len(behind))
            behind += packed
        else:
            value = packed.ljust(4, b"\0")
        fields += struct.pack("<HHI", tag, kind, len(values)) + value
    directory = struct.pack("<H", len(entries)) + fields + struct.pack("<I", next_ifd)
    return b"II*\0" + struct.pack("<I", at) + data + directory + behind


def _grey(width: int, height: int) -> dict[int, tuple[int, Sequence[int]]]:
    return {256: (_LONG, [width]), 257: (_LONG, [height]), 258: (_SHORT, [8]), 262: (_SHORT, [1]), 277: (_SHORT, [1])}


@functools.cache
def huge_tile() -> bytes:
    """Return a TIFF of 100 × 100 pixels whose one tile has 26,000 × 26,000."""
    data = _zeros(26_000 * 26_000)
    tile = {322: (_LONG, [26_000]), 323: (_LONG, [26_000]), 324: (_LONG, [8]), 325: (_LONG, [len(data)])}
    return _tiff(_grey(100, 100) | {259: (_SHORT, [8])} | tile, data)


@functools.cache
def many_pages() -> Sequence[bytes]:
    """Return TIFFs of a thousand pages, and directories that follow each other in a circle."""
    pages = [Image.new("L", (16, 16), number % 256) for number in range(1000)]
    strip = {259: (_SHORT, [1]), 273: (_LONG, [8]), 278: (_LONG, [64]), 279: (_LONG, [4096])}
    data = bytes(4096)
    return (
        _encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:]),
        _tiff(_grey(64, 64) | strip, data, next_ifd=8 + 4096),
        _tiff(_grey(64, 64) | strip | {330: (_LONG, [8 + 4096])}, data),
        _tiff(_grey(64, 64) | strip | {34665: (_LONG, [8 + 4096])}, data),
    )


@functools.cache
def broken_tiffs() -> Sequence[bytes]:
    """Return TIFFs with floods of strips and entries, and with counts and offsets that lie."""
    data = zlib.compress(bytes(8 << 20), 9)
    strips = {259: (_SHORT, [8]), 273: (_LONG, [8] * 60_000), 278: (_LONG, [1]), 279: (_LONG, [len(data)] * 60_000)}
    one = {259: (_SHORT, [1]), 273: (_LONG, [8]), 278: (_LONG, [64]), 279: (_LONG, [4096])}
    plain, grey = bytes(4096), _grey(64, 64) | one
    entries: dict[int, tuple[int, Sequence[int]]] = {tag: (_SHORT, [1]) for tag in range(30_000, 65_000)}
    return (
        _tiff(_grey(64, 60_000) | strips, data),
        _tiff(_grey(64, 64) | one | {259: (_SHORT, [8]), 279: (_LONG, [len(data)])}, data),
        _tiff(grey | entries, plain),
        _tiff(grey | {270: (_ASCII, [65] * 8_000_000)}, plain),
        _tiff(grey | {273: (_LONG, [1 << 31])}, plain),
        _tiff(grey | {279: (_LONG, [(1 << 32) - 1])}, plain),
        _tiff(grey | {258: (_SHORT, [64] * 500), 277: (_SHORT, [500])}, plain),
        _tiff(grey | {278: (_LONG, [0])}, plain),
        _tiff(_grey(1 << 31, 1 << 31) | one, plain),
        _tiff(grey | {259: (_SHORT, [7])}, plain),
        _tiff(grey | {259: (_SHORT, [34712])}, plain),
        _tiff(grey | {320: (_SHORT, [0] * 50_000), 262: (_SHORT, [3])}, plain),
        b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 1 << 60) + bytes(99),
    )


@functools.cache
def other_formats() -> Sequence[bytes]:
    """Return images of formats that are not read, and texts that other programs take for images."""
    kinds = ("GIF", "BMP", "PPM", "TGA", "ICO", "PCX", "SGI", "DDS", "PDF", "EPS")
    texts = (
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
        b"push graphic-context\nviewbox 0 0 9 9\nimage over 0,0 0,0 'https://127.0.0.1/'\n",
        b"GIMP gradient\n",
        b"P6 99999 99999 255\n",
        b"%PDF-1.7\n",
    )
    return (*(_encoded(_pixels(), kind) for kind in kinds), *texts)


@functools.cache
def polyglots() -> Sequence[bytes]:
    """Return files that are several things at once."""
    jpeg, png, gif = (_encoded(_pixels(), kind) for kind in ("JPEG", "PNG", "GIF"))
    script = b"<script>alert(1)</script><?php system('id'); ?>"
    return (
        jpeg + b"PK\x03\x04" + bytes(99),
        png + jpeg,
        gif + jpeg,
        b"GIF89a" + jpeg,
        jpeg[:2] + _segment(0xFE, script) + jpeg[2:],
        _png(64, 64, _chunk(b"tEXt", b"a\0" + script)),
        b"%PDF-1.4\n" + jpeg,
        b"\x89PNG\r\n\x1a\n" + jpeg,
        b"\xff\xd8" + png,
        b"MM\0*" + jpeg,
    )


@functools.cache
def costly_images() -> Sequence[bytes]:
    """Return legal images of 64 megapixels, the largest that are decoded."""
    flat = Image.new("L", (_SIDE, _SIDE), 99)
    return (
        _encoded(flat, "JPEG"),
        _encoded(flat, "PNG"),
        _encoded(flat, "TIFF", compression="tiff_deflate"),
        _encoded(Image.new("RGB", (_SIDE, _SIDE), "red"), "JPEG", progressive=True),
    )
