"""Measure what a change costs in decoding: two versions of the sources decode the same images in turns.

    python -m plurum.benchmarks.claims.images.decoding OTHER/src

OTHER is a checkout of another version. Each version decodes in a process of its own, and reduces images to 224 x 224
pixels, as training and serving do. A process may be some percent slower than the next one, by how its memory lies. So
both are started anew several times, and take turns of about 0.05 s each time. Figures are processor time: ms per image,
medians over starts of the medians over turns. The difference is the median over pairs of starts, in percent of the
other version, with a 95 % interval of order statistics.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image, ImageFilter

import plurum
from plurum.benchmarks.tools import command
from plurum.errors import SettingsError

__all__ = ["check_sources", "decoding_costs", "median_difference"]

_THIS, _OTHER = "this", "other"
_TURN_S, _TURNS = 0.05, 4
# The package is found through PYTHONPATH. Both versions must have these two functions.
_PROGRAM = """
import sys, time
from pathlib import Path
from plurum.images import open_image, pixels_from_image
for line in sys.stdin:
    count, path = line.rstrip().split(" ", 1)
    data = Path(path).read_bytes()
    start = time.process_time_ns()
    for _ in range(int(count)):
        pixels_from_image(open_image(data), height=224, width=224, colour="rgb", resize="stretch")
    print((time.process_time_ns() - start) / int(count) / 1e6, flush=True)
"""


def decoding_costs(
    other: Annotated[Path, typer.Argument(help="Folder src of another version.", metavar="OTHER/src")],
    starts: Annotated[int, typer.Option(min=6, help="Number of starts of each version.")] = 20,
    work: command.WorkFolder = Path("runs/benchmark"),
) -> None:
    """Compare decoding: a table on standard error, one line of JSON on standard output."""
    check_sources(other)
    with command.measurement("images") as (say, state):
        files = _write_images(work / "decoding")
        sources = {_THIS: Path(plurum.__file__).parents[1], _OTHER: other}
        figures: dict[str, dict[str, list[float]]] = {name: {side: [] for side in sources} for name in files}
        for start in range(starts):
            say(f"start {start + 1} of {starts}")
            # The second one finds a warmer machine.
            order = sorted(sources, reverse=bool(start % 2))
            with ExitStack() as stack:
                versions = {side: stack.enter_context(_started(sources[side])) for side in order}
                for name, path in files.items():
                    for side, ms in _measure(versions, path).items():
                        figures[name][side].append(ms)
    differences = {name: median_difference(sides[_THIS], sides[_OTHER]) for name, sides in figures.items()}
    table = command.new_table("", "ms", "other, ms", "difference, %", "95 % interval", title="medians over starts")
    for name, (median, low, high) in differences.items():
        this, former = (f"{statistics.median(figures[name][side]):.3f}" for side in (_THIS, _OTHER))
        table.add_row(name, this, former, f"{median:+.2f}", f"{low:+.2f} to {high:+.2f}")
    command.print_report({"percent": differences, "ms": figures}, state, table)


def check_sources(folder: Path) -> None:
    """Check that a folder holds the sources of a version of Plurum.

    Raises:
        SettingsError: it does not.
    """
    if not (folder / "plurum" / "images").is_dir():
        raise SettingsError(
            f"OTHER/src: expected a folder that holds plurum/images, got {folder}. Give another checkout"
        )


def _write_images(folder: Path) -> dict[str, Path]:
    """Write smooth noise as JPEG and PNG, and return the files by what they are."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (2048, 2048, 3), np.uint8)
    large = Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2))
    small = large.crop((0, 0, 512, 512))
    deep = Image.fromarray(np.asarray(small.convert("L")).astype(np.uint16) * 257)
    files = {}
    for name, image, suffix in (
        ("JPEG, 2048 × 2048", large, "large.jpg"),
        ("JPEG, 512 × 512", small, "small.jpg"),
        ("PNG, 512 × 512", small, "colour.png"),
        ("grey PNG, 512 × 512", small.convert("L"), "grey.png"),
        ("grey PNG of 16 bits, 512 × 512", deep, "deep.png"),
    ):
        files[name] = (folder / suffix).resolve()
        image.save(files[name])
    return files


def _started(source: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        env={"PYTHONPATH": str(source.resolve())},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _measure(versions: dict[str, subprocess.Popen[str]], path: Path) -> dict[str, float]:
    """Return the ms per image of each version."""
    warm_ms = max(_turn(process, path, 3) for process in versions.values())
    count = max(1, round(_TURN_S * 1e3 / warm_ms))
    turns = [{side: _turn(process, path, count) for side, process in versions.items()} for _ in range(_TURNS)]
    return {side: statistics.median(one[side] for one in turns) for side in versions}


def _turn(process: subprocess.Popen[str], path: Path, count: int) -> float:
    if process.stdin is None or process.stdout is None:
        raise AssertionError("the process has pipes")
    process.stdin.write(f"{count} {path}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def median_difference(these: Sequence[float], others: Sequence[float]) -> tuple[float, float, float]:
    """Return the median of the differences of pairs, in percent of the other version, and the ends of its interval."""
    from scipy.stats import quantile_test

    percents = [100 * (this / other - 1) for this, other in zip(these, others, strict=True)]
    interval = quantile_test(percents, p=0.5).confidence_interval(0.95)
    median, low, high = (round(float(one), 2) for one in (statistics.median(percents), interval.low, interval.high))
    return median, low, high


if __name__ == "__main__":
    command.run_as_program(decoding_costs)
