"""Measure `plurum score`: what faults lose, its throughput beside a plain loop, and its growth with the rows.

    python -m plurum.benchmarks.claims.scoring --part pace --part growth --page docs/scoring.md
    python -m plurum.benchmarks.claims.scoring --part faults --arch resnet18 --size 64 --page docs/scoring.md

- faults: a Ray cluster of three nodes of one core each on this machine. In the middle of a job one node is killed
  (SIGKILL of all its processes), later the driver too; the same command runs again. Counted are images that the results
  lack, have twice, or answer otherwise than a server of the same repository.
- pace: images per second of one job on this machine, and of a plain loop over decoding and graph in as many processes
  with as many threads. Both are counted from when all workers compute to the end; the start is told apart.
- growth: jobs of a growing number of rows: seconds, processor time and largest memory of the driver's process, bytes of
  sources and results. What a part of 1,000 rows costs is the difference between the largest and the smallest job.

Images are Parquet rows of tiny PNG files, all different; the members are of the smallest architectures, so that all but
the graph shows. Not measured: a network, storage elsewhere, more nodes than this machine holds.
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

_PARTS = ("faults", "pace", "growth")


def scoring(  # noqa: PLR0913, PLR0917 - one parameter per option
    work: command.WorkFolder = Path("runs/scoring-work"),
    part: Annotated[list[str] | None, typer.Option(help="Only this part; repeat for more.", show_default="all")] = None,
    arch: command.Architectures = command.TINY_ARCHS,
    size: command.ImageSize = 32,
    images: Annotated[int, typer.Option(min=100, help="Number of images of the part faults.")] = 20_000,
    seconds: Annotated[float, typer.Option(min=1, help="Work of each side of the part pace, seconds.")] = 180.0,
    rows: Annotated[int, typer.Option(min=400, help="Largest number of rows of the part growth.")] = 1_000_000,
    workers: Annotated[int, typer.Option(min=1, help="Workers of the parts pace and growth.")] = 2,
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
        repository = random_repository(work, arch, size, 8, say)
        job = BenchJob(repository, Path(place), workers, say)
        measures: dict[str, Callable[[], dict[str, Any]]] = {
            "faults": lambda: measure_faults(job, images),
            "pace": lambda: measure_pace(job, seconds),
            "growth": lambda: measure_growth(job, rows),
        }
        found = {name: {"arch": arch, "size_px": size, **measures[name]()} for name in chosen}
    command.print_report(found, state, *(f"{name}\n{score_table(name, one)}\n" for name, one in found.items()))
    if page is not None:
        write_text(page, page_with_tables(page, {name: score_table(name, one) for name, one in found.items()}))


if __name__ == "__main__":
    command.run_as_program(scoring)
