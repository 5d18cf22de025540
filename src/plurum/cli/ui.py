"""`plurum ui`: serve a web page for predictions and reviews."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from plurum.cli.options import OverHttp, ServerUrls, with_options
from plurum.errors import needs_extra
from plurum.settings.client import UiSettings

__all__ = ["ui"]


@with_options
def ui(  # noqa: PLR0913, PLR0917 - one parameter per option
    settings: UiSettings,
    url: ServerUrls = None,
    http: OverHttp = False,
    run: Annotated[Path | None, typer.Option(help="Run that is served; enables Grad-CAM maps of its members.")] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            help="Folder of reviews and their images.",
            show_default="$XDG_DATA_HOME/plurum/reviews, ~/.local/share/plurum/reviews",
        ),
    ] = None,
    reviewer: Annotated[str, typer.Option(help="Name of the reviewer, recorded with every decision.")] = "",
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the decisions to FILE atomically and exit.")
    ] = None,
    timeout_s: Annotated[float, typer.Option(help="Longest time for a prediction, in seconds.")] = 20.0,
) -> None:
    """Serve a web page to drop images on, to see predictions with their uncertainty, and to decide reviews.

    Decisions are saved to --store; --export writes them as a CSV manifest for plurum train. Only images sent to review
    are written to disk. Ctrl-C stops the page; no decision is lost.

    [bold]Examples[/bold]

      plurum ui

      plurum ui --run runs/demo --reviewer "Dr. Faust" --store reviews

      plurum ui --store reviews --export corrections.csv

      plurum train corrections.csv --arch resnet18 --out runs/next
    """
    with needs_extra("ui", "jinja2", "starlette", "uvicorn", "tritonclient.grpc"):
        from plurum.client.ui import Connection, ReviewStore, run_ui, write_corrections
    from plurum.evidence import Evidence
    from plurum.run import Run

    reviews = ReviewStore(store or _default_store(), reviewer)
    if export is not None:
        typer.echo(f"{write_corrections(reviews, export)} images in {export}")
        return
    evidence = Evidence(Run(run)) if run is not None else None
    connection = Connection(url or None, "http" if http else None, timeout_s)
    run_ui(connection, reviews, evidence, settings, lambda at: _announce(at, reviews.folder))


def _default_store() -> Path:
    data = os.environ.get("XDG_DATA_HOME", "")
    # The XDG Base Directory Specification says to ignore relative paths.
    root = Path(data) if data.startswith("/") else Path.home() / ".local" / "share"
    return root / "plurum" / "reviews"


def _announce(url: str, folder: Path) -> None:
    typer.echo(f"page     {url}\nreviews  {folder}\nstop it: Ctrl-C")
    # The parent process may wait for these lines on a pipe.
    sys.stdout.flush()
