"""`plurum predict`: classify images with a served ensemble."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plurum.cli.options import OverHttp, PatientOptions, PatientRules, ServerUrls, patient_names, with_options
from plurum.cli.predict import reports as dicom_reports
from plurum.cli.predict import slides as slide_options
from plurum.cli.predict.progress import show_line, show_progress
from plurum.cli.streams import show_table
from plurum.conventions import PatientRule
from plurum.settings.client import ReportOptions, SlideOptions

if TYPE_CHECKING:
    from rich.console import Console

    from plurum.client import Answer, Served
    from plurum.client.bulk.bulk_run import BulkRun, PredictionSource
    from plurum.client.bulk.journal import EarlierResults
    from plurum.client.bulk.listing import Listing

__all__ = ["predict"]

# Most rows of a table on standard output.
_ROWS = 100


@with_options
def predict(  # noqa: PLR0913, PLR0917 - one parameter per option
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Images (JPEG, PNG, TIFF, DICOM), folders, quoted patterns ('scans/**/*.png'), CSV manifests with a "
            "column path, addresses of these such as s3://BUCKET/FOLDER, or - to read paths from standard input."
        ),
    ],
    slides: SlideOptions,
    reports: ReportOptions,
    dicom_patients: PatientOptions,
    url: ServerUrls = None,
    http: OverHttp = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write predictions to FILE (.csv, .jsonl or .parquet). Run the same command again to resume.",
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Discard the predictions of an earlier run instead of resuming it.")
    ] = False,
    patients: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write one prediction per patient to FILE; needs DICOM images, or a manifest with a column patient.",
        ),
    ] = None,
    patient_rule: PatientRules = None,
    json_lines: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line instead of a table.")
    ] = False,
    review_only: Annotated[
        bool,
        typer.Option(
            "--review-only",
            help="Show only predictions that need review or were drawn for audit, and images without a prediction.",
        ),
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per request.", show_default="adapted to the server's speed")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Largest number of requests in flight.")] = 6,
    full: Annotated[bool, typer.Option("--full", help="Run all members of a cascade for each image.")] = False,
    timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", help="Longest time for one request, including retries while the server restarts."
        ),
    ] = 60.0,
) -> None:
    """Classify images with a served ensemble, with the uncertainty of each prediction.

    Prints predictions to standard output in the order of the images, and everything else to standard error, such as the
    ensemble's operating point and its promise. With --out, predictions are saved to a hidden file beside FILE as they
    arrive. Run the same command again to resume an interrupted run; it retries images that failed. FILE is written
    atomically at the end.

    Exit code 0: every image has a prediction; 1: some images failed, each named; 2: no request could be sent;
    3: stopped early because the server stayed unavailable; 130: interrupted.

    [bold]Examples[/bold]

      plurum predict scan.png

      plurum predict scans/ --out answers.csv

      plurum predict patients.csv --out answers.parquet --patients patients_answered.csv

      find scans -name '*.jpg' -print0 | plurum predict - --out answers.jsonl

      plurum predict slide.tif --slides out/ --tile-size 512 --microns-per-pixel 0.5

      plurum predict scans/ --sr reports/ --url https://gateway:8080

      plurum predict scans/ --review-only

      plurum predict scans/ --json --url 127.0.0.1:9001 | jq -r 'select(.review) | .path'
    """
    from rich.console import Console

    from plurum.client import EnsembleClient
    from plurum.client.bulk.listing import listing_from_names
    from plurum.client.bulk.report import decision_lines

    console = Console(stderr=True)
    listing = listing_from_names(paths, sys.stdin.buffer, patient_names(dicom_patients))
    _check_files(out, patients, listing)
    dicom_reports.check_reports(reports, listing, list(map(Path, paths)))
    with ExitStack() as stack:
        client = EnsembleClient(
            url or None, "http" if http else None, concurrency=concurrency, timeout_s=timeout, full=full
        )
        stack.enter_context(client)
        tell = partial(show_line, console)
        slide_stream = slide_options.slide_stream(client, slides, patient_rule, tell)
        stream = dicom_reports.report_stream(slide_stream, client.served, reports, listing, tell)
        settings = (
            slide_options.journal_settings(slides, patient_rule)
            | dicom_reports.journal_settings(reports)
            | ({"full": True} if full else {})
        )
        bulk_run = _bulk_run(stack, client.served, listing, out, settings, fresh=fresh, rule=patient_rule)
        if bulk_run.journal:
            dicom_reports.check_resumed(reports, bulk_run.journal.found)
            _report_resumed(bulk_run.journal.found, len(listing), console)
        for line in decision_lines(client.served):
            show_line(console, line)
        output = _PredictionOutput(json_lines=json_lines, review_only=review_only)
        _predict(bulk_run, stream, batch_size, output, console)
        if out:
            bulk_run.write(out)
    output.end()
    _show_patients(bulk_run, patients, quiet=json_lines)
    sys.stderr.write(f"{bulk_run.totals.summary}\n")
    if bulk_run.totals.failed:
        raise typer.Exit(1)


def _check_files(out: Path | None, patients: Path | None, listing: Listing) -> None:
    """Check the names of the files to write, before a server is contacted."""
    from plurum.client.bulk.formats import format_from_path
    from plurum.errors import SettingsError

    if patients and not listing.patients:
        raise SettingsError("--patients: expected DICOM images or a CSV manifest with a column patient, got neither")
    for file in (out, patients):
        if file:
            format_from_path(file, {})


def _bulk_run(
    stack: ExitStack,
    served: Served,
    listing: Listing,
    out: Path | None,
    settings: dict[str, Any],
    *,
    fresh: bool,
    rule: PatientRule | None,
) -> BulkRun:
    """Return the bulk run; with `out` it has a journal, which `stack` closes."""
    from plurum.client.bulk.bulk_run import BulkRun, BulkTotals
    from plurum.client.bulk.columns import columns_of_images
    from plurum.client.bulk.formats import format_from_path
    from plurum.client.bulk.journal import Journal
    from plurum.client.bulk.patients import PatientPool

    totals = BulkTotals(PatientPool(served.classes, rule or served.patient_rule or "mean", served.point))
    if out is None:
        return BulkRun(listing, totals)
    has = {name: getattr(served, name) for name in ("has_audit", "has_outliers", "has_cascade")}
    columns = columns_of_images(served.classes, **has)
    form = format_from_path(out, columns)
    settings = {"classes": served.classes, "ensemble": served.metadata_sha256, "format": out.suffix.lower()} | settings
    journal = stack.enter_context(Journal(out, listing, settings, fresh=fresh))
    return BulkRun(listing, totals, journal, form)


def _report_resumed(found: EarlierResults, total: int, console: Console) -> None:
    """Report what is reused from an earlier run."""
    if found.answered:
        show_line(console, f"resuming: {found.answered:,} of {total:,} images already have predictions")
    if found.changed:
        show_line(console, f"{found.changed:,} images have changed since and are classified again")
    if found.unlisted:
        show_line(console, f"{found.unlisted:,} predictions of images that are no longer listed are dropped")


def _predict(
    bulk_run: BulkRun, stream: PredictionSource, batch_size: int | None, output: _PredictionOutput, console: Console
) -> None:
    """Send all requests, and show the predictions."""
    from plurum.client import Failure
    from plurum.errors import InterruptedRunError, ServerError

    try:
        answers = bulk_run.answers(stream, batch_size)
        for path, answer in show_progress(answers, bulk_run.left, lambda: bulk_run.done, console, "Predicting"):
            if isinstance(answer, Failure):
                show_line(console, f"{answer.name}: {answer.reason}")
            output.add(path, answer)
    except (ServerError, KeyboardInterrupt) as error:
        more = f"{bulk_run.done:,} of {bulk_run.left:,} images are done"
        if bulk_run.journal:
            more += "; run the same command again to resume"
        if isinstance(error, ServerError):
            raise InterruptedRunError(f"{error}; {more}") from error
        show_line(console, more)
        raise


@dataclass
class _PredictionOutput:
    """Writer to standard output: JSON lines as they come, or a table of the first rows at the end.

    Attributes:
        json_lines: If True, write JSON lines; otherwise a table.
        review_only: If True, leave out predictions that need no review and were not drawn for audit.
    """

    json_lines: bool
    review_only: bool
    _rows: list[tuple[str | Path, Answer]] = field(default_factory=list)
    _more: int = 0

    def add(self, path: str, answer: Answer) -> None:
        """Write a prediction, or keep it for the table."""
        if self.review_only and not (getattr(answer, "review", True) or getattr(answer, "audit", False)):
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
        """Write the table."""
        from plurum.client import table_from_answers

        if not self.json_lines:
            show_table(table_from_answers(self._rows))
        if self._more:
            sys.stderr.write(f"and {self._more:,} more rows; use --out FILE or --json to get all\n")


def _show_patients(bulk_run: BulkRun, file: Path | None, *, quiet: bool) -> None:
    from plurum.client.bulk.report import patients_report, table_from_patients

    answers = bulk_run.totals.patients.answers()
    if file:
        patients_report(file, answers, bulk_run.totals.patients.classes)
    if answers and not quiet:
        sys.stdout.write("\n")
        show_table(table_from_patients(answers[:_ROWS]))
