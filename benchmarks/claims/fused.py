"""Compare the fused graph with the chain, for one client and for many: images per second, and how long each one waits.

    python -m plurum.benchmarks.claims.fused

Four ways to serve the same members, on servers that run side by side in one run:

- chain: a model per member, then the voter, as installed
- fused: members and vote in one graph, as installed. Each core has an instance, and an instance that computes alone
  uses all cores.
- fused, a core each: the same without the right to all cores
- fused, all cores: one instance, which always uses all cores

Clients send one image per request over gRPC, again as soon as they have a response. Every way gets a warm-up that does
not count, then turns in an order that changes; figures are medians over rounds. Idle servers take no processor time.

Not measured: accuracy (weights are random); a busy machine (the report states the load average).
"""

from __future__ import annotations

import shutil
import statistics
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import typer
from tritonclient.grpc import model_config_pb2 as pb

from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.load import LoadFigures, average_of, closed_loop, pixel_request
from plurum.benchmarks.tools.members import random_repository
from plurum.benchmarks.tools.requests import random_pixels
from plurum.benchmarks.tools.servers import server_of
from plurum.benchmarks.tools.turns import in_turns
from plurum.export.repository.configs import FUSED, text_of
from plurum.export.settings import Backend
from plurum.serving import usable_cores
from plurum.serving.triton.staging import read_config
from plurum.spec import read_ensemble

__all__ = ["fused"]

_CHAIN, _FUSED, _EACH, _ALL = "chain", "fused", "fused, a core each", "fused, all cores"
_CLIENTS = [1, 2, 8, 32]
_WARM_UP_S = 2.0


def fused(
    work: command.WorkFolder = Path("runs/benchmark"),
    arch: command.Architectures = command.ARCHS,
    size: command.ImageSize = 224,
    clients: Annotated[list[int], typer.Option(min=1, help="Clients at the same time; repeat for several.")] = _CLIENTS,
    backend: Annotated[
        Literal["onnxruntime", "openvino"], typer.Option(help="Library that computes the fused graph.")
    ] = "openvino",
    rounds: command.Rounds = 5,
    seconds: command.Seconds = 6.0,
) -> None:
    """Measure each way: a table on standard error, one line of JSON on standard output."""
    with command.measurement("members") as (say, state), ExitStack() as stack:
        repository = _repository(random_repository(work, arch, size, 16, say), work / "both", backend)
        urls = {}
        for number, way in enumerate((_CHAIN, _FUSED, _EACH, _ALL)):
            say(f"starting the server of: {way}")
            folder = work / f"way_{number}"
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            _write_way(repository, folder, way)
            urls[way] = stack.enter_context(server_of(folder)).urls.grpc
        pixels, found = random_pixels(size, size), dict[tuple[str, int], list[LoadFigures]]()
        cases = [(way, number) for number in clients for way in urls]
        requests = {way: [pixel_request(_model_of(way), pixels)] for way in urls}
        for way, url in urls.items():
            closed_loop(url, requests[way], max(clients), _WARM_UP_S)
        for turn, (way, number) in in_turns(cases, rounds):
            say(f"round {turn} of {rounds}: {way}, {number} clients")
            found.setdefault((way, number), []).append(closed_loop(urls[way], requests[way], number, seconds))
    figures = {way: {number: average_of(found[way, number], statistics.median) for number in clients} for way in urls}
    table = command.new_table("", *(f"{number} clients" for number in clients), title="images/s, p50 and p99 in ms")
    for way, each in figures.items():
        table.add_row(way, *(f"{one.images_per_s:.1f}, {one.p50_ms:.0f}, {one.p99_ms:.0f}" for one in each.values()))
    report = {way: {number: one.model_dump() for number, one in each.items()} for way, each in figures.items()}
    settings = {"members": arch, "size": size, "backend": backend, "rounds": rounds, "seconds": seconds}
    command.print_report({**settings, "figures": report}, state, table, *_comparisons(figures))


def _comparisons(figures: dict[str, dict[int, LoadFigures]]) -> list[str]:
    """Return the figures of the fused graph beside the best of the other ways."""
    lines = []
    for number, own in figures[_FUSED].items():
        others = [each[number] for way, each in figures.items() if way != _FUSED]
        rate, p99 = max(one.images_per_s for one in others), min(one.p99_ms for one in others)
        lines.append(
            f"{number} clients: [bold]{own.images_per_s / rate:.2f}[/bold] times the images of the best other way, "
            f"[bold]{own.p99_ms / p99:.2f}[/bold] times the p99 of the evenest"
        )
    return lines


def _model_of(way: str) -> str:
    return "ensemble_pixels" if way == _CHAIN else "ensemble_fused"


def _repository(plain: Path, folder: Path, backend: Backend) -> Path:
    """Write a repository of the same members that has the chain and the fused graph; return its folder."""
    from plurum.export import repository_from_onnx

    ensemble = read_ensemble(plain / "ensemble.json")
    graphs = {member.name: plain / member.name / "1" / "model.onnx" for member in ensemble.members}
    repository_from_onnx(ensemble, graphs, folder, 16, form="chain", fused=True, backend=backend)
    return folder


def _write_way(repository: Path, folder: Path, way: str) -> None:
    """Write the repository of one way, without the models that it does not use."""
    shutil.rmtree(folder, ignore_errors=True)
    only_fused = {"ensemble_fused", FUSED, "labels"}
    config = read_config(repository / FUSED)
    cores = usable_cores()
    if way == _ALL:
        config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_CPU, count=1)
    if way == _EACH:
        config.parameters["threads_alone"].string_value = str(max(1, cores // min(cores, 4)))

    def unused(parent: str, names: list[str]) -> set[str]:
        models = {path.parent.name for path in repository.glob("*/config.pbtxt")}
        kept = models - only_fused if way == _CHAIN else only_fused
        return models.intersection(names) - kept if Path(parent) == repository else set()

    shutil.copytree(repository, folder, ignore=unused)
    if way != _CHAIN:
        (folder / FUSED / "config.pbtxt").write_text(text_of(config), encoding="utf-8")


if __name__ == "__main__":
    command.run_as_program(fused)
