"""Simulate studies with known truth: how often a promised review risk is violated, by patient and by image.

    python -m plurum.benchmarks.claims.guarantees

Each simulated study draws certification patients with one or five correlated images each, and chooses what to serve.
The true risk of every configuration is known from a million other patients. Compared are: tests in a fixed order with
patients as units, alone and together with a sensitivity; the same tests with images as units; and the lowest confidence
threshold whose error rate on the study's images meets the target, without any bound. A choice violates its promise if
the true value is worse than promised; at a confidence of 95 %, at most 5 % of studies may. Two more tables tell how
often the sensitivity that a fit's bound chose is reached, and what a promise by class changes where one class is rare:
how often the risk of some class is above the promise. Not measured: real images, shifts between certification and
service, and studies that look at their certification patients more than once.
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
from plurum.training.statistics.operating_points import Promise, limit_of_class, midpoint_below

__all__ = ["guarantees", "simulate", "simulate_classes", "simulate_sensitivity"]

CONFIDENCE, RISK, SENSITIVITY = 0.95, 0.01, 0.95
# Risk by class, and fraction of the rare one.
CLASS_RISK, RARE = 0.03, 0.2
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

    def losses_of_class(self, index: int, is_true: bool) -> Floats:
        """Return the losses of the patients of a class."""
        wrong, unreviewed = self.decide(index, 0.5)
        return patient_losses(wrong, unreviewed & (self.true == is_true), self.groups)

    def misses(self, decision: float) -> Floats:
        """Return the fraction of missed images of each positive patient."""
        return patient_losses(self.probabilities < decision, self.true, self.groups)


def _draw(patients: int, images: int, rng: np.random.Generator, frequency: float = 0.5) -> _Answers:
    """Return patients whose images share most of their deviation; probabilities are correct over all images."""
    true = np.repeat(rng.random(patients) < frequency, images)
    shared = np.repeat(rng.normal(0, _PATIENT_SPREAD, patients), images)
    scores = np.where(true, 1.0, -1.0) * _SEPARATION + shared + rng.normal(0, _IMAGE_SPREAD, len(true))
    slope = 2 * _SEPARATION / (_PATIENT_SPREAD**2 + _IMAGE_SPREAD**2)
    odds = slope * scores + np.log(frequency / (1 - frequency))
    return _Answers(1 / (1 + np.exp(-odds)), true, np.repeat(np.arange(patients), images))


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


def simulate_classes(
    images: int, *, studies: int, patients: int = 2000, truth: int = 1_000_000, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Return, by method, the fractions of studies with a class whose risk is above the promise, and with any promise.

    One class is rare, and its patients are more often wrong. `all patients` promises the risk for all of them together,
    `each class` for those of each class too.
    """
    sums, rng, indices = np.zeros((2, 2, len(_REVIEW))), np.random.default_rng([seed, images, 2]), range(len(_REVIEW))
    for _ in range(max(1, truth // _CHUNK)):
        answers = _draw(_CHUNK, images, rng, RARE)
        for index in indices:
            for is_true in (False, True):
                losses = answers.losses_of_class(index, is_true)
                sums[:, int(is_true), index] += losses.sum(), len(losses)
    is_worse = (sums[0] / np.maximum(sums[1], 1) > CLASS_RISK).any(axis=0)
    rng, found = np.random.default_rng([seed, images, 3]), np.zeros((2, 2))
    for _ in range(studies):
        answers = _draw(patients, images, rng, RARE)
        together = [[answers.losses(index)] for index in indices]
        by_class = [
            [*one, *(answers.losses_of_class(i, is_true) for is_true in (False, True))]
            for i, one in enumerate(together)
        ]
        for method, tested in enumerate((together, by_class)):
            passed = try_in_order(tested, [CLASS_RISK] * len(tested[0]), CONFIDENCE).passed
            found[method] += passed is not None and bool(is_worse[passed]), passed is not None
    names, shares = ("all patients", "each class"), (found / studies).tolist()
    return {name: {"violated": one[0], "promised": one[1]} for name, one in zip(names, shares, strict=True)}


def simulate_sensitivity(
    images: int, *, studies: int, patients: int = 600, truth: int = 200_000, seed: int = 0
) -> dict[str, float]:
    """Return the fractions of studies that choose a threshold by the fit's bound, and whose sensitivity is reached."""
    rest, rng = _draw(truth, images, np.random.default_rng([seed, images, 4])), np.random.default_rng([seed, images, 5])
    chosen, reached = 0, 0
    for _ in range(studies):
        answers = _draw(patients, images, rng)
        scores, groups = answers.probabilities[answers.true], answers.groups[answers.true]
        found = limit_of_class(scores, groups, Promise(1 - SENSITIVITY, CONFIDENCE))
        if found is not None:
            chosen += 1
            threshold = midpoint_below(found, answers.probabilities)
            reached += bool(rest.misses(threshold).mean() <= 1 - SENSITIVITY)
    return {"chosen": chosen / studies, "reached": reached / max(chosen, 1)}


def guarantees(
    studies: Annotated[int, typer.Option(min=100, help="Simulated studies for each number of images.")] = 1000,
    patients: Annotated[int, typer.Option(min=300, help="Certification patients of a study.")] = 1000,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Measure how often promises are violated: a table on standard error, a line of JSON on standard output."""
    from rich.table import Table

    with command.show_status("simulating") as say:
        found, classes, sensitivity = {}, {}, {}
        for images in (1, 5):
            say(f"patients with {images} images")
            found[images] = simulate(images, studies=studies, patients=patients, seed=seed)
            say(f"patients of each class with {images} images")
            classes[images] = simulate_classes(images, studies=studies, patients=2 * patients, seed=seed)
            say(f"sensitivity of patients with {images} images")
            sensitivity[images] = simulate_sensitivity(images, studies=studies, seed=seed)
    table = Table(
        "images per patient", "units", "promised", "violated", title=f"{studies} studies, {patients} patients"
    )
    for images, by_method in found.items():
        for name, figures in by_method.items():
            table.add_row(str(images), name, f"{figures['promised']:.1%}", f"{figures['violated']:.1%}")
    for images, by_promise in classes.items():
        for name, figures in by_promise.items():
            cells = (f"{figures['promised']:.1%}", f"{figures['violated']:.1%} for a class")
            table.add_row(str(images), f"rare class, promise for {name}", *cells)
    for images, one in sensitivity.items():
        table.add_row(str(images), "sensitivity alone", f"{one['chosen']:.1%}", f"{1 - one['reached']:.1%}")
    promise = {"risk": RISK, "class risk": CLASS_RISK, "sensitivity": SENSITIVITY, "confidence": CONFIDENCE}
    report = {"studies": studies, "patients": patients, **promise, "found": found}
    report |= {"by class": classes, "sensitivity alone": sensitivity}
    command.print_report(report, machine(), table)


if __name__ == "__main__":
    command.run_as_program(guarantees)
