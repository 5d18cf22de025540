"""Jobs of `plurum score` in processes of their own, and images for them."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from plurum.errors import ServerError
from plurum.score.destination import Destination

__all__ = ["RUN_S", "BenchJob", "wait_for_images", "write_images"]

# No job takes longer, seconds.
RUN_S = 6 * 3600.0
_SIDE, _GROUP = 8, 1000


@dataclass(frozen=True)
class BenchJob:
    """What the jobs of a measurement share.

    Attributes:
        repository: Repository with a fused graph.
        place: Folder for images and results.
        workers: Largest number of workers.
    """

    repository: Path
    place: Path
    workers: int

    def start(self, source: Path, out: Path, *options: str) -> subprocess.Popen[str]:
        """Start a job."""
        words = [sys.executable, "-m", "plurum", "score", str(source), "--repository", str(self.repository)]
        words += ["--out", str(out), *options]
        return subprocess.Popen(words, stderr=subprocess.PIPE, text=True)

    def end(self, process: subprocess.Popen[str]) -> None:
        """Wait for the end of a job.

        Raises:
            ServerError: it failed.
        """
        text = process.communicate(timeout=RUN_S)[1]
        if process.returncode:
            raise ServerError(f"plurum score ended with {process.returncode}: {text[-500:]}")


def write_images(file: Path, count: int) -> None:
    """Write `count` PNG images as rows of a Parquet file, no two alike."""
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([("path", pa.string()), ("bytes", pa.binary())])
    draws: Any = np.random.default_rng(0)
    with parquet.ParquetWriter(file, schema) as writer:
        for start in range(0, count, _GROUP):
            rows = range(start, min(start + _GROUP, count))
            pixels = draws.integers(0, 256, (len(rows), _SIDE, _SIDE, 3), dtype=np.uint8)
            columns = [[f"image {row}" for row in rows], list(map(_png, pixels))]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=_GROUP)


def wait_for_images(out: Path, images: int, process: subprocess.Popen[str]) -> int:
    """Wait until the results hold at least `images` images; return how many they hold.

    Raises:
        ServerError: the job ended before.
    """
    destination, known = Destination(str(out)), dict[str, int]()
    until = time.monotonic() + RUN_S
    while time.monotonic() < until and process.poll() is None:
        for name in destination.parts():
            if name not in known and (counts := destination.counts(name)):
                known[name] = counts.images
        if sum(known.values()) >= images:
            return sum(known.values())
        time.sleep(0.05)
    raise ServerError(f"the job ended with {sum(known.values())} of {images} images")


def _png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()
