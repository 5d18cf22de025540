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
            help="Images as `plurum train` takes them, such as a folder with a folder per class or the word "
            "[bold]digits[/bold]; or a run, whose members are compared.",
            metavar="DATA",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the report, the graphs and what is trained.", metavar="OUT")],
    archs: Annotated[
        list[str] | None,
        typer.Option("--arch", help="A timm architecture; once per architecture [dim]\\[a run: all members][/dim]."),
    ] = None,
    checkpoints: Annotated[
        list[str] | None,
        typer.Option(
            "--checkpoint",
            help="Weights that exist, beside those: a member's folder, or ARCH=FILE (.safetensors, .pt).",
            metavar="SOURCE",
        ),
    ] = None,
    epochs: Annotated[
        int | None, _option(panel=_TRAINING, help="How often each sees the training images [dim]\\[8][/dim].")
    ] = None,
    learning_rate: Annotated[float | None, _option(panel=_TRAINING, help="Of AdamW [dim]\\[0.001][/dim].")] = None,
    batch_size: Annotated[int | None, _option(panel=_TRAINING, help="Images per pass [dim]\\[32][/dim].")] = None,
    image_size: Annotated[
        int | None, _option(panel=_TRAINING, help="Height and width [dim]\\[as plurum train][/dim].")
    ] = None,
    pretrained: Annotated[
        bool, _option("--pretrained", panel=_TRAINING, help="Start from timm's weights (a download).")
    ] = False,
    max_members: Annotated[int, _option(panel=_MEASURING, help="Of the ensembles that are looked at.")] = 5,
    rounds: Annotated[int, _option(panel=_MEASURING, help="Turns that each architecture and runtime gets.")] = 5,
    seconds: Annotated[float, _option(panel=_MEASURING, help="Length of a turn.")] = 0.3,
    draws: Annotated[
        int, _option(panel=_MEASURING, help="Of the bootstraps, by patient, behind the intervals.")
    ] = 1000,
    seed: Annotated[int, typer.Option(help="What trainings and draws are taken from.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole comparison as JSON.")] = False,
) -> None:
    """Train architectures on the same images and splits, and compare what they answer and what they cost.

    Scores have 95 % intervals; speed is measured on the processor, in PyTorch, ONNX FP32 and ONNX INT8. Ensembles of
    them are looked at too: which are worth their cost? The same command again goes on where it was interrupted, and
    measures speed anew.

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
    # Where DATA is a run nothing is trained, and what was asked for of training is refused.
    given = {name: value for name, value in training.items() if value is not None}
    run, contenders = contenders_of(data, archs or (), checkpoints or (), out, seed, given)
    with Console(stderr=True).status("comparing") as status:
        comparison = compare_architectures(run, contenders, out / "work", settings, status.update)
    page = write_comparison(comparison, out)
    if as_json:
        sys.stdout.write(comparison.model_dump_json() + "\n")
    else:
        sys.stdout.write(f"{text_from_comparison(comparison)}report: {page}\n")
