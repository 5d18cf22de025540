"""Check that serving has not become more costly than it was.

    python -m plurum.benchmarks.claims.guard
    python -m plurum.benchmarks.claims.guard --calibrate 20

Measure the cost of serving two small members, so that everything besides computing shows. Costs are ratios in which the
speed of the machine and most of its other work cancel out; lower is better. Both sides of a ratio are measured
alternately, in one process, within milliseconds or within a second. The lower quartile counts, which bursts of other
work move little.

Compare each ratio with a limit. The limits come from `guard.json`, which `--calibrate` writes: the ratios of twenty
runs, each with a server of its own. A limit exceeds the worst run by the distance between the best and the worst.

A ratio beyond its limit is measured again, up to three times in all, and is a regression only if it was beyond each
time. A burst of other work is therefore no regression; a regression within the noise is not found.

On another processor, or with another number of cores than in `guard.json`, limits are 1.5 times as high: ratios cancel
speed, but not every difference between machines.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from tritonclient.grpc import InferenceServerClient, InferInput

from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.load import pixel_rate
from plurum.benchmarks.tools.local import Runner, onnx_runner, rate_in_threads, run_in_turn
from plurum.benchmarks.tools.machine import Machine, processor_s, versions
from plurum.benchmarks.tools.members import random_repository
from plurum.benchmarks.tools.requests import random_pixels
from plurum.benchmarks.tools.servers import server_of
from plurum.errors import DataError
from plurum.files import write_text
from plurum.serving import Server, usable_cores
from plurum.spec import INPUT_PIXELS, Metadata, read_ensemble
from plurum.voting import VotingRule, decide, softmax

__all__ = ["NOISE", "RATIOS", "Noise", "cost_ratios", "guard", "guarded_repository", "judge", "read_noise"]

NOISE = Path(__file__).parent / "guard.json"
_SIZE = 64
_ATTEMPTS = 3
_ELSEWHERE = 1.5
# Meaning of each ratio, by name.
RATIOS = {
    "latency": "latency of one client, over the members called in this process one after the other",
    "voter": "computing time of the voter for one request, over votes computed in this process",
    "throughput": "images per second in this process, one image per core, over those served to four clients",
    "processor": "processor time of all the server's processes per image, over that of the members in this process",
}
_MODEL = "ensemble_pixels"
_ANSWERS, _WARM_UP = 150, 20
_PAIRS, _TURN_S, _CLIENTS = 12, 0.15, 4
_QUARTILE = 25
_VOTES = 4

Ratios = dict[str, float]


class Noise(Metadata):
    """Ratios of the calibration, about twenty runs.

    Attributes:
        runs: Ratios of each run.
        machine: Machine of the runs; the load average is that before the first.
        versions: Package versions of the runs.
    """

    runs: tuple[Ratios, ...]
    machine: Machine
    versions: dict[str, str]

    def limits(self, here: Machine) -> Ratios:
        """Return, by ratio, the limit on the machine `here`; a higher ratio is a regression."""
        alike = all(here[key] == self.machine[key] for key in ("processor", "cores"))
        found = {}
        for name in RATIOS:
            values = [run[name] for run in self.runs]
            found[name] = (2 * max(values) - min(values)) * (1.0 if alike else _ELSEWHERE)
        return found


def guard(
    work: command.WorkFolder = Path("runs/guard"),
    repository: Annotated[
        Path | None,
        typer.Option(help="Repository to measure instead, a copy of WORK/model_repository.", metavar="REPO"),
    ] = None,
    calibrate: Annotated[int, typer.Option(min=0, help="Measure this many times and write guard.json.")] = 0,
) -> None:
    """Measure the ratios and compare them with their limits; exit code 1 if serving has become more costly."""
    with command.measurement("members") as (say, state):
        served = repository or guarded_repository(work, say)
        if calibrate:
            noise = _calibrate(served, calibrate, state, say)
            write_text(NOISE, noise.model_dump_json(indent=1) + "\n")
            Console(stderr=True).print(_table(noise, None))
            return
        noise = read_noise()
        limits = noise.limits(state)
        say("measuring")
        measured, lost = judge(lambda: cost_ratios(served), limits)
    lines = [f"more costly than before: {', '.join(lost)}"] if lost else []
    command.print_report(
        {"ratios": measured, "limits": limits, "lost": lost}, state, _table(noise, (measured, limits)), *lines
    )
    if lost:
        raise typer.Exit(1)


def guarded_repository(work: Path, progress: command.Say = lambda _: None) -> Path:
    """Return the repository to measure, exported once into `work`."""
    return random_repository(work, command.TINY_ARCHS, _SIZE, 16, progress, form="chain")


def judge(measure: Callable[[], Ratios], limits: Ratios) -> tuple[list[Ratios], list[str]]:
    """Measure up to three times; return every measurement, and the ratios that were beyond their limits in all."""
    measured: list[Ratios] = []
    lost = list(limits)
    while lost and len(measured) < _ATTEMPTS:
        measured.append(measure())
        lost = [name for name in lost if measured[-1][name] > limits[name]]
    return measured, lost


def read_noise(path: Path = NOISE) -> Noise:
    """Return the ratios of the last calibration.

    Raises:
        DataError: The file is missing or broken.
    """
    try:
        return Noise.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise DataError(
            f"{path} is missing or broken; python -m plurum.benchmarks.claims.guard --calibrate 20 writes it"
        ) from error


def cost_ratios(repository: Path) -> dict[str, float]:
    """Serve `repository`, whose members ONNX Runtime computes, and return each of `RATIOS`.

    Raises:
        MetadataError: The repository has no `ensemble.json`.
        ServerError: The server does not start.
    """
    ensemble = read_ensemble(repository / "ensemble.json")
    pixels = random_pixels(ensemble.image.height, ensemble.image.width)
    graphs = [repository / member.name / "1" / "model.onnx" for member in ensemble.members]
    local = run_in_turn([onnx_runner(graph, 1) for graph in graphs])
    with server_of(repository) as server:
        return {
            **_one_by_one(server, local, pixels, ensemble.rule, len(ensemble.classes)),
            **_many_at_once(server, local, pixels),
        }


def _one_by_one(
    server: Server, local: Runner, pixels: npt.NDArray[np.uint8], rule: VotingRule, classes: int
) -> dict[str, float]:
    """Alternate a request of one client, the same members in this process, and some votes in this process."""
    tensor = InferInput(INPUT_PIXELS, list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    logits = np.random.default_rng(0).normal(size=(1, len(rule.weights), classes)).astype(np.float32)

    def votes() -> None:
        for _ in range(_VOTES):
            decide(softmax(logits), rule)

    served, members, voted, voter = [], [], [], []
    with InferenceServerClient(server.urls.grpc) as client:
        before = _statistics(client, "voter").compute_infer.ns
        for _ in range(_ANSWERS + _WARM_UP):
            served.append(_took_s(lambda: client.infer(_MODEL, [tensor])))
            after = _statistics(client, "voter").compute_infer.ns
            voter.append((after - before) / 1e9)
            before = after
            members.append(_took_s(lambda: local(pixels)))
            voted.append(_took_s(votes))
    return {
        "latency": _quartile(served[_WARM_UP:]) / _quartile(members[_WARM_UP:]),
        "voter": _quartile(voter[_WARM_UP:]) / (_quartile(voted[_WARM_UP:]) / _VOTES),
    }


def _many_at_once(server: Server, local: Runner, pixels: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Alternate four clients and the same members in this process with one image per core."""
    cores = usable_cores()
    pixel_rate(server.urls.grpc, _MODEL, pixels, _CLIENTS, _TURN_S)
    throughput, processor = [], []
    with InferenceServerClient(server.urls.grpc) as client:
        for _ in range(_PAIRS):
            spent, count = _processor_s(server), _statistics(client, _MODEL).success.count
            rate = pixel_rate(server.urls.grpc, _MODEL, pixels, _CLIENTS, _TURN_S)
            each = (_processor_s(server) - spent) / (_statistics(client, _MODEL).success.count - count)
            start = time.process_time(), time.perf_counter()
            here = rate_in_threads([local] * cores, pixels, _TURN_S)
            # The number of images follows from the rate.
            images = here * (time.perf_counter() - start[1])
            throughput.append(here / rate)
            processor.append(each / ((time.process_time() - start[0]) / images))
    return {"throughput": _quartile(throughput), "processor": _quartile(processor)}


def _took_s(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _quartile(values: list[float]) -> float:
    return float(np.percentile(values, _QUARTILE))


def _statistics(client: Any, model: str) -> Any:
    (found,) = client.get_inference_statistics(model).model_stats
    return found.inference_stats


def _processor_s(server: Server) -> float:
    """Return the processor time that Triton and the processes of its models have used, seconds."""
    return sum(processor_s(process) for process in server.processes())


def _calibrate(repository: Path, times: int, state: Machine, progress: command.Say) -> Noise:
    runs = []
    for number in range(times):
        progress(f"run {number + 1} of {times}")
        runs.append({name: round(value, 4) for name, value in cost_ratios(repository).items()})
    return Noise(runs=tuple(runs), machine=state, versions=versions())


def _table(noise: Noise, found: tuple[list[Ratios], Ratios] | None) -> Table:
    heads = ["median", "lowest", "highest", "limit", *(["here"] if found else [])]
    table = command.new_table("cost", *heads, title=f"{len(noise.runs)} runs", box=None)
    for name, meaning in RATIOS.items():
        values = [run[name] for run in noise.runs]
        limits = found[1] if found else noise.limits(noise.machine)
        cells = [statistics.median(values), min(values), max(values), limits[name]]
        if found:
            cells.append(found[0][-1][name])
        table.add_row(f"{name}: {meaning}", *(f"{value:.2f}" for value in cells))
    return table


if __name__ == "__main__":
    command.run_as_program(guard)
