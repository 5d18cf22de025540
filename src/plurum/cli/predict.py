"""`plurum predict`: ask a served ensemble about images."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from plurum.cli.predict_slides import (
    EveryImage,
    HeatClass,
    Microns,
    OwnMicrons,
    SlideOptions,
    SlidesFolder,
    TileSize,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID
    from rich.table import Table

    from plurum.client import Answer, Served
    from plurum.client.bulk.inquiry import Inquiry
    from plurum.client.bulk.journal import Found
    from plurum.client.bulk.listing import Listing
    from plurum.client.bulk.pace import Pace
    from plurum.client.slides.slide_stream import SlideStream
    from plurum.spec import PatientRule

__all__ = ["predict"]

# More rows than this are for a file or a program.
_ROWS = 100
# Seconds between two looks at a progress bar, and two lines of progress where there is no terminal.
_BAR_S, _LINE_S = 0.5, 10.0


def predict(  # noqa: PLR0913, PLR0917 - one parameter per option
    paths: Annotated[
        list[Path],
        typer.Argument(
            help="Images (JPEG, PNG, TIFF), folders that hold some, patterns in quotes ('scans/**/*.png'), "
            "CSV manifests with a column path, or - for paths on standard input."
        ),
    ],
    url: Annotated[
        list[str] | None,
        typer.Option(
            help="The server: host:port, or http(s)://host:port. Several, each with --url, are asked in turn.",
            show_default="this machine",
        ),
    ] = None,
    http: Annotated[bool, typer.Option("--http", help="Ask over HTTP (port 8000) instead of gRPC (8001).")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the answers to FILE: .csv, .jsonl or .parquet. Killed, the same command goes on.",
        ),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Ask anew about what an earlier run has answered.")] = False,
    patients: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write an answer per patient to FILE too, where a manifest names patients."),
    ] = None,
    patient_rule: Annotated[
        Literal["mean", "max", "majority"] | None,
        typer.Option(help="How a patient's images become one answer.", show_default="as fitted, else mean"),
    ] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object per line instead of a table.")] = False,
    review_only: Annotated[
        bool, typer.Option("--review-only", help="Show only what a person should look at, and what has no answer.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images in one request.", show_default="as many as are answered soon")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way at once.")] = 6,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long to try for one request; a server may restart meanwhile.")
    ] = 60.0,
    slides: SlidesFolder = None,
    microns_per_pixel: Microns = None,
    file_microns_per_pixel: OwnMicrons = None,
    tile_size: TileSize = None,
    heat_class: HeatClass = None,
    slide: EveryImage = False,
) -> None:
    """Ask a served ensemble about images, and how far to trust what it says.

    Answers go to standard output, in the order of the images; all else goes to standard error. With --out they are kept
    as they come, in a hidden file beside FILE: a run that was killed or broken off goes on where it was when the same
    command is given again, and asks once more about what had no answer. FILE appears when all have been asked about.

    Exit code 0: every image has an answer; 1: some have none, each named; 2: nothing could be asked; 3: broken off, as
    when the server stays away; 130: interrupted.

    [bold]Examples[/bold]

      plurum predict scan.png

      plurum predict scans/ --out answers.csv

      plurum predict patients.csv --out answers.parquet --patients patients_answered.csv

      find scans -name '*.jpg' -print0 | plurum predict - --out answers.jsonl

      plurum predict slide.tif --slides out/ --tile-size 512 --microns-per-pixel 0.5

      plurum predict scans/ --review-only

      plurum predict scans/ --json --url 127.0.0.1:9001 | jq -r 'select(.review) | .path'
    """
    from rich.console import Console

    from plurum.client import EnsembleClient
    from plurum.client.bulk.listing import listing_from_names

    console = Console(stderr=True)
    listing = listing_from_names(paths, sys.stdin.buffer)
    _check_patients(patients, listing)
    options = SlideOptions(slides, microns_per_pixel, file_microns_per_pixel, tile_size, heat_class, every=slide)
    with ExitStack() as stack:
        client = EnsembleClient(url or None, "http" if http else None, concurrency=concurrency, timeout_s=timeout)
        stack.enter_context(client)
        stream = options.stream(client, patient_rule, lambda text: _line(console, text))
        about = options.about(patient_rule)
        inquiry = _inquiry(stack, client.served, listing, out, about, fresh=fresh, rule=patient_rule)
        if inquiry.journal:
            _tell(inquiry.journal.found, len(listing), console)
        shown = _Shown(json_lines=json_lines, review_only=review_only)
        _ask(inquiry, stream, batch_size, shown, console)
        if out:
            inquiry.write(out)
    shown.end()
    _show_patients(inquiry, patients, quiet=json_lines)
    sys.stderr.write(f"{inquiry.totals.words}\n")
    if inquiry.totals.failed:
        raise typer.Exit(1)


def _check_patients(file: Path | None, listing: Listing) -> None:
    from plurum.client.bulk.formats import format_from_path
    from plurum.errors import SettingsError

    if file and not listing.patients:
        raise SettingsError("--patients needs a CSV manifest with a column patient; none was given")
    if file:
        format_from_path(file, ())


def _inquiry(
    stack: ExitStack,
    served: Served,
    listing: Listing,
    out: Path | None,
    about: dict[str, Any],
    *,
    fresh: bool,
    rule: PatientRule | None,
) -> Inquiry:
    """Return who asks, with a journal where there is a file to come; it is let go of with the stack."""
    from plurum.client.bulk.formats import format_from_path
    from plurum.client.bulk.inquiry import Inquiry, Totals
    from plurum.client.bulk.journal import Journal
    from plurum.client.bulk.patients import PatientPool

    totals = Totals(PatientPool(served.classes, rule or served.patient_rule or "mean"))
    if out is None:
        return Inquiry(listing, totals)
    form = format_from_path(out, served.classes)
    about = {"classes": served.classes, "ensemble": served.contract, "format": out.suffix.lower()} | about
    journal = stack.enter_context(Journal(out, listing, about, fresh=fresh))
    return Inquiry(listing, totals, journal, form)


def _tell(found: Found, total: int, console: Console) -> None:
    """Say what an earlier run has left."""
    if found.answered:
        _line(console, f"going on: {found.answered:,} of {total:,} images were answered before")
    if found.changed:
        _line(console, f"{found.changed:,} images have changed since and are asked about again")
    if found.unlisted:
        _line(console, f"{found.unlisted:,} answers are about images that are no longer listed, and are left out")


def _ask(inquiry: Inquiry, stream: SlideStream, batch_size: int | None, shown: _Shown, console: Console) -> None:
    """Ask about everything, and show it.

    Raises:
        BrokenOffError: no server answers any more.
    """
    from plurum.client import Failure
    from plurum.errors import BrokenOffError, ServerError

    try:
        for path, answer in _watched(inquiry, stream, batch_size, console):
            if isinstance(answer, Failure):
                _line(console, f"{answer.name}: {answer.reason}")
            shown.add(path, answer)
    except (ServerError, KeyboardInterrupt) as error:
        more = f"{inquiry.done:,} of {inquiry.left:,} images were asked about"
        if inquiry.journal:
            more += "; the same command goes on"
        if isinstance(error, ServerError):
            raise BrokenOffError(f"{error}; {more}") from error
        _line(console, more)
        raise


def _watched(
    inquiry: Inquiry, stream: SlideStream, batch_size: int | None, console: Console
) -> Iterator[tuple[str, Answer]]:
    """Yield the answers while a progress bar, or now and then a line, says how it goes."""
    from rich.progress import BarColumn, Progress, TextColumn

    from plurum.client.bulk.pace import Pace

    begun_s = time.monotonic()
    pace = Pace(inquiry.left, begun_s)
    # Left to itself Rich would send what goes to standard output to standard error, too.
    columns = (TextColumn("Asking"), BarColumn(), TextColumn("{task.description}"))
    bar = Progress(
        *columns,
        console=console,
        transient=True,
        redirect_stdout=False,
        auto_refresh=False,
        disable=not console.is_terminal,
    )
    every_s = _BAR_S if console.is_terminal else _LINE_S
    next_s = begun_s if console.is_terminal else begun_s + every_s
    with bar:
        task = bar.add_task("", total=inquiry.left)
        for path, answer in inquiry.answers(stream, batch_size):
            yield path, answer
            now_s = time.monotonic()
            if now_s >= next_s:
                next_s = now_s + every_s
                pace.note(inquiry.done, now_s)
                _say(pace, now_s, console, bar, task)


def _say(pace: Pace, now_s: float, console: Console, bar: Progress, task: TaskID) -> None:
    if console.is_terminal:
        bar.update(task, completed=pace.done, description=pace.words(now_s), refresh=True)
    else:
        _line(console, pace.words(now_s))


@dataclass
class _Shown:
    """What goes to standard output: lines at once, a table of the first rows in the end.

    Attributes:
        json_lines: Which of the two.
        review_only: Whether what needs no person's look is left out.
    """

    json_lines: bool
    review_only: bool
    _rows: list[tuple[str | Path, Answer]] = field(default_factory=list)
    _more: int = 0

    def add(self, path: str, answer: Answer) -> None:
        """Show one, or keep it for the table."""
        if self.review_only and not getattr(answer, "review", True):
            return
        if self.json_lines:
            from plurum.client import json_line

            sys.stdout.write(json_line(path, answer) + "\n")
            sys.stdout.flush()
        elif len(self._rows) < _ROWS:
            self._rows.append((path, answer))
        else:
            self._more += 1

    def end(self) -> None:
        """Show the table."""
        from plurum.client import table_from_answers

        if not self.json_lines:
            _show(table_from_answers(self._rows))
        if self._more:
            sys.stderr.write(f"and {self._more:,} more rows; --out FILE or --json gives them all\n")


def _show_patients(inquiry: Inquiry, file: Path | None, *, quiet: bool) -> None:
    from plurum.client.bulk.report import patients_report, table_from_patients

    answers = inquiry.totals.patients.answers()
    if file:
        patients_report(file, answers, inquiry.totals.patients.classes)
    if answers and not quiet:
        sys.stdout.write("\n")
        _show(table_from_patients(answers[:_ROWS]))


def _line(console: Console, text: str) -> None:
    """Write a line to standard error, above a progress bar where there is one."""
    shown = text.encode("utf-8", "replace").decode("utf-8")
    console.print(shown, markup=False, highlight=False, soft_wrap=True)


def _show(table: Table) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        # A pipe has no width: there a row is a line, however long.
        console = Console(width=console.measure(table, options=console.options.update(width=10_000)).maximum)
    console.print(table, soft_wrap=True)
