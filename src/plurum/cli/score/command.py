"""`plurum score`: classify an archive on Ray, without a server."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plurum.cli.options import PatientRules
from plurum.cli.predict.progress import show_line, show_progress
from plurum.conventions import PatientRule

if TYPE_CHECKING:
    from rich.console import Console

    from plurum.score import ScoreJob

__all__ = ["score"]


def score(  # noqa: PLR0913, PLR0917 - one parameter per option
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of images, quoted pattern, CSV manifest, Parquet files with a column path or bytes, or an "
            "address that fsspec opens (s3://, gs://, https://)."
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            metavar="DEST", help="Write Parquet files to this folder or address. Run the same command again to resume."
        ),
    ],
    repository: Annotated[
        Path | None,
        typer.Option(metavar="REPO", help="Repository with a fused graph, which each worker computes itself."),
    ] = None,
    url: Annotated[
        list[str] | None,
        typer.Option("--url", help="Server to request predictions from, instead of --repository; repeat for several."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster: HOST:PORT or ray://HOST:PORT.", show_default="Ray on this machine, for this command"
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Most workers, one core each.", show_default="all cores")
    ] = None,
    part_rows: Annotated[int, typer.Option(min=1, help="Number of images in a file of DEST.")] = 1000,
    patients: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Also write one prediction per patient to FILE; needs a source with patients."
        ),
    ] = None,
    patient_rule: PatientRules = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard the results in DEST instead of resuming.")] = False,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="Longest time for one request with its retries, with --url.")
    ] = 60.0,
) -> None:
    """Classify an archive with many workers, on this machine or on a Ray cluster.

    Each worker computes the fused graph of the repository with the decoding and the vote that a server of it has. DEST
    gets one row per image, exactly once, even if nodes are lost; an image that can't be read has its reason in the
    column error. Run the same command again to resume an interrupted job.

    Exit code 0: every image has a prediction; 1: some images failed; 2: the job can't start; 3: it stopped early;
    130: interrupted.

    [bold]Examples[/bold]

      plurum score scans/ --repository model_repository --out answers/

      plurum score archive.parquet --repository model_repository --out answers/ --address ray://head:10001

      plurum score s3://archive/scans --repository model_repository --out s3://archive/answers

      plurum score patients.csv --url gateway:8001 --out answers/ --patients patients_answered.csv
    """
    from rich.console import Console

    from plurum.score.job import ScoreOptions, open_job

    _check_file(patients)
    console = Console(stderr=True)
    place = repository.absolute() if repository else None
    options = ScoreOptions(place, tuple(url or ()), address, workers, part_rows, timeout, fresh)
    with open_job(source, out, options) as (job, ray):
        _check_patients(job, patients)
        if job.found.images:
            show_line(console, f"resuming: {job.found.images:,} of {job.plan.images:,} images already have rows")
        _run(job, ray, console)
        if patients:
            _write_patients(job, ray, patients, patient_rule)
    counts = job.counts
    line = f"{counts.images - counts.failed:,} classified, {counts.review:,} to review, {counts.failed:,} failed"
    if counts.labelled:
        line += f"; {counts.correct / counts.labelled:.1%} of {counts.labelled:,} labelled images are correct"
    sys.stderr.write(f"{line}\n")
    if counts.failed:
        raise typer.Exit(1)


def _check_file(patients: Path | None) -> None:
    """Check the name of the file of patients before anything is started."""
    from plurum.client.bulk.formats import format_from_path

    if patients:
        format_from_path(patients, {})


def _check_patients(job: ScoreJob, patients: Path | None) -> None:
    from plurum.errors import SettingsError

    if patients and "patient" not in job.plan.columns:
        raise SettingsError("--patients: expected a source with a column patient, got none. Add it, or leave it out.")


def _run(job: ScoreJob, ray: Any, console: Console) -> None:
    """Score what is left, with progress."""
    from plurum.errors import InterruptedRunError, ServerError

    def done() -> int:
        return job.counts.images - job.found.images

    total = job.plan.images - job.found.images
    try:
        for _ in show_progress(job.run(ray), total, done, console, "Scoring"):
            pass
    except ServerError as error:
        more = f"{done():,} of {total:,} images are done; run the same command again to resume"
        raise InterruptedRunError(f"{error}; {more}") from error
    except KeyboardInterrupt:
        show_line(console, f"{done():,} of {total:,} images are done; run the same command again to resume")
        raise


def _write_patients(job: ScoreJob, ray: Any, file: Path, rule: PatientRule | None) -> None:
    from plurum.client.bulk.report import patients_report

    patients_report(file, job.patients(ray, rule), job.served.classes)
