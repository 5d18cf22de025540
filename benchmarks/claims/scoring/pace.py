"""Throughput of a job beside a plain loop, and seconds and memory of jobs that grow."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path
from typing import Any

from plurum.benchmarks.claims.scoring.jobs import BenchJob, write_images
from plurum.errors import ServerError

__all__ = ["measure_growth", "measure_pace"]

# Images of the loop that finds out how many fill the time, and rows of a batch, as in a worker of a job.
_TRIAL, _ROWS = 2_000, 64
_PART_ROWS = 1000
_FILES = 8
# Of the cluster on paper.
_NODES, _CORES = 100, 16


def measure_pace(job: BenchJob, seconds: float) -> dict[str, Any]:
    """Return images per second of a job and of a plain loop, each for about `seconds` of work."""
    source, out = job.place / "pace.parquet", job.place / "pace"
    job.say("how long the work takes")
    write_images(source, _TRIAL)
    rate = _plain_rate(job, source)
    # Whole parts, at least three for each worker.
    parts = max(3 * job.workers, int(rate * seconds / _PART_ROWS))
    images = parts * _PART_ROWS
    write_images(source, images)
    job.say(f"a plain loop over {images:,} images")
    plain = _plain_rate(job, source)
    use = job.score(source, out, images, "--workers", str(job.workers), "--part-rows", str(_PART_ROWS))
    # Each worker has its first part behind it.
    ends_s = sorted(path.stat().st_mtime for path in out.glob("part-*.parquet"))
    scored = (images - job.workers * _PART_ROWS) / (ends_s[-1] - ends_s[job.workers - 1])
    return {
        "images": images,
        "workers": job.workers,
        "plain_images_per_s": round(plain, 1),
        "score_images_per_s": round(scored, 1),
        "ratio": round(scored / plain, 3),
        "overhead_us_per_image": round(1e6 * job.workers * (1 / scored - 1 / plain), 1),
        "start_and_end_s": round(use.wall_s - images / scored, 1),
        "whole_command_s": round(use.wall_s, 1),
    }


def measure_growth(job: BenchJob, rows: int) -> dict[str, Any]:
    """Return seconds and the driver's memory for jobs of an eighth, a quarter, half and all of the rows.

    A job reads one, two, four or eight files of the same length.
    """
    found, files = list[dict[str, float]](), [job.place / f"rows-{seed}.parquet" for seed in range(_FILES)]
    for seed, file in enumerate(files):
        job.say(f"file {seed + 1} of {_FILES} with {rows // _FILES:,} rows")
        write_images(file, rows // _FILES, seed)
    size_bytes = sum(file.stat().st_size for file in files)
    for many in (1, 2, 4, 8):
        source, out, count = job.place / f"of-{many}", job.place / f"out-{many}", rows // _FILES * many
        source.mkdir()
        for file in files[:many]:
            (source / file.name).hardlink_to(file)
        use = job.score(source, out, count, "--workers", str(job.workers), "--part-rows", str(_PART_ROWS))
        parts = sorted(out.glob("part-*.parquet"))
        found.append(
            {
                "rows": count,
                "parts": len(parts),
                "seconds": round(use.wall_s, 1),
                "driver_s": round(use.driver_s, 2),
                "ray_s": round(use.ray_s, 2),
                "driver_mib": use.driver_bytes >> 20,
                "result_bytes_per_row": round(sum(part.stat().st_size for part in parts) / count, 1),
                "plan_bytes": (out / "_plan" / "plan.json").stat().st_size,
            }
        )
    return {
        "workers": job.workers,
        "jobs": found,
        "source_bytes_per_row": round(size_bytes / rows, 1),
        **_slopes(found[0], found[-1]),
    }


def _slopes(least: dict[str, float], most: dict[str, float]) -> dict[str, float]:
    """Return what a part costs, by the difference of two jobs, and where a cluster would be limited by its driver."""
    more = {name: most[name] - least[name] for name in most}
    driver_ms = 1e3 * more["driver_s"] / more["parts"]
    kib = 1024 * more["driver_mib"] / more["parts"]
    limit = 1e3 * _PART_ROWS / driver_ms if driver_ms > 0 else 0.0
    return {
        "seconds_per_million_rows": round(1e6 * more["seconds"] / more["rows"], 1),
        "start_and_end_s": round(least["seconds"] - least["rows"] * more["seconds"] / more["rows"], 1),
        "driver_ms_per_part": round(driver_ms, 2),
        "ray_ms_per_part": round(1e3 * more["ray_s"] / more["parts"], 2),
        "driver_kib_per_part": round(kib, 1),
        "result_bytes_per_row": most["result_bytes_per_row"],
        "plan_bytes_per_part": round(more["plan_bytes"] / more["parts"], 1),
        "images_per_s_at_which_the_driver_is_full": round(limit),
        f"the_same_for_each_core_of_{_NODES}_nodes_with_{_CORES}": round(limit / (_NODES * _CORES), 1),
        "driver_mib_more_for_100_million_rows": round(kib * 1e8 / _PART_ROWS / 1024),
    }


def _plain_rate(job: BenchJob, source: Path) -> float:
    """Return images per second of processes that decode and compute, each its part of the rows."""
    context = multiprocessing.get_context("spawn")
    # All begin together, when the slowest has loaded the graph.
    barrier, results = context.Barrier(job.workers), context.SimpleQueue()
    processes = [
        context.Process(target=_loop, args=(job.repository, source, place, job.workers, barrier, results))
        for place in range(job.workers)
    ]
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            time.sleep(0.05)
            if any(process.exitcode for process in processes):
                raise ServerError("a process of the plain loop failed")
        spans = [results.get() for _ in processes]
    finally:
        for process in processes:
            process.kill()
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
