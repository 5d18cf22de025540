"""Command line of a benchmark: options that several share, progress, and the report."""

from __future__ import annotations

import json
import signal
import statistics
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import HEAVY_HEAD, Box
from rich.console import Console, RenderableType
from rich.table import Table

from plurum.benchmarks.tools.machine import machine, versions
from plurum.errors import OutputError, PlurumError
from plurum.files import atomic_folder
from plurum.progress import show_status

__all__ = [
    "ARCHS",
    "TINY_ARCHS",
    "Architectures",
    "Clients",
    "ImageSize",
    "Rounds",
    "Say",
    "Seconds",
    "ServedRepository",
    "WorkFolder",
    "check_results_folder",
    "interrupt_on_sigterm",
    "measurement",
    "new_table",
    "print_report",
    "run_as_program",
    "show_status",
    "table_of_rounds",
    "write_results",
]

# Architectures of a realistic size, and two so small that little but serving is measured.
ARCHS = ["resnet18", "efficientnet_b0", "densenet121"]
TINY_ARCHS = ["test_resnet", "test_byobnet"]

Architectures = Annotated[list[str], typer.Option(help="Architecture that timm knows; repeat for more.")]
Clients = Annotated[int, typer.Option(min=1, help="Number of clients that send requests continuously.")]
ImageSize = Annotated[int, typer.Option(min=32, help="Height and width of the images, pixels.")]
Rounds = Annotated[int, typer.Option(min=1, help="Number of turns of every case.")]
Seconds = Annotated[float, typer.Option(min=0.1, help="Length of a turn, seconds.")]
ServedRepository = Annotated[
    Path | None, typer.Option(help="Repository to serve instead of one with random weights.", metavar="REPO")
]
WorkFolder = Annotated[Path, typer.Option(help="Folder that keeps the exported graphs for the next run.")]

# Receives one line about what is being done.
Say = Callable[[str], None]


def run_as_program(command: Callable[..., None]) -> None:
    """Run a command with the arguments of this process; print an error of Plurum in one line and exit with its code."""
    interrupt_on_sigterm()
    try:
        typer.run(command)
    except (PlurumError, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt):
            message, code = "interrupted", 130
        else:
            message, code = f"error: {' '.join(str(error).split())}", error.exit_code
        sys.stderr.write(f"{message}\n")
        sys.exit(code)


def interrupt_on_sigterm() -> None:
    """Let SIGTERM end everything that was started, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextmanager
def measurement(first: str) -> Iterator[tuple[Say, dict[str, str | int | float]]]:
    """Show a line of progress as `show_status`, and give the machine as it is before the measurement too."""
    state = machine()
    with show_status(first) as say:
        yield say, state


def new_table(*columns: str, title: str | None = None, box: Box | None = HEAVY_HEAD) -> Table:
    """Return an empty table whose first column holds text, and the others numbers."""
    table = Table(*columns, title=title, box=box)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def table_of_rounds(rounds: Mapping[str, Sequence[float]], unit: str, title: str = "medians over rounds") -> Table:
    """Return a table with the median, the lowest and the highest figure of each case.

    Args:
        rounds: Figures of every round, by case.
        unit: Unit of the figures.
        title: Title of the table.
    """
    table = new_table("", unit, "lowest", "highest", title=title)
    for name, turns in rounds.items():
        table.add_row(name, *(f"{value:.2f}" for value in (statistics.median(turns), min(turns), max(turns))))
    return table


def print_report(
    figures: Mapping[str, Any], state: Mapping[str, str | int | float], *shown: RenderableType
) -> dict[str, Any]:
    """Print tables on standard error and one line of JSON on standard output; return what the JSON holds.

    Args:
        figures: Figures of the JSON.
        state: The machine before the measurement, as `machine` returns it; the JSON holds it and the versions.
        shown: Tables and lines for people.
    """
    # Tables need more than the 80 columns that Rich assumes for a file.
    console = Console(stderr=True, width=None if sys.stderr.isatty() else 110)
    for one in shown:
        console.print(one, highlight=False)
    report = {**figures, "machine": dict(state), "versions": versions()}
    sys.stdout.write(json.dumps(report) + "\n")
    return report


def check_results_folder(out: Path, files: Collection[str]) -> None:
    """Check before a measurement that its results can replace `out`.

    Raises:
        OutputError: `out` is a file, or holds files besides `files`.
    """
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - set(files)):
        raise OutputError(f"--out {out}: expected a new folder or one with earlier results. Name another folder.")


def write_results(out: Path, files: Mapping[str, str | bytes]) -> None:
    """Write files, by name, into the folder `out` atomically."""
    with atomic_folder(out) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
