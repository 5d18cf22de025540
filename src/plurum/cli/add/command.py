"""`plurum add`: add a model from elsewhere to a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plurum.cli.options import with_options
from plurum.settings.members import AddSettings

if TYPE_CHECKING:
    from plurum.training import AddedMember

__all__ = ["add"]


@with_options
def add(
    run: Annotated[Path, typer.Argument(help="A run trained by `plurum train`.", metavar="RUN")],
    sources: Annotated[
        list[str],
        typer.Argument(help="An ONNX file, or a file of weights, which its architecture may precede.", metavar="FILE"),
    ],
    settings: AddSettings,
    as_json: Annotated[bool, typer.Option("--json", help="Print the member's metadata as JSON.")] = False,
) -> None:
    """Add a model from elsewhere to RUN as a member: weights of any PyTorch module, or an ONNX file.

    The code that you name with --arch is run; files are read without running code in them. Writes nothing unless the
    model fits, and its graph predicts what the model itself does. Fit the run afterwards.

    [bold]Examples[/bold]

      plurum add runs/tiles mine.pt --arch resnet18 --classes CE,LAA --image-size 224 --mean 0,0,0 --std 1,1,1

      plurum add runs/tiles a.ckpt --arch torchvision:vgg16 --classes CE,LAA --image-size 224 --mean 0,0,0 --std 1,1,1

      plurum add runs/tiles member.py:make_model mine.pt --classes CE,LAA --image-size 256 --mean 0,0,0 --std 1,1,1

      plurum add runs/tiles model.onnx --outputs probabilities --classes LAA,CE --mean 0,0,0 --std 1,1,1
    """
    from plurum.errors import needs_extra
    from plurum.run import Run

    # PyTorch takes seconds to import.
    Run(run).check()
    with needs_extra("training"):
        from plurum.training import add_member
    added = add_member(Run(run), sources, settings)
    if as_json:
        report = {"member": added.member.model_dump(mode="json"), "difference": added.difference, "notes": added.notes}
        sys.stdout.write(json.dumps(report) + "\n")
        return
    _print(added, run)


def _print(added: AddedMember, run: Path) -> None:
    for note in added.notes:
        typer.echo(note)
    member = added.member
    kind = "weights of timm" if member.format == "timm" else "ONNX graph"
    typer.echo(f"{member.name}: {member.arch}, {kind}, {member.parameters:,} parameters")
    if added.difference is not None:
        typer.echo(f"largest difference of a probability from the original model: {added.difference:.1e}")
    if member.validation is not None:
        scores = member.validation
        typer.echo(f"on {scores.images} validation images: accuracy {scores.accuracy:.4f}, NLL {scores.nll:.4f}")
    typer.echo(f"next: plurum fit {run}")
