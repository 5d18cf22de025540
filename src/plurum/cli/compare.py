"""`plurum compare`: architectures side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["compare"]

_TRAINING, _MEASURING = "Training", "Measuring"


def _option(*names: str, panel: str, help: str, **more: Any) -> Any:  # noqa: A002 - Typer's name
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


def compare(  # noqa: PLR0913, PLR0917 - one parameter per option
    data: Annotated[
        str,
        typer.Argument(
            help="Labelled images in a form that `plurum train` accepts, such as a folder per class or the word "
            "[bold]digits[/bold]; or a run, to compare its members.",
            metavar="DATA",
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Output folder for the report, the graphs and the trained members.", metavar="OUT")
    ],
    archs: Annotated[
        list[str] | None,
        typer.Option("--arch", help="A timm architecture; repeat for several [dim]\\[of a run: all members][/dim]."),
    ] = None,
    checkpoints: Annotated[
        list[str] | None,
        typer.Option(
            "--checkpoint",
            help="Existing weights to compare as well: a member's folder, or ARCH=FILE (.safetensors, .pt).",
            metavar="SOURCE",
        ),
    ] = None,
    epochs: Annotated[int | None, _option(panel=_TRAINING, help="Training epochs [dim]\\[8][/dim].")] = None,
    learning_rate: Annotated[
        float | None, _option(panel=_TRAINING, help="Learning rate of AdamW [dim]\\[0.001][/dim].")
    ] = None,
    batch_size: Annotated[
        int | None, _option(panel=_TRAINING, help="Images per forward pass [dim]\\[32][/dim].")
    ] = None,
    image_size: Annotated[
        int | None, _option(panel=_TRAINING, help="Height and width in pixels [dim]\\[default of plurum train][/dim].")
    ] = None,
    pretrained: Annotated[
        bool, _option("--pretrained", panel=_TRAINING, help="Start from timm's pretrained weights (downloads them).")
    ] = False,
    max_members: Annotated[int, _option(panel=_MEASURING, help="Largest number of members in an ensemble.")] = 5,
    rounds: Annotated[int, _option(panel=_MEASURING, help="Speed measurements per architecture and runtime.")] = 5,
    seconds: Annotated[float, _option(panel=_MEASURING, help="Seconds per speed measurement.")] = 0.3,
    draws: Annotated[
        int, _option(panel=_MEASURING, help="Bootstrap resamples, by patient, for the confidence intervals.")
    ] = 1000,
    seed: Annotated[int, typer.Option(help="Random seed of training and bootstrap.")] = 0,
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
        from plurum.benchmarks.compare.architectures import CompareSettings, compare_architectures, contenders_of
        from plurum.benchmarks.compare.report import text_from_comparison, write_comparison
    from rich.console import Console

    from plurum.training import settings_from

    settings = settings_from(
        CompareSettings, max_members=max_members, rounds=rounds, seconds=seconds, draws=draws, seed=seed
    )
    training = {"epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size, "image_size": image_size}
    training["pretrained"] = pretrained or None
    # With a run as DATA nothing is trained, so training options are refused.
    given = {name: value for name, value in training.items() if value is not None}
    run, contenders = contenders_of(data, archs or (), checkpoints or (), out, seed, given)
    with Console(stderr=True).status("comparing") as status:
        comparison = compare_architectures(run, contenders, out / "work", settings, status.update)
    page = write_comparison(comparison, out)
    if as_json:
        sys.stdout.write(comparison.model_dump_json() + "\n")
    else:
        sys.stdout.write(f"{text_from_comparison(comparison)}report: {page}\n")
