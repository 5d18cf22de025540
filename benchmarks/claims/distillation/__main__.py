"""Compare a student with the same network trained on labels alone, and with the vote that it imitates.

    python -m plurum.benchmarks.claims.distillation

On Fashion-MNIST, at 32 x 32 pixels: three members are trained on a part of the training images and fitted. Students are
smaller than a member, and are trained for as many epochs. From each seed, `plurum distill` trains a student on the same
images, and one on further images without labels too; and the same network on the labels, for as many steps. Measured on
the 10,000 test images, at the temperature that is best on validation images: accuracy, NLL, and their paired
differences with bootstrap intervals. A difference is significant if its 95 % interval excludes 0. Then members and
student predict in turns in PyTorch, on one thread, in batches of 64.

All stages are kept in the work folder; an interrupted run resumes.

Not measured: patients, other data, larger networks, a server (docs/peers.md), cascades (claims.cascades).
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.table import Table
from torch import nn

from plurum.benchmarks.claims.distillation.page import student_table
from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.fashion import write_material
from plurum.benchmarks.tools.machine import machine
from plurum.benchmarks.tools.pages import Page, page_with_tables
from plurum.files import write_text
from plurum.models import model_from_checkpoint
from plurum.run import Run
from plurum.settings.distilling import DistillSettings
from plurum.spec import Scores
from plurum.training import FitSettings, TrainSettings, fit_run, train_run
from plurum.training.distilling.distill import distill_run
from plurum.training.distilling.report import DistillationReport
from plurum.training.distilling.teacher import predict_vote
from plurum.training.inference.predictions import predict_outputs
from plurum.training.statistics.scoring import compute_scores, predict_logits
from plurum.training.statistics.wording import difference_text, significant_change

__all__ = ["count_significant", "distillation", "measure_speeds", "score_on_training_images"]

_MEMBERS, _STUDENT = ("test_resnet",) * 3, "test_efficientnet"
_TURNS = 5


def distillation(
    fashion: Annotated[Path, typer.Option(help="Folder with the files of Fashion-MNIST.", exists=True)] = Path(
        "/usr/share/datasets/fashion-mnist"
    ),
    work: command.WorkFolder = Path("runs/distillation"),
    labelled: Annotated[int, typer.Option(min=100, help="Training images with labels.")] = 1_000,
    unlabelled: Annotated[int, typer.Option(min=0, help="Images without labels; 0 leaves that case out.")] = 6_000,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each member and student.")] = 40,
    seeds: Annotated[int, typer.Option(min=1, help="Students of each case.")] = 2,
    page: Page = None,
) -> None:
    """Compare students with their rivals: tables on standard error, one line of JSON on standard output."""
    if page is not None:
        page_with_tables(page, {"students": ""})
    state = machine()
    archive, folder = write_material(fashion, work, labelled, unlabelled)
    teacher = Run(work / "teacher")
    members = TrainSettings(archs=_MEMBERS, epochs=epochs, batch_size=64, learning_rate=2e-3, flip=True)
    train_run(str(archive), members, teacher.path)
    if not teacher.ensemble_file.is_file():
        fit_run(teacher.path, FitSettings(no_outliers=True, select="all"))
    alone = [_distill(teacher, work / f"student-{seed}", None, epochs, seed) for seed in range(seeds)]
    found = {f"{labelled:,} training images": alone}
    if folder is not None:
        # About as many steps as without these images.
        fewer = max(1, round(epochs * labelled / (labelled + unlabelled)))
        found[f"and {unlabelled:,} images without labels"] = [
            _distill(teacher, work / f"student-more-{seed}", folder, fewer, seed) for seed in range(seeds)
        ]
    taught = score_on_training_images(teacher)
    speeds = measure_speeds(teacher, Run(work / "student-0"))
    settings = {"arch": _STUDENT, "members": _MEMBERS, "labelled": labelled, "unlabelled": unlabelled, "epochs": epochs}
    figures = {name: [one.model_dump(mode="json") for one in reports] for name, reports in found.items()}
    measured = {"cases": figures, "vote_on_training_images": taught.model_dump(), "images_per_s": speeds}
    tables = (_table(name, reports) for name, reports in found.items())
    command.print_report({**settings, **measured}, state, *tables, *_lines(taught, speeds))
    if page is not None:
        write_text(page, page_with_tables(page, {"students": student_table(found)}))


def _distill(teacher: Run, out: Path, unlabelled: Path | None, epochs: int, seed: int) -> DistillationReport:
    settings = DistillSettings(arch=_STUDENT, unlabelled=None if unlabelled is None else str(unlabelled))
    return distill_run(teacher.path, settings, out, {"epochs": epochs, "seed": seed})


def count_significant(reports: list[DistillationReport]) -> int:
    """Return the number of students with a significantly lower NLL than the same network trained on labels."""
    return sum(significant_change(one.differences["labels"]["nll"], "lower") == "better" for one in reports)


def score_on_training_images(teacher: Run) -> Scores:
    """Return the scores of the vote on the images that its members were trained on, from which a student learns."""
    ensemble, table = teacher.ensemble(), teacher.table()
    members = predict_outputs(teacher, ensemble, ("train",))["train"].probabilities
    return compute_scores(predict_vote(members, ensemble.rule), table.labels[table.rows("train")])


def measure_speeds(teacher: Run, student: Run) -> dict[str, float]:
    """Return images per second of the vote's members, one after the other, and of the student; medians of turns."""
    sides = {"vote": _models(teacher), "student": _models(student)}
    pixels, image = np.array(teacher.pixels()[:512]), teacher.data().image
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    # The first round warms up.
    for _ in range(_TURNS + 1):
        for side, models in sides.items():
            start = time.perf_counter()
            for model in models:
                predict_logits(model, pixels, np.arange(len(pixels)), image)
            seconds[side].append(time.perf_counter() - start)
    torch.set_num_threads(before)
    return {side: len(pixels) / statistics.median(found[1:]) for side, found in seconds.items()}


def _models(run: Run) -> list[nn.Module]:
    return [model_from_checkpoint(member, run.checkpoint(member)) for member in run.members()]


def _lines(taught: Scores, speeds: dict[str, float]) -> tuple[str, str]:
    ratio = speeds["student"] / speeds["vote"]
    return (
        f"images/s: vote {speeds['vote']:,.0f}, student {speeds['student']:,.0f}, {ratio:.1f} times as many",
        f"the vote is right for {taught.accuracy:.1%} of its training images",
    )


def _table(name: str, reports: list[DistillationReport]) -> Table:
    table = command.new_table("seed", "vote", "student", "on labels", "student − labels", "student − vote", title=name)
    for seed, one in enumerate(reports):
        for figure in ("nll", "accuracy"):
            scores = (getattr(side, figure) for side in (one.vote, one.student, one.labels))
            differences = (difference_text(one.differences[other][figure]) for other in ("labels", "vote"))
            table.add_row(f"{seed} {figure}", *(f"{score:.4f}" for score in scores), *differences)
    table.caption = f"NLL significantly better than on labels: {count_significant(reports)} of {len(reports)} students"
    return table


if __name__ == "__main__":
    torch.manual_seed(0)
    command.run_as_program(distillation)
