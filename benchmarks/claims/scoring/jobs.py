"""Jobs of `plurum score` in processes of their own, watched, and images for them."""

from __future__ import annotations

import contextlib
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from plurum.benchmarks.tools.command import Say
from plurum.benchmarks.tools.machine import peak_bytes, processor_s
from plurum.errors import ServerError
from plurum.score.destination import Destination

__all__ = ["BenchJob", "JobUse", "write_images"]

_SIDE, _GROUP = 8, 1000
# A job that is interrupted ends Ray first, seconds; then it is killed.
_END_S = 60.0
# Looking takes processor time from the job.
_LOOK_S = 1.0


@dataclass(frozen=True)
class JobUse:
    """Time and memory of a job.

    Attributes:
        wall_s: Seconds of the whole command.
        driver_s: Processor time of the driver's own process, seconds.
        ray_s: Processor time of Ray's own processes on this machine, without workers, seconds.
        driver_bytes: Highest resident memory of the driver's own process, bytes.
    """

    wall_s: float
    driver_s: float
    ray_s: float
    driver_bytes: int


@dataclass(frozen=True)
class BenchJob:
    """What the jobs of a measurement share.

    Attributes:
        repository: Repository with a fused graph.
        place: Folder for images and results.
        workers: Largest number of workers.
        say: Receives one line about what is being done.
    """

    repository: Path
    place: Path
    workers: int
    say: Say

    @contextmanager
    def running(self, source: Path, out: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a job; a `with` block that ends before it interrupts it."""
        words = [sys.executable, "-m", "plurum", "score", str(source), "--repository", str(self.repository)]
        # Standard error goes to a file: a full pipe would stop the job.
        with (self.place / "job.log").open("wb") as log:
            process = subprocess.Popen([*words, "--out", str(out), *options], stderr=log)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_END_S)
            process.kill()
            process.wait()

    def score(self, source: Path, out: Path, images: int, *options: str) -> JobUse:
        """Run a job to its end.

        Args:
            source: Images.
            out: Folder of the results.
            images: Number of images, of which progress is told.
            options: Options of `plurum score`.

        Raises:
            ServerError: it failed.
        """
        start_s, use, ray_s = time.monotonic(), (0.0, 0), 0.0
        with self.running(source, out, *options) as process:
            while process.poll() is None:
                # The process may end in between.
                with contextlib.suppress(psutil.Error, OSError, IndexError):
                    # Ray's processes end before the driver does.
                    ray_s = max(ray_s, _ray_s(process.pid))
                    use = processor_s(process.pid), peak_bytes(process.pid)
                self.tell(out, images)
                time.sleep(_LOOK_S)
        if process.returncode:
            raise ServerError(f"plurum score ended with exit code {process.returncode}: {self.log()}")
        driver_s, driver_bytes = use
        return JobUse(time.monotonic() - start_s, driver_s, ray_s, driver_bytes)

    def tell(self, out: Path, images: int) -> int:
        """Tell how far a job is; return the number of images in its results."""
        done = _images_in(out)
        self.say(f"plurum score: {done:,} of {images:,} images")
        return done

    def wait_for_images(self, out: Path, least: int, images: int, process: subprocess.Popen[bytes]) -> int:
        """Wait until the results hold at least `least` of `images` images; return how many they hold.

        Raises:
            ServerError: the job ended before.
        """
        while process.poll() is None:
            if (done := self.tell(out, images)) >= least:
                return done
            time.sleep(_LOOK_S)
        raise ServerError(f"the job ended before it had {least} of {images} images: {self.log()}")

    def log(self) -> str:
        """Return the end of what the last job has written to standard error."""
        return (self.place / "job.log").read_text(errors="replace")[-500:]


def write_images(file: Path, count: int, seed: int = 0) -> None:
    """Write `count` PNG images as rows of a Parquet file, no two alike.

    Args:
        file: New Parquet file.
        count: Number of images.
        seed: Seed of the pixels and start of the names; other files need another one.
    """
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema([("path", pa.string()), ("bytes", pa.binary())])
    draws: Any = np.random.default_rng(seed)
    with parquet.ParquetWriter(file, schema) as writer:
        for start in range(0, count, _GROUP):
            rows = range(start, min(start + _GROUP, count))
            pixels = draws.integers(0, 256, (len(rows), _SIDE, 3 * _SIDE), dtype=np.uint8)
            columns = [[f"image {seed}-{row}" for row in rows], [_png(one) for one in pixels]]
            writer.write_table(pa.table(columns, schema=schema), row_group_size=_GROUP)


def _ray_s(driver: int) -> float:
    """Return the processor time of the processes that Ray has started for a driver, without its workers, seconds."""
    children = psutil.Process(driver).children(recursive=True)
    # Ray renames its workers.
    return sum(processor_s(one.pid) for one in children if not "".join(one.cmdline()[:1]).startswith("ray::"))


def _images_in(out: Path) -> int:
    """Return the number of images in the results of a job; the parts of one row group have equal size but for one."""
    destination = Destination(str(out))
    names = destination.parts()
    ends = [destination.counts(name) for name in (names[0], names[-1])] if names else []
    sizes = [one.images for one in ends if one is not None]
    return (len(names) - 1) * sizes[0] + sizes[-1] if sizes else 0


def _png(pixels: Any) -> bytes:
    """Return a PNG file of uint8 `[side, 3 * side]`; libraries of images would take ten times as long."""
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", _SIDE, _SIDE, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    parts = [struct.pack(">I", len(data)) + kind + data + _crc(kind + data) for kind, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _crc(data: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(data))
