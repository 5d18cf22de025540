"""Scores of a student beside those of its teacher, and of the same architecture trained on labels alone."""

from __future__ import annotations

from typing import Literal

import numpy as np

from plurum.predictions.arrays import Floats, Ints
from plurum.predictions.scores import compute_losses
from plurum.spec import Metadata, Scores
from plurum.training.statistics.bootstrap import Bootstrap
from plurum.training.statistics.estimates import Estimate, estimate_mean
from plurum.training.statistics.wording import comparison_line

__all__ = ["DistillationReport", "compare_predictions", "report_lines"]


class DistillationReport(Metadata):
    """Result of `plurum distill`, as `report/distillation.json` holds it.

    All predictions are for test images, at the temperature that is best on validation images.

    Attributes:
        version: Version of this format.
        member: Name of the student.
        added: Name of the student's copy in the teacher's run; None if it was not added.
        images: Training images, with labels and without.
        left_out: Unlabelled images that were left out, because the run holds them out.
        student: Scores of the student.
        vote: Scores of the vote that it imitates.
        labels: Scores of the same architecture, trained on labels for as many steps; None without a comparison.
        multiply_adds: Multiply–adds of an image, of the student and of the vote.
        differences: Differences of the student's accuracy and NLL from those of the others, by figure.
    """

    version: Literal[1] = 1
    member: str
    added: str | None = None
    images: dict[Literal["labelled", "unlabelled"], int]
    left_out: int
    student: Scores
    vote: Scores
    labels: Scores | None
    multiply_adds: dict[Literal["student", "vote"], int]
    differences: dict[Literal["vote", "labels"], dict[str, Estimate]]


def compare_predictions(one: Floats, other: Floats, labels: Ints, bootstrap: Bootstrap) -> dict[str, Estimate]:
    """Return the differences of one model's accuracy and NLL from another's, with paired 95 % intervals.

    Args:
        one: Probabilities of a model, `[images, classes]`.
        other: Those of the other.
        labels: True classes, `[images]`.
        bootstrap: Bootstrap over the groups of these images.
    """
    correct = [(found.argmax(axis=-1) == labels).astype(np.float64) for found in (one, other)]
    losses = [compute_losses(found, labels) for found in (one, other)]
    return {
        "accuracy": estimate_mean(correct[0] - correct[1], bootstrap),
        "nll": estimate_mean(losses[0] - losses[1], bootstrap),
    }


def report_lines(report: DistillationReport) -> list[str]:
    """Return the result in sentences."""
    work, scores = report.multiply_adds, report.student
    first = (
        f"On {scores.images:,} test images, the student {report.member} has an accuracy of {scores.accuracy:.1%} and "
        f"an NLL of {scores.nll:.4f} nats, for {work['student'] / work['vote']:.1%} of the vote's multiply–adds."
    )
    lines = [first]
    if report.labels is not None:
        other = "the same architecture, trained on labels alone"
        lines.append(comparison_line(report.differences["labels"], other))
    lines.append(comparison_line(report.differences["vote"], "the vote"))
    if report.left_out:
        lines.append(
            f"{report.left_out:,} unlabelled images were left out, because they are validation, test or set-aside "
            f"images of the run."
        )
    return lines
