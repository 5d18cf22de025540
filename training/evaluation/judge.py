"""From answers and labels to a judgement; whoever gave the answers, PyTorch or a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from plurum.spec import PatientRule, Review
from plurum.training.statistics.bootstrap import Bootstrap, percentile_interval
from plurum.training.statistics.calibration import fitted_temperature, groups_of, tempered_losses
from plurum.training.statistics.curves import precision_recall_curve, reliability_bins, risk_coverage_curve, roc_curve
from plurum.training.statistics.diversity import diversity_of
from plurum.training.statistics.judgement import (
    ClassCurves,
    ClassSets,
    Figure,
    Judged,
    Judgement,
    PatientLevel,
    PatientScores,
    PredictionSets,
    Reviewed,
)
from plurum.training.statistics.metrics import Answers, Scored, Scorer
from plurum.training.statistics.patients import RULES, Patients, patients_of
from plurum.training.statistics.scoring import losses_of
from plurum.voting import Verdict, temper, with_prior

__all__ = ["Asked", "JudgeSettings", "Subject", "best_single", "judge", "patient_level_of"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# Below this many patients (or images) percentile intervals are known to be too narrow.
_FEW = 30


@dataclass(frozen=True)
class Subject:
    """Who is judged, and what was wished of it.

    Attributes:
        name: The ensemble's.
        classes: Names, in the order of the probabilities.
        members: Names, in the order of the verdicts.
        answered_by: `PyTorch`, or which server.
        alpha: Share of true classes that prediction sets may miss; None where sets hold the winner alone.
        review: When an answer goes to a person.
        prior_ratio: How many times as frequent each class is taken to be as here; None where nothing is corrected.
        patient_rule: How the answers to a patient's images become one; None where nothing was said.
        notes: What to mind about these answers, a line each.
    """

    name: str
    classes: tuple[str, ...]
    members: tuple[str, ...]
    answered_by: str
    alpha: float | None
    review: Review
    prior_ratio: tuple[float, ...] | None = None
    patient_rule: PatientRule | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """Answers to the images of one split, and the truth.

    Attributes:
        verdict: The ensemble's and the members' answers; all probabilities are finite.
        labels: `[images]`, at least one.
        patients: One per image, empty where none is known.
    """

    verdict: Verdict
    labels: Ints
    patients: Sequence[str]

    @property
    def answers(self) -> Answers:
        """The ensemble's."""
        return Answers(self.verdict.probabilities, self.verdict.label, self.labels)

    def alone(self, member: int, temperature: float = 1.0, prior_ratio: tuple[float, ...] | None = None) -> Answers:
        """Return one member's answers."""
        tempered = temper(self.verdict.member_probabilities[:, member], temperature)
        probabilities = with_prior(tempered, prior_ratio)
        return Answers(probabilities, probabilities.argmax(axis=-1), self.labels)


class JudgeSettings(BaseModel):
    """What a judgement may be asked for.

    Attributes:
        split: Of which images.
        draws: Of the bootstrap.
        seed: What they are drawn from.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    split: Literal["validation", "test"] = "test"
    draws: Annotated[int, Field(ge=100, le=100_000)] = 1000
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


def judge(
    subject: Subject,
    asked: Asked,
    fitted_on: Asked,
    settings: JudgeSettings,
    progress: Callable[[int, str], None] = lambda _count, _note: None,
) -> Judgement:
    """Return the judgement of an ensemble, its members and the best of them by `asked`.

    Args:
        subject: Who gave the answers.
        asked: The answers to be judged.
        fitted_on: Answers to the validation images: the best single member is chosen by them, never by `asked`.
        settings: How.
        progress: Is told of each of the `members + 2` that is done, and its name.
    """
    labels, classes = asked.labels, subject.classes
    groups = groups_of(asked.patients)
    bootstrap = Bootstrap(groups, settings.draws, settings.seed)
    best, temperature = best_single(fitted_on.verdict.member_probabilities, fitted_on.labels)
    candidates = {"ensemble": asked.answers, "best single": asked.alone(best, temperature, subject.prior_ratio)}
    candidates |= {name: asked.alone(index) for index, name in enumerate(subject.members)}
    results: dict[str, tuple[Scored, Scored]] = {}
    for name, answers in candidates.items():
        results[name] = _scored(Scorer(answers), bootstrap)
        progress(1, name)
    patients = patients_of(asked.patients, labels)
    return Judgement(
        name=subject.name,
        answered_by=subject.answered_by,
        split=settings.split,
        images=len(labels),
        patients=len(set(asked.patients) - {""}),
        classes=classes,
        class_counts=tuple(np.bincount(labels, minlength=len(classes)).tolist()),
        draws=settings.draws,
        drawn="patients" if patients else "images",
        seed=settings.seed,
        best_single=subject.members[best],
        best_single_temperature=temperature,
        judged=tuple(_judged(name, result, classes) for name, result in results.items()),
        differences=_differences(results["ensemble"], results["best single"]),
        confusion=_confusion(asked),
        curves=_curves(asked.answers, classes),
        reliability=reliability_bins(asked.answers),
        risk_coverage={name: risk_coverage_curve(answers) for name, answers in candidates.items()},
        sets=_sets(asked, subject, bootstrap),
        review=_reviewed(asked, subject, bootstrap),
        diversity=diversity_of(asked.verdict.member_probabilities.argmax(axis=-1), labels, subject.members),
        patient_level=patient_level_of(patients, candidates, settings.draws, settings.seed),
        patient_rule=subject.patient_rule,
        notes=(*subject.notes, *_notes(asked, classes, settings, results["ensemble"][1], patients)),
    )


def best_single(members: Floats, labels: Ints) -> tuple[int, float]:
    """Return the member with the lowest NLL, each with the temperature that suits it best, and that temperature.

    The vote has a temperature; a member without one would look worse than it is.

    Args:
        members: `[images, members, classes]`, answers to the validation images.
        labels: `[images]`.
    """
    losses = [tempered_losses(members[:, index], labels).mean() for index in range(members.shape[1])]
    best = int(np.argmin(losses))
    return best, fitted_temperature(members[:, best], labels)


def _scored(scorer: Scorer, bootstrap: Bootstrap) -> tuple[Scored, Scored]:
    """Return the plain metrics (a single draw of every image once) and those of each draw."""
    plain = scorer(np.ones((len(bootstrap.groups), 1), dtype=np.float32))
    drawn = [scorer(counts) for counts in bootstrap.blocks()]
    return plain, Scored(
        overall={name: np.concatenate([part.overall[name] for part in drawn]) for name in plain.overall},
        per_class={name: np.concatenate([part.per_class[name] for part in drawn], axis=1) for name in plain.per_class},
    )


def _figure(value: float, draws: Floats) -> Figure:
    low, high = percentile_interval(draws)
    return Figure(value=_known(value), low=_known(low), high=_known(high))


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _judged(name: str, result: tuple[Scored, Scored], classes: tuple[str, ...]) -> Judged:
    plain, drawn = result
    return Judged(
        name=name,
        kind="ensemble" if name == "ensemble" else "best" if name == "best single" else "member",
        metrics={key: _figure(values[0], drawn.overall[key]) for key, values in plain.overall.items()},
        per_class={
            label: {
                key: _figure(values[index, 0], drawn.per_class[key][index]) for key, values in plain.per_class.items()
            }
            for index, label in enumerate(classes)
        },
    )


def _differences(one: tuple[Scored, Scored], other: tuple[Scored, Scored]) -> dict[str, Figure]:
    return {
        name: _figure(values[0] - other[0].overall[name][0], one[1].overall[name] - other[1].overall[name])
        for name, values in one[0].overall.items()
    }


def _confusion(asked: Asked) -> tuple[tuple[int, ...], ...]:
    classes = asked.verdict.probabilities.shape[1]
    counts = np.bincount(asked.labels * classes + asked.verdict.label, minlength=classes**2)
    return tuple(tuple(row) for row in counts.reshape(classes, classes).tolist())


def _curves(answers: Answers, classes: tuple[str, ...]) -> dict[str, ClassCurves]:
    return {
        name: ClassCurves(
            roc=roc_curve(answers.probabilities[:, index], answers.labels == index),
            precision_recall=precision_recall_curve(answers.probabilities[:, index], answers.labels == index),
        )
        for index, name in enumerate(classes)
    }


def _shares(of: Sequence[Bools], among: Sequence[Bools], bootstrap: Bootstrap) -> list[Figure]:
    """Return, for each pair, the share of images `[images]` in the first among those in the second."""
    part = np.array([one & other for one, other in zip(of, among, strict=True)], dtype=np.float64)
    whole = np.array(among, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        plain = part.sum(axis=1) / whole.sum(axis=1)
        drawn = np.concatenate([(part @ counts) / (whole @ counts) for counts in bootstrap.blocks()], axis=1)
    return [_figure(value, draws) for value, draws in zip(plain, drawn, strict=True)]


def _sets(asked: Asked, subject: Subject, bootstrap: Bootstrap) -> PredictionSets:
    inside, labels = asked.verdict.prediction_set, asked.labels
    covered = np.take_along_axis(inside, labels[:, None], axis=-1)[:, 0]
    sizes = inside.sum(axis=1)
    of_class = [labels == index for index in range(len(subject.classes))]
    overall, *by_class = _shares([covered] * (len(of_class) + 1), [np.ones_like(covered), *of_class], bootstrap)
    return PredictionSets(
        wished=None if subject.alpha is None else 1 - subject.alpha,
        coverage=overall,
        mean_size=float(sizes.mean()),
        sizes=tuple(np.bincount(sizes, minlength=len(of_class) + 1)[1:].tolist()),
        by_class={
            name: ClassSets(
                images=int(rows.sum()),
                coverage=coverage,
                mean_size=float(sizes[rows].mean()) if rows.any() else None,
            )
            for name, rows, coverage in zip(subject.classes, of_class, by_class, strict=True)
        },
    )


def _reviewed(asked: Asked, subject: Subject, bootstrap: Bootstrap) -> Reviewed:
    sent, right = asked.verdict.review, ~asked.answers.wrong
    share, kept, others = _shares([sent, right, right], [np.ones_like(sent), ~sent, sent], bootstrap)
    return Reviewed(
        threshold=subject.review.threshold,
        wished_risk=subject.review.risk,
        share=share,
        accuracy_kept=kept,
        accuracy_sent=others,
    )


def patient_level_of(
    patients: Patients | None, candidates: dict[str, Answers], draws: int, seed: int
) -> PatientLevel | None:
    """Return how well patients are answered by all their images, or None where no patient is known.

    Args:
        patients: Whose images they are.
        candidates: Answers to all images, by the name of who is judged.
        draws: Of the bootstrap over patients.
        seed: What they are drawn from.
    """
    if patients is None or not patients.names:
        return None
    bootstrap = Bootstrap(np.arange(len(patients.labels)), draws, seed)
    by_rule = {
        name: {rule: _patient_scores(patients, answers, rule, bootstrap) for rule in RULES}
        for name, answers in candidates.items()
    }
    return PatientLevel(patients=len(patients.labels), images=len(patients.rows), by_rule=by_rule)


def _patient_scores(patients: Patients, answers: Answers, rule: PatientRule, bootstrap: Bootstrap) -> PatientScores:
    probabilities = patients.probabilities(answers.probabilities, answers.winners, rule)
    right = (probabilities.argmax(axis=1) == patients.labels).astype(np.float64)
    values = np.stack([right, losses_of(probabilities, patients.labels)])
    drawn = np.concatenate([values @ counts for counts in bootstrap.blocks()], axis=1) / len(patients.labels)
    accuracy, nll = (_figure(float(row.mean()), draws) for row, draws in zip(values, drawn, strict=True))
    return PatientScores(accuracy=accuracy, nll=None if rule == "majority" else nll)


def _notes(
    asked: Asked, classes: tuple[str, ...], settings: JudgeSettings, drawn: Scored, patients: Patients | None
) -> list[str]:
    notes = []
    if settings.split != "test":
        notes.append(f"The vote was fitted on these very {settings.split} images, so that its figures flatter it.")
    missing = [name for index, name in enumerate(classes) if not (asked.labels == index).any()]
    if missing:
        notes.append(
            f"No {settings.split} image is of class {' or '.join(missing)}: there are no figures for that, and means "
            f"over classes are over the others."
        )
    # Those that are missing altogether are missing from every draw.
    empty = np.isnan(drawn.per_class["recall"]).sum(axis=0) > len(missing)
    if empty.any():
        notes.append(
            f"In {int(empty.sum())} of {settings.draws} draws another class had no image; means over classes are over "
            f"the others there."
        )
    number = int(groups_of(asked.patients).max()) + 1
    if number < _FEW:
        what = "patients" if patients else "images"
        few = what if number > 1 else what.removesuffix("s")
        notes.append(f"Only {number} {few}: intervals from so few are rough, and rather too narrow.")
    if patients and patients.torn:
        notes.append(
            f"Left out of the patient level, as their images have different labels: {', '.join(patients.torn[:5])}"
            f"{f' and {len(patients.torn) - 5} more' if len(patients.torn) > 5 else ''}."
        )
    return notes
