"""A comparison as files: CSV for spreadsheets, JSON for programs, text, pictures and one page for people."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from plurum.benchmarks.compare.comparison import RUNTIMES, SHOWN_METRICS, ComparedArchitecture, Comparison, Vote
from plurum.benchmarks.compare.page import PAGE
from plurum.benchmarks.compare.plots import PICTURES, plots_from_comparison
from plurum.files import csv_from_rows, write_bytes, write_text
from plurum.sentences import figure_text
from plurum.training.statistics.metrics import METRICS
from plurum.training.statistics.page import html_from_template
from plurum.training.statistics.results import Estimate
from plurum.training.statistics.wording import difference_text

__all__ = [
    "COMPARISON_FILES",
    "csv_from_comparison",
    "front_lines",
    "html_from_comparison",
    "text_from_comparison",
    "write_comparison",
]

COMPARISON_FILES = (
    "comparison_results.csv",
    "comparison_results.json",
    "comparison_report.txt",
    *(f"{name}.png" for name in PICTURES),
    "comparison_report.html",
)
_WIDTH = 150
_EACH = " / ".join(RUNTIMES.values())


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write the comparison's files atomically into `folder`, the page last, and return the page's path.

    Raises:
        OutputError: `folder` is a file or can't be written to.
        MissingExtraError: matplotlib or Jinja2 is not installed.
    """
    pictures = plots_from_comparison(comparison)
    page = html_from_comparison(comparison, pictures)
    write_text(folder / "comparison_results.csv", csv_from_comparison(comparison))
    write_text(folder / "comparison_results.json", comparison.model_dump_json(indent=1) + "\n")
    write_text(folder / "comparison_report.txt", text_from_comparison(comparison))
    for name, picture in pictures.items():
        write_bytes(folder / f"{name}.png", picture)
    write_text(folder / "comparison_report.html", page)
    return folder / "comparison_report.html"


def csv_from_comparison(comparison: Comparison) -> str:
    """Return all figures as CSV, one row per architecture, then one per ensemble; an empty cell is not known."""
    rows = [_member_row(one) for one in comparison.compared] + [_vote_row(vote) for vote in comparison.votes]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[row.get(column, "") for column in columns] for row in rows]
    return csv_from_rows(
        [columns, *([f"{value:.6g}" if isinstance(value, float) else value for value in row] for row in cells)]
    )


def front_lines(comparison: Comparison) -> list[str]:
    """Return what matters most, a sentence each: the Pareto front, and which ensembles are worth their cost."""
    steps = "; ".join(
        f"{point.name} ({RUNTIMES[point.runtime]}) {point.accuracy:.4f} in {point.latency_ms:.2f} ms"
        for point in comparison.front
    )
    lines = [f"Pareto front of accuracy and latency, the fastest first: {steps}."]
    if comparison.votes:
        worth = [vote.name for vote in comparison.votes if vote.verdict == "worth its cost"]
        lines.append(
            f"Worth their cost: {'; '.join(worth)}."
            if worth
            else "No ensemble is worth its cost: none is significantly better than the best cheaper alternative."
        )
    return lines


def text_from_comparison(comparison: Comparison) -> str:
    """Return the comparison as plain text, with tables of up to 150 columns."""
    file = io.StringIO()
    console = Console(file=file, width=_WIDTH, color_system=None, highlight=False, markup=False, emoji=False)
    images = ", ".join(f"{split} {count:,}" for split, count in comparison.images.items())
    console.print(
        f"{comparison.data}: {images} images of {comparison.classes} classes, {comparison.height} x {comparison.width} "
        f"pixels; in brackets: 95% intervals from {comparison.draws:,} draws of {comparison.drawn}"
    )
    scores = ["test images", *(METRICS[key].title for key in SHOWN_METRICS)]
    costs = ["costs", "parameters", "GFLOPs", "training", f"MB on disk\n{_EACH}", f"peak MB of memory\n{_EACH}"]
    speeds = ["speed", f"ms an image\n{_EACH}", f"images/s\n{_EACH}"]
    votes = ["ensembles", "ms", "accuracy", "NLL", "beside", "accuracy gained", "NLL change", "verdict"]
    console.print(_table(scores, map(_metric_cells, comparison.compared)))
    console.print(_table(costs, map(_cost_cells, comparison.compared)))
    console.print(_table(speeds, map(_speed_cells, comparison.compared)))
    if comparison.votes:
        console.print(_table(votes, map(_vote_cells, comparison.votes)))
    for line in (*front_lines(comparison), *(f"note: {note}" for note in comparison.notes)):
        console.print(line)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def html_from_comparison(comparison: Comparison, pictures: dict[str, bytes]) -> str:
    """Return the page, with the pictures (PNG, by name) inside; it needs nothing from outside.

    Raises:
        MissingExtraError: Jinja2 is not installed.
    """
    count = len(comparison.compared)
    return html_from_template(
        PAGE,
        f"{count} architecture{'s' * (count > 1)} compared on {comparison.data}",
        pictures,
        c=comparison,
        lines=front_lines(comparison),
        metrics=METRICS,
        runtimes=RUNTIMES,
        shown=SHOWN_METRICS,
        training=_training,
    )


def _member_row(one: ComparedArchitecture) -> dict[str, object]:
    row: dict[str, object] = {"kind": "architecture", "name": one.name, "arch": one.arch, "origin": one.origin}
    for name, figure in one.metrics.items():
        row |= _cells(name, figure)
    for runtime in RUNTIMES:
        if runtime != "pytorch":
            row |= _cells(f"accuracy_{runtime}", one.accuracy[runtime])
    row |= {"parameters": one.costs.parameters, "gflops": one.costs.gflops, "epochs": _known(one.epochs)}
    row["training_s"] = _known(one.training_s)
    for runtime in RUNTIMES:
        memory, speed = one.costs.memory_mb[runtime], one.speed[runtime]
        row |= {
            f"size_mb_{runtime}": one.costs.size_mb[runtime],
            f"peak_memory_mb_{runtime}": memory.peak,
            f"idle_memory_mb_{runtime}": memory.idle,
            f"latency_ms_{runtime}": speed.latency_ms.median,
            f"images_per_s_{runtime}": speed.images_per_s.median,
        }
    return row


def _vote_row(vote: Vote) -> dict[str, object]:
    row: dict[str, object] = {"kind": "ensemble", "name": vote.name, **_cells("accuracy", vote.accuracy)}
    row |= {**_cells("nll", vote.nll), "latency_ms_onnx_fp32": vote.latency_ms, "beside": " + ".join(vote.beside)}
    row |= {**_cells("accuracy_gained", vote.accuracy_gained), **_cells("nll_change", vote.nll_change)}
    return {**row, "verdict": vote.verdict}


def _cells(name: str, figure: Estimate) -> dict[str, object]:
    return {name: _known(figure.value), f"{name}_low": _known(figure.low), f"{name}_high": _known(figure.high)}


def _known(value: float | None) -> float | str:
    return "" if value is None else value


def _training(one: ComparedArchitecture) -> str:
    return "–" if one.training_s is None else f"{one.training_s:,.0f} s"


def _metric_cells(one: ComparedArchitecture) -> list[str]:
    return [one.name, *(figure_text(one.metrics[key]).replace(" ", "\n") for key in SHOWN_METRICS)]


def _cost_cells(one: ComparedArchitecture) -> list[str]:
    costs = one.costs
    sizes = " / ".join(f"{costs.size_mb[runtime]:.1f}" for runtime in RUNTIMES)
    memory = " / ".join(f"{costs.memory_mb[runtime].peak:.0f}" for runtime in RUNTIMES)
    return [one.name, f"{costs.parameters:,}", f"{costs.gflops:.4g}", _training(one), sizes, memory]


def _speed_cells(one: ComparedArchitecture) -> list[str]:
    latencies = " / ".join(f"{one.speed[runtime].latency_ms.median:.2f}" for runtime in RUNTIMES)
    rates = " / ".join(f"{one.speed[runtime].images_per_s.median:,.0f}" for runtime in RUNTIMES)
    return [one.name, latencies, rates]


def _vote_cells(vote: Vote) -> list[str]:
    scores = (figure_text(vote.accuracy), figure_text(vote.nll))
    changes = (difference_text(vote.accuracy_gained), difference_text(vote.nll_change))
    cells = [vote.name, f"{vote.latency_ms:.2f}", *scores, " + ".join(vote.beside), *changes]
    return [*(cell.replace(" (", "\n(").replace(" + ", "\n+ ") for cell in cells), vote.verdict]


def _table(titles: list[str], rows: Iterable[list[str]]) -> Table:
    table = Table(box=SIMPLE)
    for index, title in enumerate(titles):
        table.add_column(Text(title), justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
