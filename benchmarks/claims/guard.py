"""Check that serving has not become more costly than it was.

    python -m plurum.benchmarks.claims.guard
    python -m plurum.benchmarks.claims.guard --calibrate 20

Measure the ratios of `guard_ratios` with two small members, so that everything besides computing shows, and compare
each with a limit. The limits come from `guard.json`, which `--calibrate` writes: the ratios of twenty runs, each with a
server of its own. A limit exceeds the worst run by the distance between the best and the worst.

A ratio beyond its limit is measured again, up to three times in all, and is a regression only if it was beyond each
time. A burst of other work is therefore no regression; a regression within the noise is not found.

On another processor, or with another number of cores than in `guard.json`, limits are 1.5 times as high: ratios cancel
speed, but not every difference between machines.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from plurum.benchmarks.claims.guard_ratios import RATIOS, cost_ratios
from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.machine import machine, versions
from plurum.benchmarks.tools.members import random_repository
from plurum.errors import DataError
from plurum.files import write_text
from plurum.spec import Metadata

__all__ = ["NOISE", "Noise", "guard", "guarded_repository", "judge", "read_noise"]

NOISE = Path(__file__).parent / "guard.json"
_SIZE = 64
_ATTEMPTS = 3
_ELSEWHERE = 1.5

Ratios = dict[str, float]


class Noise(Metadata):
    """Ratios of the calibration, about twenty runs.

    Attributes:
        runs: Ratios of each run.
        machine: Machine of the runs; the load average is that before the first.
        versions: Package versions of the runs.
    """

    runs: tuple[Ratios, ...]
    machine: dict[str, str | int | float]
    versions: dict[str, str]

    def limits(self, here: Mapping[str, str | int | float]) -> Ratios:
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
    with command.show_status("members") as say:
        served = repository or guarded_repository(work, say)
        if calibrate:
            noise = _calibrate(served, calibrate, say)
            write_text(NOISE, noise.model_dump_json(indent=1) + "\n")
            Console(stderr=True).print(_table(noise, None))
            return
        noise, state = read_noise(), machine()
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
    return random_repository(work, command.TINY_ARCHS, _SIZE, 16, progress)


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


def _calibrate(repository: Path, times: int, progress: command.Say) -> Noise:
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
    command.run_as_program(guard)
