"""Metrics of answers, for all images at once or for each of many bootstrap draws at once. NumPy and SciPy.

Every metric takes counts `[images, draws]`: how often each image is in each draw; a single row of ones gives the
plain figure. That one formula serves both is what makes a thousand draws take seconds, where asking scikit-learn, to
which each is tested to be equal, a thousand times would take minutes.

A class without an image in a draw has no value there (NaN) and is left out of the means over classes; one that is
never answered has a precision of 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from plurum.training.statistics.scoring import losses_of

__all__ = ["BINS", "METRICS", "PER_CLASS", "Answers", "Metric", "Scored", "Scorer", "confidence_bins"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Counts = npt.NDArray[np.float32]

# Of ECE and of the reliability diagram: as many as Guo et al. (arXiv 1706.04599) took.
BINS = 15


@dataclass(frozen=True)
class Metric:
    """A metric's name for people.

    Attributes:
        title: In tables and on axes, with its unit.
        better: Which end is the good one.
    """

    title: str
    better: Literal["higher", "lower"]


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", "higher"),
    "balanced_accuracy": Metric("balanced accuracy", "higher"),
    "precision": Metric("precision", "higher"),
    "recall": Metric("recall (sensitivity)", "higher"),
    "specificity": Metric("specificity", "higher"),
    "f1": Metric("F1", "higher"),
    "roc_auc": Metric("ROC-AUC", "higher"),
    "average_precision": Metric("average precision", "higher"),
    "nll": Metric("NLL (nats)", "lower"),
    "brier": Metric("Brier score (0 to 2)", "lower"),
    "ece": Metric("ECE", "lower"),
    "aurc": Metric("AURC", "lower"),
    "augrc": Metric("AUGRC", "lower"),
}
# Those that each class has too; above stands their mean over classes.
PER_CLASS = ("precision", "recall", "specificity", "f1", "roc_auc", "average_precision")


@dataclass(frozen=True)
class Answers:
    """What was answered, and the truth.

    Attributes:
        probabilities: `[images, classes]`, rows sum to 1.
        winners: `[images]`, the classes answered.
        labels: `[images]`, the true ones.
    """

    probabilities: Floats
    winners: Ints
    labels: Ints

    @property
    def confidence(self) -> Floats:
        """The winners' probabilities, `[images]`."""
        return np.take_along_axis(self.probabilities, self.winners[:, None], axis=-1)[:, 0]

    @property
    def wrong(self) -> npt.NDArray[np.bool_]:
        """Which answers are, `[images]`."""
        return np.asarray(self.winners != self.labels)


@dataclass(frozen=True)
class Scored:
    """All metrics of each draw.

    Attributes:
        overall: By the names in `METRICS`, each `[draws]`.
        per_class: By the names in `PER_CLASS`, each `[classes, draws]`.
    """

    overall: dict[str, Floats]
    per_class: dict[str, Floats]


class _Ranking:
    """Images from the highest score to the lowest; what lies between two hits falls together, and so do equal scores.

    Nothing that is computed here changes where no hit is, so that a rare class costs little.
    """

    def __init__(self, scores: Floats, hit: npt.NDArray[np.bool_]) -> None:
        from scipy.sparse import csr_array

        _, rank = np.unique(-scores, return_inverse=True)
        hits = np.bincount(rank, weights=hit) > 0
        # A new step begins with every score that has a hit, and after it.
        step = np.cumsum(hits | np.append(False, hits[:-1]))[rank]
        shape = (int(step.max()) + 1, len(scores))
        ones, images = np.ones(len(scores), dtype=np.float32), np.arange(len(scores))
        self._steps = csr_array((ones, (step, images)), shape=shape)
        self._hits = csr_array((ones[hit], (step[hit], images[hit])), shape=shape)

    def cumulated(self, counts: Counts) -> tuple[Floats, Floats]:
        """Return how many images, and how many hits, there are up to each step: `[steps + 1, draws]`, 0 first."""
        return _cumulated(self._steps @ counts), _cumulated(self._hits @ counts)


class Scorer:
    """Computes all metrics of some answers; what no draw changes is computed once.

    Args:
        answers: To be judged; all probabilities are finite.
    """

    def __init__(self, answers: Answers) -> None:
        self._classes = answers.probabilities.shape[1]
        self._sums = _image_sums(answers)
        self._rankings = [
            _Ranking(answers.probabilities[:, index], answers.labels == index) for index in range(self._classes)
        ]
        self._by_confidence = _Ranking(answers.confidence, answers.wrong)

    def __call__(self, counts: Counts) -> Scored:
        """Return all metrics for counts `[images, draws]`."""
        sums = self._sums.T @ counts
        images, right, nll, brier = sums[:4]
        tp, answered, true = sums[4 : 4 + 3 * self._classes].reshape(3, self._classes, -1)
        # A bin's images weigh as many as they are, so that their number cancels out.
        off = np.abs(sums[4 + 3 * self._classes :]).sum(axis=0)
        per_class = _from_counts(tp, answered, true, images)
        ranked = [_areas(*ranking.cumulated(counts)) for ranking in self._rankings]
        per_class["roc_auc"] = np.stack([area for area, _ in ranked])
        per_class["average_precision"] = np.stack([precision for _, precision in ranked])
        aurc, augrc = _risk_areas(*self._by_confidence.cumulated(counts))
        means = {name: _mean(values) for name, values in per_class.items()}
        overall = {
            "accuracy": right / images,
            "balanced_accuracy": means["recall"],
            **means,
            "nll": nll / images,
            "brier": brier / images,
            "ece": off / images,
            "aurc": aurc,
            "augrc": augrc,
        }
        return Scored({name: overall[name] for name in METRICS}, {name: per_class[name] for name in PER_CLASS})


def confidence_bins(confidence: Floats) -> Ints:
    """Return the bin of each confidence, 0 to `BINS - 1`: bin i holds those above i / BINS, up to (i + 1) / BINS."""
    return np.asarray(np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1))


def _image_sums(answers: Answers) -> Floats:
    """Return what each image adds to the sums that the simple metrics are made of, `[images, sums]`.

    Images, right answers, NLL, Brier; then, by class, right answers, answers and true ones; then, by bin of
    confidence, confidence less right answers.
    """
    probabilities, winners, labels = answers.probabilities, answers.winners, answers.labels
    names = np.arange(probabilities.shape[1])
    answered, true = winners[:, None] == names, labels[:, None] == names
    right = winners == labels
    binned = confidence_bins(answers.confidence)[:, None] == np.arange(BINS)
    return np.column_stack(
        [
            np.ones(len(labels)),
            right,
            losses_of(probabilities, labels),
            np.square(probabilities - true).sum(axis=1),
            answered & true,
            answered,
            true,
            binned * (answers.confidence - right)[:, None],
        ]
    )


def _from_counts(tp: Floats, answered: Floats, true: Floats, images: Floats) -> dict[str, Floats]:
    """Return what follows from the confusion matrix, each `[classes, draws]`."""
    absent = true == 0
    f1 = _ratio(2 * tp, answered + true)
    precision = np.where(answered == 0, 0.0, _ratio(tp, answered))
    return {
        "precision": np.where(absent, np.nan, precision),
        "recall": _ratio(tp, true),
        "specificity": np.where(absent, np.nan, _ratio(images - true - answered + tp, images - true)),
        "f1": np.where(absent, np.nan, f1),
    }


def _cumulated(steps: npt.NDArray[np.float32]) -> Floats:
    """Return the sums up to each step, `[steps + 1, draws]`, of what each adds."""
    out = np.zeros((len(steps) + 1, steps.shape[1]))
    np.cumsum(steps, axis=0, out=out[1:])
    return out


def _areas(total: Floats, hits: Floats) -> tuple[Floats, Floats]:
    """Return ROC-AUC (trapezoids) and average precision (steps), each `[draws]`, as scikit-learn has them."""
    positives = hits[-1]
    added = np.diff(hits, axis=0)
    missed = np.diff(total, axis=0) - added
    area = (missed * (hits[1:] + hits[:-1])).sum(axis=0) / 2
    precision = (added * hits[1:] / np.maximum(total[1:], 1)).sum(axis=0)
    return _ratio(area, positives * (total[-1] - positives)), _ratio(precision, positives)


def _risk_areas(total: Floats, wrong: Floats) -> tuple[Floats, Floats]:
    """Return AURC and AUGRC, each `[draws]`, lower is better.

    AURC is the mean, over answering the 1, 2, … all surest images, of the share of wrong answers among them (Geifman,
    Uziel & El-Yaniv, arXiv 1805.08206); AUGRC that of wrong answers among all images (Traub et al., arXiv 2407.01032),
    as an integral. Equally sure answers count as if in random order: between two distinct confidences, errors come
    evenly.
    """
    images = total[-1]
    added, errors = np.diff(total, axis=0), np.diff(wrong, axis=0)
    rate = errors / np.maximum(added, 1)
    # The sum over j = 1 … added of (wrong + rate j) / (total + j), by harmonic numbers.
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, int(images.max()) + 1))])
    harmonics = np.diff(harmonic[total.astype(np.int64)], axis=0)
    risk = (errors + (wrong[:-1] - rate * total[:-1]) * harmonics).sum(axis=0) / images
    generalised = (added * (wrong[1:] + wrong[:-1])).sum(axis=0) / 2 / np.square(images)
    return risk, generalised


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Return the quotient, and NaN where it would be one by 0."""
    out = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=out, where=denominator != 0)


def _mean(values: Floats) -> Floats:
    """Return the mean over classes of `[classes, draws]`, NaN left out; NaN where all are."""
    there = ~np.isnan(values)
    return _ratio(np.where(there, values, 0.0).sum(axis=0), there.sum(axis=0).astype(np.float64))
