"""Metrics of predictions, for all images or for many bootstrap draws at once, with NumPy and SciPy.

Every metric takes counts `[images, draws]`: how often each image occurs in each draw. A single column of ones gives
the plain figure. A thousand draws take seconds this way, and minutes with scikit-learn, whose values tests compare.

A class without an image in a draw has no value there (NaN) and is left out of the means over classes. A class that is
never predicted has a precision of 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from plurum.predictions.arrays import Floats, Ints
from plurum.predictions.scores import BINS, compute_losses, confidence_bins

__all__ = [
    "METRICS",
    "PER_CLASS",
    "LabelledPredictions",
    "Metric",
    "MetricDraws",
    "Scorer",
    "class_title",
    "distinct_metrics",
]

Counts = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Metric:
    """Title, direction and definition of a metric.

    Attributes:
        title: Title in tables and on axes, with the unit.
        better: Direction of better values.
        meaning: Definition, in sentences.
    """

    title: str
    better: Literal["higher", "lower"]
    meaning: str


_BY_CLASS = "Each class against all others, then the unweighted mean over classes."
METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", "higher", "Fraction of correct predictions."),
    "balanced_accuracy": Metric("balanced accuracy", "higher", "Mean of recall over classes."),
    "precision": Metric("macro precision", "higher", _BY_CLASS),
    "recall": Metric("macro recall", "higher", _BY_CLASS),
    "specificity": Metric("macro specificity", "higher", _BY_CLASS),
    "f1": Metric("macro F1", "higher", _BY_CLASS),
    "roc_auc": Metric("macro ROC-AUC", "higher", _BY_CLASS),
    "average_precision": Metric("macro average precision", "higher", _BY_CLASS),
    "nll": Metric(
        "NLL (nats)", "lower", "Mean of -log of the probability of the true class. Confident errors cost most."
    ),
    "brier": Metric(
        "Brier score (0 to 2)",
        "lower",
        "Mean over images of the squared differences between probabilities and truth, summed over classes.",
    ),
    "ece": Metric(
        "ECE",
        "lower",
        f"Expected calibration error: mean gap between confidence and accuracy over {BINS} bins of equal width.",
    ),
    "aurc": Metric(
        "AURC",
        "lower",
        "Area under the risk–coverage curve: mean error rate among the 1, 2, … all most confident predictions.",
    ),
    "augrc": Metric(
        "AUGRC",
        "lower",
        "Area under the generalised risk–coverage curve: mean fraction of all images that are errors among the most "
        "confident predictions.",
    ),
}
# Metrics that each class has too; `METRICS` has their means over classes.
PER_CLASS = ("precision", "recall", "specificity", "f1", "roc_auc", "average_precision")
# Of two classes, the recall of one is the specificity of the other, so these means repeat the balanced accuracy.
_REPEATED = ("recall", "specificity")
_CLASS_TITLES = {"precision": "precision (PPV)", "recall": "recall (sensitivity)"}


def class_title(name: str) -> str:
    """Return the title of one class's metric, a name in `PER_CLASS`."""
    return _CLASS_TITLES.get(name, METRICS[name].title.removeprefix("macro "))


def distinct_metrics(classes: int) -> dict[str, Metric]:
    """Return the metrics by name, without those that repeat another one for this number of classes."""
    return {name: metric for name, metric in METRICS.items() if classes > 2 or name not in _REPEATED}


@dataclass(frozen=True)
class LabelledPredictions:
    """Predictions for labelled images.

    Attributes:
        probabilities: Class probabilities, `[images, classes]`; rows sum to 1.
        winners: Predicted classes, `[images]`.
        labels: True classes, `[images]`.
    """

    probabilities: Floats
    winners: Ints
    labels: Ints

    @property
    def confidence(self) -> Floats:
        """Probabilities of the predicted classes, `[images]`."""
        return np.take_along_axis(self.probabilities, self.winners[:, None], axis=-1)[:, 0]

    @property
    def wrong(self) -> npt.NDArray[np.bool_]:
        """Mask of wrong predictions, `[images]`."""
        return np.asarray(self.winners != self.labels)


@dataclass(frozen=True)
class MetricDraws:
    """Metrics of each bootstrap draw.

    Attributes:
        overall: Values by the names in `METRICS`, `[draws]` each.
        per_class: Values by the names in `PER_CLASS`, `[classes, draws]` each.
    """

    overall: dict[str, Floats]
    per_class: dict[str, Floats]


class _Ranking:
    """Images ranked by score, the highest first, grouped into steps of equal scores.

    Scores between two hits share a step too, because no figure changes there; so a rare class costs little.
    """

    def __init__(self, scores: Floats, hit: npt.NDArray[np.bool_]) -> None:
        from scipy.sparse import csr_array

        _, rank = np.unique(-scores, return_inverse=True)
        hits = np.bincount(rank, weights=hit) > 0
        # A new step starts at every score with a hit, and after it.
        step = np.cumsum(hits | np.append(False, hits[:-1]))[rank]
        shape = (int(step.max()) + 1, len(scores))
        ones, images = np.ones(len(scores), dtype=np.float32), np.arange(len(scores))
        self._steps = csr_array((ones, (step, images)), shape=shape)
        self._hits = csr_array((ones[hit], (step[hit], images[hit])), shape=shape)

    def cumulate(self, counts: Counts) -> tuple[Floats, Floats]:
        """Return the numbers of images and of hits up to each step, `[steps + 1, draws]` each, starting with 0."""
        return _cumulate(self._steps @ counts), _cumulate(self._hits @ counts)


class Scorer:
    """Function that computes all metrics of some predictions; work that is equal for all draws is done once.

    Args:
        predictions: Predictions with finite probabilities.
    """

    def __init__(self, predictions: LabelledPredictions) -> None:
        self._classes = predictions.probabilities.shape[1]
        self._sums = _image_sums(predictions)
        self._rankings = [
            _Ranking(predictions.probabilities[:, index], predictions.labels == index) for index in range(self._classes)
        ]
        self._by_confidence = _Ranking(predictions.confidence, predictions.wrong)

    def __call__(self, counts: Counts) -> MetricDraws:
        """Return all metrics for counts `[images, draws]`."""
        sums = self._sums.T @ counts
        images, correct, nll, brier = sums[:4]
        tp, predicted, true = sums[4 : 4 + 3 * self._classes].reshape(3, self._classes, -1)
        # ECE weighs each bin by its number of images, which therefore cancels out.
        off = np.abs(sums[4 + 3 * self._classes :]).sum(axis=0)
        per_class = _from_counts(tp, predicted, true, images)
        ranked = [_areas(*ranking.cumulate(counts)) for ranking in self._rankings]
        per_class["roc_auc"] = np.stack([area for area, _ in ranked])
        per_class["average_precision"] = np.stack([precision for _, precision in ranked])
        aurc, augrc = _risk_areas(*self._by_confidence.cumulate(counts))
        means = {name: _mean(values) for name, values in per_class.items()}
        overall = {
            "accuracy": correct / images,
            "balanced_accuracy": means["recall"],
            **means,
            "nll": nll / images,
            "brier": brier / images,
            "ece": off / images,
            "aurc": aurc,
            "augrc": augrc,
        }
        return MetricDraws({name: overall[name] for name in METRICS}, {name: per_class[name] for name in PER_CLASS})


def _image_sums(predictions: LabelledPredictions) -> Floats:
    """Return each image's terms in the sums that the simple metrics are computed from, `[images, sums]`.

    The sums are: images, correct predictions, NLL, Brier score; then, by class, correct predictions, predictions and
    true images; then, by bin of confidence, confidence minus correctness.
    """
    probabilities, winners, labels = predictions.probabilities, predictions.winners, predictions.labels
    names = np.arange(probabilities.shape[1])
    predicted, true = winners[:, None] == names, labels[:, None] == names
    correct = winners == labels
    binned = confidence_bins(predictions.confidence)[:, None] == np.arange(BINS)
    return np.column_stack(
        [
            np.ones(len(labels)),
            correct,
            compute_losses(probabilities, labels),
            np.square(probabilities - true).sum(axis=1),
            predicted & true,
            predicted,
            true,
            binned * (predictions.confidence - correct)[:, None],
        ]
    )


def _from_counts(tp: Floats, predicted: Floats, true: Floats, images: Floats) -> dict[str, Floats]:
    """Return the metrics of the confusion matrix, `[classes, draws]` each."""
    absent = true == 0
    f1 = _ratio(2 * tp, predicted + true)
    precision = np.where(predicted == 0, 0.0, _ratio(tp, predicted))
    return {
        "precision": np.where(absent, np.nan, precision),
        "recall": _ratio(tp, true),
        "specificity": np.where(absent, np.nan, _ratio(images - true - predicted + tp, images - true)),
        "f1": np.where(absent, np.nan, f1),
    }


def _cumulate(steps: npt.NDArray[np.float32]) -> Floats:
    """Return the cumulated sums over steps, `[steps + 1, draws]`, starting with 0."""
    out = np.zeros((len(steps) + 1, steps.shape[1]))
    np.cumsum(steps, axis=0, out=out[1:])
    return out


def _areas(total: Floats, hits: Floats) -> tuple[Floats, Floats]:
    """Return ROC-AUC (trapezoids) and average precision (steps), `[draws]` each, as scikit-learn defines them."""
    positives = hits[-1]
    added = np.diff(hits, axis=0)
    missed = np.diff(total, axis=0) - added
    area = (missed * (hits[1:] + hits[:-1])).sum(axis=0) / 2
    precision = (added * hits[1:] / np.maximum(total[1:], 1)).sum(axis=0)
    return _ratio(area, positives * (total[-1] - positives)), _ratio(precision, positives)


def _risk_areas(total: Floats, wrong: Floats) -> tuple[Floats, Floats]:
    """Return AURC and AUGRC, `[draws]` each; lower is better.

    AURC is the mean error rate among the 1, 2, … all most confident predictions (Geifman, Uziel & El-Yaniv, arXiv
    1805.08206). AUGRC is the integral of their errors divided by all images (Traub et al., arXiv 2407.01032). Equally
    confident predictions count as if in random order: errors are spread evenly over a step.
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
    """Return the quotient, with NaN for a division by 0."""
    out = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=out, where=denominator != 0)
    return out


def _mean(values: Floats) -> Floats:
    """Return the mean over classes of `[classes, draws]` without NaN; NaN if all are NaN."""
    there = ~np.isnan(values)
    return _ratio(np.where(there, values, 0.0).sum(axis=0), there.sum(axis=0).astype(np.float64))
