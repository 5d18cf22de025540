"""Images of all kinds, broken at random where it hurts: pixels or one refusal, within time and memory.

The last input lies in pytest's temporary folder, should a decoder end the process. `PLURUM_FUZZ_SECONDS` and
`PLURUM_FUZZ_SEED` as for the others.
"""

from __future__ import annotations

import random
import resource
import struct
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from plurum.images import UnreadableImageError, open_image, pixels_from_image, structure_of
from tests.fuzz.mutations import Fuzz, broken_bytes
from tests.pixel_matrix.jpeg_cells import jpeg_cells
from tests.pixel_matrix.png_cells import png_cells
from tests.pixel_matrix.tiff_cells import tiff_cells

pytestmark = [pytest.mark.slow, pytest.mark.timing, pytest.mark.timeout(0)]

_CELLS = {"JPEG": jpeg_cells, "PNG": png_cells, "TIFF": tiff_cells}
_NUMBERS = (0, 1, 2, 3, 4, 7, 8, 16, 255, 256, 4095, 8000, 26_000, 65_535, 2**31 - 1, 2**31, 2**32 - 1)
# Legal ones that take longer than this are not decoded: there would be time for little else.
_MOST_WORK = 5_000_000
_LEAST_S, _S_PER_VISIT = 1.0, 150e-9
_MEMORY_BYTES = 1 << 30


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Limit memory to one gigabyte more than now; a MemoryError then fails the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + _MEMORY_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("kind", _CELLS)
def test_broken_images(kind: str, tmp_path: Path) -> None:
    fuzz, place = Fuzz(f"images, {kind}"), tmp_path / "input"
    corpus = _corpus(kind, random.Random(fuzz.seed))
    slowest_s, costly = 0.0, 0
    for draw in fuzz.draws():
        data = _MUTATIONS[kind](draw, draw.choice(corpus))
        if draw.random() < 0.3:
            data = broken_bytes(draw, data)
        if draw.random() < 0.1:
            data = data[: draw.randint(0, len(data))]
        place.write_bytes(data)
        begin = time.process_time()
        try:
            work = structure_of(data).work
            if work > _MOST_WORK:
                costly += 1
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                pixels = pixels_from_image(open_image(data), height=9, width=8, resize=draw.choice(("crop", "stretch")))
        except UnreadableImageError as error:
            refusal = str(error).strip()
            work = 0 if refusal else -_MOST_WORK
        except BaseException as error:
            raise AssertionError(f"{fuzz}: {error!r:.300} for the {len(data):,} bytes in {place}") from error
        else:
            fuzz.read += 1
            assert pixels.shape == (9, 8, 3)
        taken_s = time.process_time() - begin
        slowest_s = max(slowest_s, taken_s)
        assert work >= 0, f"{fuzz}: a refusal without a reason for the input in {place}"
        assert taken_s < _LEAST_S + work * _S_PER_VISIT, f"{fuzz}: {taken_s:.2f} s for the input in {place}"
    sys.stdout.write(f"slowest {slowest_s:.2f} s, {costly:,} too costly to decode here\n")


def _corpus(kind: str, draw: random.Random) -> list[bytes]:
    """Return cells of the matrix: those that are read, and a few of the others."""
    found = []
    for cell in _CELLS[kind]():
        try:
            open_image(cell.data)
        except UnreadableImageError:
            if draw.random() < 0.9:
                continue
        found.append(cell.data)
    return found


def _jpeg(draw: random.Random, data: bytes) -> bytes:
    """Change the order, number, length or content of a JPEG's segments."""
    place, parts = 2, [data[:2]]
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xD9:
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if data[place + 1] == 0xDA:
            following = data.find(b"\xff\xda", end)
            end = following if following > 0 else len(data) - 2
        parts.append(data[place:end])
        place = end
    parts.append(data[place:])
    for _ in range(draw.randint(0, 3)):
        at = draw.randrange(len(parts))
        part = bytearray(parts[at])
        action = draw.randrange(6)
        if action == 0:
            parts[at] = b""
        elif action == 1:
            # A part that grew before stays small enough for the memory of this test.
            parts[at] = bytes(part[:3000]) * draw.choice((2, 3, 70, 1200))
        elif action == 2:
            other = draw.randrange(len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        elif action == 3 and len(part) > 4:
            part[draw.randrange(2, min(len(part), 24))] = draw.choice((0, 1, 2, 3, 8, 16, 63, 64, 127, 128, 255))
            parts[at] = bytes(part)
        elif action == 4 and len(part) > 20:
            cut = draw.randrange(4, len(part))
            parts[at] = bytes(part[:cut]).rstrip(b"\xff")
        else:
            parts.insert(
                at, b"\xff" + bytes([draw.choice((0xDD, 0xC0, 0xC2, 0xC4, 0xE1, 0xFE, 0xFF, 0xD0))]) + b"\0\4\0\1"
            )
    return b"".join(parts)


def _png(draw: random.Random, data: bytes) -> bytes:
    """Change the order, number or content of a PNG's chunks, with correct checksums."""
    place, chunks = 8, []
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        chunks.append((kind, data[place + 8 : place + 8 + length]))
        place += 12 + length
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(len(chunks))
        kind, body = chunks[at]
        action = draw.randrange(6)
        if action == 0:
            del chunks[at]
            chunks = chunks or [(kind, body)]
        elif action == 1:
            chunks[at:at] = [(kind, body)] * draw.choice((1, 2, 3000))
        elif action == 2:
            other = draw.randrange(len(chunks))
            chunks[at], chunks[other] = chunks[other], chunks[at]
        elif action == 3 and kind == b"IHDR" and len(body) == 13:
            number = draw.choice(_NUMBERS).to_bytes(4, "big")
            new = bytearray(body)
            new[8:13] = (
                bytes(draw.choice((0, 1, 2, 3, 4, 6, 8, 16)) for _ in range(5)) if draw.random() < 0.5 else body[8:]
            )
            new[draw.choice((0, 4)) :][:4] = number
            start = draw.choice((0, 4, 4, 8))
            if start < 8:
                new[start : start + 4] = number
            chunks[at] = (kind, bytes(new))
        elif action == 4 and body:
            new = bytearray(body)
            new[draw.randrange(len(new))] ^= 1 << draw.randrange(8)
            chunks[at] = (kind, bytes(new))
        else:
            bomb = zlib.compress(bytes(draw.choice((10, 3_000_000))))
            text = (b"zTXt", b"XML:com.adobe.xmp\0\0" + bomb), (b"tRNS", draw.randbytes(draw.randint(0, 9)))
            chunks.insert(at, draw.choice((*text, (b"iCCP", b"p\0\0" + bomb), (b"eXIf", draw.randbytes(30)))))
    return data[:8] + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def _tiff(draw: random.Random, data: bytes) -> bytes:
    """Change the kind, number or values of a TIFF's tags."""
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    offset, size, head, count = ("Q", 20, 8, "Q") if big else ("I", 12, 2, "H")
    new = bytearray(data)
    (place,) = struct.unpack_from(order + offset, data, 8 if big else 4)
    if place + head > len(data):
        return data
    (entries,) = struct.unpack_from(order + count, data, place)
    for _ in range(draw.randint(1, 3)):
        at = place + head + size * draw.randrange(min(entries, 100))
        if at + size > len(new):
            break
        action = draw.randrange(4)
        if action == 0:
            struct.pack_into(
                order + "H", new, at, draw.choice((254, 258, 259, 262, 266, 273, 274, 277, 278, 284, 317, 339))
            )
        elif action == 1:
            struct.pack_into(order + "H", new, at + 2, draw.randint(0, 19))
        elif action == 2:
            struct.pack_into(order + offset, new, at + 4, draw.choice(_NUMBERS))
        else:
            value = draw.choice(_NUMBERS)
            wide = draw.random() < 0.5
            struct.pack_into(
                order + ("I" if wide else "H"), new, at + size - (8 if big else 4), value if wide else value & 0xFFFF
            )
    return bytes(new)


_MUTATIONS: dict[str, Callable[[random.Random, bytes], bytes]] = {"JPEG": _jpeg, "PNG": _png, "TIFF": _tiff}
