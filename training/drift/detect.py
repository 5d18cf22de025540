"""Compare predictions with a reference: with other predictions, or with the baseline of an ensemble."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from plurum.errors import DataError, MetadataError
from plurum.figures import Drift, OutputShift
from plurum.predictions.arrays import Floats, Ints
from plurum.settings.drift import DriftSettings
from plurum.spec import Baseline, Ensemble
from plurum.training.drift.answers import Answers
from plurum.training.drift.permutation import (
    BinnedOutput,
    CountedOutput,
    Shift,
    bin_numbers,
    counted_shifts,
    permuted_shifts,
)

__all__ = ["AnswerCounts", "compare_answers", "compare_counts", "compare_with_baseline", "read_baseline"]

# With more, each sample is drawn from: memory stays small, and differences of 0.03 are still found.
MOST_IMAGES = 10_000
# With more classes, probabilities of those with the highest mean are tested.
MOST_CLASSES = 20
# With fewer units, even large shifts may not be found.
_FEW = 20
_INDEPENDENT = "The test assumes independent images, and gives false alarms where patients have several."
_LIMITS: tuple[float, ...] = Baseline.model_fields["confidence_limits"].default


@dataclass(frozen=True)
class AnswerCounts:
    """Counts of predictions, as a server's metrics hold them.

    Attributes:
        names: Names of the sources.
        labels: Number of predictions by label, `[classes]`.
        confidence: Number of predictions by bin of confidence, one more than limits of the baseline.
        reviews: Number of predictions that need review.
    """

    names: tuple[str, ...]
    labels: Ints
    confidence: Ints
    reviews: int


def compare_answers(reference: Answers, answers: Answers, settings: DriftSettings) -> Drift:
    """Test whether predictions differ from those of a reference, with patients as units.

    Args:
        reference: Predictions that the others are compared with.
        answers: Predictions to test, of the same ensemble.
        settings: Settings of the test.

    Raises:
        DataError: the classes differ.
    """
    if answers.classes != reference.classes:
        raise DataError(
            f"{answers.names[0]}: expected the classes of the reference ({', '.join(reference.classes)}), got "
            f"{', '.join(answers.classes)}. Give predictions of one ensemble."
        )
    samples = [_draw(sample, settings.seed) for sample in (reference, answers)]
    is_reference = np.repeat([True, False], [len(sample.label) for sample in samples])
    groups = [sample.groups for sample in samples]
    units = int(groups[0].max()) + 1, int(groups[1].max()) + 1
    outputs, notes = _outputs(*samples)
    joined = np.concatenate([groups[0], groups[1] + units[0]])
    found = permuted_shifts(outputs, is_reference, joined, settings.permutations, settings.seed)
    means = [{name: float(values.mean()) for name, values in _numbers(sample)} for sample in samples]
    confidence = [_shares(_confidence_bins(sample, _LIMITS), len(_LIMITS) + 1) for sample in samples]
    labels = [_shares(sample.label, len(sample.classes)) for sample in samples]
    has_patients = any(any(sample.patients) for sample in samples)
    return Drift(
        reference=", ".join(reference.names),
        answers=answers.names,
        classes=reference.classes,
        images=(len(reference.label), len(answers.label)),
        units=units,
        unit="patients" if has_patients else "images",
        **dict(settings),
        shifts=_shifts(found, *means),
        reference_labels=labels[0],
        answers_labels=labels[1],
        confidence_limits=_LIMITS,
        reference_confidence=confidence[0],
        answers_confidence=confidence[1],
        notes=(
            *_sample_notes((reference, answers), samples, has_patients=has_patients),
            *notes,
            *_few_notes(units, has_patients=has_patients),
        ),
    )


def compare_with_baseline(ensemble: Ensemble, name: str, answers: Answers, settings: DriftSettings) -> Drift:
    """Test whether predictions differ from the baseline in an ensemble's metadata, which holds counts only.

    Args:
        ensemble: Ensemble that made the predictions.
        name: Name of the reference.
        answers: Predictions to test.
        settings: Settings of the test.

    Raises:
        DataError: the classes differ.
        MetadataError: the ensemble has no baseline.
    """
    if answers.classes != ensemble.classes:
        raise DataError(
            f"{answers.names[0]}: expected the classes of {name} ({', '.join(ensemble.classes)}), got "
            f"{', '.join(answers.classes)}. Give predictions of this ensemble."
        )
    limits = read_baseline(ensemble, name).confidence_limits
    counts = AnswerCounts(
        names=answers.names,
        labels=np.bincount(answers.label, minlength=len(ensemble.classes)),
        confidence=np.bincount(_confidence_bins(answers, limits), minlength=len(limits) + 1),
        reviews=int(answers.review.sum()),
    )
    drift = compare_counts(ensemble, name, counts, settings)
    notes = drift.notes
    if len(set(answers.patients) - {""}) < sum(map(bool, answers.patients)):
        notes = (*notes, "Patients have several images: give a file of predictions as reference to test by patient.")
    return drift.model_copy(update={"notes": (*notes, *_failed_note(answers))})


def compare_counts(ensemble: Ensemble, name: str, counts: AnswerCounts, settings: DriftSettings) -> Drift:
    """Test whether counted predictions differ from the baseline in an ensemble's metadata.

    Args:
        ensemble: Ensemble that made the predictions.
        name: Name of the reference.
        counts: Counts of the predictions to test.
        settings: Settings of the test.

    Raises:
        DataError: there is no prediction.
        MetadataError: the ensemble has no baseline.
    """
    baseline = read_baseline(ensemble, name)
    images = int(counts.labels.sum())
    if not images:
        raise DataError(f"{counts.names[0]}: expected at least one prediction, got none. Wait for requests.")
    review = (1 - baseline.review_share, baseline.review_share)
    # A server counts while its page is read.
    reviews = min(counts.reviews, images)
    outputs = [
        CountedOutput("labels", "category", _counted(baseline, baseline.class_shares), counts.labels),
        CountedOutput("review", "category", _counted(baseline, review), np.array([images - reviews, reviews])),
    ]
    if counts.confidence.any():
        expected = _counted(baseline, baseline.confidence_shares)
        outputs.append(CountedOutput("confidence", "number", expected, counts.confidence))
    units = baseline.images, images
    return Drift(
        reference=name,
        answers=counts.names,
        classes=ensemble.classes,
        images=units,
        units=units,
        unit="images",
        **dict(settings),
        shifts=_shifts(
            counted_shifts(outputs, settings.permutations, settings.seed),
            {"review": baseline.review_share},
            {"review": reviews / images},
        ),
        reference_labels=baseline.class_shares,
        answers_labels=tuple((counts.labels / images).tolist()),
        confidence_limits=baseline.confidence_limits,
        reference_confidence=baseline.confidence_shares,
        answers_confidence=tuple((counts.confidence / max(1, counts.confidence.sum())).tolist()),
        notes=(f"The reference holds counts only. {_INDEPENDENT}", *_few_notes(units, has_patients=False)),
    )


def read_baseline(ensemble: Ensemble, name: str) -> Baseline:
    """Return the baseline of an ensemble.

    Args:
        ensemble: The ensemble.
        name: Name of the ensemble in messages.

    Raises:
        MetadataError: it has none.
    """
    if ensemble.baseline is None:
        raise MetadataError(
            f"{name}: expected an ensemble with a baseline, got one of an older version. Fit and export it again, or "
            "give a file of predictions as reference."
        )
    return ensemble.baseline


def _counted(baseline: Baseline, shares: Sequence[float]) -> Ints:
    """Return whole numbers of images for the fractions of a baseline; the largest takes what rounding leaves."""
    counts = np.floor(np.asarray(shares) * baseline.images + 1e-6).astype(np.int64)
    counts[counts.argmax()] += max(0, baseline.images - int(counts.sum()))
    return counts


def _draw(sample: Answers, seed: int) -> Answers:
    """Return the predictions of at most `MOST_IMAGES` images, drawn by patient."""
    if len(sample.label) <= MOST_IMAGES:
        return sample
    groups = sample.groups
    order = np.random.default_rng(seed).permutation(int(groups.max()) + 1)
    ends = np.bincount(groups)[order].cumsum()
    # At least one patient, who may have more images.
    kept = order[: max(1, int(np.searchsorted(ends, MOST_IMAGES, side="right")))]
    return sample.select(np.flatnonzero(np.isin(groups, kept)))


def _outputs(one: Answers, other: Answers) -> tuple[list[BinnedOutput], list[str]]:
    """Return the outputs of both samples to test, and notes on those that are not tested."""
    notes = []
    label = np.concatenate([one.label, other.label])
    review = np.concatenate([one.review, other.review]).astype(np.int64)
    found = [BinnedOutput("labels", "category", label, len(one.classes)), BinnedOutput("review", "category", review, 2)]
    first, second = dict(_numbers(one)), dict(_numbers(other))
    names = [name for name in first if name in second and name != "review"]
    probabilities = [f"p_{name}" for name in one.classes]
    # Of two classes, one probability says all.
    kept = set(probabilities[:1] if len(probabilities) == 2 else probabilities)
    if len(probabilities) > MOST_CLASSES:
        means = np.concatenate([one.probabilities, other.probabilities]).mean(axis=0)
        kept = {probabilities[index] for index in np.argsort(-means, kind="stable")[:MOST_CLASSES]}
        notes.append(f"Of {len(probabilities)} classes, the probabilities of the {MOST_CLASSES} largest are tested.")
    names = [name for name in names if name not in probabilities or name in kept]
    return found + [bin_numbers(name, np.concatenate([first[name], second[name]])) for name in names], notes


def _numbers(sample: Answers) -> Iterator[tuple[str, Floats]]:
    """Yield the numeric outputs of a sample by name, `[images]` each, and review as 0 and 1."""
    yield "review", sample.review.astype(np.float64)
    yield "confidence", sample.confidence
    yield "disagreement", sample.disagreement
    if sample.outlier is not None:
        yield "outlier", sample.outlier
    for index, name in enumerate(sample.classes):
        yield f"p_{name}", sample.probabilities[:, index]


def _shifts(found: Iterable[Shift], reference: dict[str, float], answers: dict[str, float]) -> tuple[OutputShift, ...]:
    return tuple(
        OutputShift(
            output=shift.name,
            distance=shift.distance,
            p_value=shift.p_value,
            reference=reference.get(shift.name),
            answers=answers.get(shift.name),
        )
        for shift in found
    )


def _shares(bins: Ints, count: int) -> tuple[float, ...]:
    return tuple((np.bincount(bins, minlength=count) / len(bins)).tolist())


def _confidence_bins(answers: Answers, limits: Sequence[float]) -> Ints:
    """Return the bin of each confidence; bins include their upper limit, as in Prometheus."""
    return np.searchsorted(np.asarray(limits), answers.confidence)


def _sample_notes(whole: Sequence[Answers], drawn: Sequence[Answers], *, has_patients: bool) -> Iterator[str]:
    if not has_patients:
        yield f"No patient is known. {_INDEPENDENT}"
    if both := {name for name in whole[0].patients if name} & set(whole[1].patients):
        yield f"{len(both):,} patients are in both samples, which the test takes for different ones."
    for before, after in zip(whole, drawn, strict=True):
        if len(after.label) < len(before.label):
            yield f"Of {len(before.label):,} images in {before.names[0]}, {len(after.label):,} were drawn for the test."
        yield from _failed_note(before)


def _failed_note(answers: Answers) -> tuple[str, ...]:
    return (f"{answers.failed:,} images without a prediction are left out.",) if answers.failed else ()


def _few_notes(units: tuple[int, int], *, has_patients: bool) -> Iterator[str]:
    if (fewest := min(units)) < _FEW:
        yield f"Only {fewest} {'patients' if has_patients else 'images'} in a sample: shifts may not be found."
