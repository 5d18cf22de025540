"""Measure how the cost of a prediction grows with members, classes, the size of images, and clients.

    python -m plurum.benchmarks.claims.growth --out runs/growth

One quantity grows at a time while the others stay: three members, two classes, 64 x 64 pixels, eight clients. Measured
at each point: images per second through `ensemble` (JPEG input) over gRPC; latency; and, from Triton's statistics of
the same requests, how long instances computed per image, by part.

All servers of an axis start and are paused, except the one whose turn it is, in an order that changes; figures are
medians over rounds. All members are of the smallest architecture that timm has, so that everything besides the members'
computing shows; with members of a usual size, decoding and vote are a far smaller fraction. Not measured: a network,
other architectures, a busy machine (the report states the load average).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from tritonclient.grpc import InferenceServerClient

from plurum.benchmarks.claims.growth.plots import plot_from_growth
from plurum.benchmarks.claims.growth.result import Axis, GrowthPoint, GrowthResult, GrowthTurn, csv_from_growth
from plurum.benchmarks.peers.load import Endpoint, LoadTask, run_elsewhere
from plurum.benchmarks.peers.processes import PlurumServer
from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.machine import versions
from plurum.benchmarks.tools.members import random_repository
from plurum.benchmarks.tools.requests import coloured_jpegs, write_images
from plurum.benchmarks.tools.servers import server_of
from plurum.benchmarks.tools.turns import in_turns
from plurum.errors import SettingsError
from plurum.spec import Ensemble, read_ensemble

__all__ = ["growth"]

_ARCH = "test_resnet"
_AXES: dict[Axis, tuple[int, ...]] = {
    "members": (1, 2, 3, 4, 5),
    "classes": (2, 10, 100, 1000),
    "size": (64, 128, 256, 512),
    "clients": (1, 2, 4, 8, 16, 32, 64),
}
_ENDPOINT = Endpoint(kind="grpc", path="ensemble")
_FILES = ("growth.json", "growth.csv", "growth.png")


def growth(
    out: Annotated[Path, typer.Option(help="Folder for results, written atomically.")] = Path("runs/growth"),
    work: command.WorkFolder = Path("runs/growth-work"),
    axis: Annotated[list[str] | None, typer.Option(help="Only this axis; repeat for more.", show_default="all")] = None,
    rounds: command.Rounds = 3,
    seconds: command.Seconds = 2.0,
    quick: Annotated[bool, typer.Option("--quick", help="Measure only the ends of each axis.")] = False,
) -> None:
    """Measure how cost grows: a table on standard output; growth.json, growth.csv and growth.png in a folder."""
    if unknown := [name for name in axis or () if name not in _AXES]:
        raise SettingsError(f"--axis: expected one of {', '.join(_AXES)}, got {unknown[0]!r}.")
    command.check_results_folder(out, _FILES)
    turns = list[GrowthTurn]()
    with command.measurement("members") as (say, state):
        for name, values in _AXES.items():
            if not axis or name in axis:
                chosen = (values[0], values[-1]) if quick else values
                turns += _measure(name, chosen, work, rounds, seconds, say)
    result = GrowthResult(
        arch=_ARCH, turns=tuple(turns), rounds=rounds, seconds=seconds, machine=state, versions=versions()
    )
    texts = (result.model_dump_json(indent=1) + "\n", csv_from_growth(result))
    command.write_results(out, dict(zip(_FILES, (*texts, plot_from_growth(result)), strict=True)))
    _show(result)
    typer.echo(f"result: {out}")


class _PausedServer(NamedTuple):
    """A server of one point, which runs during its turns only."""

    server: PlurumServer
    ensemble: Ensemble
    images: tuple[str, ...]


def _measure(
    axis: Axis, values: Sequence[int], work: Path, rounds: int, seconds: float, say: command.Say
) -> list[GrowthTurn]:
    """Return the turns of every value of an axis; the other three axes stay at the defaults of `GrowthPoint`."""
    points = {value: GrowthPoint.model_validate({axis: value}) for value in values}
    with ExitStack() as stack:
        servers: dict[GrowthPoint, _PausedServer] = {}
        for point in points.values():
            # The number of clients does not change the server.
            kind = point.model_copy(update={"clients": 1})
            if kind not in servers:
                say(f"{axis}: serving {kind.members} members, {kind.classes} classes, {kind.size} pixels")
                servers[kind] = _start_paused(stack, kind, work, say)
        turns = []
        for turn, value in in_turns(list(points), rounds):
            say(f"{axis}: {value}, round {turn} of {rounds}")
            served = servers[points[value].model_copy(update={"clients": 1})]
            turns.append(_turn(served, axis, points[value], seconds))
    return turns


def _start_paused(stack: ExitStack, point: GrowthPoint, work: Path, say: command.Say) -> _PausedServer:
    """Start a server, which the stack ends, and pause it."""
    folder = work / f"{point.members}-{point.classes}-{point.size}"
    archs = [_ARCH] * point.members
    repository = random_repository(folder, archs, point.size, 16, say, form="chain", classes=point.classes)
    images = write_images(folder / "images", coloured_jpegs(point.size, point.size))
    server = PlurumServer(stack.enter_context(server_of(repository)))
    # A paused Triton would not end.
    stack.callback(server.resume)
    server.pause()
    ensemble = read_ensemble(repository / "ensemble.json")
    return _PausedServer(server, ensemble, tuple(str(path.resolve()) for path in images))


def _turn(served: _PausedServer, axis: Axis, point: GrowthPoint, seconds: float) -> GrowthTurn:
    server, ensemble, images = served
    address = server.address(_ENDPOINT.kind)
    task = LoadTask(_ENDPOINT, address, images, ensemble.classes, ensemble.image, point.clients, seconds)
    server.resume()
    try:
        with InferenceServerClient(address) as client:
            before = _busy_s(client, ensemble)
            figures = run_elsewhere(task)
            after = _busy_s(client, ensemble)
    finally:
        server.pause()
    count = after.pop("images") - before.pop("images")
    busy = {part: 1000 * (after[part] - before[part]) / count for part in after}
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


def _show(result: GrowthResult) -> None:
    table = command.new_table("", "images/s", "p50 ms", "ms per image: decoding", "members", "voter", box=None)
    for axis in result.axes():
        for value in result.values(axis):
            busy = (f"{result.busy_ms(axis, value, part):.3f}" for part in ("decoding", "members", "voter"))
            rate, p50_ms = f"{result.rate(axis, value):.1f}", f"{result.p50_ms(axis, value):.2f}"
            table.add_row(_words_for(axis, value), rate, p50_ms, *busy)
    Console(width=120).print(table)
    state = result.machine
    typer.echo(f"medians of {result.rounds} turns of {result.seconds:g} s; members: {result.arch}, random weights")
    typer.echo(f"{state['processor']}, {state['cores']} cores; load average before: {state['load_1min']}")


def _words_for(axis: Axis, value: int) -> str:
    named = {"members": "member", "classes": "class", "clients": "client"}
    if axis == "size":
        return f"{value} x {value} pixels"
    return f"{value} {named[axis] if value == 1 else axis}"


if __name__ == "__main__":
    command.run_as_program(growth)
