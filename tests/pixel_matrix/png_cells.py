"""Cells of PNGs, written by hand from known samples; what those mean is computed by the standard's text."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from itertools import product

import numpy as np
import numpy.typing as npt

from tests.pixel_matrix.cell import Cell, eight, over_white, samples, three

_COUNTS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values: npt.NDArray[np.uint64], bits: int, colour: int, *extra: bytes, interlaced: bool = False) -> bytes:
    """Return a PNG of samples `[height, width, count]`; `extra` chunks stand before the pixels."""
    height, width, _ = values.shape
    body = b""
    for top, left, down, across in _PASSES if interlaced else ((0, 0, 1, 1),):
        part = values[top::down, left::across]
        if part.size:
            rows = _packed(part, bits)
            body += b"".join(b"\0" + row for row in rows)
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced))
    compressed = zlib.compress(body)
    middle = len(compressed) // 2
    pixels = chunk(b"IDAT", compressed[:middle]) + chunk(b"IDAT", compressed[middle:])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(extra) + pixels + chunk(b"IEND", b"")


def _packed(values: npt.NDArray[np.uint64], bits: int) -> list[bytes]:
    shifts = np.arange(bits - 1, -1, -1, dtype=np.uint64)
    flat = values.reshape(values.shape[0], -1)
    ones = ((flat[..., None] >> shifts) & np.uint64(1)).astype(np.uint8).reshape(values.shape[0], -1)
    return [row.tobytes() for row in np.packbits(ones, axis=1)]


REMARKS = {
    "plain": (),
    "gAMA": (chunk(b"gAMA", struct.pack(">I", 100000)),),
    "sRGB": (chunk(b"sRGB", b"\0"),),
    "cHRM": (chunk(b"cHRM", struct.pack(">8I", *[30000] * 8)),),
    "iCCP": (chunk(b"iCCP", b"p\0\0" + zlib.compress(b"profile" * 50)),),
    "pHYs": (chunk(b"pHYs", struct.pack(">IIB", 1000, 3000, 1)),),
    "text": (chunk(b"tEXt", b"a\0b"), chunk(b"zTXt", b"c\0\0" + zlib.compress(b"d"))),
}


def png_cells() -> Iterator[Cell]:
    """Yield all: colour types x depths x interlaced x remarks x transparency."""
    for colour, counts in _COUNTS.items():
        for bits, interlaced, remark, clear in product(_DEPTHS[colour], (False, True), REMARKS, (False, True)):
            if clear and colour in {4, 6}:
                continue
            values = samples(bits, counts)
            extra = list(REMARKS[remark])
            table = np.random.default_rng(4).integers(0, 256, (1 << bits, 3)) if colour == 3 else None
            if table is not None:
                extra.append(chunk(b"PLTE", table.astype(np.uint8).tobytes()))
            key = values[5, 7]
            alpha = (
                np.random.default_rng(5).integers(0, 256, min(1 << bits, 11)) if clear and table is not None else None
            )
            if clear:
                body = struct.pack(f">{counts}H", *map(int, key)) if alpha is None else alpha.astype(np.uint8).tobytes()
                extra.append(chunk(b"tRNS", body))
            opacity = _opacity(values, bits, colour, key if clear else None, alpha)
            plain = (
                three(table[values[..., 0].astype(int)])
                if table is not None
                else three(eight(values[..., : counts - (colour > 3)], bits))
            )
            data = png(values, bits, colour, *extra, interlaced=interlaced)
            name = f"PNG colour {colour} {bits} bits {'interlaced ' * interlaced}{remark}{' tRNS' * clear}"
            yield Cell(name, data, over_white(plain.astype(float), opacity), 1 if colour > 3 or clear else 0)
    yield from _other_cells()


def _opacity(
    values: npt.NDArray[np.uint64],
    bits: int,
    colour: int,
    key: npt.NDArray[np.uint64] | None,
    alpha: npt.NDArray[np.int64] | None,
) -> npt.NDArray[np.float64]:
    if colour > 3:
        return np.asarray(values[..., -1:] / ((1 << bits) - 1))
    if alpha is not None:
        return np.asarray(np.append(alpha, [255] * 256)[values[..., 0].astype(int)][..., None] / 255)
    if key is not None:
        return np.asarray((values != key).any(axis=-1), dtype=np.float64)[..., None]
    return np.ones((*values.shape[:2], 1))


def _other_cells() -> Iterator[Cell]:
    for bits in (9, 10, 12, 14):
        # The standard has an encoder scale such samples up; one that didn't left them as they are.
        values = samples(bits, 1)
        said = chunk(b"sBIT", bytes([bits]))
        yield Cell(
            f"PNG {bits} of 16 bits by sBIT, scaled",
            png(values << np.uint64(16 - bits), 16, 0, said),
            three(eight(values, bits)),
        )
        yield Cell(f"PNG {bits} of 16 bits by sBIT, not scaled", png(values, 16, 0, said), None)
    values = samples(8, 3)
    frames = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 45, 37, 0, 0, 1, 10, 0, 0))
    yield Cell("PNG animated", png(values, 8, 2, chunk(b"acTL", struct.pack(">II", 2, 0)), frames), None)
    still = png(values, 8, 2, chunk(b"acTL", struct.pack(">II", 1, 0)), frames)
    yield Cell("PNG animated of one picture", still, three(values))
    yield Cell("PNG palette too short", png(samples(8, 1), 8, 3, chunk(b"PLTE", bytes(30))), None)
    yield Cell("PNG unknown critical chunk", png(values, 8, 2, chunk(b"ABCD", b"")), None)
