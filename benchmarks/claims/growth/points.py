"""Serving the points of an axis, and asking each in turn."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tritonclient.grpc import InferenceServerClient

from plurum.benchmarks.claims.growth.result import Axis, Point, TurnOfGrowth
from plurum.benchmarks.peers.asking import Door, Task, asked_elsewhere
from plurum.benchmarks.peers.material import jpegs
from plurum.benchmarks.peers.running import PlurumServer
from plurum.benchmarks.tools.members import random_repository
from plurum.files import write_bytes
from plurum.serving import Server, ServerSettings
from plurum.spec import Ensemble, read_ensemble

__all__ = ["ARCH", "AXES", "measure_growth"]

ARCH = "test_resnet"
AXES: dict[Axis, tuple[int, ...]] = {
    "members": (1, 2, 3, 4, 5),
    "classes": (2, 10, 100, 1000),
    "size": (64, 128, 256, 512),
    "clients": (1, 2, 4, 8, 16, 32, 64),
}
_DOOR = Door(kind="grpc", path="ensemble")


@dataclass(frozen=True)
class _Served:
    """A running server of some members."""

    server: Server
    running: PlurumServer
    ensemble: Ensemble
    images: tuple[Path, ...]


def measure_growth(
    axis: Axis, values: Sequence[int], work: Path, rounds: int, seconds: float, progress: Callable[[str], None]
) -> list[TurnOfGrowth]:
    """Return the turns of every value of an axis, the other three being as `Point` has them.

    Args:
        axis: What grows.
        values: Its values, each once.
        work: Keeps graphs and images.
        rounds: Turns of every value.
        seconds: Length of a turn.
        progress: Told what is being done, a line each.

    Raises:
        ServerError: a server does not start, or does not answer.
    """
    points = {value: Point.model_validate({axis: value}) for value in values}
    with ExitStack() as stack:
        servers: dict[Point, _Served] = {}
        for point in points.values():
            # Clients are no server's property.
            kind = point.model_copy(update={"clients": 1})
            if kind not in servers:
                progress(f"{axis}: serving {kind.members} members, {kind.classes} classes, {kind.size} pixels")
                servers[kind] = _served(stack, kind, work, progress)
        turns = []
        order = random.Random(0)  # noqa: S311 - an order, not a secret
        for turn in range(rounds):
            for value in order.sample(list(points), len(points)):
                progress(f"{axis}: {value}, round {turn + 1} of {rounds}")
                served = servers[points[value].model_copy(update={"clients": 1})]
                turns.append(_turn(served, axis, points[value], seconds))
    return turns


def _served(stack: ExitStack, point: Point, work: Path, progress: Callable[[str], None]) -> _Served:
    """Start a server, to be ended by the stack, and pause it."""
    folder = work / f"{point.members}-{point.classes}-{point.size}"
    repository = random_repository(folder, [ARCH] * point.members, point.size, 16, progress, classes=point.classes)
    images = []
    for index, encoded in enumerate(jpegs(point.size)):
        images.append(folder / "images" / f"{index}.jpg")
        write_bytes(images[-1], encoded)
    server = stack.enter_context(Server(repository, ServerSettings(http_port=0, grpc_port=0, metrics_port=0)))
    running = PlurumServer(server)
    # Triton ends well only if it runs.
    stack.callback(running.resume)
    running.pause()
    return _Served(server, running, read_ensemble(repository / "ensemble.json"), tuple(images))


def _turn(served: _Served, axis: Axis, point: Point, seconds: float) -> TurnOfGrowth:
    task = Task(
        door=_DOOR,
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
            said = asked_elsewhere(task)
            after = _busy_s(client, served.ensemble)
    finally:
        served.running.pause()
    images = after.pop("images") - before.pop("images")
    busy = {part: 1000 * (after[part] - before[part]) / images for part in after}
    return TurnOfGrowth(axis=axis, point=point, busy_ms=busy, **said)


def _busy_s(client: Any, ensemble: Ensemble) -> dict[str, float]:
    """Return how long instances have computed since the start, seconds, by part; and how many images were voted on.

    By Triton's statistics of executions: those of requests count a batch once for each request in it.
    """
    counted = {one.name: one for one in client.get_inference_statistics().model_stats}
    computed = {name: sum(batch.compute_infer.ns for batch in one.batch_stats) / 1e9 for name, one in counted.items()}
    return {
        "decoding": computed["preprocess"],
        "members": sum(computed[member.name] for member in ensemble.members),
        "voter": computed["voter"],
        "images": counted["voter"].inference_count,
    }
