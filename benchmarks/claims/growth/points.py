"""Serve the points of an axis, and measure each in turn."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclient.grpc import InferenceServerClient

from plurum.benchmarks.claims.growth.result import Axis, GrowthPoint, GrowthTurn
from plurum.benchmarks.peers.load import Endpoint, LoadTask, run_elsewhere
from plurum.benchmarks.peers.processes import PlurumServer
from plurum.benchmarks.tools.members import random_repository
from plurum.benchmarks.tools.requests import coloured_jpegs, write_images
from plurum.benchmarks.tools.servers import server_of
from plurum.serving import Server
from plurum.spec import Ensemble, read_ensemble

__all__ = ["ARCH", "AXES", "measure_growth"]

ARCH = "test_resnet"
AXES: dict[Axis, tuple[int, ...]] = {
    "members": (1, 2, 3, 4, 5),
    "classes": (2, 10, 100, 1000),
    "size": (64, 128, 256, 512),
    "clients": (1, 2, 4, 8, 16, 32, 64),
}
_ENDPOINT = Endpoint(kind="grpc", path="ensemble")


@dataclass(frozen=True)
class _PausedServer:
    """A server of one point, which runs during its turns only."""

    server: Server
    running: PlurumServer
    ensemble: Ensemble
    images: tuple[Path, ...]


def measure_growth(
    axis: Axis, values: Sequence[int], work: Path, rounds: int, seconds: float, progress: Callable[[str], None]
) -> list[GrowthTurn]:
    """Return the turns of every value of an axis; the other three axes stay at the defaults of `GrowthPoint`.

    Args:
        axis: Quantity that grows.
        values: Values on the axis, each once.
        work: Folder that keeps graphs and images.
        rounds: Turns of every value.
        seconds: Length of a turn.
        progress: Receives one line about each step.

    Raises:
        ServerError: A server does not start, or does not respond.
    """
    points = {value: GrowthPoint.model_validate({axis: value}) for value in values}
    with ExitStack() as stack:
        servers: dict[GrowthPoint, _PausedServer] = {}
        for point in points.values():
            # The number of clients does not change the server.
            kind = point.model_copy(update={"clients": 1})
            if kind not in servers:
                progress(f"{axis}: serving {kind.members} members, {kind.classes} classes, {kind.size} pixels")
                servers[kind] = _start_paused(stack, kind, work, progress)
        turns = []
        order = random.Random(0)  # noqa: S311 - an order, not a secret
        for turn in range(rounds):
            for value in order.sample(list(points), len(points)):
                progress(f"{axis}: {value}, round {turn + 1} of {rounds}")
                served = servers[points[value].model_copy(update={"clients": 1})]
                turns.append(_turn(served, axis, points[value], seconds))
    return turns


def _start_paused(stack: ExitStack, point: GrowthPoint, work: Path, progress: Callable[[str], None]) -> _PausedServer:
    """Start a server, which the stack ends, and pause it."""
    folder = work / f"{point.members}-{point.classes}-{point.size}"
    repository = random_repository(folder, [ARCH] * point.members, point.size, 16, progress, classes=point.classes)
    images = write_images(folder / "images", coloured_jpegs(point.size, point.size))
    server = stack.enter_context(server_of(repository))
    running = PlurumServer(server)
    # A paused Triton would not end.
    stack.callback(running.resume)
    running.pause()
    return _PausedServer(server, running, read_ensemble(repository / "ensemble.json"), images)


def _turn(served: _PausedServer, axis: Axis, point: GrowthPoint, seconds: float) -> GrowthTurn:
    task = LoadTask(
        endpoint=_ENDPOINT,
        address=served.server.urls.grpc,
        images=tuple(str(path.resolve()) for path in served.images),
        classes=served.ensemble.classes,
        image=served.ensemble.image,
        clients=point.clients,
        seconds=seconds,
    )
    served.running.resume()
    try:
        with InferenceServerClient(served.server.urls.grpc) as client:
            before = _busy_s(client, served.ensemble)
            figures = run_elsewhere(task)
            after = _busy_s(client, served.ensemble)
    finally:
        served.running.pause()
    images = after.pop("images") - before.pop("images")
    busy = {part: 1000 * (after[part] - before[part]) / images for part in after}
    return GrowthTurn(axis=axis, point=point, busy_ms=busy, **figures)


def _busy_s(client: Any, ensemble: Ensemble) -> dict[str, float]:
    """Return the computing time of instances since the start by part, seconds, and the number of images of the voter.

    They come from Triton's statistics of executions: those of requests count a batch once for each request in it.
    """
    counted = {one.name: one for one in client.get_inference_statistics().model_stats}
    computed = {name: sum(batch.compute_infer.ns for batch in one.batch_stats) / 1e9 for name, one in counted.items()}
    return {
        "decoding": computed["preprocess"],
        "members": sum(computed[member.name] for member in ensemble.members),
        "voter": computed["voter"],
        "images": counted["voter"].inference_count,
    }
