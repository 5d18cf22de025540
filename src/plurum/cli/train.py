"""`plurum train`: train members on labelled images."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel

if TYPE_CHECKING:
    from plurum.training import TrainedRun

__all__ = ["train"]


_MEMBERS, _DATA, _STEPS = "Members", "Images", "Optimisation"
_CHANGES, _WORK = "Augmentation", "Execution"


def _option(*names: str, panel: str, help: str) -> Any:  # noqa: A002 - Typer's name
    return typer.Option(*names, help=help, rich_help_panel=panel)


def train(  # noqa: PLR0913, PLR0917 - one parameter per option
    data: Annotated[
        str,
        typer.Argument(
            help="A folder with one subfolder per class, a folder of MNIST files, a CSV manifest, a MedMNIST .npz "
            "file, or the word [bold]digits[/bold] for scikit-learn's digits.",
            metavar="DATA",
        ),
    ],
    archs: Annotated[
        list[str], _option("--arch", panel=_MEMBERS, help="A timm architecture; repeat for every member.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run: new, empty, or a run to resume.", metavar="RUN")],
    seeds: Annotated[
        int, _option(panel=_MEMBERS, help="Train every architecture this many times, with different seeds.")
    ] = 1,
    snapshots: Annotated[
        int,
        _option(
            panel=_MEMBERS, help="Learning-rate cycles per training; the best weights of each cycle become a member."
        ),
    ] = 1,
    pretrained: Annotated[
        bool, _option("--pretrained", panel=_MEMBERS, help="Start from timm's pretrained weights (downloads them).")
    ] = False,
    seed: Annotated[int, _option(panel=_MEMBERS, help="Random seed of splits, weights and batches.")] = 0,
    image_size: Annotated[
        int | None,
        _option(
            panel=_DATA, help="Height and width in pixels [dim]\\[arrays: their own, at least 32; files: 224][/dim]."
        ),
    ] = None,
    colour: Annotated[str, _option(panel=_DATA, help="Colour mode: rgb or grey.")] = "rgb",
    resize: Annotated[
        str, _option(panel=_DATA, help="Resize rule: stretch, or crop to crop the centre to a square first.")
    ] = "stretch",
    tile_size: Annotated[
        int | None, _option(panel=_DATA, help="Cut larger images into square tiles of this many pixels a side.")
    ] = None,
    max_tiles: Annotated[
        int, _option(panel=_DATA, help="Most tiles per image; those with the most tissue are kept.")
    ] = 16,
    skip_unreadable: Annotated[
        bool, _option("--skip-unreadable", panel=_DATA, help="Skip images that can't be read.")
    ] = False,
    epochs: Annotated[int, _option(panel=_STEPS, help="Training epochs per member.")] = 20,
    batch_size: Annotated[int, _option(panel=_STEPS, help="Images per forward pass.")] = 32,
    accumulate: Annotated[
        int, _option(panel=_STEPS, help="Gradient accumulation: forward passes per optimiser step.")
    ] = 1,
    learning_rate: Annotated[float, _option(panel=_STEPS, help="Learning rate of AdamW after warm-up.")] = 1e-3,
    weight_decay: Annotated[float, _option(panel=_STEPS, help="Weight decay of AdamW.")] = 0.05,
    warmup_share: Annotated[float, _option(panel=_STEPS, help="Fraction of steps for learning-rate warm-up.")] = 0.1,
    clip_norm: Annotated[float, _option(panel=_STEPS, help="Largest gradient norm; 0 disables clipping.")] = 1.0,
    label_smoothing: Annotated[float, _option(panel=_STEPS, help="Label smoothing, 0 to below 1.")] = 0.0,
    balance: Annotated[
        str, _option(panel=_STEPS, help="Class balancing: none, weights (in the loss) or sampling.")
    ] = "none",
    ema: Annotated[
        float,
        _option(
            panel=_STEPS, help="Decay of an exponential moving average of the weights, such as 0.999; 0 disables it."
        ),
    ] = 0.0,
    patience: Annotated[
        int | None, _option(panel=_STEPS, help="Stop after this many epochs without improvement.")
    ] = None,
    shift: Annotated[
        float, _option(panel=_CHANGES, help="Largest random shift, as a fraction of the image size.")
    ] = 0.1,
    flip: Annotated[bool, _option("--flip", panel=_CHANGES, help="Mirror half of the images, left to right.")] = False,
    rotate: Annotated[float, _option(panel=_CHANGES, help="Largest random rotation in degrees; 180 for tissue.")] = 0.0,
    jitter: Annotated[
        float, _option(panel=_CHANGES, help="Largest random colour change, as a fraction, such as 0.2.")
    ] = 0.0,
    mixup: Annotated[float, _option(panel=_CHANGES, help="Alpha of MixUp, such as 0.2; 0 disables it.")] = 0.0,
    cutmix: Annotated[float, _option(panel=_CHANGES, help="Alpha of CutMix, such as 1; 0 disables it.")] = 0.0,
    precision: Annotated[
        str,
        _option(
            panel=_WORK,
            help="fp32, bf16, fp16, or auto: fp16 on CUDA, bf16 on CPUs that compute in it, else fp32.",
        ),
    ] = "auto",
    compile: Annotated[bool, _option("--compile", panel=_WORK, help="Compile models with torch.compile.")] = False,  # noqa: A002
    jobs: Annotated[int, _option(panel=_WORK, help="Members to train in parallel.")] = 1,
    tensorboard: Annotated[
        bool, _option("--tensorboard", panel=_WORK, help="Write TensorBoard logs to RUN/tensorboard.")
    ] = False,
    save_every_s: Annotated[
        float, _option(panel=_WORK, help="Seconds between checkpoints of an unfinished member.")
    ] = 30.0,
    fresh: Annotated[
        bool, _option("--fresh", panel=_WORK, help="Start over in a folder that holds another run.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the members' metadata as JSON.")] = False,
) -> None:
    """Train one member per --arch, on the same images and splits.

    Run the same command again to resume an interrupted training.

    [bold]Examples[/bold]

      plurum train digits --arch resnet10t --arch regnetx_002 --out runs/digits

      plurum train tiles/ --arch resnet18 --arch efficientnet_b0 --arch densenet121 --flip --rotate 180 --out runs/tiles

      plurum train tiles/ --arch resnet18 --seeds 3 --jobs 3 --out runs/seeds

      plurum train tiles/ --arch resnet18 --snapshots 4 --epochs 40 --out runs/snapshots

      torchrun --nproc-per-node 4 -m plurum train tiles/ --arch convnext_tiny --pretrained --out runs/tiles
    """
    given = locals()
    from plurum.training import TrainOptions, TrainSettings, settings_from, train_run

    settings = settings_from(TrainSettings, **_select(TrainSettings, given))
    try:
        training = train_run(data, settings, out, settings_from(TrainOptions, **_select(TrainOptions, given)))
    except KeyboardInterrupt:
        sys.stderr.write("plurum: interrupted; run the same command again to resume\n")
        raise typer.Exit(130) from None
    if not training.is_first:
        return
    if as_json:
        members = [member.model_dump(mode="json") for member in training.members]
        sys.stdout.write(json.dumps({"run": str(out), "members": members, "reused": training.reused}) + "\n")
    else:
        _print(training, out)


def _select(kind: type[BaseModel], given: dict[str, Any]) -> dict[str, Any]:
    """Return the command's parameters that are fields of `kind`."""
    return {name: value for name, value in given.items() if name in kind.model_fields}


def _print(training: TrainedRun, out: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from plurum.run import Run
    from plurum.training.data.report import read_data_report, report_lines

    console = Console(width=None if sys.stdout.isatty() else 120)
    for line in report_lines(read_data_report(Run(out))):
        console.print(escape(line), highlight=False, soft_wrap=True)
    table = Table(box=box.SIMPLE, title=f"{escape(str(out))}: scores on validation images", title_justify="left")
    for column in ("member", "arch", "parameters", "precision", "best epoch", "accuracy", "NLL"):
        table.add_column(column, justify="left" if column in {"member", "arch", "precision"} else "right")
    for member in training.members:
        scores = member.validation
        table.add_row(
            member.name,
            member.arch,
            f"{member.parameters:,}",
            member.precision,
            f"{member.best_epoch} of {member.epochs}",
            *(() if scores is None else (f"{scores.accuracy:.4f}", f"{scores.nll:.4f}")),
        )
    console.print(table)
    if training.reused:
        console.print(f"reused from an earlier run: {', '.join(training.reused)}", highlight=False)
    console.print(f"next: plurum fit {escape(str(out))}", highlight=False, soft_wrap=True)
