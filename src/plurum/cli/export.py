"""`plurum export`: from a fitted run to a model repository."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["export"]


def export(
    run: Annotated[Path, typer.Argument(help="A run that `plurum train` and `plurum fit` have filled.", metavar="RUN")],
    out: Annotated[
        Path | None, typer.Option(help="Where the model repository goes [dim]\\[RUN/model_repository][/dim].")
    ] = None,
    max_batch_size: Annotated[int, typer.Option(min=1, max=1024, help="Largest batch the server takes.")] = 16,
    tolerance: Annotated[
        float, typer.Option(help="Largest difference of a probability between PyTorch and ONNX.")
    ] = 1e-4,
    as_json: Annotated[bool, typer.Option("--json", help="Print how each graph compared as JSON.")] = False,
) -> None:
    """Export the members to ONNX, check each against PyTorch, and assemble a Triton model repository.

    Nothing is written when a graph answers otherwise than its original on the run's validation images.

    [bold]Examples[/bold]

      plurum export runs/digits

      plurum export runs/digits --out /srv/models --max-batch-size 32
    """
    from plurum.errors import SettingsError, needs_extra
    from plurum.run import Run

    with needs_extra("export", "torch", "timm", "onnx", "onnxscript", "onnxruntime", "tritonclient.grpc"):
        from plurum.export import ExportSettings, repository_from_run
    if not 0 < tolerance < 1:
        raise SettingsError(f"--tolerance is {tolerance}; it is a difference of probabilities, between 0 and 1")
    from rich.console import Console

    console = Console(stderr=True)
    settings = ExportSettings(max_batch_size=max_batch_size, tolerance=tolerance)
    place = out or run / "model_repository"
    with console.status("exporting") as status:
        parities = repository_from_run(Run(run), place, settings, status.update)
    if as_json:
        report = {name: parity.model_dump() for name, parity in parities.items()}
        sys.stdout.write(json.dumps({"repository": str(place), "members": report}) + "\n")
        return
    for name, parity in parities.items():
        sys.stdout.write(
            f"{name}: as PyTorch on {parity.images} validation images "
            f"(largest difference of a probability {parity.max_difference:.1e}, {parity.flips} other labels)\n"
        )
    sys.stdout.write(f"model repository: {place}\nserve it with: plurum serve {place}\n")
