"""`plurum train`: from labelled images to members."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from plurum.training import Training

__all__ = ["train"]


def train(  # noqa: PLR0913, PLR0917 - one parameter per option
    data: Annotated[
        str,
        typer.Argument(
            help="A folder with a folder per class ([dim]CLASS/image.png[/dim] or [dim]CLASS/PATIENT/image.png[/dim]), "
            "a MedMNIST .npz file, or the word [bold]digits[/bold] for scikit-learn's.",
            metavar="DATA",
        ),
    ],
    arch: Annotated[list[str], typer.Option(help="A timm architecture; give it once per member.")],
    out: Annotated[Path, typer.Option(help="The run's folder: new, empty, or a run to go on with.", metavar="RUN")],
    epochs: Annotated[int, typer.Option(help="How often each member sees the training images.")] = 20,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW, after warm-up.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.05,
    label_smoothing: Annotated[float, typer.Option(help="0 to below 1.")] = 0.0,
    shift: Annotated[float, typer.Option(help="Move training images by up to this share of their size.")] = 0.1,
    flip: Annotated[bool, typer.Option("--flip", help="Mirror every other training image.")] = False,
    seed: Annotated[int, typer.Option(help="What splits, weights and batches are drawn from.")] = 0,
    image_size: Annotated[
        int | None, typer.Option(help="Height and width [dim]\\[arrays: their own, at least 32; files: 224][/dim].")
    ] = None,
    colour: Annotated[str, typer.Option(help="rgb or grey.")] = "rgb",
    resize: Annotated[str, typer.Option(help="stretch, or crop the centre to a square first.")] = "stretch",
    precision: Annotated[
        str, typer.Option(help="auto (fp16 on CUDA, bf16 on CPUs that have it, else fp32), fp32, bf16 or fp16.")
    ] = "auto",
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Start from timm's weights (a download).")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over in a run that holds another training.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the members' contracts as JSON.")] = False,
) -> None:
    """Train one member per --arch, on the same images and splits.

    The same command again goes on where it was interrupted.

    [bold]Examples[/bold]

      plurum train digits --arch resnet10t --arch regnetx_002 --out runs/digits

      plurum train tiles/ --arch resnet18 --arch efficientnet_b0 --arch densenet121 --flip --out runs/tiles
    """
    from plurum.training import TrainSettings, settings_from, train_run

    settings = settings_from(
        TrainSettings,
        archs=arch,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        shift=shift,
        flip=flip,
        seed=seed,
        image_size=image_size,
        colour=colour,
        resize=resize,
        precision=precision,
        pretrained=pretrained,
    )
    training = train_run(data, settings, out, fresh=fresh)
    if as_json:
        members = [member.model_dump(mode="json") for member in training.members]
        sys.stdout.write(json.dumps({"run": str(out), "members": members, "reused": training.reused}) + "\n")
    else:
        _print(training, out)


def _print(training: Training, out: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(box=box.SIMPLE, title=f"{escape(str(out))}: scores on validation images", title_justify="left")
    for column in ("member", "arch", "parameters", "precision", "best epoch", "accuracy", "NLL"):
        table.add_column(column, justify="left" if column in {"member", "arch", "precision"} else "right")
    for member in training.members:
        table.add_row(
            member.name,
            member.arch,
            f"{member.parameters:,}",
            member.precision,
            f"{member.best_epoch} of {member.epochs}",
            f"{member.validation.accuracy:.4f}",
            f"{member.validation.nll:.4f}",
        )
    console.print(table)
    if training.reused:
        console.print(f"finished before, and reused: {', '.join(training.reused)}", highlight=False)
    console.print(f"next: plurum fit {escape(str(out))}", highlight=False, soft_wrap=True)
