"""`plurum train`: from labelled images to members."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel

if TYPE_CHECKING:
    from plurum.training import Training

__all__ = ["train"]


_MEMBERS, _DATA, _STEPS = "Members", "Images", "Learning"
_CHANGES, _WORK = "Changes to training images", "How the work is done"


def _option(*names: str, panel: str, help: str) -> Any:  # noqa: A002 - Typer's name
    return typer.Option(*names, help=help, rich_help_panel=panel)


def train(  # noqa: PLR0913, PLR0917 - one parameter per option
    data: Annotated[
        str,
        typer.Argument(
            help="A folder with a folder per class or with MNIST's files, a .csv that lists images, a MedMNIST .npz "
            "file, or the word [bold]digits[/bold] for scikit-learn's.",
            metavar="DATA",
        ),
    ],
    archs: Annotated[
        list[str], _option("--arch", panel=_MEMBERS, help="A timm architecture; give it once per member.")
    ],
    out: Annotated[Path, typer.Option(help="The run's folder: new, empty, or a run to go on with.", metavar="RUN")],
    seeds: Annotated[int, _option(panel=_MEMBERS, help="Train all of them so often, from other seeds.")] = 1,
    snapshots: Annotated[
        int, _option(panel=_MEMBERS, help="Cut each training into cycles; every cycle's best is a member.")
    ] = 1,
    pretrained: Annotated[
        bool, _option("--pretrained", panel=_MEMBERS, help="Start from timm's weights (a download).")
    ] = False,
    seed: Annotated[int, _option(panel=_MEMBERS, help="What splits, weights and batches are drawn from.")] = 0,
    image_size: Annotated[
        int | None,
        _option(panel=_DATA, help="Height and width [dim]\\[arrays: their own, at least 32; files: 224][/dim]."),
    ] = None,
    colour: Annotated[str, _option(panel=_DATA, help="rgb or grey.")] = "rgb",
    resize: Annotated[str, _option(panel=_DATA, help="stretch, or crop the centre to a square first.")] = "stretch",
    tile_size: Annotated[
        int | None, _option(panel=_DATA, help="Cut larger files into squares of so many of their pixels.")
    ] = None,
    max_tiles: Annotated[int, _option(panel=_DATA, help="Squares of one file: those with the most in them.")] = 16,
    skip_unreadable: Annotated[
        bool, _option("--skip-unreadable", panel=_DATA, help="Leave out images that can't be read.")
    ] = False,
    epochs: Annotated[int, _option(panel=_STEPS, help="How often each member sees the training images.")] = 20,
    batch_size: Annotated[int, _option(panel=_STEPS, help="Images per pass.")] = 32,
    accumulate: Annotated[int, _option(panel=_STEPS, help="Passes per step: a larger batch in less memory.")] = 1,
    learning_rate: Annotated[float, _option(panel=_STEPS, help="Of AdamW, after warm-up.")] = 1e-3,
    weight_decay: Annotated[float, _option(panel=_STEPS, help="Of AdamW.")] = 0.05,
    warmup_share: Annotated[float, _option(panel=_STEPS, help="Share of steps in which the rate rises.")] = 0.1,
    clip_norm: Annotated[float, _option(panel=_STEPS, help="Cut gradients to this norm; 0 leaves them whole.")] = 1.0,
    label_smoothing: Annotated[float, _option(panel=_STEPS, help="0 to below 1.")] = 0.0,
    balance: Annotated[
        str, _option(panel=_STEPS, help="Against unequal classes: none, weights (in the loss) or sampling.")
    ] = "none",
    ema: Annotated[float, _option(panel=_STEPS, help="Keep a moving average of the weights, say 0.999.")] = 0.0,
    patience: Annotated[
        int | None, _option(panel=_STEPS, help="Stop after so many epochs that were no better.")
    ] = None,
    shift: Annotated[float, _option(panel=_CHANGES, help="Move by up to this share of their size.")] = 0.1,
    flip: Annotated[bool, _option("--flip", panel=_CHANGES, help="Mirror every other one.")] = False,
    rotate: Annotated[float, _option(panel=_CHANGES, help="Turn by up to so many degrees; 180 for tissue.")] = 0.0,
    jitter: Annotated[float, _option(panel=_CHANGES, help="Change colours by up to this share, say 0.2.")] = 0.0,
    mixup: Annotated[float, _option(panel=_CHANGES, help="Alpha of MixUp, say 0.2.")] = 0.0,
    cutmix: Annotated[float, _option(panel=_CHANGES, help="Alpha of CutMix, say 1.")] = 0.0,
    precision: Annotated[
        str,
        _option(panel=_WORK, help="auto (fp16 on CUDA, bf16 on CPUs that gain by it, else fp32), fp32, bf16 or fp16."),
    ] = "auto",
    compile: Annotated[bool, _option("--compile", panel=_WORK, help="Use torch.compile.")] = False,  # noqa: A002
    jobs: Annotated[int, _option(panel=_WORK, help="Train so many members at a time.")] = 1,
    tensorboard: Annotated[
        bool, _option("--tensorboard", panel=_WORK, help="Write RUN/tensorboard, for [dim]tensorboard --logdir[/dim].")
    ] = False,
    save_every_s: Annotated[
        float, _option(panel=_WORK, help="Seconds between two savings of an unfinished member.")
    ] = 30.0,
    fresh: Annotated[
        bool, _option("--fresh", panel=_WORK, help="Start over in a run that holds another training.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the members' contracts as JSON.")] = False,
) -> None:
    """Train one member per --arch, on the same images and splits.

    The same command again goes on where it was interrupted.

    [bold]Examples[/bold]

      plurum train digits --arch resnet10t --arch regnetx_002 --out runs/digits

      plurum train tiles/ --arch resnet18 --arch efficientnet_b0 --arch densenet121 --flip --rotate 180 --out runs/tiles

      plurum train tiles/ --arch resnet18 --seeds 3 --jobs 3 --out runs/seeds

      plurum train tiles/ --arch resnet18 --snapshots 4 --epochs 40 --out runs/snapshots

      torchrun --nproc-per-node 4 -m plurum train tiles/ --arch convnext_tiny --pretrained --out runs/tiles
    """
    given = locals()
    from plurum.training import TrainOptions, TrainSettings, settings_from, train_run

    settings = settings_from(TrainSettings, **_of(TrainSettings, given))
    try:
        training = train_run(data, settings, out, settings_from(TrainOptions, **_of(TrainOptions, given)))
    except KeyboardInterrupt:
        sys.stderr.write("plurum: interrupted; the same command goes on where it was\n")
        raise typer.Exit(130) from None
    if not training.is_first:
        return
    if as_json:
        members = [member.model_dump(mode="json") for member in training.members]
        sys.stdout.write(json.dumps({"run": str(out), "members": members, "reused": training.reused}) + "\n")
    else:
        _print(training, out)


def _of(kind: type[BaseModel], given: dict[str, Any]) -> dict[str, Any]:
    """Return those of the command's parameters that are fields of `kind`."""
    return {name: value for name, value in given.items() if name in kind.model_fields}


def _print(training: Training, out: Path) -> None:
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
        console.print(f"finished before, and reused: {', '.join(training.reused)}", highlight=False)
    console.print(f"next: plurum fit {escape(str(out))}", highlight=False, soft_wrap=True)
