"""Draw heat maps of a slide's tile predictions, and write a slide's output files.

Legend: picture arrays are `[height, width]`, tile arrays are `[rows, columns]`.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from plurum.client.slides.slide_answers import SlidePrediction
from plurum.errors import SettingsError, needs_extra
from plurum.files import atomic_file, write_bytes, write_text
from plurum.predictions.arrays import Bytes, Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["SLIDE_FILES", "HeatMap", "heat_map", "tile_grid", "write_slide"]

HeatMap = Literal["probability", "uncertainty"]

SLIDE_FILES = ("probability.png", "uncertainty.png", "tiles.parquet", "slide.json")
_DPI = 110
# Longer side of the slide, and margins around it, inches.
_LONGER, _AROUND = 7.0, (2.2, 1.5)
# Minimum width for the title, and minimum height for the colour bar, inches.
_NARROWEST, _LOWEST = 4.5, 2.5
# Both maps suit readers with colour-vision deficiency, and print well in grey (van der Walt & Smith 2015).
_COLOURS: dict[HeatMap, str] = {"probability": "viridis", "uncertainty": "inferno"}
_OPACITY = 0.65
_FAILED = "#d81b60"


def tile_grid(slide: SlidePrediction, values: npt.ArrayLike) -> tuple[Floats, Floats, Floats]:
    """Arrange `values` in the grid of tiles, and return the grid with the limits between neighbouring tiles.

    Args:
        slide: Prediction of the slide.
        values: One value per row of its tile table.

    Returns:
        The grid, `[rows, columns]`, NaN for tiles that were skipped; the limits of its columns, `[columns + 1]`, and of
        its rows, `[rows + 1]`, in pixels of level 0. A limit lies in the middle of the tiles' overlap.
    """
    table = slide.tiles
    grid = np.full((len(slide.tops), len(slide.lefts)), np.nan)
    rows, columns = np.searchsorted(slide.tops, table["y"]), np.searchsorted(slide.lefts, table["x"])
    grid[rows, columns] = np.asarray(values, dtype=np.float64)
    across, down = int(table["width"].iloc[0]), int(table["height"].iloc[0])
    return grid, _limits(slide.lefts, across, slide.width), _limits(slide.tops, down, slide.height)


def heat_map(slide: SlidePrediction, kind: HeatMap = "probability", heat_class: str | None = None) -> bytes:
    """Return a heat map as PNG: the slide in grey, its tiles in colour, a colour bar, and axes in millimetres if known.

    Args:
        slide: Prediction of the slide.
        kind: `probability` of a class, or `uncertainty`: a tile's entropy divided by the logarithm of the number of
            classes. Both range from 0 to 1, so that slides can be compared.
        heat_class: Class whose probability is shown; None shows the label.

    Raises:
        MissingExtraError: matplotlib is not installed.
        SettingsError: the class or the kind is unknown.
    """
    file = io.BytesIO()
    # Leave out the software version, so that the same slide gives the same bytes.
    _figure(slide, kind, heat_class).savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
    return file.getvalue()


def write_slide(slide: SlidePrediction, folder: Path, heat_class: str | None = None) -> None:
    """Write `SLIDE_FILES` to `folder`, each atomically: both heat maps, the tile table, the slide's prediction.

    Raises:
        MissingExtraError: matplotlib or pyarrow is not installed.
        OutputError: the folder can't be written to.
        SettingsError: the class is unknown.
    """
    with needs_extra("slides", "pyarrow", "matplotlib"):
        pictures = [heat_map(slide, "probability", heat_class), heat_map(slide, "uncertainty")]
    for name, picture in zip(SLIDE_FILES, pictures, strict=False):
        write_bytes(folder / name, picture, private=True)
    with atomic_file(folder / SLIDE_FILES[2], private=True) as hidden:
        slide.tiles.to_parquet(hidden, engine="pyarrow", index=False)
    write_text(folder / SLIDE_FILES[3], json.dumps(slide.to_dict(), indent=2) + "\n", private=True)


def _figure(slide: SlidePrediction, kind: HeatMap, heat_class: str | None = None) -> Figure:
    """Return the figure; its first axes are in pixels of level 0."""
    with needs_extra("slides"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    values, words = _values(slide, kind, heat_class)
    longer = max(slide.width, slide.height)
    width, height = max(_NARROWEST, _LONGER * slide.width / longer), max(_LOWEST, _LONGER * slide.height / longer)
    figure = Figure(figsize=(width + _AROUND[0], height + _AROUND[1]), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(_grey(slide.thumbnail), extent=(0, slide.width, slide.height, 0))
    grid, columns, rows = tile_grid(slide, values)
    tiles = axes.pcolormesh(columns, rows, grid, cmap=_COLOURS[kind], vmin=0, vmax=1, alpha=_OPACITY, linewidth=0)
    bar = figure.colorbar(tiles, ax=axes, fraction=0.05, pad=0.02)
    bar.set_label(words)
    _mark(figure, axes, slide)
    axes.set(xlim=(0, slide.width), ylim=(slide.height, 0))
    return figure


def _values(slide: SlidePrediction, kind: HeatMap, heat_class: str | None) -> tuple[Floats, str]:
    """Return one value from 0 to 1 per tile, NaN for failed tiles, and the label of the colour bar."""
    if kind == "uncertainty":
        most = math.log(len(slide.classes))
        return slide.tiles["entropy"].to_numpy(
            dtype=np.float64
        ) / most, f"uncertainty: entropy / log {len(slide.classes)}"
    if kind != "probability":
        raise SettingsError(f"kind: expected 'probability' or 'uncertainty', got {kind!r}.")
    name = slide.answer.label if heat_class is None else heat_class
    if name not in slide.classes:
        raise SettingsError(f"heat_class: expected one of {', '.join(slide.classes)}, got {name!r}.")
    return slide.tiles[f"p_{name}"].to_numpy(dtype=np.float64), f"probability of {_plain(name)}"


def _limits(starts: tuple[int, ...], length: int, whole: int) -> Floats:
    first = np.asarray(starts, dtype=np.float64)
    return np.concatenate([[0.0], (first[:-1] + length + first[1:]) / 2, [float(whole)]])


def _grey(pixels: Bytes) -> Bytes:
    """Return pale luminance (ITU-R 601-2) as RGB, so that the slide does not change how the colours above it look."""
    colours = pixels[..., :3].astype(np.float64) if pixels.ndim == 3 else pixels[..., None].astype(np.float64)
    weights = (0.299, 0.587, 0.114) if colours.shape[-1] == 3 else (1.0,)
    pale = np.rint(190 + 0.25 * (colours @ np.asarray(weights))).astype(np.uint8)
    return np.repeat(pale[..., None], 3, axis=-1)


def _mark(figure: Figure, axes: Axes, slide: SlidePrediction) -> None:
    """Add title, units, and marks of failed tiles."""
    review = ", needs review" if slide.answer.review else ""
    words = f"{_plain(slide.path.name)}: {_plain(slide.answer.label)} {slide.answer.confidence:.1%}{review}"
    figure.suptitle(words, size=10, x=0.02, horizontalalignment="left")
    _measure(axes, slide)
    lines = [f"{slide.tiles_asked:,} tiles with tissue, {slide.tiles_skipped:,} without"]
    failed = slide.tiles[slide.tiles["error"].notna()]
    if len(failed):
        x, y = failed["x"] + failed["width"] / 2, failed["y"] + failed["height"] / 2
        axes.plot(x.to_numpy(), y.to_numpy(), "x", color=_FAILED, markersize=5)
        lines.append(f"x: {len(failed):,} failed")
    axes.set_xlabel(f"{axes.get_xlabel()}\n{', '.join(lines)}", size=9)


def _measure(axes: Axes, slide: SlidePrediction) -> None:
    """Number the axes in millimetres, or in pixels if their size is unknown."""
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    unit = 1000 / slide.microns_per_pixel if slide.microns_per_pixel else 1.0
    longest = max(slide.width, slide.height) / unit
    magnitude = 10.0 ** math.floor(math.log10(longest / 5))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if longest / (factor * magnitude) <= 6)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MultipleLocator(step * unit))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / unit:,.6g}"))
    axes.tick_params(labelsize=8)
    axes.set_xlabel("mm" if slide.microns_per_pixel else "pixels of the file")


def _plain(text: str) -> str:
    """Return a name shortened to 36 characters, in which matplotlib finds no formula."""
    text = text if len(text) <= 36 else f"{text[:35]}…"
    return text.encode("utf-8", "replace").decode("utf-8").replace("$", r"\$")
