"""`plurum predict`: ask a served ensemble about images."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from plurum.client import Answer, EnsembleClient

__all__ = ["predict"]


def predict(  # noqa: PLR0913, PLR0917 - one parameter per option
    paths: Annotated[list[Path], typer.Argument(help="Images (JPEG, PNG, TIFF), or folders that hold some.")],
    url: Annotated[
        list[str] | None,
        typer.Option(
            help="The server: host:port, or http(s)://host:port. Several, each with --url, are asked in turn.",
            show_default="this machine",
        ),
    ] = None,
    http: Annotated[bool, typer.Option("--http", help="Ask over HTTP (port 8000) instead of gRPC (8001).")] = False,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the answers to FILE too, whole or not at all.")
    ] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object per line instead of a table.")] = False,
    review_only: Annotated[
        bool, typer.Option("--review-only", help="Show only what a person should look at, and what has no answer.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Images in one request.")] = 8,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests under way at once.")] = 4,
) -> None:
    """Ask a served ensemble about images, and how far to trust what it says.

    Answers go to standard output, in the order of the images; all else goes to standard error. Exit code 0: every
    image has an answer; 1: some have none, each named; 2: nothing could be asked. A server that restarts meanwhile is
    waited for.

    [bold]Examples[/bold]

      plurum predict scan.png

      plurum predict scans/ --csv answers.csv

      plurum predict scans/ --review-only

      plurum predict scans/ --json --url 127.0.0.1:9001 | jq -r 'select(.review) | .path'
    """
    from plurum.client import EnsembleClient, Failure, csv_report, image_files, json_line, table_from_answers

    files = image_files(paths)
    rows: list[tuple[Path, Answer]] = []
    with ExitStack() as stack:
        client = stack.enter_context(EnsembleClient(url or None, "http" if http else None, concurrency=concurrency))
        report = stack.enter_context(csv_report(csv_file, client.served.classes)) if csv_file else None
        for path, answer in _answers(client, files, batch_size):
            rows.append((path, answer))
            if report:
                report.add(path, answer)
            if json_lines and (not review_only or _needs_a_person(answer)):
                sys.stdout.write(json_line(path, answer) + "\n")
                sys.stdout.flush()
    if not json_lines:
        _show(table_from_answers(row for row in rows if not review_only or _needs_a_person(row[1])))
    failed = sum(isinstance(answer, Failure) for _, answer in rows)
    reviewed = sum(not isinstance(answer, Failure) and answer.review for _, answer in rows)
    sys.stderr.write(f"{len(rows) - failed} answered, {reviewed} to review, {failed} failed\n")
    if failed:
        raise typer.Exit(1)


def _needs_a_person(answer: Answer) -> bool:
    from plurum.client import Failure

    return isinstance(answer, Failure) or answer.review


def _answers(client: EnsembleClient, files: list[Path], batch_size: int) -> Iterator[tuple[Path, Answer]]:
    """Yield the files with their answers under a progress bar; a failure gets its line at once."""
    from rich.console import Console
    from rich.progress import Progress

    from plurum.client import Failure

    console = Console(stderr=True)
    # Left to itself Rich would send what goes to standard output to standard error, too.
    with Progress(console=console, transient=True, redirect_stdout=False, disable=not console.is_terminal) as progress:
        answers = client.stream(files, batch_size=batch_size)
        for path, answer in progress.track(zip(files, answers, strict=True), len(files), description="Asking"):
            if isinstance(answer, Failure):
                line = f"{answer.name}: {answer.reason}".encode("utf-8", "replace").decode("utf-8")
                console.print(line, markup=False, highlight=False, soft_wrap=True)
            yield path, answer


def _show(table: Table) -> None:
    from rich.console import Console

    # A pipe has no width: there a row is a line, however long.
    Console(width=None if sys.stdout.isatty() else 10_000).print(table, soft_wrap=True)
