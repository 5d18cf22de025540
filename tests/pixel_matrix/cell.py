"""One cell of the matrix: a file of a certain kind, and what an independent reader sees in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from plurum.images import UnreadableImageError, open_image, to_eight_bit
from plurum.images.windows import WindowRule

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Cell:
    """A file.

    Attributes:
        name: What it is: format, bits, colours and so on, the coarsest first.
        data: Its bytes.
        reference: Pixels `[height, width, 3]` by the independent reader, reduced to 8 bits; None where no such pixels
            exist (values without a known range, several pictures), so that it must be refused.
        tolerance: By how much lossy decoders may differ.
        window: Rule by which it is read.
    """

    name: str
    data: bytes
    reference: Pixels | None
    tolerance: int = 0
    window: WindowRule | None = None


def outcome(cell: Cell) -> str:
    """Return `equal`, `refused: …` or `DIFFERENT: …` of a cell."""
    try:
        pixels = np.asarray(to_eight_bit(open_image(cell.data, window=cell.window)).convert("RGB")).astype(int)
    except UnreadableImageError as error:
        return f"refused: {error}"
    if cell.reference is None:
        return "DIFFERENT: read, and should be refused"
    if pixels.shape != cell.reference.shape:
        return f"DIFFERENT: shape {pixels.shape} is not {cell.reference.shape}"
    difference = int(np.abs(pixels - cell.reference).max())
    return "equal" if difference <= cell.tolerance else f"DIFFERENT: by up to {difference}"


def table_of(outcomes: dict[str, str]) -> str:
    """Return how many cells of each format are equal, refused and different, a line each."""
    counts = Counter((name.split()[0], text.split(":")[0]) for name, text in outcomes.items())
    kinds = sorted({kind for kind, _ in counts})
    lines = [f"{'':6}{'cells':>7}{'equal':>7}{'refused':>9}{'different':>11}"]
    for kind in [*kinds, "all"]:
        numbers = [
            sum(n for (of, what), n in counts.items() if kind in {of, "all"} and what == one)
            for one in ("equal", "refused", "DIFFERENT")
        ]
        lines.append(f"{kind:6}{sum(numbers):7}{numbers[0]:7}{numbers[1]:9}{numbers[2]:11}")
    return "\n".join(lines)


def outcomes_of(cells: Iterable[Cell]) -> dict[str, str]:
    """Return the outcome of each cell by its name; names are distinct."""
    found: dict[str, str] = {}
    for cell in cells:
        if cell.name in found:
            raise ValueError(f"two cells are called {cell.name}")
        found[cell.name] = outcome(cell)
    return found


def samples(bits: int, count: int, height: int = 37, width: int = 45, seed: int = 0) -> npt.NDArray[np.uint64]:
    """Return made-up values of so many bits, `[height, width, count]`: smooth with noise, from 0 to the most."""
    rows, columns = np.mgrid[0:height, 0:width]
    random = np.random.default_rng(seed + bits + 100 * count)
    planes = [
        (rows * (2 + plane) + columns * 3 + plane * 40) % 199 / 199 + random.random((height, width)) * 0.2
        for plane in range(count)
    ]
    values = np.stack(planes, axis=-1)
    scaled = (values - values.min()) / (values.max() - values.min())
    return np.asarray((scaled * ((1 << bits) - 1)).round(), dtype=np.uint64)


def over_white(colours: npt.NDArray[np.float64], opacity: npt.NDArray[np.float64]) -> Pixels:
    """Return 8-bit colours laid over white by their opacity, 0 to 1."""
    return (colours * opacity + 255 * (1 - opacity)).round().clip(0, 255).astype(np.uint8)


def three(pixels: npt.NDArray[Any]) -> Pixels:
    """Return grey or colour `[height, width, 1 or 3]` as RGB."""
    return np.repeat(pixels, 3, axis=2).astype(np.uint8) if pixels.shape[2] == 1 else pixels.astype(np.uint8)


def eight(values: npt.NDArray[Any], bits: int) -> npt.NDArray[np.int64]:
    """Return values of `bits` on the scale 0 to 255: the high byte, or spread evenly."""
    whole = values.astype(np.int64)
    return np.asarray(whole >> (bits - 8) if bits >= 8 else whole * 255 // ((1 << bits) - 1))


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """Return stored pixels upright, by EXIF's and TIFF's numbers."""
    turns = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
        7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
        8: lambda a: a.transpose(1, 0, 2)[::-1],
    }
    return np.ascontiguousarray(turns[orientation](pixels))
