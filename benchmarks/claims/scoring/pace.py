"""Throughput of a job beside a plain loop, and seconds and memory of jobs that grow."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from typing import Any

import psutil

from plurum.benchmarks.claims.scoring.jobs import BenchJob, write_images
from plurum.benchmarks.tools.command import Say
from plurum.errors import ServerError

__all__ = ["measure_growth", "measure_pace"]

# Images of the loop that finds out how many fill the time, and rows of a batch.
_TRIAL, _ROWS = 2_000, 64
_PART_ROWS = 500


def measure_pace(job: BenchJob, seconds: float, say: Say) -> dict[str, Any]:
    """Return images per second of a job and of a plain loop, each for about `seconds` of work."""
    source, out = job.place / "pace.parquet", job.place / "pace"
    write_images(source, _TRIAL)
    say("how long the work takes")
    rate = _plain_rate(job, source)
    images = max(4 * job.workers * _PART_ROWS, int(rate * seconds))
    write_images(source, images)
    say(f"a plain loop over {images:,} images")
    plain = _plain_rate(job, source)
    say(f"plurum score with {images:,} images")
    start_s = time.time()
    job.end(job.start(source, out, "--workers", str(job.workers), "--part-rows", str(_PART_ROWS)))
    took_s = time.time() - start_s
    # Each worker has its first part behind it.
    ends_s = sorted(path.stat().st_mtime for path in out.glob("part-*.parquet"))
    first_s, counted = ends_s[job.workers - 1], images - job.workers * _PART_ROWS
    scored = counted / (ends_s[-1] - first_s)
    return {
        "images": images,
        "plain_images_per_s": round(plain, 1),
        "score_images_per_s": round(scored, 1),
        "ratio": round(scored / plain, 3),
        "overhead_us_per_image": round(1e6 * job.workers * (1 / scored - 1 / plain), 1),
        "start_and_end_s": round(took_s - images / scored, 1),
        "whole_command_s": round(took_s, 1),
    }


def measure_growth(job: BenchJob, rows: int, say: Say) -> dict[str, Any]:
    """Return seconds and the driver's largest memory for four numbers of rows, each twice the one before."""
    found: dict[str, Any] = {}
    for count in (rows // 8, rows // 4, rows // 2, rows):
        say(f"plurum score with {count:,} rows")
        source, out = job.place / f"rows-{count}.parquet", job.place / f"rows-{count}"
        write_images(source, count)
        start_s = time.monotonic()
        process = job.start(source, out, "--workers", str(job.workers))
        most_bytes, driver = 0, psutil.Process(process.pid)
        while process.poll() is None:
            try:
                most_bytes = max(most_bytes, driver.memory_info().rss)
            except psutil.Error:
                break
            time.sleep(0.5)
        job.end(process)
        found[f"{count}_rows_s"] = round(time.monotonic() - start_s, 1)
        found[f"{count}_rows_driver_mib"] = most_bytes >> 20
    return found


def _plain_rate(job: BenchJob, source: Path) -> float:
    """Return images per second of processes that decode and compute, each its part of the rows."""
    context = multiprocessing.get_context("spawn")
    # All begin together, when the slowest has loaded the graph.
    barrier, results = context.Barrier(job.workers), context.SimpleQueue()
    processes = [
        context.Process(target=_loop, args=(job.repository, source, place, job.workers, barrier, results))
        for place in range(job.workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise ServerError("a process of the plain loop failed")
    spans = [results.get() for _ in processes]
    images = sum(count for count, _, _ in spans)
    return float(images / (max(end for _, _, end in spans) - min(start for _, start, _ in spans)))


def _loop(repository: Path, source: Path, place: int, step: int, barrier: Any, results: Any) -> None:
    from pyarrow import parquet

    from plurum.score.repository_model import RepositoryModel

    model, file, count = RepositoryModel(repository), parquet.ParquetFile(source), 0
    barrier.wait()
    start_s = time.time()
    for group in range(place, file.num_row_groups, step):
        for batch in file.iter_batches(_ROWS, row_groups=[group], columns=["bytes"]):
            images = batch.column("bytes").to_pylist()
            count += len(model.answers(images, [""] * len(images)))
    results.put((count, start_s, time.time()))
    model.close()
