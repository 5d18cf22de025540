"""Measure `plurum score`: what faults lose, its throughput beside a plain loop, and its growth with the rows.

    python -m plurum.benchmarks.claims.scoring --page docs/scoring.md

- faults: a Ray cluster of three nodes of one core each on this machine. In the middle of a job one node is killed
  (SIGKILL of all its processes), later the driver too; the same command runs again. Counted are images that the results
  lack, have twice, or answer otherwise than a server of the same repository.
- pace: images per second of one job on this machine, and of a plain loop over decoding and graph in as many processes
  with as many threads. Both are counted from when all workers compute to the end; the start is told apart.
- overhead: the same with the smallest networks, where the rest of a job shows.
- growth: jobs of a growing number of rows: seconds, processor time and largest memory of the driver's process, bytes of
  sources and results. What a part of 1,000 rows costs is the difference between the largest and the smallest job.

Images are Parquet rows of tiny PNG files, all different. `growth` has the smallest networks, too. Not measured: a
network, storage elsewhere, more nodes than this machine holds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from plurum.benchmarks.claims.scoring.faults import measure_faults
from plurum.benchmarks.claims.scoring.jobs import BenchJob
from plurum.benchmarks.claims.scoring.pace import measure_growth, measure_pace
from plurum.benchmarks.claims.scoring.page import score_table
from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.members import random_repository
from plurum.benchmarks.tools.pages import Page, page_with_tables
from plurum.errors import SettingsError
from plurum.files import write_text

__all__ = ["scoring"]

_PARTS = ("faults", "pace", "overhead", "growth")
# Of faults and pace; the other parts have the smallest networks.
_NETWORK = ["resnet18"]
_TINY_SIZE = 32


def scoring(  # noqa: PLR0913, PLR0917 - one parameter per option
    work: command.WorkFolder = Path("runs/scoring-work"),
    part: Annotated[list[str] | None, typer.Option(help="Only this part; repeat for more.", show_default="all")] = None,
    arch: command.Architectures = _NETWORK,
    size: command.ImageSize = 64,
    images: Annotated[int, typer.Option(min=100, help="Number of images of the part faults.")] = 20_000,
    seconds: Annotated[float, typer.Option(min=1, help="Work of each side of pace and overhead, seconds.")] = 180.0,
    rows: Annotated[int, typer.Option(min=400, help="Largest number of rows of the part growth.")] = 1_000_000,
    workers: Annotated[int, typer.Option(min=1, help="Workers of all parts but faults.")] = 2,
    page: Page = None,
) -> None:
    """Measure bulk scoring: tables on standard error, one line of JSON on standard output."""
    chosen = part or list(_PARTS)
    if unknown := [one for one in chosen if one not in _PARTS]:
        raise SettingsError(f"--part: expected one of {', '.join(_PARTS)}, got {unknown[0]}.")
    if page is not None:
        page_with_tables(page, dict.fromkeys(chosen, ""))
    with (
        command.measurement("repository") as (say, state),
        tempfile.TemporaryDirectory(prefix="plurum_scoring_") as place,
    ):
        network, smallest = (arch, size), (command.TINY_ARCHS, _TINY_SIZE)
        measures: dict[str, tuple[tuple[list[str], int], Callable[[BenchJob], dict[str, Any]]]] = {
            "faults": (network, lambda job: measure_faults(job, images)),
            "pace": (network, lambda job: measure_pace(job, seconds)),
            "overhead": (smallest, lambda job: measure_pace(job, seconds)),
            "growth": (smallest, lambda job: measure_growth(job, rows)),
        }
        found = dict[str, dict[str, Any]]()
        for name in chosen:
            (archs, size_px), measure = measures[name]
            repository = random_repository(work / "-".join((*archs, str(size_px))), archs, size_px, 8, say)
            folder = Path(place) / name
            folder.mkdir()
            found[name] = {"arch": archs, "size_px": size_px, **measure(BenchJob(repository, folder, workers, say))}
    command.print_report(found, state, *(f"{name}\n{score_table(name, one)}\n" for name, one in found.items()))
    if page is not None:
        write_text(page, page_with_tables(page, {name: score_table(name, one) for name, one in found.items()}))


if __name__ == "__main__":
    command.run_as_program(scoring)
