"""Measure what decoding at a reduced scale saves with large JPEGs, and how far it changes pixels.

    python -m plurum.benchmarks.claims.images.reduction

The first table is processor time in ms per image, medians of turns that alternate, from the encoded image to pixels of
the members' size. If simplejpeg is installed, whose wheel has its own libjpeg-turbo, its decoding is measured too.

The second table is about pixels of the members' size: how far those of the reduced image are from those of the whole
image, in levels of 0 to 255. The image is reduced to 2, 3 and 4 times the members' size, by 2, 4 and 8; the table has
the largest change over these. `JPEG` is how far the whole image is from what was encoded with quality 90.

Pictures are scikit-learn's two photographs, enlarged; one of them as tiles, so that it has detail as fine as its
pixels; noise; rectangles with sharp edges; and a zone plate, whose rings become finer than a pixel can show.
"""

from __future__ import annotations

import importlib.util
import io
import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from plurum.benchmarks.tools import command
from plurum.images import open_image, pixels_from_image
from plurum.training.data.reduction import HIGH_SHARE, is_within_limits

__all__ = ["reduction"]

Pixels = npt.NDArray[np.uint8]
Pictures = dict[str, Callable[[int, int], Image.Image]]

_MARGINS, _REDUCTIONS = (2, 3, 4), (2, 4, 8)
_BLOCK = 8


def reduction(
    image_size: command.ImageSize = 224,
    width: Annotated[
        int, typer.Option(min=64, help="Width of the timed images, pixels; 3/4 of it is the height.")
    ] = 4032,
    rounds: command.Rounds = 9,
) -> None:
    """Compare both kinds of decoding: tables on standard error, one line of JSON on standard output."""
    with command.measurement("pictures") as (say, state):
        pictures = _pictures()
        times = {}
        for name in ("photograph of a building", "photograph of a flower", "noise"):
            say(f"times: {name}")
            times[name] = _times(_encode(pictures[name](width, width * 3 // 4)), image_size, rounds)
        changes: dict[str, dict[str, dict[str, float]]] = {}
        for name, draw in pictures.items():
            say(f"changes: {name}")
            changes[name] = {str(margin): _changes(draw, image_size, margin) for margin in _MARGINS}
    costs = command.new_table("ms per image", *next(iter(times.values())), title=f"{width} x {width * 3 // 4} pixels")
    for name, found in times.items():
        costs.add_row(name, *(f"{ms:.1f}" for ms in found.values()))
    titles = ("times", "mean", f"{HIGH_SHARE:.1%}", "largest", "within limits", "JPEG, mean", "JPEG, largest")
    levels = command.new_table("levels of 255", *titles, title="largest change over reductions by 2, 4 and 8")
    for name, by_margin in changes.items():
        for margin, one in by_margin.items():
            figures = [f"{one[key]:.2f}" for key in ("mean", "high", "largest")]
            jpeg = [f"{one[key]:.2f}" for key in ("jpeg_mean", "jpeg_largest")]
            levels.add_row(name, margin, *figures, "yes" if one["within"] else "no", *jpeg)
    command.print_report({"ms": times, "changes": changes}, state, costs, levels)


def _pictures() -> Pictures:
    from sklearn.datasets import load_sample_images

    building, flower = load_sample_images().images
    return {
        "photograph of a building": lambda width, height: _enlarge(building, width, height),
        "photograph of a flower": lambda width, height: _enlarge(flower, width, height),
        "photograph as tiles": lambda width, height: Image.fromarray(_tile(building, width, height)),
        "noise": lambda width, height: Image.fromarray(
            np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        ),
        "rectangles": _rectangles,
        "zone plate": _zone_plate,
    }


def _enlarge(pixels: Pixels, width: int, height: int) -> Image.Image:
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)


def _tile(pixels: Pixels, width: int, height: int) -> Pixels:
    down, across = (-(-side // own) for side, own in zip((height, width), pixels.shape[:2], strict=True))
    tiled: Pixels = np.tile(pixels, (down, across, 1))[:height, :width]
    return tiled


def _rectangles(width: int, height: int) -> Image.Image:
    draws, pixels = np.random.default_rng(0), np.zeros((height, width, 3), np.uint8)
    for _ in range(400):
        left, top = draws.integers(0, (width, height))
        across, down = draws.integers(3, (width // 3, height // 3))
        pixels[top : top + down, left : left + across] = draws.integers(0, 256, 3)
    return Image.fromarray(pixels)


def _zone_plate(width: int, height: int) -> Image.Image:
    rows, columns = np.ogrid[:height, :width]
    waves = np.cos(np.pi * (rows.astype(np.float64) ** 2 + columns**2) / (2 * width))
    return Image.fromarray((127.5 + 127.5 * waves).astype(np.uint8)).convert("RGB")


def _encode(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def _times(data: bytes, size: int, rounds: int) -> dict[str, float]:
    """Return the processor time per image, ms, by the kind of decoding."""
    resizing: dict[str, Any] = {"height": size, "width": size}
    cases: dict[str, Callable[[], Image.Image]] = {
        "whole": lambda: open_image(data),
        "reduced": lambda: open_image(data, reduce_to=(size, size)),
    }
    if importlib.util.find_spec("simplejpeg") is not None:
        simplejpeg: Any = importlib.import_module("simplejpeg")
        cases["whole, simplejpeg"] = lambda: Image.fromarray(simplejpeg.decode_jpeg(data))
    found: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds):
        for name in sorted(cases, reverse=bool(number % 2)):
            start = time.process_time_ns()
            pixels_from_image(cases[name](), **resizing)
            found[name].append((time.process_time_ns() - start) / 1e6)
    return {name: statistics.median(turns) for name, turns in found.items()}


def _changes(draw: Callable[[int, int], Image.Image], size: int, margin: int) -> dict[str, float]:
    """Return the largest changes over all reductions of a picture that leave `margin` times the members' size."""
    worst: dict[str, float] = {}
    for divisor in _REDUCTIONS:
        side = -(-size * margin * divisor // _BLOCK) * _BLOCK
        picture = draw(side, side)
        data = _encode(picture)
        reduced = JpegImageFile(io.BytesIO(data))
        reduced.draft(None, (side // divisor, side // divisor))
        original, whole, small = (
            pixels_from_image(image, height=size, width=size).astype(np.int16)
            for image in (picture, open_image(data), reduced)
        )
        change, lost = np.abs(small - whole), np.abs(whole - original)
        found = {
            "mean": change.mean(),
            "high": np.quantile(change, HIGH_SHARE),
            "largest": change.max(),
            "outside": not is_within_limits(change),
            "jpeg_mean": lost.mean(),
            "jpeg_largest": lost.max(),
        }
        worst = {name: max(worst.get(name, 0.0), float(value)) for name, value in found.items()}
    return {name: value for name, value in worst.items() if name != "outside"} | {"within": 1.0 - worst["outside"]}


if __name__ == "__main__":
    command.run_as_program(reduction)
