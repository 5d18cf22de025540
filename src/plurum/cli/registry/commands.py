"""`plurum push` and `plurum pull`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["pull", "push"]

Target = Annotated[str, typer.Argument(help="REGISTRY/NAME:TAG.", metavar="TARGET")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the outcome as one line of JSON.")]


def push(
    repository: Annotated[Path, typer.Argument(help="Model repository written by `plurum export`.", metavar="REPO")],
    target: Target,
    as_json: AsJson = False,
) -> None:
    """Store a model repository in an OCI registry.

    Credentials are those that `docker login` stored. Files that the registry has already are not sent again. Prints the
    digest, by which `plurum pull` gets exactly this repository.

    [bold]Examples[/bold]

      plurum push runs/digits/model_repository ghcr.io/clinic/clots:2
    """
    from plurum.repository.registry import push_repository

    with _progress() as say:
        digest = push_repository(repository, target, say)
    sys.stdout.write(f"{json.dumps({'target': target, 'digest': digest}) if as_json else digest}\n")


def pull(
    target: Target, out: Annotated[Path, typer.Option(help="Folder to write, atomically.")], as_json: AsJson = False
) -> None:
    """Fetch a model repository that `plurum push` stored in an OCI registry.

    All files are checked against their hashes. Credentials are those that `docker login` stored.

    [bold]Examples[/bold]

      plurum pull ghcr.io/clinic/clots:2 --out models/clots-2

      plurum pull ghcr.io/clinic/clots@sha256:5fea… --out models/clots-2
    """
    from plurum.repository.registry import pull_repository

    with _progress() as say:
        pull_repository(target, out, say)
    sys.stdout.write(f"{json.dumps({'target': target, 'repository': str(out)}) if as_json else out}\n")


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    from rich.console import Console

    with Console(stderr=True).status("connecting") as status:
        yield status.update
