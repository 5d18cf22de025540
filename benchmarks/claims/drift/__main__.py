"""Draw samples from a trained ensemble's predictions: how often does the test for drift alarm, and when should it?

    python -m plurum.benchmarks.claims.drift

Two small members are trained on a part of the images and fitted. Each draw takes a sample of validation images as
reference, and a sample of test images: as they are; with 20 points more of one class; or blurred by a Gaussian of 1.5
pixels at the members' input size. `plurum drift` and `plurum evaluate` make the same test of their predictions. A test
at 5 % is right if it alarms in at most 19 of 200 draws without a shift (a correct one exceeds that with a probability
of 0.3 %), and misses at most 19 of 200 with one.

Not measured: several images per patient (tests/training/drift simulates them), other shifts, and other members. Draws
share one pool of images and one training, and are not independent of these.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from plurum.benchmarks.claims.drift.draws import CASES, draw_p_values, prepare_run
from plurum.benchmarks.tools import command

__all__ = ["drift"]

_LEVELS = (0.05, 0.01)


def drift(
    data: Annotated[
        str, typer.Option(help="Labelled images as for `plurum train`: Fashion-MNIST's files, or digits.")
    ] = "/usr/share/datasets/fashion-mnist",
    work: command.WorkFolder = Path("runs/drift"),
    arch: command.Architectures = command.TINY_ARCHS,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each member.")] = 4,
    most: Annotated[int, typer.Option(min=500, help="Largest number of images to use.")] = 20_000,
    images: Annotated[int, typer.Option(min=20, help="Images of each sample.")] = 500,
    draws: Annotated[int, typer.Option(min=1, help="Draws of each case.")] = 200,
) -> None:
    """Count alarms with and without shifts: a table on standard error, a line of JSON on standard output."""
    with command.measurement("training") as (say, state):
        run = prepare_run(data, work, arch, epochs, most)
        accuracy = run.ensemble().scores["validation"].accuracy
        say(f"{draws} draws of {len(CASES)} cases")
        p_values = draw_p_values(run, images, draws)
    table = command.new_table(
        "case", *(f"at {level:.0%}" for level in _LEVELS), title=f"alarms of {draws} draws of {images} images"
    )
    alarms = {name: [sum(value <= level for value in found) for level in _LEVELS] for name, found in p_values.items()}
    for case, counts in alarms.items():
        table.add_row(case, *map(str, counts))
    settings = {"data": data, "members": arch, "epochs": epochs, "accuracy": accuracy}
    command.print_report(
        {**settings, "images": images, "draws": draws, "levels": _LEVELS, "alarms": alarms}, state, table
    )


if __name__ == "__main__":
    command.run_as_program(drift)
