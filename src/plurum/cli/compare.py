"""`plurum compare`: architectures side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from plurum.cli.options import Given, with_options
from plurum.cli.streams import write_json
from plurum.settings.benchmarks import COMPARED_EPOCHS, CompareSettings
from plurum.settings.training import TrainSettings

__all__ = ["compare"]

# With a run as DATA nothing is trained, so these are refused.
_TRAINED = ("epochs", "learning_rate", "batch_size", "image_size", "pretrained")


@with_options
def compare(
    data: Annotated[
        str,
        typer.Argument(
            help="Labelled images in a format that `plurum train` accepts, such as a folder per class or the word "
            "[bold]digits[/bold]; or a run, to compare its members.",
            metavar="DATA",
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Output folder for the report, the graphs and the trained members.", metavar="OUT")
    ],
    settings: CompareSettings,
    training: Annotated[dict[str, Any], Given(TrainSettings, _TRAINED, {"epochs": COMPARED_EPOCHS}, "Training")],
    archs: Annotated[
        list[str] | None,
        typer.Option(
            "--arch",
            help="A timm architecture, or of a run also the name of a member; repeat for several [dim]\\[of a run: all "
            "members][/dim].",
        ),
    ] = None,
    checkpoints: Annotated[
        list[str] | None,
        typer.Option(
            "--checkpoint",
            help="Existing weights to compare as well: the folder of any member, or ARCH=FILE (.safetensors, .pt).",
            metavar="SOURCE",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the full comparison as JSON.")] = False,
) -> None:
    """Train architectures on the same images and splits, and compare their accuracy, speed and size.

    Scores have 95 % intervals. Speed is measured on the CPU, in PyTorch, ONNX FP32 and ONNX INT8. Ensembles of the
    architectures are compared too. Run the same command again to resume an interrupted comparison; speed is measured
    again.

    [bold]Examples[/bold]

      plurum compare digits --arch resnet10t --arch dla46_c --arch regnetx_002 --out runs/compared

      plurum compare tiles/ --arch resnet18 --arch efficientnet_b0 --arch densenet121 --epochs 30 --out runs/compared

      plurum compare runs/tiles --out runs/compared

      plurum compare runs/tiles --checkpoint resnet50=weights.pt --out runs/compared
    """
    from plurum.errors import needs_extra

    with needs_extra("all", "matplotlib", "onnxruntime", "torch", "tritonclient"):
        from plurum.benchmarks.compare.architectures import compare_architectures, contenders_of
        from plurum.benchmarks.compare.report import text_from_comparison, write_comparison
    from plurum.progress import show_status

    run, contenders = contenders_of(data, archs or (), checkpoints or (), out, settings.seed, training)
    with show_status("comparing") as say:
        comparison = compare_architectures(run, contenders, out / "work", settings, say)
    page = write_comparison(comparison, out)
    if as_json:
        write_json(comparison)
    else:
        sys.stdout.write(f"{text_from_comparison(comparison)}report: {page}\n")
