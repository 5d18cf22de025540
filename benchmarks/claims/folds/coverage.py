"""Simulate studies with known truth: how often the sets of a vote of all folds' members hold the true class.

    python -m plurum.benchmarks.claims.folds.coverage

Each study draws images to learn from, and trains one logistic regression per fold, without that fold. When serving, the
probabilities of all are averaged. Temperature and prediction sets are fitted in two ways: to the served average on
calibration images, which no member learned, as `plurum fit` does; or to out-of-fold predictions, which come from one
member each and so are not those of the average. Told are, over studies, the mean fraction of new images of a class
whose set holds the class, for the worst class, and the mean number of classes in a set. With few images to learn from,
members differ much from their average. The target is 1 - alpha. Not measured: networks, real images, shifts between
calibration and service.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import typer
from sklearn.linear_model import LogisticRegression

from plurum.benchmarks.tools import command
from plurum.benchmarks.tools.machine import machine
from plurum.predictions.arrays import Floats, Ints
from plurum.training.data.splits import spread_evenly
from plurum.training.statistics.calibration import conformal_quantiles, fit_temperature
from plurum.voting import VotingRule, decide, soft_vote

__all__ = ["WAYS", "coverage", "simulate"]

ALPHA = 0.1
WAYS = ("calibration images", "out of fold")
_CLASSES, _FEATURES, _SEPARATION = 3, 20, 1.4
_TEST = 4000


def coverage(
    studies: Annotated[int, typer.Option(min=20, help="Simulated studies for each row of the table.")] = 400,
    folds: Annotated[int, typer.Option(min=2, max=20, help="Number of folds.")] = 5,
    calibration: Annotated[int, typer.Option(min=60, help="Calibration images of a study.")] = 150,
    images: Annotated[list[int] | None, typer.Option(help="Images to learn from; repeat for several.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Measure the coverage of both ways: a table on standard error, a line of JSON on standard output."""
    table = command.new_table("images to learn from, fitted to", "coverage of the worst class", "classes in a set")
    found: dict[str, dict[str, float]] = {}
    with command.show_status("simulating") as say:
        for number in images or [60, 120]:
            say(f"{number} images")
            for way, figures in simulate(number, folds, calibration, studies=studies, seed=seed).items():
                found[f"{number}, {way}"] = figures
                covered = f"{figures['coverage']:.1%} ± {figures['error']:.1%}"
                table.add_row(f"{number}, {way}", covered, f"{figures['classes']:.2f}")
    report = {"studies": studies, "folds": folds, "calibration": calibration, "alpha": ALPHA, "found": found}
    command.print_report(report, machine(), table)


def simulate(images: int, folds: int, calibration: int, *, studies: int, seed: int = 0) -> dict[str, dict[str, float]]:
    """Return the coverage of the worst class, its standard error over studies, and the mean size of sets, by way.

    Args:
        images: Images to learn from.
        folds: Number of folds.
        calibration: Calibration images.
        studies: Number of studies.
        seed: Random seed.
    """
    rng = np.random.default_rng([seed, images, folds])
    centres = rng.normal(size=(_CLASSES, _FEATURES))
    centres *= _SEPARATION / np.linalg.norm(centres, axis=1, keepdims=True)
    covered: dict[str, list[Floats]] = {way: [] for way in WAYS}
    sizes: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(studies):
        features, labels = _draw(images, centres, rng)
        models, out_of_fold = _cross_fit(features, labels, folds, rng)
        aside, aside_labels = _draw(calibration, centres, rng)
        fitted_on = {
            "calibration images": (_predict(models, aside), aside_labels),
            "out of fold": (out_of_fold[:, None], labels),
        }
        new, new_labels = _draw(_TEST, centres, rng)
        served = _predict(models, new)
        for way, (members, known) in fitted_on.items():
            rule = _fit_rule(members, known, folds)
            sets = decide(served, rule).prediction_set
            holds = sets[np.arange(_TEST), new_labels]
            covered[way].append(np.array([holds[new_labels == label].mean() for label in range(_CLASSES)]))
            sizes[way].append(float(sets.sum(axis=1).mean()))
    found = {}
    for way in WAYS:
        by_class = np.stack(covered[way])
        worst = int(by_class.mean(axis=0).argmin())
        error = float(by_class[:, worst].std(ddof=1) / np.sqrt(studies))
        found[way] = {
            "coverage": float(by_class[:, worst].mean()),
            "error": error,
            "classes": float(np.mean(sizes[way])),
        }
    return found


def _draw(number: int, centres: Floats, rng: np.random.Generator) -> tuple[Floats, Ints]:
    """Return features `[number, features]` around the centres of classes, and the classes; each has as many images."""
    labels = rng.permutation(np.arange(number) % _CLASSES)
    return centres[labels] + rng.normal(size=(number, _FEATURES)), labels


def _cross_fit(
    features: Floats, labels: Ints, folds: int, rng: np.random.Generator
) -> tuple[list[LogisticRegression], Floats]:
    """Return the member of each fold, and the out-of-fold probabilities `[images, classes]`."""
    shares = dict.fromkeys(range(folds), 1 / folds)
    fold = np.array(spread_evenly(labels, [""] * len(labels), int(rng.integers(2**31)), shares))
    models, out_of_fold = [], np.zeros((len(labels), _CLASSES))
    for number in range(folds):
        model = LogisticRegression(C=10.0, max_iter=1000).fit(features[fold != number], labels[fold != number])
        out_of_fold[fold == number] = model.predict_proba(features[fold == number])
        models.append(model)
    return models, out_of_fold


def _predict(models: list[LogisticRegression], features: Floats) -> Floats:
    return np.stack([model.predict_proba(features) for model in models], axis=1)


def _fit_rule(members: Floats, labels: Ints, folds: int) -> VotingRule:
    """Return the rule of a vote of all folds, with temperature and quantiles fitted to the equal vote of `members`."""
    number = members.shape[1]
    temperature = fit_temperature(soft_vote(members, np.full(number, 1 / number)), labels)
    known = decide(members, VotingRule((1 / number,) * number, temperature=temperature)).probabilities
    quantiles = conformal_quantiles(known, labels, np.arange(len(labels)), ALPHA)
    return VotingRule((1 / folds,) * folds, temperature=temperature, quantiles=tuple(quantiles))


if __name__ == "__main__":
    command.run_as_program(coverage)
