"""Kill a node and the driver of a job on a cluster of three nodes, and compare its results with a server's."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plurum.benchmarks.claims.scoring.jobs import BenchJob, wait_for_images, write_images
from plurum.benchmarks.tools.command import Say
from plurum.benchmarks.tools.servers import PlurumProcess
from plurum.client import Answer, EnsembleClient, Prediction
from plurum.errors import needs_extra

__all__ = ["measure_faults"]

_NODES = 3
_OBJECT_BYTES = 100 << 20
# Of probabilities: batches of another size are rounded otherwise.
_TOLERANCE = 1e-4


def measure_faults(job: BenchJob, images: int, say: Say) -> dict[str, Any]:
    """Return what a job has lost, repeated, and answered otherwise than a server.

    Args:
        job: Repository and folder.
        images: Number of images.
        say: Receives one line about what is being done.
    """
    source, out = job.place / "faults.parquet", job.place / "faults"
    write_images(source, images)
    part_rows, start_s = str(max(10, images // 100)), time.monotonic()
    with _cluster() as (address, cluster):
        options = ("--address", address, "--part-rows", part_rows)
        say("a job on three nodes")
        driver = job.start(source, out, *options)
        node_at = wait_for_images(out, images // 4, driver)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        say("a node is killed")
        driver_at = wait_for_images(out, images // 2, driver)
        os.kill(driver.pid, signal.SIGKILL)
        driver.communicate()
        say("the driver is killed, and started again")
        job.end(job.start(source, out, *options))
    took_s = time.monotonic() - start_s
    say("a server of the same repository")
    counts, different = _compare(job, source, out)
    return {
        "images": images,
        "node_killed_after": node_at,
        "driver_killed_after": driver_at,
        "lost": images - len(counts),
        "repeated": sum(counts.values()) - len(counts),
        "different_from_served": different,
        "seconds": round(took_s, 1),
    }


@contextmanager
def _cluster() -> Iterator[tuple[str, Any]]:
    """Start a cluster, and yield its address and Ray's handle of it; end its processes."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with needs_extra("ray", "ray.cluster_utils"):
        from ray.cluster_utils import Cluster
    about = {"num_cpus": 1, "object_store_memory": _OBJECT_BYTES, "include_dashboard": False}
    cluster: Any = Cluster(initialize_head=True, head_node_args=about)
    try:
        for _ in range(_NODES - 1):
            cluster.add_node(**about)
        yield cluster.address, cluster
    finally:
        cluster.shutdown()


def _compare(job: BenchJob, source: Path, out: Path) -> tuple[Counter[str], int]:
    """Return how often each image is in the results, and how many differ from a server's predictions."""
    import pyarrow.dataset as ds
    from pyarrow import parquet

    rows = ds.dataset(out, format="parquet").to_table().to_pylist()
    contents = parquet.read_table(source).to_pydict()
    with PlurumProcess("serve", job.repository) as server, EnsembleClient(server.urls["grpc"]) as client:
        answers = dict(zip(contents["path"], client.stream(contents["bytes"]), strict=True))
    different = 0
    for row in rows:
        answer = answers[row["path"]]
        different += not _is_alike(row, answer)
    return Counter(row["path"] for row in rows), different


def _is_alike(row: dict[str, Any], answer: Answer) -> bool:
    if not isinstance(answer, Prediction) or (row["label"], row["review"]) != (answer.label, answer.review):
        return False
    return all(abs(row[f"p_{name}"] - value) < _TOLERANCE for name, value in answer.probabilities.items())
