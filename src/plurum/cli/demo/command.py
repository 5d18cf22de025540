"""`plurum demo`: the main job on real images, from training to served answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(help="The run's folder; what is done in it already is used again.")] = Path(
        "runs/demo"
    ),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Remove an earlier run in that folder and start afresh.")
    ] = False,
) -> None:
    """Do the main job on scikit-learn's digits, 1,797 real images: three classifiers, one served answer.

    Trains, fits, exports, starts a Triton server on free ports, asks it about the held-out images over gRPC and
    HTTP, compares the answers with PyTorch's own, reads /metrics, and stops the server. At most four minutes on two
    cores; a second run uses again what is done.

    [bold]Examples[/bold]

      plurum demo

      plurum demo --out /tmp/demo --fresh
    """
    from plurum.errors import needs_extra

    with needs_extra("all", "torch", "timm", "sklearn", "onnx", "onnxscript", "onnxruntime", "tritonclient.grpc"):
        from plurum.cli.demo.job import main_job
    main_job(out, fresh=fresh)
