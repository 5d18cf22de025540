"""A regression guard: has serving become more costly than it was?

    python -m plurum.benchmarks.claims.guard
    python -m plurum.benchmarks.claims.guard --calibrate 20

It measures the ratios of `guard_ratios` with two small members, so that what is not computing shows, and holds each
against a limit. The limits come from `guard.json`, which `--calibrate` writes: the ratios of twenty runs, each with a
server of its own. A limit lies beyond the worst of them by the whole distance between the best and the worst: what the
machine's noise does not reach in twenty runs, it does not reach twice as far either.

A ratio beyond its limit is measured again, up to three times in all, and is a loss only if it was beyond each time. A
loss is thereby never a burst of something else; one so small that it lies within the noise is not found either.

On another processor, or with another number of cores, than that of `guard.json`, limits are half as much again: ratios
cancel speed, and not everything that makes one machine another.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from plurum.benchmarks.claims.guard_ratios import RATIOS, cost_ratios
from plurum.benchmarks.tools.command import run_as_program
from plurum.benchmarks.tools.machine import machine, versions
from plurum.benchmarks.tools.members import random_repository
from plurum.errors import DataError
from plurum.files import write_text
from plurum.spec import Metadata

__all__ = ["NOISE", "Noise", "guard", "guarded_repository", "judge", "read_noise"]

NOISE = Path(__file__).parent / "guard.json"
_ARCHS, _SIZE = ("test_resnet", "test_byobnet"), 64
_ATTEMPTS = 3
_ELSEWHERE = 1.5

Ratios = dict[str, float]


class Noise(Metadata):
    """What twenty runs or so gave.

    Attributes:
        runs: Each run's ratios.
        machine: What they were taken on; the load is that before the first.
        versions: Of what was measured.
    """

    runs: tuple[Ratios, ...]
    machine: dict[str, str | int | float]
    versions: dict[str, str]

    def limits(self, here: Mapping[str, str | int | float]) -> Ratios:
        """Return, by ratio, what is a loss on the machine `here` when it is exceeded."""
        alike = all(here[key] == self.machine[key] for key in ("processor", "cores"))
        found = {}
        for name in RATIOS:
            values = [run[name] for run in self.runs]
            found[name] = (2 * max(values) - min(values)) * (1.0 if alike else _ELSEWHERE)
        return found


def guard(
    work: Annotated[Path, typer.Option(help="Keeps the exported members for the next run.")] = Path("runs/guard"),
    repository: Annotated[
        Path | None, typer.Option(help="Measure this one, a copy of WORK/model_repository.", metavar="REPO")
    ] = None,
    calibrate: Annotated[int, typer.Option(min=0, help="Measure so many times, and write guard.json.")] = 0,
) -> None:
    """Measure the ratios and hold them against their limits; exit code 1 where serving has become more costly."""
    console = Console(stderr=True)
    with console.status("members") as status:
        served = repository or guarded_repository(work, status.update)
        if calibrate:
            noise = _calibrated(served, calibrate, status.update)
            write_text(NOISE, noise.model_dump_json(indent=1) + "\n")
            console.print(_table(noise, None))
            return
        noise = read_noise()
        limits = noise.limits(machine())
        status.update("measuring")
        measured, lost = judge(lambda: cost_ratios(served), limits)
    console.print(_table(noise, (measured, limits)))
    typer.echo(json.dumps({"ratios": measured, "limits": limits, "lost": lost, "machine": machine()}))
    if lost:
        console.print(f"more costly than it was: {', '.join(lost)}")
        raise typer.Exit(1)


def guarded_repository(work: Path, progress: Callable[[str], None] = lambda _: None) -> Path:
    """Return the repository that is measured, exported once into `work`."""
    return random_repository(work, _ARCHS, _SIZE, 16, progress)


def judge(measure: Callable[[], Ratios], limits: Ratios) -> tuple[list[Ratios], list[str]]:
    """Return every measurement, and the ratios that were beyond their limits in all of them.

    It is measured again while some ratio was beyond each time, three times at most.
    """
    measured: list[Ratios] = []
    lost = list(limits)
    while lost and len(measured) < _ATTEMPTS:
        measured.append(measure())
        lost = [name for name in lost if measured[-1][name] > limits[name]]
    return measured, lost


def read_noise(path: Path = NOISE) -> Noise:
    """Return what the last calibration found.

    Raises:
        DataError: there is none, or it is none.
    """
    try:
        return Noise.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise DataError(
            f"{path} is missing or broken; python -m plurum.benchmarks.claims.guard --calibrate 20 writes it"
        ) from (error)


def _calibrated(repository: Path, times: int, progress: Callable[[str], None]) -> Noise:
    state, runs = machine(), []
    for number in range(times):
        progress(f"run {number + 1} of {times}")
        runs.append({name: round(value, 4) for name, value in cost_ratios(repository).items()})
    return Noise(runs=tuple(runs), machine=state, versions=versions())


def _table(noise: Noise, found: tuple[list[Ratios], Ratios] | None) -> Table:
    heads = ["here"] if found else []
    table = Table("cost", "median", "lowest", "highest", "limit", *heads, title=f"{len(noise.runs)} runs", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, meaning in RATIOS.items():
        values = [run[name] for run in noise.runs]
        limits = found[1] if found else noise.limits(noise.machine)
        cells = [statistics.median(values), min(values), max(values), limits[name]]
        if found:
            cells.append(found[0][-1][name])
        table.add_row(f"{name}: {meaning}", *(f"{value:.2f}" for value in cells))
    return table


if __name__ == "__main__":
    run_as_program(guard)
