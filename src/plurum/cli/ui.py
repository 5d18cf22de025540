"""`plurum ui`: a page for people."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from plurum.errors import needs_extra

__all__ = ["ui"]


def ui(  # noqa: PLR0913, PLR0917 - one parameter per option
    url: Annotated[
        list[str] | None,
        typer.Option(
            help="The server: host:port, or http(s)://host:port. Several, each with --url, are asked in turn.",
            show_default="this machine",
        ),
    ] = None,
    http: Annotated[bool, typer.Option("--http", help="Ask over HTTP (port 8000) instead of gRPC (8001).")] = False,
    run: Annotated[
        Path | None, typer.Option(help="The run that is served: show where its members looked (Grad-CAM).")
    ] = None,
    store: Annotated[
        Path | None,
        typer.Option(
            help="Folder of what is sent to review, with the images.",
            show_default="$XDG_DATA_HOME/plurum/reviews, ~/.local/share/plurum/reviews",
        ),
    ] = None,
    reviewer: Annotated[str, typer.Option(help="Who decides, as it is written beside every decision.")] = "",
    export: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write what was decided to FILE, whole or not at all, and show no page."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on. There is NO login: whoever reaches it sees all images.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8085,
    timeout_s: Annotated[float, typer.Option(help="How long an answer may take, seconds.")] = 20.0,
    max_image_mib: Annotated[int, typer.Option(min=1, help="Largest file of an image, MiB.")] = 64,
) -> None:
    """Show a page for people: drop images, see each answer and how far to trust it, decide what was sent to review.

    What people confirm or correct is kept in --store, and exported as a CSV that plurum train reads. Only what is sent
    to review is written to the disk. Ctrl-C ends it; nothing that was decided is lost.

    [bold]Examples[/bold]

      plurum ui

      plurum ui --run runs/demo --reviewer "Dr. Faust" --store reviews

      plurum ui --store reviews --export corrections.csv

      plurum train corrections.csv --arch resnet18 --out runs/next
    """
    with needs_extra("ui", "jinja2", "starlette", "uvicorn", "tritonclient.grpc"):
        from plurum.client.ui import Connection, ReviewStore, UiSettings, run_ui, write_corrections
    from plurum.evidence import Evidence
    from plurum.run import Run

    reviews = ReviewStore(store or _default_store(), reviewer)
    if export is not None:
        typer.echo(f"{write_corrections(reviews, export)} images in {export}")
        return
    evidence = Evidence(Run(run)) if run is not None else None
    connection = Connection(url or None, "http" if http else None, timeout_s)
    settings = UiSettings(host=host, port=port, max_image_mib=max_image_mib)
    run_ui(connection, reviews, evidence, settings, lambda at: _announce(at, reviews.folder))


def _default_store() -> Path:
    data = os.environ.get("XDG_DATA_HOME", "")
    # A relative one is to be ignored (XDG Base Directory Specification).
    root = Path(data) if data.startswith("/") else Path.home() / ".local" / "share"
    return root / "plurum" / "reviews"


def _announce(url: str, folder: Path) -> None:
    typer.echo(f"page     {url}\nreviews  {folder}\nend it:  Ctrl-C")
    # Who started us may read this through a pipe, and waits for it.
    sys.stdout.flush()
