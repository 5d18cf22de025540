"""`plurum demo`: run every stage on real images, from training to served predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run; completed steps are reused.")] = Path("runs/demo"),
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Remove an earlier run in that folder and start over.")
    ] = False,
) -> None:
    """Run every stage on scikit-learn's digits, 1,797 real images, with three classifiers.

    Trains, fits, exports and starts a Triton server on free ports. Sends the held-out images over gRPC and HTTP,
    compares the predictions with PyTorch's, reads /metrics and stops the server. Takes at most four minutes on two
    cores; a second run reuses completed steps.

    [bold]Examples[/bold]

      plurum demo

      plurum demo --out /tmp/demo --fresh
    """
    from plurum.errors import needs_extra

    with needs_extra("all", "torch", "timm", "sklearn", "onnx", "onnxscript", "onnxruntime", "tritonclient.grpc"):
        from plurum.cli.demo.job import run_demo
    run_demo(out, fresh=fresh)
