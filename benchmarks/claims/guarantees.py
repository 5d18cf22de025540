"""Simulate studies with known truth: how often a promised review risk is violated, by patient and by image.

    python -m plurum.benchmarks.claims.guarantees

Each simulated study draws certification patients with one or five correlated images each, and chooses what to serve.
The true risk of every configuration is known from a million other patients. Compared are: tests in a fixed order with
patients as units, alone and together with a sensitivity; the same tests with images as units; and the lowest confidence
threshold whose error rate on the study's images meets the target, without any bound. A choice violates its promise if
the true value is worse than promised; at a confidence of 95 %, at most 5 % of studies may. Not measured: real images,
shifts between certification and service, and studies that look at their certification patients more than once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer

from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.machine import machine
from plurum.predictions.arrays import Bools, Floats, Ints
from plurum.promises.risk_control import patient_losses, try_in_order
from plurum.training.statistics.calibration import review_threshold

__all__ = ["guarantees", "simulate"]

CONFIDENCE, RISK, SENSITIVITY = 0.95, 0.01, 0.95
# From the strictest configuration to the one that reviews least.
_REVIEW = np.linspace(0.995, 0.5, 30)
_DECISION = np.linspace(0.6, 0.99, 30)
_SEPARATION, _PATIENT_SPREAD, _IMAGE_SPREAD = 2.0, 0.9, 0.4
_CHUNK = 50_000


@dataclass(frozen=True)
class _Answers:
    """Images of simulated patients, `[images]`: probability of the positive class, truth, and patient."""

    probabilities: Floats
    true: Bools
    groups: Ints

    def decide(self, index: int, decision: float) -> tuple[Bools, Bools]:
        """Return masks of wrong and of unreviewed images in a configuration."""
        positive = self.probabilities >= decision
        confidence = np.where(positive, self.probabilities, 1 - self.probabilities)
        return positive != self.true, confidence >= _REVIEW[index]

    def losses(self, index: int, *, decision: float = 0.5, by_image: bool = False) -> Floats:
        wrong, unreviewed = self.decide(index, decision)
        return patient_losses(wrong, unreviewed, np.arange(len(wrong)) if by_image else self.groups)

    def misses(self, decision: float) -> Floats:
        """Return the fraction of missed images of each positive patient."""
        return patient_losses(self.probabilities < decision, self.true, self.groups)


def _draw(patients: int, images: int, rng: np.random.Generator) -> _Answers:
    """Return patients whose images share most of their deviation; probabilities are correct over all images."""
    true = np.repeat(rng.random(patients) < 0.5, images)
    shared = np.repeat(rng.normal(0, _PATIENT_SPREAD, patients), images)
    scores = np.where(true, 1.0, -1.0) * _SEPARATION + shared + rng.normal(0, _IMAGE_SPREAD, len(true))
    slope = 2 * _SEPARATION / (_PATIENT_SPREAD**2 + _IMAGE_SPREAD**2)
    return _Answers(1 / (1 + np.exp(-slope * scores)), true, np.repeat(np.arange(patients), images))


def _true_values(images: int, patients: int, seed: int) -> dict[str, Floats]:
    """Return the true values of each configuration: risk by patient and by image, risk and miss rate at its point."""
    rng, number = np.random.default_rng([seed, images]), len(_REVIEW)
    sums = {name: np.zeros((2, number)) for name in ("patients", "images", "risk", "miss")}
    for _ in range(max(1, patients // _CHUNK)):
        answers = _draw(_CHUNK, images, rng)
        for index, decision in enumerate(_DECISION):
            found = {
                "patients": answers.losses(index),
                "images": answers.losses(index, by_image=True),
                "risk": answers.losses(index, decision=decision),
                "miss": answers.misses(decision),
            }
            for name, losses in found.items():
                sums[name][:, index] += losses.sum(), len(losses)
    return {name: total / np.maximum(count, 1) for name, (total, count) in sums.items()}


def _naive(answers: _Answers) -> int | None:
    """Return the last configuration whose threshold the study's error rate by image would allow."""
    wrong, _ = answers.decide(0, 0.5)
    confidence = np.maximum(answers.probabilities, 1 - answers.probabilities)
    allowed = np.flatnonzero(review_threshold(confidence, wrong, RISK) <= _REVIEW)
    return int(allowed[-1]) if len(allowed) else None


def simulate(
    images: int, *, studies: int, patients: int = 1000, truth: int = 1_000_000, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Return, by method, the fractions of studies with a violated promise and with any promise.

    Args:
        images: Images of each patient.
        studies: Number of studies.
        patients: Certification patients of a study.
        truth: Patients that the true values are computed from.
        seed: Random seed.
    """
    truths = _true_values(images, truth, seed)
    rng, indices = np.random.default_rng([seed, images, 1]), range(len(_REVIEW))
    violated: dict[str, list[bool]] = {name: [] for name in ("patients", "with sensitivity", "images", "naive")}
    served: dict[str, list[bool]] = {name: [] for name in violated}
    is_worse = {
        "patients": truths["patients"] > RISK,
        "with sensitivity": (truths["risk"] > RISK) | (truths["miss"] > 1 - SENSITIVITY),
        # Each method by the quantity that it promises.
        "images": truths["images"] > RISK,
        "naive": truths["images"] > RISK,
    }
    for _ in range(studies):
        answers = _draw(patients, images, rng)
        both = [[answers.losses(i, decision=_DECISION[i]), answers.misses(_DECISION[i])] for i in indices]
        chosen = {
            "patients": try_in_order([[answers.losses(i)] for i in indices], [RISK], CONFIDENCE).passed,
            "with sensitivity": try_in_order(both, [RISK, 1 - SENSITIVITY], CONFIDENCE).passed,
            "images": try_in_order([[answers.losses(i, by_image=True)] for i in indices], [RISK], CONFIDENCE).passed,
            "naive": _naive(answers),
        }
        for name, index in chosen.items():
            violated[name].append(index is not None and bool(is_worse[name][index]))
            served[name].append(index is not None)
    return {
        name: {"violated": float(np.mean(violated[name])), "promised": float(np.mean(served[name]))}
        for name in violated
    }


def guarantees(
    studies: Annotated[int, typer.Option(min=100, help="Simulated studies for each number of images.")] = 1000,
    patients: Annotated[int, typer.Option(min=300, help="Certification patients of a study.")] = 1000,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Measure how often promises are violated: a table on standard error, a line of JSON on standard output."""
    from rich.table import Table

    with command.show_status("simulating") as say:
        found = {}
        for images in (1, 5):
            say(f"patients with {images} images")
            found[images] = simulate(images, studies=studies, patients=patients, seed=seed)
    table = Table(
        "images per patient", "units", "promised", "violated", title=f"{studies} studies, {patients} patients"
    )
    for images, by_method in found.items():
        for name, figures in by_method.items():
            table.add_row(str(images), name, f"{figures['promised']:.1%}", f"{figures['violated']:.1%}")
    promise = {"risk": RISK, "sensitivity": SENSITIVITY, "confidence": CONFIDENCE}
    command.print_report({"studies": studies, "patients": patients, **promise, "found": found}, machine(), table)


if __name__ == "__main__":
    command.run_as_program(guarantees)
