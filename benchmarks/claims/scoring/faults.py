"""Kill a node and the driver of a job on a cluster of three nodes, and compare its results with a server's."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from plurum.benchmarks.claims.scoring.jobs import BenchJob, write_images
from plurum.benchmarks.tools.servers import PlurumProcess
from plurum.client import Answer, EnsembleClient, Prediction
from plurum.errors import ServerError, needs_extra

__all__ = ["measure_faults"]

_NODES = 3
_OBJECT_BYTES = 100 << 20
# Of probabilities: batches of another size are rounded otherwise.
_TOLERANCE = 1e-4
# Part of the name that Ray Data gives to the process of a worker.
_WORKER = "MapWorker"


def measure_faults(job: BenchJob, images: int) -> dict[str, Any]:
    """Return what a job has lost, repeated, and answered otherwise than a server.

    Args:
        job: Repository and folder.
        images: Number of images.

    Raises:
        ServerError: the job ended before both were killed, or failed.
    """
    source, out = job.place / "faults.parquet", job.place / "faults"
    write_images(source, images)
    start_s = time.monotonic()
    with _cluster() as (address, cluster):
        options = ("--address", address, "--part-rows", str(max(10, images // 200)))
        with job.running(source, out, *options) as driver:
            node_at = job.wait_for_images(out, images // 4, images, driver)
            cluster.remove_node(_node_at_work(cluster), allow_graceful=False)
            driver_at = job.wait_for_images(out, images // 2, images, driver)
            driver.kill()
        job.score(source, out, images, *options)
    took_s = time.monotonic() - start_s
    job.say("a server of the same repository")
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


def _node_at_work(cluster: Any) -> Any:
    """Return a node, not the head, that has a worker of the job."""
    for node in cluster.worker_nodes:
        for one in node.all_processes["raylet"]:
            children = psutil.Process(one.process.pid).children(recursive=True)
            if any(_WORKER in " ".join(child.cmdline()) for child in children):
                return node
    raise ServerError("no node has a worker of the job: give more images, or a larger --size")


@contextmanager
def _cluster() -> Iterator[tuple[str, Any]]:
    """Start a cluster, and yield its address and Ray's handle of it; end its processes.

    Raises:
        ServerError: it did not start.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with needs_extra("ray", "ray.cluster_utils"):
        from ray.cluster_utils import Cluster
    about = {"num_cpus": 1, "object_store_memory": _OBJECT_BYTES, "include_dashboard": False}
    cluster: Any = Cluster()
    try:
        try:
            for _ in range(_NODES):
                cluster.add_node(**about)
        # Ray raises errors of many kinds, such as on a busy machine.
        except Exception as error:
            raise ServerError(f"a cluster of Ray did not start: {str(error).splitlines()[0]}") from error
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
